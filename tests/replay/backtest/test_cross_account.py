"""Whole runs on cross margin: what their record and their report show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recordings import record
from records import check_record, rows
from scenarios import SCENARIOS

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load

CROSS = SCENARIOS["cross margin"]
LIQUIDATED = "model = 'liquidation'"


def test_the_report_and_the_shadow_accounts_know_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, sections = tmp_path / "a.db", dict(CROSS.sections())
    sections["strategy"] = {**sections["strategy"], "twins": ["buy_and_hold", "random_gate"]}
    record(path, load(None, sections), CROSS.candles())
    check_record(path)
    assert rows(path, f"SELECT count(*) FROM v_twin_fills WHERE {LIQUIDATED}")[0][0] > 0
    capsys.readouterr()
    assert invoke(["report", "--db", str(path), "--json"]) == 0
    own, *_ = json.loads(capsys.readouterr().out)["accounts"]
    assert own["end"] >= 0
    assert own["liquidation_price"] is None


def test_on_spot_it_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "a.toml"
    config.write_text('[market]\ncategory = "spot"\n[account]\nmargin = "cross"\n')
    assert invoke(["config", "check", "--config", str(config)]) != 0
    said = capsys.readouterr().err
    assert "margin is for linear positions" in said
    config.write_text('[account]\nmargin = "crossed"\n')
    assert invoke(["config", "check", "--config", str(config)]) != 0
    assert "write one of none, isolated, cross." in capsys.readouterr().err
