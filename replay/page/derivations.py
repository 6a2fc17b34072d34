"""Answers that take seconds: replays of a decision or a run, recomputed models, reports."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tracepaper.replay.checks.parity import check_of_run
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.document.values import (
    FoldedParts,
    Form,
    Paragraph,
    Part,
    TitledParts,
    table_of,
)
from tracepaper.replay.page import answers
from tracepaper.replay.page.databases import Databases, HttpRefusal, OpenRun
from tracepaper.replay.page.decisions import decision_at
from tracepaper.replay.page.records import seconds_text
from tracepaper.replay.page.runs import parity_state
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.units import count_of

if TYPE_CHECKING:
    from tracepaper.replay.report.past import ModelAnswer

Report = Callable[[float, str], None]
FEATURES_SHOWN: Final = 5


def load_libraries(databases: Databases) -> None:
    """Load the libraries for the decisions of *databases*; torch alone takes a second or two."""
    has_model = False
    for path in databases.paths:
        with contextlib.suppress(TracepaperError, sqlite3.Error):  # the first request reports it
            query = "SELECT 1 FROM v_runs WHERE model_id != ''"
            has_model |= databases.reader(path).connection.execute(query).fetchone() is not None
    if has_model:
        from tracepaper.strategies.forecasters.build import model_kinds

        model_kinds()  # loads the modules of all kinds before the first request


def verify_decision(shown: OpenRun, sequence: int, report: Report) -> TitledParts:
    """Derive one decision again from the record, and compare every stored value of its step."""
    open_ms = decision_at(shown, sequence).decision["open_time_ms"]
    began = time.perf_counter()
    opened = datetime.fromtimestamp(open_ms / 1_000, tz=UTC)
    report(0.1, f"reading the state and the bars before {opened:%H:%M} UTC from the record")

    def progressed(done: int, total: int) -> None:
        steps = count_of(total, "step")
        doing = f"deriving {steps} up to {opened:%H:%M} UTC, and comparing every stored value"
        report(0.5 + 0.5 * done / max(total, 1), doing)

    verification = verify_run(
        shown.reader,
        shown.database,
        shown.run_id,
        from_ms=open_ms,
        until_ms=open_ms + 1,
        probes=False,  # they double the time, and no later bar is loaded
        progressed=progressed,
    )
    if not verification.passes:
        text = "no decision of the record was derived."
        for first in verification.differences[:1]:
            text = (
                f"first at {first.field}: stored {first.first}, derived {first.second}; the "
                f"culprit is {verification.to_blame or 'not known'}."
            )
        return TitledParts("✗ Differs", (Paragraph(text, "warning"),))
    duration = seconds_text(time.perf_counter() - began)
    precision = "to the last bit"
    if verification.tolerated or not verification.exact:
        precision = f"floats within tolerances, since {verification.elsewhere}"
    text = f"derived again from the record in {duration}: the same decision, {precision}."
    return TitledParts("✓ Same", (Paragraph(text),))


def nearest_of(shown: OpenRun, sequence: int) -> TitledParts:
    """Return the smallest changes with which a decision that did not trade would have traded."""
    from tracepaper.replay.checks.nearest_change import nearest_changes
    from tracepaper.replay.explain.decision_document import nearest_parts

    decision_at(shown, sequence)  # rejects a sequence that is no decision
    nearest = nearest_changes(shown.database, shown.run_id, sequence)
    return TitledParts("What would have traded", tuple(nearest_parts(nearest)))


def verify(shown: OpenRun, report: Report) -> answers.ParityState:
    """Derive the whole run again; return the result in the form of the daily replay."""

    def progressed(done: int, total: int) -> None:
        report(done / max(total, 1), f"{done:,} of {total:,} steps derived again")

    totals = shown.rollups.known_totals()
    count = "every decision" if totals is None else count_of(totals.decisions, "decision")
    report(0.0, f"deriving {count} again")
    verification = verify_run(shown.reader, shown.database, shown.run_id, progressed=progressed)
    newest = shown.views.rows("v_events", newest=1)
    at_ms = newest[0]["market_ms"] if newest else 0
    return parity_state(check_of_run(shown.reader, verification), at_ms)


def report_of(shown: OpenRun) -> TitledParts:
    """Return the report of the run, of the newest that of its account, as in ``report --html``."""
    from tracepaper.replay.report.account import account_in
    from tracepaper.replay.report.document import report_document
    from tracepaper.replay.report.report import build_report

    account = account_in(shown.database, shown.run_id)
    return report_document(build_report(shown.database, shown.run_id, account=account))


def what_if_of(shown: OpenRun, changes: str, drop: str, from_ms: int | None) -> TitledParts:
    """Return the report of ``whatif`` on the run with a change."""
    from tracepaper.daemon.config.loading import settings_of
    from tracepaper.replay.checks.changed_run import changed_run
    from tracepaper.replay.checks.what_if import what_if, what_if_document

    changed = changed_run(
        shown.reader,
        shown.database,
        shown.run_id,
        changes=settings_of([text for text in changes.split(";") if text]),
        drop_gates=[name for name in drop.split(",") if name],
        from_ms=from_ms,
    )
    return what_if_document(what_if(changed))


def ask(shown: OpenRun, sequence: int, report: Report) -> TitledParts:
    """Ask the run's model again about one decision; the document has all of ``explain --full``."""
    from tracepaper.replay.explain.options import ModelRequest
    from tracepaper.replay.explain.recomputed import ask_again

    stored = decision_at(shown, sequence)
    if not shown.views.run()["model_id"]:
        raise HttpRefusal(409, "This run uses no model, so there is nothing to ask.")
    report(0.05, "loading the model and the bars before the decision")
    shares = iter((0.35, 0.5, 0.65))
    recomputed = ask_again(
        shown.database,
        shown.run_id,
        sequence,
        stored,
        ModelRequest(full=True),
        begins=lambda doing: report(next(shares), doing),
    )
    return TitledParts(
        "Recomputed by the model",
        (
            *_added(recomputed),
            FoldedParts(
                "The full output of explain --full",
                tuple(part for answer in recomputed for part in answer.parts()),
            ),
        ),
    )


def _added(recomputed: Sequence[ModelAnswer]) -> Iterator[Part]:
    """Yield the contribution of each feature to the mean, the largest first.

    In an ensemble the mean is the network's, whose answer is the first.
    """
    features = next((list(answer.added) for answer in recomputed if answer.added), [])
    if features:
        features.sort(key=lambda feature: -abs(feature[1]))
        forms: dict[str, Form] = {"feature": "text", "added": "points"}
        added = table_of("features", "What each feature added", forms, features)
        shown = min(FEATURES_SHOWN, len(features))
        aside = f"bp, {shown} of {len(features)}"
        yield replace(added, look="balance", shown=shown, aside=aside)
