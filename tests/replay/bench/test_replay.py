"""The cost of an explained bar is taken from chunk to chunk, without what the reference takes."""

from __future__ import annotations

import models
import pytest

from tracepaper.replay.backtest.scan import CHUNK_EVENTS
from tracepaper.replay.bench.replay import ExplainedBars, Reversion, measure, replay_of, tiled
from tracepaper.strategies.networks.stream import CHUNK_BARS, StreamingNetwork
from tracepaper.strategies.networks.workloads import Scan


def test_a_bar_is_measured_between_the_ends_of_two_chunks() -> None:
    watch = ExplainedBars(Scan(StreamingNetwork(models.network())))
    for bars in (0, CHUNK_EVENTS // 2 - 1, CHUNK_EVENTS - 1, CHUNK_EVENTS * 3 // 2 - 1):
        watch.observe(bars)
    assert watch.figures() == {}
    assert watch.aside_s > 0
    watch.observe(2 * CHUNK_EVENTS - 1)
    figures = watch.figures()
    assert figures["explained_bar_to_scan"] == pytest.approx(
        figures["explained_bar_us"] / figures["network_scan_us"]
    )
    assert figures["network_scan_us"] > 0
    assert watch.peak_mb > 0


def test_a_class_as_users_write_them_trades_and_is_measured() -> None:
    figures = measure(3_000, rounds=1)
    assert figures["history_stop_notes_bars_per_cpu_s"] > 1_000
    replay = replay_of([tiled(2_000)], f"{Reversion.__module__}:Reversion")
    steps = [replay.engine.step(event, None) for event in replay.feed.events()]
    assert sum(len(step.fills) for step in steps) > 4


def test_a_scan_takes_whole_chunks_once_its_rings_are_full() -> None:
    network = StreamingNetwork(models.network())
    scan = Scan(network)
    assert scan.advance() == CHUNK_BARS
