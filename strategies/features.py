"""Bars to one row of features a bar; causal and of finite memory by construction.

``compute`` takes a whole archive, ``FeatureStreams`` one bar of each of some instruments at once;
both run the same code and agree in every bit. A row depends on the last ``lookback`` bars and on
nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies import features_v1 as v1
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.features_rolling import Array, Windows, lagged, windows
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
        rows: Array = np.array([feature.compute(of) for feature in self.features])
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


class _Stages(NamedTuple):
    """What features are made of, before their windows: [row, time] each."""

    base: Array
    extremes: Array  # highs and negative lows
    inputs: Array  # what becomes z-scores
    sums: dict[int, Array]  # of the base rows
    sigma: Array


def _stages(columns: Columns, span: slice) -> _Stages:
    high, low, close = columns.high[span], columns.low[span], columns.close[span]
    close_before = lagged(close, 1)
    return_before = lagged(np.log(close / close_before), 1)
    base = v1.base_rows(
        high, low, close, columns.volume[span], np.array([close_before, return_before])
    )
    sums = windows(base, np.add, (1, *v1.SUM_WINDOWS))
    sigma = v1.sigma_of(sums)
    inputs = v1.standardised_inputs(high, low, sums, sigma)
    return _Stages(base, np.array([high, -low]), inputs, sums, sigma)


def _block(
    schema: FeatureSchema, columns: Columns, start: int, stop: int
) -> tuple[NDArray[np.float32], Array]:
    """Return [feature, time] float32 rows and σ of the bars from *start* until *stop*."""
    span = slice(start, stop)
    stages = _stages(columns, span)
    inputs = stages.inputs
    of = v1.FeatureInputs(
        past_closes={lag: lagged(columns.close[span], lag) for lag in v1.CLOSE_LAGS},
        sums=stages.sums,
        extremes=windows(stages.extremes, np.maximum, (v1.CHANNEL_WINDOW,))[v1.CHANNEL_WINDOW],
        z_scores=v1.standardised(inputs, windows(inputs, np.add, (v1.Z_WINDOW,))[v1.Z_WINDOW]),
        sigma=stages.sigma,
        open_time_ms=columns.open_time_ms[span],
    )
    return schema.rows(of), stages.sigma


class FeatureRows(NamedTuple):
    """The features of a group's bars; NaN where the lookback is not complete."""

    values: NDArray[np.float32]  # [bar, feature]
    sigma: Array  # [bar]
    is_complete: NDArray[np.bool_]  # [bar]


_CLOSE_LAGS: Final = np.array(v1.CLOSE_LAGS)


class FeatureStreams:
    """The features of some instruments, bar by bar; equal to ``compute`` in every bit.

    A group of bars, one of each of several streams, is computed at once: to an instrument it makes
    no difference which others are in it.
    """

    def __init__(self, schema: FeatureSchema, *, streams: int = 1) -> None:
        self.schema = schema
        self._counts = np.zeros(streams, dtype=np.int64)
        self._before = np.full((streams, 2), np.nan)  # close and return of the bar before
        self._sums = Windows(v1.BASE_ROWS, np.add, 256, streams=streams)
        self._extremes = Windows(2, np.maximum, v1.CHANNEL_WINDOW, streams=streams)
        self._inputs = Windows(6, np.add, v1.Z_WINDOW, streams=streams)

    def extend(self, streams: int) -> None:
        """Make room for so many further *streams*."""
        self._counts = np.concatenate([self._counts, np.zeros(streams, dtype=np.int64)])
        self._before = np.concatenate([self._before, np.full((streams, 2), np.nan)])
        for kept in (self._sums, self._extremes, self._inputs):
            kept.extend(streams)

    def warm(self, stream: int, bars: Sequence[Bar]) -> None:
        """Forget *stream*, then take in *bars* (oldest first); only the last ones matter."""
        known = bars[-self.schema.lookback :]
        _require_prices(known)
        table = columns(known)
        stages = _stages(table, slice(None))
        self._sums.warm(stream, stages.base)
        self._extremes.warm(stream, stages.extremes)
        self._inputs.warm(stream, stages.inputs)
        self._counts[stream] = len(known)
        self._before[stream] = np.nan
        if known:
            self._before[stream, 0] = table.close[-1]
        if len(known) > 1:
            self._before[stream, 1] = np.log(table.close[-1:] / table.close[-2:-1])[0]

    def step(self, bars: Sequence[Bar], streams: Sequence[int] = (0,)) -> FeatureRows:
        """Take in *bars*, one of each of *streams*, and return their features.

        Raises ``DataInvalid`` for a price that is not positive; no bar is taken in then.
        """
        _require_prices(bars)
        at = np.array(streams, dtype=np.int64)
        table = columns(bars)
        high, low, close = table.high, table.low, table.close
        before = np.ascontiguousarray(self._before[at].T)  # [2, bar]
        levels = self._sums.step(at, v1.base_rows(high, low, close, table.volume, before))
        sums = {2**place: level for place, level in enumerate(levels)}
        extremes = self._extremes.step(at, np.array([high, -low]))[-1]
        sigma = v1.sigma_of(sums)
        inputs = v1.standardised_inputs(high, low, sums, sigma)
        input_sums = self._inputs.step(at, inputs)[-1]
        self._before[at] = np.array([close, np.log(close / before[0])]).T
        self._counts[at] += 1
        of = v1.FeatureInputs(
            past_closes=dict(
                zip(v1.CLOSE_LAGS, self._sums.past(at, _CLOSE_LAGS, v1.CLOSE), strict=True)
            ),
            sums=sums,
            extremes=extremes,
            z_scores=v1.standardised(inputs, input_sums),
            sigma=sigma,
            open_time_ms=table.open_time_ms,
        )
        is_complete = self._counts[at] >= self.schema.lookback
        values = np.ascontiguousarray(self.schema.rows(of).T)
        if not is_complete.all():
            values[~is_complete] = np.nan
            sigma = np.where(is_complete, sigma, np.nan)
        return FeatureRows(values, sigma, is_complete)


def _require_prices(bars: Sequence[Bar]) -> None:
    """Raise ``DataInvalid`` where a price of *bars* is not positive."""
    for bar in bars:
        if bar.low <= 0:
            raise DataInvalid(
                f"{bar.instrument} has a price of zero or less at {bar.open_time_ms};"
                " repair the candles first."
            )
