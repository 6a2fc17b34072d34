"""The notices that the events of a run would send, derived from its record.

No notice is stored: a chosen step passes through ``Notices`` again, as the daemon passed all steps.
Digests (``refusals`` and ``daily``) follow from the clock and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from msgspec.structs import replace

from tracepaper.daemon.config.notify import NoticeKind
from tracepaper.daemon.session.notices import Notices
from tracepaper.replay.report.record import RunRecord
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_rows import WHOLE
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.gates.declared import deadline, late, risk_daily_loss, risk_drawdown

LABELS: Final[dict[NoticeKind, str]] = {
    "fills": "order filled",
    "stops": "stop or target",
    "limits": "limit breached",
    "halt": "halt, resume",
    "feed": "data missing",
    "late": "decision late",
    "parity": "parity check",
}
"""The kinds of notices that events send, and their words in the timeline, in its order."""
STEPS_MOST: Final = 5_000
"""Most steps that are read again; a run with more shows its newest."""
_ALWAYS: Final = ("command", "parity", "gap")
"""Kinds of events that may send a notice themselves."""


class TimelineEvent(NamedTuple):
    """One notice that the run would send."""

    market_ms: int
    kind: NoticeKind
    text: str


class Timeline(NamedTuple):
    """The events, oldest first; ``left_out`` counts older steps that were not read again."""

    events: tuple[TimelineEvent, ...]
    left_out: int


def read_timeline(reader: Reader, record: RunRecord, most: int = STEPS_MOST) -> Timeline:
    """Return the notices that the newest *most* steps of the run of *record* would send."""
    run_id = record.run["run_id"]
    run, section = reader.run(run_id), record.config.notify
    sequences = _sequences(reader, record)
    chosen = sequences[max(len(sequences) - most, 0) :]
    known = run if len(chosen) == len(sequences) else replace(run, account=None)
    notices = Notices(section, known, on_breach=record.config.risk.on_breach)
    events = list[TimelineEvent]()
    for step in reader.steps_at(run_id, chosen):
        for notice in notices.of_step(step):
            if notice.kind in LABELS:
                fields = {"time": "", "run": run_id, "strategy": run.strategy, **notice.fields}
                text = section.wording(notice.kind).format_map(fields)
                events.append(TimelineEvent(notice.market_ms, notice.kind, text))
    return Timeline(tuple(events), len(sequences) - len(chosen))


def _sequences(reader: Reader, record: RunRecord) -> list[int]:
    """Return the steps that may send a notice, in order."""
    run_id = record.run["run_id"]
    views, decisions = RunViews(reader.connection, run_id), record.decisions
    chosen = {row["sequence"] for row in views.rows("v_events", kind=_ALWAYS)}
    chosen |= {fill["sequence"] for fill in record.account.fills}
    halts = reader.run_rows(reader.stored_run(run_id).run_key).halts(WHOLE)
    chosen |= {halt.sequence for halt in halts}
    limits = np.isin(decisions.refused_by, (risk_drawdown.name, risk_daily_loss.name))
    chosen |= {*decisions.sequence[limits].tolist()}
    chosen |= {*_late_steps(record)}
    return sorted(chosen)


def _late_steps(record: RunRecord) -> Iterator[int]:
    """Yield the steps of late decisions, and of the next one on the same instrument."""
    decisions = record.decisions
    is_late = np.isin(decisions.refused_by, (late.name, deadline.name))
    for places in decisions.places.values():
        held = is_late[places]
        after = np.concatenate(([False], held[:-1]))
        yield from decisions.sequence[places[held | after]].tolist()
