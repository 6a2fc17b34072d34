"""The why card, ``explain`` and ``report`` say since when decisions are dated by a witness."""

from __future__ import annotations

from pathlib import Path

from page_cases import shown_of
from witnessed import WITNESS, witnessed

from tracepaper.replay.explain.decision_document import read_decision
from tracepaper.replay.page import decisions
from tracepaper.replay.report.report import build_report

FIRST_CLOSE_S = 1_700_006_460


def test_a_date_is_that_of_the_first_note_and_counts_if_the_forecast_had_not_ended(
    tmp_path: Path,
) -> None:
    case = witnessed(tmp_path, bars=20)
    run_id, log, shown = case.runs[0], case.extend(), shown_of(case.database)
    assert read_decision(case.database, run_id, 7)[0].witnessed == ""
    at_s = FIRST_CLOSE_S + 7 * 60  # as the bar after step 7 closes
    for later_s in (0, 9_000):
        assert case.submit(log, at_s + later_s, old=22 if later_s else 0).status == 200
        log.append([(1, 22 + bool(later_s), 22 + bool(later_s), b"n" * 32)])
    for undated in (23, 24):  # without a note, and without a leaf
        assert log.sentence(1, undated, 0, "") == "No witness has dated this decision yet."
    for sequence, when in ((7, "after"), (8, "before")):
        sentence = read_decision(case.database, run_id, sequence)[0].witnessed
        assert sentence == (
            f"In the log before 2023-11-15 00:08:00 UTC by the clock of {WITNESS}, {when} the "
            "next bar's close."
        )
        card = decisions.decision(shown, sequence)
        assert sentence in [part["text"] for part in card.parts if part["kind"] == "paragraph"]
    (share,) = [text for text in build_report(case.database, run_id).sentences if "dated" in text]
    assert share.startswith("Witnesses dated 65.0 % of its decisions before the next bar's close")
