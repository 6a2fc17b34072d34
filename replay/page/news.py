"""What the stream tells: the steps of a run since a sequence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct, field

from tracepaper.replay.page import answers, holding
from tracepaper.replay.page.databases import Databases, HttpRefusal, ShownRun
from tracepaper.replay.page.marks import fill_mark
from tracepaper.replay.page.records import told
from tracepaper.replay.page.rollups import OWN, TIME, Block, numbers_of
from tracepaper.replay.page.runs import series_of
from tracepaper.storage.record.rows import HALTED
from tracepaper.strategies.errors import TracepaperError

STEPS_MAX: Final = 200
"""More steps at once are not told one by one: the page asks for what lies between.

Fewer than wait for one reader of the stream, so that a reader that keeps up hears them all.
"""
_QUIET: Final = ("bar", "quote", "mark", "depth", "trade", "closed", "frame_bar")


class StreamStep(Struct, frozen=True, tag="step", tag_field="type"):
    """One stored step, as it is told to those who listen."""

    run_id: str
    sequence: int
    kind: str  # of the event, as in v_events
    market_ms: int
    instrument: str | None = None
    bar: tuple[int, float, float, float, float, float] | None = None
    """Open time, open, high, low, close, volume."""
    decision: dict[str, Any] | None = None  # the row of ``Series`` for it, by column
    fills: list[answers.FillMark] = field(default_factory=list)
    equity: dict[str, float] = field(default_factory=dict)
    happening: answers.RunEvent | None = None


class StreamHello(Struct, frozen=True, tag="hello", tag_field="type"):
    """The first message: which run, and how far it is; ask for what lies between."""

    run_id: str
    sequence: int | None
    market_ms: int


class News(Struct, frozen=True):
    """The newest step, and those since the one that was asked for."""

    hello: StreamHello
    steps: list[StreamStep]


def since(shelf: Databases, run_id: str, after: int | None) -> News:
    """Return the steps of *run_id* (the newest run where it is empty) behind *after*."""
    shown = shelf.find(run_id or shelf.served or _newest(shelf))
    end = shown.columns.span[1]
    newest = (shown.views.rows("v_events", sequence=end) or [{"market_ms": 0}])[0]
    hello = StreamHello(shown.run_id, end if end >= 0 else None, newest["market_ms"])
    if after is None or end <= after:
        return News(hello, [])
    first = max(after + 1, end - STEPS_MAX + 1, shown.columns.span[0])
    return News(hello, _steps(shown, first, end))


def _newest(shelf: Databases) -> str:
    started: list[tuple[int, str]] = []
    for path in shelf.paths:
        try:
            reader = shelf.reader(path)
            ids = reader.run_ids()
            started += [(reader.run(run_id).started_at_ms, run_id) for run_id in ids[-1:]]
        except TracepaperError:
            continue
    if not started:
        raise HttpRefusal(404, "No database holds a run yet; `tracepaper demo` makes one.")
    return max(started)[1]


def _steps(shown: ShownRun, first: int, last: int) -> list[StreamStep]:
    sequences = list(range(first, last + 1))
    bars = {name: shown.rollups.read(name, (first, last)) for name in shown.columns.instruments}
    decided: dict[int, tuple[Any, Any]] = {}
    for name, block in bars.items():
        decided.update(_decided(shown, name, block))
    fills: dict[int, list[answers.FillMark]] = {}
    for row in shown.views.rows("v_fills", sequence=sequences):
        roles = shown.views.rows("v_orders", order_id=row["order_id"])
        role = (roles[0]["role"] if roles else None) or "SIGNAL"
        fills.setdefault(row["sequence"], []).append(fill_mark(row, role))
    equity: dict[int, dict[str, float]] = {}
    for view, name in (("v_equity", ""), ("v_twin_equity", "twin")):
        for row in shown.views.rows(view, sequence=sequences):
            by_account = equity.setdefault(row["sequence"], {})
            by_account[row[name] if name else OWN] = row["equity"]
    computed = holding.at_bars(shown, bars, first)
    for sequence, (bar, _) in decided.items():
        equity.setdefault(sequence, {}).update(computed.get(bar[0], {}))
    steps: list[StreamStep] = []
    for event in shown.views.rows("v_events", sequence=sequences):
        sequence, kind = event["sequence"], event["kind"]
        content = json.loads(event["content"])
        if kind == HALTED:  # of the step that was just told
            told_of = answers.RunEvent(
                sequence, kind, event["market_ms"], None, told(kind, content)
            )
            steps[-1] = msgspec.structs.replace(steps[-1], happening=told_of)
            continue
        bar, decision = decided.get(sequence, (None, None))
        steps.append(
            StreamStep(
                run_id=shown.run_id,
                sequence=sequence,
                kind=kind,
                market_ms=event["market_ms"],
                instrument=event["instrument"],
                bar=bar,
                decision=decision,
                fills=fills.get(sequence, []),
                equity=equity.get(sequence, {}),
                happening=None
                if kind in _QUIET
                else answers.RunEvent(
                    sequence, kind, event["market_ms"], event["instrument"], told(kind, content)
                ),
            )
        )
    return steps


def _decided(
    shown: ShownRun, name: str, block: Block
) -> Iterator[tuple[int, tuple[Any, dict[str, Any]]]]:
    """Yield by sequence the bar and the row of ``Series`` with its notes, of each decision."""
    columns = msgspec.structs.asdict(series_of(shown, name, shown.columns.interval_ms, block))
    rows = np.flatnonzero(~np.isnan(block["sequence"]))
    notes = [key for key in block if key.startswith("note:")]
    columns["noted"] = {key.partition(":")[2]: numbers_of(block[key][rows]) for key in notes}
    prices = (block[key][rows].tolist() for key in ("open", "high", "low", "close", "volume"))
    bars = zip(columns["sequence"], columns[TIME], *prices, strict=True)
    del columns["instrument"], columns["interval_ms"]
    for at, (sequence, *bar) in enumerate(bars):
        row = {key: _value_at(column, at) for key, column in columns.items()}
        yield sequence, (tuple(bar), row)


def _value_at(column: Any, at: int) -> Any:  # noqa: ANN401 - a column, or columns by name
    if isinstance(column, dict):
        return {key: values[at] for key, values in column.items()}
    return column[at]
