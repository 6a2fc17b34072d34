"""Networks over the bars of one symbol: each kind of ``tracepaper.strategies.networks``.

The rules are docs/models.md, L7 to L28.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

import torch

from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fit import FitOptions, device_called, heads_fit
from tracepaper.replay.learning.fitted import (
    CandleModel,
    FitRun,
    candle_card,
    fit_facts,
    read_candles,
    read_candles_of,
)
from tracepaper.replay.learning.judge.forecasts import Forecasts, SegmentFields, forecasts_of
from tracepaper.replay.learning.judge.gates import (
    Judgement,
    answered_rows,
    gates_section,
    judged_gates,
    rows_of,
)
from tracepaper.replay.learning.judge.heads import (
    correlation_figures,
    correlation_sentences,
    correlations_of,
    head_figures,
    head_sentences,
    heads_of,
    learn_correlations,
    levelled,
    levels_of,
)
from tracepaper.replay.learning.judge.metrics import TAILS, figures, paired_figures, tail_factors
from tracepaper.replay.learning.losses import titles
from tracepaper.replay.learning.recipe import DROPOUT, Chosen, Kind, Recipe, command, register
from tracepaper.replay.learning.samples import (
    FLAT_BAND,
    judged_rows,
    no_context,
    predict,
    windowed_rows,
)
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR
from tracepaper.strategies.api.model import ModelKind
from tracepaper.strategies.features.rows import FeatureSchema
from tracepaper.strategies.forecasters.build import RunOptions, build, restore
from tracepaper.strategies.networks.architecture import Network, network_kinds
from tracepaper.strategies.networks.flash import FlashNetwork
from tracepaper.strategies.networks.keys import listed
from tracepaper.strategies.units import MINUTE_MS

EXPLAINED_BARS: Final = 120_000
EXPLAINED_WINDOWS: Final = 12_000
"""Bars of calibration and test to explain, where each costs a pass over its window."""


def read_config(kind: ModelKind, chosen: Chosen) -> Any:  # noqa: ANN401 - any configuration
    """Return the configuration; where no dropout is chosen, that of training.

    A card that names none was made without, so it is no default of the network's own.
    """
    section = {
        name: value for name, value in chosen["architecture"].items() if name not in kind.follows
    }
    config = kind.read(section)
    if "dropout" in section or not hasattr(config, "dropout"):
        return config
    return kind.read({**section, "dropout": DROPOUT})


def derived(recipe: Recipe, schema: FeatureSchema, interval_ms: int) -> Recipe:
    """Return *recipe* with a network for rows of that *schema* and bars of that length."""
    kind, section = recipe.kind.model, listed(recipe.architecture)
    of_data = {"features": len(schema.names), "interval_minutes": interval_ms // MINUTE_MS}
    section |= {name: value for name, value in of_data.items() if name in section}
    section |= kind.by_names(section, schema.names)
    return replace(recipe, architecture=kind.read(section))


def fit(data: Dataset, recipe: Recipe, run: FitRun) -> NetworkModel:
    """Fit the network, whose unfinished state lies in the folder of *run*.

    Of too few order books nothing that the fit measures is said.
    """
    for sentence in [] if data.vectors is None else data.vectors.torn:
        run.say(sentence)
    if untrained := data.untrained():
        run = run._replace(observe=lambda _: None)
        for sentence in untrained:
            run.say(sentence)
    recipe = derived(recipe, data.schema, data.interval_ms)
    kind, config = recipe.kind.model, recipe.architecture
    if data.fold is None:  # before minutes of fitting
        for part in (Part.CALIBRATION, Part.TEST):
            field = config.receptive_field
            if not any(len(windowed_rows(samples, field)) for samples in data.samples(part)):
                raise no_context(part, field)
    torch.manual_seed(recipe.options.seed)
    network = kind.make(config).to(device_called(recipe.device))
    heads = network.given_heads
    data = replace(data, heads=heads)
    if not run.resume:
        run.say(
            f"{kind.name}: {sum(p.numel() for p in network.parameters()):,} weights; an"
            f" answer depends on {config.receptive_field:,} rows of features."
        )
    running = heads_fit(
        network,
        data.samples(Part.TRAIN),
        data.samples(Part.VALIDATION),
        recipe.options,
        folder=run.folder,
        about=fit_facts(data, recipe.schema_id, kind.name, listed(config)),
        levels=getattr(config, "quantiles", ()),
    )
    run.complete(running)
    card = candle_card(
        data,
        recipe,
        run,
        architecture=listed(config),
        training={
            **recipe.document()["training"],
            "best_step": running.progress.best_step,
            "last_step": running.progress.step,
            "bars": sum(int(s.weights.any(axis=1).sum()) for s in data.samples(Part.TRAIN)),
            "flat_band": FLAT_BAND,
            "variance_floor": VARIANCE_FLOOR,
            "losses": titles(heads),
            "command": command(data.sources, () if data.vectors is None else data.vectors.words),
        },
        calibration={"content_free": kind.make(config).content_free()},
    )
    card["gradients"] = running.progress.gradients_section()
    return NetworkModel(card, running.best, running.progress.stopped)


class NetworkModel(CandleModel):
    """A fitted network over the bars of one symbol."""

    @cached_property
    def network(self) -> Network:
        """The network with its weights, checked."""
        return restore(self.card, self.tensors)

    def answers(self, data: Dataset, part: Part) -> Forecasts:
        """Return the network's forecasts of *part*, as it makes them."""
        return network_forecasts(self.network, data, part)

    def calibrated_forecasts(self, data: Dataset, part: Part) -> Forecasts:
        """Return its forecasts of *part* by temperature, slopes and levels of its card."""
        section = self.card["calibration"]
        return levelled(calibrated(self.answers(data, part), section), section.get("further", {}))

    def scaled(self, data: Dataset) -> NetworkModel:
        """Return it with temperature and slopes of the calibration slice."""
        table = self.answers(data, Part.CALIBRATION)
        section = {**self.card["calibration"], **scales_of(table)}
        if heads_of(table):
            section["further"] = levels_of(table)
            if learnt := learn_correlations(data):
                section["correlation"] = learnt
        return self.with_card(calibration=section)

    def calibrated(self, data: Dataset, *, bars: int | None = None) -> NetworkModel:
        """Return it with what the calibration slice says of its scales and its gates."""
        model = self.scaled(data)
        explained = explained_rows(model, data, Part.CALIBRATION, bars)
        return model.with_card(calibration=gates_section(explained, model.card["calibration"]))

    def judge(self, data: Dataset, *, bars: int | None = None) -> Judgement:
        """Return its calibrated forecasts of the test part, and their figures."""
        section, horizon = self.card["calibration"], self.horizon
        table = self.calibrated_forecasts(data, Part.TEST)
        results = figures(table) | paired_figures(table)
        explained = explained_rows(self, data, Part.TEST, bars)
        gates = judged_gates(table, explained, section, data.split.second_span_ms)
        sentences = cards.sentences(results, gates.figures, horizon=horizon)
        if heads_of(table):
            results["further"] = head_figures(table)
            days = results[str(horizon)]["days"]
            sentences += head_sentences(results["further"], horizon=horizon, days=days)
        pairs = correlations_of(data, Part.TEST, section.get("correlation", {}))
        if pairs is not None:
            results["correlation"] = correlation_figures(pairs)
            sentences += correlation_sentences(pairs, horizon=horizon)
        return gates._replace(
            figures={**results, "gates": gates.figures},
            sentences=[*sentences, *gates.sentences],
            pairs=pairs,
        )


def network_forecasts(network: Network, data: Dataset, part: Part) -> Forecasts:
    """Return a network's forecasts of *part*, beside every baseline.

    Raises ``ConfigInvalid`` where no bar has a full context.
    """
    answers = [
        SegmentFields(samples, rows, predict(network, samples.segment, rows))
        for samples, rows in judged_rows(network, data.samples(part))
    ]
    if not answers:
        raise no_context(part, network.config.receptive_field)
    levels = getattr(network.config, "quantiles", ())
    return forecasts_of(answers, data.baselines, data.horizons, levels)


def scales_of(table: Forecasts) -> dict[str, Any]:
    """Return what ``[calibration]`` says of a network's scales, of the calibration slice."""
    temperature, slope = {}, {}
    for horizon, rows in table.by_horizon():
        logits, classes = rows.value("logits"), rows.labels["direction"]
        temperature[str(horizon)] = cards.temperature(logits, classes)
        slope[str(horizon)] = cards.slope(rows.value("mean"), rows.labels["returns"])
    return {"temperature": temperature, "slope": slope, TAILS: tail_factors(table)}


def calibrated(table: Forecasts, section: Mapping[str, Any]) -> Forecasts:
    """Return *table* with the probabilities and the means that ``[calibration]`` makes of it."""
    table = table.cooled(section["temperature"])
    size = table.by_row(section["slope"]) * table.value("mean")
    return table.holding("calibrated", size=size)


def explained_rows(model: CandleModel, data: Dataset, part: Part, bars: int | None) -> Forecasts:
    """Return the forecasts of a run of *model* over *part*, explained by its network.

    Of so many *bars*; None is as many as can be explained in minutes. The forecaster sees the
    covariates of *data* where it takes some.
    """
    joined = data.schema.covariates
    source = None if joined is None else joined.source
    if bars is None:
        network = model.network
        streams = isinstance(network, FlashNetwork) and network.answers_every_row
        bars = EXPLAINED_BARS if streams else EXPLAINED_WINDOWS
    options = RunOptions(threads=torch.get_num_threads(), vectors=source)
    forecaster = build(model.card, model.tensors, options)
    horizon, slopes = model.horizon, model.card["calibration"]["slope"]
    answered = answered_rows(forecaster, data.samples(part), horizon=horizon, bars=bars)
    return rows_of(forecaster, answered, horizon=horizon, slope=slopes[str(horizon)])


for _kind in network_kinds().values():
    register(
        Kind(
            _kind,
            type(_kind.read({})),
            FitOptions,
            read_candles,
            read_candles_of,
            fit,
            NetworkModel,
            read_config,
            joins_rows=True,
        )
    )
