"""What the risk gates measure, from bar to bar and from day to day."""

from __future__ import annotations

import pytest

from tracepaper.daemon.engine.risk import RiskWatch
from tracepaper.strategies.gates import GateInputs
from tracepaper.strategies.market import DAY_MS
from tracepaper.strategies.types import MONEY_SCALE, Account

LIMITS = {"risk.drawdown": 0.1}


def account(equity: int) -> Account:
    return Account(0, equity * MONEY_SCALE, 0, 0, 0, 0)


def measured(watch: RiskWatch, equity: int, market_ms: int = 0) -> GateInputs:
    seen = GateInputs()
    watch.measure(seen, account=account(equity), market_ms=market_ms)
    return seen


def test_drawdown_is_a_fraction_of_the_highest_equity() -> None:
    watch = RiskWatch(LIMITS)
    assert measured(watch, 1_000).drawdown == 0
    measured(watch, 2_000)
    assert measured(watch, 1_500).drawdown == pytest.approx(0.25)
    assert measured(watch, 1_500, DAY_MS).drawdown == pytest.approx(0.25)


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
    watch.count_trade(DAY_MS - 1)
    assert measured(watch, 1_000).daily_trades == 2
    watch.count_trade(DAY_MS)  # filled before the first bar of its day has closed
    assert measured(watch, 1_000, DAY_MS).daily_trades == 2
    watch.count_trade(DAY_MS)
    assert measured(watch, 1_000, DAY_MS).daily_trades == 3
    assert measured(watch, 1_000, 2 * DAY_MS).daily_trades == 1


def test_the_carried_state_says_when_it_changed() -> None:
    watch = RiskWatch(LIMITS)
    seen = GateInputs()
    states = []
    for at_ms, equity in enumerate((1_000, 990, 1_001)):
        watch.measure(seen, account=account(equity), market_ms=at_ms)
        states.append(watch.state)
    assert states[0] is states[1]
    assert states[1] is not states[2]


def test_without_a_limit_nothing_is_measured() -> None:
    assert not RiskWatch({}).active
