"""What the figures of replays and of live steps measure trades, and each follows from its parts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import models
import pytest
import replay_speed
import torch
from live_step import measure_live
from long_replays import replay_of, tiled
from replay_speed import Reversion, measure_model, measure_replay, measure_signals

from tracepaper.replay.bench.attention import Scan
from tracepaper.storage import checkpoints
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork
from tracepaper.strategies.networks.lstm import LstmConfig, LstmNetwork
from tracepaper.strategies.networks.stream import CHUNK_BARS, StreamingNetwork


def test_a_class_as_users_write_them_trades_and_is_measured() -> None:
    figures = measure_replay(3_000, rounds=1)
    assert figures["history_stop_notes_bars_per_cpu_s"] > 1_000
    replay = replay_of([tiled(2_000)], f"{Reversion.__module__}:Reversion")
    steps = [replay.engine.step(event, None) for event in replay.feed.events()]
    assert sum(len(step.fills) for step in steps) > 4
    vectorised = measure_signals(3_000, rounds=1)
    assert vectorised["recorded_times_plain_loop"] > vectorised["alone_times_plain_loop"] > 1


def test_a_scan_takes_whole_chunks_once_its_rings_are_full() -> None:
    assert Scan(StreamingNetwork(models.network())).advance() == CHUNK_BARS


def test_closes_of_several_symbols_are_timed_beside_a_bare_commit() -> None:
    figures = measure_live(20, symbols=2, model=False)
    assert figures["without_model_beyond_bare_commit_p50"] == pytest.approx(
        figures["without_model_ms"]["p50"] - figures["without_model_bare_commit_ms"]["p50"]
    )
    assert figures["without_model_a_symbol"]["bytes_a_decision"] > 0


def checkpoint(folder: Path, kind: str, config: Any, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a checkpoint whose measures have quantiles, as those of a trained one; return it."""
    evenly = [step / 100 for step in range(1, 100)]
    names = ("confidence_entropy", "collapsed", "shift", "recent_mass", "direction", "edge")
    card = models.card(temperature=1.0, quantiles=dict.fromkeys(names, evenly))
    card["model"] = {"kind": kind}
    card["architecture"] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
    }
    checkpoints.save(folder / kind, tensors, card)
    return folder / kind


@pytest.mark.parametrize("kind", ["informer", "flash"])
def test_an_explained_bar_is_measured_beside_its_network(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_speed, "ALONE_S", 0.01)
    if kind == "informer":
        config: Any = InformerConfig(dim=8, layers=2, heads=2, window=24, factor=2)
        tensors = InformerNetwork(config).state_dict()
    else:
        config = FlashConfig(dim=8, layers=2, heads=2, window=16)
        tensors = models.network(config).state_dict()
    folder = checkpoint(tmp_path, kind, config, tensors)
    figures = measure_model(40, checkpoint=folder, rounds=1)
    assert figures["bar_to_network_alone"] == pytest.approx(
        figures["bar_cpu_ms"] / figures["network_alone_cpu_ms"]
    )


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    config = LstmConfig(dim=8, layers=1, window=24)
    folder = checkpoint(tmp_path, "lstm", config, LstmNetwork(config).state_dict())
    with pytest.raises(ConfigInvalid, match="no attention"):
        measure_model(40, checkpoint=folder)
