"""Rows of the views, refusals, and health."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from functools import partial
from operator import itemgetter
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import numpy as np

from tracepaper.daemon.http.monitor import counts_text
from tracepaper.replay.document.values import (
    PAIR,
    Figure,
    Form,
    Link,
    Pages,
    Paragraph,
    Part,
    Table,
    TitledParts,
    Value,
    table,
    table_of,
)
from tracepaper.replay.page import answers
from tracepaper.replay.page.databases import HttpRefusal, OpenRun
from tracepaper.replay.page.lists import address
from tracepaper.replay.page.runs import damage_of, halt, newest_parity
from tracepaper.replay.report.states import command_of, time_text
from tracepaper.storage.database.lock import holder_of
from tracepaper.storage.database.run_views import Row
from tracepaper.storage.database.view_columns import ViewColumn
from tracepaper.storage.database.views import VIEWS
from tracepaper.storage.record.rows import HALTED
from tracepaper.strategies.types.market import GapCause, ModelChange
from tracepaper.strategies.units import DAY_MS, NOTHING, count_of, duration, number, without_zeros

SHOWN_VIEWS: Final = {view.name: view for view in VIEWS if view.name != "v_runs"}
COUNTED_MAX: Final = 100_000
"""Most rows that are counted, because a view of a year has millions."""
HAPPENINGS_MAX: Final = 200
ROWS: Final = 50
ROWS_MAX: Final = 5_000
FIRST_ROWS: Final = 10
"""Rows of a page of a view that are shown until the reader requests the others."""
LISTS: Final = {
    "trades": (
        "sequence instrument side quantity opened_ms closed_ms entry_price exit_price gross costs "
        "funding net bars_held entry_reason exit_reason"
    ),
    "orders": (
        "sequence instrument created_ms side quantity filled kind role limit_price "
        "trigger_price price fee status reason"
    ),
    "fills": (
        "sequence decision_sequence instrument filled_ms side quantity price fee liquidity reason"
    ),
    "ledger": "sequence market_ms instrument kind amount balance order_id",
}
"""Views that an account lists, with the columns that are shown."""
_FORMS: Final[Mapping[str, Form]] = {"TEXT": "text", "INTEGER": "count", "REAL": "exact"}
_TIMES: Final = ("open_time_ms", "filled_ms", "closed_ms", "created_ms", "market_ms", "from_ms")
_ORDER: Final = ("sequence", "ordinal")

# ---------------------------------------------------------------- views


class RowsPage(NamedTuple):
    """A page of rows: a time range, an order, the place in it, and whether money is exact."""

    from_ms: int | None = None
    until_ms: int | None = None
    sort: str | None = None
    descending: bool = False
    exact: bool = False
    limit: int = ROWS
    after: int = 0


def view_table(shown: OpenRun, name: str, filters: Mapping[str, str], page: RowsPage) -> Table:
    """Return a page of one view of the run; a view of ``LISTS`` has only the columns listed there.

    Raises ``HttpRefusal`` for an unknown view or column.
    """
    if (stored := SHOWN_VIEWS.get(f"v_{name}")) is None:
        raise HttpRefusal(404, f"There is no view {name[:40]!r}; docs/views.md lists all.")
    columns = {column.name: column for column in stored.columns}
    for column in (*filters, *filter(None, [page.sort])):
        if column not in columns:
            listed = ", ".join(columns)
            raise HttpRefusal(400, f"{stored.name} has no column {column[:40]!r}; it has {listed}.")
    condition, values = _condition(shown, columns, filters, page)
    order = [field for field in (page.sort, *_ORDER) if field is not None and field in columns]
    direction = " DESC" if page.descending else ""
    ordered = ", ".join(f"{field}{direction}" for field in dict.fromkeys(order))
    connection = shown.reader.connection
    records = connection.execute(
        f"SELECT * FROM {stored.name} WHERE {condition} ORDER BY {ordered} LIMIT ? OFFSET ?",
        (*values, page.limit, page.after),
    ).fetchall()
    (total,) = connection.execute(
        f"SELECT count(*) FROM (SELECT 1 FROM {stored.name} WHERE {condition} LIMIT ?)",
        (*values, COUNTED_MAX),
    ).fetchone()
    end = page.after + len(records)
    has_more = len(records) == page.limit and (end < total or total == COUNTED_MAX)
    symbols = {item.id: item.symbol for item in shown.columns.instruments.values()}
    pages = Pages(
        address=f"/runs/{quote(shown.run_id, safe='')}/views/{name}",
        total=total,
        limit=page.limit,
        before=str(max(0, page.after - page.limit)) if page.after else None,
        after=str(end) if has_more else None,
        sort=page.sort,
        descending=page.descending,
        exact=page.exact,
        symbols=symbols if "instrument" in columns and len(symbols) > 1 else {},
        chosen=filters.get("instrument", ""),
    )
    names = _shown_columns(shown, name, columns)
    figures = [_figure(columns[each], columns, is_exact=page.exact) for each in names]
    rows = [dict(zip(columns, record, strict=True)) for record in records]
    nothing = () if rows else ("None is recorded.",)
    return replace(table(name, "", figures, rows, notes=nothing, shown=FIRST_ROWS), pages=pages)


def _condition(
    shown: OpenRun,
    columns: Mapping[str, ViewColumn],
    filters: Mapping[str, str],
    page: RowsPage,
) -> tuple[str, list[str | float]]:
    """Return the SQL condition of the requested rows, and its values."""
    where, values = ["run_id = ?"], list[str | float]([shown.run_id])
    for column, text in filters.items():
        if text == "":
            where.append(f"{column} IS NULL")
        else:
            where.append(f"{column} = ?")
            values.append(_typed(column, columns[column].kind, text))
    time = next((field for field in _TIMES if field in columns), None)
    for bound, sign in ((page.from_ms, ">="), (page.until_ms, "<")):
        if bound is None:
            continue
        if time is None:
            raise HttpRefusal(400, "The view has no time; filter it by sequence.")
        where.append(f"{time} {sign} {int(bound)}")
    return " AND ".join(where), values


def _shown_columns(shown: OpenRun, name: str, columns: Mapping[str, ViewColumn]) -> list[str]:
    """Return the columns of a view that a page shows: all, or for a list the chosen ones."""
    exact = ("_text", "_iso")
    if (chosen := LISTS.get(name)) is None:
        return [each for each in columns if each != "run_id" and not each.endswith(exact)]
    unneeded = {"instrument"} if len(shown.columns.instruments) == 1 else set()
    return [each for each in chosen.split() if each not in unneeded]


def _figure(
    column: ViewColumn, columns: Mapping[str, ViewColumn], *, is_exact: bool
) -> Figure[Row]:
    """Return the figure of a column: money to the cent unless *is_exact*, other numbers exactly."""
    name, form = column.name, _FORMS[column.kind]
    read: Callable[[Row], Value] = itemgetter(name)
    if name.endswith("sequence"):
        form = "step"
    elif name.endswith("_ms"):
        form = "second"
    elif name == "instrument":
        read = _symbol
    elif column.is_money and not is_exact:
        form = "money"
    elif column.kind == "REAL":
        read = partial(_decimal, name, f"{name}_text" if f"{name}_text" in columns else "")
    title = name.removesuffix("_ms").removesuffix("_sequence").replace("_", " ")
    return Figure(name, title, form, read, name.endswith("reason"), column.doc)


def _symbol(row: Row) -> str:
    return str(row["instrument"] or "").rpartition(":")[2]


def _decimal(name: str, exact: str, row: Row) -> str:
    """Return the number of the *exact* column, or else *name* with seven digits."""
    if (text := row.get(exact)) is None:
        return number(row[name], digits=7).replace("-", "\N{MINUS SIGN}")
    return f"{Decimal(without_zeros(text)):,f}".replace("-", "\N{MINUS SIGN}")


def _typed(column: str, kind: str, text: str) -> str | float:
    if kind == "TEXT":
        return text
    try:
        value = int(text) if kind == "INTEGER" else float(text)
    except ValueError:
        raise HttpRefusal(400, f"{column} is a number; {text[:40]!r} is not one.") from None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise HttpRefusal(400, f"{column} takes whole numbers of 64 bits, not {text[:40]}.")
    return value


# ---------------------------------------------------------------- refusals


def refusals(shown: OpenRun) -> TitledParts:
    """Return refusals by day, what each gate saved or cost, and reasons of unfilled targets."""
    from tracepaper.replay.document.charts import Chart
    from tracepaper.replay.report import benchmarks, charts, figures
    from tracepaper.replay.report.record import read_record

    columns = shown.columns
    refused_by = {outcome.key: outcome.refused_by for outcome in columns.rows.outcomes}
    days: dict[int, Counter[str]] = {}
    for day, key, count in columns.rows.outcome_days(columns.span):
        days.setdefault(day, Counter())[refused_by[key] or ""] += count
    parts: list[Part] = [Paragraph("Refusals by day", "heading")]
    if not any(
        gates := [gate for gate in columns.gates if any(day[gate] for day in days.values())]
    ):
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
        if (chart := charts.refusal_chart(refused)) is not None:
            parts.append(chart)
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
    shown: OpenRun,
    served: str = "",
    status: Mapping[str, Any] | None = None,
    verified: answers.ParityState | None = None,
) -> TitledParts:
    """Return whether the run is sound by its record, and the *status* of its daemon.

    *verified* is the comparison with a replay that this page made.
    """
    row, events = shown.views.run(), happenings(shown)
    gaps, lost = _gaps(shown)
    parity = newest_parity(shown, verified)
    not_ready = [] if status is None else status["not_ready"]
    subject = f"{row['kind'].capitalize()} run, {_standing(shown, served, status)}"
    starts = count_of(len(shown.reader.of_type(shown.run_id, ModelChange)), "start")
    verdict = "Nothing wrong is known."
    if damage_of(shown) or lost or (parity is not None and not parity.is_same):
        verdict = "Not sound."
    elif not_ready:
        verdict = "Not ready."
    elif parity is not None:
        verdict = "Sound."
    steps = f"{count_of(row['step_count'], 'step')}; head digest {(row['head_digest'] or '')[:16]}…"
    gates, account = (address("run", shown.run_id, name) for name in ("gates", "account"))
    forms: dict[str, Form] = {"time": "second", "kind": "text", "symbol": "text", "what": "text"}
    parts = (
        *(Paragraph(f"Not ready: {reason}", "warning") for reason in not_ready),
        _parity(parity),
        Paragraph("Feed and speed", "heading"),
        *_since_start(shown, status),
        *_feed(status),
        Paragraph("What happened", "heading"),
        table_of("happenings", "", forms, events, [] if events else ["No event but bars."]),
        Paragraph(steps, "note"),
        Paragraph(Link("Refusals, and what each gate saved or cost", gates)),
        Paragraph(Link("Account", account)),
    )
    return TitledParts(f"{verdict} {subject}; {gaps}; {starts}.", parts)


def _gaps(shown: OpenRun) -> tuple[str, int]:
    """Return the run's gaps in words, and the number of absent bars."""
    lost, count = 0, 0
    for gap in shown.views.rows("v_gaps"):
        if gap["cause"] != GapCause.FUNDING:
            count += 1
            if not gap["repaired_by"]:
                edges = (np.array(gap[key]) for key in ("from_ms", "until_ms"))
                lost += int(shown.columns.times.bars_between(*edges))
    gaps = count_of(count, "gap")
    if lost:
        return f"{count_of(lost, 'bar')} of {gaps} absent", lost
    return (f"{gaps}, repaired" if count else "no gap"), 0


def _standing(shown: OpenRun, served: str, status: Mapping[str, Any] | None) -> str:
    """Return whether the run is running, and its halt: ``ended, halted by operator``."""
    halted_by = None if (held := halt(shown)) is None else held.by
    # The process that holds the file writes one run; any other unfinished run was killed.
    is_written = shown.run_id in (served, *shown.reader.run_ids()[-1:])
    is_running = is_written and holder_of(shown.database) is not None
    has_ended = shown.views.run()["ended_ms"] is not None
    state = "ended" if has_ended else "running" if is_running else "killed"
    if state == "running" and halted_by:
        state = "halted"
    if status is not None:
        state, halted_by = status["state"], status["halted_by"]
    states = [state] if state != "halted" or not halted_by else []
    return ", ".join(states + [f"halted by {halted_by}"] * bool(halted_by))


def _parity(parity: answers.ParityState | None) -> Paragraph:
    """Return the result of the newest comparison with a replay."""
    if parity is None:
        return Paragraph(
            "The record holds no comparison with a replay; tracepaper verify and tracepaper "
            "parity store one."
        )
    day = parity.day or "the whole run"
    if parity.error:
        text = f"The replay of {parity.day or 'the run'} could not be compared: {parity.error}"
        return Paragraph(text, "warning")
    text = (
        f"{parity.identical:,} of {parity.decisions:,} decisions of {day} are the same in a "
        f"replay, as of {time_text(parity.at_ms)}."
    )
    if parity.is_same:
        return Paragraph(f"✓ {text}")
    return Paragraph(f"✗ {text} First difference: {parity.first_difference}".rstrip(), "warning")


def _since_start(shown: OpenRun, status: Mapping[str, Any] | None) -> Iterator[Part]:
    """Yield what the daemon counts, which begins anew at each start, beside the whole run."""
    if status is None:
        return
    since, counts = time_text(status["since_ms"]), counts_text(status)
    whole = count_of(shown.views.count("v_fills"), "fill")
    yield Paragraph(f"Since this start at {since}: {counts}. The whole run: {whole}.")


def _feed(status: Mapping[str, Any] | None) -> Iterator[Part]:
    """Yield the figures that only a running daemon has."""
    if status is None:
        yield Paragraph(
            "Only the page of a running daemon shows feed age and latency; this page reads the "
            "record.",
            "note",
        )
        return
    if status["frame_s"] is not None:
        frame, commit = seconds_text(status["frame_s"]), seconds_text(status["commit_s"])
        yield Paragraph(f"Newest frame {frame} ago; newest step stored {commit} ago.")
    forms: dict[str, Form] = {"symbol": "text", "last bar": "exact", "last quote": "exact"}
    feeds = [
        (feed["instrument"], seconds_text(feed["bar_s"]), seconds_text(feed["quote_s"]))
        for feed in status["feeds"]
    ]
    yield table_of("feeds", "Age of the feed", forms, feeds)
    quantiles = ("mean", "p50", "p90", "p99")
    forms = {"what": "text", "count": "count", **dict.fromkeys(quantiles, "exact")}
    latencies = [
        (
            row["name"].replace("_", " "),
            row["count"],
            *(seconds_text(row[key]) for key in quantiles),
        )
        for row in status["latencies"]
    ]
    note = "A quantile is the upper bound of its class."
    yield table_of("latencies", "Latency since this start", forms, latencies, [note])
    counters = {_COUNTED.get(name) or name: count for name, count in status["counters"].items()}
    counters |= {f"notices {name}": count for name, count in (status["notices"] or {}).items()}
    pairs = [(name.replace("_", " "), f"{count:,}") for name, count in counters.items()]
    yield replace(table_of("counters", "Counters since this start", PAIR, pairs), look="pairs")
    if (parity := status["parity"]) is not None:
        runs = " A replay of the last day runs." if parity["checking"] else ""
        at = time_text(parity["due_ms"])
        yield Paragraph(f"The next comparison with a replay is due at {at}.{runs}", "note")


def seconds_text(value: float | None) -> str:
    """Return a span of time as text: ``4.1 ms``, ``1.2 s``, ``2.0 h``."""
    if value is None:
        return NOTHING
    if value < 1:
        return f"{number(1e3 * value, digits=2)} ms"
    return f"{number(value, digits=3)} s" if value < 10 else duration(1e3 * value)


_HAPPENINGS: Final = (
    *("model_change", "gap", "command", "parity", "end"),
    "instrument_change",
)


def happenings(shown: OpenRun) -> list[tuple[Value, ...]]:
    """Return the newest events other than data: time, kind, symbol and text of each.

    The newest time is first. A gap is dated by its bars, which are older than the step that reports
    it.
    """
    rows, span, names = shown.columns.rows, shown.columns.span, list(shown.columns.instruments)
    events = [
        (event.sequence, event.market_ms, event.kind, event.instrument, json.loads(event.content))
        for event in rows.newest_events(_HAPPENINGS, span, HAPPENINGS_MAX)
    ]
    events += [
        (halted.sequence, halted.market_ms, HALTED, None, {"limit": halted.limit})
        for halted in rows.halts((0, span[1]))
    ]
    events.sort(key=itemgetter(1, 0), reverse=True)
    return [
        (ms, kind.replace("_", " "), "" if at is None else names[at], event_text(kind, content))
        for _, ms, kind, at, content in events[:HAPPENINGS_MAX]
    ]


def event_text(kind: str, content: dict[str, Any]) -> str:
    """Return an event as one line of text."""
    if kind == "command":
        command = command_of(content)
        return f"{command.kind} {command.giver}" + (f": {command.note}" if command.note else "")
    if kind == "gap":
        repaired = content.get("repaired_by")
        after = f"repaired by {repaired}" if repaired else "its bars are absent"
        return f"Gap ({content.get('cause')}), {after}"
    if kind == HALTED:
        return f"Halted by {content['limit']} until RESUME"
    if kind == "model_change":
        return f"Started with {content.get('model_id') or 'no model'}"
    if kind == "end":
        return "Ended in good order"
    return str(content.get("reason") or kind.replace("_", " "))
