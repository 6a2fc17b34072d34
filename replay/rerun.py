"""``replay --data FILE.db#RUN``: a recorded run's own events through the engine, as a new run."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from tracepaper.daemon.commands.options import located
from tracepaper.daemon.describing import OF_THE_PLACE, started
from tracepaper.daemon.models import forecaster_of
from tracepaper.replay.backtest import Tally, run_events
from tracepaper.replay.recorded import RecordedThinker, open_recorded
from tracepaper.storage import checkpoints
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.reader import Reader
from tracepaper.strategies.types import Event, ModelChange, RunEnd, RunKind


async def rerun_recorded(
    spec: str, audit: SqlAuditLog, database: Path, tally: Tally, *, started_at_ms: int
) -> str:
    """Feed the run that *spec* (``FILE.db#RUN``) names into *audit*; return the new run's id.

    On the run's own path and warm-up, with its ``Late`` answers: every ``decision_sha256`` must
    come out equal.
    """
    named = located(spec, None)
    with Reader.open(named.path) as reader:
        recorded = open_recorded(reader, named.path, named.run_id)
        prober = None
        if recorded.forecaster is not None:
            kept = checkpoints.find_kept(named.path, recorded.run.model_id)
            checkpoints.keep(kept, database)
            if recorded.run.path == "scan":
                prober = forecaster_of(kept, recorded.config, path="scan")
        here = started(recorded.forecaster, warm_from=(), market_ms=0)
        place = {name: getattr(here, name) for name in OF_THE_PLACE}
        run = msgspec.structs.replace(
            recorded.run,
            run_id=secrets.token_hex(8),
            kind=RunKind.REPLAY,
            started_at_ms=started_at_ms,
            **place,
        )
        audit.begin(run, recorded.engine.gate_sets)
        thinker = RecordedThinker(recorded, prober)
        events = _made_here(thinker.events(reader, named.run_id), place)
        await run_events(events, thinker, recorded.engine, audit, tally)
    return run.run_id


def _made_here(events: Iterable[Event], place: dict[str, Any]) -> Iterator[Event]:
    """Yield *events* without ends, and with starts that say where they are made now."""
    for event in events:
        if isinstance(event, ModelChange):
            yield msgspec.structs.replace(event, **place)
        elif not isinstance(event, RunEnd):
            yield event
