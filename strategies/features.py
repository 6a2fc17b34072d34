"""Bars to one row of features a bar; causal and of finite memory by construction.

``compute`` takes a whole archive, ``FeatureStream`` one bar at a time; both run the same code
and agree in every bit. A row depends on the last ``lookback`` bars and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies import features_v1 as v1
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.features_rolling import Array, Windows, add, lagged, larger, windows
from tracepaper.strategies.types import Bar

_BLOCK_ROWS: Final = 16_384  # rows computed at once: bounds memory and stays in the cache


@dataclass(frozen=True, slots=True)
class FeatureSchema:
    """The features of a schema in their order, and the bars that one row depends on."""

    schema_id: str
    features: tuple[v1.Feature, ...]
    lookback: int
    gains: Array = field(compare=False)  # [feature, 1]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in their order."""
        return tuple(feature.name for feature in self.features)

    def rows(self, of: v1.FeatureInputs) -> NDArray[np.float32]:
        """Return [feature, time] rows, scaled and clipped."""
        rows = np.stack([feature.compute(of) for feature in self.features])
        rows *= self.gains
        return np.clip(rows, -v1.CLIP, v1.CLIP).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Columns:
    """Bars as float64 columns [time]; prices and volumes in any unit, since only ratios count."""

    open_time_ms: NDArray[np.int64]
    open: Array
    high: Array
    low: Array
    close: Array
    volume: Array
    interval_ms: int

    def __len__(self) -> int:
        """Return the number of bars."""
        return len(self.open_time_ms)


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """Features of many bars: rows before *first* are NaN, for their lookback is not complete.

    ``values`` is float32 [time, feature]; ``sigma`` is float64 [time], the volatility of one
    bar that scales the targets and the forecasts.
    """

    values: NDArray[np.float32]
    sigma: Array
    first: int


SETS: Final = {v1.V1.schema_id: v1.V1}
"""Every set of features by the id of its schema."""


def schema(schema_id: str = "v1") -> FeatureSchema:
    """Return the schema of that name; raise ``ConfigInvalid`` for an unknown one."""
    if (found := SETS.get(schema_id)) is None:
        known = ", ".join(sorted(SETS))
        raise ConfigInvalid(
            f"No feature schema is called {shown(schema_id)}; choose one of: {known}."
        )
    gains = np.array([[feature.gain] for feature in found.features])
    return FeatureSchema(schema_id, tuple(found.features), v1.LOOKBACK, gains)


def columns(bars: Sequence[Bar]) -> Columns:
    """Return the columns of *bars* (oldest first)."""
    table = np.array(
        [(bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in bars], dtype=np.float64
    ).reshape(-1, 5)
    opens, highs, lows, closes, volumes = np.ascontiguousarray(table.T)
    return Columns(
        open_time_ms=np.array([bar.open_time_ms for bar in bars], dtype=np.int64),
        open=opens,
        high=highs,
        low=lows,
        close=closes,
        volume=volumes,
        interval_ms=bars[0].interval_ms if bars else 0,
    )


def compute(schema: FeatureSchema, columns: Columns) -> FeatureBlock:
    """Return the features of every bar of *columns*; raise ``DataInvalid`` for a price <= 0."""
    count = len(columns)
    if count and not (columns.low > 0).all():
        raise DataInvalid("A price is zero, negative or missing; repair the candles first.")
    values = np.full((count, len(schema.names)), np.nan, dtype=np.float32)
    sigma = np.full(count, np.nan)
    first = schema.lookback - 1
    for start in range(first, count, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, count)
        rows, scale = _block(schema, columns, start - first, stop)
        values[start:stop] = rows[:, first:].T
        sigma[start:stop] = scale[first:]
    return FeatureBlock(values, sigma, first)


def _block(
    schema: FeatureSchema, columns: Columns, start: int, stop: int
) -> tuple[NDArray[np.float32], Array]:
    """Return [feature, time] float32 rows and σ of the bars from *start* until *stop*."""
    span = slice(start, stop)
    high, low, close = columns.high[span], columns.low[span], columns.close[span]
    close_before = lagged(close, 1)
    return_before = lagged(np.log(close / close_before), 1)
    base = v1.base_rows(
        high, low, close, columns.volume[span], np.stack([close_before, return_before])
    )
    sums = windows(base, add, (1, *v1.SUM_WINDOWS))
    extremes = windows(np.stack([high, -low]), larger, (v1.CHANNEL_WINDOW,))[v1.CHANNEL_WINDOW]
    sigma = v1.sigma_of(sums)
    inputs = v1.standardised_inputs(high, low, sums, sigma)
    z_scores = v1.standardised(inputs, windows(inputs, add, (v1.Z_WINDOW,))[v1.Z_WINDOW])
    of = v1.FeatureInputs(
        past_closes={lag: lagged(close, lag) for lag in v1.CLOSE_LAGS},
        sums=sums,
        extremes=extremes,
        z_scores=z_scores,
        sigma=sigma,
        open_time_ms=columns.open_time_ms[span],
    )
    return schema.rows(of), sigma


class FeatureStream:
    """The features of one instrument, bar by bar; equal to ``compute`` in every bit."""

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema
        self._forget()

    def _forget(self) -> None:
        self._count = 0
        self._before = np.full((2, 1), np.nan)  # close and return of the bar before
        self._sums = Windows(v1.BASE_ROWS, add, 256)
        self._extremes = Windows(2, larger, v1.CHANNEL_WINDOW)
        self._inputs = Windows(6, add, v1.Z_WINDOW)

    def warm(self, bars: Sequence[Bar]) -> None:
        """Forget everything, then take in *bars* (oldest first); only the last ones matter."""
        self._forget()
        for bar in bars[-self.schema.lookback :]:
            self._advance(bar)

    def step(self, bar: Bar) -> tuple[NDArray[np.float32] | None, float]:
        """Take in *bar*; return its row and σ, or (None, NaN) while the lookback is incomplete.

        Raises ``DataInvalid`` for a price that is not positive.
        """
        advanced = self._advance(bar)
        if self._count < self.schema.lookback:
            return None, float("nan")
        sums, extremes, inputs, input_sums, sigma = advanced
        of = v1.FeatureInputs(
            past_closes={lag: np.array([self._sums.past(lag, v1.CLOSE)]) for lag in v1.CLOSE_LAGS},
            sums=sums,
            extremes=extremes,
            z_scores=v1.standardised(inputs, input_sums),
            sigma=sigma,
            open_time_ms=np.array([bar.open_time_ms], dtype=np.int64),
        )
        return self.schema.rows(of)[:, 0], float(sigma[0])

    def _advance(self, bar: Bar) -> tuple[dict[int, Array], Array, Array, Array, Array]:
        """Move every window on by *bar*; return sums, extremes, z-score inputs, their sums, σ."""
        if bar.low <= 0:
            raise DataInvalid(
                f"{bar.instrument} has a price of zero or less at {bar.open_time_ms};"
                " repair the candles first."
            )
        high, low, close, volume = np.array(
            [[bar.high], [bar.low], [bar.close], [bar.volume]], dtype=np.float64
        )
        base = v1.base_rows(high, low, close, volume, self._before)
        levels = self._sums.step(base[:, 0])
        sums = {2**k: level[:, None] for k, level in enumerate(levels)}
        extremes = self._extremes.step(np.concatenate([high, -low]))[-1][:, None]
        sigma = v1.sigma_of(sums)
        inputs = v1.standardised_inputs(high, low, sums, sigma)
        input_sums = self._inputs.step(inputs[:, 0])[-1][:, None]
        self._before = np.stack([close, np.log(close / self._before[0])])
        self._count += 1
        return sums, extremes, inputs, input_sums, sigma
