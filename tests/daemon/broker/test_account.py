"""Accounts: cash is conserved, a position is the sum of its fills, nothing is lost in rounding."""

from decimal import Decimal

import pytest
from builders import bar, instrument, present
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.daemon.broker.account import AccountState, PaperAccount
from tracepaper.daemon.broker.broker import Broker
from tracepaper.daemon.broker.execution import ExecutionCosts, Executor
from tracepaper.daemon.broker.line import LineState
from tracepaper.daemon.broker.orders import OrderContext, OrdersState
from tracepaper.daemon.broker.rules import MarginRules
from tracepaper.daemon.broker.settings import BrokerSettings, Latency
from tracepaper.daemon.config.loading import load
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.holding import Holding
from tracepaper.strategies.types.decisions import Fill, FillModel, Order, OrderStatus
from tracepaper.strategies.types.market import Category, Side

START = 1_000_000 * 10**8
TERMS = ExecutionCosts(taker_fee=5_500_000)
SETTINGS = BrokerSettings(FillModel.NEXT_OPEN, TERMS, START, Latency(0))


def fill(signed: int, price: int, category: Category = Category.LINEAR) -> Fill:
    item = instrument(category=category)
    side = Side.BUY if signed > 0 else Side.SELL
    order = Order("1-0", item.id, side, abs(signed), 0, OrderStatus.ACCEPTED, "why", 0, 0)
    return Executor(item, TERMS).taken(order, price, FillModel.NEXT_OPEN, 1)


def account(category: Category = Category.LINEAR) -> tuple[str, PaperAccount]:
    item = instrument(category=category)
    return item.id, PaperAccount([item], SETTINGS)


@pytest.mark.parametrize(("cash", "bound"), [(20 * 10**8, 10), (5 * 10**8, 5), (-(10**8), 0)])
def test_what_is_taken_over_without_margin_binds_no_more_than_there_is(
    cash: int, bound: int
) -> None:
    item = instrument()
    settings = replace(SETTINGS, costs=ExecutionCosts(taker_fee=0), leverage=1_000)
    ledger = PaperAccount([item], settings)
    held = LineState(Holding(1_000, 100 * 10**8), OrdersState())
    ledger.restore(AccountState(cash, {item.id: held}), taken_over=True)
    assert ledger.lines[item.id].position.margin == bound * 10**8
    assert ledger.ledger.available == cash - bound * 10**8


def test_what_is_taken_over_is_worth_its_entry_until_a_price_comes() -> None:
    item = instrument()
    broker = Broker([item], SETTINGS, {})
    ledger = broker.account
    held = LineState(Holding(-1_000, -100 * 10**8), OrdersState())
    ledger.restore(AccountState(START, {item.id: held}), taken_over=True)
    assert ledger.lines[item.id].position.unrealized_pnl == 0
    broker.flatten({}, at_ms=1)
    closing = present(ledger.lines[item.id].order)
    assert (closing.side, closing.quantity) == (Side.BUY, 1_000)
    ledger.lines[item.id].mark_to(1)
    assert ledger.lines[item.id].position.unrealized_pnl == 100 * 10**8 - 10**6


def test_selling_more_than_is_held_on_spot_is_a_bug() -> None:
    key, ledger = account(Category.SPOT)
    with pytest.raises(InvariantBroken, match="sold 5 of 0"):
        ledger.lines[key].post(fill(-5, 10_000, Category.SPOT))


@pytest.mark.parametrize(("missing", "refused_with"), [(0, None), (1, "the available balance")])
def test_a_balance_that_is_exactly_the_margin_and_the_fee_bears_the_fill(
    missing: int, refused_with: str | None
) -> None:
    item, entry = instrument(), fill(1_000, 10_000)
    rules = MarginRules(item, 1_000, TERMS.taker_fee)
    cash = rules.required(entry.notional) + entry.fee - missing
    settings = replace(SETTINGS, cash=cash, leverage=1_000)
    opened = PaperAccount([item], settings)
    refusal = opened.policy.refusal(opened.lines[item.id], entry)
    assert refusal is None if refused_with is None else (refusal or "").startswith(refused_with)


def test_an_account_that_outgrows_64_bits_ends_with_advice() -> None:
    key, ledger = account()
    ledger.lines[key].post(fill(10**8, 10**6))
    ledger.lines[key].mark_to(10**8)
    with pytest.raises(
        ConfigInvalid, match=r"^The account's equity of \d+.*beyond 92,233,720,368; start"
    ):
        ledger.balance()


def test_an_account_in_rupiah_buys_bitcoins_and_pays_rates_of_ten_decimals() -> None:
    cash = int(load(None, {"account": {"cash": "20000000000"}}).account.cash.scaleb(8))
    item, price = instrument(price_decimals=0), 1_700_000_000
    terms = ExecutionCosts(taker_fee=5_500_001)
    paper = PaperAccount([item], BrokerSettings(FillModel.NEXT_OPEN, terms, cash, Latency(0)))
    line = paper.lines[item.id]
    line.submit(10_000, "why", OrderContext(0, 0, price, paper.ledger.cash))
    paper.markets[item.id].match_bar(bar(open_=price, instrument_id=item.id))
    (bought,) = paper.ledger.take().fills
    assert Decimal(bought.notional).scaleb(-8) == 17_000_000_000
    assert Decimal(bought.fee).scaleb(-8) == Decimal("9350001.7")
    line.mark_to(1_800_000_000)
    line.pay_funding(1, line.held, line.mark)
    assert Decimal(line.holding.funding_paid).scaleb(-8) == Decimal("1.8")
    equity = Decimal(paper.balance().equity).scaleb(-8)
    assert equity == 21_000_000_000 - Decimal("9350003.5")


@pytest.mark.parametrize("is_root", [False, True])
@given(cash=st.integers(2_000, 300_000), volume=st.integers(500, 10**9))
def test_an_order_cut_by_cash_pays_the_impact_of_what_it_buys_and_spends_what_there_is(
    cash: int, volume: int, *, is_root: bool
) -> None:
    item = instrument(category=Category.SPOT)
    costs = ExecutionCosts(taker_fee=10**7, impact=10**9, is_root=is_root)
    settings = BrokerSettings(FillModel.NEXT_OPEN, costs, cash * 10**6, Latency(0))
    paper = PaperAccount([item], settings)
    line, market = paper.lines[item.id], paper.markets[item.id]
    line.submit(10**9, "why", OrderContext(0, 0, 10_000, paper.ledger.cash))
    order = present(line.order)
    candle = bar(10_000, instrument_id=item.id, volume=volume)
    market.match_bar(candle)
    taken = market.taken[Side.BUY]
    fills = paper.ledger.take().fills
    bought = sum(fill.quantity for fill in fills)
    assert taken == bought

    def cost(quantity: int) -> int:
        of_bar = 0, volume
        executor = line.executor
        return executor.taken(
            order, 10_000, FillModel.NEXT_OPEN, 0, quantity=quantity, of_bar=of_bar
        ).notional

    assert sum(fill.notional for fill in fills) == (cost(bought) if bought else 0)
    assert paper.ledger.cash >= 0
    if bought < order.quantity:
        assert cost(bought + item.quantity_step) > cash * 10**6
