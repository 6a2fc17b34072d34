"""What a round draws for its last daemon: the kinds of the world, and those of models."""

from __future__ import annotations

import csv
import functools
import gzip
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from world.spec import KINDS as WORLD_KINDS
from world.spec import Section

PROGRAM = [sys.executable, "-m", "tracepaper.daemon.cli"]
CANDLES = (
    Path(__file__).parents[2] / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
)
MODELS: Final = ("covariates", "retraining")
"""Kinds with a model, which is slow to verify."""
MET: Final[Mapping[str, str]] = {
    "books": "SELECT count(*) FROM v_decisions WHERE reason LIKE 'more is %'",
    "covariates": "SELECT count(*) FROM v_decisions WHERE mean_return IS NOT NULL",
    "retraining": "SELECT count(*) FROM v_events WHERE kind = 'retrained'",
    "limits": "SELECT count(*) FROM v_fills WHERE liquidity = 'MAKER'",
    "hedge": "SELECT count(DISTINCT position_side) > 1 FROM v_fills",
    "universe": "SELECT count(*) FROM v_events WHERE kind = 'universe'",
    "book_fills": "SELECT count(*) FROM v_fills WHERE model = 'book'",
}
"""What is seen of a kind that was met at all."""
BOOKS = """from tracepaper import Action, Signal, Strategy


class Books(Strategy):
    books = 2
    warmup = 3

    def decide(self, context):
        depth = context.depth
        if depth is None or not len(depth):
            return Signal(Action.HOLD, "no book")
        bids, asks = depth.size[-1].sum(axis=1)
        action = Action.LONG if bids > asks else Action.SHORT
        return Signal(action, "more is bid" if bids > asks else "more is asked")
"""
SIDES = """import random

from tracepaper import Action, Orders, Signal, Strategy, buy, sell
from tracepaper.strategies.types.decisions import PositionSide

OPENS = ((PositionSide.LONG, buy, sell), (PositionSide.SHORT, sell, buy))


class Sides(Strategy):
    warmup = 3

    def decide(self, context):
        rng = random.Random(context.exact.open_time_ms)
        side, opens, closes = rng.choice(OPENS)
        away = 1 - 0.0003 if opens is buy else 1 + 0.0003
        roll = rng.random()
        if roll < 0.3:
            return Signal(rng.choice((Action.LONG, Action.SHORT)), "drawn", reenter=True)
        if roll < 0.4:
            return Signal(Action.FLAT, "drawn to leave", position_side=side)
        if roll < 0.6:
            limit = round(context.close * away, 1)
            return Orders((opens(0.1, limit, position_side=side, tag="a"),), "drawn to rest")
        if roll < 0.8:
            return Orders((closes(0.2, position_side=side),), "drawn to close")
        return Signal(Action.HOLD, "drawn to hold")
"""


class RoundFailed(Exception):
    """What a round found wrong, in one sentence."""


def books(sections: Section, rng: random.Random, folder: Path) -> None:
    """Draw a strategy that reads the order book, from a file beside the configuration."""
    (folder / "books_drawn.py").write_text(BOOKS)
    sections["strategy"] = {"name": "books_drawn:Books"}
    sections["market"] |= {"depth": rng.choice((10, 20)), "depth_every_ms": 10_000}


def covariates(sections: Section, rng: random.Random, folder: Path) -> None:
    """Draw a model that learnt from covariates as well, with its file."""
    with gzip.open(CANDLES, "rt", newline="") as source:
        times = [int(row["open_time"]) for row in csv.DictReader(source)]
    mood = 0.0
    with (folder / "own.csv").open("w") as file:
        file.write("time,mood\n")
        for time_ms in times[::60]:
            mood = 0.9 * mood + rng.gauss(0, 1)
            file.write(f"{time_ms},{mood:.4f}\n")
    shutil.copytree(trained(CANDLES), folder / "own")
    sections["strategy"] = {"name": "attention"}
    sections["model"] = {
        "checkpoint": str(folder / "own"),
        "covariates": str(folder / "own.csv"),
    }


@functools.cache
def trained(candles: Path) -> Path:
    """Train a small model with a covariate, once for all rounds."""
    folder = Path(tempfile.mkdtemp(prefix="covariates-"))
    with gzip.open(candles, "rt", newline="") as source:
        times = [int(row["open_time"]) for row in csv.DictReader(source)]
    rng = random.Random(0)
    rows = [f"{time_ms},{rng.gauss(0, 1):.4f}" for time_ms in times[::60]]
    (folder / "own.csv").write_text("\n".join(("time,mood", *rows)) + "\n")
    small = ("dim=8", "layers=1", "heads=2", "window=33", "training.steps=4", "training.length=512")
    command = [*PROGRAM, "train", "--data", str(candles), "--out", str(folder / "model")]
    for setting in ("model.kind=trading", "horizons=5,30", "training.validate_every=2", *small):
        command += ["--set", setting]
    done = subprocess.run(
        [*command, "--covariates", str(folder / "own.csv")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RoundFailed(f"the model with covariates was not trained: {done.stderr}")
    return folder / "model"


def retraining(sections: Section, _rng: random.Random, _folder: Path) -> None:
    """Draw a model that is trained anew behind the daemon, each time for too short a time.

    A round of a fast machine lasts 75 s: the first training begins and ends within it.
    """
    sections["strategy"] = {"name": "attention"}
    sections["model"] = {"retrain": "2h"}
    sections["retrain"] = {
        "judge": "2d",
        "min_days": 2,
        "min_bars": 2_000,
        "time_limit": "1m",
        "nice": 10,
    }


def of_world(kind: str, sections: Section, rng: random.Random, folder: Path) -> None:
    """Draw what the world draws of *kind*."""
    (folder / "sides_drawn.py").write_text(SIDES)
    WORLD_KINDS[kind](sections, rng)


KINDS: Mapping[str, Callable[[Section, random.Random, Path], None]] = {
    **{
        kind: functools.partial(of_world, kind)
        for kind in WORLD_KINDS
        if kind not in {"plain", "two", "raising"}  # two of these every round has
    },
    **{each.__name__: each for each in (books, covariates, retraining)},
}
