"""A network's raw outputs over known bars, and its figures beside those of every baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.baselines import (
    BASELINES,
    Answer,
    Asked,
    Measure,
    past_variances,
)
from tracepaper.replay.learning.samples import (
    NO_LABEL,
    Samples,
    first_position,
    windowed_rows,
)
from tracepaper.replay.learning.splits import Part, Segment
from tracepaper.replay.learning.statistics import (
    VARIANCE_FLOOR,
    DailyEstimate,
)
from tracepaper.replay.report.honesty import COMMONER
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.architecture import Network, Outputs
from tracepaper.strategies.units import DAY_MS

if TYPE_CHECKING:
    from tracepaper.replay.learning.dataset import Dataset


_CHUNK_ROWS: Final = 8_192  # rows answered at once; bounds memory
WINDOWS_JUDGED: Final = 20_000
"""Bars of a part that a network of whole windows is judged on: each costs a pass."""


@dataclass(frozen=True)
class Predictions:
    """Outputs over [time, horizon], in units of σ √h; ``logits`` has a last axis of three."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    dof: NDArray[np.float32]
    logits: NDArray[np.float32]
    variance: NDArray[np.float32]
    quantiles: NDArray[np.float32] | None = None  # with a last axis of levels, of such a head

    def rows(self, chosen: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Predictions:
        """Return the predictions of the *chosen* rows."""
        every = ((of.name, getattr(self, of.name)) for of in fields(self))
        known: dict[str, Any] = {n: None if of is None else of[chosen] for n, of in every}
        return Predictions(**known)


def joined(parts: list[Predictions]) -> Predictions:
    """Return the predictions one after another."""
    every = {of.name: [getattr(part, of.name) for part in parts] for of in fields(Predictions)}
    known: dict[str, Any] = {
        name: None if of[0] is None else np.concatenate(of) for name, of in every.items()
    }
    return Predictions(**known)


def predict(
    network: Network, segment: Segment, rows: NDArray[np.int64], *, dropout: bool = False
) -> Predictions:
    """Return the outputs at *rows* (ascending) of *segment*, which has features there.

    Each row sees the receptive field that ends at it, or all there is of it; before that a network
    of whole windows is given zeros, which are neutral. It takes the first columns of the features,
    as many as it has. With *dropout* it drops as in training, by
    PyTorch's seed. Leaves it in evaluation mode.
    """
    network.eval()
    try:
        for module in network.dropping() if dropout else ():
            module.train()
        return joined([predictions_of(each) for each in outputs_at(network, segment, rows)])
    finally:
        network.eval()


def outputs_at(network: Network, segment: Segment, rows: NDArray[np.int64]) -> Iterator[Outputs]:
    """Yield what *network* says of *rows* of *segment*, [row, horizon, ..], as ``predict`` asks."""
    if not len(rows):
        raise DataInvalid("There is no bar to forecast; give longer candles.")
    answered = _by_row if network.answers_every_row else _by_window
    with torch.inference_mode():
        yield from answered(network, segment, rows)


def _by_row(network: Network, segment: Segment, rows: NDArray[np.int64]) -> Iterator[Outputs]:
    """Yield the outputs of chunks of *rows*, each of one pass over all bars between."""
    place = network.device
    for first in range(int(rows[0]), int(rows[-1]) + 1, _CHUNK_ROWS):
        chosen = rows[(rows >= first) & (rows < first + _CHUNK_ROWS)]
        if not len(chosen):
            continue
        seen = max(first - network.config.receptive_field + 1, segment.first)
        own = segment.values[seen : int(chosen[-1]) + 1, : network.config.features]
        x = torch.from_numpy(own).to(place)[None]
        positions = first_position(segment, seen) + torch.arange(x.shape[1], device=place)
        outputs: Outputs = network(x, positions)
        at = torch.from_numpy(chosen - seen).to(place)
        yield Outputs._make(None if part is None else part[0, at] for part in outputs)


def _by_window(network: Network, segment: Segment, rows: NDArray[np.int64]) -> Iterator[Outputs]:
    """Yield the outputs of batches of *rows*, each of its own window."""
    window, place = network.config.window, network.device
    batch = max(_CHUNK_ROWS // window, 1)
    for start in range(0, len(rows), batch):
        chosen = rows[start : start + batch].tolist()
        columns = network.config.features
        x = np.zeros((len(chosen), window, columns), dtype=np.float32)
        for own, row in zip(x, chosen, strict=True):
            known = segment.values[max(row - window + 1, segment.first) : row + 1, :columns]
            own[window - len(known) :] = known
        firsts = torch.tensor([first_position(segment, row) - window + 1 for row in chosen])
        positions = firsts[:, None] + torch.arange(window)
        outputs: Outputs = network(torch.from_numpy(x).to(place), positions.to(place))
        yield outputs.map(lambda part: part[:, -1])


def thinned(rows: NDArray[np.int64], total: int, network: Network) -> NDArray[np.int64]:
    """Return *rows*, of *total* in a part; evenly fewer where each costs a whole window."""
    if network.answers_every_row:
        return rows
    return rows[:: -(-total // WINDOWS_JUDGED)]


def predictions_of(outputs: Outputs) -> Predictions:
    """Return the *outputs* [row, horizon, ..] that every network has, as arrays."""

    def array(tensor: Tensor) -> NDArray[np.float32]:
        found: NDArray[np.float32] = tensor.float().cpu().numpy()
        return found

    return Predictions(
        mean=array(outputs.mean),
        scale=array(torch.exp(outputs.log_scale)),
        dof=array(outputs.dof),
        logits=array(outputs.direction_logits),
        variance=array(torch.exp(outputs.log_variance)),
        quantiles=None if outputs.quantiles is None else array(outputs.quantiles),
    )


ALL_MEASURES: Final = frozenset({"mean_return", "stdev_return", "volatility", "probabilities"})
"""What every network gives."""


def answers_of(network: Network, data: Dataset, part: Part) -> list[HorizonForecasts]:
    """Return the network's and the baselines' forecasts of *part*, for each horizon."""
    answered = answer(network, data.samples(part))
    if not answered:
        raise no_context(part, network.config.receptive_field)
    levels = getattr(network.config, "quantiles", ())
    return judged(answered, data.baselines, data.horizons, levels=levels)


def cooled(found: HorizonForecasts, temperature: float) -> HorizonForecasts:
    """Return *found* with logits whose softmax is calibrated."""
    return replace(found, logits=(found.logits / temperature).astype(np.float32))


def no_context(part: Part, rows: int) -> ConfigInvalid:
    """Return what is said of a *part* without a bar that has the *rows* an answer depends on."""
    return ConfigInvalid(
        f"The {part.value} part has no bar with {rows:,} bars before it, on which an answer "
        "depends; narrow the window, move the split's dates or give more candles."
    )


Judge = Callable[[Array, Array, NDArray[np.int64]], DailyEstimate]
_SEED: Final = 20_170_817  # of the random baseline


@dataclass(frozen=True)
class HorizonForecasts:
    """One horizon's rows of one part: forecasts by name beside what happened, all over [row]."""

    horizon: int
    keys: NDArray[np.int64]  # of the bars, as ``Segment.keys``
    days: NDArray[np.int64]
    value: Array
    classes: NDArray[np.int64]
    variance: Array
    unit: Array  # σ √h of each row: the log return that is one
    mean: Array
    scale: Array
    dof: Array
    logits: NDArray[np.float32]
    means: Mapping[str, Array]
    variances: Mapping[str, Array]
    quantiles: Mapping[float, Array] = field(default_factory=dict)  # of a head, by level

    @property
    def commoner(self) -> Array:
        """Always the sign that most of these bars had: the best constant, known in hindsight."""
        rises = np.count_nonzero(self.value > 0) >= np.count_nonzero(self.value < 0)
        return np.full(len(self.value), 1.0 if rises else -1.0)


def answer(
    network: Network, part: Sequence[Samples]
) -> list[tuple[Samples, NDArray[np.int64], Predictions]]:
    """Return (samples, rows, predictions) of every segment's labelled rows with a full context.

    Of a network that takes a pass for each row no more than ``WINDOWS_JUDGED``, evenly spread.
    """
    context = network.config.receptive_field
    labelled = [windowed_rows(samples, context) for samples in part]
    total = sum(map(len, labelled))
    found = []
    for samples, every in zip(part, labelled, strict=True):
        if len(rows := thinned(every, total, network)):
            found.append((samples, rows, predict(network, samples.segment, rows)))
    return found


def judged(
    answered: Sequence[tuple[Samples, NDArray[np.int64], Predictions]],
    fitted: Mapping[str, Answer],
    horizons: Sequence[int],
    *,
    levels: Sequence[float] = (),
) -> list[HorizonForecasts]:
    """Put forecasts, baselines and labels side by side, one ``HorizonForecasts`` a horizon.

    *levels* are those of a head of quantiles.
    """
    generator = np.random.default_rng(_SEED)
    found = []
    every = joined([predictions for _, _, predictions in answered])
    for column, horizon in enumerate(horizons):
        parts = [_baseline_rows(s, rows, fitted, column, horizon) for s, rows, _ in answered]
        merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        used = merged["weight"] > 0
        merged = {name: values[used] for name, values in merged.items()}
        found.append(
            HorizonForecasts(
                horizon=horizon,
                keys=merged["key"],
                days=merged["day"].astype(np.int64),
                value=merged["value"],
                classes=merged["class"].astype(np.int64),
                variance=merged["realised"],
                unit=merged["unit"],
                mean=every.mean[used, column].astype(np.float64),
                scale=every.scale[used, column].astype(np.float64),
                dof=every.dof[used, column].astype(np.float64),
                logits=every.logits[used, column],
                means={
                    "network": every.mean[used, column].astype(np.float64),
                    **{name: merged[f"mean {name}"] for name in _named("mean", fitted)},
                    "random": generator.normal(size=int(used.sum())),
                },
                variances={
                    "network": every.variance[used, column].astype(np.float64),
                    **{n: merged[f"variance {n}"] for n in _named("variance", fitted)},
                },
                quantiles={}
                if every.quantiles is None
                else {
                    level: every.quantiles[used, column, at].astype(np.float64)
                    for at, level in enumerate(levels)
                },
            )
        )
    return found


def _named(of: Measure, fitted: Mapping[str, Answer]) -> list[str]:
    return [name for name in fitted if BASELINES[name].gives(of)]


def _baseline_rows(
    samples: Samples,
    rows: NDArray[np.int64],
    fitted: Mapping[str, Answer],
    column: int,
    horizon: int,
) -> dict[str, NDArray[Any]]:
    segment, labels = samples.segment, samples.labels
    past = past_variances(segment)[:, rows]
    answers = {
        f"{of} {name}": fitted[name](Asked(segment, rows, past, horizon, column, of))
        for of in get_args(Measure)
        for name in _named(of, fitted)
    }
    return {
        "key": segment.keys[rows],
        "weight": samples.weights[rows, column].astype(np.float64),
        "day": (segment.open_time_ms[rows] // DAY_MS).astype(np.float64),
        "value": labels["returns"][rows, column].astype(np.float64),
        "class": labels["direction"][rows, column].astype(np.float64),
        "realised": labels["variance"][rows, column].astype(np.float64),
        "unit": segment.sigma[rows] * np.sqrt(horizon),
        **answers,
    }


SIZED: Final = ("ridge", "persistence", "lstm")
"""Baselines of the mean whose size means something, not its sign alone."""


def report(found: HorizonForecasts, *, temperature: float, slope: float) -> dict[str, Any]:
    """Return one horizon's figures, each as [value, standard error over days]."""
    days, value = found.days, found.value
    probability = figures.probabilities(found.logits, temperature)
    hit = figures.inside(found.mean, found.scale, found.dof, value, figures.COVERAGE)
    assert (found.classes != NO_LABEL).all()
    sized = {"network": found.mean} | {n: found.means[n] for n in SIZED if n in found.means}
    points = 1e4 * found.unit  # basis points of log return, as errors are given
    still = {name: points * of for name, of in {**sized, "no_move": np.zeros_like(value)}.items()}
    moves = {name: points * np.sqrt(np.maximum(of, 0.0)) for name, of in found.variances.items()}
    return {
        "bars": len(value),
        "days": len(np.unique(days)),
        "sign_accuracy": _each(
            figures.sign_accuracy, {**found.means, COMMONER: found.commoner}, value, days
        ),
        "ic": _each(figures.correlation, found.means, value, days),
        "rank_ic": _each(figures.rank_correlation, found.means, value, days),
        "r_squared": _each(
            figures.r_squared,
            {"network": found.mean, "calibrated": slope * found.mean, **sized},
            value,
            days,
        ),
        "mae": _each(figures.absolute_error, still, points * value, days),
        "mse": _each(figures.squared_error, still, points * value, days),
        "qlike": _each(figures.qlike, found.variances, found.variance, days),
        "log_variance_r_squared": {
            name: _explained(forecast, found.variance, days).rounded()
            for name, forecast in found.variances.items()
        },
        "volatility_mae": _each(
            figures.absolute_error, moves, points * np.sqrt(found.variance), days
        ),
        "coverage_90": figures.mean(hit, days).rounded(),
        "direction": {
            "accuracy": figures.mean(
                (probability.argmax(1) == found.classes).astype(np.float64), days
            ).rounded(),
            "f1": figures.macro_f1(probability, found.classes, days).rounded(),
            **_scores(probability, found.classes, days),
            "ece": figures.calibration_error(probability, found.classes, days).rounded(),
        },
    }


def _scores(
    probability: Array, classes: NDArray[np.int64], days: NDArray[np.int64]
) -> dict[str, list[float | None]]:
    """Return Brier score and log loss, climatology's, and what the model's is less by row."""
    usual = figures.climatology(classes, probability.shape[1])
    found = {}
    for name, loss in (("brier", figures.brier_of), ("log_loss", figures.log_loss_of)):
        own, reference = loss(probability, classes), loss(usual, classes)
        found[name] = figures.mean(own, days).rounded()
        found[f"{name}_climatology"] = figures.mean(reference, days).rounded()
        found[f"{name}_less_climatology"] = figures.mean(own - reference, days).rounded()
    return found


def _explained(forecast: Array, variance: Array, days: NDArray[np.int64]) -> DailyEstimate:
    """Return R² of log variances, each about its own mean: the logarithm of a mean is biased."""
    log_v = np.log(variance)
    log_f = np.log(np.maximum(forecast, VARIANCE_FLOOR))
    return figures.r_squared(log_f - log_f.mean(), log_v - log_v.mean(), days)


def _each(
    judge: Judge, forecasts: Mapping[str, Array], value: Array, days: NDArray[np.int64]
) -> dict[str, list[float | None]]:
    return {name: judge(forecast, value, days).rounded() for name, forecast in forecasts.items()}
