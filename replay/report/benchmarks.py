"""Benchmarks of a run: buy and hold, random timings; results of the gates' refusals.

Buy and hold and random timings trade at the opens of the run's bars with its configured fee, half
spread and slippage, and pay the recorded funding. They are computed here, not stored by the run.

A random timing holds the run's positions, each with its side, sizes and length, at random times.
The difference between the run and its random timings is timing; what both earn is market direction
less costs. Each change of a position costs a timing what the run's own fills cost: fee, spread and
slippage as taker, the fee alone as maker. A maker's change keeps the distance of the run's fill
from the close of its bar: an order rests until the price goes through it, so the close is on
average beyond the fill, and makers without any timing would lose to timings that trade at opens.

A signal is a forecast whose mean return and class probabilities agree on a side, as the attention
strategy requires; for the strategy trend it is the side of the trend. Its return is that from the
next bar's open to the open one horizon later. Gates are judged by gross returns, because all
signals pay the same costs: if every signal lost its fee, a gate that refuses at random would seem
to save it. A gate is compared only with the signals that the gates before it let pass; otherwise
it would be credited with their choice.

The verdict is that a gate saved or cost money only if two conditions hold at 95 %. The difference
exceeds its error, which counts blocks of days because signals of one time share their market. And
it exceeds the differences of random gates, which refuse the same pattern of signals at random
other times of the run.

The rule is docs/decisions.md, G21.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tracepaper.replay.document.values import TOO_FEW_DAYS
from tracepaper.replay.report.metrics import (
    blocks_of,
    finite_mean,
    is_credible,
    mean_of,
    standard_error,
    widened,
)
from tracepaper.replay.report.record import AccountRecord, Bars, RunRecord
from tracepaper.replay.run_columns import Floats, Ints
from tracepaper.strategies.builtin import TREND
from tracepaper.strategies.gates.gate import gate_order
from tracepaper.strategies.types.decisions import Liquidity
from tracepaper.strategies.units import percent

RANDOM_TIMINGS: Final = 200
RANDOM_SEED: Final = 1
EQUAL: Final = 1e-10
"""Final equities that differ by a smaller fraction of the initial equity are equal."""
BOUGHT: Final = "traded at the open after the first decidable bar at the run's costs, then held"
"""How a benchmark opened its position, as part of an account's source."""
BAND: Final = (0.05, 0.5, 0.95)
"""The quantiles of the random timings' equity that are shown."""


@dataclass(frozen=True)
class RandomTimings:
    """The results of ``count`` random timings of one account; money in quote currency.

    ``low``, ``median`` and ``high`` are quantiles of their equity at the marked bars. ``beaten`` is
    the share that ended with less than the account. Equal ends count half: a position that fits at
    one time only is no worse than chance.
    """

    of: str
    count: int
    seed: int
    positions: int
    low: Floats
    median: Floats
    high: Floats
    final_median: float
    beaten: float


def exposures(record: RunRecord, ledger: AccountRecord) -> dict[str, Floats]:
    """Return the exposure of *ledger* in each symbol at each of the record's times.

    It is the position's value ÷ the account's equity, below zero if it is short. It is NaN where
    nothing of the equity is left.
    """
    left = np.where(ledger.equity[1:] > 0, ledger.equity[1:], np.nan)
    shares = {}
    for name, quantity in ledger.held.items():
        bars = record.bars[name]
        closes_ms = record.bar_times.closes_of(bars.open_time_ms)
        at = np.searchsorted(closes_ms, record.times_ms, side="right") - 1
        value = np.where(at >= 0, (quantity * bars.close)[at.clip(min=0)], 0.0)
        shares[name] = value / left
    return shares


def gross_exposure(record: RunRecord, ledger: AccountRecord) -> Floats:
    """Return the sum of the exposures of *ledger* without their signs.

    It has a value at each of the record's times.
    """
    gross = np.zeros(record.times_ms.size)
    for held in exposures(record, ledger).values():
        gross += np.abs(held)
    return gross


def mean_exposures(record: RunRecord) -> dict[str, float] | None:
    """Return the run's mean exposure in each symbol, over the bars that it could decide.

    None without such a bar, or if nothing of the equity was left at one.
    """
    means = {
        name: finite_mean(held[record.decidable_from :])
        for name, held in exposures(record, record.account).items()
    }
    finite = {name: mean for name, mean in means.items() if mean is not None}
    return finite if len(finite) == len(means) else None


@dataclass(frozen=True)
class HeldUnit:
    """One unit of an instrument, bought or sold short, and held; prices in quote currency."""

    price: float  # without the cost of trading
    cost_rate: float  # of the trade, as a fraction of the price
    opened_ms: int  # open time of the bar at which it was bought
    settled_ms: Ints  # opens of the later bars that contain a funding settlement
    paid: Floats  # [settled + 1] sum paid per unit after so many of them

    def profit(self, share: float, opens_ms: Ints | Floats, closes: Floats) -> Floats:
        """Return the profit by each of *closes* of *share* of some money, as a fraction of it.

        A *share* below zero is sold short. *opens_ms* are the open times of the bars of *closes*.
        The profit is 0 before the trade.
        """
        paid = self.paid[np.searchsorted(self.settled_ms, opens_ms, side="right")]
        price = self.price * (1.0 + math.copysign(self.cost_rate, share))
        gain = (closes - paid) / price - 1.0
        return share * np.where(opens_ms >= self.opened_ms, gain, 0.0)


def bought(bars: Bars, at: int, cost_rate: float) -> HeldUnit:
    """Return a unit traded at the open of bar *at*; later *bars* give the funding that it pays."""
    due = at + 1 + np.flatnonzero(bars.funding[at + 1 :])
    return HeldUnit(
        price=float(bars.open[at]),
        cost_rate=cost_rate,
        opened_ms=int(bars.open_time_ms[at]),
        settled_ms=bars.open_time_ms[due],
        paid=np.concatenate(([0.0], (bars.close[due - 1] * bars.funding[due]).cumsum())),
    )


def buy_and_hold(record: RunRecord, shares: Mapping[str, float] | None = None) -> Floats:
    """Return the equity [times + 1] of holding *shares* of the initial money, by instrument.

    Each instrument is bought at the open after its first bar past the warm-up, which is the
    earliest open at which the run could buy, and pays a fee; if its share is below zero it is sold
    short. The rest is cash; what exceeds the money is bought on credit without interest. By default
    all the money is held, in equal parts.
    """
    shares = dict.fromkeys(record.bars, 1.0 / len(record.bars)) if shares is None else shares
    start = float(record.account.equity[0])
    equity = np.full(record.times_ms.size + 1, start)
    for name in record.bars:
        bars, at = record.bars[name], record.warm_from[name] + 1
        if at < bars.open.size:
            unit = bought(bars, at, record.cost_rate)
            profit = start * unit.profit(shares[name], bars.open_time_ms, bars.close)
            closes_ms = record.bar_times.closes_of(bars.open_time_ms)
            closed = np.searchsorted(closes_ms, record.times_ms, side="right")
            equity += np.concatenate(([0.0], profit))[np.append(0, closed)]
    return equity


def held_source(shares: Mapping[str, float]) -> str:
    """Return the source of buy and hold at the run's mean exposure: *shares* of the start."""
    by_symbol = ", ".join(
        f"{percent(share)} of the start" + (f" in {symbol}" if len(shares) > 1 else "")
        for symbol, share in shares.items()
    )
    return f"computed: the run's mean exposure, {by_symbol}, {BOUGHT}"


class Episodes(NamedTuple):
    """The stretches in which a position keeps one sign, with the changes of each.

    A change is at ``offset`` bars after the start of its stretch. The last change of a stretch is
    at its size and closes the position.
    """

    sizes: Ints  # [stretch], in bars
    first: Ints  # [stretch], index of its first change
    counts: Ints  # [stretch], number of its changes
    offset: Ints  # [change], in bars
    delta: Floats  # [change], signed
    terms: Floats  # [change, 3], of a ``ChangeTerms``


class ChangeTerms(NamedTuple):
    """The terms of a change of the position in each bar [bar]."""

    cost: Floats  # as a fraction of the notional
    maker: Floats  # share of the notional that was filled as maker
    distance: Floats  # of these fills: price ÷ close of the bar


def episodes(held: Floats, terms: ChangeTerms) -> Episodes:
    """Return the stretches of *held* [bar] in which it keeps one sign, with their *terms*."""
    edges = np.flatnonzero(np.diff(np.sign(held))) + 1
    starts, parts = [], []
    for start, part in zip((0, *edges.tolist()), np.split(held, edges), strict=True):
        if part.size and part[0] != 0.0:
            starts.append(start)
            parts.append(part)
    # The last step closes the position, so a stretch can be moved anywhere.
    steps = [np.diff(part, prepend=0.0, append=0.0) for part in parts]
    offsets = [np.flatnonzero(step) for step in steps]
    counts = np.array([offset.size for offset in offsets], dtype=np.int64)
    offset = np.concatenate([np.empty(0, dtype=np.int64), *offsets])
    bars = offset + np.repeat(np.array(starts, dtype=np.int64), counts)
    return Episodes(
        np.array([part.size for part in parts], dtype=np.int64),
        counts.cumsum() - counts,
        counts,
        offset,
        np.concatenate([np.empty(0), *(step[at] for step, at in zip(steps, offsets, strict=True))]),
        # The terms of closing an open stretch are not used.
        np.column_stack(terms)[bars.clip(max=held.size - 1)],
    )


def place(parts: Episodes, bars: int, chance: np.random.Generator) -> tuple[Ints, Floats, Floats]:
    """Return (bar, change, terms) of *parts* in random order at random places without overlap.

    All distributions of the free bars are equally likely. A part that reaches the last bar stays
    open there, as the run's last position may.
    """
    order = chance.permutation(parts.sizes.size)
    sizes = parts.sizes[order]
    free = bars - int(sizes.sum())
    cuts = np.sort(chance.choice(free + sizes.size, sizes.size, replace=False))
    # The free bars before a part are its cut less the earlier cuts; earlier parts come on top.
    starts = cuts - np.arange(sizes.size) + sizes.cumsum() - sizes
    counts = parts.counts[order]
    before = counts.cumsum() - counts
    picked = np.repeat(parts.first[order] - before, counts) + np.arange(int(counts.sum()))
    at = np.repeat(starts, counts) + parts.offset[picked]
    within = at < bars
    return at[within], parts.delta[picked][within], parts.terms[picked][within]


def value_at(bars: Bars, at: Ints, delta: Floats, closed: Ints, terms: Floats) -> Floats:
    """Return the profit of a position that changes by *delta* at the bars *at*.

    The profit is that after each number of *closed* bars. *terms* [change, 3] are those of
    ``ChangeTerms``.
    """
    position = np.concatenate(([0.0], delta.cumsum()))
    cost, maker, distance = terms.T
    price = (1.0 - maker) * bars.open[at] + maker * distance * bars.close[at]
    notional = delta * price
    cash = np.concatenate(([0.0], (-notional - np.abs(notional) * cost).cumsum()))
    settled = np.flatnonzero(bars.funding[1:]) + 1
    paid = position[np.searchsorted(at, settled)] * bars.close[settled - 1] * bars.funding[settled]
    paid = np.concatenate(([0.0], paid.cumsum()))
    done = np.searchsorted(at, closed)
    close = bars.close[np.maximum(closed - 1, 0)]
    return cash[done] + position[done] * close - paid[np.searchsorted(settled, closed)]


def change_terms(record: RunRecord, ledger: AccountRecord, name: str) -> ChangeTerms:
    """Return the terms of *ledger*'s fills in each bar of an instrument.

    Several fills in one bar have their mean, weighted by notional. A bar without a fill has the
    terms of a taker.
    """
    closes_ms = record.bar_times.closes_of(record.bars[name].open_time_ms)
    fills = [fill for fill in ledger.fills if fill["instrument"] == name]
    times = np.array([fill["filled_ms"] for fill in fills], dtype=np.int64)
    at = np.searchsorted(closes_ms, times, side="right").clip(max=closes_ms.size - 1)
    notional = np.array([fill["price"] * float(fill["quantity_text"]) for fill in fills])
    as_maker = np.array([fill["liquidity"] == Liquidity.MAKER for fill in fills], dtype=np.float64)
    prices = np.array([fill["price"] for fill in fills], dtype=np.float64)
    weights = (notional, notional * as_maker, notional * as_maker * prices)
    total, maker, paid = (np.bincount(at, weight, closes_ms.size) for weight in weights)
    share = np.divide(maker, total, out=np.zeros(closes_ms.size), where=total > 0)
    mean = np.divide(paid, maker, out=np.zeros(closes_ms.size), where=maker > 0)
    cost = share * record.maker_rate + (1.0 - share) * record.cost_rate
    return ChangeTerms(cost, share, mean / record.bars[name].close)


def random_timings(
    record: RunRecord, ledger: AccountRecord, marks: Ints, *, count: int = RANDOM_TIMINGS
) -> RandomTimings | None:
    """Return *count* random timings of *ledger*; None if it never held a position.

    *marks* are the indices of the equity curve at which the quantiles are taken.
    """
    parts = [
        (name, episodes(held, change_terms(record, ledger, name)))
        for name, held in ledger.held.items()
    ]
    positions = sum(stretches.sizes.size for _, stretches in parts)
    if not positions:
        return None
    chance = np.random.default_rng(RANDOM_SEED)
    times = np.concatenate((record.times_ms[:1] - 1, record.times_ms))
    marks_ms = times[np.append(marks, record.times_ms.size)]
    closed = {
        name: np.searchsorted(
            record.bar_times.closes_of(record.bars[name].open_time_ms), marks_ms, "right"
        )
        for name in ledger.held
    }
    early = [
        # Early enough for all stretches to fit behind it.
        min(record.warm_from[name] + 1, record.bars[name].open.size - int(stretches.sizes.sum()))
        for name, stretches in parts
    ]
    curves = np.full((count, marks_ms.size), float(ledger.equity[0]))
    for shadow in range(count):
        for (name, stretches), first in zip(parts, early, strict=True):
            bars = record.bars[name]
            at, delta, terms = place(stretches, bars.open.size - first, chance)
            curves[shadow] += value_at(bars, at + first, delta, closed[name], terms)
    low, median, high = np.quantile(curves[:, :-1], BAND, axis=0)
    finals = curves[:, -1]
    ahead = ledger.equity[-1] - finals
    ahead[np.abs(ahead) < EQUAL * ledger.equity[0]] = 0.0  # equal sums of floats in another order
    return RandomTimings(
        of=ledger.name,
        count=count,
        seed=RANDOM_SEED,
        positions=positions,
        low=low,
        median=median,
        high=high,
        final_median=float(np.median(finals)),
        beaten=float(np.mean(np.heaviside(ahead, 0.5))),
    )


ALLOWED: Final = "allowed"
LEVEL: Final = 0.95
LEAST_DAYS: Final = 10
"""Fewest days with refused signals, and with others, for a verdict."""
SAVED: Final = "saved"
COST: Final = "cost"
BETTER: Final = "better"
WORSE: Final = "worse"
NO_EVIDENCE: Final = "no evidence"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RefusalJudgement:
    """Mean return of the other signals less that of the chosen ones, as a fraction."""

    difference: float | None
    error: float | None  # its error by day
    days: int  # that have chosen signals
    low: float | None  # 95 % range of random gates of equal coverage
    high: float | None
    sign: int  # 1 or -1 if the difference is credible, else 0


@dataclass(frozen=True)
class Refusal:
    """The decisions that one gate refused, or the allowed ones; returns are fractions of notional.

    ``judged`` compares them with the signals that reached the gate and passed; the allowed ones
    with all refused ones. ``verdict`` is ``saved`` or ``cost`` for a gate, ``better`` or ``worse``
    for the allowed ones; ``no evidence`` or ``too few days`` if that is not credible; empty without
    signals.
    """

    gate: str
    decisions: int
    signals: int | None  # with a side; None if no decision of the run has one
    measured: int  # signals whose horizon lies within the run, without a hole
    gross: float | None
    net: float | None
    passed: float | None  # gross, of those that it let pass (for the allowed, of all refused)
    judged: RefusalJudgement
    verdict: str


def refusals(record: RunRecord) -> list[Refusal]:
    """Return a row for each gate that refused, in the gates' order, and one for the allowed."""
    refused = record.decisions.refused_by
    signals = forward_returns(record)
    reached, rows = signals[0] != 0, []
    for name in gate_order():
        if (refused == name).any():
            rows.append(_row(name, refused == name, reached, signals, record))
            reached = reached & (refused != name)
    return [*rows, _row(ALLOWED, record.decisions.allowed, signals[0] != 0, signals, record)]


def sides(record: RunRecord) -> Floats:
    """Return the side of each decision's signal: 1 up, -1 down, 0 without a signal."""
    decisions = record.decisions
    if record.config.strategy.name == TREND:  # it notes its trend whenever it decides
        trend_sides = np.zeros(decisions.sequence.size)
        for instrument, noted in record.notes.items():
            places = decisions.places[instrument]
            at = np.searchsorted(decisions.open_time_ms[places], noted[TREND].open_time_ms)
            trend_sides[places[at]] = np.sign(noted[TREND].number)
        return trend_sides
    # A model may give a mean return or probabilities alone; then these decide the side.
    mean, lean = decisions.mean_return, decisions.p_up - decisions.p_down
    mean, lean = np.where(np.isnan(mean), lean, mean), np.where(np.isnan(lean), mean, lean)
    up, down = (mean > 0) & (lean > 0), (mean < 0) & (lean < 0)
    return up.astype(np.float64) - down


def forward_returns(record: RunRecord) -> tuple[Floats, Floats, Floats]:
    """Return each decision's side (1, -1, 0), and its gross and net return to the horizon.

    Returns are fractions of the notional; NaN if the run ends before the horizon or has a hole in
    it, because a move over a hole of months is not the signal's.
    """
    decisions, horizon = record.decisions, record.config.gate.horizon
    side = sides(record)
    ratio = np.full(side.size, np.nan)
    for name, bars in record.bars.items():
        places = decisions.places[name]
        ahead = np.full(places.size, np.nan)
        reached = max(places.size - horizon - 1, 0)
        opens = bars.open_time_ms
        unbroken = (
            record.bar_times.bars_between(opens[:reached], opens[1 + horizon :]) == 1 + horizon
        )
        change = bars.open[1 + horizon :] / bars.open[1 : 1 + reached]
        ahead[:reached] = np.where(unbroken, change, np.nan)
        ratio[places] = ahead
    gross = side * (ratio - 1.0)
    return side, gross, gross - record.cost_rate * (1.0 + ratio)


def _row(
    name: str,
    chosen: Mask,
    reached: Mask,
    signals: tuple[Floats, Floats, Floats],
    record: RunRecord,
) -> Refusal:
    """Return the figures of the *chosen* decisions among those that *reached* the gate.

    *signals* is the result of ``forward_returns``.
    """
    side, gross, net = signals
    measured = reached & np.isfinite(gross)
    picked, gross, net = chosen[measured], gross[measured], net[measured]
    spans = record.spans_of(record.decisions.open_time_ms[measured], record.config.gate.horizon)
    judged = judge(gross, picked, spans)
    return Refusal(
        gate=name,
        decisions=int(np.count_nonzero(chosen)),
        signals=int(np.count_nonzero(chosen & (side != 0))) if side.any() else None,
        measured=int(np.count_nonzero(picked)),
        gross=mean_of(gross[picked]),
        net=mean_of(net[picked]),
        passed=mean_of(gross[~picked]),
        judged=judged,
        verdict=verdict_on(judged, allowed=name == ALLOWED),
    )


def judge(gross: Floats, chosen: Mask, days: Ints) -> RefusalJudgement:
    """Compare the returns of the *chosen* signals with those of the others.

    *gross* [signal] is in order of time. *days* [signal] is the number of the signal's day; days
    are so long that a signal ends on its own or on the next.
    """
    count = int(np.count_nonzero(chosen))
    lengths = np.diff(np.append(_starts(days), days.size))
    here, there = _sums(chosen, days), _sums(~chosen, days)
    days_here, days_there = np.count_nonzero(here), np.count_nonzero(there)
    if not count or count == chosen.size:
        return RefusalJudgement(None, None, int(days_here), None, None, 0)
    means = gross[chosen].mean(), gross[~chosen].mean()
    difference = float(means[1] - means[0])
    # Each signal's contribution to the error of the difference of the means; they sum to 0.
    pull = np.where(chosen, -(gross - means[0]) / count, (gross - means[1]) / (chosen.size - count))
    # Sum by blocks of days before squaring: signals of near days share their market.
    spread = standard_error(pull * pull.size, days)
    errors = [widened(spread, _sums(mask, blocks_of(days))) for mask in (chosen, ~chosen)]
    error = None if None in errors else max(filter(None, errors), default=0.0)
    if error is None or min(days_here, days_there) < LEAST_DAYS:
        return RefusalJudgement(difference, None, int(days_here), None, None, 0)
    low, high = _random(gross, chosen, int(lengths.max()))
    outside = difference > high or difference < low
    sign = int(np.sign(difference)) if outside and is_credible(difference, error) else 0
    return RefusalJudgement(difference, error, int(days_here), low, high, sign)


def _starts(days: Ints) -> Ints:
    return np.flatnonzero(np.diff(days, prepend=days[:1] - 1))


def _sums(values: npt.NDArray[Any], days: Ints) -> Floats:
    return np.add.reduceat(values.astype(np.float64), _starts(days))


def _random(gross: Floats, chosen: Mask, day: int) -> tuple[float, float]:
    """Return the range of differences of random gates of equal coverage.

    A random gate has the gate's pattern of refusals, rotated along the signals by more than the
    longest *day*: it refuses as many signals, as clustered.
    """
    size, count = gross.size, int(np.count_nonzero(chosen))
    # Circular correlation: entry k is the gross sum under the pattern rotated by k signals.
    moved = np.fft.irfft(
        np.fft.rfft(gross) * np.conj(np.fft.rfft(chosen.astype(np.float64))), n=size
    )
    far = moved[day : size - day] if size > 2 * day else moved[1:]
    differences = (gross.sum() - far) / (size - count) - far / count
    low, high = np.quantile(differences, (0.5 - LEVEL / 2, 0.5 + LEVEL / 2))
    return float(low), float(high)


def verdict_on(judged: RefusalJudgement, *, allowed: bool) -> str:
    """Return the verdict on a gate's refusals, or on the *allowed* decisions."""
    if judged.difference is None:
        return ""
    if judged.error is None:
        return TOO_FEW_DAYS
    if not judged.sign:
        return NO_EVIDENCE
    if allowed:
        return WORSE if judged.sign > 0 else BETTER
    return SAVED if judged.sign > 0 else COST
