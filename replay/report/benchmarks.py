"""Benchmarks of a run: buy and hold, randomized accounts; what gates refused.

Both trade at the opens of the run's own bars, at its configured fee, half spread and slippage,
and pay the funding that the run recorded. They are computed here, not stored by the run.

A random timing holds the run's own positions, each with its side, its sizes and its length, at
times drawn by chance. What the run earned beyond its random timings is timing; what both earned is
the side of the market and the costs. A change of a position costs a timing what its own fills cost:
as taker fee, spread and slippage, as maker the maker's fee alone. A limit that is met without
knowledge is as fair a price as an open, so with a taker's costs makers without any timing would
beat most of their timings.

A signal is a forecast whose mean return and class probabilities agree on a side, as the attention
strategy asks; of the strategy trend it is the trend's. It is entered at the next bar's open and
left at the open one horizon later: a forward return, each signal for itself. Refused and other
signals pay the same costs, so the gross returns are compared: where every signal loses its fee, a
gate that refuses at random would seem to save it. A gate sees only what the gates before it let
pass, so what those refused is left out: else it would be credited with their choice.

A gate is said to have saved, or to have cost, only where both hold at 95 %: the difference lies
beyond its error, which counts blocks of days and not signals, for those share their market;
and it lies beyond what random gates make, which refuse as many signals in the same pattern, moved
along the run by chance.

The rule is docs/decisions.md, G21.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.broker.account import SIDES
from tracepaper.replay.report.metrics import blocks_of, mean_error, mean_of
from tracepaper.replay.report.record import AccountRecord, Bars, RunRecord
from tracepaper.replay.run_columns import Floats, Ints
from tracepaper.strategies.builtin import TREND
from tracepaper.strategies.gates.gate import gate_order
from tracepaper.strategies.types.decisions import Liquidity
from tracepaper.strategies.types.market import Side

RANDOM_TIMINGS: Final = 200
RANDOM_SEED: Final = 1
EQUAL: Final = 1e-10
"""Ends that differ by less of the start's equity are equal."""
BOUGHT: Final = "bought at the open after the first decidable bar at the run's costs, not sold"
"""How a benchmark that buys and holds came to its position, in an account's source."""
BAND: Final = (0.05, 0.5, 0.95)
"""The quantiles of the random timings' equity that are shown."""


@dataclass(frozen=True)
class RandomTimings:
    """What ``count`` random timings of one account came to; money in quote currency.

    ``low``, ``median`` and ``high`` are quantiles of their equity at the marked bars, and
    ``beaten`` the share of them that ended with less than the account; one that ended with as much
    counts a half, for a position that fits at one place alone is no worse than chance.
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


def sides_of(record: RunRecord, ledger: AccountRecord) -> list[AccountRecord]:
    """Return both sides of *ledger* in hedge mode, else itself; of all but the run's by fills."""
    stored = [shadow for shadow in record.shadows if shadow.name in SIDES]
    if not stored or ledger.name in SIDES:
        return [ledger]
    if ledger is record.account:
        return stored
    return [
        replace(ledger, held={name: _held_of(record, ledger, name, side) for name in ledger.held})
        for side in SIDES
    ]


def _held_of(record: RunRecord, ledger: AccountRecord, name: str, side: str) -> Floats:
    """Return the position on the *side* of instrument *name* after each of its bars."""
    at, held = [-1], [Decimal(0)]
    for fill in ledger.fills:
        if (fill["instrument"], fill["position_side"]) == (name, side):
            quantity = Decimal(fill["quantity_text"])
            at.append(fill["sequence"])
            held.append(held[-1] + (quantity if fill["side"] == Side.BUY else -quantity))
    decided = record.decisions.sequence[record.decisions.places[name]]
    return np.array(held, float)[np.searchsorted(at, decided, side="right") - 1]


def exposures(
    record: RunRecord, ledger: AccountRecord, held_by: Sequence[AccountRecord] | None = None
) -> tuple[Floats, Floats]:
    """Return the exposure of *ledger* at each of the record's times: net, and gross.

    The second counts what is held long and what is held short alike, so it is not negative: in
    hedge mode both sides of a symbol, which *held_by* are by default.
    """
    held_by = sides_of(record, ledger) if held_by is None else held_by
    net, every = np.zeros((2, record.times_ms.size))
    for name, held in ((name, held) for account in held_by for name, held in account.held.items()):
        bars = record.bars[name]
        closes_ms = record.bar_times.closes_of(bars.open_time_ms)
        at = np.searchsorted(closes_ms, record.times_ms, side="right") - 1
        notional = np.where(at >= 0, (held * bars.close)[at.clip(min=0)], 0.0)
        net += notional
        every += np.abs(notional)
    equity = np.where(ledger.equity[1:] > 0, ledger.equity[1:], np.nan)
    return net / equity, every / equity


def mean_exposure(record: RunRecord) -> float:
    """Return the mean exposure that buy and hold is compared at; NaN without any bar.

    It is the gross one over the bars that the run could decide, in hedge mode of each symbol's long
    side less its short one: what moves with the market.
    """
    every = exposures(record, record.account, [record.account])[1][record.decidable_from :]
    return float(np.mean(every)) if every.size else float("nan")


@dataclass(frozen=True)
class HeldUnit:
    """One unit of an instrument that was bought and is held; prices in quote currency."""

    price: float  # with the cost of trading
    opened_ms: int  # open of the bar at whose open it was bought
    settled_ms: Ints  # opens of the bars within which funding was settled since, oldest first
    paid: Floats  # [settled + 1] what the unit has paid after so many of them

    def gain(self, opens_ms: Ints | Floats, closes: Floats) -> Floats:
        """Return the gain by the *closes* of the bars that open at *opens_ms*, by the price.

        It is 0 before the unit was bought.
        """
        paid = self.paid[np.searchsorted(self.settled_ms, opens_ms, side="right")]
        return np.where(opens_ms >= self.opened_ms, (closes - paid) / self.price - 1.0, 0.0)


def bought(bars: Bars, at: int, cost_rate: float) -> HeldUnit:
    """Return a unit bought at the open of the bar *at*.

    Of the other *bars* it needs those within which funding was settled, each with the one before.
    """
    due = at + 1 + np.flatnonzero(bars.funding[at + 1 :])
    return HeldUnit(
        price=float(bars.open[at]) * (1.0 + cost_rate),
        opened_ms=int(bars.open_time_ms[at]),
        settled_ms=bars.open_time_ms[due],
        paid=np.concatenate(([0.0], (bars.close[due - 1] * bars.funding[due]).cumsum())),
    )


def buy_and_hold(record: RunRecord, share: float = 1.0) -> Floats:
    """Return the equity [times + 1] of *share* of the start's money held in equal parts, with fee.

    Bought at the open after an instrument's first bar that was not warm-up, the earliest at which
    the run could have bought. The rest of the money stays as it is; a share above 1 is bought on
    credit that costs nothing.
    """
    start = float(record.account.equity[0])
    equity = np.full(record.times_ms.size + 1, start)
    for name in record.bars:
        bars, at = record.adjusted(name), record.warm_from[name] + 1
        if at < bars.open.size:
            gain = bought(bars, at, record.cost_rate).gain(bars.open_time_ms, bars.close)
            closes_ms = record.bar_times.closes_of(bars.open_time_ms)
            closed = np.searchsorted(closes_ms, record.times_ms, side="right")
            profit = np.concatenate(([0.0], gain))[np.append(0, closed)]
            equity += share * start / len(record.bars) * profit
    return equity


class Episodes(NamedTuple):
    """The stretches of a position that keep one sign, as the changes that each is made of.

    A stretch of *size* bars has its changes at *offset* bars after its start; the last of them,
    at its size, closes it.
    """

    sizes: Ints  # [stretch], in bars
    first: Ints  # [stretch], place of its first change
    counts: Ints  # [stretch], how many changes it has
    offset: Ints  # [change]
    delta: Floats  # [change], signed
    cost: Floats  # [change], as a fraction of its notional


def episodes(held: Floats, cost: Floats) -> Episodes:
    """Return the stretches of *held* [bar] in which it keeps one sign, in order.

    *cost* [bar] is what changes at each bar cost by notional.
    """
    edges = np.flatnonzero(np.diff(np.sign(held))) + 1
    every = zip((0, *edges.tolist()), np.split(held, edges), strict=True)
    starts, parts = [], []
    for start, part in every:
        if part.size and part[0] != 0.0:
            starts.append(start)
            parts.append(part)
    # The last step of each closes it, so that a stretch can be moved anywhere as a whole.
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
        cost[bars.clip(max=held.size - 1)],  # of one that is still open it may be any
    )


def place(parts: Episodes, bars: int, chance: np.random.Generator) -> tuple[Ints, Floats, Floats]:
    """Return (bar, change, cost) of *parts* at random places, in random order, none on another.

    Every way to share out the free bars is as likely as any other. A part that reaches the last
    bar stays open there, as the run's own last position may.
    """
    order = chance.permutation(parts.sizes.size)
    sizes = parts.sizes[order]
    free = bars - int(sizes.sum())
    cuts = np.sort(chance.choice(free + sizes.size, sizes.size, replace=False))
    # A cut leaves as many free bars before a part as places before it; the parts come on top.
    starts = cuts - np.arange(sizes.size) + sizes.cumsum() - sizes
    counts = parts.counts[order]
    before = counts.cumsum() - counts
    picked = np.repeat(parts.first[order] - before, counts) + np.arange(int(counts.sum()))
    at = np.repeat(starts, counts) + parts.offset[picked]
    within = at < bars
    return at[within], parts.delta[picked][within], parts.cost[picked][within]


def value_at(bars: Bars, at: Ints, delta: Floats, closed: Ints, cost: Floats) -> Floats:
    """Return the profit of the changes *delta* of a position at the bars *at*, by each of *closed*.

    *closed* counts the bars that have closed; *cost* [change] is by notional.
    """
    position = np.concatenate(([0.0], delta.cumsum()))
    turned = delta * bars.open[at]
    cash = np.concatenate(([0.0], (-turned - np.abs(turned) * cost).cumsum()))
    settled = np.flatnonzero(bars.funding[1:]) + 1
    paid = position[np.searchsorted(at, settled)] * bars.close[settled - 1] * bars.funding[settled]
    paid = np.concatenate(([0.0], paid.cumsum()))
    done = np.searchsorted(at, closed)
    close = bars.close[np.maximum(closed - 1, 0)]
    return cash[done] + position[done] * close - paid[np.searchsorted(settled, closed)]


def change_costs(record: RunRecord, ledger: AccountRecord, name: str) -> Floats:
    """Return the cost of *ledger*'s fills in each bar [bar] of an instrument, by notional.

    Where several filled in one bar it is their mean by notional; a bar without any has a taker's.
    """
    closes_ms = record.bar_times.closes_of(record.bars[name].open_time_ms)
    fills = [fill for fill in ledger.fills if fill["instrument"] == name]
    times = np.array([fill["filled_ms"] for fill in fills], dtype=np.int64)
    at = np.searchsorted(closes_ms, times, side="right").clip(max=closes_ms.size - 1)
    notional = np.array([fill["price"] * float(fill["quantity_text"]) for fill in fills])
    as_maker = np.array([fill["liquidity"] == Liquidity.MAKER for fill in fills], dtype=np.float64)
    total, maker = (
        np.bincount(at, weights, closes_ms.size) for weights in (notional, notional * as_maker)
    )
    share = np.divide(maker, total, out=np.zeros(closes_ms.size), where=total > 0)
    return share * record.maker_rate + (1.0 - share) * record.cost_rate


def random_timings(
    record: RunRecord, ledger: AccountRecord, marks: Ints, *, count: int = RANDOM_TIMINGS
) -> RandomTimings | None:
    """Return *count* random timings of *ledger*; None where it never held a position.

    Nor are there any over a split that was not adjusted: its sizes are of other shares after it.
    *marks* are places in the equity curve at which the quantiles are taken.
    """
    parts = [
        (name, episodes(held * record.shares_of(name), change_costs(record, ledger, name)))
        for account in sides_of(record, ledger)
        for name, held in account.held.items()
    ]
    positions = sum(of.sizes.size for _, of in parts)
    if not positions or record.splits:
        return None
    chance = np.random.default_rng(RANDOM_SEED)
    times = np.concatenate((record.times_ms[:1] - 1, record.times_ms))
    wanted = times[np.append(marks, record.times_ms.size)]
    closed = {
        name: np.searchsorted(
            record.bar_times.closes_of(record.bars[name].open_time_ms), wanted, "right"
        )
        for name in ledger.held
    }
    early = [
        # Never so late that the stretches no longer fit behind it.
        min(record.warm_from[name] + 1, record.bars[name].open.size - int(of.sizes.sum()))
        for name, of in parts
    ]
    adjusted = {name: record.adjusted(name) for name in ledger.held}
    curves = np.full((count, wanted.size), float(ledger.equity[0]))
    for shadow in range(count):
        for (name, of), first in zip(parts, early, strict=True):
            bars = adjusted[name]
            at, delta, cost = place(of, bars.open.size - first, chance)
            curves[shadow] += value_at(bars, at + first, delta, closed[name], cost)
    low, median, high = np.quantile(curves[:, :-1], BAND, axis=0)
    finals = curves[:, -1]
    ahead = ledger.equity[-1] - finals
    ahead[np.abs(ahead) < EQUAL * ledger.equity[0]] = 0.0  # sums of floats in another order
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
"""Days with refused signals, and days with others, below which nothing is judged."""
SAVED: Final = "saved"
COST: Final = "cost"
BETTER: Final = "better"
WORSE: Final = "worse"
NO_EVIDENCE: Final = "no evidence"
FEW_DAYS: Final = "too few days"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RefusalJudgement:
    """How much more the other signals made than the chosen ones; returns as fractions."""

    difference: float | None
    error: float | None  # its standard error by day
    days: int  # with chosen signals
    low: float | None  # what random gates of equal coverage make, 95 % of them
    high: float | None
    sign: int  # 1 or -1 where the difference is credible, else 0


@dataclass(frozen=True)
class Refusal:
    """The decisions of one gate, or the allowed ones; returns as fractions of the notional.

    ``judged`` compares with the signals that the gate saw and let pass, the allowed ones with all
    refused ones. ``verdict`` is ``saved`` or ``cost`` of a gate, ``better`` or ``worse`` of what
    was allowed, where that is credible; ``no evidence`` or ``too few days`` where it is not; empty
    without signals.
    """

    gate: str
    decisions: int
    signals: int | None  # with a side; None in a run where nothing gives one
    measured: int  # whose horizon lies within the run, without a hole
    gross: float | None
    net: float | None
    passed: float | None  # gross, of those that it let pass; of the allowed, all refused
    judged: RefusalJudgement
    verdict: str


def refusals(record: RunRecord) -> list[Refusal]:
    """Return a row a gate that refused, in the order of the gates, and one of what was allowed."""
    refused = record.decisions.refused_by
    signals = forward_returns(record)
    reached, rows = signals[0] != 0, []
    for name in gate_order():
        if (refused == name).any():
            rows.append(_row(name, refused == name, reached, signals, record))
            reached = reached & (refused != name)
    return [*rows, _row(ALLOWED, record.decisions.allowed, signals[0] != 0, signals, record)]


def sides(record: RunRecord) -> Floats:
    """Return the side of each decision's signal: 1 up, -1 down, 0 where there is none."""
    decisions = record.decisions
    if record.config.strategy.name == TREND:  # which notes its trend wherever it decides
        trend_sides = np.zeros(decisions.sequence.size)
        for instrument, noted in record.notes.items():
            places = decisions.places[instrument]
            at = np.searchsorted(decisions.open_time_ms[places], noted[TREND].open_time_ms)
            trend_sides[places[at]] = np.sign(noted[TREND].number)
        return trend_sides
    # A model that gives a mean return alone, or probabilities alone, has the side of that.
    mean, lean = decisions.mean_return, decisions.p_up - decisions.p_down
    mean, lean = np.where(np.isnan(mean), lean, mean), np.where(np.isnan(lean), mean, lean)
    up, down = (mean > 0) & (lean > 0), (mean < 0) & (lean < 0)
    return up.astype(np.float64) - down


def forward_returns(record: RunRecord) -> tuple[Floats, Floats, Floats]:
    """Return each decision's side (1, -1, 0), and its gross and net return to the horizon.

    Returns are fractions of the notional, NaN where the run ends before the horizon or has a hole
    within it: what came after a hole of months was not the signal's.
    """
    decisions, horizon = record.decisions, record.config.gate.horizon
    side = sides(record)
    ratio = np.full(side.size, np.nan)
    for name, bars in record.bars.items():
        places = decisions.places[name]
        ahead = np.full(places.size, np.nan)
        reached = max(places.size - horizon - 1, 0)
        opens = bars.open_time_ms
        whole = record.bar_times.bars_between(opens[:reached], opens[1 + horizon :]) == 1 + horizon
        change = bars.open[1 + horizon :] / bars.open[1 : 1 + reached]
        ahead[:reached] = np.where(whole, change, np.nan)
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
    """Return the figures of the *chosen* decisions among the *signals* that *reached* their gate.

    These are every decision's of ``forward_returns``.
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
    """Return how the *chosen* of some signals did against the others.

    *gross* [signal] is in order of time, and *days* [signal] numbers the days, each of them long
    enough that a signal ends on its own or on the next.
    """
    from scipy.special import stdtrit  # takes long, and few reports have refusals

    count = int(np.count_nonzero(chosen))
    lengths = np.diff(np.append(_starts(days), days.size))
    here, there = _sums(chosen, days), _sums(~chosen, days)
    days_here, days_there = np.count_nonzero(here), np.count_nonzero(there)
    if not count or count == chosen.size:
        return RefusalJudgement(None, None, int(days_here), None, None, 0)
    means = gross[chosen].mean(), gross[~chosen].mean()
    difference = float(means[1] - means[0])
    # Each signal's own part in the error of the difference of the two means; together nothing.
    pull = np.where(chosen, -(gross - means[0]) / count, (gross - means[1]) / (chosen.size - count))
    # Summed by blocks of days before it is squared: signals of near days share their market.
    error = mean_error(pull * pull.size, days)
    if error is None or min(days_here, days_there) < LEAST_DAYS:
        return RefusalJudgement(difference, None, int(days_here), None, None, 0)
    low, high = _random(gross, chosen, int(lengths.max()))
    outside = difference > high or difference < low
    # Blocks of equal size that these counts weigh, less one: a few hold the most.
    counts = [_sums(of, blocks_of(days)) for of in (chosen, ~chosen)]
    freedom = min(max(1.0, float(of.sum() ** 2 / (of**2).sum()) - 1.0) for of in counts)
    clear = abs(difference) > float(stdtrit(freedom, 0.5 + LEVEL / 2)) * error
    sign = int(np.sign(difference)) if outside and clear else 0
    return RefusalJudgement(difference, error, int(days_here), low, high, sign)


def _starts(days: Ints) -> Ints:
    return np.flatnonzero(np.diff(days, prepend=days[:1] - 1))


def _sums(values: npt.NDArray[Any], days: Ints) -> Floats:
    return np.add.reduceat(values.astype(np.float64), _starts(days))


def _random(gross: Floats, chosen: Mask, day: int) -> tuple[float, float]:
    """Return the range of differences that random gates of equal coverage make.

    They are the gate's own pattern of refusals, moved along the signals in a circle by every step
    that takes it further than the longest *day* from where it was: as many refused, as clustered.
    """
    size, count = gross.size, int(np.count_nonzero(chosen))
    # A circular correlation: entry k is the gross sum under the pattern moved on by k signals.
    moved = np.fft.irfft(
        np.fft.rfft(gross) * np.conj(np.fft.rfft(chosen.astype(np.float64))), n=size
    )
    far = moved[day : size - day] if size > 2 * day else moved[1:]
    differences = (gross.sum() - far) / (size - count) - far / count
    low, high = np.quantile(differences, (0.5 - LEVEL / 2, 0.5 + LEVEL / 2))
    return float(low), float(high)


def verdict_on(judged: RefusalJudgement, *, allowed: bool) -> str:
    """Return the word for a gate's refusals, or for what was *allowed*."""
    if judged.difference is None:
        return ""
    if judged.error is None:
        return FEW_DAYS
    if not judged.sign:
        return NO_EVIDENCE
    if allowed:
        return WORSE if judged.sign > 0 else BETTER
    return SAVED if judged.sign > 0 else COST
