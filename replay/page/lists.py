"""Lists as documents: every run and sweep, the runs beside one, and the runs of a fleet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from tracepaper.replay.document.values import (
    Figure,
    Link,
    Paragraph,
    Part,
    Table,
    TitledParts,
    Value,
    of_field,
    table,
    written,
)
from tracepaper.replay.page import answers
from tracepaper.strategies.units import count_of, interval_text

if TYPE_CHECKING:
    from tracepaper.replay.page.databases import FleetSource, ShownRun
    from tracepaper.storage.fleet.overview import FleetRun

SYMBOLS_SHOWN: Final = 3


def address(*names: str) -> str:
    """Return the page's address of *names*, such as ``#/run/ID``."""
    return "#/" + "/".join(quote(name, safe="") for name in names)


def run_name(strategy: str, run_id: str) -> str:
    """Return how people tell a run from others: its strategy, and the beginning of its id."""
    return f"{strategy.rpartition(':')[2]} {run_id[:8]}"


def _symbols(of: answers.RunRow) -> str:
    names = [name.rpartition(":")[2] for name in of.instruments]
    more = [f"+{len(names) - SYMBOLS_SHOWN}"] if len(names) > SYMBOLS_SHOWN else []
    return " ".join([", ".join(names[:SYMBOLS_SHOWN]), *more])


def _run_figures(*links: Figure[answers.RunRow]) -> tuple[Figure[answers.RunRow], ...]:
    return (
        *links,
        Figure("kind", "kind", "text", lambda of: f"{of.kind}{', running' * of.is_served}"),
        Figure("symbols", "symbols", "text", _symbols),
        Figure("bars", "bars", "text", lambda of: interval_text(of.interval_ms)),
        of_field("from", "from", "minute", "first_ms"),
        of_field("until", "until", "minute", "last_ms"),
        of_field("decisions", "decisions", "count"),
        of_field("fills", "fills", "count"),
        of_field("equity", "equity", "money"),
        of_field("return", "return", "gain percent", "total_return"),
        of_field("database", "database", "text"),
    )


def _run_link(*path: str) -> Figure[answers.RunRow]:
    """Return the figure whose words lead to the run at the end of *path*."""

    def of(row: answers.RunRow) -> Value:
        return Link(run_name(row.strategy, row.run_id), address(*path, row.run_id))

    return Figure("run", "run", "text", of)


_COMPARE: Final = Figure[answers.RunRow](
    "compare", "", "text", lambda of: Link("compare", address("run", of.run_id, "compare"))
)
SWEEPS: Final[tuple[Figure[answers.SweepRow], ...]] = (
    Figure[answers.SweepRow](
        "sweep",
        "sweep",
        "text",
        lambda of: Link(run_name(of.strategy, of.sweep_id), address("sweep", of.sweep_id)),
    ),
    of_field("objective", "objective", "text"),
    of_field("runs", "runs", "count", "cells"),
    Figure("state", "state", "text", lambda of: "whole" if of.is_whole else "not finished"),
    of_field("database", "database", "text"),
)


def _runs_table(rows: list[answers.RunRow], *links: Figure[answers.RunRow]) -> Table:
    listed = table("runs", "", _run_figures(*links), rows)
    terms = (" ".join([row.run_id, row.strategy, row.model_id, *row.instruments]) for row in rows)
    return replace(listed, terms=tuple(terms))


def runs_document(listed: answers.Runs) -> TitledParts:
    """Return all runs and sweeps, each as a link to it, and what could not be read."""
    return TitledParts("Runs", tuple(_all(listed)))


def _all(listed: answers.Runs) -> Iterator[Part]:
    if listed.runs:
        yield _runs_table(listed.runs, _run_link("run"), *[_COMPARE] * (len(listed.runs) > 1))
    else:
        yield Paragraph("No run is recorded here.", "note")
    if listed.sweeps:
        yield Paragraph("Sweeps", "heading")
        yield table("sweeps", "", SWEEPS, listed.sweeps)
    for unread in listed.refused:
        yield Paragraph(f"{unread.database}: {unread.error}", "warning")


def beside_document(shown: ShownRun, listed: answers.Runs) -> TitledParts:
    """Return the runs that may stand beside a run, each as a link to both."""
    others = [row for row in listed.runs if row.run_id != shown.run_id]
    part: Part = Paragraph(
        'There is one run only; "tracepaper ui --db ONE --db OTHER" serves several databases.',
        "note",
    )
    if others:
        part = _runs_table(others, _run_link("run", shown.run_id, "compare"))
    name = run_name(shown.views.run()["strategy"], shown.run_id)
    return TitledParts("Compare", (Paragraph(f"Choose what stands beside {name}.", "lead"), part))


# ---------------------------------------------------------------- a fleet


def _held(of: FleetRun) -> str:
    held = (
        f"{position.instrument} {position.quantity}, unrealized "
        f"{float(position.unrealized_pnl):,.2f}".replace("-", "\N{MINUS SIGN}")
        for position in of.positions
    )
    return "; ".join(held) or "flat"


FLEET: Final = (
    Figure["FleetRun"](
        "run",
        "run",
        "text",
        lambda of: Link(of.run_id, address("fleet", of.database_id, of.run_id)),
    ),
    of_field("host", "host", "text"),
    of_field("file", "file", "text"),
    Figure["FleetRun"](
        "strategy", "strategy", "text", lambda of: f"{of.strategy.rpartition(':')[2]}, {of.kind}"
    ),
    of_field("health", "health", "text"),
    of_field("steps", "steps", "count"),
    Figure["FleetRun"](
        "lag",
        "lag",
        "exact",
        lambda of: f"{of.lag_steps:,} in {of.lag_s:.1f} s" if of.lag_steps else "0",
    ),
    Figure["FleetRun"](
        "equity", "equity", "money", lambda of: None if of.equity is None else float(of.equity)
    ),
    Figure("positions", "positions", "text", _held),
    of_field("last decision", "last decision", "text", "last_decision"),
    Figure["FleetRun"](
        "alarms", "alarms", "alarm", lambda of: " ".join(f"alarm: {alarm}" for alarm in of.alarms)
    ),
)


def fleet_document(fleet: FleetSource, error: str | None) -> TitledParts:
    """Return what the server of *fleet* said last, and the *error* of one that cannot be asked."""
    return TitledParts("Fleet", tuple(_fleet(fleet, error)))


def _fleet(fleet: FleetSource, error: str | None) -> Iterator[Part]:
    as_of_ms = fleet.as_of_ms
    at = "never read" if as_of_ms is None else f"as of {written(as_of_ms, 'second')} UTC"
    if error is not None:
        rows = f" The rows are {at}; they go on by themselves." if as_of_ms else ""
        yield Paragraph(f"{error}{rows}", "warning")
    alarmed = sum(bool(run.alarms) for run in fleet.runs)
    state = f"{alarmed:,} with an alarm" if alarmed else "no alarm"
    yield Paragraph(f"{count_of(len(fleet.runs), 'run')}, {state}; {fleet.server}, {at}", "lead")
    if fleet.runs:
        yield table("fleet", "", FLEET, fleet.runs)
    elif as_of_ms is not None:
        yield Paragraph("The fleet holds no run yet; tracepaper db ship brings the first.", "note")
