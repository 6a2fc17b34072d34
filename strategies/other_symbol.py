"""Closed bars of another symbol as columns beside a bar's own, where that symbol's bar has come.

The columns of a bar are the feature row of the other symbol's bar of the same close. Whether it had
come is told by the order of events: it counts for the answer to a bar where it came before that bar
or in one close with it. A later one counts from the next answer on. So nothing later than a bar is
in its answer, and a replay of a record knows what the run knew.

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
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid
from tracepaper.strategies.features import rows as features
from tracepaper.strategies.features.rows import FeatureSchema, FeatureStreams
from tracepaper.strategies.types.market import Bar, CloseStart, Event

OTHER: Final = "other_symbol"
"""The key of ``[architecture]`` that names the symbol."""
PREFIX: Final = "other_"
"""What the names of these features begin with."""
_KEPT: Final = 1 << 17
"""Bars kept a symbol: more than a window and what a scan reads ahead."""


def other_of(card: Mapping[str, Any]) -> str:
    """Return the symbol that the model of *card* asks beside its own; empty where none.

    Raises ``CheckpointMismatch`` where the card names no text.
    """
    section = card.get("architecture")
    symbol = section.get(OTHER, "") if isinstance(section, Mapping) else ""
    if not isinstance(symbol, str):
        raise CheckpointMismatch(
            f"The card's architecture.{OTHER} must name a symbol; use the card that was written."
        )
    return symbol


class OtherSource(CovariateSource, Protocol):
    """Where the other symbol's rows come from: candles that are known, or the bars of a run."""

    @property
    def symbol(self) -> str:
        """The other symbol."""
        ...

    def rows_by(self, symbol: str, closes_ms: Ids, by_ms: int) -> JoinedRows:
        """Return the rows at these closes that were known when *symbol*'s bar of *by_ms* came."""
        ...


@dataclass(frozen=True)
class OtherColumns(CovariateColumns):
    """The other symbol's features, as a schema has them after those of the bar itself."""

    source: OtherSource

    @classmethod
    def of(cls, names: tuple[str, ...], source: OtherSource) -> Self:
        """Return the columns of *source*, whose features are called *names*, in their own units."""
        unscaled = CovariateScale(names, (0.0,) * len(names), (1.0,) * len(names), PREFIX)
        return cls(unscaled, source)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in their order."""
        return tuple(PREFIX + name for name in self.scale.columns)

    def at(self, symbol: str, closes_ms: Ids, interval_ms: int) -> NDArray[np.float32]:
        """Return [bar, feature] rows of bars by their closes; NaN where the other had not come."""
        del interval_ms
        return self.source.at(symbol, closes_ms).values.astype(np.float32)

    def rows_by(self, symbol: str, closes_ms: Ids, by_ms: int) -> NDArray[np.float32]:
        """Return the same as it was known when *symbol*'s bar that closed at *by_ms* came."""
        return self.source.rows_by(symbol, closes_ms, by_ms).values.astype(np.float32)


def other_columns(schema: FeatureSchema, source: CovariateSource) -> OtherColumns:
    """Return the columns of *source*; raise ``ConfigInvalid`` for one of no other symbol's bars."""
    if not isinstance(source, KnownOtherBars | RunOtherBars):
        raise ConfigInvalid(
            "The model asks another symbol, whose candles --data gives; leave --covariates and "
            "--depth out."
        )
    return OtherColumns.of(schema.recipe.names, source)


@dataclass(frozen=True)
class KnownOtherBars:
    """The feature rows of candles that were all there before the first answer: an ``OtherSource``.

    ``closes_ms`` [bar] ascend; ``values`` are [bar, feature] of the features ``names``.
    """

    symbol: str
    names: tuple[str, ...]
    closes_ms: Ids
    values: NDArray[np.float32]
    name: str = ""

    def at(self, symbol: str, closes_ms: Ids) -> JoinedRows:
        """Return the row of each close; NaN where there is none, and for the symbol itself."""
        rows = np.full((len(closes_ms), self.values.shape[1]), np.nan)
        if symbol != self.symbol and len(self.closes_ms):
            places = np.searchsorted(self.closes_ms, closes_ms).clip(max=len(self.closes_ms) - 1)
            has = self.closes_ms[places] == closes_ms
            rows[has] = self.values[places[has]]
        return _joined(closes_ms, rows)

    def rows_by(self, symbol: str, closes_ms: Ids, by_ms: int) -> JoinedRows:
        """Return the same: a candle is known at its close."""
        del by_ms
        return self.at(symbol, closes_ms)


class RunOtherBars:
    """The feature rows of the other symbol's bars in a run, as they came: an ``OtherSource``.

    The events of the run are shown to it in their order, live, in a replay and from the record
    alike. What came is numbered: the bars of one ``CloseStart`` have one number.
    """

    def __init__(self, symbol: str, schema_id: str) -> None:
        schema = features.schema(schema_id)
        self.name: Final = ""
        self.symbol: Final = symbol
        self.lookback: Final = schema.lookback
        self._columns = len(schema.recipe.names)
        self._features = FeatureStreams(schema)
        self._rows: dict[int, tuple[int, Floats]] = {}  # by close, with its number
        self._numbers: dict[str, dict[int, int]] = {}  # the number of each symbol's bars, by close
        self._newest_ms: dict[str, int] = {}
        self._number = 0
        self._due = 0  # bars that belong to the newest ``CloseStart``

    def see(self, event: Event) -> None:
        """Take in the next event."""
        match event:
            case CloseStart():
                self._number, self._due = self._number + 1, event.bars
            case Bar():
                self._take(event)
            case _:
                pass

    def at(self, symbol: str, closes_ms: Ids) -> JoinedRows:
        """Return the row of each close that had come when *symbol*'s own bar came."""
        numbers = self._numbers.get(symbol, {})
        return self._until(
            closes_ms, [numbers.get(close_ms, -1) for close_ms in closes_ms.tolist()]
        )

    def rows_by(self, symbol: str, closes_ms: Ids, by_ms: int) -> JoinedRows:
        """Return the row of each close that had come when *symbol*'s bar of *by_ms* came."""
        by = self._numbers.get(symbol, {}).get(by_ms, -1)
        return self._until(closes_ms, [by] * len(closes_ms))

    def _until(self, closes_ms: Ids, numbers: list[int]) -> JoinedRows:
        """Return the row of each close that came at its one of *numbers* or before; else NaN."""
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
            return  # of an earlier bar again: what was known of it stands
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
