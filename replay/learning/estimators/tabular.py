"""Models of one bar's features: boosted trees, and a gamma regression.

The rules are docs/models.md, L7, L8 and L22 to L24.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from tracepaper.replay.learning import baselines
from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.boosting import (
    BoostingOptions,
    LabelledRows,
    boost,
    import_lightgbm,
)
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fitted import EXPLAINED_BARS, FitRun, FittedModel
from tracepaper.replay.learning.judge.forecasts import (
    MODEL,
    NORMAL,
    Forecasts,
    SegmentFields,
    forecasts_of,
)
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.judge.metrics import TAILS, standardized_tails
from tracepaper.replay.learning.recipe import Kind, Recipe, register
from tracepaper.replay.learning.recipe_data import card_of
from tracepaper.replay.learning.samples import Fields, Samples
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.statistics import COVERAGE, VARIANCE_FLOOR
from tracepaper.replay.report.honesty import compared_sentences, few_days
from tracepaper.strategies.api.model import ModelKind
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.forecasters.tabular import (
    ROW_KINDS,
    GlmModel,
    RowForecaster,
    RowModel,
    TrainedRows,
    trained_rows,
)
from tracepaper.strategies.forecasters.trees import joined
from tracepaper.strategies.networks.keys import Horizons, listed

WITHOUT_ATTENTION: Final = (
    "It has no attention, so the gates of entropy, shift and regime are not declared."
)


@dataclass(frozen=True)
class RowKeys:
    """``[architecture]`` of a model of one bar's features."""

    horizons: Horizons = (5, 30, 240)


RowFit = Callable[[Dataset, Recipe], tuple[dict[str, NDArray[Any]], dict[str, Any]]]
"""Data and recipe → the model's arrays, and keys of ``[training]`` about the fit."""


def row_kind(
    model: ModelKind,
    fit: RowFit,
    load: Callable[[Mapping[str, Any], Mapping[str, Tensor]], VarianceModel],
    keys: type[Any] = RowKeys,
    needs: Callable[[str], object] = lambda _: None,
) -> Kind:
    """Return a kind of model of one bar's features; its fit cannot be resumed."""

    def fitted(data: Dataset, recipe: Recipe, run: FitRun) -> VarianceModel:
        run.say(f"Fitting the {model.name}{', from its beginning' if run.resume else ''}.")
        arrays, training = fit(data, recipe)
        training = {
            **training,
            **recipe.kind.shared_training(recipe),
            "bars": data.bars(Part.TRAIN),
            "variance_floor": VARIANCE_FLOOR,
        }
        architecture = {**listed(recipe.architecture), "horizons": list(data.horizons)}
        card = card_of(data, recipe, run, architecture=architecture, training=training)
        return load(card, {name: torch.from_numpy(array) for name, array in arrays.items()})

    return Kind(
        model,
        keys,
        BoostingOptions,  # a regression ignores them
        fitted,
        load,
        shared=("threads", "explained_bars"),
        explained_bars=EXPLAINED_BARS,
        needs=needs,
    )


class VarianceModel(FittedModel):
    """A fitted model of mean and variance only."""

    @abstractmethod
    def forecaster(self, data: Dataset) -> Forecaster:
        """Return the forecaster of a run, which gives the gates' measures."""

    def explained(self, data: Dataset, part: Part, bars: int | None) -> Forecasts | None:
        """Return a run's forecasts of the calibration slice; None for the test part."""
        return None if part is Part.TEST else super().explained(data, part, bars)

    def calibrated_forecasts(self, data: Dataset, part: Part) -> Forecasts:
        """Return the forecasts of *part* with calibrated scales."""
        return spreading(self.answers(data, part), self.card["calibration"]["spread"])

    def scaled(self, data: Dataset) -> Self:
        """Return a copy with slopes and spreads of the calibration slice."""
        table = self.answers(data, Part.CALIBRATION)
        spreads = {str(horizon): spread(rows) for horizon, rows in table.by_horizon()}
        section = {
            **self.card["calibration"],
            "slope": {
                str(horizon): cards.slope(rows.value("mean"), rows.labels["returns"])
                for horizon, rows in table.by_horizon()
            },
            "spread": spreads,
            TAILS: standardized_tails(spreading(table, spreads)),
        }
        return self.with_card(calibration=section)

    def findings(self, results: dict[str, Any], judgement: Judgement) -> list[str]:
        """Return the sentences of a model without attention."""
        del judgement
        return [
            cards.NOTICE,
            *compared_sentences(results, self.horizon, self.called),
            *few_days(results[str(self.horizon)]["days"]),
            WITHOUT_ATTENTION,
        ]


class RowsModel(VarianceModel):
    """A fitted model of one bar's features."""

    @cached_property
    def rows(self) -> TrainedRows:
        """The model with its arrays, checked."""
        return trained_rows(self.card, self.tensors, ROW_KINDS[self.card["model"]["kind"]])

    def forecaster(self, data: Dataset) -> Forecaster:
        """Return the forecaster of a run, which gives the gates' measures."""
        del data
        return RowForecaster(self.rows, mode="scan", threads=1)

    def answers(self, data: Dataset, part: Part) -> Forecasts:
        """Return the forecasts of *part*, with every baseline."""
        answers = []
        for samples in data.samples(part):
            fields = row_fields(self.rows.model, samples.segment.values[samples.rows])
            answers.append(SegmentFields(samples, samples.rows, fields))
        return forecasts_of(answers, data.baselines, data.horizons)


def spread(rows: Forecasts) -> float:
    """Return the factor of the forecast deviation whose normal interval covers 90 % of returns."""
    missed = np.abs(rows.labels["returns"] - rows.value("mean")) / np.sqrt(rows.value("variance"))
    return cards.rounded(float(np.quantile(missed, COVERAGE) / norm.ppf(0.5 + COVERAGE / 2)))


def spreading(table: Forecasts, spreads: Mapping[str, float]) -> Forecasts:
    """Return *table* with the model's scales times *spreads* by horizon."""
    return table.with_fields(MODEL, scale=table.value("scale") * table.by_row(spreads))


def row_fields(model: RowModel, rows: NDArray[np.float32]) -> Fields:
    """Return the fields of *model* for *rows*; the scale is the root of the variance."""
    mean, log_variance = model.answer(rows)
    return {
        "mean": mean.astype(np.float32),
        "scale": np.exp(0.5 * log_variance).astype(np.float32),
        "dof": np.full(mean.shape, NORMAL, dtype=np.float32),
        "variance": np.exp(log_variance).astype(np.float32),
    }


# --- the fits


def table_of(samples: Sequence[Samples], label: str) -> LabelledRows:
    """Return every labelled row of *samples* with its *label*."""
    parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    for each in samples:
        rows = each.rows
        values = np.nan_to_num(each.labels[label][0, rows], nan=1.0)
        parts.append((each.segment.values[rows], values, each.weights[rows]))
    return LabelledRows(*(np.concatenate([part[at] for part in parts]) for at in range(3)))


def fit_tree(data: Dataset, recipe: Recipe) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Boost trees for the variance and for the mean of each horizon, with early stopping."""
    training, validation = (data.samples(part) for part in (Part.TRAIN, Part.VALIDATION))
    parts = [
        boost(
            table_of(training, label),
            table_of(validation, label),
            recipe.options,
            target=target,
            threads=recipe.threads,
        )
        for target, label in (("variance", "variance"), ("mean", "returns"))
    ]
    counts = [part.trees.tolist() for part in parts]
    section = {**asdict(recipe.options), "variance_trees": counts[0], "mean_trees": counts[1]}
    return joined(parts).arrays(), section


def fit_glm(data: Dataset, recipe: Recipe) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Fit a gamma regression for the variance of each horizon, and a ridge for the mean."""
    del recipe  # it has no options
    training = data.samples(Part.TRAIN)
    arrays = glm_arrays(*(table_of(training, label) for label in ("variance", "returns")))
    return arrays, {"variance_ridge": baselines.GAMMA_RIDGE, "mean_ridge": baselines.RIDGE}


def glm_arrays(variance: LabelledRows, returned: LabelledRows) -> dict[str, NDArray[Any]]:
    """Return the arrays of a ``GlmModel``, fitted to rows with their variances and returns."""
    fits = [
        baselines.fit_gamma(variance.rows, values, weights)
        for values, weights in zip(variance.values.T, variance.weights.T, strict=True)
    ]
    means = baselines.ridge(returned.rows, np.where(returned.weights > 0, returned.values, np.nan))
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
    return arrays


register(row_kind(ROW_KINDS["tree"], fit_tree, RowsModel, needs=import_lightgbm))
register(row_kind(ROW_KINDS["glm"], fit_glm, RowsModel))
