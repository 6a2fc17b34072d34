"""Several assets at once: rank correlations by close, and the returns of portfolio weights.

The network and each rule hold their weights for the same bars and pay the same fee for what they
trade, drift included: between two decisions weights move with the prices, and rebalancing costs.
Figures are by day.

The rules are docs/several.md, P29.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.document.values import plus_minus
from tracepaper.replay.learning.card import ROUND_TRIP_COST
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts, named_asset
from tracepaper.replay.learning.judge.metrics import PORTFOLIOS, MetricView, compare, estimate
from tracepaper.replay.learning.panel import Ids, LabelledPanel, predicted
from tracepaper.replay.learning.statistics import DailyEstimate
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


def rank_sentences(found: Mapping[str, Any], *, horizon: int) -> list[str]:
    """Return the caveats of the forecasts at the gates' horizon, as sentences."""
    main = found[str(horizon)]
    rank, noise = main["relative_rank_ic"]["relative"]
    is_above = rank > 0 and is_credible(rank, noise) and main["days"] >= FEW_DAYS
    word = "above" if is_above else "not above"
    return [
        *compared_sentences(found, horizon, MODEL),
        (
            f"Across the assets its relative returns have a rank correlation of {rank:+.3f} "
            f"({plus_minus(noise, '.3f')} over {main['days']} days) with what came: {word} chance."
        ),
        *few_days(main["days"]),
    ]


FEE: Final = ROUND_TRIP_COST / 2.0
COVARIANCE_BARS: Final = 240
"""Bars from which the rules' covariance is estimated."""
RULES: Final = (Rule.EQUAL, Rule.INVERSE, Rule.MINIMUM)

WeightsAt = Callable[[LabelledPanel, Ids], Array]
"""The weights [asset, decision] at some rows of a panel."""


class PanelDecisions(NamedTuple):
    """The decisions of one panel: each asset's return until the next one, and the day."""

    labelled: LabelledPanel
    rows: Ids
    gains: Array  # [asset, decision]
    days: NDArray[np.int64]


def portfolio_decisions(
    part: Sequence[LabelledPanel], *, every: int, field: int
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


def portfolio_returns(
    decisions: Sequence[PanelDecisions], weights: Mapping[str, WeightsAt]
) -> Forecasts:
    """Simulate holding each of *weights*, net of fees; a panel begins without positions.

    A row is a day: the sums of its decisions' net returns, turnover and gross.
    """
    days, day, counts = np.unique(
        np.concatenate([panel.days for panel in decisions]), return_inverse=True, return_counts=True
    )
    values = {}
    for name, weigh in weights.items():
        parts = [_held(panel, weigh(panel.labelled, panel.rows)) for panel in decisions]
        values[name] = {
            field: np.bincount(day, np.concatenate([part[field] for part in parts]), len(days))
            for field in parts[0]
        }
    bars = DAY_MS // decisions[0].labelled.panel.segments[0].interval_ms
    return Forecasts(
        np.full(len(days), named_asset("portfolio")),
        days * DAY_MS,
        (days + 1) * DAY_MS,
        np.full(len(days), bars),
        decisions[0].labelled.panel.segments[0].interval_ms,
        {"decisions": counts},
        values,
    )


def _held(decisions: PanelDecisions, weights: Array) -> dict[str, Array]:
    """Simulate holding *weights* [asset, decision] over one panel: [decision] by field."""
    gross_return = (weights * decisions.gains).sum(axis=0)
    drifted = weights * (1.0 + decisions.gains) / (1.0 + gross_return)
    before = np.concatenate([np.zeros((len(weights), 1)), drifted[:, :-1]], axis=1)
    turnover = np.abs(weights - before).sum(axis=0)
    net = gross_return - FEE * turnover
    return {"net": net, "turnover": turnover, "gross": np.abs(weights).sum(axis=0)}


def rule_weights(rule: Rule) -> WeightsAt:
    """Weigh by *rule* over the covariance of the last ``COVARIANCE_BARS``."""

    def risks(labelled: LabelledPanel, rows: Ids) -> list[Array]:
        closes = np.stack([segment.close for segment in labelled.panel.segments])
        moves = np.diff(np.log(closes), axis=1)
        return [covariance(moves[:, row - COVARIANCE_BARS : row].T) for row in rows.tolist()]

    return _daily(rule, risks)


def forecast_weights(network: CrossAssetNetwork, at: int, *, is_correlated: bool) -> WeightsAt:
    """Weigh by the least variance that *network* forecasts at the horizon in place *at*.

    Without *is_correlated* by its volatilities alone, as if no two symbols moved together.
    """

    def risks(labelled: LabelledPanel, rows: Ids) -> list[Array]:
        fields, segments = predicted(network, labelled.panel, rows), labelled.panel.segments
        usual = np.stack([one.sigma[rows] for one in segments])
        deviations = usual * np.sqrt(np.stack([one["variance"][:, at] for one in fields.each]))
        factors = fields.heads["loadings"][:, :, at].astype(np.float64)  # [asset, row, factor]
        return [
            covariance_of(
                deviations[:, place],
                factors[:, place] @ factors[:, place].T if is_correlated else np.eye(len(factors)),
                shrink=SHRINK,
            )
            for place in range(len(rows))
        ]

    return _daily(Rule.MINIMUM, risks)


def _daily(rule: Rule, risks: Callable[[LabelledPanel, Ids], Sequence[Array]]) -> WeightsAt:
    """Weigh by *rule* at the first decision of each day, which favours its costs.

    *risks* are the covariances at some rows of a panel.
    """

    def weights_at(labelled: LabelledPanel, rows: Ids) -> Array:
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


def with_rules(weights: WeightsAt, network: CrossAssetNetwork, at: int) -> dict[str, WeightsAt]:
    """Return the model's *weights* and those of every rule that can be solved here, by name.

    Of a *network* with correlations also least variance by its forecasts at the horizon in place
    *at*, with them and without.
    """
    found = {MODEL: weights, **{rule.value: rule_weights(rule) for rule in rules_here()}}
    if network.config.factors and Rule.MINIMUM in found:
        found["correlated minimum"] = forecast_weights(network, at, is_correlated=True)
        found["uncorrelated minimum"] = forecast_weights(network, at, is_correlated=False)
    return found


def portfolio_figures(held: Forecasts) -> dict[str, Any]:
    """Return the figures of the network's weights and every rule's, as a card has them.

    Net returns are basis points a day; ``against`` is the network's less the rule's, day by day.
    """
    views = {name: MetricView(held, name) for name in held.values}
    means = {
        key: {name: estimate(metric, view) for name, view in views.items()}
        for key, metric in PORTFOLIOS.items()
    }
    return {
        "decisions": int(held.labels["decisions"].sum()),
        "days": len(held),
        "fee": FEE,
        "net_bp_a_day": {name: of.rounded(3) for name, of in means["net"].items()},
        "turnover_a_day": {name: of.rounded(4)[0] for name, of in means["turnover"].items()},
        "gross": {name: of.rounded(4)[0] for name, of in means["gross"].items()},
        "against_bp_a_day": {
            name: DailyEstimate(*less.pair).rounded(3)
            for name, less in compare(held, PORTFOLIOS["net"]).items()
        },
    }


def portfolio_sentences(figures: Mapping[str, Any]) -> list[str]:
    """Compare the weights' return with the rules', and say where that proves nothing."""
    net, error = figures["net_bp_a_day"][MODEL]
    days = figures["days"]
    if figures["gross"][MODEL] == 0.0:
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
