"""The report as a document: text of the record stays text; the monthly calendar."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import storage_cases as cases
from builders import altered
from msgspec import structs
from report_cases import build_report_of

from tracepaper.replay.document.values import as_parts
from tracepaper.replay.report.document import months, report_document
from tracepaper.replay.report.report import Report

EVIL = '</script><img src="https://evil.example/x" onerror="alert(1)">'


@pytest.fixture(scope="module")
def evil_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Return a run whose free texts are all attacks."""
    path = tmp_path_factory.mktemp("evil") / "run.db"
    steps = [
        structs.replace(
            step,
            decision=step.decision and altered(step.decision, reason=EVIL),
            fills=tuple(structs.replace(fill, reason=EVIL) for fill in step.fills),
        )
        for step in cases.plain_steps(120)
    ]
    cases.write_run(path, steps, of=cases.run(strategy=EVIL, warnings=(EVIL,)))
    return build_report_of(path)


def test_text_of_the_record_stays_text(evil_report: Report) -> None:
    document = report_document(evil_report)
    assert document.title.startswith(EVIL)
    parts = json.dumps(as_parts(document.parts))
    assert json.dumps(EVIL)[1:-1] in parts


def test_a_calendar_has_a_year_a_row_and_the_year_s_return_behind_its_months(
    cross_report: Report,
) -> None:
    given = replace(cross_report, monthly=((2024, 12, 0.1), (2025, 1, -0.05), (2025, 3, 0.02)))
    table = months(given)
    assert [row[0] for row in table.rows] == ["2024", "2025"]
    assert list(table.rows[0][12:]) == pytest.approx([0.1, 0.1])
    assert table.rows[1][1:4] == (-0.05, "", 0.02)
    assert table.rows[1][13] == pytest.approx(0.95 * 1.02 - 1)
    [part] = as_parts([table])
    december, january = part["rows"][0][12], part["rows"][1][1]
    assert (december["text"], december["tint"]) == ("+10.00 %", 1.0)
    assert (january["text"], january["tint"]) == ("−5.00 %", -0.5)
    assert part["rows"][1][2] == "–"
