"""Measures the time from the last bar of a close to the commit of its last decision.

PYTHONPATH=tests:tests/support python tests/benchmarks/live_step.py [--symbols N] [--no-model]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from long_replays import tiled

from tracepaper.daemon.clock import Predict
from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import needs_forecaster, resolved
from tracepaper.daemon.session.loop import Worker, WorkerPredictor, drive, no_forecast
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.daemon.session.resume import Opening, open_run
from tracepaper.replay.archive.series import archive_instrument
from tracepaper.replay.bench.machine import machine_line, resident_mb
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import (
    Bar,
    CloseStart,
    Event,
    Instrument,
    ModelChange,
    Quote,
    RunKind,
    Source,
)

CLOSES: Final = 1_000
"""Closes of one symbol that are timed; several symbols have fewer, and at least a hundred."""
WARM_UP_CLOSES: Final = 20
"""Closes decided before the first timed one."""
SLOW_BARS: Final = 100
"""Warm-up bars of the strategy without a model."""
ROW_BYTES: Final = 200
DEADLINE_MS: Final = 60_000
SHIFT_BARS: Final = 37
"""Bars by which the prices of consecutive instruments are shifted."""


def measure_live(closes: int, *, symbols: int = 1, model: bool = True) -> dict[str, Any]:
    """Return milliseconds of wall time from the last bar of a close to its last commit.

    At each of *closes*, every one of *symbols* instruments has a quote and then a bar; all are
    decided and committed together. Orders fill by quotes, as in a live run. After each close, one
    row is committed to another file with the same settings, for comparison. The figures per symbol
    are CPU milliseconds per decision, MB of memory beyond the program and its model, and database
    bytes per decision with its quote.
    """
    figures: dict[str, Any] = {"machine": machine_line(), "symbols": symbols, "closes": closes}
    runs = {"without_model": "sma_cross"} | ({"with_model": "attention"} if model else {})
    for name, strategy in runs.items():
        config = live_config(strategy, [f"BENCH{number}USDT" for number in range(symbols)])
        forecaster = load_forecaster(config) if needs_forecaster(config) else None
        context = SLOW_BARS if forecaster is None else forecaster.context
        bars = closes_of(symbols, context + WARM_UP_CLOSES + closes)
        feed = _timed(config, forecaster, bars, context)
        figures[f"{name}_ms"] = _percentiles(feed.wall_ms)
        figures[f"{name}_bare_commit_ms"] = _percentiles(feed.bare_ms)
        figures[f"{name}_beyond_bare_commit_p50"] = statistics.median(
            feed.wall_ms
        ) - statistics.median(feed.bare_ms)
        figures[f"{name}_a_symbol"] = {
            "cpu_ms": statistics.median(feed.cpu_ms) / symbols,
            "memory_mb": feed.grown_mb / symbols,
            "bytes_a_decision": feed.grown_bytes / closes / symbols,
        }
    return figures


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {"p50": statistics.median(values), "p99": cuts[98], "longest": max(values)}


def live_config(strategy: str, symbols: Sequence[str]) -> Config:
    """Return the configuration of a live run of *symbols* that fills by quotes."""
    sections: dict[str, dict[str, Any]] = {
        "market": {"symbols": list(symbols), "interval": "1"},
        "strategy": {"name": strategy},
        "sizing": {"mode": "fixed", "quantity": "1"},
        "model": {"deadline_ms": DEADLINE_MS},
    }
    return resolved(load(None, sections), FillModel.QUOTE)


@dataclass(frozen=True)
class LiveParts:
    """The parts of a daemon's run without an exchange."""

    engine: Engine
    predict: Predict
    audit: SqlAuditLog
    start: Callable[[], ModelChange]  # the event that follows the bars before the period


@contextmanager
def live_parts(
    config: Config,
    instruments: Sequence[Instrument],
    forecaster: Forecaster | None,
    path: Path,
    *,
    start_ms: int,
) -> Iterator[LiveParts]:
    """Yield the parts of a run that starts at *start_ms*, stored in the new database *path*."""
    audit = SqlAuditLog.open(path)
    try:
        opening = Opening(config, RunKind.LIVE, path, tuple(instruments), forecaster, start_ms, 0)
        opened = open_run(opening, audit)
        predict: Predict = no_forecast
        if forecaster is not None:
            predict = WorkerPredictor(
                forecaster,
                opened.history,
                Worker("model"),
                period_start_ms=start_ms,
                deadline_ms=config.model.deadline_ms,
            ).predict
        yield LiveParts(opened.engine, predict, audit, partial(opened.started, start_ms))
        audit.end(0)
    finally:
        audit.close()


def quote_of(bar: Bar) -> Quote:
    """Return a quote with a spread of one tick at the close of *bar*."""
    at = bar.close_time_ms
    return Quote(bar.instrument, bar.close - 1, 10**6, bar.close, 10**6, at, at)


class BareCommit:
    """Commits one row at a time to a WAL database with ``synchronous = FULL``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, row BLOB) STRICT")
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._database.close()

    async def commit(self) -> None:
        """Insert one row and wait for its commit."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._insert)

    def _insert(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute("INSERT INTO t (row) VALUES (zeroblob(?))", (ROW_BYTES,))
        self._database.execute("COMMIT")


def _timed(
    config: Config,
    forecaster: Forecaster | None,
    closes: Sequence[Sequence[Bar]],
    context: int,
) -> TimedFeed:
    """Run *closes* through the engine and return the timed feed; the first *context* warm it up."""
    symbols = config.market.symbols
    instrument = archive_instrument(tiled(context))
    instruments = [msgspec.structs.replace(instrument, symbol=symbol) for symbol in symbols]
    start_ms = closes[context][0].open_time_ms
    before_mb = resident_mb()
    with (
        tempfile.TemporaryDirectory() as folder,
        BareCommit(Path(folder) / "bare.db") as bare,
    ):
        database = Path(folder) / "bench.db"
        with live_parts(config, instruments, forecaster, database, start_ms=start_ms) as parts:
            feed = TimedFeed(closes[:context], parts.start, closes[context:], bare, database)
            asyncio.run(drive(feed, parts.predict, parts.engine, parts.audit.append))
            feed.grown_mb = resident_mb() - before_mb
            feed.grown_bytes += _content_bytes(database)
    return feed


def _content_bytes(path: Path) -> int:
    """Return the size of a database as if its WAL were checkpointed."""
    with closing(sqlite3.connect(path)) as database:
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
    return int(pages) * int(page_bytes)


def closes_of(symbols: int, count: int) -> list[list[Bar]]:
    """Return *count* closes, oldest first, each with a bar of *symbols* instruments."""
    bars = tiled(count + SHIFT_BARS * symbols).bars()
    return [
        [
            msgspec.structs.replace(
                bars[at + SHIFT_BARS * number],
                instrument=f"linear:BENCH{number}USDT",
                open_time_ms=bars[at].open_time_ms,
                market_ms=bars[at].market_ms,
                seen_ms=bars[at].seen_ms,
                source=Source.STREAM,
            )
            for number in range(symbols)
        ]
        for at in range(count)
    ]


def events_of(close: Sequence[Bar]) -> list[Event]:
    """Return *close* as the feed delivers it: several bars follow a ``CloseStart``."""
    first = close[0]
    if len(close) == 1:
        return [first]
    return [CloseStart(first.open_time_ms, len(close), (), first.market_ms, first.seen_ms), *close]


class TimedFeed:
    """Delivers closes and times each until its last step is stored.

    The loop requests an event only when the steps of all earlier events are committed.
    """

    def __init__(
        self,
        past: Sequence[Sequence[Bar]],
        start: Callable[[], Event],
        closes: Sequence[Sequence[Bar]],
        bare: BareCommit,
        database: Path,
    ) -> None:
        self.wall_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.bare_ms: list[float] = []
        self.grown_mb = 0.0  # memory of the run, beyond the program, its model and the candles
        self.grown_bytes = 0  # of the database, since the first timed close
        self._past = past
        self._start = start
        self._closes = closes
        self._bare = bare
        self._database = database

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the bars before the start, the start event, then each close's quotes and bars."""
        for close in self._past:
            for event in events_of(close):
                yield event
        yield self._start()
        for number, close in enumerate(self._closes):
            if number == WARM_UP_CLOSES:
                self.grown_bytes = -_content_bytes(self._database)
            for bar in close:
                yield quote_of(bar)
            start_s, cpu_s = time.perf_counter(), time.process_time()
            for event in events_of(close):
                yield event
            end_s, spent_s = time.perf_counter(), time.process_time() - cpu_s
            await self._bare.commit()
            if number >= WARM_UP_CLOSES:
                self.wall_ms.append(1e3 * (end_s - start_s))
                self.cpu_ms.append(1e3 * spent_s)
                self.bare_ms.append(1e3 * (time.perf_counter() - end_s))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--symbols", type=int, default=1)
    parser.add_argument("--no-model", action="store_true")
    given = parser.parse_args()
    measured = measure_live(
        max(CLOSES // given.symbols, 100), symbols=given.symbols, model=not given.no_model
    )
    sys.stdout.write(json.dumps(measured, indent=1) + "\n")
