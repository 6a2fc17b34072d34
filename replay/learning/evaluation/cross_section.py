"""Several assets at once: rank correlations by close, and what portfolio weights earned.

Each holds its weights for the same bars and pays the same fee for what it trades, drift included:
between two decisions weights move with the prices, and going back costs. Figures are by day.

The rules are docs/several.md, P29.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tracepaper.replay.learning.card import ROUND_TRIP_COST
from tracepaper.replay.learning.evaluation.forecasts import HorizonForecasts
from tracepaper.replay.learning.panel import Ids, Labelled
from tracepaper.replay.learning.splits import SYMBOL_BITS
from tracepaper.replay.learning.statistics import (
    bootstrapped,
    daily_sums,
)
from tracepaper.replay.report.honesty import FEW_DAYS
from tracepaper.strategies.allocation import Rule, allocate, covariance, require_solver
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.units import DAY_MS

RELATIVE = "relative"
"""The head of relative returns among the forecasts that rank the assets."""


class AcrossAssets(NamedTuple):
    """What a network over several assets says beside the forecasts of each.

    ``relative`` holds by horizon, in bars, the expected relative returns over the rows of that
    horizon's forecasts; ``held`` what its weights and every rule's made, by name, empty where there
    was no decision.
    """

    relative: Mapping[int, Array]
    held: Mapping[str, Weighed]

    def expected(self, found: HorizonForecasts) -> dict[str, Array]:
        """Return all that ranks the assets at the horizon of *found*, by name, in its units."""
        return {RELATIVE: self.relative[found.horizon], **found.means}


class CloseRanks(NamedTuple):
    """The rank correlation across the assets at each close, oldest first, and the close's day."""

    value: Array
    days: NDArray[np.int64]


def close_ranks(found: HorizonForecasts, expected: Array) -> CloseRanks:
    """Return Spearman's correlation of *expected* with realised log returns, close by close.

    *expected* are in the units of each row. A close counts where every asset has a row.
    """
    order = np.argsort(found.keys)
    _, counts = np.unique(found.keys[order] >> SYMBOL_BITS, return_counts=True)
    assets = int(counts.max())
    whole = counts == assets
    rows = order[np.repeat(whole, counts)].reshape(-1, assets).T  # [asset, close]
    value = rank_correlations((expected * found.unit)[rows], (found.value * found.unit)[rows])
    return CloseRanks(value, found.days[rows[0]])


def rank_correlations(expected: Array, realised: Array) -> Array:
    """Return Spearman's correlation across the assets, one a close, of [asset, close].

    0 where either is the same for all.
    """
    first, second = (rankdata(values, axis=0) for values in (expected, realised))
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    spread = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    found: Array = np.divide(
        (first * second).sum(axis=0), spread, out=np.zeros(len(spread)), where=spread > 0
    )
    return found


FEE: Final = ROUND_TRIP_COST / 2.0
COVARIANCE_BARS: Final = 240
"""Bars of the covariance that rules weigh by."""
NETWORK: Final = "network"
RULES: Final = (Rule.EQUAL, Rule.INVERSE, Rule.MINIMUM)
_BASIS_POINTS: Final = 1e4

WeightsAt = Callable[[Labelled, Ids], Array]
"""The weights [asset, decision] at some rows of a panel."""


@dataclass(frozen=True)
class Weighed:
    """What holding some weights made, decision by decision."""

    net: Array  # [decision]: simple returns until the next one, less fees
    turnover: Array
    gross: Array  # sizes summed over the assets
    days: NDArray[np.int64]


class Weighing(NamedTuple):
    """Decisions of one panel: what each asset made until the next one, and on which day."""

    labelled: Labelled
    rows: Ids
    gains: Array  # [asset, decision]
    days: NDArray[np.int64]


def weighings(part: Sequence[Labelled], *, every: int, field: int) -> list[Weighing]:
    """Return the decisions of *part*, each with *field* bars before it and a known outcome."""
    found = []
    for one in part:
        rows = one.panel.decisions(one.whole_rows(max(field, COVARIANCE_BARS + 1)), every)
        within = one.samples[0].weights[:, one.samples[0].horizons.index(every)] > 0
        rows = rows[within[rows]]
        if len(rows):
            times = one.panel.segments[0].open_time_ms[rows]
            gains = np.expm1(one.panel.moves(every)[:, rows])
            found.append(Weighing(one, rows, gains, times // DAY_MS))
    return found


def weighed(decisions: Sequence[Weighing], weights: WeightsAt) -> Weighed:
    """Return what holding *weights* made, net of fees; a panel begins with nothing held."""
    parts = [_held(one, weights(one.labelled, one.rows)) for one in decisions]
    return Weighed(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("net", "turnover", "gross", "days")
        )
    )


def _held(one: Weighing, weights: Array) -> Weighed:
    """Return what *weights* [asset, decision] made of the decisions of one panel."""
    made = (weights * one.gains).sum(axis=0)
    drifted = weights * (1.0 + one.gains) / (1.0 + made)
    before = np.concatenate([np.zeros((len(weights), 1)), drifted[:, :-1]], axis=1)
    turnover = np.abs(weights - before).sum(axis=0)
    return Weighed(made - FEE * turnover, turnover, np.abs(weights).sum(axis=0), one.days)


def rule_weights(rule: Rule) -> WeightsAt:
    """Return what weighs by *rule* and the covariance of the last ``COVARIANCE_BARS``.

    Its weights are found anew at the first decision of each day, which is kinder to its costs.
    """

    def found(one: Labelled, rows: Ids) -> Array:
        segments = one.panel.segments
        moves = np.diff(np.log(np.stack([s.close for s in segments])), axis=1)
        days = segments[0].open_time_ms[rows] // DAY_MS
        _, begins, place = np.unique(days, return_index=True, return_inverse=True)
        held = [
            allocate(rule, covariance(moves[:, row - COVARIANCE_BARS : row].T))
            for row in rows[begins].tolist()
        ]
        return np.stack(held, axis=1)[:, place]

    return found


def rules_here() -> tuple[Rule, ...]:
    """Return the rules that can be solved: without cvxpy all but minimum variance."""
    try:
        require_solver(Rule.MINIMUM)
    except ConfigInvalid:
        return tuple(rule for rule in RULES if rule is not Rule.MINIMUM)
    return RULES


def rules_weighed(decisions: Sequence[Weighing]) -> dict[str, Weighed]:
    """Return what every rule that can be solved here made, by its name."""
    return {rule.value: weighed(decisions, rule_weights(rule)) for rule in rules_here()}


def weighed_figures(made: Mapping[str, Weighed]) -> dict[str, Any]:
    """Return the figures of what weights made, the network's and every rule's, as a card has them.

    Net returns are basis points a day; ``against`` is the network's less the rule's, day by day.
    """
    own = made[NETWORK]
    days = np.unique(own.days)
    return {
        "decisions": len(own.days),
        "days": len(days),
        "fee": FEE,
        "net_bp_a_day": {name: _a_day(one.net, one.days) for name, one in made.items()},
        "turnover_a_day": {
            name: round(float(one.turnover.sum()) / len(days), 4) for name, one in made.items()
        },
        "gross": {name: round(float(one.gross.mean()), 4) for name, one in made.items()},
        "against_bp_a_day": {
            name: _a_day(own.net - one.net, own.days)
            for name, one in made.items()
            if name != NETWORK
        },
    }


def _a_day(net: Array, days: NDArray[np.int64]) -> list[float]:
    """Return the mean of a day's sum of *net*, in basis points, with its error over days."""
    daily = daily_sums(net[None] * _BASIS_POINTS, days, np.unique(days))  # [day, 1]
    counted = np.concatenate([daily, np.ones_like(daily)], axis=1)
    found = bootstrapped(counted, lambda sums: sums[:, 0] / sums[:, 1])
    return [round(found.value, 3), round(found.error, 3)]


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Say what the weights made beside the rules, and where that says nothing."""
    net, error = found["net_bp_a_day"][NETWORK]
    days = found["days"]
    if found["gross"][NETWORK] == 0.0:
        return [f"It held nothing: its weights were 0 at all {found['decisions']} decisions."]
    made = f"Its weights made {net:+.1f} basis points a day (± {error:.1f}) net of fees"
    said = [f"{made} over {days} untouched days."]
    if days < FEW_DAYS:
        said.append(f"{days} days say little of what weights are worth, whatever they made.")
    for name, (difference, noise) in found["against_bp_a_day"].items():
        word = "did not beat"
        if difference > 2.0 * noise > 0.0 and days >= FEW_DAYS:
            word = "beat"
        elif difference < -2.0 * noise < 0.0:
            word = "were beaten by"
        said.append(
            f"They {word} {name} weights: {difference:+.1f} basis points a day (± {noise:.1f})."
        )
    return said
