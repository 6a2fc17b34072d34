"""What the card says of the calibration slice: temperature, slopes, quantiles of every measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.features_rolling import Array
from tracepaper.strategies.types import Forecast

MEASURES: Final = ("confidence", "collapsed", "shift", "recent_mass", "direction", "edge")
PERCENTS: Final = tuple(range(1, 100))
ROUND_TRIP_COST: Final = 0.0011
"""Two taker fees of 5.5 basis points: the cost that the quantiles of ``edge`` are taken at."""
_TEMPERATURE_RANGE: Final = (0.2, 5.0)


def temperature(logits: NDArray[np.float32], classes: NDArray[np.int64]) -> float:
    """Return the temperature, one for all horizons, that minimises the cross-entropy.

    *logits* is [row, class]; source: Guo et al., 2017.
    """
    rows = np.arange(len(classes))
    wide = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(wide / np.exp(log_temperature), axis=1)
        return -float(scaled[rows, classes].mean())

    low, high = np.log(_TEMPERATURE_RANGE)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded")
    return rounded(float(np.exp(found.x)))


def probabilities(logits: NDArray[np.float32], temperature: float) -> Array:
    """Return softmax of *logits* [.., class] at that temperature."""
    found: Array = softmax(logits.astype(np.float64) / temperature, axis=-1)
    return found


def slope(forecast: Array, value: Array) -> float:
    """Return the slope through the origin of realised on predicted means, never below zero.

    A negative slope says that the means carry no signal, not that they should be reversed.
    """
    squared = float((forecast * forecast).sum())
    return rounded(max(float((forecast * value).sum()) / squared, 0.0)) if squared > 0 else 0.0


def quantiles(values: Array) -> tuple[float, ...]:
    """Return the 1 % … 99 % quantiles of a measure; raise ``DataInvalid`` where there is none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise DataInvalid("A measure has no value on the calibration slice; make it longer.")
    return tuple(rounded(q) for q in np.percentile(finite, PERCENTS))


def rounded(value: float) -> float:
    """Return *value* to seven significant digits, as a card states it."""
    return float(f"{value:.7g}")


def measures(forecasts: Sequence[Forecast], *, horizon: int, slope: float) -> Mapping[str, Array]:
    """Return every gate's measure of explained *forecasts*, as the gate itself computes it.

    ``edge`` is taken at ``ROUND_TRIP_COST``.
    """
    rows = []
    for forecast in forecasts:
        seen = forecast.explanation
        if seen is None:
            raise DataInvalid("A forecast has no explanation; calibrate an explaining forecaster.")
        at = forecast.horizons.index(horizon)
        up, down = forecast.p_up[at], forecast.p_down[at]
        edge = abs(forecast.mean_return[at] * min(1.0, slope)) / ROUND_TRIP_COST
        rows.append(
            (
                seen.confidence,
                seen.confidence - seen.content_free,
                np.nan if seen.shift is None else seen.shift,
                seen.recent_mass,
                max(up, down) / (up + down),
                edge,
            )
        )
    columns = np.array(rows, dtype=np.float64).reshape(-1, len(MEASURES)).T
    return dict(zip(MEASURES, columns, strict=True))
