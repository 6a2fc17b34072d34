"""Whole runs on cross margin: replayed, derived again, killed, pruned, and asked for the future."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from exchange_client import candles as made_candles
from forging import rechain
from killed_replays import killed_and_resumed
from records import check_record, rows
from storage_cases import prune

from tracepaper.daemon.broker.cross_account import CALLED
from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.recorded import rerun_recorded
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import Limits, lookahead
from tracepaper.replay.checks.perturbations import Files
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.integrity import audit as audited
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.context import BarContext, Orders, Percent, Signal, buy
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action

HOUR_MS = 3_600_000
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
BARS = 160


class Rolls(Strategy):
    """Signals and orders by dice that follow from the bar, some of them under a stop."""

    warmup = 2
    sees_account = True

    def __init__(self, options: dict[str, object]) -> None:
        self._options = options

    def decide(self, context: BarContext) -> Signal | Orders:
        assert context.account is not None
        place = SYMBOLS.index(context.symbol) + 10 * len(context.account.fills)
        roll = random.Random(context.exact.open_time_ms // 1_000 + place).random()
        if roll < 0.5:
            return Signal(Action.HOLD, "dice")
        if roll < 0.6:
            return Orders((buy(1, limit=round(context.close * 0.99, 1)),), "dice")
        action = (Action.LONG, Action.SHORT, Action.LONG, Action.FLAT)[int(roll * 1_000) % 4]
        stop = Percent(30) if roll > 0.9 and action is not Action.FLAT else None
        return Signal(action, "dice", stop=stop)


def candles(count: int = BARS) -> list[Candles]:
    """Return wild walks: bars of some percent, now and then one that falls by a fifth."""
    made = []
    for seed, symbol in enumerate(SYMBOLS):
        rng, price, rows = random.Random(seed + 6), 10_000, []
        for _ in range(count):
            opened = price
            jump = rng.choice((-1, 1)) * rng.randint(0, 2_000) if rng.random() < 0.08 else 0
            close = max(opened + rng.randint(-250, 250) + jump * opened // 10_000, 500)
            high = max(opened, close) + rng.randint(0, 100)
            low = max(min(opened, close) - rng.randint(0, 100), 400)
            rows.append((opened, high, low, close, 5_000))
            price = close
        made.append(made_candles(rows, symbol=symbol, interval_ms=HOUR_MS))
    return made


def configured(**sections: dict[str, Any]) -> Config:
    given: dict[str, dict[str, Any]] = {
        "market": {"symbols": SYMBOLS, "interval": "60"},
        "strategy": {"name": f"{__name__}:Rolls"},
        "sizing": {"mode": "equity", "fraction": "6"},
        "account": {"cash": "10000", "margin": "cross", "leverage": "20"},
        "risk": {"max_daily_trades": 50, "cooldown": 2},
    }
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section}
    return load(None, given)


def replayed(path: Path, **sections: dict[str, Any]) -> str:
    log = SqlAuditLog.open(path)
    replay = build(configured(**sections), candles(), started_at_ms=0, database=path)
    run_replay(replay, log, Tally())
    log.end(1)
    log.close()
    return replay.run.run_id


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cross") / "a.db"
    replayed(path)
    return path


LIQUIDATED = "model = 'liquidation'"


def test_a_run_with_liquidations_is_derived_again(once: Path) -> None:
    taken = rows(once, f"SELECT instrument, reason FROM v_fills WHERE {LIQUIDATED}")
    assert len({key for key, _ in taken}) > 1
    assert {reason.partition(": ")[0] for _, reason in taken} == {CALLED}
    others = rows(
        once,
        "SELECT count(*) FROM v_fills f JOIN v_events e ON e.sequence = f.sequence "
        f"WHERE f.{LIQUIDATED} AND e.instrument IS NOT f.instrument",
    )
    assert others[0][0] > 0, "no price of one symbol took another away"
    check_record(once)


def test_no_step_owes_anything_and_no_position_has_a_margin_of_its_own(once: Path) -> None:
    ((least, most),) = rows(once, "SELECT min(equity), max(abs(cash)) FROM v_equity")
    assert least >= 0
    assert most > 0
    held = rows(once, "SELECT count(*), count(margin), count(liquidation_price) FROM v_positions")
    assert held[0][0] > 100
    assert held[0][1:] == (0, 0)


def test_what_was_recorded_is_run_again_with_equal_decisions(once: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.db"
    log = SqlAuditLog.open(again)
    rerun_recorded(f"{once}#last", log, again, Tally(), started_at_ms=2)
    log.end(3)
    log.close()
    for query in (
        "SELECT decision_sha256 FROM v_decisions ORDER BY sequence",
        "SELECT order_id, price, quantity FROM v_fills ORDER BY sequence, order_id",
    ):
        assert rows(again, query) == rows(once, query)


@pytest.mark.parametrize("bars", [90, 200, 330])
def test_a_run_that_is_killed_goes_on_to_the_same_end(
    once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bars: int
) -> None:
    cut = killed_and_resumed(configured(), candles(), tmp_path, monkeypatch, bars=bars)
    check_record(cut)
    for query in (
        "SELECT instrument, open_time_ms, decision_sha256 FROM v_decisions ORDER BY 2, 1",
        "SELECT instrument, price, quantity, filled_ms FROM v_fills ORDER BY filled_ms, 1, 2, 3",
        "SELECT equity_text FROM v_equity ORDER BY market_ms DESC LIMIT 1",
    ):
        assert rows(cut, query) == rows(once, query)


def test_what_a_prune_keeps_still_adds_up(once: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(once, tmp_path / "a.db"))
    (pruned,) = prune(path, keep_days=4, pruned_at_ms=5)
    assert pruned.steps > 50
    check_record(path)


def test_a_forged_liquidation_is_named(once: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(once, tmp_path / "a.db"))
    where = "WHERE step = (SELECT max(step) FROM fills WHERE model = 'liquidation')"
    with closing(sqlite3.connect(path)) as database:
        changed = database.execute(f"UPDATE fills SET quantity = quantity - 1 {where}")
        assert changed.rowcount > 0
        database.commit()
    rechain(path)
    with Reader.open(path) as reader:
        assert audited(reader.connection, reader.find("last")).problem is not None


def test_no_decision_on_cross_margin_sees_the_future() -> None:
    with FreshProcesses() as fresh:
        config = configured(
            strategy={"name": "sma_cross", "fast": 2, "slow": 5, "long_only": False}
        )
        found = lookahead(config, Files(tuple(candles(90))), fresh, Limits(probes=2))
    assert found.holds, found
    assert found.differences == []


def test_the_report_and_the_shadow_accounts_know_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.db"
    replayed(path, strategy={"twins": ["buy_and_hold", "random_gate"]})
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
    assert 'margin = "cross" is for linear positions' in said
    config.write_text('[account]\nmargin = "crossed"\n')
    assert invoke(["config", "check", "--config", str(config)]) != 0
    assert "write one of none, isolated, cross." in capsys.readouterr().err
