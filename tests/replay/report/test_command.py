"""``report``, as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_cases import document, typed

from tracepaper.replay.report.report import Report


def test_the_terminal_names_accounts_costs_and_refusals(
    attention_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = typed(capsys, "report", "last", "--db", attention_database)
    assert (code, err) == (0, "")
    for word in ("ungated", "buy and hold", "Costs", "Months", "confidence", "Regimes", "random"):
        assert word in out
    assert "predicted no momentum" not in out  # folded under one line
    assert "more to know before believing any of it: --notes" in out
    unfolded = typed(capsys, "report", "last", "--db", attention_database, "--notes")[1]
    assert "predicted no momentum" in " ".join(unfolded.split())


def test_json_is_one_document_with_the_same_figures(
    cross_database: Path, cross_report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, "report", "last", "--db", cross_database)
    own = found["accounts"][0]
    figures = cross_report.accounts[0].performance
    assert own["end"] == cross_report.accounts[0].end
    assert own["mean_day"] == {"value": figures.mean_day, "error": figures.error_day}
    assert own["sharpe"] is None
    assert "nothing is annualised" in found["notes"]["accounts"][0]
    assert len(found["trades"]["this run"]) == len(cross_report.own_trades)
    assert len(found["curves"]["times_ms"]) == len(found["curves"]["equity"]["this run"])
    assert found["random_twins"][0]["twins"] == 200
