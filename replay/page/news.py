"""The messages of the stream: the steps of a run since a sequence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct, field

from tracepaper.replay.page import answers, runs
from tracepaper.replay.page.databases import Databases, HttpRefusal, OpenRun
from tracepaper.replay.page.marks import fill_mark
from tracepaper.replay.page.records import event_text
from tracepaper.storage.record.rows import HALTED

STEPS_MAX: Final = 200
"""Most steps that are sent at once; a reader requests the earlier ones itself."""
DecidedBar = tuple[int, float, float, float, float, float]
_BAR: Final = ("open_time_ms", "open", "high", "low", "close", "volume")
_QUIET: Final = ("bar", "quote", "mark", "depth", "trade", "closed", "frame_bar")


class StreamStep(Struct, frozen=True, tag="step", tag_field="type"):
    """One stored step, as the stream sends it."""

    run_id: str
    sequence: int
    kind: str  # of the event, as in v_events
    market_ms: int
    instrument: str | None = None
    bar: DecidedBar | None = None
    """The decided bar: open time, open, high, low, close, volume."""
    fills: list[answers.FillMark] = field(default_factory=list)
    happening: str = ""  # a start, gap, command or similar event, in one line


class StreamHello(Struct, frozen=True, tag="hello", tag_field="type"):
    """The first message: the run and its newest step; request the steps that you lack."""

    run_id: str
    sequence: int | None
    market_ms: int


class News(Struct, frozen=True):
    """The newest step, and the steps since the requested one."""

    hello: StreamHello
    steps: list[StreamStep]


def since(databases: Databases, run_id: str, after: int | None) -> News:
    """Return the steps of *run_id* (if empty, of the served or newest run) after *after*."""
    shown = databases.find(run_id or databases.served or _newest(databases))
    end = shown.columns.span[1]
    newest = (shown.views.rows("v_events", sequence=end) or [{"market_ms": 0}])[0]
    hello = StreamHello(shown.run_id, end if end >= 0 else None, newest["market_ms"])
    if after is None or end <= after:
        return News(hello, [])
    first = max(after + 1, end - STEPS_MAX + 1)
    return News(hello, _steps(shown, first, end))


def _newest(databases: Databases) -> str:
    if not (listed := runs.runs(databases).runs):
        raise HttpRefusal(404, "No database holds a run yet; `tracepaper demo` makes one.")
    return listed[0].run_id


def _steps(shown: OpenRun, first: int, last: int) -> list[StreamStep]:
    sequences = list(range(first, last + 1))
    bars = dict(_bars(shown, first, last))
    fills: dict[int, list[answers.FillMark]] = {}
    roles = shown.columns.rows.order_roles((first, last))
    for row in shown.views.rows("v_fills", sequence=sequences):
        mark = fill_mark(row, roles.get(row["order_id"], "SIGNAL"))
        fills.setdefault(row["sequence"], []).append(mark)
    steps: list[StreamStep] = []
    for event in shown.views.rows("v_events", sequence=sequences):
        sequence, kind, market_ms = event["sequence"], event["kind"], event["market_ms"]
        happening = ""
        if kind not in _QUIET:
            happening = event_text(kind, json.loads(event["content"]))
        if kind == HALTED:  # it belongs to the previous step
            steps[-1] = msgspec.structs.replace(steps[-1], happening=happening)
            continue
        steps.append(
            StreamStep(
                run_id=shown.run_id,
                sequence=sequence,
                kind=kind,
                market_ms=market_ms,
                instrument=event["instrument"],
                bar=bars.get(sequence),
                fills=fills.get(sequence, []),
                happening=happening,
            )
        )
    return steps


def _bars(shown: OpenRun, first: int, last: int) -> Iterator[tuple[int, DecidedBar]]:
    """Yield the bar of each decision by its sequence."""
    for name in shown.columns.instruments:
        columns = shown.columns.bars(name, (first, last))
        decided = columns["outcome"] >= 0
        rows = (columns[key][decided].tolist() for key in ("sequence", *_BAR))
        for sequence, *bar in zip(*rows, strict=True):
            yield sequence, tuple(bar)
