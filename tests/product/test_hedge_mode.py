"""Hedge mode, whole runs: recorded, verified, stopped, taken over, live, shown, mistyped."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from builders import START_MS, instrument
from drawn_actions import DRAWN as DRAWN_SIGNALS
from fakes import ManualClock
from fed_daemon import CheckedProcess as Process
from hedged_cases import MINUTE, SCRIPTED, configured
from hedged_cases import walk as events
from records import check_record

from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.session.build import margin_rules, resolved
from tracepaper.daemon.session.notices import Notices
from tracepaper.replay.document.values import Table
from tracepaper.replay.page.databases import Databases
from tracepaper.replay.page.runs import holdings
from tracepaper.replay.report.terminal import summary_document
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Funding, Mark
from tracepaper.strategies.units import unscaled

ITEM = instrument()


def hedged(execution: FillModel, seed: int = 1, **sections: Any) -> Config:
    sections.setdefault("execution", {"fill_within_ms": 60_000})
    return resolved(configured({"seed": seed}, **sections), execution)


def recorded(path: Path, execution: FillModel = FillModel.NEXT_OPEN, count: int = 60) -> Process:
    return Process(path, hedged(execution), execution).through(
        events(1, count, quotes=execution is FillModel.QUOTE, shocks=True)
    )


def test_a_record_holds_and_its_views_show_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    process = recorded(path, count=120)
    check_record(path)
    last = process.steps[-1]
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT side, quantity_text, margin, liquidation_price, realized_pnl_text, equity_text "
            "FROM v_positions WHERE sequence = (SELECT max(sequence) FROM v_positions) ORDER BY 1"
        ).fetchall()
        assert [row[0] for row in rows] == ["LONG", "SHORT"]
        for row, shadow in zip(rows, last.shadows, strict=True):
            assert round(float(row[1]) * 1_000) == shadow.position.quantity
            assert (row[2] or 0) * 10**8 == pytest.approx(shadow.position.margin, rel=1e-12)
            assert (row[3] is not None) is bool(shadow.position.quantity)
            assert float(row[4]) * 10**8 == pytest.approx(shadow.position.realized_pnl, abs=1)
            assert float(row[5]) * 10**8 == pytest.approx(last.account.equity, abs=10)
        wrong = (
            "SELECT count(*) FROM v_positions WHERE quantity <> 0 AND NOT CASE side WHEN 'LONG' "
            "THEN liquidation_price < average_price ELSE liquidation_price > average_price END"
        )
        assert connection.execute(wrong).fetchone() == (0,)
        every = connection.execute(
            "SELECT count(*), count(DISTINCT sequence) FROM v_positions"
        ).fetchone()
        assert every[0] == 2 * every[1]
        trades = connection.execute(
            "SELECT side, count(*), sum(net) FROM v_trades GROUP BY 1 ORDER BY 1"
        ).fetchall()
        assert [row[0] for row in trades] == ["LONG", "SHORT"]
        # Of a side that holds nothing at the end, the trades are all that it earned.
        flat = {step.shadow for step in last.shadows if not step.position.quantity}
        for side, _, net in trades:
            if side in flat:
                (kept,) = (step.position for step in last.shadows if step.shadow == side)
                earned = kept.realized_pnl - kept.fees_paid - kept.funding_paid
                assert net * 10**8 == pytest.approx(earned, rel=1e-9)
        sums = connection.execute(
            "SELECT position_side, sum(amount) FROM v_ledger WHERE kind <> 'opened' GROUP BY 1"
        ).fetchall()
        for side, amount in sums:
            (account,) = (step.account for step in last.shadows if step.shadow == side)
            assert amount * 10**8 == pytest.approx(account.cash - 5_000_000_000_000, abs=100)
        orders = connection.execute(
            "SELECT DISTINCT position_side FROM v_orders ORDER BY 1"
        ).fetchall()
        assert orders == [("LONG",), ("SHORT",)]
    (fills,) = (
        each
        for each in summary_document(path, process.opened.run.run_id).parts
        if isinstance(each, Table) and each.key == "fills"
    )
    assert [figure.title for figure in fills.figures][1:3] == ["side", "position"]
    newest = [fill.position_side for step in process.steps for fill in step.fills]
    assert [row["position_side"] for row in fills.records()] == newest[-len(fills.rows) :]


def test_a_one_way_run_shows_the_side_by_its_sign(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    config = resolved(
        load(None, {"strategy": {"name": DRAWN_SIGNALS, "options": {"seed": 1}}}),
        FillModel.NEXT_OPEN,
    )
    process = Process(path, config, FillModel.NEXT_OPEN).through(events(1, 60))
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT side, quantity FROM v_positions").fetchall()
        assert {row[0] for row in rows} == {"LONG", "SHORT", "FLAT"}
        for side, quantity in rows:
            assert side == ("LONG" if quantity > 0 else "SHORT" if quantity < 0 else "FLAT")
        assert len(rows) == connection.execute("SELECT count(*) FROM v_bars").fetchone()[0] + sum(
            isinstance(step.event, (Funding, Mark)) for step in process.steps
        )
        for table in ("orders", "fills", "ledger"):
            query = f"SELECT count(*) FROM {table} WHERE position_side IS NOT NULL"
            assert connection.execute(query).fetchone() == (0,)


def test_the_mode_is_switched_without_positions_and_orders_alone(tmp_path: Path) -> None:
    one_way = {"position_mode": "one_way"}
    for name, before, after in (
        ("to", hedged(FillModel.NEXT_OPEN, account=one_way), hedged(FillModel.NEXT_OPEN)),
        ("from", hedged(FillModel.NEXT_OPEN), hedged(FillModel.NEXT_OPEN, account=one_way)),
    ):
        signals = {"strategy": {"name": DRAWN_SIGNALS, "options": {"seed": 1}}}
        mode = before.model_copy(update={"strategy": load(None, signals).strategy})
        path = tmp_path / f"{name}.db"
        first = Process(path, mode, FillModel.NEXT_OPEN)
        engine = first.opened.engine
        given = events(1, 60)
        for at, event in enumerate(given):
            first.feed(event)
            if at > 10 and any(book.held(ITEM.id) for book in engine.broker.account.books):
                break
        first.stop()
        with pytest.raises(ConfigInvalid, match="in another position mode"):
            Process(path, after, FillModel.NEXT_OPEN)
        again = Process(path, mode, FillModel.NEXT_OPEN)
        assert again.opened.resumed
        again.stop()


def test_a_flat_account_is_taken_over_with_its_cash_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    says = {"says": {"5": ["LONG"], "9": ["FLAT"]}}
    before = resolved(
        configured(says, of=SCRIPTED, account={"position_mode": "one_way"}), FillModel.NEXT_OPEN
    )
    given = events(1, 14)
    first = Process(path, before, FillModel.NEXT_OPEN).through(given)
    cash = first.steps[-1].account.cash
    assert cash != 10**13
    second = Process(path, hedged(FillModel.NEXT_OPEN), FillModel.NEXT_OPEN)
    engine = second.opened.engine
    assert second.opened.run.parent_run_id == first.opened.run.run_id
    assert engine.broker.account.cash == cash
    assert sum(book.cash for book in engine.broker.account.books) == cash
    second.stop()
    third = Process(path, before, FillModel.NEXT_OPEN)  # and back, flat
    assert third.opened.engine.broker.account.cash == cash
    third.audit.close()


def test_status_page_and_notices_show_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    process = recorded(path, count=40)
    config = hedged(FillModel.NEXT_OPEN, notify={"kinds": ["fills"]})
    notices = Notices(config.notify, process.opened.run, on_breach="halt")
    noted = [(step, notice) for step in process.steps for notice in notices.of_step(step)]
    assert noted
    for step, notice in noted:
        held = {
            f"{shadow.shadow.lower()} {unscaled(abs(shadow.position.quantity), 3)} {ITEM.base_coin}"
            if shadow.position.quantity
            else "flat"
            for shadow in step.shadows
        }
        assert notice.fields["position"].partition(" from ")[0] in held
    last = process.steps[-1]
    databases = Databases([path])
    shown_run = databases.find(process.opened.run.run_id)
    shown_as = [(holding.side, float(holding.quantity_text)) for holding in holdings(shown_run)]
    assert shown_as == [
        (step.shadow if step.position.quantity else "FLAT", abs(step.position.quantity) / 1_000)
        for step in last.shadows
    ]
    monitor = Monitor(
        run=process.opened.run,
        clock=ManualClock(START_MS + 60 * MINUTE),
        margin=margin_rules(config, [ITEM]),
    )
    for step in process.steps:
        monitor.observe(step)
    sides = json.loads(json.dumps(monitor.status()))["instruments"][ITEM.id]["sides"]
    holding = next(step for step in reversed(process.steps) if step.position is not None)
    for shadow in holding.shadows:
        side = sides[shadow.shadow.lower()]
        assert side["quantity"] == unscaled(shadow.position.quantity, 3)
        assert ("liquidation_price" in side) is bool(shadow.position.quantity)
