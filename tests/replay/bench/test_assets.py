"""The bench over many assets: small, in a process of its own."""

from __future__ import annotations

import pytest

from tracepaper.replay.bench.networks import REACH_BYTES, measure_assets
from tracepaper.strategies.errors import ConfigInvalid

pytestmark = pytest.mark.slow


def test_a_small_one_is_measured_and_explained() -> None:
    found = measure_assets(3, 64)
    assert found["tokens"] == 192
    assert found["forward_explained_minutes"] > 0.0
    assert found["largest_row_error"] < 1e-5
    assert 0 < found["imports_bytes"] <= found["peak_bytes"] < REACH_BYTES


def test_one_that_cannot_be_measured_says_so_in_one_sentence() -> None:
    with pytest.raises(ConfigInvalid, match="1,001 assets of 64 bars could not be measured"):
        measure_assets(1_001, 64)
