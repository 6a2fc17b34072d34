"""Several strategies on one account: netted, crossed, protected, and never a unit apart."""

from __future__ import annotations

from typing import Any

import pytest
from account_laws import check_account
from builders import START_MS, bars, explanation, forecast, instrument, present, quote
from engines import engine_of
from fakes import FixedForecaster
from msgspec.structs import replace
from several_strategies import DRAWN, SCRIPTED, TOLD, configured, crossed_in, fills_of

from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.member import NO_EQUITY
from tracepaper.daemon.session.build import resolved
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import FillModel, OrderRole, OrderStatus, Step
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    Command,
    CommandKind,
    Event,
    Funding,
    Mark,
    Quote,
)

MINUTE = 60_000
ITEM = instrument()


def built(config: Config, execution: FillModel = FillModel.NEXT_OPEN, **item: Any) -> Engine:
    return engine_of(config, [instrument(**item)], execution=execution)


def walk(seed: int, count: int = 120, *, quotes: bool = False) -> list[Event]:
    """Return bars, a settlement every ten of them, and marks and quotes where quotes fill."""
    events: list[Event] = []
    for at, bar in enumerate(bars(count, seed=seed)):
        if quotes:
            for ms in (1_000, 20_000, 59_000):
                price = bar.open + (bar.close - bar.open) * ms // MINUTE
                events.append(
                    quote(price - 5, price + 5, at_ms=bar.open_time_ms + ms, size=400 + 100 * at)
                )
        events.append(bar)
        if at % 10 == 9:
            at_ms = bar.close_time_ms
            mark = bar.close + 13
            events += [
                Mark(bar.instrument, mark, at_ms, at_ms),
                Funding(bar.instrument, (-1) ** at * 1_234_567, at_ms, at_ms),
            ]
    return events


def run(engine: Engine, events: list[Event]) -> list[Step]:
    """Step through *events*, at each of which the account keeps its laws."""
    steps = []
    for event in events:
        steps.append(engine.step(event, None))
        check_account(engine.broker.own)
    return steps


def test_a_measure_that_moves_is_that_of_each_bar_though_its_verdict_stays() -> None:
    config = resolved(
        load(
            None,
            {
                "gate": {"confidence": "0", "collapse": "0", "direction": "0", "shift": "1"},
                "regime": {"momentum": "0.6", "mean_reversion": "0.3"},
                "sizing": {"mode": "notional", "notional": "5000"},
                "strategies": {name: {"name": "attention", "share": "0.5"} for name in ("a", "b")},
            },
        ),
        FillModel.NEXT_OPEN,
    )
    calibration = Calibration({}, {30: 1.0}, 0.0)
    model = FixedForecaster(lambda _: forecast(0.0), context=4, calibration=calibration)
    engine = engine_of(config, [ITEM], forecaster=model)
    said = []
    for at, bar in enumerate(bars(40, seed=3)):
        confidence = 0.5 + at / 1_000
        step = engine.step(bar, forecast(0.0, explained=explanation(confidence=confidence)))
        said += [dict(one.measures).get("confidence") == confidence for one in step.strategies]
    assert said.count(True) > 50
    assert all(said[-20:])


def test_opposing_parts_cross_at_the_close_without_fee() -> None:
    steps = run(built(configured()), walk(5))
    crossings = [(step, crossed_in(step)) for step in steps if crossed_in(step)]
    assert len(crossings) > 3
    for step, parts in crossings:
        assert isinstance(step.event, Bar)
        assert {(fill.price, fill.fee) for _, fill in parts} == {(step.event.close, 0)}


def test_where_quotes_fill_they_cross_at_the_mid() -> None:
    engine = built(configured(execution={"fill_within_ms": MINUTE}), FillModel.QUOTE)
    newest = 0
    count = 0
    for event in walk(5, quotes=True):
        step = engine.step(event, None)
        if isinstance(event, Quote):
            newest = (event.bid + event.ask) // 2
        for _, fill in crossed_in(step):
            assert fill.price == newest
            count += 1
    assert count > 3


def test_a_protective_order_belongs_to_its_strategy_and_trades_its_part() -> None:
    engine = built(configured())
    steps = run(engine, walk(7, 200))
    roles = {OrderRole.STOP, OrderRole.TARGET}
    filled = [
        (step, order)
        for step in steps
        for order in step.orders
        if order.role in roles and order.status is OrderStatus.FILLED
    ]
    assert {order.owner for _, order in filled} == {"a", "b", "c"}
    for step, order in filled:
        (name,) = {name for name, fill in fills_of(step) if fill.order_id == order.order_id}
        assert name == order.owner
    ids = [order.order_id for step in steps for order in step.orders if order.role in roles]
    assert len({text.partition("-")[2] for text in ids}) >= 3  # of each strategy its own


def test_a_strategy_that_fails_is_set_aside_and_closed_and_the_rest_goes_on() -> None:
    fails_at = (START_MS // MINUTE + 40) % 1_000
    config = configured(options=({"seed": 1}, {"seed": 2, "fails_at": fails_at}, {"seed": 3}))
    engine = built(config)
    steps = run(engine, walk(5))
    told = [{one.strategy: one for one in step.strategies} for step in steps if step.strategies]
    failed = [row["b"] for row in told[40:]]
    assert all(one.outcome.reason.startswith("set aside: Drawn failed in decide") for one in failed)
    assert "0x…" in failed[0].outcome.reason
    assert r"\ud800\x00" in failed[0].outcome.reason  # what no text can hold is escaped
    assert "at several_strategies.py:" in failed[0].outcome.reason
    assert {one.target_quantity for one in failed} == {0}
    assert engine.broker.own.owners["b"].held(ITEM.id) == 0
    assert any(row["a"].target_quantity for row in told[41:])
    shares = present(engine.state().shares)
    assert list(shares.failed) == ["b"]


def test_a_strategy_without_equity_is_closed() -> None:
    config = configured(
        of=(DRAWN, DRAWN, DRAWN),
        account={"cash": "1000"},
        sizing={"mode": "notional", "notional": "300000"},
    )
    engine = built(config)
    for event in walk(5, 400):
        engine.step(event, None)
        check_account(engine.broker.own)
    empty = [name for name, one in engine.broker.own.owners.items() if one.balance().equity <= 0]
    assert empty
    for member in engine.members:
        if member.name in empty:
            assert member.closed == NO_EQUITY
            assert engine.broker.own.owners[member.name].held(ITEM.id) == 0


@pytest.mark.parametrize("reset", ["day", "week", "month"])
def test_shares_are_given_anew_at_the_first_close_of_a_period(reset: str) -> None:
    spans = {"day": 24 * 60, "week": 7 * 24 * 60, "month": 31 * 24 * 60}
    engine = built(configured(reset=reset))
    first = bars(60, seed=3)
    events = [*first]
    later_ms = spans[reset] * MINUTE
    for bar in bars(60, seed=4):
        moved = bar.open_time_ms + later_ms
        events.append(_moved(bar, moved))
    given_anew = 0
    for event in events:
        before = [part.cash for part in engine.broker.own.owners.values()]
        step = engine.step(event, None)
        check_account(engine.broker.own)
        if event is events[60]:
            given_anew += 1
            total = step.account.equity
            shares = [part.balance().equity for part in engine.broker.own.owners.values()]
            assert [abs(5 * total // 10 - shares[0]), abs(3 * total // 10 - shares[1])] <= [1, 1]
            assert before != [part.cash for part in engine.broker.own.owners.values()]
    assert given_anew == 1


def _moved(bar: Bar, open_ms: int) -> Bar:
    end = open_ms + MINUTE
    return replace(bar, open_time_ms=open_ms, market_ms=end, seen_ms=end)


def test_flatten_closes_the_account_and_what_opposes_crosses_at_the_next_close() -> None:
    engine = built(configured())
    events = walk(5, 80)
    at = 0
    for at, event in enumerate(events):
        engine.step(event, None)
        held = [part.held(ITEM.id) for part in engine.broker.own.owners.values()]
        if at > 20 and min(held) < 0 < max(held) and sum(held) != 0:
            break
    now = events[at].market_ms
    engine.step(Command(CommandKind.FLATTEN, "", now, now), None)
    check_account(engine.broker.own)
    (closing,) = [event for event in events[at + 1 :] if isinstance(event, Bar)][:1]
    side = "SELL" if sum(held) > 0 else "BUY"
    step = engine.step(closing, None)
    check_account(engine.broker.own)
    of_net = [(name, fill) for name, fill in fills_of(step) if fill.model is not FillModel.CROSSED]
    assert {name for name, _ in of_net} == {
        name for name, one in zip("abc", held, strict=True) if one * sum(held) > 0
    }
    assert {fill.side.value for _, fill in of_net} == {side}
    assert crossed_in(step)
    assert [part.held(ITEM.id) for part in engine.broker.own.owners.values()] == [0, 0, 0]
    assert engine.broker.own.held(ITEM.id) == 0


def test_a_stop_that_comes_before_its_entry_is_whole_leaves_what_others_wait_for() -> None:
    config = configured(
        ("a", "b"),
        ("0.5", "0.5"),
        of=(SCRIPTED, SCRIPTED),
        options=({"says": {"0": ["LONG", 1]}}, {"says": {"0": ["LONG", None]}}),
        execution={"fill_within_ms": 10 * MINUTE, "latency_ms": 0},
    )
    engine = built(config, FillModel.QUOTE)
    first, second = bars(2, seed=1)
    close = first.close
    at_ms = first.close_time_ms
    engine.step(quote(close - 5, close + 5, at_ms=at_ms - 10), None)
    engine.step(first, None)
    engine.step(quote(close - 5, close + 5, size=1_001, at_ms=at_ms + 10), None)
    a, b = engine.broker.own.owners.values()
    assert (a.held(ITEM.id), b.held(ITEM.id)) == (501, 500)  # of an odd quantity, a comes first
    low = close * 98 // 100
    none_to_buy = replace(quote(low, low + 10, at_ms=at_ms + 20), ask_size=0)
    step = engine.step(none_to_buy, None)
    check_account(engine.broker.own)
    stops = [order for order in step.orders if order.role is OrderRole.STOP]
    assert {(order.owner, order.status) for order in stops} == {("a", OrderStatus.FILLED)}
    assert (a.held(ITEM.id), a.target(ITEM.id)) == (0, 0)
    (rest,) = (order for order in step.orders if order.role is OrderRole.SIGNAL)
    assert rest.quantity - rest.filled == b.target(ITEM.id) - b.held(ITEM.id) > 0
    engine.step(second, None)
    assert engine.broker.own.target(ITEM.id) == b.target(ITEM.id)


def test_a_breach_that_flattens_closes_every_part() -> None:
    risk = {"max_drawdown": "0.001", "on_breach": "flatten"}
    engine = built(configured(risk=risk))
    halted = 0
    for event in walk(5):
        step = engine.step(event, None)
        check_account(engine.broker.own)
        if step.decision is not None and engine.risk.state.breach:
            halted += 1
            if halted > 2:
                owners = engine.broker.own.owners.values()
                assert [owner.held(ITEM.id) for owner in owners] == [0, 0, 0]
    assert halted > 3


def test_a_limit_is_of_the_account_and_refuses_the_net() -> None:
    engine = built(configured(risk={"max_notional": "40000"}))
    refused = 0
    for event in walk(5):
        step = engine.step(event, None)
        check_account(engine.broker.own)
        if step.decision is not None and step.decision.refused_by == "risk.notional":
            refused += 1
            unfilled_reasons = [strategy.outcome.unfilled_reason for strategy in step.strategies]
            assert any(one and "risk.notional" in one for one in unfilled_reasons)
    assert refused > 3


def test_each_strategy_sees_its_own_part_and_size() -> None:
    engine = built(configured(of=(TOLD, TOLD, DRAWN)))
    held = dict.fromkeys(("a", "b"), 0.0)
    for event in walk(5):
        step = engine.step(event, None)
        for decision in step.strategies:
            if decision.strategy in held and decision.note is not None:
                note = decision.note
                part = engine.broker.own.owners[decision.strategy]
                crossed = sum(
                    fill.quantity * (1 if fill.side.value == "BUY" else -1)
                    for name, fill in crossed_in(step) if name == decision.strategy
                )  # fmt: skip
                assert note["held"] == (part.held(ITEM.id) - crossed) / 1_000
    first = engine.broker.own.owners["a"].balance().equity
    assert first != engine.broker.own.owners["b"].balance().equity


def test_spot_parts_pay_their_fee_in_base() -> None:
    engine = built(configured(), category=Category.SPOT)
    for bar in bars(150, seed=6, instrument_id="spot:BTCUSDT"):
        step = engine.step(bar, None)
        broker = engine.broker
        own, parts = broker.own.balance(), [part.balance() for part in broker.own.owners.values()]
        assert sum(part.equity for part in parts) + broker.own.reserve == own.equity
        held = [part.held("spot:BTCUSDT") for part in broker.own.owners.values()]
        assert sum(held) == broker.own.held("spot:BTCUSDT")
        assert min(held) >= 0
    assert step.account.fees_paid > 0
