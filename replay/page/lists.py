"""Lists as documents: every run and sweep, the runs beside one, and the runs of a fleet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from tracepaper.replay.document.values import (
    Form,
    Link,
    Paragraph,
    Part,
    Table,
    TitledParts,
    Value,
    table_of,
    written,
)
from tracepaper.replay.page import answers
from tracepaper.strategies.units import count_of, interval_text

if TYPE_CHECKING:
    from tracepaper.replay.page.databases import FleetSource, ShownRun
    from tracepaper.storage.fleet.overview import FleetRun

SYMBOLS_SHOWN: Final = 3
RUNS: Final[dict[str, Form]] = {
    "kind": "text", "symbols": "text", "bars": "text", "from": "minute", "until": "minute",
    "decisions": "count", "fills": "count", "equity": "money", "return": "gain percent",
    "database": "text",
}  # fmt: skip
SWEEPS: Final[dict[str, Form]] = {
    "sweep": "text", "objective": "text", "runs": "count", "state": "text", "database": "text",
}  # fmt: skip
FLEET: Final[dict[str, Form]] = {
    "run": "text", "host": "text", "file": "text", "strategy": "text", "health": "text",
    "steps": "count", "lag": "exact", "equity": "money", "positions": "text",
    "last decision": "text", "alarms": "alarm",
}  # fmt: skip


def address(*names: str) -> str:
    """Return the page's address of *names*, such as ``#/run/ID``."""
    return "#/" + "/".join(quote(name, safe="") for name in names)


def run_name(strategy: str, run_id: str) -> str:
    """Return how people tell a run from others: its strategy, and the beginning of its id."""
    return f"{strategy.rpartition(':')[2]} {run_id[:8]}"


def runs_document(listed: answers.Runs) -> TitledParts:
    """Return all runs and sweeps, each as a link to it, and what could not be read."""
    parts: list[Part] = [Paragraph("No run is recorded here.", "note")]
    if listed.runs:
        parts = [_runs_table(listed.runs, are_compared=len(listed.runs) > 1)]
    if listed.sweeps:
        rows = [
            (
                Link(run_name(of.strategy, of.sweep_id), address("sweep", of.sweep_id)),
                *(of.objective, of.cells, "whole" if of.is_whole else "not finished", of.database),
            )
            for of in listed.sweeps
        ]
        parts += [Paragraph("Sweeps", "heading"), table_of("sweeps", "", SWEEPS, rows)]
    parts += [Paragraph(f"{of.database}: {of.error}", "warning") for of in listed.refused]
    return TitledParts("Runs", tuple(parts))


def beside_document(shown: ShownRun, listed: answers.Runs) -> TitledParts:
    """Return the runs that may stand beside a run, each as a link to both."""
    others = [row for row in listed.runs if row.run_id != shown.run_id]
    lead = f"Choose what stands beside {run_name(shown.views.run()['strategy'], shown.run_id)}."
    alone = 'There is one run only; "tracepaper ui --db ONE --db OTHER" serves several databases.'
    part = _runs_table(others, shown.run_id, "compare") if others else Paragraph(alone, "note")
    return TitledParts("Compare", (Paragraph(lead, "lead"), part))


def _runs_table(runs: Iterable[answers.RunRow], *path: str, are_compared: bool = False) -> Table:
    """Return *runs* as a table that may be filtered, each as a link to it at the end of *path*."""
    rows, terms = [], []
    for of in runs:
        links = [Link(run_name(of.strategy, of.run_id), address("run", *path, of.run_id))]
        links += [Link("compare", address("run", of.run_id, "compare"))] * are_compared
        symbols = [name.rpartition(":")[2] for name in of.instruments]
        more = len(symbols) - SYMBOLS_SHOWN
        row = (
            ", ".join([of.kind, *["running"] * of.is_served, *filter(None, [of.state])]),
            ", ".join(symbols[:SYMBOLS_SHOWN]) + f" +{more}" * (more > 0),
            *(interval_text(of.interval_ms), of.first_ms, of.last_ms, of.decisions, of.fills),
            *(of.equity, of.total_return, of.database),
        )
        rows.append((*links, *row))
        terms.append(" ".join([of.run_id, of.strategy, of.model_id, *of.instruments]))
    names = ("run", "")[: 1 + are_compared]
    listed = table_of("runs", "", {**dict.fromkeys(names, "text"), **RUNS}, rows)
    return replace(listed, terms=tuple(terms))


def fleet_document(fleet: FleetSource, error: str | None) -> TitledParts:
    """Return the last answer of *fleet*'s server, and the *error* of one that does not answer."""
    as_of_ms, parts = fleet.as_of_ms, list[Part]()
    at = "never read" if as_of_ms is None else f"as of {written(as_of_ms, 'second')} UTC"
    if error is not None:
        rows_are = f" The rows are {at}; they go on by themselves." if as_of_ms else ""
        parts.append(Paragraph(f"{error}{rows_are}", "warning"))
    alarmed = sum(bool(run.alarms) for run in fleet.runs)
    state = f"{alarmed:,} with an alarm" if alarmed else "no alarm"
    lead = f"{count_of(len(fleet.runs), 'run')}, {state}; {fleet.server}, {at}"
    parts.append(Paragraph(lead, "lead"))
    if fleet.runs:
        parts.append(table_of("fleet", "", FLEET, map(_fleet_row, fleet.runs)))
    elif as_of_ms is not None:
        nothing = "The fleet holds no run yet; tracepaper db ship brings the first."
        parts.append(Paragraph(nothing, "note"))
    return TitledParts("Fleet", tuple(parts))


def _fleet_row(of: FleetRun) -> tuple[Value, ...]:
    held = [
        f"{position.instrument} {position.quantity}, "
        f"unrealized {written(float(position.unrealized_pnl), 'money')}"
        for position in of.positions
    ]
    return (
        Link(of.run_id, address("fleet", of.database_id, of.run_id)),
        *(of.host, of.file, f"{of.strategy.rpartition(':')[2]}, {of.kind}", of.health, of.steps),
        f"{of.lag_steps:,} in {of.lag_s:.1f} s" if of.lag_steps else "0",
        None if of.equity is None else float(of.equity),
        "; ".join(held).replace(" -", " \N{MINUS SIGN}") or "flat",
        of.last_decision,
        " ".join(f"alarm: {alarm}" for alarm in of.alarms),
    )
