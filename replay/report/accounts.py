"""Accounts that the run could have had: buy-and-hold, and random twins on the same bars.

Both trade at the opens of the run's own bars, at its configured fee, half spread and slippage,
and pay the funding that the run recorded. They are computed here, not stored by the run.

A random twin holds the run's own positions, each with its side, its sizes and its length, at
times drawn by chance. What the run earned beyond its random twins is timing; what both earned is
the side of the market and the costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from tracepaper.replay.report.record import Bars, Floats, Ints, Ledger, RunRecord

RANDOM_TWINS: Final = 200
RANDOM_SEED: Final = 1
BAND: Final = (0.05, 0.5, 0.95)
"""The quantiles of the random twins' equity that are shown."""


@dataclass(frozen=True)
class RandomTwins:
    """What ``count`` random twins of one account came to; money in quote currency.

    ``low``, ``median`` and ``high`` are quantiles of their equity at the marked bars, and
    ``beaten`` the share of them that ended with less than the account.
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


def gains(bars: Bars, held: Floats, traded: Floats, cost_rate: float) -> Floats:
    """Return what a position earns in each bar, in quote currency.

    *held* [bar] is the position from each bar's open on and *traded* [bar] the quantity that
    changed hands there, not negative; *cost_rate* is the cost of trading by notional.
    """
    before = np.concatenate(([0.0], held[:-1]))
    last_close = np.concatenate((bars.open[:1], bars.close[:-1]))
    earned: Floats = (
        before * (bars.open - last_close)
        + held * (bars.close - bars.open)
        - traded * bars.open * cost_rate
        - before * last_close * bars.funding
    )
    return earned


def exposures(record: RunRecord, ledger: Ledger) -> tuple[Floats, Floats]:
    """Return what *ledger* held at each of the record's times by its equity: net, and gross.

    The second counts what is held long and what is held short alike, so it is not negative.
    """
    net, every = np.zeros((2, record.times_ms.size))
    for name, held in ledger.held.items():
        bars = record.bars[name]
        closes_ms = record.closes_of(bars.open_time_ms)
        at = np.searchsorted(closes_ms, record.times_ms, side="right") - 1
        notional = np.where(at >= 0, (held * bars.close)[at.clip(min=0)], 0.0)
        net += notional
        every += np.abs(notional)
    equity = np.where(ledger.equity[1:] > 0, ledger.equity[1:], np.nan)
    return net / equity, every / equity


def mean_exposure(record: RunRecord) -> float:
    """Return the run's mean gross exposure over the bars that it could decide; NaN without any."""
    every = exposures(record, record.account)[1][record.decidable_from :]
    return float(np.mean(every)) if every.size else float("nan")


def buy_and_hold(record: RunRecord, share: float = 1.0) -> Floats:
    """Return the equity [times + 1] of *share* of the start's money held in equal parts, with fee.

    Bought at the open after an instrument's first bar that was not warm-up, the earliest at which
    the run could have bought. The rest of the money stays as it is; a share above 1 is bought on
    credit that costs nothing.
    """
    start = float(record.account.equity[0])
    equity = np.full(record.times_ms.size + 1, start)
    for name in record.bars:
        bars, bought = record.adjusted(name), record.warm_from[name] + 1
        if bought < bars.open.size:
            price = bars.open[bought] * (1.0 + record.cost_rate)
            quantity = share * start / len(record.bars) / price
            held, traded = np.zeros((2, bars.open.size))
            held[bought:] = traded[bought] = quantity
            equity += over_times(record, bars, gains(bars, held, traded, record.cost_rate))
    return equity


def over_times(record: RunRecord, bars: Bars, earned: Floats) -> Floats:
    """Return the sum of *earned* up to the start and then to each of the record's times."""
    known = np.searchsorted(record.closes_of(bars.open_time_ms), record.times_ms, side="right")
    summed = np.concatenate(([0.0], earned.cumsum()))
    return np.concatenate(([0.0], summed[known]))


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


def episodes(held: Floats) -> Episodes:
    """Return the stretches of *held* [bar] in which it keeps one sign, in order."""
    edges = np.flatnonzero(np.diff(np.sign(held))) + 1
    parts = [part for part in np.split(held, edges) if part.size and part[0] != 0.0]
    # The last step of each closes it, so that a stretch can be moved anywhere as a whole.
    steps = [np.diff(part, prepend=0.0, append=0.0) for part in parts]
    offsets = [np.flatnonzero(step) for step in steps]
    counts = np.array([offset.size for offset in offsets], dtype=np.int64)
    return Episodes(
        np.array([part.size for part in parts], dtype=np.int64),
        counts.cumsum() - counts,
        counts,
        np.concatenate([np.empty(0, dtype=np.int64), *offsets]),
        np.concatenate([np.empty(0), *(step[at] for step, at in zip(steps, offsets, strict=True))]),
    )


def place(parts: Episodes, bars: int, chance: np.random.Generator) -> tuple[Ints, Floats]:
    """Return (bar, change) of *parts* at random places, in random order, none on another.

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
    return at[within], parts.delta[picked][within]


def value_at(bars: Bars, at: Ints, delta: Floats, known: Ints, cost_rate: float) -> Floats:
    """Return what the changes *delta* of a position at the bars *at* earned by each of *known*.

    *known* counts the bars that have closed. It equals the sum of ``gains`` over them, for the
    cost of the changes instead of that of all bars.
    """
    position = np.concatenate(([0.0], delta.cumsum()))
    turned = delta * bars.open[at]
    cash = np.concatenate(([0.0], (-turned - np.abs(turned) * cost_rate).cumsum()))
    settled = np.flatnonzero(bars.funding[1:]) + 1
    paid = position[np.searchsorted(at, settled)] * bars.close[settled - 1] * bars.funding[settled]
    paid = np.concatenate(([0.0], paid.cumsum()))
    done = np.searchsorted(at, known)
    close = bars.close[np.maximum(known - 1, 0)]
    earned: Floats = cash[done] + position[done] * close - paid[np.searchsorted(settled, known)]
    return earned


def random_twins(
    record: RunRecord, ledger: Ledger, marks: Ints, *, count: int = RANDOM_TWINS
) -> RandomTwins | None:
    """Return *count* random twins of *ledger*; None where it never held a position.

    Nor are there any over a split that was not adjusted: its sizes are of other shares after it.
    *marks* are places in the equity curve at which the quantiles are taken.
    """
    parts = {name: episodes(held) for name, held in ledger.held.items()}
    positions = sum(of.sizes.size for of in parts.values())
    if not positions or record.splits:
        return None
    chance = np.random.default_rng(RANDOM_SEED)
    times = np.concatenate((record.times_ms[:1] - 1, record.times_ms))
    wanted = times[np.append(marks, record.times_ms.size)]
    known = {
        name: np.searchsorted(record.closes_of(record.bars[name].open_time_ms), wanted, "right")
        for name in parts
    }
    early = {
        # Never so late that the stretches no longer fit behind it.
        name: min(record.warm_from[name] + 1, record.bars[name].open.size - int(of.sizes.sum()))
        for name, of in parts.items()
    }
    curves = np.full((count, wanted.size), float(ledger.equity[0]))
    for twin in range(count):
        for name, of in parts.items():
            bars = record.bars[name]
            at, delta = place(of, bars.open.size - early[name], chance)
            curves[twin] += value_at(bars, at + early[name], delta, known[name], record.cost_rate)
    low, median, high = np.quantile(curves[:, :-1], BAND, axis=0)
    finals = curves[:, -1]
    return RandomTwins(
        of=ledger.name,
        count=count,
        seed=RANDOM_SEED,
        positions=positions,
        low=low,
        median=median,
        high=high,
        final_median=float(np.median(finals)),
        beaten=float(np.mean(finals < ledger.equity[-1])),
    )
