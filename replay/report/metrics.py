"""Performance metrics of plain arrays.

Returns are measured by UTC day: the mean day and, from thirty days on, its error and annual
figures with 365 days a year, because these markets never close. With a calendar, a day is a
session, and a year has the exchange's number of them. An undefined figure (no loss to divide by, a
single day) is None. The definitions are those of empyrical, with which the tests compare: the
standard deviation is that of a sample (ddof 1); Sharpe and Sortino ratios use the returns in
excess of the risk-free rate, by default 0; downside is measured over all days.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.sessions import Calendar
from tracepaper.strategies.units import DAY_MS

YEAR_DAYS: Final = 365
DAYS_TO_ANNUALISE: Final = 30
"""Fewest days for annual figures; with fewer they would mostly show luck."""
BLOCK_DAYS: Final = 5
"""Errors treat blocks of at least so many days as independent; near days are not. Blocks of a mean
are longer where its days stay alike for longer."""
BLOCKS_LEAST: Final = 6
"""With fewer blocks, of equal size, nothing is told from chance: there are too few days."""
LEFT_LEAST: Final = 0.01
"""Of an account that had no larger share of its first equity left, a mean day says nothing."""
CREDIBLE_ERRORS: Final = 2.0
"""Chance makes a value of more errors than this in one of twenty cases."""
CSCV_GROUPS: Final = 16
"""Stretches of time in the probability of overfitting; its authors use as many."""

Floats = npt.NDArray[np.float64]
FloatOrArray = TypeVar("FloatOrArray", float, Floats)
Numbers = npt.NDArray[np.float64] | npt.NDArray[np.int64] | Sequence[float] | Sequence[int]


@dataclass(frozen=True)
class Performance:
    """Figures of one equity curve; shares are fractions (0.1 is 10 %)."""

    bars: int  # steps of the equity curve
    days: float  # with bars; the first and the last count in part
    total_return: float | None  # None if the equity is not meaningful
    mean_day: (
        float | None
    )  # simple return of UTC days; that of a longer bar is spread over its days
    error_day: float | None  # its error, by blocks of days; None if they are too few
    volatility_day: float | None
    cagr: float | None  # compound annual growth
    volatility: float | None  # annual
    sharpe: float | None  # annual
    sharpe_error: float | None  # its standard error
    probabilistic_sharpe: float | None  # probability that the true ratio is above zero
    sortino: float | None  # annual
    max_drawdown: float | None  # share lost from a peak, not negative
    drawdown_bars: int | None  # longest time under an earlier peak
    calmar: float | None  # cagr / max_drawdown
    below_zero_ms: int | None  # when next to nothing of the equity was left for the first time
    lowest: float | None  # the lowest equity, if nothing was left


@dataclass(frozen=True)
class Drawdown:
    """One stretch under an earlier peak; ``recovered_ms`` is None if it lasts."""

    depth: float  # share lost, positive
    peak_ms: int
    trough_ms: int
    recovered_ms: int | None


@dataclass(frozen=True)
class Activity:
    """How much was traded, and the results of closed trades."""

    exposure: float | None  # share of the decidable bars with a position
    mean_exposure: float | None  # positions by equity with their signs, over the same bars
    gross_exposure: float | None  # mean of the positions by equity without their signs
    turnover: float | None  # traded notional a year, in multiples of the mean equity
    trades: int  # closed
    hit_rate: float | None  # share of closed trades with a profit after costs
    profit_factor: float | None  # sum of profits / sum of losses


def is_annual(days: float) -> bool:
    """Whether *days* are enough for annual figures: thirty, rounded to a tenth.

    So a month of candles without its first or last candle is enough.
    """
    return round(days, 1) >= DAYS_TO_ANNUALISE


def year_days(calendar: Calendar | None = None) -> float:
    """Return the days of a year: 365, or the sessions of *calendar*."""
    return YEAR_DAYS if calendar is None else calendar.sessions.a_year


def days_in_year(interval_ms: int, calendar: Calendar | None = None) -> float:
    """Return the number of returns in a year: of days, or of bars if these are longer."""
    return year_days(calendar) / _days_a_bar(interval_ms, calendar)


def _days_a_bar(interval_ms: int, calendar: Calendar | None) -> float:
    if calendar is None:
        return max(interval_ms, DAY_MS) / DAY_MS
    return max(1.0, len(set(calendar.sessions.days)) / len(calendar))


def blocks_of(days: npt.NDArray[np.int64], least_days: int = BLOCK_DAYS) -> npt.NDArray[np.int64]:
    """Return the number of the block of each of *days* [row], from 0 without holes.

    Blocks are equal stretches of the calendar from the first day to the last, of at least
    *least_days*; fewer than twice as many are one block.
    """
    if not days.size:
        return days
    span = int(days.max() - days.min()) + 1
    place = (days - days.min()) * max(1, span // least_days) // span
    return np.unique(place, return_inverse=True)[1].reshape(days.shape).astype(np.int64)


def _alike_blocks(values: Floats, days: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the blocks of *days* [row] by which the mean of *values* [row] has its error.

    Their length doubles as long as the sums of neighbouring blocks are alike, by a correlation
    above zero, and ``BLOCKS_LEAST`` blocks are left: so regimes of weeks do not pass for skill.
    """
    blocks, length = blocks_of(days), BLOCK_DAYS
    while True:
        length *= 2
        longer = blocks_of(days, length)
        if not longer.size or longer.max() + 1 < BLOCKS_LEAST:
            return blocks
        summed = _deviations(values, blocks)
        # The correlation of values around their own mean is low by one over their number.
        alike = float(summed[1:] @ summed[:-1]) + float(summed @ summed) / summed.size
        if alike <= 0:
            return blocks
        blocks = longer


def _deviations(values: Floats, blocks: npt.NDArray[np.int64]) -> Floats:
    """Return by how much each of *blocks* moves the mean of *values*."""
    parts: Floats = (values - values.mean()) / values.size
    return np.bincount(blocks, parts).astype(np.float64)


def standard_error(
    values: Floats,
    days: npt.NDArray[np.int64],
    blocks: npt.NDArray[np.int64] | None = None,
) -> float | None:
    """Return the standard error of the mean of *values* [row], by *blocks*, or those of *days*.

    None for a single block. It is the error of a ratio of sums, with one degree of freedom less.
    A claim uses ``mean_error``, which allows for few blocks.
    """
    if not values.size:
        return None
    summed = _deviations(values, blocks_of(days) if blocks is None else blocks)
    if summed.size < 2:
        return None
    return math.sqrt(summed.size / (summed.size - 1) * float((summed**2).sum()))


def widened(
    error: FloatOrArray | None, sizes: Floats | npt.NDArray[np.int64]
) -> FloatOrArray | None:
    """Return the error that a standard *error* over blocks of *sizes* [block] stands for.

    By Student's t, chance exceeds ``CREDIBLE_ERRORS`` errors in one of twenty cases, whatever
    the number of blocks. A block counts by its size, since a few may hold nearly all rows. None if
    they count as fewer than ``BLOCKS_LEAST``.
    """
    blocks = float(sizes.sum()) ** 2 / float((sizes**2).sum()) if sizes.size else 0.0
    if error is None or round(blocks) < BLOCKS_LEAST:
        return None
    return _t_quantile(blocks - 1.0) / CREDIBLE_ERRORS * error


def _t_quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t; exact to .001 from four degrees of freedom on.

    Expanded about the normal's: Abramowitz and Stegun (1964), 26.7.5. SciPy would take longer to
    import than a report to compute.
    """
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def mean_error(values: Floats, days: npt.NDArray[np.int64]) -> float | None:
    """Return the error of the mean of *values* [row], by blocks of *days* [row].

    It is the standard error, ``widened`` by its blocks, which are as long as days stay alike; None
    if the days are too few.
    """
    if not values.size:
        return None
    blocks = _alike_blocks(values, days)
    return widened(standard_error(values, days, blocks), np.bincount(blocks))


def jackknife_error(without: Floats, days: npt.NDArray[np.int64]) -> Floats | None:
    """Return the error of each value of a statistic of rows, by blocks of *days* [row].

    *without* [block, value] are its values without the rows of each block of ``blocks_of``. The
    error is the jackknife's, ``widened`` by the blocks; None if they are too few.
    """
    sizes = np.bincount(blocks_of(days))
    spread = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    error: Floats = np.sqrt(spread * (sizes.size - 1) / sizes.size)
    return widened(error, sizes)


def credible_bound(error: FloatOrArray) -> FloatOrArray:
    """Return the bound that chance exceeds in one of twenty cases, for the *error* of a value."""
    return CREDIBLE_ERRORS * error


def is_credible(value: float, error: float | None) -> bool:
    """Return whether chance seldom makes a *value* of this *error*; False if *error* is None."""
    return error is not None and abs(value) > credible_bound(error) > 0.0


def mean_of(values: npt.NDArray[np.float64] | npt.NDArray[np.bool_]) -> float | None:
    """Return the mean of *values*; None without any."""
    return float(values.mean()) if values.size else None


def finite_mean(values: Floats) -> float | None:
    """Return the mean of *values*; None if there is none or one is not finite."""
    mean = mean_of(values)
    return mean if mean is not None and math.isfinite(mean) else None


def mean_by_day(values: Floats, days: npt.NDArray[np.int64]) -> tuple[float, float | None] | None:
    """Return the mean of *values* [row] with its error by *days* [row]; None without any."""
    return (float(values.mean()), mean_error(values, days)) if values.size else None


def day_ends(times_ms: Numbers, calendar: Calendar | None = None) -> npt.NDArray[np.int64]:
    """Return the indices of the last close of each day; midnight ends the previous UTC day."""
    times = np.asarray(times_ms, dtype=np.int64)
    days = (times - 1) // DAY_MS if calendar is None else calendar.days_at(times)
    return np.append(np.flatnonzero(np.diff(days)), days.size - 1) if days.size else days


def days_of(times_ms: Numbers, interval_ms: int, calendar: Calendar | None = None) -> float:
    """Return the number of days that the bars closing at *times_ms* cover, without holes.

    The first and the last UTC day count in part, if that gives fewer days.
    """
    values = np.asarray(times_ms, dtype=np.int64)
    if not values.size:
        return 0.0
    if calendar is not None and interval_ms == MONTH_MS:
        months = np.unique(calendar.places(values - 1))
        days = calendar.places(np.unique(calendar.sessions.days) * DAY_MS + DAY_MS - 1)
        return float(np.isin(days, months).sum())
    if calendar is not None:
        return day_ends(values, calendar).size * _days_a_bar(interval_ms, calendar)
    span = float(values[-1] - values[0] + interval_ms) / DAY_MS
    return min(day_ends(values).size * max(1.0, interval_ms / DAY_MS), span)


def daily_returns(times_ms: Numbers, equity: Numbers, calendar: Calendar | None = None) -> Floats:
    """Return the simple return of each day; *equity* has its initial value before all times.

    Empty if the equity ever reached ``LEFT_LEAST`` of its initial value: returns of next to nothing
    are as large as one likes, and below 0 there are none.
    """
    values = np.asarray(equity, dtype=np.float64)
    if is_used_up(values, values[:1]).any():
        return np.empty(0)
    ends = np.concatenate((values[:1], values[1:][day_ends(times_ms, calendar)]))
    return ends[1:] / ends[:-1] - 1.0


def is_used_up(equity: Floats, first: Floats | float) -> npt.NDArray[np.bool_]:
    """Return where next to nothing is left of an *equity* that was *first* at the start."""
    return np.asarray(equity <= LEFT_LEAST * np.maximum(first, 0))


def return_days(times_ms: Numbers, calendar: Calendar | None = None) -> npt.NDArray[np.int64]:
    """Return the day of each return of ``daily_returns``, counted from 1970-01-01."""
    ends = np.asarray(times_ms, dtype=np.int64)[day_ends(times_ms, calendar)]
    return (ends - 1) // DAY_MS if calendar is None else calendar.days_at(ends)


def total_return(equity: Numbers) -> float:
    """Return last / first - 1; 0 for fewer than two values."""
    values = np.asarray(equity, dtype=np.float64)
    return float(values[-1] / values[0] - 1.0) if values.size > 1 else 0.0


def cagr(growth: float, days: float, year: float = YEAR_DAYS) -> float | None:
    """Return the annual growth rate of a factor *growth* over *days*, with *year* days a year.

    The factor is above 0.
    """
    if days <= 0:
        return None
    with np.errstate(over="ignore"):
        annual = float(np.exp(np.log(growth) * year / days) - 1.0)
    return annual if np.isfinite(annual) else None


def volatility(returns: Numbers, a_year: float) -> float | None:
    """Return the annual standard deviation of *returns*; a year has *a_year* of them."""
    values = np.asarray(returns, dtype=np.float64)
    if values.size < 2:
        return None
    return float(values.std(ddof=1) * np.sqrt(a_year))


def rate_of_return(risk_free: float, a_year: float) -> float:
    """Return the rate per period that compounds to *risk_free* over *a_year* periods."""
    return float((1.0 + risk_free) ** (1.0 / a_year) - 1.0)


def sharpe(returns: Numbers, a_year: float) -> float | None:
    """Return the annual Sharpe ratio of excess returns; None if they are constant."""
    values = np.asarray(returns, dtype=np.float64)
    if values.size < 2 or float(np.ptp(values)) == 0.0:
        return None
    return float(values.mean() / values.std(ddof=1) * np.sqrt(a_year))


def sharpe_error(returns: Numbers) -> float | None:
    """Return the standard error of the Sharpe ratio of *returns* per period, with skew and tails.

    Mertens (2002): (1 - skew x SR + (kurtosis - 1) / 4 x SR^2) / (n - 1), under the root.
    """
    values = np.asarray(returns, dtype=np.float64)
    if values.size < 3 or float(np.ptp(values)) == 0.0:  # skew needs three
        return None
    # Skew and kurtosis use the population standard deviation, the ratio that of a sample.
    standard = (values - values.mean()) / values.std()
    ratio = float(values.mean() / values.std(ddof=1))
    skew, kurtosis = float(np.mean(standard**3)), float(np.mean(standard**4))
    return ratio_error(ratio, count=values.size, skew=skew, kurtosis=kurtosis)


def ratio_error(ratio: float, *, count: int, skew: float, kurtosis: float) -> float:
    """Return the standard error of a Sharpe *ratio* of *count* returns with these moments.

    *kurtosis* is 3 for normal returns. The error is 0 if a long tail makes the variance negative.
    """
    variance = (1.0 - skew * ratio + (kurtosis - 1.0) / 4.0 * ratio**2) / (count - 1)
    return float(np.sqrt(max(variance, 0.0)))


def best_by_chance(trials: int, variance: float) -> float:
    """Return the expected best Sharpe ratio of *trials* without skill; 0 for one trial.

    *variance* is that of the trials' ratios, per the same unit of time. Bailey and Lopez de Prado
    (2014), "The deflated Sharpe ratio": sqrt(V) x ((1 - g) Z(1 - 1/N) + g Z(1 - 1/(N e))), where g
    is the Euler-Mascheroni constant and Z the inverse of the normal distribution.
    """
    if trials < 2 or variance <= 0:
        return 0.0
    inverse = NormalDist().inv_cdf
    high = inverse(1.0 - 1.0 / trials)
    higher = inverse(1.0 - 1.0 / (trials * np.e))
    return float(np.sqrt(variance) * ((1.0 - np.euler_gamma) * high + np.euler_gamma * higher))


def deflated_sharpe(returns: Numbers, *, trials: int, variance: float) -> float | None:
    """Return the deflated Sharpe ratio of *returns*, the best of *trials*, as a probability.

    It is the probability that the true ratio exceeds the expected best of *trials* without skill;
    *variance* is that of the trials' ratios per return. Same source; None for constant returns.
    """
    ratio, error = sharpe(returns, 1.0), sharpe_error(returns)
    if ratio is None or not error:
        return None
    return NormalDist().cdf((ratio - best_by_chance(trials, variance)) / error)


def lost_elsewhere(groups: Floats, score: Callable[[Floats], Floats]) -> float:
    """Return the share of splits whose best candidate is below the median on the other half.

    *groups* [group, sum, candidate] has additive sums of an even number of groups. *score* maps the
    sums of a half [sum, candidate] to a score per candidate; more is better. Every half of the
    groups is used once, and a candidate at the median counts half. Combinatorially symmetric
    cross-validation: Bailey, Borwein, Lopez de Prado and Zhu (2015).
    """
    count, candidates = len(groups), groups.shape[-1]
    halves = list(itertools.combinations(range(count), count // 2))
    all_groups, lost = set(range(count)), 0.0
    for half in halves:
        best = int(score(groups[list(half)].sum(axis=0)).argmax())
        outside = score(groups[sorted(all_groups.difference(half))].sum(axis=0))
        # Rank from the worst, starting at 1; ties share their mean rank.
        under = int(np.count_nonzero(outside < outside[best]))
        rank = under + (int(np.count_nonzero(outside == outside[best])) + 1) / 2
        lost += 1.0 if 2 * rank < candidates + 1 else 0.5 * (2 * rank == candidates + 1)
    return lost / len(halves)


def overfitting_probability(daily: Floats) -> float | None:
    """Return the probability of backtest overfitting of *daily* returns [day, candidate].

    The best candidate has the highest daily Sharpe ratio; the days are cut into ``CSCV_GROUPS``
    stretches. None for fewer than two candidates or thirty days, and for equal candidates.
    """
    days, candidates = daily.shape
    if candidates < 2 or days < DAYS_TO_ANNUALISE or not np.ptp(daily, axis=1).any():
        return None
    parts = np.array_split(daily, CSCV_GROUPS)
    sums = np.stack([np.stack((part.sum(axis=0), (part**2).sum(axis=0))) for part in parts])

    def ratio(sums: Floats) -> Floats:
        """Mean ÷ root mean square, which ranks as the Sharpe ratio does; 0 without any return."""
        total, squares = sums
        root = np.sqrt(squares)
        return np.divide(total, root, out=np.zeros_like(total), where=root > 0)

    return lost_elsewhere(sums, ratio)


def probabilistic_sharpe(returns: Numbers) -> float | None:
    """Return the probability that the true Sharpe ratio of *returns* is above zero.

    Bailey and Lopez de Prado (2012), against a ratio of zero.
    """
    return deflated_sharpe(returns, trials=1, variance=0.0)


def rolling_sharpe(
    times_ms: Numbers,
    equity: Numbers,
    interval_ms: int,
    calendar: Calendar | None = None,
    risk_free: float = 0.0,
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the closes that end thirty days with bars, and the annual Sharpe ratios of these days.

    A ratio is NaN if the returns are constant; a shorter curve has none.
    """
    a_year = days_in_year(interval_ms, calendar)
    returns = daily_returns(times_ms, equity, calendar) - rate_of_return(risk_free, a_year)
    ends = np.asarray(times_ms, dtype=np.int64)[day_ends(times_ms, calendar)]
    if returns.size < DAYS_TO_ANNUALISE:
        return np.empty(0, dtype=np.int64), np.empty(0)
    windows = np.lib.stride_tricks.sliding_window_view(returns, DAYS_TO_ANNUALISE)
    spread = windows.std(axis=1, ddof=1)
    varied = spread > 0
    ratio = np.full(spread.size, np.nan)
    ratio[varied] = windows.mean(axis=1)[varied] / spread[varied]
    return ends[DAYS_TO_ANNUALISE - 1 :], ratio * np.sqrt(a_year)


def sortino(returns: Numbers, a_year: float) -> float | None:
    """Return the annual Sortino ratio of excess returns; None if they are constant or no loss."""
    values = np.asarray(returns, dtype=np.float64)
    downside = np.minimum(values, 0.0)
    if values.size < 2 or float(np.ptp(values)) == 0.0 or not downside.any():
        return None
    risk = np.sqrt(np.mean(downside**2))
    return float(values.mean() / risk * np.sqrt(a_year))


def drawdowns(equity: Numbers) -> Floats:
    """Return the share lost from the highest equity so far, at every value; not negative."""
    values = np.asarray(equity, dtype=np.float64)
    peaks = np.maximum.accumulate(values)
    return (peaks - values) / peaks


def longest_drawdown(equity: Numbers) -> int:
    """Return the most consecutive bars of *equity* below an earlier peak."""
    under = drawdowns(equity) > 0.0
    at_peak = np.flatnonzero(~under)
    ends = np.append(at_peak, under.size)
    # Between two peaks at a distance of n bars lie n - 1 bars under the first.
    return int(np.diff(ends).max(initial=1)) - 1


DRAWDOWNS_SHOWN: Final = 5


def worst_drawdowns(times_ms: Numbers, equity: Numbers) -> list[Drawdown]:
    """Return the deepest stretches of *equity* under an earlier peak, the deepest first.

    *times_ms* has a time for every value of *equity*.
    """
    times, lost = np.asarray(times_ms, dtype=np.int64), drawdowns(equity)
    # Padded on both sides, every stretch has two edges: its first bar, and one past its last.
    edges = np.flatnonzero(np.diff(np.concatenate(([False], lost > 0, [False])).astype(np.int8)))
    worst = []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        deepest = start + int(lost[start:end].argmax())
        back = int(times[end]) if end < times.size else None
        worst.append(
            Drawdown(float(lost[deepest]), int(times[start - 1]), int(times[deepest]), back)
        )
    return sorted(worst, key=lambda drawdown: -drawdown.depth)[:DRAWDOWNS_SHOWN]


def performance(
    times_ms: Numbers,
    equity: Numbers,
    interval_ms: int,
    calendar: Calendar | None = None,
    *,
    risk_free: float = 0.0,
) -> Performance:
    """Return the figures of an equity curve: a value before any trade, then one at each time.

    *times_ms* are closes. A day is a UTC day, or a session of *calendar*. *risk_free* is an annual
    rate. If next to nothing of the equity was left at any time, there are no figures a day or a
    year.
    """
    values = np.asarray(equity, dtype=np.float64)
    days = days_of(times_ms, interval_ms, calendar)
    returns = daily_returns(times_ms, values, calendar)
    error = mean_error(returns, return_days(times_ms, calendar))
    bar_days = _days_a_bar(interval_ms, calendar)  # over 1 if a bar is longer than a day
    a_year = days_in_year(interval_ms, calendar)
    annual = returns if is_annual(days) else np.empty(0)
    earned = total_return(values)
    gone = np.flatnonzero(is_used_up(values[1:], values[:1]))
    is_defined = is_annual(days) and not gone.size
    growth = cagr(1.0 + earned, days, year_days(calendar)) if is_defined else None
    worst = float(drawdowns(values).max(initial=0.0))
    excess = annual - rate_of_return(risk_free, a_year)
    ratio_stderr = sharpe_error(excess)
    return Performance(
        bars=max(values.size - 1, 0),
        days=days,
        total_return=earned,
        mean_day=float(returns.mean()) / bar_days if returns.size else None,
        error_day=None if error is None else error / bar_days,
        volatility_day=volatility(returns, 1.0 / bar_days),
        cagr=growth,
        volatility=volatility(annual, a_year),
        sharpe=sharpe(excess, a_year),
        sharpe_error=None if ratio_stderr is None else ratio_stderr * float(np.sqrt(a_year)),
        probabilistic_sharpe=probabilistic_sharpe(excess),
        sortino=sortino(excess, a_year),
        max_drawdown=worst,
        drawdown_bars=longest_drawdown(values),
        calmar=growth / worst if growth is not None and worst else None,
        below_zero_ms=int(times_ms[gone[0]]) if gone.size else None,
        lowest=float(values.min()) if gone.size else None,
    )


def activity(
    *,
    exposures: Numbers,
    gross_exposures: Numbers,
    notionals: Numbers,
    equity: Numbers,
    profits: Numbers,
    days: float,
    year_days: float = YEAR_DAYS,
) -> Activity:
    """Return the activity of an account.

    *exposures* has the positions by equity at each decidable bar, added with their signs, and
    *gross_exposures* without; *notionals* has the notional of each fill, *equity* one value per
    bar, *profits* the profit of each closed trade after costs.
    """
    values = np.asarray(profits, dtype=np.float64)
    gross = np.asarray(gross_exposures, dtype=np.float64)
    capital = float(np.mean(equity))
    traded = float(np.abs(np.asarray(notionals, dtype=np.float64)).sum())
    lost = -float(values[values < 0].sum())
    return Activity(
        exposure=mean_of(gross != 0),
        mean_exposure=finite_mean(np.asarray(exposures, dtype=np.float64)),
        gross_exposure=finite_mean(gross),
        turnover=traded / capital * year_days / days if is_annual(days) and capital > 0 else None,
        trades=values.size,
        hit_rate=mean_of(values > 0),
        profit_factor=float(values[values > 0].sum()) / lost if lost > 0 else None,
    )


def monthly_returns(times_ms: Numbers, equity: Numbers) -> list[tuple[int, int, float]]:
    """Return (year, month, return) of every UTC month in *times_ms*, in order.

    A month's return is from the last equity of the previous month (or the first value) to its own
    last, so that the months compound to the total.
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


def kupiec(breaches: int, count: int, share: float) -> float | None:
    """Return Kupiec's p value (1995) of *breaches* out of *count*, if *share* is the probability.

    None if *count* is 0.
    """
    if not count:
        return None
    parts = ((breaches, share), (count - breaches, 1.0 - share))
    ratio = sum(part * math.log(part / count / expected) for part, expected in parts if part)
    return math.erfc(math.sqrt(max(ratio, 0.0)))  # chi-squared of one degree, at 2 × ratio
