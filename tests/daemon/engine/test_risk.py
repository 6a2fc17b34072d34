"""What the risk gates measure, from bar to bar and from day to day."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from statistics import median

import pytest
from builders import bars, quote
from engines import engine_of

from tracepaper.daemon.engine.risk import RiskWatch
from tracepaper.strategies.gates.gate import GateInputs
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.sessions import Sessions
from tracepaper.strategies.types.decisions import (
    Account,
    Fill,
    FillModel,
    Liquidity,
    Order,
    OrderRole,
    OrderStatus,
    Position,
)
from tracepaper.strategies.types.market import Side
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MINUTE_MS, MONEY_SCALE

LIMITS = {"risk.drawdown": 0.1}
KEY = "linear:BTCUSDT"


def account(equity: int) -> Account:
    return Account(0, equity * MONEY_SCALE, 0, 0, 0, 0)


def measured(watch: RiskWatch, equity: int, market_ms: int = 0) -> GateInputs:
    inputs = GateInputs()
    watch.measure(inputs, account=account(equity), market_ms=market_ms)
    return inputs


def order(
    *, filled: int = 5, role: OrderRole = OrderRole.SIGNAL, status: OrderStatus = OrderStatus.FILLED
) -> Order:
    return Order("1-0", KEY, Side.BUY, 5, filled, status, "x", 0, 0, role=role)


def trade(watch: RiskWatch, at_ms: int) -> None:
    """Count an order's only fill."""
    watch.count_fill(fill(at_ms), order(), Position(), Position(quantity=5))


def fill(at_ms: int) -> Fill:
    return Fill(
        "1-0", KEY, Side.BUY, 5, 1, 1, 1, 0, 0, Liquidity.TAKER, FillModel.QUOTE, "x", at_ms
    )


def test_drawdown_is_a_fraction_of_the_highest_equity() -> None:
    watch = RiskWatch(LIMITS)
    assert measured(watch, 1_000).drawdown == 0
    measured(watch, 2_000)
    assert measured(watch, 1_500).drawdown == pytest.approx(0.25)
    assert measured(watch, 1_500, DAY_MS).drawdown == pytest.approx(0.25)


def test_spread_and_range_are_basis_points_of_the_middle_and_of_the_close() -> None:
    given = {"strategy": {"name": "sma_cross"}, "risk": {"max_spread_bp": "5", "max_range_bp": "9"}}
    machine = engine_of(given, execution=FillModel.QUOTE)
    inputs, candles = machine.deciders[KEY].inputs, bars(70)
    for candle in candles:
        middle = candle.close
        machine.step(quote(middle - 30, middle + 50, at_ms=candle.close_time_ms - 9), None)
        machine.step(candle, None)
    assert inputs.spread_bp == pytest.approx(10_000 * 80 / (middle + 10))
    ranges = [
        max(candle.high, before.close) - min(candle.low, before.close)
        for before, candle in pairwise(candles)
    ]
    assert inputs.range_bp == pytest.approx(10_000 * median(ranges[-60:]) / middle)


def test_the_days_loss_is_money_and_begins_anew_each_utc_day() -> None:
    watch = RiskWatch(LIMITS)
    measured(watch, 1_000)
    assert measured(watch, 900).daily_loss == 100
    assert measured(watch, 1_100).daily_loss == 0
    assert measured(watch, 800, DAY_MS).daily_loss == 0
    assert measured(watch, 750, DAY_MS + 1).daily_loss == 50


def test_trades_are_counted_by_the_day_of_their_fill_with_the_one_being_judged() -> None:
    watch = RiskWatch(LIMITS)
    assert measured(watch, 1_000).daily_trades == 1
    trade(watch, DAY_MS - 1)
    assert measured(watch, 1_000).daily_trades == 2
    trade(watch, DAY_MS)  # filled before the first bar of its day has closed
    assert measured(watch, 1_000, DAY_MS).daily_trades == 2
    trade(watch, DAY_MS)
    assert measured(watch, 1_000, DAY_MS).daily_trades == 3
    assert measured(watch, 1_000, 2 * DAY_MS).daily_trades == 1


def test_the_carried_state_says_when_it_changed() -> None:
    watch = RiskWatch(LIMITS)
    inputs = GateInputs()
    states = []
    for at_ms, equity in enumerate((1_000, 990, 1_001)):
        watch.measure(inputs, account=account(equity), market_ms=at_ms)
        states.append(watch.state)
    assert states[0] is states[1]
    assert states[1] is not states[2]


def test_without_a_limit_nothing_is_measured() -> None:
    assert not RiskWatch({}).active


# ---------------------------------------------------------------- a breach


@pytest.mark.parametrize(
    ("limits", "equities", "breach"),
    [
        ({"risk.drawdown": 0.1}, (1_000, 899), "risk.drawdown"),
        ({"risk.drawdown": 0.25}, (1_000, 750), ""),
        ({"risk.daily_loss": 50.0}, (1_000, 949), "risk.daily_loss"),
        ({"risk.daily_loss": 50.0}, (1_000, 950), ""),
        ({"risk.notional": 50.0}, (1_000, 1), ""),
    ],
)
def test_equity_beyond_a_limit_is_a_breach_until_the_operator_resumes(
    limits: dict[str, float], equities: tuple[int, ...], breach: str
) -> None:
    watch = RiskWatch(limits)
    for at, equity in enumerate(equities):
        inputs = measured(watch, equity, at)
    assert (halted.limit if (halted := watch.state.breach) else "") == breach
    assert inputs.is_breached is bool(breach)
    recovered = measured(watch, 5_000, 10)
    assert recovered.is_breached is bool(breach), "a breach outlasts what caused it"
    if breach:
        watch.resume()
        fresh = measured(watch, 500, 11)
        assert not fresh.is_breached
        assert (fresh.drawdown, fresh.daily_loss) == (0, 0), "peak and day begin anew"


def test_only_a_breach_that_flattens_closes_what_is_held() -> None:
    for flattens in (False, True):
        watch = RiskWatch(LIMITS, flattens=flattens)
        assert not watch.closing
        measured(watch, 1_000)
        measured(watch, 1)
        assert bool(watch.closing) is flattens


# ---------------------------------------------------------------- what is counted


def test_orders_are_counted_by_the_clock_hour_with_the_one_being_judged() -> None:
    watch = RiskWatch({"risk.hourly_orders": 3.0})
    assert measured(watch, 1_000).hourly_orders == 1
    sent = [order(status=OrderStatus.ACCEPTED), order(status=OrderStatus.CANCELED)]
    watch.count_orders(sent, HOUR_MS - 1)
    assert measured(watch, 1_000, HOUR_MS - 1).hourly_orders == 2
    assert measured(watch, 1_000, HOUR_MS).hourly_orders == 1
    watch.count_orders(sent, HOUR_MS)
    assert measured(watch, 1_000, HOUR_MS + 1).hourly_orders == 2, "an hour begins from none"
    watch.count_orders(sent, HOUR_MS + 1)
    assert measured(watch, 1_000, HOUR_MS + 2).hourly_orders == 3


def since_stop(watch: RiskWatch, at_ms: int, interval_ms: int = MINUTE_MS) -> int:
    inputs = GateInputs()
    watch.measure(
        inputs, account=account(1), market_ms=at_ms, instrument=KEY, interval_ms=interval_ms
    )
    return inputs.since_stop


def test_a_cooldown_begins_with_a_stop_and_not_with_another_fill() -> None:
    watch = RiskWatch({"risk.cooldown": 3.0})
    since = partial(since_stop, watch)
    assert since(0) == 3, "there was none yet"
    for role in (OrderRole.SIGNAL, OrderRole.TARGET):
        watch.count_fill(fill(0), order(role=role), Position(quantity=-5), Position())
    assert since(0) == 3
    watch.count_fill(fill(0), order(role=OrderRole.STOP), Position(quantity=-5), Position())
    assert [since(at * MINUTE_MS) for at in (0, 1, 3, 4)] == [0, 1, 3, 3]


def test_a_cooldown_of_months_counts_them_by_the_calendar() -> None:
    watch = RiskWatch({"risk.cooldown": 3.0})
    watch.count_fill(fill(0), order(role=OrderRole.STOP), Position(quantity=-5), Position())
    february, march = 31 * DAY_MS, 59 * DAY_MS
    times = (0, february - 1, february, march - 1, march)
    assert [since_stop(watch, at, MONTH_MS) for at in times] == [0, 0, 1, 1, 2]


def test_a_losing_streak_counts_closed_positions_after_costs_in_their_day() -> None:
    watch = RiskWatch({"risk.losing_streak": 2.0})
    earned = 0

    def trip(profit: int, at_ms: int = 0) -> int:
        nonlocal earned
        flat = Position(realized_pnl=earned)
        held = Position(quantity=5, realized_pnl=earned, fees_paid=1)
        watch.count_fill(fill(at_ms), order(), flat, held)
        half = Position(quantity=2, realized_pnl=earned - 50, fees_paid=1)
        watch.count_fill(fill(at_ms), order(filled=9), held, half)
        earned += profit
        watch.count_fill(fill(at_ms), order(), half, Position(realized_pnl=earned, fees_paid=2))
        earned -= 2  # what the fees took, said as less profit
        return measured(watch, 1_000, at_ms).losing_streak

    assert trip(-5) == 1
    assert trip(1) == 2, "a profit that the fees eat is a loss"
    assert trip(10) == 0
    assert trip(-5) == 1
    assert trip(-5, DAY_MS) == 1, "the streak of another day is over"


# ---------------------------------------------------------------- sessions for days

# Two sessions that straddle UTC midnight, of the exchange's days 10 and 11: 18:00 to 4:00 and on.
EVENING = 18 * HOUR_MS
OPENS = tuple((day * DAY_MS + EVENING) // MINUTE_MS for day in (9, 10))
OVERNIGHT = Sessions(250.0, (10, 11), OPENS, OPENS, tuple(at + 10 * 60 for at in OPENS))
FIRST, SECOND = 9 * DAY_MS + EVENING, 10 * DAY_MS + EVENING


def test_with_sessions_the_days_loss_is_that_of_the_session() -> None:
    watch = RiskWatch(LIMITS, sessions=OVERNIGHT)
    measured(watch, 1_000, FIRST + HOUR_MS)
    after_midnight = FIRST + 8 * HOUR_MS
    assert after_midnight // DAY_MS > FIRST // DAY_MS
    assert measured(watch, 900, after_midnight).daily_loss == 100
    assert measured(watch, 890, FIRST + 10 * HOUR_MS).daily_loss == 110, "its close is its own"
    assert measured(watch, 880, SECOND).daily_loss == 120, "until the next one opens"
    assert measured(watch, 870, SECOND + 1).daily_loss == 0
    assert measured(RiskWatch(LIMITS), 900, after_midnight).daily_loss == 0


def test_with_sessions_trades_and_losses_in_a_row_count_by_session() -> None:
    watch = RiskWatch({**LIMITS, "risk.losing_streak": 2.0}, sessions=OVERNIGHT)
    opened, closed = Position(quantity=5), Position(realized_pnl=-7)
    for at_ms in (FIRST + HOUR_MS, FIRST + 7 * HOUR_MS):  # before and after midnight
        watch.count_fill(fill(at_ms), order(), Position(), opened)
        watch.count_fill(fill(at_ms + 1), order(), opened, closed)
    inputs = measured(watch, 1_000, FIRST + 8 * HOUR_MS)
    assert (inputs.daily_trades, inputs.losing_streak) == (5, 2)
    inputs = measured(watch, 1_000, SECOND + HOUR_MS)
    assert (inputs.daily_trades, inputs.losing_streak) == (1, 0)
