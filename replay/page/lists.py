"""Lists as documents: all runs and sweeps, the runs to compare with one."""

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
    table_of,
)
from tracepaper.replay.page import answers
from tracepaper.strategies.units import interval_text

if TYPE_CHECKING:
    from tracepaper.replay.page.databases import OpenRun

SYMBOLS_SHOWN: Final = 3
RUNS: Final[dict[str, Form]] = {
    "kind": "text", "symbols": "text", "bars": "text", "from": "minute", "until": "minute",
    "decisions": "count", "fills": "count", "equity": "money", "return": "gain percent",
    "database": "text",
}  # fmt: skip
SWEEPS: Final[dict[str, Form]] = {
    "sweep": "text", "objective": "text", "runs": "count", "state": "text", "database": "text",
}  # fmt: skip


def address(*names: str) -> str:
    """Return the page's address of *names*, such as ``#/run/ID``."""
    return "#/" + "/".join(quote(name, safe="") for name in names)


def run_name(strategy: str, run_id: str) -> str:
    """Return a short name of a run: its strategy and the beginning of its id."""
    return f"{strategy.rpartition(':')[2]} {run_id[:8]}"


def runs_document(listed: answers.Runs) -> TitledParts:
    """Return all runs and sweeps as links, and the databases that could not be read."""
    parts: list[Part] = [Paragraph("No run is recorded here.", "note")]
    if listed.runs:
        parts = [_runs_table(listed.runs, are_compared=len(listed.runs) > 1)]
    if listed.sweeps:
        rows = [
            (
                Link(run_name(sweep.strategy, sweep.sweep_id), address("sweep", sweep.sweep_id)),
                *(sweep.objective, sweep.cells),
                *("complete" if sweep.is_whole else "not finished", sweep.database),
            )
            for sweep in listed.sweeps
        ]
        parts += [Paragraph("Sweeps", "heading"), table_of("sweeps", "", SWEEPS, rows)]
    parts += [Paragraph(f"{each.database}: {each.error}", "warning") for each in listed.refused]
    return TitledParts("Runs", tuple(parts))


def beside_document(shown: OpenRun, listed: answers.Runs) -> TitledParts:
    """Return the runs to compare with a run, each as a link to the comparison."""
    others = [row for row in listed.runs if row.run_id != shown.run_id]
    lead = f"Choose a run to compare with {run_name(shown.views.run()['strategy'], shown.run_id)}."
    alone = 'There is only one run; "tracepaper ui --db ONE --db OTHER" serves several databases.'
    part = _runs_table(others, shown.run_id, "compare") if others else Paragraph(alone, "note")
    return TitledParts("Compare", (Paragraph(lead, "lead"), part))


def _runs_table(runs: Iterable[answers.RunRow], *path: str, are_compared: bool = False) -> Table:
    """Return *runs* as a table with a filter, each as a link to its address below *path*."""
    rows, terms = [], []
    for run in runs:
        links = [Link(run_name(run.strategy, run.run_id), address("run", *path, run.run_id))]
        links += [Link("compare", address("run", run.run_id, "compare"))] * are_compared
        symbols = [name.rpartition(":")[2] for name in run.instruments]
        more = len(symbols) - SYMBOLS_SHOWN
        row = (
            ", ".join([run.kind, *["running"] * run.is_served, *filter(None, [run.state])]),
            ", ".join(symbols[:SYMBOLS_SHOWN]) + f" +{more}" * (more > 0),
            *(interval_text(run.interval_ms), run.first_ms, run.last_ms, run.decisions, run.fills),
            *(run.equity, run.total_return, run.database),
        )
        rows.append((*links, *row))
        terms.append(" ".join([run.run_id, run.strategy, run.model_id, *run.instruments]))
    names = ("run", "")[: 1 + are_compared]
    listed = table_of("runs", "", {**dict.fromkeys(names, "text"), **RUNS}, rows)
    return replace(listed, terms=tuple(terms))
