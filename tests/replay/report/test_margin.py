"""Margin in the report's account table: what the view of positions says of the last step."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from pages import said_in
from report_cases import BTC, cross, replayed

from tracepaper.daemon.cli import invoke
from tracepaper.replay.api import Backtest
from tracepaper.replay.sweep.space import FIGURES

MARGIN = '\nmargin = "isolated"\nleverage = "10"\n'


@pytest.mark.parametrize(("config", "held"), [(cross() + MARGIN, True), (cross(), False)])
def test_the_account_says_margin_leverage_and_liquidation_price(
    config: str, held: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = replayed(tmp_path, config, "--data", BTC, "--to", "2025-05-04T18:00")
    query = "SELECT margin, liquidation_price_text FROM v_positions ORDER BY sequence DESC LIMIT 1"
    with closing(sqlite3.connect(database)) as connection:
        ((margin, price),) = connection.execute(query).fetchall()
    assert (margin is not None) is held
    capsys.readouterr()
    page = tmp_path / "run.html"
    assert invoke(["report", "--db", str(database), "--json", "--html", str(page)]) == 0
    own, *others = json.loads(capsys.readouterr().out)["accounts"]
    leverage = 10.0 if held else None
    assert (own["margin_used"], own["leverage"], own["liquidation_price"]) == (
        margin,
        leverage,
        price,
    )
    assert all(of["margin_used"] is None for of in others)
    with closing(sqlite3.connect(database)) as connection:
        ((run_id,),) = connection.execute("SELECT run_id FROM v_runs").fetchall()
    assert Backtest(database, run_id).summary["end"] == own["end"]
    assert "liquidation_price" not in FIGURES, "no sweep is judged by it"
    assert invoke(["report", "--db", str(database)]) == 0
    shown = capsys.readouterr().out
    assert ("liquidated at" in shown) is held
    assert ("liquidated at" in said_in(page)) is held
