"""The bench over many assets: small, in a process of its own."""

from __future__ import annotations

import pytest

from tracepaper.replay.bench.networks import REACH_BYTES, measure_assets
from tracepaper.replay.bench.panel import measure_panel
from tracepaper.strategies.errors import ConfigInvalid

pytestmark = pytest.mark.slow


def test_a_small_one_is_measured_and_explained() -> None:
    found = measure_assets(3, 64)
    assert found["tokens"] == 192
    assert found["forward_explained_minutes"] > 0.0
    assert found["largest_row_error"] < 1e-5
    assert 0 < found["imports_bytes"] <= found["peak_bytes"] < REACH_BYTES


def test_runs_of_a_small_one_are_replayed_verified_and_taken_live() -> None:
    found = measure_panel(3, 32, 4)
    assert found["bars_looked_back_on"] == 33
    assert found["closes"] == 5
    assert found["decisions"] == found["answered"] == found["verify_agreed"] == 15
    assert found["verify_differences"] == 0
    assert found["audit_verify_holds"] is True
    for name in ("replay_close_cpu_s", "live_close_cpu_s", "live_close_wall_s"):
        assert 0.0 < found[name]["median"] <= found[name]["p99"]
    assert found["replay_peak_mb"] <= found["verify_peak_mb"] <= found["live_peak_mb"]


def test_one_that_cannot_be_measured_says_so_in_one_sentence() -> None:
    with pytest.raises(ConfigInvalid, match="1,001 assets of 64 bars could not be measured"):
        measure_assets(1_001, 64)
    with pytest.raises(ConfigInvalid, match="A run of 1,001 assets of 64 bars could not be"):
        measure_panel(1_001, 64, 1)
