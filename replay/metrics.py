"""Performance figures from arrays alone: equity, positions, traded notional, trade profits.

Annual figures count the bars that were there and take a year of 365 days, as these markets
never close. A figure that is not defined (no loss to divide by, a single bar) is None. The
definitions are those of empyrical, with which the tests compare: sample standard deviation
(one degree of freedom less), no risk-free rate, downside measured against zero over all bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

YEAR_MS: Final = 365 * 86_400_000

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.float64] | npt.NDArray[np.int64] | Sequence[float] | Sequence[int]


@dataclass(frozen=True)
class Performance:
    """Figures of one equity curve; shares are fractions (0.1 is 10 %), never percent."""

    bars: int  # steps of the equity curve
    years: float  # bars x interval / 365 days
    total_return: float
    cagr: float | None  # compound annual growth
    volatility: float | None  # annual, of simple returns a bar
    sharpe: float | None  # annual
    sortino: float | None  # annual
    max_drawdown: float  # share lost from a peak, not negative
    drawdown_bars: int  # longest time under an earlier peak
    calmar: float | None  # cagr / max_drawdown


@dataclass(frozen=True)
class Activity:
    """How much was traded, and how the closed trades went."""

    exposure: float | None  # share of bars with a position
    turnover: float | None  # traded notional a year, in multiples of the mean equity
    trades: int  # closed
    hit_rate: float | None  # share of closed trades with a profit after costs
    profit_factor: float | None  # sum of profits / sum of losses
    mean_profit: float | None  # of a closed trade, in money


def annual_bars(interval_ms: int) -> float:
    """Return how many bars of *interval_ms* a year of 365 days holds."""
    return YEAR_MS / interval_ms


def bar_returns(equity: Numbers) -> Floats:
    """Return the simple return of each step of *equity*; shape [n - 1] for n values."""
    values = np.asarray(equity, dtype=np.float64)
    return values[1:] / values[:-1] - 1.0


def total_return(equity: Numbers) -> float:
    """Return last / first - 1; 0 for fewer than two values."""
    values = np.asarray(equity, dtype=np.float64)
    return float(values[-1] / values[0] - 1.0) if values.size > 1 else 0.0


def cagr(equity: Numbers, interval_ms: int) -> float | None:
    """Return compound annual growth; -1 where nothing is left, None without a step."""
    values = np.asarray(equity, dtype=np.float64)
    if values.size < 2:  # noqa: PLR2004 (a step takes two values)
        return None
    growth = values[-1] / values[0]
    if growth <= 0:
        return -1.0
    with np.errstate(over="ignore"):
        annual = float(np.exp(np.log(growth) * annual_bars(interval_ms) / (values.size - 1)) - 1.0)
    return annual if np.isfinite(annual) else None


def volatility(returns: Numbers, interval_ms: int) -> float | None:
    """Return the annual standard deviation of *returns*."""
    values = np.asarray(returns, dtype=np.float64)
    if values.size < 2:  # noqa: PLR2004 (one degree of freedom is spent)
        return None
    return float(values.std(ddof=1) * np.sqrt(annual_bars(interval_ms)))


def sharpe(returns: Numbers, interval_ms: int) -> float | None:
    """Return the annual Sharpe ratio without a risk-free rate; None where nothing varies."""
    values = np.asarray(returns, dtype=np.float64)
    if values.size < 2 or float(np.ptp(values)) == 0.0:  # noqa: PLR2004
        return None
    return float(values.mean() / values.std(ddof=1) * np.sqrt(annual_bars(interval_ms)))


def sortino(returns: Numbers, interval_ms: int) -> float | None:
    """Return the annual Sortino ratio against zero; None where nothing was lost."""
    values = np.asarray(returns, dtype=np.float64)
    downside = np.minimum(values, 0.0)
    if values.size < 2 or not downside.any():  # noqa: PLR2004
        return None
    risk = np.sqrt(np.mean(downside**2))
    return float(values.mean() / risk * np.sqrt(annual_bars(interval_ms)))


def drawdowns(equity: Numbers) -> Floats:
    """Return the share lost from the highest equity so far, at every value; never negative."""
    values = np.asarray(equity, dtype=np.float64)
    peaks = np.maximum.accumulate(values)
    return (peaks - values) / peaks


def longest_drawdown(equity: Numbers) -> int:
    """Return the most bars that *equity* stayed below an earlier peak in one stretch."""
    under = drawdowns(equity) > 0.0
    at_peak = np.flatnonzero(~under)
    ends = np.append(at_peak, under.size)
    return int(np.diff(ends).max(initial=1)) - 1


def performance(equity: Numbers, interval_ms: int) -> Performance:
    """Return the figures of an equity curve: one value a bar, the first before any trade."""
    values = np.asarray(equity, dtype=np.float64)
    steps = max(values.size - 1, 0)
    # Once the equity was gone, a return on it means nothing.
    returns = bar_returns(values) if (values > 0).all() else np.empty(0)
    growth = cagr(values, interval_ms)
    worst = float(drawdowns(values).max(initial=0.0))
    return Performance(
        bars=steps,
        years=steps / annual_bars(interval_ms),
        total_return=total_return(values),
        cagr=growth,
        volatility=volatility(returns, interval_ms),
        sharpe=sharpe(returns, interval_ms),
        sortino=sortino(returns, interval_ms),
        max_drawdown=worst,
        drawdown_bars=longest_drawdown(values),
        calmar=growth / worst if growth is not None and worst > 0 else None,
    )


def exposure(quantities: Numbers) -> float | None:
    """Return the share of bars whose position is not zero."""
    values = np.asarray(quantities)
    return float(np.count_nonzero(values) / values.size) if values.size else None


def turnover(notionals: Numbers, equity: Numbers, interval_ms: int) -> float | None:
    """Return the notional traded a year in multiples of the mean equity."""
    values = np.asarray(equity, dtype=np.float64)
    if values.size < 2 or values.mean() <= 0:  # noqa: PLR2004 (a step takes two values)
        return None
    traded = float(np.abs(np.asarray(notionals, dtype=np.float64)).sum())
    return traded / float(values.mean()) * annual_bars(interval_ms) / (values.size - 1)


def hit_rate(profits: Numbers) -> float | None:
    """Return the share of *profits* above zero."""
    values = np.asarray(profits, dtype=np.float64)
    return float(np.mean(values > 0)) if values.size else None


def profit_factor(profits: Numbers) -> float | None:
    """Return the sum of profits over the sum of losses; None where nothing was lost."""
    values = np.asarray(profits, dtype=np.float64)
    lost = -float(values[values < 0].sum())
    return float(values[values > 0].sum()) / lost if lost > 0 else None


def activity(
    *,
    quantities: Numbers,
    notionals: Numbers,
    equity: Numbers,
    profits: Numbers,
    interval_ms: int,
) -> Activity:
    """Return how much was traded.

    *quantities* is the position at each bar, *notionals* each fill's, *equity* one value a bar
    in the same money, *profits* each closed trade's after costs.
    """
    values = np.asarray(profits, dtype=np.float64)
    return Activity(
        exposure=exposure(quantities),
        turnover=turnover(notionals, equity, interval_ms),
        trades=values.size,
        hit_rate=hit_rate(values),
        profit_factor=profit_factor(values),
        mean_profit=float(values.mean()) if values.size else None,
    )


def monthly_returns(times_ms: Numbers, equity: Numbers) -> list[tuple[int, int, float]]:
    """Return (year, month, return) of every UTC month that *times_ms* touch, in order.

    A month's return is its last equity over the last of the month before (the first value for
    the first month), so that the months compound to the total.
    """
    values = np.asarray(equity, dtype=np.float64)
    instants = np.asarray(times_ms, dtype=np.int64).astype("datetime64[ms]")
    months = instants.astype("datetime64[M]").astype(np.int64)
    last = np.append(np.flatnonzero(np.diff(months)), values.size - 1) if values.size else months
    before = np.concatenate((values[:1], values[last[:-1]]))
    return [
        (1970 + int(month) // 12, int(month) % 12 + 1, float(end / start - 1.0))
        for month, end, start in zip(months[last], values[last], before, strict=True)
    ]
