"""``bench replay``: every figure is made in one run, beside its own reference."""

from __future__ import annotations

from tracepaper.replay.bench.replay import SYMBOLS, measure, tiled


def test_a_replay_is_measured_beside_the_plain_loop_and_beside_fifty_symbols() -> None:
    told: list[str] = []
    figures = measure(5_000, rounds=1, tell=told.append)
    assert f"5,000 bars, of one symbol and of {SYMBOLS}" in told[0]
    ratio = figures["plain_loop_bars_per_cpu_s"] / figures["bars_per_cpu_s"]
    assert abs(figures["times_plain_loop"] / ratio - 1) < 1e-9
    assert figures["fifty_symbols_times_one"] > 0
    assert figures["database_bytes_per_bar"] > figures["database_bytes_per_bar_acted"] > 0


def test_bars_laid_end_to_end_have_no_hole() -> None:
    candles = tiled(30_000)
    assert len(candles) == 30_000
    assert candles.gaps == []
