"""Shares: paid in full, fees in their currency, nothing sold short."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from builders import bar, instrument
from engines import engine_of
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.daemon.broker.account import PaperAccount
from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.orders import OrderContext
from tracepaper.daemon.broker.settings import BrokerSettings, Latency
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import MONEY_DECIMALS, RATE_DECIMALS, unscaled

CASH = 100_000 * 10**MONEY_DECIMALS
SMALLEST = Decimal(1).scaleb(-MONEY_DECIMALS)


def units(amount: str) -> int:
    return int(Decimal(amount).scaleb(RATE_DECIMALS))


def costs(
    rate: str = "0", per_share: str = "0", minimum: str = "0", slippage_bp: str = "0"
) -> ExecutionCosts:
    return ExecutionCosts(
        units(rate),
        units(slippage_bp) // 10_000,
        per_share=units(per_share),
        minimum=int(Decimal(minimum).scaleb(MONEY_DECIMALS)),
    )


def account(terms: ExecutionCosts, quantity_decimals: int = 0) -> PaperAccount:
    item = instrument("ACME", Category.STOCK, tick_size=1, quantity_decimals=quantity_decimals)
    return PaperAccount([item], BrokerSettings(FillModel.NEXT_OPEN, terms, CASH, Latency(0)))


KEY = "stock:ACME"


def order(of: PaperAccount, target: int, price: int, number: int) -> str | None:
    line = of.lines[KEY]
    cash = of.policy.spendable(line, is_reversal=target * line.held < 0)
    return line.submit(target, "why", OrderContext(0, 0, price, cash))


def money(value: int) -> Decimal:
    return Decimal(unscaled(value, MONEY_DECIMALS))


@given(
    st.lists(st.tuples(st.integers(0, 4_000), st.integers(1, 40_000)), max_size=25),
    st.sampled_from([0, 3]),
    st.sampled_from([("0", "0.005", "1"), ("0.0005", "0", "0"), ("0.001", "0.0035", "0.35")]),
    st.integers(1, 40_000),
)
def test_every_cent_equals_an_independent_decimal_ledger(
    targets: list[tuple[int, int]], decimals: int, fees: tuple[str, str, str], mark: int
) -> None:
    rate, per_share, minimum = map(Decimal, fees)
    paper = account(costs(*fees), decimals)
    cash, shares, paid, entry, realized = Decimal(100_000), Decimal(0), *(Decimal(0),) * 3
    for number, (drawn, cents) in enumerate(targets):
        target = drawn * (1 if decimals == 0 else 100)
        price = Decimal(cents).scaleb(-2)
        if order(paper, target, cents, number) is not None:
            continue
        paper.markets[KEY].match_bar(bar(open_=cents, instrument_id=KEY))
        filled = paper.ledger.take()
        wanted = Decimal(target).scaleb(-decimals)
        if not filled.fills:
            assert wanted == shares
            continue
        (fill,) = filled.fills
        traded = Decimal(fill.quantity).scaleb(-decimals).copy_sign(wanted - shares)

        def fee_of(traded: Decimal, price: Decimal = price) -> Decimal:
            by_value = (abs(traded) * price * rate).quantize(SMALLEST, ROUND_HALF_EVEN)
            by_share = (abs(traded) * per_share).quantize(SMALLEST, ROUND_HALF_EVEN)
            return max(by_value + by_share, minimum)

        if traded != wanted - shares:  # as much as the cash covers
            more = traded + Decimal(1).scaleb(-decimals)
            assert 0 < traded < wanted - shares
            assert more * price + fee_of(more) > cash
        fee = fee_of(traded)
        assert money(filled.fills[0].fee) == fee
        assert filled.fills[0].fee_base == 0
        if traded > 0:
            entry += traded * price
        else:
            share = (entry * -traded / shares).quantize(SMALLEST, ROUND_HALF_EVEN)
            entry -= share
            realized += -traded * price - share
        cash -= traded * price + fee
        shares, paid = shares + traded, paid + fee
        held = paper.lines[KEY].holding
        assert Decimal(held.quantity).scaleb(-decimals) == shares >= 0
        assert money(held.entry_notional) == entry
        assert money(held.realized_pnl) == realized
        assert money(held.fees_paid) == paid
        assert money(paper.ledger.cash) == cash
        # Nothing holds up a way out: the least fee of a sale may be more than it brings.
        assert cash >= (0 if traded > 0 else -minimum)
    paper.lines[KEY].mark_to(mark)
    total = paper.balance()
    assert money(total.equity) == cash + shares * Decimal(mark).scaleb(-2)


def test_a_buy_needs_cash_for_its_fee_as_well() -> None:
    paper = account(costs(minimum="1"))
    assert order(paper, 1_000, 100_00, 1) == "cash does not cover it"
    assert order(paper, 999, 100_00, 2) is None


def test_a_gap_leaves_a_buy_of_shares_with_what_cash_covers_with_its_fee() -> None:
    paper = account(costs(minimum="1"))
    assert order(paper, 999, 100_00, 1) is None
    paper.ledger.take()
    paper.markets[KEY].match_bar(bar(125_00, open_=125_00, instrument_id=KEY))
    met = paper.ledger.take()
    assert [fill.quantity for fill in met.fills] == [799]  # 800 leave nothing for the fee
    assert money(paper.ledger.cash) == 100_000 - 799 * 125 - 1


def test_the_first_part_of_an_order_pays_the_least_fee() -> None:
    terms = costs(per_share="0.005", minimum="1")
    assert [terms.fee(50, 0, 0, is_first=first) for first in (True, False)] == [
        10**MONEY_DECIMALS, 25 * 10 ** (MONEY_DECIMALS - 2),
    ]  # fmt: skip


def test_a_fee_by_the_share_is_a_price() -> None:
    item = instrument("ACME", Category.STOCK)
    assert costs(per_share="0.005").per_share_of(item) == pytest.approx(0.5)  # cents


def test_no_funding_is_settled_on_shares() -> None:
    paper = account(costs())
    assert order(paper, 10, 100_00, 1) is None
    paper.markets[KEY].match_bar(bar(open_=100_00, instrument_id=KEY))
    paper.lines[KEY].pay_funding(10**8, 10, 100_00)
    assert paper.lines[KEY].holding.funding_paid == 0


def test_the_round_trip_of_the_edge_has_the_fee_of_both_shares_at_the_close() -> None:
    item = instrument(symbol="ACME", category=Category.STOCK)
    given = {
        "market": {"symbols": ["ACME"], "category": "stock"},
        "strategy": {"name": "sma_cross"},
        "execution": {"fee_per_share": "0.005"},
    }
    machine = engine_of(given, [item])
    decider = machine.deciders[item.id]
    decider.see_forecast(bar(40_00, instrument_id=item.id), None, is_finite=None)
    assert decider.inputs.round_trip_cost == pytest.approx(2 * 0.005 / 40)
