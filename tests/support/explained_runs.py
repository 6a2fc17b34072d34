"""Replays of a small attention model into real databases, for the tests of explanations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import learning
import models
import recordings

from tracepaper.replay.backtest.make import make_run
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.replay.document.values import TitledParts
from tracepaper.replay.explain.decision import StoredDecision
from tracepaper.replay.explain.decision_document import decision_document
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage import checkpoints
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.features import rows
from tracepaper.strategies.networks.flash import FlashConfig

SMALL = FlashConfig(dim=16, layers=2, heads=2, window=40, horizons=(5, 30))
CONTEXT = 2 * 39 + rows.schema("v2-1m").lookback
BARS = CONTEXT + 80
LAST = BARS  # sequence 0 is the model's start, then one bar a step

_CONFIG = """
[market]
symbols = [{symbols}]
interval = "1"
[strategy]
name = "{strategy}"
{periods}
[model]
checkpoint = "{checkpoint}"
{model}
[gate]
{gates}
horizon = 30
confidence = "0"
collapse = "0"
shift = "1"
direction = "0.5"
edge = "{edge}"
regimes = ["MOMENTUM", "MIXED", "MEAN_REVERSION"]
[regime]
momentum = "0.6"
mean_reversion = "0.3"
"""


def checkpoint(folder: Path, config: models.AnyConfig = SMALL, **calibration: Any) -> Path:
    """Write a small network's checkpoint and return its folder."""
    card = models.card(config, temperature=1.0, content_free=0.0, **calibration)
    card["model"] = {"kind": models.kind_of(config), "name": "small"}
    checkpoints.save(folder / "small", models.weights(config), card)
    return folder / "small"


def replayed(
    folder: Path,
    *,
    strategy: str = "attention",
    symbols: tuple[str, ...] = ("AAAUSDT",),
    mode: str = "scan",
    edge: str = "0.0001",
    bars: int = BARS,
    network: models.AnyConfig = SMALL,
    extra: str = "",
    model: str = "",
    gates: str = "",
    **calibration: Any,
) -> Path:
    """Replay learnable minutes into a new database in *folder*; return it.

    *model* and *gates* are lines of those sections, *extra* those of the configuration's last
    section, ``[regime]``, and sections after it; *calibration* is what the card's has besides.
    """
    config = folder / "config.toml"
    names = ", ".join(f'"{symbol}"' for symbol in symbols)
    small = checkpoint(folder, network, **calibration)
    config.write_text(
        _CONFIG.format(
            symbols=names,
            strategy=strategy,
            periods="fast = 3\nslow = 7" if strategy == "sma_cross" else "",
            checkpoint=small,
            edge=edge,
            model=model,
            gates=gates,
        )
        + extra,
        encoding="utf-8",
    )
    files = [
        learning.write_csv(learning.learnable(bars, seed=seed, symbol=symbol), folder)
        for seed, symbol in enumerate(symbols)
    ]
    data = tuple(str(file) for file in files)
    database = folder / "run.db"
    make_run(RunSpec(candles=data, config=config, mode=mode, database=database))
    return database


def recorded(**options: Any) -> Path:
    """Return the database of such a replay, made once for equal options, to be read alone."""
    key = "explained", sorted(options.items())
    return recordings.stored(key, lambda folder: replayed(folder, **options)) / "run.db"


def run_id(database: Path) -> str:
    """Return the id of the only run in *database*."""
    with Reader.open(database) as reader:
        return reader.find("last")


def told_of(database: Path, stored: StoredDecision) -> TitledParts:
    """Return the document of *stored*, a decision of *database* or a changed one."""
    with Reader.open(database) as reader:
        return decision_document(RunColumns(reader, stored.run["run_id"]), stored)
