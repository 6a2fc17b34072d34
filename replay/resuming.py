"""``replay --resume RUN``: go on with an interrupted backtest where its last step left it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from tracepaper.daemon.config import restore
from tracepaper.daemon.describing import continues, started
from tracepaper.daemon.outside import Listener
from tracepaper.daemon.recovery import restore_engine
from tracepaper.replay.assembly import build
from tracepaper.replay.backtest import ACTING_ONLY, Tally, run_events, thinking_over
from tracepaper.replay.importers import Candles, FundingRates
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.reader import Reader
from tracepaper.storage.resume import Resumed
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types import Bar, Event, Funding, Gap, RunKind


async def resume_replay(
    wanted: str,
    candles: Sequence[Candles],
    funding: Sequence[FundingRates],
    audit: SqlAuditLog,
    database: Path,
    tally: Tally,
) -> str:
    """Go on with the replay *wanted* over the same candles; return its run id.

    Raises ``ConfigInvalid`` where it is no replay, is finished, or was made by other code.
    """
    with Reader.open(database) as reader:
        run_id = reader.find(wanted)
        stored = reader.stored_run(run_id)
        has_ended = reader.ended_at_ms(run_id) is not None
    run = stored.run
    if run.kind is not RunKind.REPLAY:
        raise ConfigInvalid(f"Run {run_id} is a {run.kind.value} run; only a replay is resumed.")
    if has_ended:
        raise ConfigInvalid(f"Run {run_id} is finished; start a new replay.")
    if ACTING_ONLY in run.warnings:
        raise ConfigInvalid(f"Run {run_id} says: {ACTING_ONLY}; start a new replay.")
    replay = build(
        restore(run.config),
        candles,
        started_at_ms=run.started_at_ms,
        from_ms=None if not stored.step_count else run.period_start_ms,
        funding=funding,
        path=run.path or "scan",
        database=database,
    )
    if not continues(run, replay.config, replay.forecaster):
        raise ConfigInvalid(
            f"Run {run_id} was made by {run.code_version} with another configuration, strategy, "
            "code or checkpoint; start a new replay."
        )
    resumed = audit.resume(run_id)
    rest = (event for event in replay.feed.events() if _is_new(event, resumed))
    thinking = thinking_over(replay)
    memory = thinking.memory
    with Reader.open(database) as reader:
        restore_engine(replay.engine, reader, resumed, memory)
    warm_from = () if memory is None else memory.warm_from()
    start = started(
        replay.forecaster,
        warm_from=warm_from,
        market_ms=max(resumed.last_open_ms.values(), default=run.period_start_ms),
    )
    events = thinking.ahead(chain((start,), rest))
    heard = Listener(run.strategy)
    await run_events(events, thinking.think, replay.engine, audit, tally, heard=heard)
    return run_id


def _is_new(event: Event, resumed: Resumed) -> bool:
    """Return whether *event* comes after what the run already holds."""
    match event:
        case Bar():
            return event.open_time_ms > resumed.last_open_ms.get(event.instrument, -1)
        case Funding():
            return event.market_ms > resumed.last_funding_ms.get(event.instrument, -1)
        case Gap():
            return event.from_ms > resumed.last_open_ms.get(event.instrument, -1)
        case _:
            return True
