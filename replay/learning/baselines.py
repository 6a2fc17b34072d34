"""Baselines to compare forecasts with: persistence, ridge, EWMA, HAR, gamma regression, trees.

Returns are in units of σ √h and variances in that unit squared, as a network's. Baselines are
fitted on the training part only. Their arrays are stored with a checkpoint, so judging it later
does not need the training candles.

The rule is docs/models.md, L35.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays
from scipy.linalg import solve
from scipy.signal import lfilter
from torch import Tensor

from tracepaper.replay.learning.boosting import (
    BoostingOptions,
    LabelledRows,
    boost,
    import_lightgbm,
)
from tracepaper.replay.learning.samples import Samples, realised_variance
from tracepaper.replay.learning.splits import Segment
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR
from tracepaper.storage import checkpoints
from tracepaper.storage.checkpoints import Checkpoint
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.trees import Scorer, Trees, joined
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MINUTE_MS

HAR_TIMES: Final = (5 * MINUTE_MS, 30 * MINUTE_MS, 4 * HOUR_MS, DAY_MS, 5 * DAY_MS, 20 * DAY_MS)
"""Windows of past variance in milliseconds; a window has at least one bar."""
SEASONS: Final = 5
"""Past days in the mean of a seasonal variance."""
EWMA_DECAY: Final = 0.98
ROLLING_DAYS: Final = 60
"""Days before a day that a rolling HAR is fitted on."""
ROLLING_LEAST: Final = 3
"""Days that the first fit of a rolling HAR needs."""
ROLLING_RIDGE: Final = 0.1
"""Ridge penalty per row of a rolling HAR.

Two months hold few days that share no bar. On the calibration slice of flash-15m a fit on one
symbol with a tenth of this penalty is worse at every horizon; a pooled one is level.
"""
ROLLING_STEP_MS: Final = 15 * MINUTE_MS
"""Time between the rows of a rolling fit. Labels of closer rows share nearly all their bars."""
HARMONICS: Final = 4
"""Waves of a day in the hour of day: 24, 12, 8 and 6 hours.

On the calibration slice of flash-15m they are better than a constant for each hour.
"""
RIDGE: Final = 1e-3
"""Ridge penalty per row, for features with a variance of about one."""
Arrays = Mapping[str, NDArray[Any]]
"""A fitted baseline: arrays by name."""


def past_return(segment: Segment, horizon: int, *, days: int = 0) -> Array:
    """Return [time]: the scaled return over the last *horizon* bars.

    With *days*, it is the return *days* ago at the clock time of the forecast. Zero where the
    segment does not reach back far enough.
    """
    lag = days * segment.bars_a_day
    ends = np.arange(len(segment)) - lag + (horizon if days else 0)
    starts = ends - horizon
    # If the horizon exceeds the lag, the return ends after the bar, in the future.
    inside = (starts >= 0) & (ends < len(segment)) & (ends <= np.arange(len(segment)))
    logs = np.log(segment.close)
    returns = np.zeros(len(segment))
    moves = logs[ends[inside]] - logs[starts[inside]]
    returns[inside] = moves / (segment.sigma[inside] * np.sqrt(horizon))
    return np.nan_to_num(returns)


def har_windows(interval_ms: int) -> tuple[int, ...]:
    """Return ``HAR_TIMES`` in bars of *interval_ms*, at least one."""
    return tuple(max(time_ms // interval_ms, 1) for time_ms in HAR_TIMES)


def _squares(segment: Segment) -> tuple[Array, Array]:
    """Return the squared one-bar returns [time], and their sums before each bar [time + 1]."""
    logs = np.log(segment.close)
    squares = np.diff(logs, prepend=logs[0]) ** 2
    return squares, np.concatenate([[0.0], np.cumsum(squares)])


def past_variances(segment: Segment) -> Array:
    """Return [window + 1, time]: mean squared return over ``HAR_TIMES``, and EWMA, ÷ σ²."""
    squares, total = _squares(segment)
    stops = np.arange(1, len(squares) + 1)
    rows = []
    for window in har_windows(segment.interval_ms):
        starts = np.maximum(stops - window, 0)
        rows.append((total[stops] - total[starts]) / (stops - starts))
    # The filter begins at a typical variance; from zero it would need hundreds of bars.
    start = np.full(1, squares[:60].mean() * EWMA_DECAY)
    smoothed, _ = lfilter([1 - EWMA_DECAY], [1, -EWMA_DECAY], squares, zi=start)
    scaled: Array = np.stack([*rows, smoothed]) / segment.sigma**2
    return scaled


@dataclass(frozen=True)
class Ridge:
    """A linear model from a row to [horizon]; columns are centred on the training part."""

    centre: Array
    weights: Array
    intercept: Array

    def predict(self, rows: NDArray[np.floating]) -> Array:
        """Return [time, horizon] answers to [time, column] *rows*."""
        answers: Array = (rows - self.centre) @ self.weights + self.intercept
        return answers


def ridge(rows: NDArray[np.floating], values: NDArray[np.floating]) -> Ridge:
    """Fit *values* [row, horizon] on *rows* [row, column] in closed form.

    NaN values are left out for their horizon.
    """
    centre = rows.mean(axis=0, dtype=np.float64)
    weights, intercepts = [], []
    for column in values.T:
        used = np.isfinite(column)
        size, mean = used.sum(), column[used].mean(dtype=np.float64)
        gram, moment = RIDGE * np.eye(len(centre)), np.zeros(len(centre))
        for inputs, value, _ in _blocks(rows, column, used, centre):
            shifted = inputs[:, :-1]
            gram += shifted.T @ shifted / size
            moment += shifted.T @ (value - mean) / size
        weights.append(np.linalg.solve(gram, moment))
        intercepts.append(mean)
    return Ridge(centre, np.stack(weights, axis=1), np.array(intercepts))


def log_variance(rows: NDArray[np.floating], variances: NDArray[np.floating]) -> Arrays:
    """Fit log variances by ridge; then the factor mean(v ÷ f) minimises QLIKE in training."""
    linear = ridge(rows, np.log(np.maximum(variances, VARIANCE_FLOOR)))
    return {**vars(linear), "factor": np.nanmean(variances / np.exp(linear.predict(rows)), axis=0)}


def variances_of(fitted: Arrays, rows: NDArray[np.floating]) -> Array:
    """Return [time, horizon] variances for [time, column] *rows* by a fit of ``log_variance``."""
    linear = Ridge(*(fitted[name] for name in ("centre", "weights", "intercept")))
    variances: Array = np.exp(linear.predict(rows)) * fitted["factor"]
    return variances


# --- a gamma regression with log link

GAMMA_RIDGE: Final = 1e-2
"""Penalty per row of squared weights, for features with a variance of about one."""
_STEPS_MOST: Final = 50
_TOLERANCE: Final = 1e-9  # largest change of a weight at convergence
_STEP_LONGEST: Final = 2.0  # largest change of a weight in one step
_BLOCK_ROWS: Final = 65_536


class GammaFit(NamedTuple):
    """log variance = base + weights · (row - centre)."""

    centre: Array  # [column]
    weights: Array  # [column]
    base: float


def fit_gamma(
    rows: NDArray[np.floating], variances: NDArray[np.floating], weights: NDArray[Any]
) -> GammaFit:
    """Fit the mean of *variances* [row] given *rows* [row, column].

    It minimises Σ w (v e^-s + s) ÷ Σ w + GAMMA_RIDGE ‖β‖² ÷ 2 over s = base + β · (row - centre),
    which is QLIKE up to constants, by Newton's method with expected curvature (IRLS: McCullagh and
    Nelder, 1989, chapter 8). Rows without weight are left out.
    """
    columns, total = rows.shape[1], float(weights.sum(dtype=np.float64))
    centre, level = np.zeros(columns), 0.0
    for inputs, variance, weight in _blocks(rows, variances, weights, centre):
        centre = centre + weight @ inputs[:, :-1] / total
        level += float(weight @ variance) / total
    beta = np.append(np.zeros(columns), np.log(level))
    # The expected curvature does not depend on the coefficients, so it is computed once.
    penalty = np.append(np.full(columns, GAMMA_RIDGE), 0.0)
    curvature = np.diag(penalty)
    for inputs, _, weight in _blocks(rows, variances, weights, centre):
        curvature += inputs.T @ (inputs * weight[:, None]) / total
    for _ in range(_STEPS_MOST):
        slope = penalty * beta
        for inputs, variance, weight in _blocks(rows, variances, weights, centre):
            slope += inputs.T @ (weight * (1.0 - variance * np.exp(-(inputs @ beta)))) / total
        step = solve(curvature, slope, assume_a="pos")
        longest = max(float(np.abs(step).max()), 1e-300)
        beta -= step * min(1.0, _STEP_LONGEST / longest)
        if longest < _TOLERANCE:
            break
    return GammaFit(centre, beta[:-1], float(beta[-1]))


def _blocks(
    rows: NDArray[Any], values: NDArray[Any], weights: NDArray[Any], centre: Array
) -> Iterator[tuple[Array, Array, Array]]:
    """Yield (inputs with a column of ones, values, weights) of weighted rows, in blocks.

    All are float64: float32 sums over a million squares would lose digits.
    """
    used = np.flatnonzero(weights)
    for start in range(0, len(used), _BLOCK_ROWS):
        at = used[start : start + _BLOCK_ROWS]
        inputs = np.ones((len(at), len(centre) + 1))
        inputs[:, :-1] = rows[at] - centre
        yield inputs, values[at].astype(np.float64), weights[at].astype(np.float64)


def log_rows(variances: Array) -> Array:
    """Return [time, column] logarithms of [column, time] past variances, floored."""
    return np.log(np.maximum(variances, VARIANCE_FLOOR)).T


def har_rows(past: Array, close_time_ms: NDArray[np.int64]) -> Array:
    """Return [time, column]: log *past* variances [window, time] and the hour of day of the close.

    The hour is ``HARMONICS`` sines and cosines with a variance of one. A model that knows the hour
    beats a HAR without it by the hour alone.
    """
    angle = 2 * np.pi * (close_time_ms % DAY_MS) / DAY_MS
    waves = [
        np.sqrt(2) * wave(k * angle) for k in range(1, HARMONICS + 1) for wave in (np.sin, np.cos)
    ]
    return np.column_stack([log_rows(past), *waves])


def seasonal_variances(segment: Segment, horizon: int) -> Array:
    """Return [2, time]: the variance at the forecast's clock time yesterday and over ``SEASONS``.

    It is the mean squared return ÷ σ². NaN where the segment does not reach back far enough, or
    the horizon is longer than a day.
    """
    _, total = _squares(segment)
    variances = np.full((SEASONS, len(segment)), np.nan)
    day = segment.bars_a_day
    for back in range(1, SEASONS + 1):
        first = back * day
        if horizon > day or first >= len(segment):
            continue
        starts = np.arange(1, len(segment) - first + 1)
        variances[back - 1, first:] = (total[starts + horizon] - total[starts]) / horizon
    both: Array = np.stack([variances[0], variances.mean(axis=0)]) / segment.sigma**2
    return both


class _DayRows(NamedTuple):
    """Rows of one segment whose labels ended within one day."""

    inputs: Array  # [row, column]
    logs: Array  # [row], of the labels


def rolling_har(segments: Sequence[Segment], horizon: int) -> list[Array]:
    """Return variances ÷ σ² [time] of each of *segments* by a HAR that is refitted for each day.

    A day's fit uses the labels of all segments that ended in the ``ROLLING_DAYS`` before it, and is
    that of ``log_variance`` but for its penalty. If these hold less than ``ROLLING_LEAST`` days of
    one segment, the forecast is the EWMA's variance.
    """
    days: dict[int, list[_DayRows]] = {}
    for segment in segments:
        for day, content in _labelled_days(segment, horizon):
            days.setdefault(day, []).append(content)
    grams: dict[int, Array] = {
        day: np.sum([each.inputs.T @ each.inputs for each in parts], axis=0)
        for day, parts in days.items()
    }
    moments: dict[int, Array] = {
        day: np.sum([each.inputs.T @ each.logs for each in parts], axis=0)
        for day, parts in days.items()
    }
    fits: dict[tuple[int, int], tuple[Array, float] | None] = {}

    def fit(day: int, least: int) -> tuple[Array, float] | None:
        """Return the weights and the factor of *day*; None with fewer than *least* rows."""
        used = [at for at in range(day - ROLLING_DAYS, day) if at in days]
        parts = [part for at in used for part in days[at]]
        count = sum(len(part.logs) for part in parts)
        if count < least:
            return None
        gram, moment = (
            np.sum([sums[at] for at in used], axis=0) / count for sums in (grams, moments)
        )
        penalty = ROLLING_RIDGE * np.diag([0.0, *np.ones(len(moment) - 1)])
        weights: Array = np.linalg.solve(gram + penalty, moment)
        ratios = [np.exp(part.logs - part.inputs @ weights) for part in parts]
        return weights, float(np.concatenate(ratios).mean())

    answers = []
    for segment in segments:
        past = past_variances(segment)
        rows, answer, day_of = _with_ones(past, segment), past[-1].copy(), _days(segment)
        least = max(ROLLING_LEAST * segment.bars_a_day // _stride(segment), 1)
        for day in np.unique(day_of).tolist():
            if (day, least) not in fits:
                fits[day, least] = fit(day, least)
            if (fitted := fits[day, least]) is not None:
                weights, factor = fitted
                answer[day_of == day] = np.exp(rows[day_of == day] @ weights) * factor
        answers.append(answer)
    return answers


def _labelled_days(segment: Segment, horizon: int) -> Iterator[tuple[int, _DayRows]]:
    """Yield each day and the rows whose labels ended in it, ``_stride`` bars apart."""
    at = np.arange(0, len(segment) - horizon, _stride(segment))
    labels = realised_variance(segment.close, segment.sigma, horizon)[at]
    rows = _with_ones(past_variances(segment), segment)[at]
    known = np.isfinite(labels) & np.isfinite(rows).all(axis=1)
    # A label that ends at midnight is known to the day that begins there.
    ended = (segment.close_time_ms[at + horizon] - 1) // DAY_MS
    for day in np.unique(ended[known]).tolist():
        chosen = known & (ended == day)
        yield day, _DayRows(rows[chosen], np.log(np.maximum(labels[chosen], VARIANCE_FLOOR)))


def _with_ones(past: Array, segment: Segment) -> Array:
    """Return ``har_rows`` after a column of ones."""
    return np.column_stack([np.ones(len(segment)), har_rows(past, segment.close_time_ms)])


def _days(segment: Segment) -> NDArray[np.int64]:
    """Return the day since 1970 in which each bar opened."""
    return segment.open_time_ms // DAY_MS


def _stride(segment: Segment) -> int:
    """Return the bars between two rows of a rolling fit."""
    return max(ROLLING_STEP_MS // segment.interval_ms, 1)


# --- each baseline


class Training(NamedTuple):
    """The rows that baselines are fitted on, of all segments; unlabelled values are NaN."""

    samples: Sequence[Samples]
    rows: NDArray[np.float32]  # [row, feature]
    returns: NDArray[np.float32]  # [row, horizon]
    variances: NDArray[np.float32]  # [row, horizon]
    past: Array  # [window + 1, row], of ``past_variances``

    @property
    def har_rows(self) -> Array:
        """The inputs of a HAR: [row, column]."""
        closes = [each.segment.close_time_ms[each.start : each.stop] for each in self.samples]
        return har_rows(self.past, np.concatenate(closes))


Measure = Literal["mean", "variance"]
"""The moment of the scaled return that a baseline forecasts."""


class BaselineQuestion(NamedTuple):
    """Bars of one segment to forecast at one horizon."""

    segment: Segment
    rows: NDArray[np.int64]
    past: Array  # [window + 1, row], of ``past_variances``
    horizon: int  # bars
    column: int  # of the horizon

    @property
    def values(self) -> NDArray[np.float32]:
        """The features of the rows: [row, feature]."""
        return self.segment.values[self.rows]


Answer = Callable[[BaselineQuestion], Array]
"""A fitted baseline: question → forecast [row]."""
Read = Callable[[Arrays, Sequence[Segment]], Answer]
"""Fitted arrays and all segments of the data → forecasts."""


def nothing(_: Training) -> Arrays:
    """Return no arrays, for a baseline without a fit."""
    return {}


class Baseline(NamedTuple):
    """A simple forecast that every table compares with the model."""

    measure: Measure
    read: Read
    fit: Callable[[Training], Arrays] = nothing
    needs_lightgbm: bool = False  # for the fit only


# --- the mean


def _ridge(fitted: Arrays, _: Sequence[Segment]) -> Answer:
    return lambda question: Ridge(**fitted).predict(question.values)[:, question.column]


def _past(sign: float, days: int = 0) -> Read:
    return lambda _fitted, _segments: (
        lambda question: (
            sign * past_return(question.segment, question.horizon, days=days)[question.rows]
        )
    )


# --- the variance


def _har(fitted: Arrays, _: Sequence[Segment]) -> Answer:
    def answer(question: BaselineQuestion) -> Array:
        rows = har_rows(question.past, question.segment.close_time_ms[question.rows])
        return variances_of(fitted, rows)[:, question.column]

    return answer


def _har_rolling(_fitted: Arrays, _segments: Sequence[Segment]) -> Answer:
    def answer(question: BaselineQuestion) -> Array:
        return rolling_har([question.segment], question.horizon)[0][question.rows]

    return answer


def _har_pooled(_: Arrays, segments: Sequence[Segment]) -> Answer:
    @cache
    def by_segment(horizon: int) -> dict[int, Array]:
        answers = rolling_har(segments, horizon)
        return {id(each): answer for each, answer in zip(segments, answers, strict=True)}

    def answer(question: BaselineQuestion) -> Array:
        return by_segment(question.horizon)[id(question.segment)][question.rows]

    return answer


def _log_linear(fitted: Arrays, _: Sequence[Segment]) -> Answer:
    return lambda question: variances_of(fitted, question.values)[:, question.column]


def _fit_ewma(training: Training) -> Arrays:
    past = np.maximum(training.past[-1], VARIANCE_FLOOR)
    return {"factor": np.nanmean(training.variances / past[:, None], axis=0)}


def _ewma(fitted: Arrays, _: Sequence[Segment]) -> Answer:
    return lambda question: question.past[-1] * fitted["factor"][question.column]


def _fit_glm(training: Training) -> Arrays:
    fits = [
        fit_gamma(training.rows, column, np.isfinite(column)) for column in training.variances.T
    ]
    return {
        "centre": np.stack([fit.centre for fit in fits]),
        "weights": np.stack([fit.weights for fit in fits]),
        "base": np.array([fit.base for fit in fits]),
    }


def _gamma_glm(fitted: Arrays, _: Sequence[Segment]) -> Answer:
    def answer(question: BaselineQuestion) -> Array:
        at = question.column
        shifted = question.values - fitted["centre"][at]
        variances: Array = np.exp(shifted @ fitted["weights"][at] + fitted["base"][at])
        return variances

    return answer


TREES: Final = BoostingOptions(rounds=100, leaves=15)
"""Fixed options that make trees about as good as a network (docs/models.md, L8)."""


def _boosted(training: Training, rows_of: Callable[[int], NDArray[np.floating]]) -> Arrays:
    """Boost trees for each horizon; ``rows_of(number of the horizon)`` gives the rows."""
    parts = []
    for at, column in enumerate(training.variances.T):
        values = np.nan_to_num(column[:, None], nan=1.0)
        labelled = LabelledRows(rows_of(at), values, np.isfinite(column[:, None]) * 1.0)
        parts.append(boost(labelled, None, TREES, target="variance", threads=1))
    return joined(parts).arrays()


def _tree_answer(
    fitted: Arrays, rows_of: Callable[[BaselineQuestion], NDArray[np.floating[Any]]]
) -> Answer:
    trees = Trees.read(fitted)
    scorers = [Scorer(trees.ensemble(at)) for at in range(len(trees.trees))]
    return lambda question: np.exp(scorers[question.column].scores(rows_of(question))[:, 0])


def _fit_tree(training: Training) -> Arrays:
    return _boosted(training, lambda _: training.rows)


def _tree(fitted: Arrays, _: Sequence[Segment]) -> Answer:
    return _tree_answer(fitted, lambda question: question.values)


def _wide(values: NDArray[np.float32], past: Array, seasonal: Array) -> Array:
    """Return [row, column]: features, log past variances and log seasonal ones, NaN if unknown."""
    return np.column_stack([values.astype(np.float64), log_rows(past), log_rows(seasonal)])


def _fit_tree_seasonal(training: Training) -> Arrays:
    def rows_of(at: int) -> Array:
        seasonal = [
            seasonal_variances(each.segment, each.horizons[at])[:, each.start : each.stop]
            for each in training.samples
        ]
        return _wide(training.rows, training.past, np.concatenate(seasonal, axis=1))

    return _boosted(training, rows_of)


def _tree_seasonal(fitted: Arrays, _: Sequence[Segment]) -> Answer:
    def rows_of(question: BaselineQuestion) -> Array:
        seasonal = seasonal_variances(question.segment, question.horizon)[:, question.rows]
        return _wide(question.values, question.past, seasonal)

    return _tree_answer(fitted, rows_of)


# --- every baseline, and its file

BASELINES: Final = {
    "ridge": Baseline("mean", _ridge, lambda data: vars(ridge(data.rows, data.returns))),
    "persistence": Baseline("mean", _past(1.0)),
    "reversed_persistence": Baseline("mean", _past(-1.0)),
    "seasonal_naive": Baseline("mean", _past(1.0, days=1)),
    "har": Baseline("variance", _har, lambda data: log_variance(data.har_rows, data.variances)),
    "har_rolling": Baseline("variance", _har_rolling),
    "har_pooled": Baseline("variance", _har_pooled),
    "log_linear": Baseline(
        "variance", _log_linear, lambda data: log_variance(data.rows, data.variances)
    ),
    "ewma": Baseline("variance", _ewma, _fit_ewma),
    "gamma_glm": Baseline("variance", _gamma_glm, _fit_glm),
    "tree": Baseline("variance", _tree, _fit_tree, needs_lightgbm=True),
    "tree_seasonal": Baseline("variance", _tree_seasonal, _fit_tree_seasonal, needs_lightgbm=True),
}
"""Every baseline by name, in the order of the tables."""
FILE_NAME: Final = "baselines.safetensors"
NO_TREES: Final = (
    "LightGBM was not installed when this was judged, so it is not compared with trees."
)

FittedBaselines = Mapping[str, Arrays]
"""Each baseline's arrays, by the baseline's name."""


def fit_baselines(samples: Sequence[Samples]) -> FittedBaselines:
    """Fit every baseline to *samples* of the training part; trees need LightGBM."""
    pairs = [(each, slice(each.start, each.stop)) for each in samples]
    weights = np.concatenate([each.weights[at] for each, at in pairs])
    returns, variances = (
        np.where(weights, np.concatenate([each.labels[name][0, at] for each, at in pairs]), np.nan)
        for name in ("returns", "variance")
    )
    rows = np.concatenate([each.segment.values[at] for each, at in pairs])
    past = np.concatenate([past_variances(each.segment)[:, at] for each, at in pairs], axis=1)
    training = Training(samples, rows, returns, variances, past)
    has_lightgbm = _has_lightgbm()
    return {
        name: each.fit(training)
        for name, each in BASELINES.items()
        if has_lightgbm or not each.needs_lightgbm
    }


def unfitted() -> FittedBaselines:
    """Return the baselines without a fit, for data without the training part."""
    return {name: {} for name, each in BASELINES.items() if each.fit is nothing}


def _has_lightgbm() -> bool:
    try:
        import_lightgbm()
    except ConfigInvalid:
        return False
    return True


def answers(fitted: FittedBaselines, segments: Sequence[Segment]) -> dict[str, Answer]:
    """Return the *fitted* baselines of *segments* as functions, in the order of the tables.

    Those without a fit are always among them.
    """
    arrays = {**unfitted(), **fitted}
    return {
        name: each.read(arrays[name], segments)
        for name, each in BASELINES.items()
        if name in arrays
    }


def save_judged(
    folder: Path,
    tensors: Mapping[str, Tensor],
    card: Mapping[str, Any],
    fitted: FittedBaselines,
) -> Checkpoint:
    """Write a checkpoint with the *fitted* baselines of its figures; return the checkpoint.

    If trees are missing, a sentence is added to the card.
    """
    file = save_arrays(
        {
            f"{name}/{key}": np.ascontiguousarray(array)
            for name, arrays in fitted.items()
            for key, array in arrays.items()
        }
    )
    section = {"file": FILE_NAME, "sha256": checkpoints.sha256_of(file), "names": list(fitted)}
    card = {**card, "baselines": section}
    if any(each.needs_lightgbm and name not in fitted for name, each in BASELINES.items()):
        sentences = [*card["honesty"]["sentences"], NO_TREES]
        card["honesty"] = {**card["honesty"], "sentences": sentences}
    return checkpoints.save(folder, tensors, card, extra={FILE_NAME: file})


def stored_baselines(folder: Path, card: Mapping[str, Any]) -> FittedBaselines | None:
    """Return the baselines stored in the checkpoint's *folder*; None if its card has none.

    Raises ``CheckpointMismatch`` for a missing or changed file.
    """
    section = card.get("baselines")
    if not isinstance(section, Mapping):
        return None
    file = checkpoints.read_side_file(folder, FILE_NAME, str(section.get("sha256")))
    fitted: dict[str, dict[str, Any]] = {str(name): {} for name in section["names"]}
    for key, array in file.items():
        name, _, part = key.partition("/")
        fitted[name][part] = array
    return fitted
