"""Several assets at once: rank correlations by close, and the returns of portfolio weights.

The network and each rule hold their weights for the same bars and pay the same fee for what they
trade, drift included: between two decisions weights move with the prices, and rebalancing costs.
Figures are by day.

The rules are docs/several.md, P29.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tracepaper.replay.document.values import plus_minus
from tracepaper.replay.learning.card import ROUND_TRIP_COST
from tracepaper.replay.learning.evaluation.forecasts import HorizonForecasts
from tracepaper.replay.learning.panel import Ids, Labelled, predicted
from tracepaper.replay.learning.splits import SYMBOL_BITS
from tracepaper.replay.learning.statistics import mean
from tracepaper.replay.report.honesty import FEW_DAYS, compared_sentences, few_days
from tracepaper.replay.report.metrics import is_credible
from tracepaper.strategies.allocation import (
    Rule,
    allocate,
    covariance,
    covariance_of,
    require_solver,
)
from tracepaper.strategies.builtin import SHRINK
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.cross_asset import CrossAssetNetwork
from tracepaper.strategies.units import DAY_MS

RELATIVE = "relative"
"""The head of relative returns among the forecasts that rank the assets."""


class AcrossAssets(NamedTuple):
    """The answers of a network over several assets, beside the forecasts of each.

    ``relative`` has by horizon, in bars, the expected relative return of each row of that horizon's
    forecasts; ``held`` the returns of its weights and of every rule's, by name, empty where there
    was no decision.
    """

    relative: Mapping[int, Array]
    held: Mapping[str, PortfolioReturns]

    def expected(self, forecasts: HorizonForecasts) -> dict[str, Array]:
        """Return the expected returns that rank the assets at a horizon, by name, in its units."""
        return {RELATIVE: self.relative[forecasts.horizon], **forecasts.means}


class CloseRanks(NamedTuple):
    """The rank correlation across the assets at each close, oldest first, and the close's day."""

    value: Array
    days: NDArray[np.int64]


def close_ranks(forecasts: HorizonForecasts, expected: Array) -> CloseRanks:
    """Return Spearman's correlation of *expected* with realised log returns, close by close.

    *expected* are in the units of each row. A close counts where every asset has a row.
    """
    order = np.argsort(forecasts.keys)
    _, counts = np.unique(forecasts.keys[order] >> SYMBOL_BITS, return_counts=True)
    assets = int(counts.max())
    whole = counts == assets
    rows = order[np.repeat(whole, counts)].reshape(-1, assets).T  # [asset, close]
    value = rank_correlations(
        (expected * forecasts.unit)[rows], (forecasts.value * forecasts.unit)[rows]
    )
    return CloseRanks(value, forecasts.days[rows[0]])


def rank_correlations(expected: Array, realised: Array) -> Array:
    """Return Spearman's correlation across the assets, one a close, of [asset, close].

    0 where either is the same for all.
    """
    first, second = (rankdata(values, axis=0) for values in (expected, realised))
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    spread = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    correlations: Array = np.divide(
        (first * second).sum(axis=0), spread, out=np.zeros(len(spread)), where=spread > 0
    )
    return correlations


def rank_figures(found: HorizonForecasts, across: AcrossAssets) -> dict[str, list[float | None]]:
    """Return the mean over closes of the rank correlation across the assets, by forecast.

    Of expected with realised log returns; ``relative`` is the network's head for it, every other
    name is a mean of the tables. Errors are by day.
    """
    means = {}
    for name, expected in across.expected(found).items():
        ranks = close_ranks(found, expected)
        means[name] = mean(ranks.value, ranks.days).rounded()
    return means


def rank_sentences(found: Mapping[str, Any], *, horizon: int) -> list[str]:
    """Return the caveats of the forecasts at the gates' horizon, as sentences."""
    main = found[str(horizon)]
    rank, noise = main["relative_rank_ic"]["relative"]
    is_above = rank > 0 and is_credible(rank, noise) and main["days"] >= FEW_DAYS
    word = "above" if is_above else "not above"
    return [
        *compared_sentences(found, horizon, NETWORK),
        (
            f"Across the assets its relative returns have a rank correlation of {rank:+.3f} "
            f"({plus_minus(noise, '.3f')} over {main['days']} days) with what came: {word} chance."
        ),
        *few_days(main["days"]),
    ]


FEE: Final = ROUND_TRIP_COST / 2.0
COVARIANCE_BARS: Final = 240
"""Bars from which the rules' covariance is estimated."""
NETWORK: Final = "network"
RULES: Final = (Rule.EQUAL, Rule.INVERSE, Rule.MINIMUM)
_BASIS_POINTS: Final = 1e4

WeightsAt = Callable[[Labelled, Ids], Array]
"""The weights [asset, decision] at some rows of a panel."""


@dataclass(frozen=True)
class PortfolioReturns:
    """The returns of holding some weights, decision by decision."""

    net: Array  # [decision]: simple returns until the next one, less fees
    turnover: Array
    gross: Array  # sizes summed over the assets
    days: NDArray[np.int64]


class PanelDecisions(NamedTuple):
    """The decisions of one panel: each asset's return until the next one, and the day."""

    labelled: Labelled
    rows: Ids
    gains: Array  # [asset, decision]
    days: NDArray[np.int64]


def portfolio_decisions(
    part: Sequence[Labelled], *, every: int, field: int
) -> list[PanelDecisions]:
    """Return the decisions of *part*, each with *field* bars before it and a known outcome."""
    decisions = []
    for labelled in part:
        panel, samples = labelled.panel, labelled.samples[0]
        rows = panel.decisions(labelled.whole_rows(max(field, COVARIANCE_BARS + 1)), every)
        is_labelled = samples.weights[:, samples.horizons.index(every)] > 0
        rows = rows[is_labelled[rows]]
        if len(rows):
            days = panel.segments[0].open_time_ms[rows] // DAY_MS
            gains = np.expm1(panel.moves(every)[:, rows])
            decisions.append(PanelDecisions(labelled, rows, gains, days))
    return decisions


def portfolio_returns(decisions: Sequence[PanelDecisions], weights: WeightsAt) -> PortfolioReturns:
    """Simulate holding *weights*, net of fees; a panel begins without positions."""
    parts = [_panel_returns(panel, weights(panel.labelled, panel.rows)) for panel in decisions]
    return PortfolioReturns(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("net", "turnover", "gross", "days")
        )
    )


def _panel_returns(decisions: PanelDecisions, weights: Array) -> PortfolioReturns:
    """Simulate holding *weights* [asset, decision] over one panel."""
    gross_return = (weights * decisions.gains).sum(axis=0)
    drifted = weights * (1.0 + decisions.gains) / (1.0 + gross_return)
    before = np.concatenate([np.zeros((len(weights), 1)), drifted[:, :-1]], axis=1)
    turnover = np.abs(weights - before).sum(axis=0)
    net = gross_return - FEE * turnover
    return PortfolioReturns(net, turnover, np.abs(weights).sum(axis=0), decisions.days)


def rule_weights(rule: Rule) -> WeightsAt:
    """Weigh by *rule* over the covariance of the last ``COVARIANCE_BARS``."""

    def risks(labelled: Labelled, rows: Ids) -> list[Array]:
        closes = np.stack([segment.close for segment in labelled.panel.segments])
        moves = np.diff(np.log(closes), axis=1)
        return [covariance(moves[:, row - COVARIANCE_BARS : row].T) for row in rows.tolist()]

    return _daily(rule, risks)


def forecast_weights(network: CrossAssetNetwork, at: int, *, is_correlated: bool) -> WeightsAt:
    """Weigh by the least variance that *network* forecasts at the horizon in place *at*.

    Without *is_correlated* by its volatilities alone, as if no two symbols moved together.
    """

    def risks(labelled: Labelled, rows: Ids) -> list[Array]:
        said, segments = predicted(network, labelled.panel, rows), labelled.panel.segments
        assert said.loadings is not None
        usual = np.stack([one.sigma[rows] for one in segments])
        deviations = usual * np.sqrt(np.stack([one.variance[:, at] for one in said.each]))
        factors = said.loadings[:, :, at].astype(np.float64)  # [asset, row, factor]
        return [
            covariance_of(
                deviations[:, place],
                factors[:, place] @ factors[:, place].T if is_correlated else np.eye(len(factors)),
                shrink=SHRINK,
            )
            for place in range(len(rows))
        ]

    return _daily(Rule.MINIMUM, risks)


def _daily(rule: Rule, risks: Callable[[Labelled, Ids], Sequence[Array]]) -> WeightsAt:
    """Weigh by *rule* at the first decision of each day, which favours its costs.

    *risks* are the covariances at some rows of a panel.
    """

    def weights_at(labelled: Labelled, rows: Ids) -> Array:
        days = labelled.panel.segments[0].open_time_ms[rows] // DAY_MS
        _, begins, place = np.unique(days, return_index=True, return_inverse=True)
        daily = [allocate(rule, risk) for risk in risks(labelled, rows[begins])]
        return np.stack(daily, axis=1)[:, place]

    return weights_at


def rules_here() -> tuple[Rule, ...]:
    """Return the rules that can be solved: without cvxpy all but minimum variance."""
    try:
        require_solver(Rule.MINIMUM)
    except ConfigInvalid:
        return tuple(rule for rule in RULES if rule is not Rule.MINIMUM)
    return RULES


def rule_returns(
    decisions: Sequence[PanelDecisions], network: CrossAssetNetwork, at: int
) -> dict[str, PortfolioReturns]:
    """Simulate every rule that can be solved here, by its name.

    Of a *network* with correlations also least variance by its forecasts at the horizon in place
    *at*, with them and without.
    """
    weights = {rule.value: rule_weights(rule) for rule in rules_here()}
    if network.config.factors and Rule.MINIMUM in weights:
        weights["correlated minimum"] = forecast_weights(network, at, is_correlated=True)
        weights["uncorrelated minimum"] = forecast_weights(network, at, is_correlated=False)
    return {name: portfolio_returns(decisions, one) for name, one in weights.items()}


def portfolio_figures(returns_by: Mapping[str, PortfolioReturns]) -> dict[str, Any]:
    """Return the figures of the network's weights and every rule's, as a card has them.

    Net returns are basis points a day; ``against`` is the network's less the rule's, day by day.
    """
    own = returns_by[NETWORK]
    days = np.unique(own.days)
    return {
        "decisions": len(own.days),
        "days": len(days),
        "fee": FEE,
        "net_bp_a_day": {
            name: _a_day(result.net, result.days) for name, result in returns_by.items()
        },
        "turnover_a_day": {
            name: round(float(result.turnover.sum()) / len(days), 4)
            for name, result in returns_by.items()
        },
        "gross": {
            name: round(float(result.gross.mean()), 4) for name, result in returns_by.items()
        },
        "against_bp_a_day": {
            name: _a_day(own.net - result.net, own.days)
            for name, result in returns_by.items()
            if name != NETWORK
        },
    }


def _a_day(net: Array, days: NDArray[np.int64]) -> list[float | None]:
    """Return the mean of a day's sum of *net*, in basis points, with its error over days."""
    names, day = np.unique(days, return_inverse=True)
    sums: Array = np.bincount(day, net * _BASIS_POINTS).astype(np.float64)
    return mean(sums, names).rounded(3)


def portfolio_sentences(figures: Mapping[str, Any]) -> list[str]:
    """Compare the weights' return with the rules', and say where that proves nothing."""
    net, error = figures["net_bp_a_day"][NETWORK]
    days = figures["days"]
    if figures["gross"][NETWORK] == 0.0:
        return [f"It held nothing: its weights were 0 at all {figures['decisions']} decisions."]
    result = f"{net:+.1f} basis points a day ({plus_minus(error, '.1f')})"
    lines = [f"Its weights made {result} net of fees over {days} untouched days."]
    if days < FEW_DAYS:
        lines.append(f"{days} days say little of what weights are worth, whatever they made.")
    for name, (difference, noise) in figures["against_bp_a_day"].items():
        word = "did not beat"
        if is_credible(difference, noise):
            if difference < 0:
                word = "were beaten by"
            elif days >= FEW_DAYS:
                word = "beat"
        lines.append(
            f"They {word} {name} weights: {difference:+.1f} basis points a day "
            f"({plus_minus(noise, '.1f')})."
        )
    return lines
