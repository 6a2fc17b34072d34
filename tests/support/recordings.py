"""Backtests that tests record: each is made once in this process, and copied to be written to."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import Replay, build
from tracepaper.replay.backtest.market_data import SOURCES, MarketData
from tracepaper.replay.backtest.run import Tally, predictor_over, run_events, run_replay
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.strategies.types.market import Bar, Command, Event

_STORE = tempfile.TemporaryDirectory(prefix="recordings-")
"""It goes with the process."""


def crossing(*symbols: str, interval: str = "1", **sections: Any) -> Config:
    """Return a configuration of averages that cross often, on both sides."""
    given: dict[str, Any] = {
        "market": {"symbols": symbols or ["BTCUSDT"], "interval": interval},
        "strategy": {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False},
        "sizing": {"mode": "fixed", "quantity": "1"},
        **sections,
    }
    return load(None, given)


def run_into(
    path: Path, replay: Replay, tally: Tally | None = None, *, group_steps: int | None = None
) -> str:
    """Run *replay* into the database at *path*, and end it unless *tally* stopped it.

    A commit has *group_steps* steps.
    """
    tally = Tally() if tally is None else tally
    audit = SqlAuditLog.open(path, group_steps=group_steps)
    try:
        run_replay(replay, audit, tally)
        if tally.finished:
            audit.end(1)
    finally:
        audit.close()
    return replay.run.run_id


def commanded(replay: Replay, log: SqlAuditLog, commands: Mapping[int, Command]) -> None:
    """Run *replay* into *log* to its end, with each of *commands* after so many bars."""
    way = predictor_over(replay)

    def events() -> Iterator[Event]:
        bars = 0
        for event in way.events(replay):
            yield event
            bars += isinstance(event, Bar)
            if isinstance(event, Bar) and (command := commands.get(bars)) is not None:
                yield replace(command, market_ms=event.market_ms, seen_ms=event.seen_ms)

    log.begin(replay.run, replay.engine.gate_sets)
    run_events(events(), way.predictor, replay.engine, log, Tally())
    log.end(2)
    log.close()


def record(
    path: Path,
    config: Config,
    candles: Sequence[Candles],
    *,
    stop_after: int | None = None,
    group_steps: int | None = None,
    **options: Any,
) -> str:
    """Replay *candles* into *path*, until *stop_after* bars where it is given; return the run.

    *options* are those of ``build``, and what is fed beside the candles.
    """
    tally = Tally()
    if stop_after is not None:
        tally = Tally(stopped=lambda: tally.bars >= stop_after)
    sources = {name: options.pop(name) for name in SOURCES.keys() & options}
    data = MarketData(candles, **sources)
    replay = build(config, data, **{"started_at_ms": 0, "database": path, **options})
    return run_into(path, replay, tally, group_steps=group_steps)


def stored(key: object, make: Callable[[Path], object]) -> Path:
    """Return the folder that *make* filled for this *key*, which is pickled: one for equal keys.

    It is read by other tests too: who writes to it takes a copy.
    """
    folder = Path(_STORE.name) / sha256(pickle.dumps(key)).hexdigest()[:16]
    if not folder.exists():
        folder.mkdir()
        try:
            make(folder)
        except BaseException:
            shutil.rmtree(folder)
            raise
    return folder


def recorded(config: Config, candles: Sequence[Candles], **options: Any) -> Path:
    """Return the database of such a replay, made once for equal configurations, data and options.

    Its strategy is code that no test changes.
    """
    key = config.canonical_json(), list(candles), sorted(options.items())
    return stored(key, lambda folder: record(folder / "run.db", config, candles, **options)) / (
        "run.db"
    )


def copied(database: Path, target: Path) -> Path:
    """Copy a database to the path *target*, with what belongs beside it; return the path."""
    for suffix in ("", "-wal"):
        if (path := Path(f"{database}{suffix}")).exists():
            shutil.copy(path, f"{target}{suffix}")
    for blocks in database.parent.glob(f"{database.name}.*/"):
        shutil.copytree(blocks, target.with_name(blocks.name.replace(database.name, target.name)))
    return target
