"""A user's own model judged on bars after it was trained, beside every baseline.

The rule is docs/own_models.md, N11.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.daemon.session.user_model import UserForecaster
from tracepaper.replay.archive.series import archive_instrument
from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.card import NO_ATTENTION
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.evaluation.explained import (
    JudgedPart,
    bars_of,
)
from tracepaper.replay.learning.evaluation.forecasts import (
    ALL_MEASURES,
    HorizonForecasts,
    Predictions,
    judged,
    report,
)
from tracepaper.replay.learning.samples import Samples
from tracepaper.replay.learning.splits import Part, Segment, Split, date_ms, iso
from tracepaper.replay.learning.statistics import paired_figures
from tracepaper.replay.report.honesty import compared_sentences, few_days
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.types.decisions import Forecast

SHARE_UNJUDGED: Final = 0.8
"""Of the bars of a model that does not say until when it was trained: the rest is judged."""
NORMAL: Final = 1e6
"""Degrees of freedom at which a Student-t is a normal distribution."""
OF_MODEL: Final = "model"

_NEEDS: Final[Mapping[str, frozenset[str]]] = {
    "sign_accuracy": frozenset({"mean_return"}),
    "ic": frozenset({"mean_return"}),
    "rank_ic": frozenset({"mean_return"}),
    "r_squared": frozenset({"mean_return"}),
    "mae": frozenset({"mean_return"}),
    "mse": frozenset({"mean_return"}),
    "qlike": frozenset({"volatility"}),
    "log_variance_r_squared": frozenset({"volatility"}),
    "volatility_mae": frozenset({"volatility"}),
    "coverage_90": frozenset({"mean_return", "stdev_return"}),
    "direction": frozenset({"probabilities"}),
}
"""What of the model each figure is of; without it the baselines stand alone, or nothing does."""


def split_at(segments: Sequence[Segment], forecaster: UserForecaster) -> Split:
    """Return the split of which training and test are used: before and after it was trained.

    The embargo is the longest horizon, so that no label of a bar before reaches into the test.
    """
    said = forecaster.model.trained_until
    if said is None:
        times = np.sort(np.concatenate([segment.open_time_ms for segment in segments]))
        until_ms = int(times[int(SHARE_UNJUDGED * (len(times) - 1))])
    else:
        until_ms = date_ms(said)
    return Split(until_ms, until_ms + 1, until_ms + 2, max(forecaster.horizons))


def evaluate_own(forecaster: UserForecaster, material: Dataset, *, horizon: int) -> JudgedPart:
    """Return what a class said of the test part, its figures by horizon, and sentences about them.

    Raises ``ConfigInvalid`` where no bar of that part was forecast.
    """
    answered = []
    for samples in material.samples(Part.TEST):
        rows, forecasts = _answers(forecaster, samples)
        if len(rows):
            answered.append((samples, rows, predictions_of(samples, rows, forecasts)))
    if not answered:
        raise ConfigInvalid(
            f"The model forecast no bar after {iso(material.split.train_until_ms)}; give candles "
            "of a later time."
        )
    found = judged(answered, material.baselines, material.horizons)
    by_horizon = {str(one.horizon): figures_of(one, forecaster.measures) for one in found}
    by_horizon |= paired_figures(found, forecaster.measures)
    chosen = next((one for one in found if one.horizon == horizon), found[0])
    given: dict[str, Any] = dict(by_horizon)
    given["gates"] = {"selective": selective_of(chosen, forecaster.measures)}
    sentences = _sentences(by_horizon, chosen.horizon, forecaster, material.split)
    return JudgedPart(found, frozenset(forecaster.measures), given, sentences)


def _answers(
    forecaster: UserForecaster, samples: Samples
) -> tuple[NDArray[np.int64], list[Forecast]]:
    """Return the labelled rows of *samples* that were forecast with finite numbers."""
    segment = samples.segment
    labelled = np.flatnonzero(samples.weights.any(axis=1))
    labelled = labelled[labelled >= forecaster.context - 1]
    if not len(labelled):
        return labelled, []
    start, stop = int(labelled[0]) - forecaster.context + 1, int(labelled[-1]) + 1
    forecaster.scale([archive_instrument(segment.candles)])
    forecaster.warm(segment.candles.instrument, [])
    bars = bars_of(segment, start, stop)
    said = forecaster.scan(bars) if forecaster.causal else [forecaster.step(bar) for bar in bars]
    known = [(row, one) for row in labelled.tolist() if (one := said[row - start]) is not None]
    names: list[str] = [
        name
        for name in ("mean_return", "stdev_return", "volatility")
        if name in forecaster.measures
    ]
    if "probabilities" in forecaster.measures:
        names += ["p_down", "p_flat", "p_up"]
    usable = [
        (row, one)
        for row, one in known
        if all((column := getattr(one, name)) and np.isfinite(column).all() for name in names)
    ]
    return np.array([row for row, _ in usable], dtype=np.int64), [one for _, one in usable]


def predictions_of(
    samples: Samples, rows: NDArray[np.int64], forecasts: Sequence[Forecast]
) -> Predictions:
    """Return the forecasts in units of σ √h; what is not given is zero, and left out later."""
    shape = (len(rows), len(samples.horizons))
    root = samples.segment.sigma[rows][:, None] * np.sqrt(samples.horizons)

    def column(name: str) -> Array:
        found = np.array([getattr(one, name) for one in forecasts], dtype=np.float64)
        return found if found.shape == shape else np.zeros(shape)

    shares = np.stack([column(name) for name in ("p_down", "p_flat", "p_up")], axis=-1)
    return Predictions(
        mean=(column("mean_return") / root).astype(np.float32),
        scale=(column("stdev_return") / root).astype(np.float32),
        dof=np.full(shape, NORMAL, dtype=np.float32),
        logits=np.log(np.maximum(shares, 1e-9)).astype(np.float32),
        variance=((column("volatility") / root) ** 2).astype(np.float32),
    )


def figures_of(found: HorizonForecasts, measures: Collection[str]) -> dict[str, Any]:
    """Return one horizon's figures without those of what is not among a model's *measures*."""
    every = report(found, temperature=1.0, slope=1.0)
    kept: dict[str, Any] = {"bars": every["bars"], "days": every["days"]}
    for name, needs in _NEEDS.items():
        figure, is_given = every[name], needs.issubset(measures)
        if isinstance(figure, dict) and "network" in figure:
            figure = {key: pair for key, pair in figure.items() if key != "calibrated"}
            own = figure.pop("network")
            kept[name] = {OF_MODEL: own, **figure} if is_given else figure
        elif is_given:
            kept[name] = figure
    return kept


def selective_of(found: HorizonForecasts, given: Collection[str]) -> dict[str, Any]:
    """Return what accuracy the surest bars gain, by the gates of the measures that are *given*."""
    if "mean_return" in given:
        side = found.mean
    elif "probabilities" in given:
        side = (found.logits[:, 2] - found.logits[:, 0]).astype(np.float64)
    else:
        return {}
    hit = np.where(side == 0, 0.5, np.sign(side) == np.sign(found.value)).astype(np.float64)
    measures: dict[str, Array] = {}
    if "mean_return" in given:
        measures["edge"] = np.abs(found.mean)
    if "probabilities" in given:
        shares = figures.probabilities(found.logits, 1.0)
        measures["direction"] = np.maximum(shares[:, 0], shares[:, 2]) / (
            shares[:, 0] + shares[:, 2]
        )
    return figures.table(hit, measures, found.days)


def _sentences(
    by_horizon: Mapping[str, Mapping[str, Any]],
    horizon: int,
    forecaster: UserForecaster,
    split: Split,
) -> list[str]:
    chosen = by_horizon[str(horizon)]
    until = iso(split.train_until_ms)
    if forecaster.model.trained_until is None:
        when = (
            f"The class does not say until when it was trained (trained_until): the bars after "
            f"{until} were judged, and they flatter a model that saw them."
        )
    else:
        when = f"Judged on bars after {until}, until which its class says that it was trained."
    found = [when]
    found += compared_sentences(by_horizon, horizon, OF_MODEL)
    if left := sorted(ALL_MEASURES - frozenset(forecaster.measures)):
        found.append(f"It gives no {', '.join(left)}: their figures are left out.")
    found.append(NO_ATTENTION)
    return [*found, *few_days(chosen["days"])]
