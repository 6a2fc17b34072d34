"""What a round of the campaign draws for its last daemon, and what must be seen of it."""

from __future__ import annotations

import csv
import functools
import gzip
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROGRAM = [sys.executable, "-m", "tracepaper.daemon.cli"]
CASH_OF_CROSS = 100_000
SMA = 'name = "sma_cross"\nfast = 3\nslow = 7\nlong_only = false'
GRID = """name = "tracepaper.strategies.examples.grid:Grid"
options = { bars = 30, levels = 3, spacing = 0.03, quantity = 0.05 }"""
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


@dataclass(frozen=True)
class DrawnDaemon:
    """A daemon's strategy and keys, and a count of its database that must not be too small."""

    strategy: str
    keys: Mapping[str, object] = field(default_factory=dict)
    count_query: str = "SELECT count(*) FROM v_fills"
    fewest: int = 20
    decisions_query: str = "SELECT count(*) FROM v_decisions WHERE refused_by IS NOT 'late'"
    bars_each: int = 20  # of those asked for, in which what is drawn is met once at least
    with_model: bool = False  # slow to verify, as every model
    symbols: int = 2  # at most
    cash: int = 1_000_000

    def check(self, name: str, database: Path) -> None:
        """Raise ``RoundFailed`` where what was drawn was hardly ever met."""
        connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
        try:
            ((count,),) = connection.execute(self.count_query)
            ((decided,),) = connection.execute(self.decisions_query)
            fewest = min(self.fewest, max(decided // self.bars_each, 1))
        finally:
            connection.close()
        if count < fewest:
            raise RoundFailed(f"{name} met only {count} of what it draws: {self.count_query}")


def limits(_folder: Path, _candles: Path, rng: random.Random) -> DrawnDaemon:
    """Draw post-only limit orders around the price."""
    del rng
    resting = "SELECT count(*) FROM v_fills WHERE liquidity = 'MAKER'"
    return DrawnDaemon(GRID, count_query=resting, fewest=10)


def margin(_folder: Path, _candles: Path, rng: random.Random) -> DrawnDaemon:
    """Draw isolated margin, high enough that some positions are liquidated."""
    keys = {"account.margin": "isolated", "account.leverage": rng.choice((50, 75, 100))}
    bound = "SELECT count(*) FROM v_positions WHERE margin > 0"
    keys |= {"sizing.mode": "fixed", "sizing.quantity": rng.choice((2, 20))}
    return DrawnDaemon(SMA, keys, count_query=bound)


def exits(_folder: Path, _candles: Path, rng: random.Random) -> DrawnDaemon:
    """Draw stops, targets, trailing stops and a table of returns by configuration."""
    keys: dict[str, object] = {
        "exits.stop_loss": rng.choice(("0.05%", "0.2%")),
        "exits.minimal_roi": '{"0": 0.003, "20": 0.001}',
    }
    if rng.random() < 0.5:
        keys["exits.trailing"] = "0.1%"
    armed = "SELECT count(*) FROM v_orders WHERE role IN ('STOP', 'TARGET', 'TRAILING')"
    return DrawnDaemon(SMA, keys, count_query=armed)


def books(folder: Path, _candles: Path, rng: random.Random) -> DrawnDaemon:
    """Draw a strategy that reads the order book, from a file beside the configuration.

    On a busy machine most bars come late, and no strategy is asked about them.
    """
    (folder / "books_drawn.py").write_text(BOOKS)
    read = "SELECT count(*) FROM v_decisions WHERE reason LIKE 'more is %'"
    depth = {"market.depth": rng.choice((10, 20)), "market.depth_every_ms": 10_000}
    decisions = "SELECT count(*) FROM v_decisions WHERE refused_by IS NULL"
    return DrawnDaemon(
        'name = "books_drawn:Books"',
        depth,
        count_query=read,
        decisions_query=decisions,
        bars_each=2,
    )


def covariates(folder: Path, candles: Path, rng: random.Random) -> DrawnDaemon:
    """Draw a model that learnt from covariates as well, with its file."""
    with gzip.open(candles, "rt", newline="") as source:
        times = [int(row["open_time"]) for row in csv.DictReader(source)]
    mood = 0.0
    with (folder / "own.csv").open("w") as file:
        file.write("time,mood\n")
        for time_ms in times[::60]:
            mood = 0.9 * mood + rng.gauss(0, 1)
            file.write(f"{time_ms},{mood:.4f}\n")
    shutil.copytree(trained(candles), folder / "own")
    keys = {"model.checkpoint": str(folder / "own"), "model.covariates": str(folder / "own.csv")}
    read = "SELECT count(*) FROM v_decisions WHERE mean_return IS NOT NULL"
    return DrawnDaemon('name = "attention"', keys, count_query=read, with_model=True)


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


def retraining(_folder: Path, _candles: Path, rng: random.Random) -> DrawnDaemon:
    """Draw a model that is trained anew behind the daemon, each time for too short a time.

    A round of a fast machine lasts 75 s: the first training begins and ends within it.
    """
    del rng
    keys = {
        "model.retrain": "2h",
        "retrain.judge": "2d",
        "retrain.min_days": 2,
        "retrain.min_bars": 2_000,
        "retrain.time_limit": "1m",
        "retrain.nice": 10,
    }
    ended = "SELECT count(*) FROM v_events WHERE kind = 'retrained'"
    return DrawnDaemon('name = "attention"', keys, count_query=ended, fewest=1, with_model=True)


def cross(_folder: Path, _candles: Path, rng: random.Random) -> DrawnDaemon:
    """Draw cross margin on little cash, so that fees alone lead to a call or to refusals."""
    keys = {
        "account.margin": "cross",
        "account.leverage": rng.choice((50, 75, 100)),
        "account.cash": CASH_OF_CROSS,
        "sizing.mode": "fixed",
        "sizing.quantity": rng.choice((20, 40, 60)),
    }
    bound = (
        "SELECT (SELECT count(*) FROM v_fills WHERE model = 'liquidation')"
        " + (SELECT count(*) FROM v_decisions WHERE unfilled_reason LIKE '%balance%')"
    )
    return DrawnDaemon(SMA, keys, count_query=bound, fewest=1, cash=CASH_OF_CROSS)


def several(_folder: Path, _candles: Path, rng: random.Random) -> DrawnDaemon:
    """Draw three strategies on one account, of which two mostly oppose each other."""
    slow, reset = rng.choice((9, 14)), rng.choice(("never", "day"))
    tables = f'[strategies]\nreset = "{reset}"' + "".join(
        f'\n[strategies.{name}]\nshare = "{share}"\n{SMA.replace("slow = 7", f"slow = {length}")}'
        for name, share, length in (("calm", "0.5", slow), ("quick", "0.3", 7), ("wild", "0.2", 4))
    )
    return DrawnDaemon(tables, count_query="SELECT count(*) FROM v_shadow_fills")


def universe(_folder: Path, _candles: Path, rng: random.Random) -> DrawnDaemon:
    """Draw a universe of one symbol that is chosen anew every ten minutes of market time."""
    times = [f"{hour:02d}:{minute:02d}" for hour in range(24) for minute in range(0, 60, 10)]
    rule = {"top": 1, "at": times, "on_leave": rng.choice(("reduce", "close"))}
    changes = "SELECT count(*) FROM v_events WHERE kind = 'universe'"
    return DrawnDaemon(SMA, {"market.universe": json.dumps(rule)}, count_query=changes, fewest=10)


def hedge(folder: Path, _candles: Path, rng: random.Random) -> DrawnDaemon:
    """Draw hedge mode, by signals and lists for either side, with margin or without."""
    (folder / "sides_drawn.py").write_text(SIDES)
    keys: dict[str, object] = {"account.position_mode": "hedge"}
    if rng.random() < 0.7:
        keys |= {"account.margin": "isolated", "account.leverage": rng.choice((10, 50, 100))}
    if rng.random() < 0.5:
        keys |= {"exits.stop_loss": rng.choice(("0.05%", "0.2%"))}
    sides = "SELECT count(DISTINCT position_side) FROM v_fills"
    return DrawnDaemon('name = "sides_drawn:Sides"', keys, count_query=sides, fewest=2)


def book_fills(_folder: Path, _candles: Path, rng: random.Random) -> DrawnDaemon:
    """Draw a book of one symbol that fills orders, which keep their places in its queues."""
    keys = {"execution.model": "book", "execution.response_ms": rng.choice((0, 100, 700))}
    filled = "SELECT count(*) FROM v_fills WHERE model = 'book'"
    return DrawnDaemon(rng.choice((GRID, SMA)), keys, count_query=filled, fewest=10, symbols=1)


KINDS: Mapping[str, Callable[[Path, Path, random.Random], DrawnDaemon]] = {
    each.__name__: each
    for each in (
        *(limits, margin, exits, books, covariates, retraining),
        *(cross, several, universe, hedge, book_fills),
    )
}
