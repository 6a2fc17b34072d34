"""Row models, from material to a checkpoint: fitted, calibrated, judged beside every baseline.

A kind is one entry of ``FITS``. What it needs of the networks' pipeline is the material, the card's
sections and the figures; no network is trained.

The rules are docs/models.md, L7, L8 and L22 to L24.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from tracepaper.replay.training import baselines
from tracepaper.replay.training import card as cards
from tracepaper.replay.training.boosting import BoostingOptions, LabelledRows, boost
from tracepaper.replay.training.card import PERCENTS, ROUND_TRIP_COST, quantiles, rounded, slope
from tracepaper.replay.training.evaluation import HorizonForecasts, Predictions, judged
from tracepaper.replay.training.explained import JudgedPart, bars_of
from tracepaper.replay.training.figures import COVERAGE
from tracepaper.replay.training.fitted import save_judged
from tracepaper.replay.training.glm import RIDGE, fit_gamma
from tracepaper.replay.training.honesty import compared_sentences, few_days
from tracepaper.replay.training.material import Material
from tracepaper.replay.training.own import NORMAL, OF_MODEL, figures_of, selective_of
from tracepaper.replay.training.paired import paired_figures
from tracepaper.replay.training.pipeline import Say, interval_name
from tracepaper.replay.training.recipe import (
    EXPLAINED_BARS,
    SCHEMA,
    THREADS,
    chosen_of,
    command,
    features_of,
    middle,
    own_training,
    requested_baselines,
    typed,
    whole,
    with_baselines,
)
from tracepaper.replay.training.samples import VARIANCE_FLOOR, Samples
from tracepaper.replay.training.series import Part
from tracepaper.replay.training.tails import TAILS, tail_factors
from tracepaper.storage.checkpoints import Checkpoint, dump
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.tabular import (
    ROW_MEASURES,
    GlmModel,
    RowForecaster,
    RowModel,
    TrainedRows,
    row_kind,
    trained_rows,
)
from tracepaper.strategies.forecasters.trees import joined
from tracepaper.strategies.gates.gate import GATES, GateInputs

WITHOUT_ATTENTION: Final = (
    "It has no attention, so the gates of entropy, shift and regime are not declared."
)
HORIZONS: Final = (5, 30, 240)


@dataclass(frozen=True)
class RowRecipe:
    """Everything that is chosen before a row model is fitted."""

    name: str
    kind: str  # of ``ROW_KINDS``
    horizon: int  # of the gates
    created_ms: int
    explained_bars: int  # of the calibration part, for the quantiles of the gates
    options: BoostingOptions
    threads: int = 1
    schema_id: str = SCHEMA
    horizons: tuple[int, ...] = HORIZONS
    intervals: tuple[str, ...] = ()  # the model's, then others to learn from
    calendar: str | None = None
    split: Mapping[str, Any] | None = None
    baselines: tuple[str, ...] = ()  # of those that are fitted on request

    @classmethod
    def of(cls, document: Mapping[str, Any], *, created_ms: int) -> Self:
        """Read a recipe or a card, as ``Recipe.of`` does; its architecture is its horizons."""
        chosen = chosen_of(document, BoostingOptions)
        model, architecture = chosen["model"], chosen["architecture"]
        own = own_training(chosen["training"])
        for key in sorted(set(architecture) - {"horizons"}):
            raise ConfigInvalid(f"A {model['kind']} has no architecture.{key}; leave it out.")
        horizons = tuple(architecture.get("horizons", HORIZONS))
        return cls(
            name=str(model.get("name", "")),
            kind=str(model["kind"]),
            horizon=whole(
                "calibration.horizon", chosen["calibration"].get("horizon", middle(horizons))
            ),
            created_ms=created_ms,
            explained_bars=own.get("explained_bars") or EXPLAINED_BARS,
            options=typed(BoostingOptions, chosen["training"]),
            threads=whole("training.threads", own.get("threads", THREADS)),
            schema_id=str(chosen["features"].get("schema_id", SCHEMA)),
            horizons=tuple(whole("architecture.horizons", one) for one in horizons),
            intervals=tuple(chosen["features"].get("intervals", ())),
            calendar=chosen["features"].get("calendar"),
            split=chosen["split"] or None,
            baselines=requested_baselines(own),
        )

    def text(self) -> str:
        """Return it as TOML, which ``of`` reads back."""
        training = {
            "threads": self.threads,
            "explained_bars": self.explained_bars,
            **with_baselines(self.baselines),
        }
        found: dict[str, Any] = {
            "model": {"kind": self.kind, "name": self.name},
            "architecture": {"horizons": list(self.horizons)},
            "features": features_of(self.schema_id, self.intervals, self.calendar),
            "training": {**asdict(self.options), **training},
            "calibration": {"horizon": self.horizon},
        }
        return dump(found if self.split is None else {**found, "split": dict(self.split)})


FittedRows = tuple[dict[str, NDArray[Any]], dict[str, Any]]
"""A row model's arrays, and the card's ``[training]``."""


def table_of(samples: Sequence[Samples], label: str) -> LabelledRows:
    """Return every labelled row of *samples* with its label of that name."""
    parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    for each in samples:
        rows = np.flatnonzero(each.weights.any(axis=1))
        values = np.nan_to_num(each.labels[label][rows], nan=1.0)
        parts.append((each.segment.values[rows], values, each.weights[rows]))
    return LabelledRows(*(np.concatenate([part[at] for part in parts]) for at in range(3)))


def fit_tree(material: Material, recipe: RowRecipe) -> FittedRows:
    """Boost an ensemble a horizon for the variance and one for the mean, stopped early."""
    training, validation = (material.samples(part) for part in (Part.TRAIN, Part.VALIDATION))
    parts = [
        boost(
            table_of(training, label),
            table_of(validation, label),
            recipe.options,
            of=of,
            threads=recipe.threads,
        )
        for of, label in (("variance", "variance"), ("mean", "returns"))
    ]
    counts = [part.trees.tolist() for part in parts]
    section = {**asdict(recipe.options), "variance_trees": counts[0], "mean_trees": counts[1]}
    return joined(parts).arrays(), section


def fit_glm(material: Material, recipe: RowRecipe) -> FittedRows:
    """Fit a gamma regression a horizon for the variance, and a ridge for the mean."""
    del recipe  # nothing about it is chosen
    training = material.samples(Part.TRAIN)
    variance, returned = (table_of(training, label) for label in ("variance", "returns"))
    fits = [
        fit_gamma([variance.rows], [variance.values[:, at]], [variance.weights[:, at]])
        for at in range(len(material.horizons))
    ]
    means = baselines.ridge(
        [returned.rows], [np.where(returned.weights > 0, returned.values, np.nan)]
    )
    centre = means.centre
    arrays = {
        "centre": centre,
        "log_variance_weights": np.stack([fit.weights for fit in fits]),
        "mean_weights": np.ascontiguousarray(means.weights.T),
        "log_variance_base": np.array(
            [fit.base + fit.weights @ (centre - fit.centre) for fit in fits]
        ),
        "mean_base": means.intercept,
    }
    assert set(arrays) == {"centre", *GlmModel.NAMES}
    return arrays, {"variance_ridge": RIDGE, "mean_ridge": baselines.RIDGE}


FITS: Final[Mapping[str, Callable[[Material, RowRecipe], FittedRows]]] = {
    "tree": fit_tree,
    "glm": fit_glm,
}
"""What fits each of ``ROW_KINDS``."""


def train_rows(material: Material, recipe: RowRecipe, folder: Path, *, say: Say) -> Checkpoint:
    """Fit, calibrate, judge and write a row model into *folder*; return it.

    Raises ``ConfigInvalid`` where the horizon of the gates is none of the model's.
    """
    if recipe.horizon not in material.horizons:
        raise ConfigInvalid(
            f"The gates' horizon of {recipe.horizon} bars is none of the model's "
            f"{list(material.horizons)}; choose one of these."
        )
    say(f"Fitting the {recipe.kind}.")
    tensors, options = fit_rows(material, recipe)
    say("Calibrating.")
    card = _calibrated(row_card(material, recipe, options), tensors, material, recipe)
    say("Judging on untouched time.")
    card = evaluated_rows(card, tensors, material)
    return save_judged(folder, tensors, card, material.fitted)


def fit_rows(material: Material, recipe: RowRecipe) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a row model fitted to *material*, and the card's ``[training]``."""
    arrays, options = FITS[recipe.kind](material, recipe)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, options


def row_card(material: Material, recipe: RowRecipe, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card of an uncalibrated model."""
    minutes = material.segments[0].interval_ms // 60_000
    bars = sum(int(s.weights.any(axis=1).sum()) for s in material.samples(Part.TRAIN))
    return {
        "model": cards.model_section(recipe.kind, recipe.name, recipe.created_ms),
        "architecture": {"horizons": list(material.horizons)},
        "features": cards.features_section(material.schema) | material.read_as,
        "market": cards.market_section(interval_name(minutes), material.sources, material.times),
        "training": {
            **options,
            "threads": recipe.threads,
            "explained_bars": recipe.explained_bars,
            **with_baselines(recipe.baselines),
            "bars": bars,
            "variance_floor": VARIANCE_FLOOR,
            "command": command(material.sources),
        },
        "calibration": {"horizon": recipe.horizon},
        "split": cards.split_section(material.split),
        "data": cards.data_section(material.sources),
        "versions": cards.versions_section(),
    }


def _calibrated(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], material: Material, recipe: RowRecipe
) -> dict[str, Any]:
    """Return *card* with slopes, spreads and quantiles of the calibration slice."""
    section = row_scales(card, tensors, material)
    trained = _trained({**card, "calibration": section}, tensors)
    seen = _measures(
        trained,
        material.samples(Part.CALIBRATION),
        horizon=recipe.horizon,
        slope=section["slope"][str(recipe.horizon)],
        bars=recipe.explained_bars,
    )
    section |= {
        "round_trip_cost": ROUND_TRIP_COST,
        "percents": [PERCENTS[0], PERCENTS[-1]],
        "quantiles": {name: list(quantiles(values)) for name, values in seen.items()},
    }
    return {**card, "calibration": section}


def row_scales(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], material: Material
) -> dict[str, Any]:
    """Return ``[calibration]`` of *card* with slopes and spreads of the calibration slice."""
    found = judge_row_part(card, tensors, material, Part.CALIBRATION)
    spreads = {str(j.horizon): spread(j) for j in found}
    return {
        **card["calibration"],
        "slope": {str(j.horizon): slope(j.mean, j.value) for j in found},
        "spread": spreads,
        TAILS: tail_factors([replace(j, scale=j.scale * spreads[str(j.horizon)]) for j in found]),
    }


def spread(found: HorizonForecasts) -> float:
    """Return standard deviation ÷ root of the forecast variance that covers 90 % of returns."""
    missed = np.abs(found.value - found.mean) / np.sqrt(found.variances["network"])
    return rounded(float(np.quantile(missed, COVERAGE) / norm.ppf(0.5 + COVERAGE / 2)))


def _measures(
    trained: TrainedRows, part: Sequence[Samples], *, horizon: int, slope: float, bars: int
) -> dict[str, Array]:
    """Return each calibrated gate's measure of up to *bars* bars, of the gates that it has."""
    gates = [g for g in GATES.values() if g.calibrated_as and g.needs <= ROW_MEASURES]
    forecaster = RowForecaster(trained, mode="scan", threads=1)
    share = max(bars // len(part), 1)
    found: dict[str, list[float]] = {gate.calibrated_as: [] for gate in gates}
    for samples in part:
        rows = np.flatnonzero(samples.weights.any(axis=1))[:share]
        start = max(int(rows[0]) - forecaster.context + 1, 0)
        forecaster.warm(samples.segment.candles.instrument, [])
        said = forecaster.scan(bars_of(samples.segment, start, int(rows[-1]) + 1))
        seen = GateInputs(
            horizon_index=trained.horizons.index(horizon),
            slope=slope,
            round_trip_cost=ROUND_TRIP_COST,
        )
        for row in rows.tolist():
            seen.forecast = said[row - start]
            for gate in gates:
                if (value := gate.measure(seen)) is not None:
                    found[gate.calibrated_as].append(float(value))
    return {name: np.array(values) for name, values in found.items()}


def evaluated_rows(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], material: Material
) -> dict[str, Any]:
    """Return *card* with the figures of the test part and the sentences that follow from them."""
    found = judge_rows(card, tensors, material)
    return {**card, "honesty": {"sentences": found.sentences}, "figures": found.figures}


def judge_rows(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], material: Material
) -> JudgedPart:
    """Return what a row model said of the test part, its spread calibrated, and its figures."""
    found = judge_row_part(card, tensors, material, Part.TEST)
    section = card["calibration"]
    scaled = [replace(one, scale=one.scale * section["spread"][str(one.horizon)]) for one in found]
    figures: dict[str, Any] = {str(one.horizon): figures_of(one, ROW_MEASURES) for one in scaled}
    figures |= paired_figures(scaled, ROW_MEASURES)
    horizon = int(section["horizon"])
    chosen = next(one for one in scaled if one.horizon == horizon)
    sentences = [*judged_sentences(figures, horizon=horizon), WITHOUT_ATTENTION]
    figures["gates"] = {"selective": selective_of(chosen, ROW_MEASURES)}
    return JudgedPart(scaled, ROW_MEASURES, figures, sentences)


def judge_row_part(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], material: Material, part: Part
) -> list[HorizonForecasts]:
    """Return the model's and the baselines' forecasts of *part*, for each horizon."""
    model = _trained(card, tensors).model
    answered = []
    for samples in material.samples(part):
        rows = np.flatnonzero(samples.weights.any(axis=1))
        answered.append((samples, rows, predictions(model, samples.segment.values[rows])))
    return judged(answered, material.baselines, material.horizons)


def predictions(model: RowModel, rows: NDArray[np.float32]) -> Predictions:
    """Return what *model* says of *rows*; its scale is the root of the variance."""
    mean, log_variance = model.answer(rows)
    return Predictions(
        mean=mean.astype(np.float32),
        scale=np.exp(0.5 * log_variance).astype(np.float32),
        dof=np.full(mean.shape, NORMAL, dtype=np.float32),
        logits=np.zeros((*mean.shape, 3), dtype=np.float32),  # it names no probabilities
        variance=np.exp(log_variance).astype(np.float32),
    )


def _trained(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TrainedRows:
    kind = row_kind(card)
    assert kind is not None, "asked for row models alone"
    return trained_rows(card, tensors, kind)


def judged_sentences(figures: Mapping[str, Any], *, horizon: int) -> list[str]:
    """Return what an honest reader must know, in words that follow from the figures."""
    compared = compared_sentences(figures, horizon, OF_MODEL)
    return [cards.NOTICE, *compared, *few_days(figures[str(horizon)]["days"])]
