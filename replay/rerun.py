"""``replay --data FILE.db#RUN``: a recorded run's own events through the engine, as a new run."""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec

from tracepaper.daemon.building import code_version
from tracepaper.daemon.models import forecaster_of
from tracepaper.replay.backtest import Tally, run_events
from tracepaper.replay.recorded import RecordedThinker, open_recorded
from tracepaper.storage import checkpoints
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.reader import Reader, resolve
from tracepaper.strategies.types import RunKind


async def rerun_recorded(
    spec: str, audit: SqlAuditLog, database: Path, tally: Tally, *, started_at_ms: int
) -> str:
    """Feed the run that *spec* (``FILE.db#RUN``) names into *audit*; return the new run's id.

    On the run's own path and warm-up, with its ``Late`` answers: every ``decision_sha256`` must
    come out equal (SEMANTICS 21).
    """
    located = resolve(None, spec)
    with Reader.open(located.path) as reader:
        recorded = open_recorded(reader, located.path, located.run_id)
        prober = None
        if recorded.forecaster is not None:
            kept = checkpoints.kept_folder(located.path, recorded.run.model_id)
            checkpoints.keep(kept, database)
            if recorded.run.path == "scan":
                prober = forecaster_of(kept, recorded.config, path="scan")
        run = msgspec.structs.replace(
            recorded.run,
            run_id=secrets.token_hex(8),
            kind=RunKind.REPLAY,
            started_at_ms=started_at_ms,
            code_version=code_version(),
        )
        audit.begin(run, recorded.engine.gate_sets)
        thinker = RecordedThinker(recorded, prober)
        events = thinker.events(reader, located.run_id)
        await run_events(events, thinker, recorded.engine, audit, tally)
    return run.run_id
