"""Networks over bars, of one symbol or of all symbols at a close: fit, calibration, forecasts.

The rules are docs/models.md, L7 to L28.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Final, Self

import torch

from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fit import Fit, FitOptions, device_called, heads_fit
from tracepaper.replay.learning.fitted import EXPLAINED_BARS, FitRun, FittedModel
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts, SegmentFields, forecasts_of
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.judge.heads import (
    head_figures,
    head_sentences,
    heads_of,
    levelled,
    levels_of,
)
from tracepaper.replay.learning.recipe import DROPOUT, Chosen, Kind, Recipe, register
from tracepaper.replay.learning.recipe_data import card_of
from tracepaper.replay.learning.samples import EVERY_HEAD
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.windows import judged_rows, no_context, predict
from tracepaper.strategies.api.model import ModelKind
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.forecasters.build import RunOptions, build, restore
from tracepaper.strategies.networks.architecture import Network, network_kinds
from tracepaper.strategies.networks.flash import FlashNetwork
from tracepaper.strategies.networks.keys import listed

EXPLAINED_WINDOWS: Final = 12_000
"""The default number of bars to explain where each costs a pass over its window."""


def read_config(kind: ModelKind, chosen: Chosen) -> Any:  # noqa: ANN401 - any configuration
    """Return the configuration, with ``DROPOUT`` if a recipe does not choose dropout.

    It is no default of the network's keys, since a card without dropout means none.
    """
    section = {
        name: value for name, value in chosen["architecture"].items() if name not in kind.follows
    }
    config = kind.read(section)
    if "dropout" in section or not hasattr(config, "dropout"):
        return config
    return kind.read({**section, "dropout": DROPOUT})


def derived(recipe: Recipe, names: Sequence[str], **of_data: Any) -> Recipe:  # noqa: ANN401
    """Return *recipe* with a network for the features *names*; *of_data* are other derived keys."""
    kind, section = recipe.kind, listed(recipe.architecture)
    of_data["features"] = len(names)
    section |= {name: value for name, value in of_data.items() if name in section}
    section |= kind.model.by_names(section, names)
    return replace(recipe, architecture=kind.Keys.read(section))


def fit(data: Dataset, recipe: Recipe, run: FitRun) -> FittedModel:
    """Fit the network; the folder of *run* holds the state of an unfinished fit.

    If the data make an untrained model, the fit reports no losses or scores.
    """
    untrained = data.untrained()
    for sentence in (*data.torn, *untrained, *data.notes):
        run.say(sentence)
    if untrained:
        run = run._replace(observe=lambda _: None)
    recipe = derived(recipe, data.schema.names, **data.of_network)
    kind, config, options = recipe.kind, recipe.architecture, recipe.options
    data.require(config)  # before minutes of fitting
    torch.manual_seed(options.seed)
    network = kind.network(config).to(device_called(recipe.device))
    symbols = data.panel_symbols
    if not run.resume:
        weights = sum(parameter.numel() for parameter in network.parameters())
        per_symbol = f" of each of {len(symbols)} symbols" if symbols else ""
        run.say(
            f"{kind.name}: {weights:,} weights; an answer depends on {config.receptive_field:,} "
            f"{data.unit}{per_symbol}."
        )
        for note in config.notes:
            run.say(note)
    about = {
        "options": asdict(options),
        "network": {"kind": kind.name, **listed(config)},
        **data.facts,
    }
    fitting = kind.learn(network, data, options, folder=run.folder, about=about)
    run.complete(fitting)
    bars, fresh = data.bars(Part.TRAIN), kind.network(config)
    has_baseline = hasattr(fresh, "content_free")
    card = card_of(
        data,
        recipe,
        run,
        architecture=listed(config),
        training={
            **recipe.document()["training"],
            "best_step": fitting.progress.best_step,
            "last_step": fitting.progress.step,
            "bars": bars,
            **({"closes": bars // len(symbols), "not_used": list(data.notes)} if symbols else {}),
            **fitting.objective.constants,
            "losses": fitting.objective.titles,
        },
        calibration={"content_free": fresh.content_free()} if has_baseline else {},
    )
    card["gradients"] = fitting.progress.gradients_section()
    return replace(kind.load(card, fitting.best), stopped=fitting.progress.stopped)


def learn_bars(network: Network, data: Dataset, options: FitOptions, **where: Any) -> Fit:  # noqa: ANN401
    """Return the fit of a network's heads to the bars of each symbol; see ``heads_fit``."""
    data = replace(data, heads=EVERY_HEAD | network.given_heads)
    training, validation = data.samples(Part.TRAIN), data.samples(Part.VALIDATION)
    return heads_fit(network, training, validation, options, **where)


class NetworkModel(FittedModel):
    """A fitted network over the bars of one symbol."""

    called = MODEL

    @cached_property
    def network(self) -> Any:  # noqa: ANN401 - of its kind
        """The network with its weights, checked."""
        return restore(self.card, self.tensors)

    def forecaster(self, data: Dataset) -> Forecaster:
        """Return the forecaster of a run, with the side inputs of *data*."""
        joined = data.schema.covariates
        source = None if joined is None else joined.source
        options = RunOptions(threads=torch.get_num_threads(), vectors=source)
        return build(self.card, self.tensors, options)

    @property
    def usually_explained(self) -> int:
        """The default number of bars to explain; fewer where each costs a pass over its window."""
        streams = isinstance(self.network, FlashNetwork) and self.network.answers_every_row
        return EXPLAINED_BARS if streams else EXPLAINED_WINDOWS

    def answers(self, data: Dataset, part: Part) -> Forecasts:
        """Return the network's uncalibrated forecasts of *part*."""
        return network_forecasts(self.network, data, part)

    def calibrated_forecasts(self, data: Dataset, part: Part) -> Forecasts:
        """Return its forecasts of *part* with temperature, slopes and levels of its card."""
        section = self.card["calibration"]
        table = self.answers(data, part).cooled(section["temperature"])
        table = table.with_fields(
            "calibrated", size=table.by_row(section["slope"]) * table.value("mean")
        )
        return levelled(table, section.get("further", {}))

    def scaled(self, data: Dataset) -> Self:
        """Return a copy with temperature and slopes of the calibration slice."""
        table = self.answers(data, Part.CALIBRATION)
        temperature, slope = {}, {}
        for horizon, rows in table.by_horizon():
            logits, classes = rows.value("logits"), rows.labels["direction"]
            temperature[str(horizon)] = cards.temperature(logits, classes)
            slope[str(horizon)] = cards.slope(rows.value("mean"), rows.labels["returns"])
        scales = {"temperature": temperature, "slope": slope}
        section = {**self.card["calibration"], **scales}
        if heads_of(table):
            section["further"] = levels_of(table)
        return self.with_card(calibration=section)

    def findings(self, results: dict[str, Any], judgement: Judgement) -> list[str]:
        """Return the sentences of every model, and those of auxiliary heads."""
        sentences, table = super().findings(results, judgement), judgement.forecasts
        if heads_of(table):
            results["further"] = head_figures(table)
            days = results[str(self.horizon)]["days"]
            sentences += head_sentences(results["further"], horizon=self.horizon, days=days)
        return sentences


def network_forecasts(network: Network, data: Dataset, part: Part) -> Forecasts:
    """Return a network's forecasts of *part*, with every baseline.

    Raises ``ConfigInvalid`` if no bar has a full context.
    """
    answers = [
        SegmentFields(samples, rows, predict(network, samples.segment, rows))
        for samples, rows in judged_rows(network, data.samples(part))
    ]
    if not answers:
        raise no_context(part, network.config.receptive_field)
    levels = getattr(network.config, "quantiles", ())
    return forecasts_of(answers, data.baselines, data.horizons, levels)


for _kind in network_kinds().values():
    register(
        Kind(
            _kind,
            type(_kind.read({})),
            FitOptions,
            fit,
            NetworkModel,
            read_config,
            joins_rows=True,
            learn=learn_bars,
        )
    )
