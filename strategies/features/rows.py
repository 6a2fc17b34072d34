"""One row of features per bar, causal and with finite memory by construction.

``compute`` processes a whole archive, ``FeatureStreams`` one bar of several instruments at a time.
Both run the same code and are bit-identical. A row depends only on the last ``lookback`` bars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.covariates import CovariateColumns
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.features.rolling import (
    REACHES,
    Array,
    FeatureParts,
    Ids,
    Window,
    WindowPlan,
    Windows,
    lagged,
)
from tracepaper.strategies.features.v2 import FAMILIES, FeatureRecipe, is_part
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import interval_text

_BLOCK_ROWS: Final = 16_384  # rows per block: bounds memory and fits the cache
_OF_BAR: Final = attrgetter("open", "high", "low", "close", "volume", "open_time_ms", "market_ms")


@dataclass(frozen=True, slots=True)
class FeatureSchema:
    """The names of a schema's features, in order, and the bars that one row depends on.

    The features of *covariates*, if any, follow those of bars.
    """

    schema_id: str
    names: tuple[str, ...]
    lookback: int
    recipe: FeatureRecipe = field(compare=False)
    covariates: CovariateColumns | None = field(default=None, compare=False)

    def __reduce__(self) -> tuple[Callable[..., FeatureSchema], tuple[object, ...]]:
        """Pickle only the id and the covariates; the recipe's functions cannot be pickled."""
        return _restored, (self.schema_id, self.covariates)


def _restored(schema_id: str, covariates: CovariateColumns | None) -> FeatureSchema:
    plain_schema = schema(schema_id)
    return plain_schema if covariates is None else with_covariates(plain_schema, covariates)


@dataclass(frozen=True, slots=True)
class CandleArrays:
    """Bars as float64 columns [time]; prices and volumes in any unit, since features are ratios."""

    open_time_ms: NDArray[np.int64]
    open: Array
    high: Array
    low: Array
    close: Array
    volume: Array
    interval_ms: int
    symbol: str = ""  # selects the covariates
    closed_ms: NDArray[np.int64] | None = None
    """When each bar closed; None if every bar lasts its whole interval."""

    def __len__(self) -> int:
        """Return the number of bars."""
        return len(self.open_time_ms)

    @property
    def closes_ms(self) -> NDArray[np.int64]:
        """The first millisecond after each bar."""
        return self.open_time_ms + self.interval_ms if self.closed_ms is None else self.closed_ms

    def first(self, count: int) -> CandleArrays:
        """Return the first *count* bars."""
        columns = {item.name: getattr(self, item.name) for item in fields(self)}
        arrays = {name: column for name, column in columns.items() if np.ndim(column)}
        return replace(self, **{name: column[:count] for name, column in arrays.items()})


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """Features of many bars; rows before *first* are NaN, since their lookback is incomplete.

    ``values`` is float32 [time, feature]; ``sigma`` is float64 [time], the volatility of one
    bar that scales the targets and the forecasts.
    """

    values: NDArray[np.float32]
    sigma: Array
    first: int


def schema_ids() -> tuple[str, ...]:
    """Return the id of every schema: each family at each interval."""
    return tuple(f"{family}-{interval}" for family in FAMILIES for interval in REACHES)


def schema(schema_id: str) -> FeatureSchema:
    """Return the schema *schema_id*, such as v2-1m; raise ``ConfigInvalid`` if it is unknown."""
    family, _, interval = schema_id.partition("-")
    if family not in FAMILIES or interval not in REACHES:
        raise ConfigInvalid(
            f"No feature schema is called {shown(schema_id)}; choose one of: "
            f"{', '.join(schema_ids())}."
        )
    recipe = FeatureRecipe(REACHES[interval], tuple(FAMILIES[family]))
    return FeatureSchema(schema_id, recipe.names, recipe.lookback, recipe)


def interval_of(name: str) -> int:
    """Return the interval of the schema *name* in milliseconds; 0 for the name of a family."""
    reach = REACHES.get(name.partition("-")[2])
    return 0 if reach is None else reach.interval_ms


def schema_of(name: str, interval_ms: int) -> FeatureSchema:
    """Return the schema *name*, or of the family *name*, for bars of *interval_ms*.

    Raises ``ConfigInvalid`` for an unknown name and for a schema of another interval.
    """
    family, _, interval = name.partition("-")
    if family in FAMILIES and not interval:
        return schema(f"{family}-{interval_text(interval_ms)}")
    named = schema(name)
    if named.recipe.reach.interval_ms != interval_ms:
        raise ConfigInvalid(
            f"The features {name} are not of bars of {interval_text(interval_ms)}; choose {family}."
        )
    return named


def with_covariates(schema: FeatureSchema, covariates: CovariateColumns) -> FeatureSchema:
    """Return *schema* followed by the features of *covariates*."""
    return replace(schema, names=(*schema.recipe.names, *covariates.names), covariates=covariates)


def wider(first: FeatureSchema, second: FeatureSchema) -> FeatureSchema:
    """Return the wider of two schemas, whose first columns must be the other schema's.

    Raises ``ConfigInvalid`` if they are not.
    """
    if first.schema_id == second.schema_id:
        return first
    narrow, wide = sorted((first, second), key=lambda schema: len(schema.names))
    if not is_part(narrow.recipe, wide.recipe):
        raise ConfigInvalid(
            f"The features {shown(narrow.schema_id)} are not part of {shown(wide.schema_id)}; "
            "choose two of one interval, such as v2-1m and tree-1m, or the same for both."
        )
    return wide


def columns(bars: Sequence[Bar]) -> CandleArrays:
    """Return the columns of *bars* (oldest first)."""
    numbers = np.fromiter(chain.from_iterable(map(_OF_BAR, bars)), np.int64)
    table = numbers.reshape(-1, 7).T
    opens, highs, lows, closes, volumes = np.ascontiguousarray(table[:5], dtype=np.float64)
    opened_ms, market_ms = np.ascontiguousarray(table[5:])
    interval_ms = bars[0].interval_ms if bars else 0
    ends_ms = opened_ms + interval_ms
    if interval_ms == MONTH_MS:  # months differ in length
        ends_ms = np.array([bar.close_time_ms for bar in bars])
    return CandleArrays(
        open_time_ms=opened_ms,
        open=opens,
        high=highs,
        low=lows,
        close=closes,
        volume=volumes,
        interval_ms=interval_ms,
        symbol=_symbol(bars[0]) if bars else "",
        closed_ms=np.minimum(ends_ms, market_ms),
    )


def _symbol(bar: Bar) -> str:
    return bar.instrument.rpartition(":")[2]


def compute(schema: FeatureSchema, columns: CandleArrays) -> FeatureBlock:
    """Return the features of every bar of *columns*; raise ``DataInvalid`` for a price <= 0."""
    count = len(columns)
    if count and not (columns.low > 0).all():
        raise DataInvalid("A price is zero, negative or missing; repair the candles first.")
    first = schema.lookback - 1
    values, sigma = np.empty((count, len(schema.names)), dtype=np.float32), np.empty(count)
    values[:first], sigma[:first] = np.nan, np.nan
    bar_columns = len(schema.recipe.names)
    for start in range(first, count, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, count)
        rows, scale = _block(schema, columns, start, stop)
        values[start:stop, :bar_columns], sigma[start:stop] = rows.T, scale
    if schema.covariates is not None:
        closes = columns.closes_ms[first:]
        values[first:, bar_columns:] = schema.covariates.at(
            columns.symbol, closes, columns.interval_ms
        )
    return FeatureBlock(values, sigma, first)


def compute_part(schema: FeatureSchema, part: FeatureSchema, columns: CandleArrays) -> FeatureBlock:
    """Return the features of *schema*, beginning when the lookback of *part* is complete.

    The columns of *part* are the first of *schema* (see ``wider``). Until the lookback of *schema*
    is complete too, the other columns are NaN.
    """
    block = compute(schema, columns)
    if part.lookback >= schema.lookback:
        return block
    early = compute(part, columns.first(block.first))
    early_rows = slice(early.first, block.first)
    block.values[early_rows, : len(part.names)] = early.values[early_rows]
    block.sigma[early_rows] = early.sigma[early_rows]
    return FeatureBlock(block.values, block.sigma, early.first)


class _Stages(NamedTuple):
    """Intermediate results of the features: arrays [row, time]."""

    base: Array
    extremes: Array  # highs and negative lows
    inputs: Array  # of the z-scores
    sums: dict[Window, Array]  # of the base rows
    sigma: Array


def _base(recipe: FeatureRecipe, columns: CandleArrays, span: slice) -> Array:
    high, low, close = columns.high[span], columns.low[span], columns.close[span]
    close_before = lagged(close, 1)
    return_before = lagged(np.log(close / close_before), 1)
    return recipe.base_rows(
        high, low, close, columns.volume[span], np.array([close_before, return_before])
    )


def _stages(recipe: FeatureRecipe, columns: CandleArrays, span: slice) -> _Stages:
    base = _base(recipe, columns, span)
    sums = recipe.sums.of(base, np.add)
    sigma = recipe.sigma_of(sums)
    inputs = recipe.standardised_inputs(sums, sigma)
    extremes = np.array([columns.high[span], -columns.low[span]])
    return _Stages(base, extremes, inputs, sums, sigma)


def _block(
    schema: FeatureSchema, columns: CandleArrays, start: int, stop: int
) -> tuple[NDArray[np.float32], Array]:
    """Return [feature, time] float32 rows and σ of the bars in [start, stop).

    The bars of the lookback before them only enter the windows that reach so far back.
    """
    recipe, reach = schema.recipe, slice(start - schema.lookback + 1, stop)
    near = max(start - 2 * recipe.reach.long - 1, reach.start)  # σ, then its z-score
    stages = _stages(recipe, columns, slice(near, stop))

    def kept(rows: Array) -> Array:
        return rows[..., start - stop :]

    def all_kept(rows: Mapping[Window, Array]) -> dict[Window, Array]:
        return {window: kept(of_window) for window, of_window in rows.items()}

    far = recipe.far.of(_base(recipe, columns, reach)[: recipe.far_rows], np.add)
    parts = FeatureParts(
        past_closes=[kept(lagged(columns.close[reach], lag)) for lag in recipe.close_lags],
        sums=all_kept(stages.sums),
        far=all_kept(far),
        extremes=all_kept(recipe.channel.of(stages.extremes, np.maximum)),
        inputs=kept(stages.inputs),
        input_sums=all_kept(recipe.z_scores.of(stages.inputs, np.add)),
        sigma=kept(stages.sigma),
        open_time_ms=columns.open_time_ms[start:stop],
    )
    return recipe.rows(parts), parts.sigma


class FeatureRows(NamedTuple):
    """The features of a group of bars; NaN if the lookback is incomplete."""

    values: NDArray[np.float32]  # [bar, feature]
    sigma: Array  # [bar]
    bars: Ids  # [bar]: bars known including this one, at most the lookback

    def complete(self, schema: FeatureSchema) -> NDArray[np.bool_]:
        """Return [bar]: whether the lookback of *schema* is complete."""
        return self.bars >= schema.lookback


class FeatureStreams:
    """The features of several instruments, bar by bar; bit-identical to ``compute``.

    A group of bars, one per stream, is computed at once; the other members of the group do not
    affect an instrument's row. If the first columns are those of another schema (*part*), rows
    begin when its lookback is complete.
    """

    def __init__(
        self, schema: FeatureSchema, *, streams: int = 1, part: FeatureSchema | None = None
    ) -> None:
        self.schema = schema
        self._part = part or schema
        recipe = schema.recipe
        self._counts = np.zeros(streams, dtype=np.int64)
        self._before = np.full((streams, 2), np.nan)  # close and return of the previous bar
        self._lags = np.array(recipe.close_lags)
        reach = max(recipe.sums.rows, *(lag + 1 for lag in recipe.close_lags))
        self._sums = _ring(recipe.base, recipe.sums, np.add, streams, rows=reach)
        self._far = _ring(recipe.far_rows, recipe.far, np.add, streams)
        self._extremes = _ring(2, recipe.channel, np.maximum, streams)
        self._inputs = _ring(6, recipe.z_scores, np.add, streams)

    def extend(self, streams: int) -> None:
        """Add so many *streams*."""
        self._counts = np.concatenate([self._counts, np.zeros(streams, dtype=np.int64)])
        self._before = np.concatenate([self._before, np.full((streams, 2), np.nan)])
        for ring in (self._sums, self._far, self._extremes, self._inputs):
            ring.extend(streams)

    def warm(self, stream: int, bars: Sequence[Bar]) -> None:
        """Reset *stream*, then add *bars* (oldest first); only the last ``lookback`` matter."""
        recent = bars[-self.schema.lookback :]
        _require_prices(recent)
        table = columns(recent)
        stages = _stages(self.schema.recipe, table, slice(None))
        self._sums.warm(stream, stages.base)
        self._far.warm(stream, stages.base[: self.schema.recipe.far_rows])
        self._extremes.warm(stream, stages.extremes)
        self._inputs.warm(stream, stages.inputs)
        self._counts[stream] = len(recent)
        self._before[stream] = np.nan
        if recent:
            self._before[stream, 0] = table.close[-1]
        if len(recent) > 1:
            self._before[stream, 1] = np.log(table.close[-1:] / table.close[-2:-1])[0]

    def step(self, bars: Sequence[Bar], streams: Sequence[int] = (0,)) -> FeatureRows:
        """Add *bars*, one to each of *streams*, and return their features.

        Raises ``DataInvalid`` for a price that is not positive, and then adds no bar.
        """
        _require_prices(bars)
        at = np.array(streams, dtype=np.int64)
        table = columns(bars)
        high, low, close = table.high, table.low, table.close
        before = np.ascontiguousarray(self._before[at].T)  # [2, bar]
        recipe = self.schema.recipe
        base = recipe.base_rows(high, low, close, table.volume, before)
        sums = self._sums.read(at, recipe.sums, self._sums.step(at, base))
        sigma = recipe.sigma_of(sums)
        inputs = recipe.standardised_inputs(sums, sigma)
        self._before[at] = np.array([close, np.log(close / before[0])]).T
        self._counts[at] += 1
        parts = FeatureParts(
            past_closes=self._sums.past(at, self._lags, recipe.close),
            sums=sums,
            far=_step(self._far, at, recipe.far, base[: recipe.far_rows]),
            extremes=_step(self._extremes, at, recipe.channel, np.array([high, -low])),
            inputs=inputs,
            input_sums=_step(self._inputs, at, recipe.z_scores, inputs),
            sigma=sigma,
            open_time_ms=table.open_time_ms,
        )
        values = np.ascontiguousarray(recipe.rows(parts).T)
        if (covariates := self.schema.covariates) is not None:
            newest = [covariates.newest(_symbol(b), b.closed_ms, b.interval_ms) for b in bars]
            values = np.concatenate([values, np.array(newest)], axis=1)
        rows = FeatureRows(values, sigma, np.minimum(self._counts[at], self.schema.lookback))
        is_known = rows.complete(self._part)
        if not is_known.all():
            values[~is_known] = np.nan
            return rows._replace(sigma=np.where(is_known, sigma, np.nan))
        return rows


def _ring(
    quantities: int, wanted: WindowPlan, combine: np.ufunc, streams: int, *, rows: int = 1
) -> Windows:
    """Return a ring buffer for the *wanted* windows."""
    rows = max(wanted.rows, rows)
    return Windows(quantities, combine, wanted.longest, streams=streams, rows=rows)


def _step(ring: Windows, at: Ids, wanted: WindowPlan, rows: Array) -> dict[Window, Array]:
    """Add *rows* to *ring* and return the *wanted* windows; do nothing without any."""
    return ring.read(at, wanted, ring.step(at, rows)) if wanted.windows else {}


def _require_prices(bars: Sequence[Bar]) -> None:
    for bar in bars:
        if bar.low <= 0:
            raise DataInvalid(
                f"{bar.instrument} has a price of zero or less at {bar.open_time_ms};"
                " repair the candles first."
            )
