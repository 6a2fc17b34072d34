"""Rows of the views, refusals, and health."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tracepaper.replay.document.values import (
    PAIR,
    Form,
    Paragraph,
    Part,
    TitledParts,
    as_parts,
    table_of,
)
from tracepaper.replay.page import answers
from tracepaper.replay.page.databases import HttpRefusal, ShownRun
from tracepaper.replay.page.runs import halt
from tracepaper.replay.report.states import command_of, time_text
from tracepaper.storage.database.lock import holder_of
from tracepaper.storage.database.views import VIEWS
from tracepaper.storage.record.rows import HALTED
from tracepaper.strategies.types.market import GapCause, ModelChange
from tracepaper.strategies.units import DAY_MS, NOTHING, count_of, duration, number

if TYPE_CHECKING:
    from tracepaper.replay.page.routes import RowParameters

SHOWN_VIEWS: Final = {view.name: view for view in VIEWS if view.name != "v_runs"}
COUNTED_MAX: Final = 100_000
"""Rows beyond these are not counted: a view of a year has millions."""
HAPPENINGS_MAX: Final = 200
_TIMES: Final = ("open_time_ms", "filled_ms", "closed_ms", "created_ms", "market_ms", "from_ms")
_ORDER: Final = ("sequence", "ordinal")

# ---------------------------------------------------------------- views


def rows(
    shown: ShownRun, view: str, filters: Mapping[str, str], page: RowParameters
) -> answers.Rows:
    """Return rows of one view of the run; raise ``HttpRefusal`` for a column that it has not."""
    name = view if view.startswith("v_") else f"v_{view}"
    if name not in SHOWN_VIEWS:
        raise HttpRefusal(404, f"There is no view {view[:40]!r}; /api/v1/openapi.json lists them.")
    columns = {column.name: column for column in SHOWN_VIEWS[name].columns}
    where = ["run_id = ?"]
    values: list[str | float] = [shown.run_id]
    for column, wanted in filters.items():
        if column not in columns:
            raise HttpRefusal(
                400, f"{name} has no column {column[:40]!r}; it has {', '.join(columns)}."
            )
        if wanted == "":
            where.append(f"{column} IS NULL")
        else:
            where.append(f"{column} = ?")
            values.append(_typed(column, columns[column].kind, wanted))
    time = next((field for field in _TIMES if field in columns), None)
    for bound, sign in ((page.from_ms, ">="), (page.until_ms, "<")):
        if bound is None:
            continue
        if time is None:
            raise HttpRefusal(400, f"{name} has no time; filter it by sequence.")
        where.append(f"{time} {sign} {int(bound)}")
    if page.sort is not None and page.sort not in columns:
        raise HttpRefusal(400, f"{name} has no column {page.sort[:40]!r} to sort by.")
    condition = " AND ".join(where)
    order = [field for field in (page.sort, *_ORDER) if field is not None and field in columns]
    way = " DESC" if page.descending else ""
    ordered = ", ".join(f"{field}{way}" for field in dict.fromkeys(order))
    offset = _offset(page.after)
    connection = shown.reader.connection
    listed = connection.execute(
        f"SELECT * FROM {name} WHERE {condition} ORDER BY {ordered} LIMIT ? OFFSET ?",
        (*values, page.limit, offset),
    ).fetchall()
    (total,) = connection.execute(
        f"SELECT count(*) FROM (SELECT 1 FROM {name} WHERE {condition} LIMIT ?)",
        (*values, COUNTED_MAX),
    ).fetchone()
    end = offset + len(listed)
    has_more = len(listed) == page.limit and (end < total or total == COUNTED_MAX)
    return answers.Rows(
        view=name.removeprefix("v_"),
        columns=[
            answers.Column(field.name, field.kind.lower(), field.doc) for field in columns.values()
        ],
        rows=[
            [None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in row]
            for row in listed
        ],
        total=total,
        next=str(end) if has_more else None,
    )


def _typed(column: str, kind: str, text: str) -> str | float:
    if kind == "TEXT":
        return text
    try:
        number = int(text) if kind == "INTEGER" else float(text)
    except ValueError:
        raise HttpRefusal(400, f"{column} is a number, and {text[:40]!r} is none.") from None
    if isinstance(number, int) and not -(2**63) <= number < 2**63:
        raise HttpRefusal(400, f"{column} takes whole numbers of 64 bits, not {text[:40]}.")
    return number


def _offset(after: str | None) -> int:
    if after is None:
        return 0
    if not after.isdecimal() or len(after) > 12:
        raise HttpRefusal(400, "Give as after what stood in next of the rows before.")
    return int(after)


# ---------------------------------------------------------------- refusals


def refusals(shown: ShownRun) -> TitledParts:
    """Return refusals by day, what each gate saved or cost, and why no order was sent."""
    from tracepaper.replay.document.charts import Chart
    from tracepaper.replay.report import benchmarks, charts, figures
    from tracepaper.replay.report.record import read_record

    columns = shown.columns
    refused_by = {outcome.key: outcome.refused_by for outcome in columns.rows.outcomes}
    days: dict[int, Counter[str]] = {}
    for day, key, count in columns.rows.outcome_days(columns.span):
        days.setdefault(day, Counter())[refused_by[key] or ""] += count
    parts: list[Part] = [Paragraph("Refusals by day", "heading")]
    if not any(gates := [gate for gate in columns.gates if any(of[gate] for of in days.values())]):
        parts.append(Paragraph("Nothing refused yet.", "note"))
    else:
        times = [day * DAY_MS for day in sorted(days)]
        counts = [[days[day][gate] for day in sorted(days)] for gate in gates]
        panel = charts.counts_panel("refusals", times, gates, counts)
        parts.append(Chart("", "First refusals of each UTC day.", [panel]))
    if days:
        parts.append(Paragraph("What each gate saved or cost", "heading"))
        record = read_record(shown.reader, shown.database, shown.run_id)
        refused = benchmarks.refusals(record)
        if (worth := charts.refusal_chart(refused)) is not None:
            parts.append(worth)
        parts += figures.refusal_tables(record, refused)
    return TitledParts("Gates", tuple(parts))


# ---------------------------------------------------------------- health


_COUNTED: Final = {
    "requests": "REST requests",
    "rest_bars": "bars by REST",
    "connects": "connections",
    "bars": "bars by stream",
    "resyncs": "server time asked",
}


def health(
    shown: ShownRun, served: str = "", status: Mapping[str, Any] | None = None
) -> answers.Health:
    """Return whether the run is sound, as its record says, and the *status* of its daemon."""
    columns = shown.columns
    row = shown.views.run()
    lost, gaps = 0, 0
    for gap in shown.views.rows("v_gaps"):
        if gap["cause"] != GapCause.FUNDING:
            gaps += 1
            if not gap["repaired_by"]:
                lost += int(
                    columns.times.bars_between(
                        *(np.array(gap[key]) for key in ("from_ms", "until_ms"))
                    )
                )
    halted_by = None if (held := halt(shown)) is None else held.by
    # Whoever holds the file writes one run of it, and any other was killed.
    is_written = shown.run_id in (served, *shown.reader.run_ids()[-1:])
    is_running = is_written and holder_of(shown.database) is not None
    state = "ended" if row["ended_at"] is not None else "running" if is_running else "killed"
    if state == "running" and halted_by:
        state = "halted"
    if status is not None:
        state, halted_by = status["state"], status["halted_by"]
    damage = shown.reader.damage(shown.run_id)
    not_ready = [] if status is None else status["not_ready"]
    starts = len(shown.reader.of_type(shown.run_id, ModelChange))
    stands = [state] if state != "halted" or not halted_by else []
    stands += [f"halted by {halted_by}"] if halted_by else []
    gaps_text = f"{count_of(gaps, 'gap')}, repaired" if gaps else "no gap"
    if lost:
        gaps_text = f"{count_of(lost, 'bar')} of {count_of(gaps, 'gap')} never came"
    what = f"{row['kind'].capitalize()} run, {', '.join(stands)}"
    title = f"{what}; {gaps_text}; {count_of(starts, 'start')}."
    events = happenings(shown)
    parts = [
        *([Paragraph(damage, "warning")] if damage else []),
        *(Paragraph(f"Not ready: {why}", "warning") for why in not_ready),
        Paragraph("Feed and speed", "heading"),
        *_feed(status),
        Paragraph("What happened", "heading"),
        table_of(
            "happenings",
            "",
            {"time": "second", "kind": "text", "symbol": "text", "what": "text"},
            [
                (event.market_ms, event.kind.replace("_", " "), event.instrument or "", event.text)
                for event in events
            ],
            [] if events else ["Nothing but bars."],
        ),
        Paragraph(
            f"{row['step_count']:,} steps; head digest {(row['head_digest'] or '')[:16]}…", "note"
        ),
    ]
    return answers.Health(
        is_live=status is not None,
        state=state,
        is_wrong=bool(damage) or lost > 0,
        is_ready=not not_ready,
        steps=row["step_count"],
        title=title,
        parts=as_parts(parts),
    )


def _feed(status: Mapping[str, Any] | None) -> Iterator[Part]:
    """Yield what only a running daemon knows."""
    if status is None:
        yield Paragraph(
            "Feed age and latency are known of a daemon while it runs, on its own page; this is "
            "read from the record.",
            "note",
        )
        return
    if status["frame_s"] is not None:
        frame, commit = _seconds(status["frame_s"]), _seconds(status["commit_s"])
        yield Paragraph(f"Newest frame {frame} ago; newest step stored {commit} ago.")
    forms: dict[str, Form] = {"symbol": "text", "last bar": "exact", "last quote": "exact"}
    feeds = [
        (feed["instrument"], _seconds(feed["bar_s"]), _seconds(feed["quote_s"]))
        for feed in status["feeds"]
    ]
    yield table_of("feeds", "Age of the feed", forms, feeds)
    quantiles = ("mean", "p50", "p90", "p99")
    forms = {"what": "text", "count": "count", **dict.fromkeys(quantiles, "exact")}
    latencies = [
        (of["name"].replace("_", " "), of["count"], *(_seconds(of[name]) for name in quantiles))
        for of in status["latencies"]
    ]
    note = "A quantile is the upper bound of its class."
    yield table_of("latencies", "Latency", forms, latencies, [note])
    counters = {_COUNTED.get(name, name): of for name, of in status["counters"].items()}
    counters |= {f"notices {name}": of for name, of in (status["notices"] or {}).items()}
    pairs = [(name.replace("_", " "), f"{of:,}") for name, of in counters.items()]
    yield replace(table_of("counters", "Counters", PAIR, pairs), look="pairs")
    if (parity := status["parity"]) is not None:
        runs = " A replay of the last day runs." if parity["checking"] else ""
        at = time_text(parity["due_ms"])
        yield Paragraph(f"The next comparison with a replay is due at {at}.{runs}", "note")


def _seconds(value: float | None) -> str:
    """Return a span of time as people read it: ``4.1 ms``, ``1.2 s``, ``2.0 h``."""
    if value is None:
        return NOTHING
    if value < 1:
        return f"{number(1e3 * value, digits=2)} ms"
    return f"{number(value, digits=3)} s" if value < 10 else duration(1e3 * value)


_TOLD: Final = (
    *("model_change", "gap", "command", "parity", "retrained", "end", "prune"),
    "instrument_change",
)


def happenings(shown: ShownRun) -> list[answers.RunEvent]:
    """Return the newest events that are worth a line, the newest first."""
    columns, names = shown.columns, list(shown.columns.instruments)
    events = [
        answers.RunEvent(
            event.sequence, event.kind, event.market_ms,
            None if event.instrument is None else names[event.instrument],
            event_text(event.kind, json.loads(event.content)),
        )
        for event in columns.rows.newest_events(_TOLD, columns.span, HAPPENINGS_MAX)
    ]  # fmt: skip
    events += [
        answers.RunEvent(
            halt.sequence, HALTED, halt.market_ms, None, event_text(HALTED, {"limit": halt.limit})
        )
        for halt in columns.rows.halts((0, columns.span[1]))
    ]
    return sorted(events, key=lambda happening: happening.sequence, reverse=True)[:HAPPENINGS_MAX]


def event_text(kind: str, content: dict[str, Any]) -> str:
    """Return an event in one line."""
    if kind == "command":
        command = command_of(content)
        return f"{command.kind} {command.giver}" + (f": {command.note}" if command.note else "")
    if kind == "gap":
        repaired = content.get("repaired_by")
        after = f"repaired by {repaired}" if repaired else "never repaired"
        return f"Gap ({content.get('cause')}), {after}"
    if kind == HALTED:
        return f"Halted by {content['limit']} until RESUME"
    if kind == "model_change":
        return f"Started with {content.get('model_id') or 'no model'}"
    plain = {"end": "Ended in good order", "prune": "Older steps were pruned"}
    return str(content.get("reason") or plain.get(kind) or kind.replace("_", " "))
