"""``bench train``: the same network learns from chunks and from single windows."""

from __future__ import annotations

import pytest

from tracepaper.replay.bench.networks import measure_training
from tracepaper.strategies.api.model import KINDS
from tracepaper.strategies.networks.architecture import network_kinds
from tracepaper.strategies.networks.flash import FlashConfig


def test_training_is_measured_beside_its_naive_form(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(network_kinds()) - {"flash"}:
        monkeypatch.delitem(KINDS, name)
    small = FlashConfig(dim=8, layers=2, heads=2, window=16, horizons=(5, 30))
    found = measure_training(2_000, steps=2, flash=small)
    assert found["rows_of_an_answer"] == 31
    assert found["chunks_bars_per_cpu_s"] > found["naive_bars_per_cpu_s"] > 0
    ratio = found["chunks_bars_per_cpu_s"] / found["naive_bars_per_cpu_s"]
    assert found["times_naive"] == ratio
    assert found["whole_windows_bars_per_cpu_s"] == {}
