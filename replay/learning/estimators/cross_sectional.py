"""Networks over several assets, which answer for all symbols of a close.

Figures of each horizon are over all assets, beside the baselines of each; to them come the rank
correlation across the assets, close by close, and what the weights made.

The rules are docs/several.md, P23 to P31.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import combinations
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.comparison import paired_figures
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimator import (
    Answers,
    CandleEstimator,
    CandleModel,
    DataRequest,
    FitRun,
    candle_card,
    fit_facts,
    register,
)
from tracepaper.replay.learning.evaluation.correlation import (
    CorrelationForecasts,
    correlation_figures,
    correlation_sentences,
    learn_correlations,
)
from tracepaper.replay.learning.evaluation.correlation import (
    correlations_of as correlations_of_part,
)
from tracepaper.replay.learning.evaluation.cross_section import (
    NETWORK,
    AcrossAssets,
    Weighed,
    WeightsAt,
    close_ranks,
    rules_weighed,
    weighed,
    weighed_figures,
    weighings,
)
from tracepaper.replay.learning.evaluation.cross_section import sentences as weighed_sentences
from tracepaper.replay.learning.evaluation.explained import (
    AnsweredRows,
    ExplainedRows,
    JudgedPart,
    bars_of,
    rows_of,
)
from tracepaper.replay.learning.evaluation.forecasts import (
    ALL_MEASURES,
    HorizonForecasts,
    cooled,
    judged,
    no_context,
    report,
)
from tracepaper.replay.learning.evaluation.gates import (
    gates_section,
    judged_gates,
)
from tracepaper.replay.learning.evaluation.tails import TAILS, tail_factors
from tracepaper.replay.learning.fit import Fit, device_called, policy_of
from tracepaper.replay.learning.losses import titles
from tracepaper.replay.learning.panel import (
    CrossPredictions,
    Ids,
    Labelled,
    close_by_close,
    labelled_closes,
    predicted,
)
from tracepaper.replay.learning.panel_fit import CrossSection
from tracepaper.replay.learning.recipe import DROPOUT, Recipe, command, middle
from tracepaper.replay.learning.samples import FLAT_BAND, VARIANCE_FLOOR
from tracepaper.replay.learning.splits import SYMBOL_BITS, Part, split_by
from tracepaper.replay.report.honesty import FEW_DAYS, compared_sentences, few_days
from tracepaper.strategies.api.model import ModelKind
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.cross_asset import KINDS, TogetherForecaster, TogetherModel
from tracepaper.strategies.networks.cross_asset import (
    JOINT,
    CrossAssetConfig,
    CrossAssetNetwork,
    correlations_of,
)
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import MINUTE_MS

_UNKNOWN: Final = ("?",)
"""Stands for the symbols in a recipe: the candles name them."""
JOINT_CLOSES: Final = 4_000
"""Closes of a part that joint attention is judged on: each costs a pass over its window."""
EXPLAINED_CLOSES: Final = 6_000
"""Closes that are explained of a part, each by a pass over all symbols."""


class CrossAssetEstimator(CandleEstimator):
    """A kind of network over several assets; the candles say of which symbols."""

    Keys = CrossAssetConfig
    holds_out_calibration = True
    defaults: ClassVar = {"length": 512, "batch": 4}

    def __init__(self, kind: ModelKind) -> None:
        """Fit networks of that kind."""
        self.kind = kind
        self._allocates: bool = "allocation" in kind.heads

    def architecture(self, chosen: Mapping[str, Mapping[str, Any]]) -> CrossAssetConfig:
        """Return the configuration for symbols that are not known yet."""
        if chosen["features"].get("calendar"):
            raise ConfigInvalid(
                f"A {self.kind} network is trained on crypto's candles; take features.calendar out."
            )
        section = dict(chosen["architecture"])
        horizons = section.get("horizons", CrossAssetConfig(symbols=_UNKNOWN).horizons)
        gates = chosen["calibration"].get("horizon", section.get("every", middle(horizons)))
        known = {"allocation": self._allocates, "symbols": _UNKNOWN}
        return CrossAssetConfig.read({"every": gates, "dropout": DROPOUT, **section, **known})

    def listed(self, keys: CrossAssetConfig) -> dict[str, Any]:
        """Return ``[architecture]`` of a recipe: without what the candles and the kind say."""
        found = keys.listed()
        del found["symbols"], found["allocation"]
        return found

    def gate_horizon(self, chosen: Mapping[str, Mapping[str, Any]], keys: CrossAssetConfig) -> int:
        """Return the horizon that weights are held for."""
        del chosen
        return keys.every

    def read(self, recipe: Recipe, request: DataRequest) -> Dataset:
        """Return the closes that all symbols have."""
        split = split_by(recipe.split, recipe.horizons)
        return close_by_close(self._read(recipe, request, recipe.schema_id, split), split)

    def arrange(self, data: Dataset) -> Dataset:
        """Return the closes that all symbols have, split as *data* are."""
        return close_by_close(data, lambda _: data.split)

    def fit(self, data: Dataset, recipe: Recipe, run: FitRun) -> CrossAssetModel:
        """Fit the network of *recipe* to the panels of *data*."""
        for sentence in data.notes if data.fold is None else ():
            run.say(sentence)
        config = recipe.architecture
        if data.fold is None:  # before minutes of fitting
            for part in (Part.CALIBRATION, Part.TEST):
                field = config.receptive_field
                if not any(len(one.whole_rows(field)) for one in labelled_closes(data, part)):
                    raise no_context(part, field)
        config = replace(
            config,
            symbols=data.panel_symbols,
            features=len(data.schema.names),
            interval_minutes=data.interval_ms // MINUTE_MS,
        )
        torch.manual_seed(recipe.options.seed)
        network = CrossAssetNetwork(config).to(device_called(recipe.device))
        weights = sum(parameter.numel() for parameter in network.parameters())
        run.say(
            f"{self.kind.name}: {weights:,} weights; an answer depends on "
            f"{config.receptive_field:,} rows of features of each of {len(config.symbols)} symbols."
        )
        learnt = CrossSection(
            network,
            labelled_closes(data, Part.TRAIN),
            labelled_closes(data, Part.VALIDATION),
            recipe.options,
        )
        policy = policy_of(network, recipe.options)
        facts = fit_facts(data, recipe.schema_id, self.kind.name, config.listed())
        fit = Fit(
            learnt,
            policy._replace(patience=recipe.options.patience),
            folder=run.folder,
            about={"options": asdict(recipe.options), **facts},
        )
        run.complete(fit)
        bars = sum(len(one.rows) for one in labelled_closes(data, Part.TRAIN))
        training = {
            **recipe.document()["training"],
            "best_step": fit.progress.best_step,
            "last_step": fit.progress.step,
            "bars": bars * len(data.panel_symbols),
            "closes": bars,
            "flat_band": FLAT_BAND,
            "variance_floor": VARIANCE_FLOOR,
            "losses": ", ".join([titles(()), *self._losses(config)]),
            "not_used": list(data.notes),
            "command": command(data.sources),
        }
        card = candle_card(
            data, recipe, run, architecture=config.listed(), training=training, calibration={}
        )
        return CrossAssetModel(card, fit.best, fit.progress.stopped)

    def _losses(self, config: CrossAssetConfig) -> list[str]:
        """Name what is learnt beside the heads of the other networks."""
        known = {
            "Huber of the relative return": True,
            "squared error of correlations": bool(config.factors),
            "negative utility net of fees": config.allocation,
        }
        return [name for name, is_learnt in known.items() if is_learnt]

    def load(self, card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CrossAssetModel:
        """Return the network of a checkpoint."""
        found = CrossAssetModel(card, tensors)
        assert found.model is not None, "reading it checks it"
        return found


class _Answered(NamedTuple):
    """What a network said of one panel of a part."""

    labelled: Labelled
    said: CrossPredictions


class CrossAssetModel(CandleModel):
    """A fitted network over several assets."""

    @cached_property
    def model(self) -> TogetherModel:
        """The network and its scales, checked."""
        return TogetherModel.read(self.card, self.tensors)

    def for_fold(self, data: Dataset) -> CrossAssetModel:
        """Return it with the slopes that its weights are scaled by."""
        return self.scaled(data)

    def scaled(self, data: Dataset) -> CrossAssetModel:
        """Return it with temperature and slopes of the calibration slice."""
        answered = self._answered(data, Part.CALIBRATION)
        found = _side_by_side(answered, data)
        relative = {}
        for at, horizon in enumerate(data.horizons):
            pairs = [
                (one.said.relative[..., at], one.labelled.relative[:, one.said.rows, at])
                for one in answered
            ]
            forecast, value = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
            known = np.isfinite(value)
            relative[str(horizon)] = cards.slope(
                forecast[known].astype(np.float64), value[known].astype(np.float64)
            )
        section = self.card["calibration"] | {
            "temperature": {str(j.horizon): cards.temperature(j.logits, j.classes) for j in found},
            "slope": {str(j.horizon): cards.slope(j.mean, j.value) for j in found},
            TAILS: tail_factors(found),
            "relative_slope": relative,
        }
        return self.with_card(calibration=section)

    def calibrated(self, data: Dataset, *, bars: int | None = None) -> CrossAssetModel:
        """Return it with what the calibration slice says of its scales and its gates."""
        found = self.scaled(data)
        section = dict(found.card["calibration"])
        if self.card["architecture"]["factors"]:
            section["correlation"] = learn_correlations(data)
        found = found.with_card(calibration=section)
        seen = found.explained(data, Part.CALIBRATION, bars)
        return found.with_card(calibration=gates_section(seen, section))

    def _answered(self, data: Dataset, part: Part) -> list[_Answered]:
        """Return the answers at every labelled close of *part* with a whole field before it.

        Where *data* are some bars only, at their closes alone.
        """
        network, found = self.model.network, []
        closes = None if data.only is None else np.unique(data.only >> SYMBOL_BITS)
        for one in labelled_closes(data, part):
            rows = one.whole_rows(network.config.receptive_field)
            if closes is not None:
                segment = one.panel.segments[0]
                rows = rows[np.isin(segment.open_time_ms[rows] // segment.interval_ms, closes)]
            if network.config.attention == JOINT:
                rows = rows[:: -(-len(rows) // JOINT_CLOSES)] if len(rows) else rows
            if len(rows):
                found.append(_Answered(one, predicted(network, one.panel, rows)))
        if not found:
            raise no_context(part, network.config.receptive_field)
        return found

    def answers(self, data: Dataset, part: Part) -> Answers:
        """Return what the network says of *part*: of each asset, across them, its own weights.

        The weights are those of all decisions.
        """
        answered = self._answered(data, part)
        found = _side_by_side(answered, data)
        relative = {one.horizon: _relative(answered, at) for at, one in enumerate(found)}
        return Answers(found, ALL_MEASURES, AcrossAssets(relative, self._held(data)))

    def _held(self, data: Dataset) -> dict[str, Weighed]:
        """Return what the network's weights and every rule's made of the test part's decisions."""
        config = self.model.config
        decisions = weighings(
            labelled_closes(data, Part.TEST), every=config.every, field=config.receptive_field
        )
        if not decisions:
            return {}
        return {NETWORK: weighed(decisions, _weights_of(self.model)), **rules_weighed(decisions)}

    def explained(self, data: Dataset, part: Part, bars: int | None) -> ExplainedRows:
        """Forecast and explain the earliest labelled closes of *part*, shared equally by panels."""
        horizon = self.horizon
        forecaster = TogetherForecaster(
            self.model, data.panel_symbols, threads=torch.get_num_threads()
        )
        labelled = labelled_closes(data, part)
        bars = bars or self.card["training"].get("explained_bars")
        closes = bars // len(data.panel_symbols) if bars else EXPLAINED_CLOSES
        share = max(closes // len(labelled), 1)
        found: list[AnsweredRows] = []
        for one in labelled:
            rows = _explainable(one, forecaster.context, horizon)[:share]
            if len(rows):
                answers = _as_run(forecaster, one, rows)
                found += map(AnsweredRows, one.samples, [rows] * len(answers), answers)
        slope = self.card["calibration"]["slope"][str(horizon)]
        return rows_of(forecaster, found, horizon=horizon, slope=slope)

    def judge(self, data: Dataset, *, bars: int | None = None) -> JudgedPart:
        """Return what the network said of the test part, calibrated, and its figures."""
        section = self.card["calibration"]
        forecasts, _, across = self.answers(data, Part.TEST)
        assert across is not None, "it answers for all symbols of a close"
        found: dict[str, Any] = {}
        for one in forecasts:
            name = str(one.horizon)
            own = report(
                one, temperature=section["temperature"][name], slope=section["slope"][name]
            )
            found[name] = {**own, "relative_rank_ic": _rank_figures(one, across)}
        found |= paired_figures(forecasts, ALL_MEASURES)
        said = []
        if across.held:
            found["weights"] = weighed_figures(across.held)
            said = weighed_sentences(found["weights"])
        if "quantiles" in section:
            seen = self.explained(data, Part.TEST, bars)
            gates = judged_gates(seen, section, data.split.second_span_ms)
            section, found["gates"] = gates.calibration, gates.figures
            said += gates.sentences
        told = [cards.NOTICE, *_sentences(found, horizon=self.horizon), *said]
        correlations = self._correlations(data)
        if correlations:
            found["correlation"] = correlation_figures(correlations)
            told += correlation_sentences(correlations, horizon=self.horizon)
        return JudgedPart(
            [cooled(one, section["temperature"][str(one.horizon)]) for one in forecasts],
            ALL_MEASURES,
            found,
            told,
            calibration=section,
            correlations=correlations,
            across=across,
        )

    def _correlations(self, data: Dataset) -> list[CorrelationForecasts]:
        """Return what a head of correlations said of the test part; empty without one."""
        if not self.model.config.factors:
            return []
        times: list[NDArray[np.int64]] = []
        said: list[NDArray[np.float64]] = []
        for one in self._answered(data, Part.TEST):
            assert one.said.loadings is not None
            pairs = correlations_of(torch.from_numpy(one.said.loadings)[None])[0]
            times.append(one.labelled.panel.segments[0].open_time_ms[one.said.rows])
            said.append(pairs.double().numpy())
        opened, every = np.concatenate(times), np.concatenate(said, axis=1)
        names = [" ".join(sorted(pair)) for pair in combinations(data.panel_symbols, 2)]
        learnt = self.card["calibration"].get("correlation", {})
        found = [
            one.with_head(
                opened,
                dict(zip(names, every[..., data.horizons.index(one.horizon)], strict=True)),
            )
            for one in correlations_of_part(data, Part.TEST, learnt)
        ]
        return [one for one in found if one is not None]

    def tails(self, data: Dataset) -> dict[str, Any]:
        """Return ``[calibration.tails]`` of the card; empty where it has none."""
        del data
        return dict(self.card["calibration"].get(TAILS, {}))


def _side_by_side(answered: Sequence[_Answered], data: Dataset) -> list[HorizonForecasts]:
    """Put forecasts, baselines and labels of every asset side by side, asset after asset."""
    pairs = [
        (samples, one.said.rows, said)
        for one in answered
        for samples, said in zip(one.labelled.samples, one.said.each, strict=True)
    ]
    return judged(pairs, data.baselines, data.horizons)


def _relative(answered: Sequence[_Answered], at: int) -> Array:
    """Return the expected relative returns to one horizon, over the rows of its forecasts."""
    parts = []
    for one in answered:
        used = one.labelled.samples[0].weights[one.said.rows, at] > 0
        parts.append(one.said.relative[:, used, at].ravel().astype(np.float64))
    return np.concatenate(parts)


def _explainable(one: Labelled, context: int, horizon: int) -> Ids:
    """Return the rows whose return to *horizon* is known, with *context* bars up to each."""
    samples = one.samples[0]
    rows = np.flatnonzero(samples.weights[:, samples.horizons.index(horizon)] > 0)
    found: Ids = rows[rows >= context - 1]
    return found


def _as_run(
    forecaster: TogetherForecaster, one: Labelled, rows: Ids
) -> list[Sequence[Forecast | None]]:
    """Return what a run would say at *rows* of each symbol, all closes up to them taken in."""
    start, stop = int(rows[0]) - forecaster.context + 1, int(rows[-1]) + 1
    bars: list[list[Bar]] = [bars_of(each, start, stop) for each in one.panel.segments]
    for own in bars:
        forecaster.warm(own[0].instrument, own[: forecaster.context - 1])
    closes = zip(*(own[forecaster.context - 1 :] for own in bars), strict=True)
    said = [forecaster.predict_many(close) for close in closes]
    return [[said[row - int(rows[0])][at] for row in rows.tolist()] for at in range(len(bars))]


def _weights_of(model: TogetherModel) -> WeightsAt:
    """Return what weighs as the strategy of *model* does."""

    def found(one: Labelled, rows: Ids) -> Array:
        said = predicted(model.network, one.panel, rows)
        allocation = None if said.allocation is None else torch.from_numpy(said.allocation)
        return model.weights(torch.from_numpy(said.relative), allocation)

    return found


def _rank_figures(found: HorizonForecasts, across: AcrossAssets) -> dict[str, list[float]]:
    """Return the mean over closes of the rank correlation across the assets, by forecast.

    Of expected with realised log returns; ``relative`` is the network's head for it, every other
    name is a mean of the tables. Errors are by day.
    """
    means = {}
    for name, expected in across.expected(found).items():
        ranks = close_ranks(found, expected)
        means[name] = figures.mean(ranks.value, ranks.days).rounded()
    return means


def _sentences(found: Mapping[str, Any], *, horizon: int) -> list[str]:
    """Return what an honest reader must know of the forecasts at the gates' horizon."""
    main = found[str(horizon)]
    rank, noise = main["relative_rank_ic"]["relative"]
    word = "above" if rank > 2.0 * noise > 0.0 and main["days"] >= FEW_DAYS else "not above"
    return [
        *compared_sentences(found, horizon, NETWORK),
        (
            f"Across the assets its relative returns have a rank correlation of {rank:+.3f} (± "
            f"{noise:.3f} over {main['days']} days) with what came: {word} chance."
        ),
        *few_days(main["days"]),
    ]


for _kind in KINDS.values():
    register(CrossAssetEstimator(_kind))
