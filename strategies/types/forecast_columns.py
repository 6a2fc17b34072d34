"""The usual forecasts of known bars as columns; pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter
from typing import Final

import numpy as np

from tracepaper.strategies.types.decisions import Explanation, Forecast, ForecastColumns

FIELDS: Final = ("mean_return", "stdev_return", "p_down", "p_flat", "p_up", "volatility")
FIGURES: Final = Explanation.__struct_fields__[:8]
"""The fields of an explanation that are numbers."""
MAX_PROBABILITY: Final = 1 + 1e-6
"""One, with room for rounding in single precision."""

_OF_FORECAST: Final = attrgetter(*FIELDS)
_OF_EXPLANATION: Final = attrgetter(*FIGURES)


def columns_of(answers: Iterable[Forecast | None]) -> ForecastColumns | None:
    """Return the usual forecasts among *answers*; None without any, or if their forms differ."""
    usual = [
        forecast
        for forecast in answers
        if forecast is not None
        and forecast.heads is None
        and (explanation := forecast.explanation) is not None
        and explanation.shift is not None
        and explanation.buckets
    ]
    if not usual:
        return None
    horizons = usual[-1].horizons
    explained = [forecast.explanation for forecast in usual if forecast.explanation is not None]
    values, figures = [*map(_OF_FORECAST, usual)], [*map(_OF_EXPLANATION, explained)]
    if (
        {forecast.horizons for forecast in usual} != {horizons}
        or {*map(len, chain.from_iterable(values))} != {len(horizons)}
        or len({len(explanation.buckets) for explanation in explained}) > 1
        or None in chain.from_iterable(figures)
    ):
        return None
    flat = chain.from_iterable(chain.from_iterable(values))
    numbers = np.fromiter(flat, np.float64).reshape(len(usual), len(FIELDS), -1)
    array = np.array(figures, np.float64)
    _, stdev, *probabilities, volatility = numbers.transpose(1, 0, 2)
    shares = np.concatenate(probabilities, axis=1)
    is_usable = (
        np.isfinite(numbers).all((1, 2))
        & np.isfinite(array).all(1)
        & (np.minimum(stdev, volatility) > 0).all(1)
        & ((shares >= 0) & (shares <= MAX_PROBABILITY)).all(1)
    )
    rows = {id(usual[row]): row for row in np.flatnonzero(is_usable).tolist()}
    return ForecastColumns(usual, numbers, array, rows)
