"""Networks over several assets, which forecast all symbols at a close, and their weights.

The network and each rule hold their weights for the same bars and pay the same fee on trades, which
include the correction of drift. The losses are those of the other networks, averaged over assets,
and Huber's loss of the relative return.

The rules are docs/several.md, P23 to P31.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import combinations, islice, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.document.values import plus_minus
from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.card import ROUND_TRIP_COST
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimators.networks import NetworkModel, fit
from tracepaper.replay.learning.fit import (
    Fit,
    FitOptions,
    MeanLoss,
    device_of,
    loss_shares,
    policy_of,
)
from tracepaper.replay.learning.judge.forecasts import (
    MODEL,
    Forecasts,
    SegmentFields,
    concatenated,
    forecasts_of,
    named_asset,
)
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.judge.heads import ewma_correlations, pair_rows, with_head
from tracepaper.replay.learning.judge.metrics import PORTFOLIOS, MetricView, compare, estimate
from tracepaper.replay.learning.losses import CONSTANTS, averaged, elementwise, titles
from tracepaper.replay.learning.recipe import DROPOUT, Chosen, Kind, register
from tracepaper.replay.learning.samples import (
    EVERY_HEAD,
    Fields,
    Ids,
    Samples,
    gains,
    moves,
    relative_return,
)
from tracepaper.replay.learning.splits import SYMBOL_BITS, Panel, Part
from tracepaper.replay.learning.statistics import DailyEstimate
from tracepaper.replay.learning.windows import (
    Batch,
    Chunks,
    Cuts,
    fields_of,
    first_position,
    inputs,
    joined,
    no_context,
    passes,
    windows,
)
from tracepaper.replay.report.honesty import FEW_DAYS, compared_sentences, few_days
from tracepaper.replay.report.metrics import is_credible
from tracepaper.strategies.allocation import (
    WeightRule,
    allocate,
    covariance,
    covariance_of,
    require_solver,
)
from tracepaper.strategies.api.model import ModelKind
from tracepaper.strategies.builtin import SHRINK
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.cross_asset import KINDS, TogetherForecaster, TogetherModel
from tracepaper.strategies.networks.cross_asset import (
    JOINT,
    CrossAssetConfig,
    CrossAssetNetwork,
    CrossOutputs,
    PortfolioCosts,
    correlation_loss,
    correlations_of,
    portfolio_loss,
    relative_loss,
)
from tracepaper.strategies.networks.keys import listed
from tracepaper.strategies.units import DAY_MS


def rank_sentences(by_horizon: Mapping[str, Any], *, horizon: int) -> list[str]:
    """Return sentences about the forecasts at *horizon*, with the rank correlation."""
    main = by_horizon[str(horizon)]
    rank, noise = main["relative_rank_ic"]["relative"]
    is_above = rank > 0 and is_credible(rank, noise) and main["days"] >= FEW_DAYS
    word = "above" if is_above else "not above"
    return [
        *compared_sentences(by_horizon, horizon, MODEL),
        (
            f"Across the assets its relative returns have a rank correlation of {rank:+.3f} "
            f"({plus_minus(noise, '.3f')} over {main['days']} days) with what came: {word} chance."
        ),
        *few_days(main["days"]),
    ]


AT_ONCE: Final = 2_048
"""The most bars of one pass, which bounds memory."""


class PanelFields(NamedTuple):
    """A network's outputs at some bars of a panel, in units of σ √h."""

    rows: Ids
    each: tuple[Fields, ...]  # by asset, with its relative return: [row, horizon, ..]
    heads: Mapping[str, NDArray[np.float32]]
    """relative [asset, row, horizon]; optional: allocation [asset, row], loadings [asset, row,
    horizon, factor]."""


def predicted(network: CrossAssetNetwork, panel: Panel, rows: Ids) -> PanelFields:
    """Return the fields of *network* at ascending *rows*, each from its receptive field."""
    network.eval()
    field, assets = network.config.receptive_field, network.config.places(panel.symbols)
    is_joint = network.config.attention == JOINT
    parts: list[CrossOutputs] = []
    with torch.inference_mode():
        for chosen, start, stop in passes(rows, panel.first, field, 1 if is_joint else AT_ONCE):
            x, positions = inputs([(panel, start, stop)], stop - start)
            outputs: CrossOutputs = network(x, assets, positions[0])
            at = torch.from_numpy(chosen - start)
            if not is_joint:  # joint attention answers only the last bar
                outputs = outputs.map(partial(torch.index_select, dim=2, index=at))
            parts.append(outputs)
    heads = {}
    for name in ("relative", "allocation", "loadings"):
        outputs_of = [head[0] for part in parts if (head := getattr(part, name)) is not None]
        if outputs_of:
            heads[name] = torch.cat(outputs_of, dim=1).float().numpy()
    each = tuple(
        {
            **joined([fields_of(part.each.map(itemgetter((0, asset)))) for part in parts]),
            "relative": heads["relative"][asset],
        }
        for asset in range(len(panel.segments))
    )
    return PanelFields(rows, each, heads)


FEE: Final = ROUND_TRIP_COST / 2.0
COVARIANCE_BARS: Final = 240
"""The number of bars in the rules' covariance."""
RULES: Final = (WeightRule.EQUAL, WeightRule.INVERSE, WeightRule.MINIMUM)

WeightsAt = Callable[[Panel, Ids], Array]
"""A panel and its rows → the weights [asset, decision] at these rows."""


class PanelDecisions(NamedTuple):
    """The decisions of one panel: each asset's return until the next one, and the day."""

    panel: Panel
    rows: Ids
    gains: Array  # [asset, decision]
    days: NDArray[np.int64]


def portfolio_decisions(part: Sequence[Samples], *, every: int, field: int) -> list[PanelDecisions]:
    """Return the decisions of *part* that have *field* bars before them and a known outcome."""
    decisions = []
    for samples in part:
        panel = samples.panel
        rows = panel.decisions(samples.whole_rows(max(field, COVARIANCE_BARS + 1)), every)
        is_labelled = samples.weights[:, samples.horizons.index(every)] > 0
        rows = rows[is_labelled[rows]]
        if len(rows):
            days = panel.segments[0].open_time_ms[rows] // DAY_MS
            decisions.append(PanelDecisions(panel, rows, gains(panel.price, every)[:, rows], days))
    return decisions


def portfolio_returns(
    decisions: Sequence[PanelDecisions], weights: Mapping[str, WeightsAt]
) -> Forecasts:
    """Simulate holding each of *weights*, net of fees; a panel begins without positions.

    A row is a day, with the sums of its decisions' net returns, turnover and gross exposure.
    """
    days, day, counts = np.unique(
        np.concatenate([panel.days for panel in decisions]), return_inverse=True, return_counts=True
    )
    values = {}
    for name, weigh in weights.items():
        parts = [_held(panel, weigh(panel.panel, panel.rows)) for panel in decisions]
        values[name] = {
            field: np.bincount(day, np.concatenate([part[field] for part in parts]), len(days))
            for field in parts[0]
        }
    interval_ms = decisions[0].panel.segments[0].interval_ms
    return Forecasts(
        np.full(len(days), named_asset("portfolio")),
        days * DAY_MS,
        (days + 1) * DAY_MS,
        np.full(len(days), DAY_MS // interval_ms),
        interval_ms,
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


def rule_weights(rule: WeightRule) -> WeightsAt:
    """Return weights by *rule* from the covariance of the last ``COVARIANCE_BARS``."""

    def risks(panel: Panel, rows: Ids) -> list[Array]:
        steps = moves(panel.price, 1)
        return [covariance(steps[:, row - COVARIANCE_BARS : row].T) for row in rows.tolist()]

    return _daily(rule, risks)


def forecast_weights(network: CrossAssetNetwork, at: int, *, is_correlated: bool) -> WeightsAt:
    """Return minimum-variance weights by the forecasts of *network* at its horizon number *at*.

    Without *is_correlated*, correlations are taken as 0.
    """

    def risks(panel: Panel, rows: Ids) -> list[Array]:
        fields = predicted(network, panel, rows)
        deviations = panel.unit[:, rows] * np.sqrt(
            np.stack([answer["variance"][:, at] for answer in fields.each])
        )
        factors = fields.heads["loadings"][:, :, at].astype(np.float64)  # [asset, row, factor]
        return [
            covariance_of(
                deviations[:, place],
                factors[:, place] @ factors[:, place].T if is_correlated else np.eye(len(factors)),
                shrink=SHRINK,
            )
            for place in range(len(rows))
        ]

    return _daily(WeightRule.MINIMUM, risks)


def _daily(rule: WeightRule, risks: Callable[[Panel, Ids], Sequence[Array]]) -> WeightsAt:
    """Return weights by *rule*, computed at each day's first decision and kept for the day.

    Few changes save costs, which favours the rule. *risks* gives the covariances at some rows.
    """

    def weights_at(panel: Panel, rows: Ids) -> Array:
        days = panel.segments[0].open_time_ms[rows] // DAY_MS
        _, begins, place = np.unique(days, return_index=True, return_inverse=True)
        daily = [allocate(rule, risk) for risk in risks(panel, rows[begins])]
        return np.stack(daily, axis=1)[:, place]

    return weights_at


def solvable_rules() -> tuple[WeightRule, ...]:
    """Return the rules that can be solved; minimum variance needs cvxpy."""
    try:
        require_solver(WeightRule.MINIMUM)
    except ConfigInvalid:
        return tuple(rule for rule in RULES if rule is not WeightRule.MINIMUM)
    return RULES


def with_rules(weights: WeightsAt, network: CrossAssetNetwork, at: int) -> dict[str, WeightsAt]:
    """Return the model's *weights* and those of every solvable rule, by name.

    A *network* with correlations adds minimum variance by its forecasts at the horizon number *at*,
    with and without correlations.
    """
    rules = {MODEL: weights, **{rule.value: rule_weights(rule) for rule in solvable_rules()}}
    if network.config.factors and WeightRule.MINIMUM in rules:
        rules["correlated minimum"] = forecast_weights(network, at, is_correlated=True)
        rules["uncorrelated minimum"] = forecast_weights(network, at, is_correlated=False)
    return rules


def portfolio_figures(held: Forecasts) -> dict[str, Any]:
    """Return the figures of the network's weights and every rule's, for a card.

    Net returns are in basis points a day. ``against_bp_a_day`` is the network's minus the rule's.
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
        "net_bp_a_day": {name: mean.rounded(3) for name, mean in means["net"].items()},
        "turnover_a_day": {name: mean.rounded(4)[0] for name, mean in means["turnover"].items()},
        "gross": {name: mean.rounded(4)[0] for name, mean in means["gross"].items()},
        "against_bp_a_day": {
            name: DailyEstimate(*difference.pair).rounded(3)
            for name, difference in compare(held, PORTFOLIOS["net"]).items()
        },
    }


def portfolio_sentences(figures: Mapping[str, Any]) -> list[str]:
    """Return sentences that compare the weights' return with the rules'."""
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


# --- the kinds


_UNKNOWN: Final = ("?",)
"""Placeholder for a recipe's symbols, which the candles name."""
JOINT_CLOSES: Final = 4_000
"""The most closes per part to judge joint attention on: each costs a pass over its window."""
EXPLAINED_CLOSES: Final = 6_000
"""The most closes to explain per part: each costs a pass over all symbols."""


AVERSION: Final = 0.1
"""Price of variance in a portfolio's loss, in units of the typical return over the time held."""
_VALIDATED: Final = 8
"""Batches in one validation."""


def read_config(kind: ModelKind, chosen: Chosen) -> CrossAssetConfig:
    """Return the configuration for symbols that are not known yet.

    By default weights are held for the horizon of the gates.
    """
    section = dict(chosen["architecture"])
    horizons = section.get("horizons", CrossAssetConfig(symbols=_UNKNOWN).horizons)
    gates = chosen["calibration"].get("horizon", horizons[len(horizons) // 2])
    fixed = {"allocation": "allocation" in kind.heads, "symbols": _UNKNOWN}
    return CrossAssetConfig.read({"every": gates, "dropout": DROPOUT, **section, **fixed})


def chosen_keys(config: CrossAssetConfig) -> dict[str, Any]:
    """Return ``[architecture]`` of a recipe, without keys that candles and kind determine."""
    section = listed(config)
    del section["symbols"], section["allocation"]
    return section


class CrossAssetModel(NetworkModel):
    """A fitted network over several assets, which forecasts at their common closes."""

    shows_gates = False

    @cached_property
    def model(self) -> TogetherModel:
        """The network and its scales, checked."""
        return TogetherModel.read(self.card, self.tensors)

    @cached_property
    def network(self) -> CrossAssetNetwork:
        """The network with its weights, checked."""
        return self.model.network

    def forecaster(self, data: Dataset) -> TogetherForecaster:
        """Return the forecaster of a run over all symbols."""
        return TogetherForecaster(self.model, data.panel_symbols, threads=torch.get_num_threads())

    @property
    def usually_explained(self) -> int:
        """The number that training explained; by default ``EXPLAINED_CLOSES`` of each asset."""
        chosen = self.card["training"].get("explained_bars")
        return chosen or EXPLAINED_CLOSES * len(self.model.config.symbols)

    def scaled(self, data: Dataset) -> Self:
        """Return the calibrated model, with slopes of relative returns too."""
        answered, relative = self._answered(data, Part.CALIBRATION), {}
        for at, horizon in enumerate(data.horizons):
            forecasts, values = [], []
            for samples, fields in answered:
                returns = relative_return(samples.panel.price, samples.panel.unit, horizon)
                forecasts.append(fields.heads["relative"][..., at].ravel())
                values.append(returns[:, fields.rows].ravel())
            forecast, value = np.concatenate(forecasts), np.concatenate(values)
            finite = np.isfinite(value)
            relative[str(horizon)] = cards.slope(
                forecast[finite].astype(np.float64), value[finite].astype(np.float64)
            )
        model = super().scaled(data)
        section = {**model.card["calibration"], "relative_slope": relative}
        return model.with_card(calibration=section)

    def _answered(self, data: Dataset, part: Part) -> list[tuple[Samples, PanelFields]]:
        """Return the answers at every labelled close of *part* that has a full receptive field.

        If *data* is restricted to some bars, only their closes are answered.
        """
        network, answers = self.network, []
        closes = None if data.only is None else np.unique(data.only >> SYMBOL_BITS)
        for samples in data.samples(part):
            rows = samples.whole_rows(network.config.receptive_field)
            if closes is not None:
                segment = samples.segment
                rows = rows[np.isin(segment.open_time_ms[rows] // segment.interval_ms, closes)]
            if network.config.attention == JOINT:
                rows = rows[:: -(-len(rows) // JOINT_CLOSES)] if len(rows) else rows
            if len(rows):
                answers.append((samples, predicted(network, samples.panel, rows)))
        if not answers:
            raise no_context(part, network.config.receptive_field)
        return answers

    def answers(self, data: Dataset, part: Part) -> Forecasts:
        """Return the network's forecasts of each asset at the closes of *part*.

        The test part has the results of the weights and of every rule too, as ``held``.
        """
        answers = [
            SegmentFields(asset, fields.rows, answer)
            for samples, fields in self._answered(data, part)
            for asset, answer in zip(samples.each, fields.each, strict=True)
        ]
        forecasts = forecasts_of(answers, data.baselines, data.horizons)
        return replace(forecasts, held=self._held(data)) if part is Part.TEST else forecasts

    def _held(self, data: Dataset) -> Forecasts | None:
        config = self.model.config
        decisions = portfolio_decisions(
            data.samples(Part.TEST), every=config.every, field=config.receptive_field
        )
        if not decisions:
            return None
        at = config.horizons.index(self.horizon)
        weights = with_rules(_weights_of(self.model), self.network, at)
        return portfolio_returns(decisions, weights)

    def findings(self, results: dict[str, Any], judgement: Judgement) -> list[str]:
        """Return sentences about ranks across the assets and the weights' returns."""
        sentences = [cards.NOTICE, *rank_sentences(results, horizon=self.horizon)]
        if (held := judgement.forecasts.held) is not None:
            results["weights"] = portfolio_figures(held)
            sentences += portfolio_sentences(results["weights"])
        return sentences

    def pairs(self, data: Dataset) -> Forecasts | None:
        """Return the head's and EWMA's correlations; None without such a head."""
        if not self.model.config.factors or (table := ewma_correlations(data, Part.TEST)) is None:
            return None
        names = [" ".join(sorted(pair)) for pair in combinations(data.panel_symbols, 2)]
        parts = []
        for samples, fields in self._answered(data, Part.TEST):
            loadings = torch.from_numpy(fields.heads["loadings"])[None]
            pairs = correlations_of(loadings)[0].double().numpy()  # [pair, row, horizon]
            opened = samples.segment.open_time_ms[fields.rows]
            parts += [
                pair_rows(name, opened, horizon, data.interval_ms, {MODEL: values[:, at]})
                for name, values in zip(names, pairs, strict=True)
                for at, horizon in enumerate(data.horizons)
            ]
        return with_head(table, concatenated(parts))


def _weights_of(model: TogetherModel) -> WeightsAt:
    """Return the weights that a strategy with *model* holds."""

    def weigh(panel: Panel, rows: Ids) -> Array:
        heads = predicted(model.network, panel, rows).heads
        allocation = heads.get("allocation")
        return model.weights(
            torch.from_numpy(heads["relative"]),
            None if allocation is None else torch.from_numpy(allocation),
        )

    return weigh


# --- the fit


def typical_return(training: Sequence[Samples], every: int) -> float:
    """Return the standard deviation of equal weights' returns over *every* bars in *training*."""
    returns = []
    for samples in training:
        within = np.flatnonzero(samples.weights[:, samples.horizons.index(every)] > 0)
        rows = samples.panel.decisions(within, every)
        held = gains(samples.panel.price, every)[:, rows].mean(axis=0)
        returns.append(held[np.isfinite(held)])
    return float(np.concatenate(returns).std())


def correlation_variance(training: Sequence[Samples]) -> Tensor:
    """Return the mean variance over time of correlations in *training*: [horizon]; 1 if unknown."""
    variances = np.ones(len(training[0].horizons))
    for at in range(len(variances)):
        parts = [samples.labels["correlation"][:, samples.rows, at] for samples in training]
        realised = np.concatenate(parts, axis=1)
        realised = realised[:, np.isfinite(realised).all(axis=0)]
        if realised.shape[1] and (variance := float(realised.var(axis=1).mean())) > 0.0:
            variances[at] = variance
    return torch.from_numpy(variances).float()


class ClosesPart:
    """The closes of a part, drawn as batches of chunks of *length* bars.

    For a network that answers every row, each close of a chunk is a sample. For joint attention, a
    chunk has a window for each decision that fits in it.
    """

    def __init__(self, part: Sequence[Samples], network: CrossAssetNetwork, *, length: int) -> None:
        config = self._config = network.config
        self._joint = config.attention == JOINT
        firsts = [  # *field* bars up to the first label
            max(samples.panel.first, int(samples.rows[0]) - config.receptive_field + 1)
            for samples in part
        ]
        lengths = [samples.stop - first for samples, first in zip(part, firsts, strict=True)]
        length = min(length, max(lengths))
        usable = [at for at, count in enumerate(lengths) if count >= length]
        self._part = [part[at] for at in usable]
        begins = np.array([[firsts[at], firsts[at] + lengths[at] - length + 1] for at in usable])
        self.chunks = Chunks(begins, begins[:, 1] - begins[:, 0], length)
        least = config.every + (config.window if self._joint else 0)
        if length < least + config.every:
            raise DataInvalid(
                f"Weights held for {config.every} bars need chunks of {least + config.every:,} "
                f"closes; a part has at most {max(lengths):,} in a row, and chunks have "
                f"{length:,}. Give longer candles, or lower every."
            )

    def stream(self, seed: int, batch: int, done: int) -> Iterator[Batch]:
        """Yield batches in seeded random order without end, after the first *done*."""
        generator = np.random.default_rng(seed)
        drawn = (self.chunks.drawn(generator, batch) for _ in repeat(None))
        return map(self.taken, islice(drawn, done, None))

    def taken(self, cuts: Cuts) -> Batch:
        """Return the chunks at *cuts* of a panel as a batch."""
        if not self._joint:
            return windows(self._part, cuts, self.chunks.length)
        window, place = self._config.window, int(cuts[0, 0])
        samples = self._part[place]
        by_chunk = [
            samples.panel.decisions(np.arange(start + window - 1, stop), self._config.every)
            for _, start, stop in cuts.tolist()
        ]
        ends = np.concatenate([rows[: min(map(len, by_chunk))] for rows in by_chunk])
        each = np.stack([np.full_like(ends, place), ends - window + 1, ends + 1], axis=1)
        batch = windows(self._part, each, window, learnt=1)
        return Batch(  # [batch * decision, asset, 1, ..] as [batch, asset, decision, ..]
            batch.values,
            {name: folded(label, len(cuts)) for name, label in batch.labels.items()},
            batch.weights[:, 0].unflatten(0, (len(cuts), -1)),
            first_position(samples.segment, 0) + torch.arange(window)[None],
        )


def folded(part: Tensor, count: int) -> Tensor:
    """Reshape [batch * window, asset, 1, ..] to [batch, asset, window, ..]."""
    batches: Tensor = part[:, :, 0].unflatten(0, (count, -1))
    return batches.transpose(1, 2)


def answered(network: CrossAssetNetwork, assets: Tensor, batch: Batch) -> CrossOutputs:
    """Return *network*'s output for *batch* at its labelled rows: [batch, asset, row, ..]."""
    outputs: CrossOutputs = network(batch.values, assets, batch.positions[0])
    if network.config.attention != JOINT:
        return outputs
    return outputs.map(partial(folded, count=len(batch.weights)))


def decided(batch: Batch, config: CrossAssetConfig) -> tuple[Tensor, Tensor]:
    """Return the decisions of *batch*; all windows are cut to the fewest decisions of any.

    The first result is their rows, int64 [batch, decision]. The second is each asset's simple
    return until the next decision, [batch, asset, decision]; 0 where it ends outside the part.
    """
    count = batch.weights.shape[1]
    rows = torch.arange(count, device=batch.weights.device).expand(len(batch.weights), -1)
    if config.attention != JOINT:  # every row of joint attention is a decision
        by_window = [torch.nonzero((row + 1) % config.every == 0)[:, 0] for row in batch.positions]
        rows = torch.stack([decisions[: min(map(len, by_window))] for decisions in by_window])
    at = config.horizons.index(config.every)
    held = batch.labels["gain"][..., at] * (batch.weights[:, None, :, at] > 0)
    return rows, held.gather(2, rows[:, None].expand(-1, held.shape[1], -1))


def cross_section(
    network: CrossAssetNetwork,
    training: Sequence[Samples],
    validation: Sequence[Samples],
    options: FitOptions,
) -> MeanLoss:
    """Return the objective of a network over several assets: the weighted sum of all losses."""
    config, device = network.config, device_of(network)
    is_used = {
        titles(()): True,
        "Huber of the relative return": True,
        "squared error of correlations": config.factors,
        "negative utility net of fees": config.allocation,
    }
    drawn, judged = (
        ClosesPart(part, network, length=options.length) for part in (training, validation)
    )
    count = len(config.symbols)
    assets = torch.arange(count, device=device)
    shares = torch.from_numpy(loss_shares(config.horizons, options)).float().to(device)
    unit = typical_return(training, config.every)
    costs = PortfolioCosts(fee=FEE, unit=unit, aversion=AVERSION)
    variance = (correlation_variance(training) if config.factors else torch.ones(1)).to(device)

    def loss(network: CrossAssetNetwork, batch: Batch) -> Tensor:
        batch = batch.to(device)
        outputs = answered(network, assets, batch)
        weights = batch.weights.repeat_interleave(count, dim=0)  # [batch * asset, row, horizon]
        labels = {
            name: label.flatten(0, 1)
            for name, label in batch.labels.items()
            if name != "correlation"
        }
        flat = outputs.each.map(lambda part: part.flatten(0, 1).float())
        each = elementwise(flat, labels, weights > 0)
        total = (averaged(each, weights) * shares).sum()
        relative = relative_loss(outputs, batch.labels["relative"]).flatten(0, 1)[None]
        total = total + (averaged(relative, weights)[0] * shares[0]).sum()
        if outputs.loadings is not None:
            realised = batch.labels["correlation"]
            error = correlated_error(outputs.loadings, realised, batch.weights)
            total = total + (error / variance * shares[0]).sum()
        if outputs.allocation is None:
            return total
        rows, returns = decided(batch, config)
        held = outputs.allocation.gather(2, rows[:, None].expand(-1, count, -1))
        return total + portfolio_loss(held, returns, costs)

    return MeanLoss(
        network,
        ", ".join(title for title, used in is_used.items() if used),
        partial(drawn.stream, options.seed, options.batch),
        lambda: map(judged.taken, judged.chunks.spread(_VALIDATED, options.batch)),
        loss,
        accumulate=options.accumulate,
        constants=CONSTANTS,
    )


def correlated_error(loadings: Tensor, realised: Tensor, weights: Tensor) -> Tensor:
    """Return the correlations' mean squared error: [horizon], 0 where none is realised."""
    usable = realised.isfinite().all(dim=1) & (weights > 0)  # [batch, row, horizon]
    errors = correlation_loss(loadings, realised).mean(dim=-1) * usable
    mean: Tensor = errors.sum(dim=(0, 1)) / usable.sum(dim=(0, 1)).clamp_min(1)
    return mean


def learn_closes(
    network: CrossAssetNetwork,
    data: Dataset,
    options: FitOptions,
    *,
    folder: Path,
    about: Mapping[str, Any],
) -> Fit:
    """Return the fit of a network to the common closes of all symbols."""
    config = network.config
    heads = {
        "relative",
        "correlation" if config.factors else "",
        "gain" if config.allocation else "",
    }
    data = replace(data, heads=EVERY_HEAD | heads)
    training, validation = (data.samples(part) for part in (Part.TRAIN, Part.VALIDATION))
    objective = cross_section(network, training, validation, options)
    policy = policy_of(network, options)._replace(patience=options.patience)
    return Fit(objective, policy, folder=folder, about={"options": asdict(options), **about})


for _kind in KINDS.values():
    register(
        Kind(
            _kind,
            CrossAssetConfig,
            FitOptions,
            fit,
            CrossAssetModel,
            read_config,
            chosen_keys,
            defaults={"length": 512, "batch": 4},
            make=CrossAssetNetwork,
            learn=learn_closes,
        )
    )
