"""Isolated margin: the bound margin, refusals, liquidation prices and losses."""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from builders import MINUTE, START_MS, bar, instrument, present, quote
from engines import Says, engine_of
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from reference_ledger import ReferenceLedger

from tracepaper.daemon.broker.account import AccountState, PaperAccount
from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.line import LineState
from tracepaper.daemon.broker.orders import OrderContext, OrdersState
from tracepaper.daemon.broker.rules import MarginRules, tiers_of
from tracepaper.daemon.broker.settings import BrokerSettings, Latency
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.engine.state import decode_state
from tracepaper.daemon.session.build import margin_rules, margin_warnings
from tracepaper.strategies.api.context import BarContext, Orders, Percent, Signal, buy, sell
from tracepaper.strategies.api.strategy import CORE_GATES, Strategy
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.holding import Holding
from tracepaper.strategies.types.decisions import (
    Action,
    Fill,
    FillModel,
    Order,
    OrderRole,
    OrderStatus,
    Step,
)
from tracepaper.strategies.types.market import Bar, Funding, Instrument, Mark, RiskTier, Side
from tracepaper.strategies.units import MONEY_SCALE, RATE_SCALE

KEY = "linear:BTCUSDT"
FEE = 5_500_000
TIERS = (
    RiskTier(20_000 * MONEY_SCALE, 50_000_000, 10_000, 0),
    RiskTier(100_000 * MONEY_SCALE, 100_000_000, 5_000, 100 * MONEY_SCALE),
)
"""0.5 % to 20,000 at 100 times, 1 % less 100 to 100,000 at 50 times."""


LONG, FLAT, HOLD = (Signal(action, "now") for action in (Action.LONG, Action.FLAT, Action.HOLD))


def item(**changed: Any) -> Instrument:
    return replace(instrument(tick_size=1), **changed)


def engine(
    strategy: Strategy,
    *,
    of: Instrument | None = None,
    quantity: str = "1",
    cash: str = "1000",
    leverage: str = "10",
    **costs: Any,
) -> Engine:
    of = of or item()
    return engine_of(
        {
            "strategy": {"name": "sma_cross"},
            "sizing": {"mode": "fixed", "quantity": quantity},
            "execution": costs,
            "account": {"cash": cash, "margin": "isolated", "leverage": leverage},
        },
        [of],
        strategy=strategy,
    )


def entered(machine: Engine) -> Step:
    """Return the step that fills the entry at 1,000.00."""
    machine.step(bar(100_000), None)
    return machine.step(bar(100_000, index=1), None)


def bound(step: Step) -> Order:
    (order,) = [order for order in step.orders if order.role is OrderRole.LIQUIDATION]
    return order


def margin_of(step: Step) -> int:
    return present(step.position).margin


# ---------------------------------------------------------------- the numbers of one position


def test_what_is_liquidated_by_the_close_of_its_bar_pays_no_settlement_at_that_close() -> None:
    machine = engine(Says(Orders((buy(1, limit=950.0),), "in")))
    machine.step(bar(100_000), None)
    inside_ms = START_MS + 3 * MINUTE // 2
    machine.step(Mark(KEY, 85_000, inside_ms, inside_ms), None)
    machine.step(Funding(KEY, 10**8, *(START_MS + 2 * MINUTE,) * 2), None)
    step = machine.step(bar(95_000, index=1, open_=100_000, low=94_000), None)
    assert [fill.model for fill in step.fills] == [FillModel.BAR_PATH, FillModel.LIQUIDATION]
    assert step.fills[1].filled_ms < START_MS + 2 * MINUTE
    assert present(step.position).funding_paid == 0


@pytest.mark.parametrize("price", [90_200, 10_000])
def test_a_gap_through_it_loses_the_margin_and_no_more(price: int) -> None:
    """The market order that would close at the open comes too late."""
    machine = engine(Says(LONG, HOLD, FLAT))
    before = entered(machine)
    machine.step(bar(100_000, index=2), None)  # asks to be flat at the next open
    step = machine.step(bar(price, index=3), None)
    assert [fill.model for fill in step.fills] == [FillModel.LIQUIDATION]
    assert before.account.cash - step.account.cash == margin_of(before)
    orders = [order for order in step.orders if order.role is OrderRole.SIGNAL]
    assert [order.status for order in orders] == [OrderStatus.CANCELED]


@pytest.mark.parametrize(("high", "is_taken"), [(106_500, False), (107_000, True)])
def test_what_is_added_inside_a_bar_moves_the_liquidation_price_for_the_rest_of_its_path(
    high: int, is_taken: bool
) -> None:
    """Short 1 at 1,000 and 1 more at 950: liquidated from 1,067 on, and before from 1,094 on."""
    adding = Orders((sell(1),), "in"), Orders((sell(1, stop=950.0),), "more")
    machine = engine(Says(*adding))
    before = entered(machine)
    step = machine.step(bar(100_000, index=2, open_=100_000, high=high, low=94_000), None)
    liquidations = [fill for fill in step.fills if fill.model is FillModel.LIQUIDATION]
    assert [fill.quantity for fill in liquidations] == [2_000] * is_taken
    assert present(step.position).quantity == (0 if is_taken else -2_000)
    if is_taken:
        margin = margin_of(before) + 95 * MONEY_SCALE + 1_045 * MONEY_SCALE * 55 // 100_000
        fee = 950 * MONEY_SCALE * 55 // 100_000
        assert before.account.cash - step.account.cash <= margin + fee


@pytest.mark.parametrize("action", [Action.LONG, Action.SHORT])
def test_the_least_order_has_its_side_and_its_stop_the_date_of_the_bars_end(
    action: Action,
) -> None:
    sign = 1 if action is Action.LONG else -1
    machine = engine(Says(Signal(action, "enter", stop=Percent(1))), quantity="0.001")
    step = entered(machine)
    assert present(step.position).quantity == sign
    last = bar(100_000 - sign * 3_000, index=2, open_=100_000)
    stopped = machine.step(last, None)
    assert [fill.filled_ms for fill in step.fills] == [bar(1, index=1).open_time_ms]
    assert [fill.filled_ms for fill in stopped.fills] == [last.close_time_ms - 1]
    assert present(stopped.position).quantity == 0


@pytest.mark.parametrize(("mark", "models"), [(90_454, []), (90_453, [FillModel.LIQUIDATION])])
def test_an_entry_behind_the_newest_mark_price_is_liquidated_by_it_at_the_bars_close(
    mark: int, models: list[FillModel]
) -> None:
    machine = engine(Says(LONG))
    first, second = bar(100_000), bar(100_000, index=1)
    machine.step(first, None)
    machine.step(Mark(KEY, mark, first.close_time_ms + 1, first.close_time_ms + 1), None)
    step = machine.step(second, None)
    assert [fill.model for fill in step.fills] == [FillModel.NEXT_OPEN, *models]
    if models:
        assert (step.fills[-1].price, step.fills[-1].filled_ms) == (
            90_000,
            second.close_time_ms - 1,
        )


def test_a_settlement_that_brings_a_position_past_the_newest_mark_price_ends_it_at_the_close() -> (
    None
):
    machine = engine(Says(LONG), cash="101.1")
    entered(machine)
    closed_ms = bar(100_000, index=1).close_time_ms
    marked = machine.step(Mark(KEY, 90_600, closed_ms + 1, closed_ms + 1), None)
    assert marked.fills == ()
    paid = machine.step(Funding(KEY, 10**8, closed_ms + 2, closed_ms + 2), None)
    trigger = present(bound(paid).trigger)
    assert trigger > 90_600
    step = machine.step(bar(100_000, index=2), None)
    assert [fill.model for fill in step.fills] == [FillModel.LIQUIDATION]


def test_no_order_closes_beyond_the_bankruptcy_price() -> None:
    machine = engine(Says(LONG, HOLD, FLAT), slippage_bp="700")
    order = bound(entered(machine))
    assert order.price is not None
    assert order.trigger is not None
    before = machine.step(bar(110_000, index=2), None)
    near = order.trigger + 100
    step = machine.step(bar(near, index=3, open_=near), None)  # less seven percent: beyond
    assert [(fill.model, fill.price) for fill in step.fills] == [
        (FillModel.LIQUIDATION, order.price)
    ]
    assert before.account.cash - step.account.cash <= margin_of(before)


def test_a_mark_price_liquidates_where_there_is_one() -> None:
    machine = engine(Says(LONG))
    entered(machine)
    at = START_MS + 3 * 60_000
    assert not machine.broker.liquidates(Mark(KEY, 90_501, at, at))
    assert machine.step(Mark(KEY, 90_501, at, at), None).fills == ()
    assert machine.broker.liquidates(Mark(KEY, 90_400, at, at))
    (fill,) = machine.step(Mark(KEY, 90_400, at, at), None).fills
    assert (fill.price, fill.reference_price) == (90_000, 90_400)
    assert not machine.broker.liquidates(Mark(KEY, 80_000, at, at))


def taken_over(*items: Instrument, cash: int = 1_000) -> PaperAccount:
    """Return an account that bought a unit of each of *items* at 1,000 before it had margin."""
    costs, latency = ExecutionCosts(FEE), Latency(0)
    account = PaperAccount(
        items, BrokerSettings(FillModel.NEXT_OPEN, costs, 0, latency, leverage=1_000)
    )
    held = LineState(Holding(1_000, 1_000 * MONEY_SCALE), OrdersState())
    lines = {item.id: held for item in items}
    account.restore(AccountState(cash * MONEY_SCALE, lines), taken_over=True)
    return account


def ordered(account: PaperAccount, key: str, target: int) -> str | None:
    line = account.lines[key]
    cash = account.policy.spendable(line, is_reversal=target * line.held < 0)
    return line.submit(target, "why", OrderContext(START_MS, 0, 100_000, cash))


def test_a_mark_price_liquidates_a_position_that_was_taken_over() -> None:
    account = taken_over(item())
    account.policy.match_mark(account.lines[KEY], 90_501, START_MS)
    assert account.ledger.take().fills == ()
    account = taken_over(item())
    account.policy.match_mark(account.lines[KEY], 90_400, START_MS)
    (fill,) = account.ledger.take().fills
    assert (fill.price, account.lines[KEY].held) == (90_000, 0)


def test_an_order_that_closes_at_the_bankruptcy_price_is_filled_there() -> None:
    account = taken_over(item())
    account.lines[KEY].set_liquidation_price(START_MS)
    ordered(account, KEY, 0)
    account.ledger.take()
    account.markets[KEY].match_quote(quote(90_000, 90_010, at_ms=START_MS + 1))
    (fill,) = account.ledger.take().fills
    assert (fill.price, fill.model, account.lines[KEY].held) == (90_000, FillModel.QUOTE, 0)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("cash", "quantity", "reason"),
    [("101.04", 999, "the available balance does not cover its margin"), ("101.045", 1_000, None)],
)
def test_an_order_beyond_the_available_balance_is_cut(
    cash: str, quantity: int, reason: str | None
) -> None:
    step = engine(Says(LONG), cash=cash).step(bar(100_000), None)
    assert present(step.decision).unfilled_reason == reason
    assert [order.quantity for order in step.orders] == [quantity]


def test_an_order_by_list_beyond_it_is_kept_with_the_reason() -> None:
    wanted = Orders((buy(1, limit=950.0), buy(1, limit=940.0)), "grid")
    first, second = engine(Says(wanted), cash="120").step(bar(100_000), None).orders
    assert (first.status, second.status) == (OrderStatus.NEW, OrderStatus.REJECTED)
    assert second.reason == "the available balance does not cover its margin"


def test_a_fill_that_slippage_takes_beyond_its_margin_is_not_booked() -> None:
    machine = engine(Says(LONG), leverage="50", slippage_bp="300")
    step = entered(machine)
    assert (step.fills, step.account.equity) == ((), 1_000 * MONEY_SCALE)
    order = step.orders[0]
    assert order.status is OrderStatus.CANCELED
    assert order.reason == "its price was worse than the market's by more than its margin"
    assert entered(engine(Says(LONG), leverage="50", slippage_bp="150")).fills


def test_a_fill_is_cut_to_what_the_balance_still_covers() -> None:
    machine = engine(Says(LONG), cash="101.05")
    machine.step(bar(100_000), None)
    step = machine.step(bar(120_000, index=1, open_=120_000), None)
    (fill,) = step.fills
    assert (fill.quantity, step.account.cash >= 0) == (833, True)
    assert step.orders[0].status is OrderStatus.CANCELED
    assert "did not cover its margin" in step.orders[0].reason


@pytest.mark.parametrize(
    ("quantity", "leverage", "message"),
    [
        ("30", "60", "leverage 60 above 50, the most of risk tier 2"),
        ("101", "50", "position above 100000, the last risk tier"),
    ],
)
def test_leverage_above_the_tier_is_refused(quantity: str, leverage: str, message: str) -> None:
    machine = engine(
        Says(LONG), of=item(risk_tiers=TIERS), quantity=quantity, cash="10000", leverage=leverage
    )
    step = machine.step(bar(100_000), None)
    assert present(step.decision).unfilled_reason == message


def test_leverage_above_the_first_tier_or_the_instruments_most_is_refused_at_the_start() -> None:
    for of in (item(risk_tiers=TIERS), item(), item(max_leverage=10_000)):
        with pytest.raises(ConfigInvalid, match=r"account.leverage 101 is above 100"):
            engine(Says(LONG), of=of, leverage="101")
    with pytest.raises(ConfigInvalid, match=r"above 12\.5, the most"):
        engine(Says(LONG), of=item(max_leverage=1_250), leverage="20")


def test_a_position_is_first_reduced_to_a_tier_in_which_it_stands() -> None:
    machine = engine(Says(LONG), of=item(risk_tiers=TIERS), quantity="40", cash="10000")
    entered(machine)
    step = machine.step(bar(95_000, index=2, open_=96_000, low=90_600), None)
    (fill,) = step.fills
    left = present(step.position).quantity
    assert (fill.model, fill.price, fill.quantity) == (FillModel.LIQUIDATION, 90_657, 40_000 - left)
    assert left * 90_657 <= TIERS[0].limit * 10**5 // MONEY_SCALE < (left + 1) * 90_657


def test_a_position_of_exactly_a_tiers_limit_belongs_to_it() -> None:
    limit = TIERS[0].limit
    rules = MarginRules(item(risk_tiers=TIERS), 6_000, FEE)  # above the second tier's most
    assert rules.refusal(limit) is None
    assert rules.refusal(limit + 1) == "leverage 60 above 50, the most of risk tier 2"
    assert rules.refusal(TIERS[1].limit) == "leverage 60 above 50, the most of risk tier 2"
    assert rules.refusal(TIERS[1].limit + 1) == "position above 100000, the last risk tier"


@pytest.mark.parametrize(
    ("rate", "paid", "left"), [(1, 1, 99), (12_000, 100, 0), (-1, -1, 100), (-3, -3, 100)]
)
def test_a_balance_below_zero_counts_as_none_where_funding_is_paid(
    rate: int, paid: int, left: int
) -> None:
    """An account of before margin was taken over with less cash than its position needs."""
    settings = BrokerSettings(
        FillModel.NEXT_OPEN, ExecutionCosts(FEE), 0, Latency(0), leverage=1_000
    )
    ledger = PaperAccount([item(risk_tiers=TIERS)], settings)
    unit = MONEY_SCALE
    held = LineState(Holding(1_000, 1_000 * unit, margin=100 * unit), OrdersState())
    ledger.restore(AccountState(98 * unit, {KEY: held}))
    line = ledger.lines[KEY]
    line.mark_to(100_000)  # worth 1,000
    assert ledger.ledger.available == -2 * unit
    line.pay_funding(rate * RATE_SCALE // 1_000, line.held, line.mark)
    assert line.holding.funding_paid == paid * unit
    assert line.holding.margin == left * unit
    assert ledger.ledger.cash == (98 - paid) * unit


def test_a_tier_that_is_assumed_is_said() -> None:
    config = load(None, {"account": {"margin": "isolated"}, "strategy": {"name": "sma_cross"}})
    (warning,) = margin_warnings(config, [item(), item(risk_tiers=TIERS)])
    assert warning.startswith("one tier assumed: the risk tiers of linear:BTCUSDT are not known")
    assert "0.5 %" in warning
    assert margin_warnings(load(None, {}), [item()]) == ()


# ---------------------------------------------------------------- laws


class Dice(Strategy):
    """Random signals that depend on the bar, so that a restart draws the same."""

    gates = CORE_GATES

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def decide(self, context: BarContext) -> Signal:
        roll = random.Random(self._seed * 1_000_003 + context.exact.open_time_ms).random()
        if roll < 0.6:
            return HOLD
        names = (Action.LONG, Action.SHORT, Action.FLAT)
        return Signal(names[int(roll * 1_000) % 3], "dice", 1.0 if roll < 0.9 else 0.4)


def market(rng: random.Random, wildness: int) -> list[Bar | Funding]:
    """Return bars with jumps, and settlements, some of them twice and some of them huge."""
    events: list[Bar | Funding] = []
    price = 100_000
    for index in range(rng.randint(5, 60)):
        opened = max(price + rng.choice((0, 0, 1, -1)) * rng.randint(0, wildness), 2_000)
        close = max(opened + rng.randint(-wildness, wildness), 2_000)
        high = max(opened, close) + rng.randint(0, wildness)
        low = max(min(opened, close) - rng.randint(0, wildness), 1_000)
        events.append(bar(close, index=index, open_=opened, high=high, low=low))
        price = close
        if rng.random() < 0.1:
            at = events[-1].market_ms
            paid = Funding(KEY, rng.choice((-1, 1)) * rng.randint(0, 10**9), at, at)
            events += [paid] * rng.choice((1, 1, 2))
    return events


def booked(reference: ReferenceLedger, fill: Fill, tiers: tuple[RiskTier, ...]) -> None:
    """Book *fill* in the reference account; a liquidation loses its margin and no more.

    It reduces the position to the highest lower tier that ends the call, or takes all of it over.
    """
    mark, of = Decimal(fill.reference_price).scaleb(-2), reference.of(KEY)
    if fill.model is FillModel.LIQUIDATION and of.quantity.scaleb(3) != (
        fill.quantity if fill.side is Side.SELL else -fill.quantity
    ):
        lower = [limit for limit in limits(tiers) if limit < abs(of.quantity) * mark]
        kept = [Decimal(int(limit / mark * 1_000)).scaleb(-3) for limit in sorted(lower)[::-1]]
        ends = [
            least for least in kept if least and not is_called(reference, mark, tiers, only=least)
        ]
        assert is_called(reference, mark, tiers)
        assert abs(of.quantity) - Decimal(fill.quantity).scaleb(-3) == ends[0]
    signed = Decimal(fill.quantity).scaleb(-3)
    price, fee = Decimal(fill.price).scaleb(-2), Decimal(fill.fee).scaleb(-8)
    is_forced = fill.model is FillModel.LIQUIDATION
    cash, margin = reference.cash, reference.of(KEY).margin
    reference.linear(
        KEY, signed if fill.side is Side.BUY else -signed, price, fee, is_forced=is_forced
    )
    if is_forced:
        lost = margin - reference.of(KEY).margin
        assert cash - reference.cash <= lost, "more than the margin of what was closed was lost"


def limits(tiers: tuple[RiskTier, ...]) -> list[Decimal]:
    """Return the limits of all tiers but the last."""
    return [Decimal(tier.limit).scaleb(-8) for tier in tiers[:-1]]


def is_called(
    reference: ReferenceLedger,
    mark: Decimal,
    tiers: tuple[RiskTier, ...],
    only: Decimal | None = None,
) -> bool:
    """Return whether the position, or *only* so much of it, is called at *mark*.

    By the definition: margin less loss less the fee of closing where the margin is lost. Within a
    tick, by which the exchange's own order stands nearer.
    """
    held = reference.of(KEY)
    mark -= Decimal("0.009999999").copy_sign(held.quantity)
    size = abs(held.quantity)
    part = Fraction(1 if only is None else only / size)
    value = (size if only is None else only) * mark
    number = sum(value > limit for limit in limits(tiers))
    rate = Decimal(tiers[number].maintenance).scaleb(-10)
    deduction = Decimal(tiers[number].deduction).scaleb(-8)
    entry, margin, sign = abs(held.entry), held.margin, 1 if held.quantity > 0 else -1
    bankrupt = Fraction(entry - sign * margin) / (1 - sign * Fraction(reference.fee_rate))
    left = sign * (Fraction(value) - bankrupt * part)
    return left <= max(Fraction(value * rate - deduction), Fraction(0))


STEPS = (
    RiskTier(700 * MONEY_SCALE, 50_000_000, 10_000, 0),
    RiskTier(3_000 * MONEY_SCALE, 100_000_000, 10_000, 35 * MONEY_SCALE // 10),
    RiskTier(0, 250_000_000, 10_000, 485 * MONEY_SCALE // 10),
)
"""0.5 % to 700, 1 % to 3,000 and 2.5 % beyond, less what makes them continuous."""


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_money_laws_hold_over_random_orders_markets_settlements_and_restarts(seed: int) -> None:
    """The account equals one kept by itself, and a position loses no more than its margin."""
    rng = random.Random(seed)
    terms: dict[str, Any] = {
        "leverage": rng.choice(("1", "3", "10", "50", "100")),
        "quantity": rng.choice(("0.3", "1", "7.5")),
        "cash": rng.choice(("120", "1000", "20000")),
        "slippage_bp": rng.choice(("0", "5", "200")),
    }
    tiers = rng.choice((STEPS, tiers_of(item())))
    terms["of"] = item(risk_tiers=tiers)
    machine = engine(Dice(seed), **terms)
    reference = ReferenceLedger(Decimal(terms["cash"]), leverage=Decimal(terms["leverage"]))
    mark, last = Decimal(1_000), bar(100_000)
    moved: list[tuple[str, Decimal]] = []
    settled = 0
    for event in market(rng, rng.choice((50, 2_000, 20_000))):
        step = machine.step(event, None)
        moved += [(entry.kind.value, Decimal(entry.amount).scaleb(-8)) for entry in step.ledger]
        if isinstance(event, Funding):
            assert step.accepted is (event.market_ms != settled)
            if event.market_ms != settled:
                settled = event.market_ms
                reference.funding(KEY, mark, Decimal(event.rate).scaleb(-10))
        else:
            mark, last = Decimal(event.close).scaleb(-2), event
        for fill in step.fills:
            booked(reference, fill, tiers)
        if isinstance(event, Bar) and reference.of(KEY).quantity and not step.fills:
            away = event.low if reference.of(KEY).quantity > 0 else event.high
            assert not is_called(reference, Decimal(away).scaleb(-2), tiers), (
                "called, and it stands"
            )
        held, position = reference.of(KEY), step.position
        assert position is not None
        assert position.quantity == held.quantity.scaleb(3)
        assert position.entry_notional == held.entry.scaleb(8)
        assert position.margin == held.margin.scaleb(8)
        assert step.account.cash == reference.cash.scaleb(8)
        assert step.account.equity == reference.equity({KEY: mark}).scaleb(8)
        assert moved == reference.movements, "the ledger is not what moved"
        assert reference.available >= Decimal("-1e-7"), "more is bound than is there"
        if isinstance(event, Bar):
            assert step.account.equity >= 0, "equity below zero, and no liquidation"
        if step.state is not None and rng.random() < 0.2:  # killed, and started anew
            machine = engine(Dice(seed), **terms)
            Restart(machine).restore(decode_state(step.state), next_sequence=step.sequence + 1)
            Restart(machine).recall(last)


# ---------------------------------------------------------------- as it is shown


def test_rules_are_those_of_the_configured_fees_and_leverage() -> None:
    config = load(
        None,
        {
            "execution": {"fees": {"BTCUSDT": {"taker": "0.001"}}},
            "account": {"margin": "isolated", "leverage": "5"},
        },
    )
    position = entered(engine(Says(LONG))).position
    margin_use = margin_rules(config, [item()])[KEY].use_of(position)
    assert margin_use == MarginRules(item(), 500, 10**7).use_of(position)
    assert margin_rules(load(None, {"account": {"margin": "none"}}), [item()]) == {}
