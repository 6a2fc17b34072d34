"""Features of another symbol's closed bars as additional columns.

The columns of a bar are the feature row of the other symbol's bar of the same close, if that bar
arrived earlier or in the same ``CloseStart``; the order of events decides. A later arrival counts
from the next forecast on. So no forecast uses later data, and a replay of the record knows exactly
what the run knew.

The rule is docs/models.md, L53.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.covariates import (
    CovariateColumns,
    CovariateScale,
    CovariateSource,
    Floats,
    Ids,
    JoinedRows,
)
from tracepaper.strategies.features import rows as features
from tracepaper.strategies.features.rows import FeatureSchema, FeatureStreams
from tracepaper.strategies.types.market import Bar, CloseStart, Event

OTHER: Final = "other_symbol"
"""The key of ``[architecture]`` that names the symbol."""
PREFIX: Final = "other_"
"""Prefix of the names of these features."""
_KEPT: Final = 1 << 17
"""Bars kept per symbol: more than a window plus the bars that a scan reads ahead."""


def other_of(card: Mapping[str, Any]) -> str:
    """Return the other symbol that the model of *card* reads; empty without one."""
    return str(card.get("architecture", {}).get(OTHER, ""))


class OtherSource(CovariateSource, Protocol):
    """A source of the other symbol's rows: known candles, or the bars of a run."""

    @property
    def symbol(self) -> str:
        """The other symbol."""
        ...

    def rows_by(self, symbol: str, closes_ms: Ids, by_ms: int) -> JoinedRows:
        """Return the rows at these closes known when *symbol*'s bar closing at *by_ms* arrived."""
        ...


@dataclass(frozen=True)
class OtherColumns(CovariateColumns):
    """The other symbol's features, which follow those of the bar itself in a schema."""

    source: OtherSource

    @classmethod
    def of(cls, names: tuple[str, ...], source: OtherSource) -> Self:
        """Return the columns of *source* with the features *names*, unscaled."""
        unscaled = CovariateScale(names, (0.0,) * len(names), (1.0,) * len(names), PREFIX)
        return cls(unscaled, source)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in their order."""
        return tuple(PREFIX + name for name in self.scale.columns)

    def at(self, symbol: str, closes_ms: Ids, interval_ms: int) -> NDArray[np.float32]:
        """Return [bar, feature] at these closes; NaN if the other bar had not arrived."""
        del interval_ms
        return self.source.at(symbol, closes_ms).values.astype(np.float32)

    def rows_by(self, symbol: str, closes_ms: Ids, by_ms: int) -> NDArray[np.float32]:
        """Return the rows known when *symbol*'s bar closing at *by_ms* arrived."""
        return self.source.rows_by(symbol, closes_ms, by_ms).values.astype(np.float32)


def other_columns(schema: FeatureSchema, source: CovariateSource) -> OtherColumns:
    """Return the columns of *source*, the other symbol's bars."""
    assert isinstance(source, KnownOtherBars | RunOtherBars)
    return OtherColumns.of(schema.recipe.names, source)


@dataclass(frozen=True)
class KnownOtherBars:
    """Feature rows of candles that were all known from the start: an ``OtherSource``.

    ``closes_ms`` [bar] ascend; ``values`` are [bar, feature] of the features ``names``.
    """

    symbol: str
    names: tuple[str, ...]
    closes_ms: Ids
    values: NDArray[np.float32]
    name: str = ""

    def at(self, symbol: str, closes_ms: Ids) -> JoinedRows:
        """Return the row of each close; NaN without one, and for the symbol itself."""
        rows = np.full((len(closes_ms), self.values.shape[1]), np.nan)
        if symbol != self.symbol and len(self.closes_ms):
            places = np.searchsorted(self.closes_ms, closes_ms).clip(max=len(self.closes_ms) - 1)
            has = self.closes_ms[places] == closes_ms
            rows[has] = self.values[places[has]]
        return _joined(closes_ms, rows)

    def rows_by(self, symbol: str, closes_ms: Ids, by_ms: int) -> JoinedRows:
        """Return the same as ``at``: a candle is known at its close."""
        del by_ms
        return self.at(symbol, closes_ms)


class RunOtherBars:
    """Feature rows of the other symbol's bars in a run, by arrival: an ``OtherSource``.

    It gets the run's events in order, live, in a replay and from the record. Arrivals are numbered;
    the bars of one ``CloseStart`` share a number.
    """

    def __init__(self, symbol: str, schema_id: str) -> None:
        schema = features.schema(schema_id)
        self.name: Final = ""
        self.symbol: Final = symbol
        self.lookback: Final = schema.lookback
        self._columns = len(schema.recipe.names)
        self._features = FeatureStreams(schema)
        self._rows: dict[int, tuple[int, Floats]] = {}  # by close: (arrival number, row)
        self._numbers: dict[str, dict[int, int]] = {}  # symbol -> close -> arrival number
        self._newest_ms: dict[str, int] = {}
        self._number = 0
        self._due = 0  # bars that belong to the newest ``CloseStart``

    def see(self, event: Event) -> None:
        """Process the next event."""
        match event:
            case CloseStart():
                self._number, self._due = self._number + 1, event.bars
            case Bar():
                self._take(event)
            case _:
                pass

    def at(self, symbol: str, closes_ms: Ids) -> JoinedRows:
        """Return the row of each close, if it was known when *symbol*'s own bar arrived."""
        numbers = self._numbers.get(symbol, {})
        return self._until(
            closes_ms, [numbers.get(close_ms, -1) for close_ms in closes_ms.tolist()]
        )

    def rows_by(self, symbol: str, closes_ms: Ids, by_ms: int) -> JoinedRows:
        """Return the row of each close, if known when *symbol*'s bar closing at *by_ms* arrived."""
        by = self._numbers.get(symbol, {}).get(by_ms, -1)
        return self._until(closes_ms, [by] * len(closes_ms))

    def _until(self, closes_ms: Ids, numbers: list[int]) -> JoinedRows:
        """Return the row of each close, if it arrived no later than its number; else NaN."""
        rows = np.full((len(closes_ms), self._columns), np.nan)
        for place, (close_ms, number) in enumerate(zip(closes_ms.tolist(), numbers, strict=True)):
            row = self._rows.get(close_ms)
            if row is not None and row[0] <= number:
                rows[place] = row[1]
        return _joined(closes_ms, rows)

    def _take(self, bar: Bar) -> None:
        if self._due:
            self._due -= 1
        else:
            self._number += 1
        symbol, close_ms = bar.instrument.rpartition(":")[2], bar.closed_ms
        if close_ms <= self._newest_ms.get(symbol, -1):
            return  # an earlier bar again: keep its row
        self._newest_ms[symbol] = close_ms
        if symbol != self.symbol:
            _keep(self._numbers.setdefault(symbol, {}), close_ms, self._number)
            return
        row = self._features.step([bar]).values[0]
        if np.isfinite(row).all():
            _keep(self._rows, close_ms, (self._number, row.astype(np.float64)))


def _keep(kept: dict[int, Any], close_ms: int, value: object) -> None:
    kept[close_ms] = value
    if len(kept) > _KEPT:
        del kept[next(iter(kept))]


def _joined(closes_ms: Ids, values: Floats) -> JoinedRows:
    return JoinedRows(np.where(np.isfinite(values).all(axis=1), closes_ms, 0), values)
