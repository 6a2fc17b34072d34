"""The cost of an explained bar is taken from chunk to chunk, without what the reference takes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import models
import pytest
import torch

from tracepaper.replay.backtest.predictors import CHUNK_EVENTS
from tracepaper.replay.bench.replay import (
    ExplainedBars,
    Reversion,
    measure_replay,
    measure_windows,
    replay_of,
    tiled,
)
from tracepaper.replay.bench.workloads import Scan, WholeWindow
from tracepaper.storage import checkpoints
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork
from tracepaper.strategies.networks.lstm import LstmConfig, LstmNetwork
from tracepaper.strategies.networks.stream import CHUNK_BARS, StreamingNetwork


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
    figures = measure_replay(3_000, rounds=1)
    assert figures["history_stop_notes_bars_per_cpu_s"] > 1_000
    replay = replay_of([tiled(2_000)], f"{Reversion.__module__}:Reversion")
    steps = [replay.engine.step(event, None) for event in replay.feed.events()]
    assert sum(len(step.fills) for step in steps) > 4


def test_a_scan_takes_whole_chunks_once_its_rings_are_full() -> None:
    network = StreamingNetwork(models.network())
    scan = Scan(network)
    assert scan.advance() == CHUNK_BARS


def checkpoint(folder: Path, kind: str, config: Any, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a checkpoint whose measures have quantiles, as those of a trained one; return it."""
    evenly = [step / 100 for step in range(1, 100)]
    names = ("confidence", "collapsed", "shift", "recent_mass", "direction", "edge")
    card = models.card(temperature=1.0, quantiles=dict.fromkeys(names, evenly))
    card["model"] = {"kind": kind}
    card["architecture"] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
    }
    checkpoints.save(folder / kind, tensors, card)
    return folder / kind


def test_a_bar_of_whole_windows_is_measured_beside_its_network(tmp_path: Path) -> None:
    config = InformerConfig(dim=8, layers=2, heads=2, window=24, factor=2)
    folder = checkpoint(tmp_path, "informer", config, InformerNetwork(config).state_dict())
    figures = measure_windows(folder, 40)
    assert figures["network"] == "2 layers, window 24, width 8, 78 features"
    for name in ("network_forward", "network_explained", "dense_forward", "dense_explained"):
        assert figures[f"bar_to_{name}"] == figures["bar_ms"] / figures[f"{name}_ms"] > 0


def test_a_model_that_streams_is_measured_by_another_option(tmp_path: Path) -> None:
    small = FlashConfig(dim=8, layers=2, heads=2, window=16)
    folder = checkpoint(tmp_path, "flash", small, models.network(small).state_dict())
    with pytest.raises(ConfigInvalid, match=r"no model of whole windows.*--model"):
        measure_windows(folder, 40)
    with pytest.raises(ConfigInvalid, match="no network of whole windows with attention"):
        WholeWindow(LstmNetwork(LstmConfig(dim=8, layers=1, window=24)))
