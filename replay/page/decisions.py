"""One decision: its place on the chart and its document."""

from __future__ import annotations

from tracepaper.replay.document.values import as_parts
from tracepaper.replay.explain.decision import StoredDecision, stored_decision
from tracepaper.replay.explain.decision_document import decision_document, realised
from tracepaper.replay.page import answers
from tracepaper.replay.page.databases import HttpRefusal, OpenRun, as_number
from tracepaper.storage.database.run_rows import WHOLE
from tracepaper.strategies.errors import DataInvalid


def decision(shown: OpenRun, sequence: int) -> answers.Decision:
    """Return one decision as stored; raise ``HttpRefusal`` if the run has no such decision."""
    stored = decision_at(shown, sequence)
    row, columns = stored.decision, shown.columns
    instrument = row["instrument"]
    place = columns.place(instrument)
    (bar,) = shown.views.rows("v_bars", sequence=sequence)
    neighbours = {
        newest: columns.rows.decided_at(span, instrument=place, newest=newest)
        for newest, span in ((True, (0, sequence - 1)), (False, (sequence + 1, WHOLE[1])))
    }
    document = decision_document(columns, stored)
    forecast = None
    if row["horizon"] is not None and row["mean_return"] is not None:
        forecast = answers.Forecast(
            row["horizon"],
            float(row["mean_return"]),
            as_number(row["stdev_return"]),
            *realised(columns, row),
        )
    return answers.Decision(
        run_id=shown.run_id,
        sequence=sequence,
        instrument=instrument,
        open_time_ms=row["open_time_ms"],
        close_time_ms=columns.times.close_ms(row["open_time_ms"]),
        close=float(bar["close"]),
        action=row["action"],
        refused_by=row["refused_by"],
        title=document.title,
        parts=as_parts(document.parts),
        forecast=forecast,
        attended=[
            answers.Bucket(block["from_open_time_ms"], block["until_open_time_ms"], block["weight"])
            for block in stored.buckets
        ],
        digest=columns.rows.digest(sequence) or "",
        previous=neighbours[True],
        following=neighbours[False],
    )


def decision_at(shown: OpenRun, sequence: int) -> StoredDecision:
    """Return the record of a decision; raise ``HttpRefusal`` where the run has none there."""
    try:
        return stored_decision(shown.reader, shown.columns, sequence)
    except DataInvalid as error:
        raise HttpRefusal(404, str(error)) from None
