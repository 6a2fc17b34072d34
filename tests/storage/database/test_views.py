"""The stable views: documented as they are, exact in text, and true to the steps."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import storage_cases as cases
from builders import START_MS, present
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.database.view_columns import iso, real, text
from tracepaper.storage.database.views import VIEWS
from tracepaper.strategies.types.decisions import (
    Fill,
    Forecast,
    LimitBreach,
    Order,
    OrderStatus,
    Step,
)
from tracepaper.strategies.types.market import Bar, Command, CommandKind, Gap, Side

PLAIN = cases.plain_steps(120)
RICH = cases.rich_steps()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path = tmp_path_factory.mktemp("views") / "a.db"
    cases.write_run(path, RICH, of=cases.run("rich"))
    cases.write_run(path, PLAIN, of=cases.run("plain"))
    connection = open_reader(path)
    connection.row_factory = sqlite3.Row
    yield connection
    connection.close()


def ask(database: sqlite3.Connection, sql: str, *parameters: object) -> list[dict[str, Any]]:
    return [dict(row) for row in database.execute(sql, parameters)]


def of_run(database: sqlite3.Connection, view: str, run_id: str) -> list[dict[str, Any]]:
    return ask(database, f"SELECT * FROM {view} WHERE run_id = ? ORDER BY sequence", run_id)


def scaled(number: int, decimals: int) -> str:
    """Return *number* of 10^-decimals as exact text."""
    return f"{Decimal(number).scaleb(-decimals):.{decimals}f}"


def iso_of(ms: int) -> str:
    at = datetime.fromtimestamp(ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def test_every_time_has_its_iso_text_beside_it() -> None:
    for view in VIEWS:
        names = [column.name for column in view.columns]
        for name in names:
            if name.endswith("_ms") and name not in {"interval_ms", "late_deadline_ms"}:
                assert f"{name.removesuffix('_ms')}_iso" in names, (view.name, name)


@settings(max_examples=300, deadline=None)
@given(st.integers(-(2**63) + 1, 2**63 - 1), st.integers(0, 18))
def test_numbers_are_exact_in_text_and_nearest_in_real(number: int, decimals: int) -> None:
    connection = sqlite3.connect(":memory:")
    (exact, nearest) = connection.execute(
        f"SELECT {text('n', 'd')}, {real('n', 'd')} FROM (SELECT ? AS n, ? AS d)",
        (number, decimals),
    ).fetchone()
    connection.close()
    assert exact == scaled(number, decimals)
    assert nearest == pytest.approx(float(Decimal(number).scaleb(-decimals)), rel=1e-15)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 4_102_444_800_000))
def test_times_are_exact_to_the_millisecond(ms: int) -> None:
    connection = sqlite3.connect(":memory:")
    (printed,) = connection.execute(f"SELECT {iso('t')} FROM (SELECT ? AS t)", (ms,)).fetchone()
    connection.close()
    assert printed == iso_of(ms)


def test_null_stays_null() -> None:
    connection = sqlite3.connect(":memory:")
    row = connection.execute(
        f"SELECT {text('n', '2')}, {real('n', '2')}, {iso('n')} FROM (SELECT NULL AS n)"
    ).fetchone()
    connection.close()
    assert row == (None, None, None)


def test_runs_tell_what_they_are(database: sqlite3.Connection) -> None:
    rich, plain = ask(database, "SELECT * FROM v_runs")
    assert rich["instruments"] == f"{cases.BTC.id},{cases.ETH.id}"
    assert (plain["run_id"], plain["kind"], plain["interval"]) == ("plain", "replay", "1")
    assert plain["started_ms"] == cases.run().started_at_ms
    assert plain["started_iso"] == iso_of(cases.run().started_at_ms)
    assert plain["step_count"] == len(PLAIN)
    query = "SELECT lower(hex(digest)) AS digest FROM commits WHERE last_sequence = 119"
    (last,) = ask(database, query)
    assert plain["head_digest"] == last["digest"]


def test_bars_are_as_the_engine_saw_them(database: sqlite3.Connection) -> None:
    steps = [step for step in RICH if isinstance(step.event, Bar)]
    for row, step in zip(of_run(database, "v_bars", "rich"), steps, strict=True):
        bar = step.event
        assert isinstance(bar, Bar)
        of = cases.BTC if bar.instrument == cases.BTC.id else cases.ETH
        assert row["instrument"] == bar.instrument
        assert row["close_text"] == scaled(bar.close, of.price_decimals)
        assert row["close"] == pytest.approx(float(row["close_text"]), rel=1e-15)
        assert row["volume_text"] == scaled(bar.volume, of.volume_decimals)
        assert (row["turnover"] is None) is (bar.turnover is None)
        assert (row["market_ms"], row["seen_ms"]) == (bar.market_ms, bar.seen_ms)
        assert (row["source"], row["accepted"]) == (bar.source.value, int(step.accepted))


def test_every_event_is_in_v_events_once(database: sqlite3.Connection) -> None:
    rows = of_run(database, "v_events", "rich")
    halts = [row for row in rows if row["kind"] == "halted"]
    rows = [row for row in rows if row["kind"] != "halted"]
    halted = {step.sequence: step.halted for step in RICH if step.halted is not None}
    assert {row["sequence"]: LimitBreach(**json.loads(row["content"])) for row in halts} == halted
    assert [row["sequence"] for row in rows] == list(range(len(RICH)))
    for row, step in zip(rows, RICH, strict=True):
        event = step.event
        assert (row["market_ms"], row["seen_ms"]) == (event.market_ms, event.seen_ms)
        content = json.loads(row["content"])
        names = set(event.__struct_fields__) - {"market_ms", "seen_ms", "interval_ms", "books"}
        assert set(content) | {"instrument"} >= names


def test_decisions_tell_forecast_and_reason(database: sqlite3.Connection) -> None:
    steps = [step for step in RICH if step.decision is not None]
    rows = of_run(database, "v_decisions", "rich")
    for row, step in zip(rows, steps, strict=True):
        assert step.decision is not None
        assert row["sequence"] == step.sequence
        assert row["action"] == step.decision.action
        assert row["refused_by"] == step.decision.refused_by
        assert row["regime"] == step.decision.regime
        if isinstance(step.prediction, Forecast):
            at = step.prediction.horizons.index(30)
            assert row["horizon"] == 30
            assert row["mean_return"] == step.prediction.mean_return[at]
            assert row["volatility"] == step.prediction.volatility[at]
            assert (
                row["confidence_entropy"] == present(step.prediction.explanation).confidence_entropy
            )
        else:
            assert row["mean_return"] is None
            assert row["late_deadline_ms"] == 1_000


def test_every_gate_of_every_decision_has_one_row(database: sqlite3.Connection) -> None:
    for run_id, steps in (("rich", RICH), ("plain", PLAIN)):
        expected = [
            (step.sequence, gate, measure, threshold, step.decision.passed >> place & 1)
            for step in steps
            if step.decision is not None
            for place, (gate, measure, threshold) in enumerate(
                zip(
                    step.decision.gate_set.gates,
                    step.decision.measures,
                    step.decision.gate_set.thresholds,
                    strict=True,
                )
            )
        ]
        rows = ask(
            database,
            "SELECT sequence, gate, measure, threshold, passed FROM v_gates "
            "WHERE run_id = ? ORDER BY sequence, ordinal",
            run_id,
        )
        assert [tuple(row.values()) for row in rows] == expected


def test_explanations_sum_to_one_and_cover_time_without_a_hole(
    database: sqlite3.Connection,
) -> None:
    explained = [
        step
        for step in RICH
        if isinstance(step.prediction, Forecast) and isinstance(step.event, Bar)
    ]
    assert explained
    for step in explained:
        rows = ask(
            database,
            "SELECT * FROM v_explanations WHERE run_id = 'rich' AND sequence = ? "
            "ORDER BY until_open_time_ms DESC",
            step.sequence,
        )
        assert [row["bucket"] for row in rows] == ["0", "1", "2", "older"]
        assert sum(row["weight"] for row in rows) == 1.0
        assert isinstance(step.event, Bar)
        assert rows[0]["until_open_time_ms"] == step.event.close_time_ms
        for newer, older in pairwise(rows):
            assert newer["from_open_time_ms"] == older["until_open_time_ms"]
        assert isinstance(step.prediction, Forecast)
        looks = step.prediction.explanation
        assert looks is not None
        for row in rows:
            assert row["rollout_entropy"] == looks.rollout_entropy
            assert row["confidence_entropy"] == looks.confidence_entropy
        assert rows[0]["from_open_time_ms"] % (64 * step.event.interval_ms) == 0


def money(steps: list[Step], database: sqlite3.Connection, run_id: str) -> None:
    rows = of_run(database, "v_equity", run_id)
    for row, step in zip(rows, steps, strict=True):
        account = step.account
        for name in ("cash", "equity", "realized_pnl", "unrealized_pnl", "fees_paid"):
            assert row[f"{name}_text"] == scaled(getattr(account, name), 8), name
            exact = float(Decimal(getattr(account, name)).scaleb(-8))
            assert row[name] == pytest.approx(exact, rel=1e-15, abs=1e-25)


def test_equity_is_the_account_after_every_step(database: sqlite3.Connection) -> None:
    money(RICH, database, "rich")
    money(PLAIN, database, "plain")


def test_positions_are_the_positions_after_every_step(database: sqlite3.Connection) -> None:
    held = [step for step in PLAIN if step.position is not None]
    for row, step in zip(of_run(database, "v_positions", "plain"), held, strict=True):
        position = present(step.position)
        assert row["quantity_text"] == scaled(position.quantity, 3)
        assert row["unrealized_pnl_text"] == scaled(position.unrealized_pnl, 8)
        if position.quantity:
            assert row["average_price"] == position.entry_notional / 1e8 / (position.quantity / 1e3)
            assert row["average_price_text"] == scaled(position.entry_notional // 10**6, 2)
        else:
            assert row["average_price"] is None
            assert row["average_price_text"] is None


def test_an_average_price_that_is_no_decimal_has_no_text(tmp_path: Path) -> None:
    step = PLAIN[15]
    assert step.position is not None
    position = replace(step.position, quantity=3_000, entry_notional=10**12 + 1)
    cases.write_run(tmp_path / "a.db", [replace(step, sequence=0, position=position)])
    connection = open_reader(tmp_path / "a.db")
    row = connection.execute(
        "SELECT average_price, average_price_text, entry_notional_text FROM v_positions"
    ).fetchone()
    connection.close()
    assert row == (pytest.approx(10_000 / 3), None, "10000.00000001")


def test_fills_carry_exact_money_and_the_state_of_their_order(database: sqlite3.Connection) -> None:
    filled: list[tuple[int, Fill]] = [
        (step.sequence, fill) for step in PLAIN for fill in step.fills
    ]
    rows = of_run(database, "v_fills", "plain")
    for row, (sequence, fill) in zip(rows, filled, strict=True):
        assert (row["sequence"], row["order_id"]) == (sequence, fill.order_id)
        assert row["price_text"] == scaled(fill.price, 2)
        assert row["fee_text"] == scaled(fill.fee, 8)
        assert row["notional_text"] == scaled(fill.notional, 8)
        assert (row["side"], row["liquidity"], row["status"]) == (fill.side, "TAKER", "FILLED")


def test_orders_show_their_last_state_and_what_filled_them(database: sqlite3.Connection) -> None:
    latest: dict[str, tuple[int, Order]] = {}
    filled: dict[str, Fill] = {}
    for step in PLAIN:
        latest.update({order.order_id: (step.sequence, order) for order in step.orders})
        filled.update({fill.order_id: fill for fill in step.fills})
    rows = {row["order_id"]: row for row in of_run(database, "v_orders", "plain")}
    assert set(rows) == set(latest)
    for name, (sequence, order) in latest.items():
        row = rows[name]
        assert (row["sequence"], row["status"]) == (sequence, order.status.value)
        assert row["quantity_text"] == "1.000"
        if order.status is OrderStatus.FILLED:
            assert row["price_text"] == scaled(filled[name].price, 2)
            assert row["price"] == pytest.approx(filled[name].price / 100, rel=1e-15)
            assert row["fee_text"] == scaled(filled[name].fee, 8)
        else:
            assert (row["price"], row["price_text"], row["fee"]) == (None, None, None)


def test_shadows_have_their_own_fills_and_equity(database: sqlite3.Connection) -> None:
    expected = [
        (step.sequence, shadow.shadow, scaled(shadow.account.equity, 8))
        for step in RICH
        for shadow in step.shadows
    ]
    rows = ask(
        database,
        "SELECT sequence, shadow, equity_text FROM v_shadow_equity WHERE run_id = 'rich' "
        "ORDER BY sequence, shadow DESC",
    )
    assert [tuple(row.values()) for row in rows] == expected
    fills = [
        (step.sequence, shadow.shadow, scaled(fill.price, 2))
        for step in RICH
        for shadow in step.shadows
        for fill in shadow.fills
    ]
    rows = ask(
        database,
        "SELECT sequence, shadow, price_text FROM v_shadow_fills WHERE run_id = 'rich' ORDER BY 1",
    )
    assert [tuple(row.values()) for row in rows] == fills


def test_gaps_name_cause_and_repair(database: sqlite3.Connection) -> None:
    (row,) = of_run(database, "v_gaps", "rich")
    (gap,) = (step.event for step in RICH if isinstance(step.event, Gap))
    assert (row["from_ms"], row["until_ms"]) == (gap.from_ms, gap.until_ms)
    assert (row["cause"], row["repaired_by"]) == (gap.cause.value, "rest")
    assert row["from_iso"] == iso_of(gap.from_ms)


def test_the_views_tell_runs_apart(database: sqlite3.Connection) -> None:
    for view in VIEWS:
        if view.name == "v_runs":
            continue
        total = ask(database, f"SELECT count(*) AS n FROM {view.name}")[0]["n"]
        each = ask(database, f"SELECT run_id, count(*) AS n FROM {view.name} GROUP BY run_id")
        assert sum(row["n"] for row in each) == total
        for row in each:
            assert len(of_run(database, view.name, row["run_id"])) == row["n"]


def test_orders_and_fills_name_the_decision_that_caused_them_and_no_command(tmp_path: Path) -> None:
    steps = list(cases.plain_steps(60))
    flatten = Command(CommandKind.FLATTEN, "enough", steps[30].event.market_ms, START_MS)
    born = cases.order("30-0", Side.SELL, OrderStatus.ACCEPTED, START_MS)
    steps[30] = replace(cases.undecided(30, flatten), orders=(born,))
    filled = cases.order("30-0", Side.SELL, OrderStatus.FILLED, START_MS)
    fill = cases.market_fill("30-0", Side.SELL, 10_000, START_MS)
    steps[31] = replace(steps[31], orders=(filled,), fills=(fill,))
    taken_over = cases.market_fill("45-0", Side.SELL, 10_000, START_MS)
    steps[2] = replace(
        steps[2],
        orders=(cases.order("45-0", Side.SELL, OrderStatus.FILLED, START_MS),),
        fills=(taken_over,),
    )
    path = tmp_path / "a.db"
    cases.write_run(path, steps)
    reader = open_reader(path)
    orders = dict(reader.execute("SELECT order_id, decision_sequence FROM v_orders"))
    fills = dict(reader.execute("SELECT order_id, decision_sequence FROM v_fills"))
    joined = reader.execute(
        "SELECT count(*) FROM v_fills f JOIN v_decisions d "
        "ON d.run_id = f.run_id AND d.sequence = f.decision_sequence"
    ).fetchone()
    reader.close()
    caused = {name: int(name.partition("-")[0]) for name in orders}
    assert orders == {**caused, "30-0": None, "45-0": None}
    assert fills == {name: orders[name] for name in fills}
    assert joined == (len(fills) - 2,)


def test_a_note_is_a_row_for_each_number_and_text_in_its_order(
    database: sqlite3.Connection,
) -> None:
    notes = of_run(database, "v_notes", "rich")
    step = next(step for step in RICH if step.decision is not None and step.decision.note)
    rows = [row for row in notes if row["sequence"] == step.sequence]
    assert [(row["name"], row["number"], row["text"]) for row in rows] == [
        ("rsi", 27.3, None),
        ("why", None, 'it\'s "low"'),
        ("ratio", None, None),
    ]
    assert {row["open_time_ms"] for row in rows} == {step.event.open_time_ms}  # type: ignore[union-attr]
    assert of_run(database, "v_notes", "plain") == []
