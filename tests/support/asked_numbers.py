"""The numbers that were asked for, each measured in at most two CPU seconds.

``tests/product/asked.toml`` names them with their limits.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import explained_runs
import numpy as np
import storage_cases
import tensor_memory
import torch
from user_strategies import importable

import tracepaper
from tracepaper.daemon.cli import invoke
from tracepaper.replay.bench import costs
from tracepaper.replay.bench.attention import Setting
from tracepaper.replay.samples import DEMO_CANDLES
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.cross_asset import (
    SYMBOLS_MAX,
    CrossAssetConfig,
    CrossAssetNetwork,
)
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.networks.informer import InformerConfig
from tracepaper.strategies.networks.order_book import OrderBookConfig, OrderBookNetwork
from tracepaper.strategies.networks.timeframes import MultiscaleConfig
from tracepaper.strategies.networks.trading import TradingConfig
from tracepaper.strategies.order_book import COLUMNS

DEMO_START_MS: Final = 1_748_244_720_000
LIVE_BARS: Final = 200
NUMBERS: Final[dict[str, Callable[[], float]]] = {}


def number(measure: Callable[[], float]) -> Callable[[], float]:
    """Register *measure* by its name."""
    NUMBERS[measure.__name__] = measure
    return measure


@number
def mb_of_explained_books() -> float:
    """MB of tensors to explain 1,000 books of 100 tokens."""
    network = OrderBookNetwork(OrderBookConfig(window=1_000)).eval()
    tokens = torch.randn(1_000, network.config.tokens, len(COLUMNS)).clamp(-5, 5)
    return tensor_memory.peak_mb(lambda: network.explain(tokens))


@number
def mb_of_explained_symbols() -> float:
    """MB of tensors to explain 20 symbols of 1,024 bars, a tenth of what was asked for."""
    symbols = tuple(f"S{number}" for number in range(20))
    network = CrossAssetNetwork(CrossAssetConfig(symbols)).eval()
    rows = torch.randn(1, 20, 1_024, network.config.features)
    places = torch.arange(20), torch.arange(1_024)
    return tensor_memory.peak_mb(lambda: network.explain(rows, *places))


@number
def symbols_in_a_run() -> float:
    """How many symbols decided at every close of a run over so many."""
    steps = np.random.default_rng(0).normal(0, 0.001, (100, 24))
    closes = 100 * np.exp(steps.cumsum(axis=1))
    at = 1_748_217_600_000 + 60_000 * np.arange(24)
    frames = {
        f"A{place}USDT": dict.fromkeys(("open", "high", "low", "close"), close)
        | {"open_time": at, "volume": np.ones(24)}
        for place, close in enumerate(closes)
    }
    run = tracepaper.backtest("persistence", frames, progress=False)
    decided = Counter(run.decisions["instrument"])
    return float(sum(count >= 10 for count in decided.values()))


@number
def figures_that_evaluate_prints() -> float:
    """How many of squared error, accuracy and macro F1 ``evaluate`` prints with a value."""
    source = """
from tracepaper import Model

class Mine(Model):
    measures = ("mean_return", "probabilities")

    def predict(self, seen):
        return {"mean_return": 0.001, "p_up": 0.5}
"""
    at = 1_748_217_600_000 + 60_000 * np.arange(1_500)
    close = 100 + np.sin(np.arange(1_500) / 9.5)
    rows = [
        f"{time},{price:.3f},{price:.3f},{price:.3f},{price:.3f},1"
        for time, price in zip(at, close, strict=True)
    ]
    with TemporaryDirectory() as name, redirect_stdout(io.StringIO()) as printed:
        folder = Path(name)
        data = folder / "WAVEUSDT_1m.csv"
        data.write_text("\n".join(["open_time,open,high,low,close,volume", *rows]), "utf-8")
        (folder / "asked_model.py").write_text(source, "utf-8")
        with importable(folder):
            assert invoke(["evaluate", "asked_model:Mine", "--data", str(data)]) == 0
    text = printed.getvalue()
    wanted = (r"Mean squared error .*\n.*\nmodel +\d", r"\naccuracy +0\.\d", r"\nmacro f1 +0\.\d")
    return float(sum(bool(re.search(pattern, text)) for pattern in wanted))


@number
def bars_of_a_window() -> float:
    """Bars of the longest window of a streamed network and of the Informer."""
    return float(
        min(
            type_.read({"window": keys.WINDOW_MAX}).window
            for type_ in (FlashConfig, InformerConfig)
        )
    )


@number
def products_of_probsparse() -> float:
    """Products of ProbSparse over those of dense attention, 2,048 bars."""
    [row] = costs.operation_rows(costs.BenchRequest([2_048], Setting(), (), lambda _: None))
    return float(row["÷ dense"])


@number
def mechanisms_compared() -> float:
    """Mechanisms that ``bench attention --section mechanisms`` compares."""
    return float(len(costs.MECHANISMS))


@number
def symbols_of_a_network() -> float:
    """How many symbols have an embedding in one network."""
    symbols = [f"S{place}USDT" for place in range(SYMBOLS_MAX)]
    return float(len(CrossAssetConfig.read({"symbols": symbols}).symbols))


@number
def bars_of_the_widest_frame() -> float:
    """Bars of the slowest timeframe that one network reads with single bars."""
    return float(MultiscaleConfig.read({"frames": [1, 4, 240], "tokens": [8, 8, 8]}).frames[-1])


@number
def regimes() -> float:
    """Regimes that a network tells apart."""
    return float(TradingConfig.read({"regimes": 7}).regimes)


# ---------------------------------------------------------------- what a bar costs


def stored_bars(bars: int, folder: Path) -> int:
    """Return the bytes of the record of a run over *bars* minutes, without a model."""
    path = folder / f"{bars}.db"
    end = DEMO_START_MS + 60_000 * bars
    tracepaper.backtest("sma_cross", DEMO_CANDLES, end=end, db=path, progress=False)
    return path.stat().st_size


@number
def bytes_of_a_bar() -> float:
    """Bytes that a bar without a model adds to a record."""
    with TemporaryDirectory() as name:
        few, many = (stored_bars(bars, Path(name)) for bars in (2_000, 6_000))
    return (many - few) / 4_000


@number
def bytes_of_an_explained_bar() -> float:
    """Bytes that a bar explained by a small network adds to a record."""
    sizes = []
    for bars in (700, 1_700):
        with TemporaryDirectory() as name:
            sizes.append(explained_runs.replayed(Path(name), bars=bars).stat().st_size)
    return (sizes[1] - sizes[0]) / 1_000


@number
def calls_of_a_bar() -> float:
    """How often a replayed bar calls a function of Python, without a model."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    made = []
    for bars in (1_000, 1_000, 3_000):  # the first imports
        calls = 0
        with TemporaryDirectory() as name:
            sys.setprofile(count)
            stored_bars(bars, Path(name))
            sys.setprofile(None)
        made.append(calls)
    return (made[2] - made[1]) / 2_000


@number
def bytes_held_of_a_bar() -> float:
    """Bytes of memory that a replay holds of each bar that it has done."""
    held = []
    for bars in (500, 500, 2_500):
        with TemporaryDirectory() as name:
            tracemalloc.start()
            stored_bars(bars, Path(name))
            held.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    return (held[2] - held[1]) / 2_000


@cache
def live_bars() -> tuple[list[str], int]:
    """Return the statements of SQL by which a live run stores ``LIVE_BARS``, and its rows."""
    statements: list[str] = []

    async def append(log: SqlAuditLog) -> None:
        for step in storage_cases.plain_steps(LIVE_BARS):
            await log.append(step)

    with TemporaryDirectory() as name:
        path = Path(name) / "live.db"
        writer = open_writer(path)
        log = SqlAuditLog(writer, path=path)
        log.begin(storage_cases.run())
        writer.driver.set_trace_callback(statements.append)
        asyncio.run(append(log))
        writer.driver.set_trace_callback(None)
        tables = writer.driver.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        counts = (f"SELECT count(*) FROM {table}" for (table,) in tables.fetchall())
        rows = sum(writer.driver.execute(count).fetchone()[0] for count in counts)
        log.close()
    return statements, rows


@number
def statements_of_a_live_bar() -> float:
    """Statements of SQL by which a live bar is stored, with its orders and fills."""
    return len(live_bars()[0]) / LIVE_BARS


@number
def commits_of_a_live_bar() -> float:
    """Transactions of a live bar."""
    return live_bars()[0].count("COMMIT") / LIVE_BARS


@number
def rows_of_a_live_bar() -> float:
    """Rows of a live bar in all tables, with its orders and fills."""
    return live_bars()[1] / LIVE_BARS
