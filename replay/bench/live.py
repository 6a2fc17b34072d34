"""``bench live``: from a bar that is parsed to its decision committed, beside a bare commit."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.ports import Predictor
from tracepaper.daemon.session.build import build_engine, needs_forecaster, resolved
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.daemon.session.predictor import BarHistory, NoModel, Worker, WorkerPredictor
from tracepaper.daemon.session.run_record import describe_run, start_event
from tracepaper.replay.archive.candles import bars_of
from tracepaper.replay.archive.instruments import archive_instrument
from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.bench.replay import tiled
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.strategies.strategy import Forecaster
from tracepaper.strategies.types import (
    Bar,
    FillModel,
    Instrument,
    ModelChange,
    Quote,
    RunKind,
    Source,
)

WARM_UP_STEPS: Final = 50
ROW_BYTES: Final = 200
DEADLINE_MS: Final = 60_000

Tell = Callable[[str], None]


def measure(
    bars: int = 1_000, *, model: bool = True, tell: Tell = lambda _: None
) -> dict[str, Any]:
    """Return latencies in milliseconds of wall time, the engine's and a bare commit's in turn.

    The engine runs by quotes as live: a quote and a bar a decision, each stored and committed.
    The bare commit inserts one row of a decision's size into an own file with the same settings,
    through a thread as well.
    """
    tell("engine without a model")
    plain, bare = asyncio.run(_latencies(bars, "sma_cross"))
    figures: dict[str, Any] = {
        "machine": machine_line(),
        "bars": bars,
        "bare_commit": _percentiles(bare),
        "without_model": _percentiles(plain),
        "beyond_bare_commit_p50": statistics.median(plain) - statistics.median(bare),
        "reach_beyond_p50": 0.15,
    }
    if model:
        tell("default model")
        whole, beside = asyncio.run(_latencies(bars, "attention"))
        figures["with_model"] = _percentiles(whole)
        figures["with_model_bare_commit"] = _percentiles(beside)
        figures["reach_with_model"] = {"p50": 5.0, "p99": 25.0}
    return figures


def _percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {"p50": statistics.median(values), "p90": cuts[89], "p99": cuts[98]}


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
    """What the daemon puts a run together from, the exchange apart."""

    engine: Engine
    predictor: Predictor
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
    """Yield a run whose period begins at *start_ms*, logged in the new database *path*."""
    engine = build_engine(
        config,
        instruments,
        execution=FillModel.QUOTE,
        period_start_ms=start_ms,
        forecaster=forecaster,
    )
    run = describe_run(
        config,
        instruments,
        forecaster,
        kind=RunKind.LIVE,
        started_at_ms=0,
        period_start_ms=start_ms,
    )
    context = 0 if forecaster is None else forecaster.context
    kept = BarHistory([one.id for one in instruments], context=context)
    predictor: Predictor = NoModel()
    if forecaster is not None:
        predictor = WorkerPredictor(
            forecaster,
            kept,
            Worker("model"),
            period_start_ms=start_ms,
            deadline_ms=DEADLINE_MS,
        )
    audit = SqlAuditLog.open(path)
    try:
        audit.begin(run, engine.gate_sets)
        yield LiveParts(
            engine,
            predictor,
            audit,
            lambda: start_event(forecaster, warm_from=kept.warm_from(), market_ms=start_ms),
        )
        audit.end(0)
    finally:
        audit.close()


async def _latencies(count: int, strategy: str) -> tuple[list[float], list[float]]:
    config = live_config(strategy, ["BTCUSDT"])
    forecaster = load_forecaster(config) if needs_forecaster(config) else None
    context = 100 if forecaster is None else forecaster.context
    candles = tiled(context + WARM_UP_STEPS + count)
    history = [msgspec.structs.replace(bar, source=Source.STREAM) for bar in bars_of(candles)]
    start_ms = history[context].open_time_ms
    instruments = [archive_instrument(candles)]
    whole, alone = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        BareCommit(Path(folder) / "bare.db") as bare,
        live_parts(
            config, instruments, forecaster, Path(folder) / "bench.db", start_ms=start_ms
        ) as parts,
    ):
        engine, predictor, audit = parts.engine, parts.predictor, parts.audit
        for bar in history[:context]:
            await audit.append(engine.step(bar, await predictor.predict(bar)))
        change = parts.start()
        await audit.append(engine.step(change, await predictor.predict(change)))
        for number, bar in enumerate(history[context:]):
            quote = quote_of(bar)
            await audit.append(engine.step(quote, None))
            began = time.perf_counter()
            await audit.append(engine.step(bar, await predictor.predict(bar)))
            middle = time.perf_counter()
            await bare.commit()
            ended = time.perf_counter()
            if number >= WARM_UP_STEPS:
                whole.append((middle - began) * 1e3)
                alone.append((ended - middle) * 1e3)
    return whole, alone


def quote_of(bar: Bar) -> Quote:
    """Return a quote of one tick around the close of *bar*, at its close."""
    at = bar.close_time_ms
    return Quote(bar.instrument, bar.close - 1, 10**6, bar.close, 10**6, at, at)


class BareCommit:
    """One row and one commit at a time, on a WAL database that is synchronous FULL."""

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
        """Insert one row and wait until it is on the disk."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._insert)

    def _insert(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute("INSERT INTO t (row) VALUES (zeroblob(?))", (ROW_BYTES,))
        self._database.execute("COMMIT")
