"""Accounts that the run could have had: buy-and-hold, and random twins on the same bars.

Both trade at the opens of the run's own bars, at its configured fee, half spread and slippage,
and pay the funding that the run recorded. They are computed here, not stored by the run.

A random twin holds the run's own positions, each with its side, its sizes and its length, at
times drawn by chance. What the run earned beyond its random twins is timing; what both earned is
the side of the market and the costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

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


def buy_and_hold(record: RunRecord) -> Floats:
    """Return the equity [times + 1] of the start's money held in equal shares, fee and all.

    Bought at the open after the first decision, the earliest at which the run could have bought.
    """
    start = float(record.account.equity[0])
    equity = np.full(record.times_ms.size + 1, start)
    for bars in record.bars.values():
        if bars.open.size > 1:
            quantity = start / len(record.bars) / (bars.open[1] * (1.0 + record.cost_rate))
            held = np.full(bars.open.size, quantity)
            held[0] = 0.0
            traded = np.zeros(bars.open.size)
            traded[1] = quantity
            equity += over_times(record, bars, gains(bars, held, traded, record.cost_rate))
    return equity


def over_times(record: RunRecord, bars: Bars, earned: Floats) -> Floats:
    """Return the sum of *earned* up to the start and then to each of the record's times."""
    known = np.searchsorted(bars.open_time_ms + record.interval_ms, record.times_ms, side="right")
    summed = np.concatenate(([0.0], earned.cumsum()))
    return np.concatenate(([0.0], summed[known]))


def episodes(held: Floats) -> list[Floats]:
    """Return the stretches of *held* [bar] in which it keeps one sign, in order."""
    sign = np.sign(held)
    edges = np.flatnonzero(np.diff(sign)) + 1
    return [part for part in np.split(held, edges) if part.size and part[0] != 0.0]


def place(parts: Sequence[Floats], bars: int, chance: np.random.Generator) -> tuple[Floats, Floats]:
    """Return (held, traded) [bar] with *parts* at random places, in random order, none on another.

    Every way to share out the free bars is as likely as any other. A part that reaches the last
    bar stays open there, as the run's own last position may.
    """
    order = chance.permutation(len(parts))
    shuffled = [parts[index] for index in order]
    sizes = np.array([part.size for part in shuffled], dtype=np.int64)
    free = bars - int(sizes.sum())
    cuts = np.sort(chance.choice(free + len(parts), len(parts), replace=False))
    # A cut leaves as many free bars before a part as places before it; the parts come on top.
    starts = cuts - np.arange(len(parts)) + sizes.cumsum() - sizes
    held, traded = np.zeros(bars), np.zeros(bars + 1)
    if parts:
        values = np.concatenate(shuffled)
        held[_spread(starts, sizes)] = values
        # Every part between two zeros: the steps between neighbours are what changed hands.
        apart = np.zeros(values.size + len(parts) + 1)
        apart[_spread(sizes.cumsum() - sizes + np.arange(len(parts)) + 1, sizes)] = values
        np.add.at(traded, _spread(starts, sizes + 1), np.abs(np.diff(apart)))
    return held, traded[:-1]


def _spread(starts: Ints, sizes: Ints) -> Ints:
    """Return start, start + 1, … of every stretch, one stretch after the other."""
    before = sizes.cumsum() - sizes
    places: Ints = np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))
    return places


def random_twins(
    record: RunRecord, ledger: Ledger, marks: Ints, *, count: int = RANDOM_TWINS
) -> RandomTwins | None:
    """Return *count* random twins of *ledger*; None where it never held a position.

    *marks* are places in the equity curve at which the quantiles are taken.
    """
    parts = {name: episodes(held) for name, held in ledger.held.items()}
    positions = sum(len(of) for of in parts.values())
    if not positions:
        return None
    chance = np.random.default_rng(RANDOM_SEED)
    early = {name: _first_warm(record, name) for name in parts}
    curves, finals = np.empty((count, marks.size)), np.empty(count)
    for twin in range(count):
        equity = np.full(record.times_ms.size + 1, float(ledger.equity[0]))
        for name, of in parts.items():
            bars = record.bars[name]
            skipped = min(early[name], bars.open.size - sum(part.size for part in of))
            held, traded = np.zeros((2, bars.open.size))
            held[skipped:], traded[skipped:] = place(of, bars.open.size - skipped, chance)
            equity += over_times(record, bars, gains(bars, held, traded, record.cost_rate))
        curves[twin], finals[twin] = equity[marks], equity[-1]
    low, median, high = np.quantile(curves, BAND, axis=0)
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


def _first_warm(record: RunRecord, instrument: str) -> int:
    """Return the first bar of *instrument* at which an order could be filled."""
    own = record.decisions.instrument == instrument
    warm = np.flatnonzero(record.decisions.refused_by[own] != "warm")
    return int(warm[0]) + 1 if warm.size else 0
