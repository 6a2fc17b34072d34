"""Execution models: at what price, how much, and what it costs."""

from fractions import Fraction

import pytest
from builders import START_MS, bar, bars, instrument, present, quote
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tracepaper.daemon.broker.execution import RANGE_BARS, ExecutionCosts, Executor, MeanRange
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.build import costs_for
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Fill, FillModel, Order, OrderKind, OrderStatus
from tracepaper.strategies.types.market import Side
from tracepaper.strategies.units import RATE_SCALE

FEE = ExecutionCosts(5_500_000)
BASIS_POINT = RATE_SCALE // 10_000


def order(side: Side = Side.BUY, quantity: int = 1_000, filled: int = 0) -> Order:
    status = OrderStatus.PARTIALLY_FILLED if filled else OrderStatus.ACCEPTED
    return Order("3-0", "linear:BTCUSDT", side, quantity, filled, status, "why", 0, 100)


def opened(executor: Executor, taken: Order, price: int) -> Fill:
    """Return the fill of the order *taken* at an open of *price*."""
    return executor.taken(taken, price, FillModel.NEXT_OPEN, START_MS)


def test_next_open_fills_all_at_the_open_with_the_exact_fee() -> None:
    fill = opened(Executor(instrument(), FEE), order(), 10_001)
    assert (fill.price, fill.quantity, fill.model) == (10_001, 1_000, FillModel.NEXT_OPEN)
    assert fill.notional == 10_001_000_000  # 100.01 x 1
    assert fill.fee == 5_500_550  # 0.00055 of it
    assert fill.filled_ms == START_MS


def test_spread_and_slippage_move_the_price_against_the_order_to_a_whole_tick() -> None:
    terms = ExecutionCosts(0, slippage=BASIS_POINT, half_spread=BASIS_POINT)
    executor = Executor(instrument(tick_size=10), terms)
    buy = opened(executor, order(), 1_000_000)
    sell = opened(executor, order(Side.SELL), 1_000_000)
    assert (buy.price, sell.price) == (1_000_200, 999_800)
    assert buy.reference_price == 1_000_000


@given(st.integers(1_000, 10**8), st.integers(0, 10**8), st.sampled_from(Side))
def test_costs_never_favour_the_order(price: int, rate: int, side: Side) -> None:
    executor = Executor(instrument(), ExecutionCosts(0, slippage=rate))
    fill = opened(executor, order(side), price)
    assert fill.price >= price if side is Side.BUY else fill.price <= max(price, 10)


def test_a_quote_fills_at_the_far_side_up_to_its_size() -> None:
    executor = Executor(instrument(), FEE)
    level = quote(10_000, 10_020, size=400)
    buy = present(executor.at_quote(order(), level, 400))
    sell = present(executor.at_quote(order(Side.SELL, filled=900), level, 400))
    assert (buy.price, buy.quantity, buy.reference_price) == (10_020, 400, 10_010)
    assert (sell.price, sell.quantity) == (10_000, 100)


def test_round_trip_is_twice_what_one_side_costs() -> None:
    terms = ExecutionCosts(5_500_000, slippage=BASIS_POINT // 2, half_spread=BASIS_POINT // 2)
    assert terms.round_trip == pytest.approx(2 * (0.00055 + 0.00005 + 0.00005))


def test_configured_costs_are_rates_of_ten_decimals() -> None:
    given = {"slippage_bp": "0.5", "spread_bp": "1", "taker_fee": "0.00055"}
    assert costs_for(load({"execution": given})) == ExecutionCosts(
        5_500_000, slippage=BASIS_POINT // 2, half_spread=BASIS_POINT // 2, maker_fee=2_000_000
    )


def test_a_rate_beyond_ten_decimals_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"execution\.slippage_bp"):
        costs_for(load({"execution": {"slippage_bp": "0.0000001"}}))


def test_a_takers_price_moves_by_shares_of_the_true_range_and_a_makers_does_not() -> None:
    """The formula of docs/money.md, M14: k times the mean true range over the last close."""
    ranges = MeanRange(RANGE_BARS)
    costs = ExecutionCosts(0, ranges=RATE_SCALE // 2)
    executor = Executor(instrument(), costs, ranges)
    assert opened(executor, order(), 10_000).price == 10_000
    ranges.push(bar(10_000, high=10_100, low=9_900))  # 200, without a close before it
    ranges.push(bar(10_500, open_=10_500, high=10_600, low=10_400))  # 600: from the close before
    assert ranges.rate == 400 * RATE_SCALE // 10_500
    assert opened(executor, order(), 10_500).price == 10_700
    assert opened(executor, order(Side.SELL), 10_500).price == 10_300
    limit = structs.replace(order(), price=10_000, kind=OrderKind.LIMIT)
    assert executor.fill_resting(limit, 5, FillModel.QUOTE, 0).price == 10_000


def test_the_true_range_is_that_of_the_last_sixty_bars() -> None:
    whole, late = MeanRange(RANGE_BARS), MeanRange(RANGE_BARS)
    history = bars(200, seed=3)
    for index, candle in enumerate(history):
        whole.push(candle)
        if index >= len(history) - RANGE_BARS - 1:
            late.push(candle)
    assert whole.rate == late.rate > 0


def test_impact_is_paid_on_the_whole_order_and_a_limit_pays_none() -> None:
    executor = Executor(instrument(tick_size=1), ExecutionCosts(0, impact=10**7))  # 10 bp
    level = quote(99_990, 100_000, size=400)
    fill = present(executor.at_quote(order(), level, 400))
    assert (fill.quantity, fill.price) == (1_000, 100_150)  # 1.5 multiples beyond the first
    limit = structs.replace(order(), price=100_000, kind=OrderKind.LIMIT)
    part = present(executor.at_quote(limit, level, 400))
    assert (part.quantity, part.price) == (400, 100_000)
    assert executor.at_quote(order(), level, 0) is None


@given(st.integers(0, 10**9), st.integers(1, 10**12), st.integers(0, 10**12), st.booleans())
def test_impact_is_the_coefficient_times_participation_or_its_root(
    impact: int, quantity: int, volume: int, is_root: bool
) -> None:
    """docs/money.md, M111: exact, rounded down, and at most that of 100 volumes."""
    rate = ExecutionCosts(0, impact=impact, is_root=is_root).impact_rate(quantity, volume)
    share = min(Fraction(quantity, volume), Fraction(100)) if volume else Fraction(100)
    power = 2 if is_root else 1
    exact = impact**power * share  # the rate to that power
    assert rate <= RATE_SCALE
    assert rate**power <= exact
    assert exact < (rate + 1) ** power or rate == RATE_SCALE
    assert ExecutionCosts(0).impact_rate(quantity, volume) == 0


PUBLISHED = {
    # A tenth of a day's volume of IBM and DRI, over so much of a day: the temporary impact in bp.
    "IBM": (157, {0.1: 22, 0.2: 15, 0.5: 8}),
    "DRI": (226, {0.1: 32, 0.2: 21, 0.5: 12}),
}
"""Almgren, Thum, Hauptmann and Li (2005), table 3: daily volatility in bp, and impact."""


@pytest.mark.parametrize("share", PUBLISHED)
def test_almgrens_example_has_his_impact_but_for_the_power(share: str) -> None:
    """The coefficient is his .142 of the daily volatility, and the power 1/2 in place of his 3/5.

    His realized cost has half of the permanent impact too, which no fill here leaves behind.
    """
    volatility_bp, published = PUBLISHED[share]
    coefficient_bp = 0.142 * volatility_bp
    costs = ExecutionCosts(0, impact=round(coefficient_bp * BASIS_POINT), is_root=True)
    for days, impact_bp in published.items():
        participation = 0.1 / days
        paid_bp = costs.impact_rate(1_000_000, round(1_000_000 / participation)) / BASIS_POINT
        assert coefficient_bp * participation**0.6 == pytest.approx(impact_bp, abs=0.5)
        assert paid_bp * participation**0.1 == pytest.approx(impact_bp, abs=0.5)
        assert paid_bp >= impact_bp - 0.5  # the root is dearer below a participation of 1
