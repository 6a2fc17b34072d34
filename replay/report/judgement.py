"""The sentence that answers whether a run was any good.

The rule is docs/python.md, Y7.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from tracepaper.replay.document.values import written
from tracepaper.replay.report import metrics
from tracepaper.replay.report.record import RunRecord
from tracepaper.replay.report.report import (
    BUY_AND_HOLD,
    HELD_AT_EXPOSURE,
    buy_and_hold_at_equal_exposure,
)
from tracepaper.replay.report.trades import ClosedTrade
from tracepaper.strategies.units import count_of, percent

TRADES_TO_JUDGE: Final = 30
"""Fewest closed trades for a judgement; with fewer one of them may make the whole result."""


def judgement(record: RunRecord, closed: Sequence[ClosedTrade]) -> str:
    """Return the answer to "was it any good?": result, trades, benchmark, luck.

    *closed* are the closed trades of the run's account. The benchmark is buy and hold at the run's
    mean exposure, since a run that holds less is expected to win and to lose less.
    """
    account, times_ms, bars = record.account, record.times_ms, record.bar_times
    if metrics.is_used_up(account.equity, account.equity[0]).any():
        least = f"less than {percent(metrics.LEFT_LEAST, 0)}"
        left = "nothing" if (account.equity <= 0).any() else least
        return f"Was it any good? No: at some time {left} of its equity was left."
    if not account.fills:
        return "Was it any good? It never traded, so there is nothing to judge."
    shadow, benchmarks = record.held_shadow, buy_and_hold_at_equal_exposure(record)
    held = benchmarks[0].equity if shadow is None else shadow.equity
    is_alike = shadow is not None or len(benchmarks) > 1
    own_days, held_days = (
        metrics.daily_returns(times_ms, equity, bars.calendar) for equity in (account.equity, held)
    )
    # A short benchmark that lost everything has no daily returns; then the result counts alone.
    difference = own_days - (held_days if held_days.size else 0.0)
    error = metrics.mean_error(difference, metrics.return_days(times_ms, bars.calendar))
    ahead = float(difference.mean())
    if error is None:
        verdict = "these are too few days to tell skill from luck"
    elif len(closed) < TRADES_TO_JUDGE:
        verdict = "these are too few trades to tell skill from luck"
    elif not metrics.is_credible(ahead, error):
        verdict = "luck alone makes such a difference"
    else:
        verdict = f"{'luck' if ahead > 0 else 'bad luck'} seldom makes such a difference"
    length = written(metrics.days_of(times_ms, bars.interval_ms, bars.calendar), "days")
    return (
        f"Was it any good? It {_made(account.equity)} in {_trades(record, closed)} over {length} "
        f"days, and {HELD_AT_EXPOSURE if is_alike else BUY_AND_HOLD} {_made(held)}: "
        f"{verdict}."
    )


def _made(equity: metrics.Numbers) -> str:
    """Return the total return of *equity* with its verb."""
    total = metrics.total_return(equity)
    return f"{'lost' if total < 0 else 'made'} {written(abs(total), 'percent')}"


def _trades(record: RunRecord, closed: Sequence[ClosedTrade]) -> str:
    """Return the number of *closed* trades and their median size."""
    if not closed:
        return "no closed trade"
    size = median(trade.stake for trade in closed)
    share = written(size / float(record.account.equity[0]), "share")
    coins = {record.instruments[trade.instrument].quote_coin for trade in closed}
    unit = f" {coins.pop()}" if len(coins) == 1 else ""
    each = "" if len(closed) == 1 else " in the median"
    return (
        f"{count_of(len(closed), 'trade')} of {written(size, 'money')}{unit}{each} ({share} of the "
        "account)"
    )
