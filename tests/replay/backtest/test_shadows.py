"""Shadow accounts that depend on the run: in record, summary and report, and after a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from pages import said_in
from programs import ROOT
from recordings import record
from records import check_record, rows
from scenarios import SCENARIOS

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load
from tracepaper.replay.api import backtest

SOL = ROOT / "tests" / "data" / "candles" / "binance_um_SOLUSDT_1m_2025-05.csv.gz"
SHADOWS = """
[strategy]
name = "sma_cross"
fast = 3
slow = 40
shadows = ["random_gate", "held"]
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shadows.toml").write_text(SHADOWS)


def test_every_shadow_is_in_the_record_the_summary_and_the_report(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert invoke(["replay", str(SOL), "-c", "shadows.toml", "--db", "run.db"]) == 0
    printed = capsys.readouterr().out
    assert "random_gate shadow" in printed
    assert "held shadow" in printed
    names = "SELECT DISTINCT shadow FROM v_shadow_fills ORDER BY 1"
    assert rows("run.db", names) == [("held",), ("random_gate",)]
    held = "SELECT count(*) FROM v_shadow_fills WHERE shadow = 'held' AND side = 'SELL'"
    assert rows("run.db", held)[0][0] < 8  # it holds
    assert invoke(["verify", "last", "--db", "run.db"]) == 0
    capsys.readouterr()
    assert invoke(["report", "last", "--db", "run.db", "--json"]) == 0
    accounts = {
        account["account"]: account for account in json.loads(capsys.readouterr().out)["accounts"]
    }
    assert {"held", "random_gate"} <= accounts.keys()


def test_a_shadow_that_does_not_exist_is_one_sentence(cli: Cli) -> None:
    Path("shadows.toml").write_text(SHADOWS.replace("random_gate", "lucky"))
    error = cli.err("replay", SOL, "-c", "shadows.toml", "--db", "run.db", code=2)
    assert error.count("\n") == 1
    assert "ungated, random_gate, held" in error


def test_buy_and_hold_at_equal_exposure_is_one_number() -> None:
    config: dict[str, Any] = {"strategy": {"shadows": ["held"]}}
    params = {"fast": 3, "slow": 40}
    end = "2025-05-05T00:00"
    with backtest("sma_cross", SOL, params=params, config=config, end=end) as with_it:
        accounts = {row["account"]: row for row in with_it.report()["accounts"]}
        assert set(accounts) == {"this run", "held", "buy and hold"}
        held, equal = accounts["held"], accounts["buy and hold"]
        assert with_it.summary["held_return"] == held["return"] != equal["return"]
        page = Path("run.html")
        with_it.report(html=page)
        assert "buy and hold at its own exposure so far" in said_in(page)
        assert held["end"] == pytest.approx(with_it.shadow_equity["equity"][-1])
        assert set(with_it.shadow_fills["shadow"]) == {"held"}
    with backtest("sma_cross", SOL, params=params, end=end) as without:
        names = [row["account"] for row in without.report()["accounts"]]
        assert len(names) == 3
        assert names[1] == "buy and hold at its own exposure"


# ---------------------------------------------------------------- cross account


CROSS = SCENARIOS["cross margin"]
LIQUIDATED = "model = 'liquidation'"


def test_the_report_and_the_shadow_accounts_know_it(tmp_path: Path, cli: Cli) -> None:
    path, sections = tmp_path / "a.db", dict(CROSS.sections())
    sections["strategy"] = {**sections["strategy"], "shadows": ["held", "random_gate"]}
    record(path, load(None, sections), CROSS.candles())
    check_record(path)
    assert rows(path, f"SELECT count(*) FROM v_shadow_fills WHERE {LIQUIDATED}")[0][0] > 0
    account, *_ = cli.json("report", "--db", path)["accounts"]
    assert account["end"] >= 0
    assert account["liquidation_price"] is None
