"""Order book features at a bar's close, by groups of levels, and the books of a run.

A row is computed from the newest book at or before the close and the book one step earlier. A
column's name begins with its group of levels: ``2_5_imbalance`` covers the second to the fifth
level. Features are scale-free, so they compare between instruments. A bar has no row if its newest
book is missing, too old, or from before a gap or a start.

The rules are docs/orderbook.md, D21 to D23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.covariates import (
    CovariateScale,
    Floats,
    HasVectors,
    Ids,
    JoinedRows,
    section_beside,
)
from tracepaper.strategies.order_book import LEVELS_MAX, SIDES, Books, OrderBookHistory
from tracepaper.strategies.types.market import Bar, Depths, Event, ModelChange

PREFIX: Final = "book_"
"""Prefix of the names of these features."""
SECTION: Final = "book"
"""The section in a card's ``[features]`` that describes them."""
ENDS: Final = (1, 5, 10, 50, 200, LEVELS_MAX)
"""The last level of each group, counted from the touch."""
MID: Final = "mid"
"""The group of the columns without a level: spread, move of the mid, and age."""
STALE_STEPS: Final = 2
"""Steps after which a book is too old for a bar (docs/orderbook.md, D17)."""
WANTED: Final = STALE_STEPS + 1
"""Number of books before a close that a row depends on."""
_KEPT: Final = 1 << 17
"""Rows kept per symbol: more than a window plus the bars that a scan reads ahead."""


@dataclass(frozen=True, slots=True)
class BookReading:
    """The order books that a model reads: levels per side, and milliseconds between books."""

    levels: int
    every_ms: int

    @property
    def words(self) -> str:
        """The description for messages."""
        return f"{self.levels} levels each {self.every_ms:,} ms"

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of a row's columns."""
        return (
            *(f"{MID}_{name}" for name in ("spread", "moved")),
            *(
                f"{name}_{column}"
                for name, first, last in groups(self.levels)
                for column in (_GROUP_COLUMNS if last - first > 1 else _LEVEL_COLUMNS)
            ),
        )


def reading_of(card: Mapping[str, Any]) -> BookReading | None:
    """Return the order books that the model of *card* reads besides bars; None without any."""
    if (section := section_beside(card, SECTION)) is None:
        return None
    return BookReading(section["levels"], section["every_ms"])


def scale_of(card: Mapping[str, Any]) -> CovariateScale:
    """Return the scaling of book columns in *card*."""
    return CovariateScale.of(card["features"][SECTION], PREFIX)


_GROUP_COLUMNS: Final = (
    "imbalance",
    *(f"{side}_{name}" for side in SIDES for name in ("share", "distance", "grown", "wall")),
)
_LEVEL_COLUMNS: Final = tuple(name for name in _GROUP_COLUMNS if not name.endswith("wall"))


def groups(levels: int) -> list[tuple[str, int, int]]:
    """Return the groups of *levels*, each as (name, first index, index after the last)."""
    ranges, first = [], 0
    for end in ENDS:
        last = min(end, levels)
        if last > first:
            name = f"{last}" if last == first + 1 else f"{first + 1}_{last}"
            ranges.append((name, first, last))
        first = last
    return ranges


def group_of(feature: str) -> str:
    """Return the group of levels of *feature*, such as ``2_5``; empty for other features."""
    if not feature.startswith(PREFIX):
        return ""
    words = feature.removeprefix(PREFIX).split("_")
    count = next((at for at, word in enumerate(words) if not word.isdecimal()), 0)
    return "_".join(words[:count]) or MID


def rows_of_books(newest: Books, before: Books, has_before: NDArray[np.bool_]) -> Floats:
    """Return [book, column] of the *newest* books; *before* are the books one step earlier.

    Per group of levels: ``imbalance``, (bid size - ask size) ÷ their sum. Per side of a group:
    ``share`` of the whole book's size, ``distance``, the size-weighted mean distance from the mid
    (basis points), ``wall``, the largest level's share, and ``grown``, log(size ÷ size one step
    earlier), 0 without an earlier book. ``spread`` and ``moved`` are in basis points of the mid.
    """
    doubled, doubled_before = newest.doubled_mid, before.doubled_mid
    size, size_before = newest.size.astype(np.float64), before.size.astype(np.float64)
    away = np.abs(newest.price * 2 / doubled[:, None, None] - 1.0) * 1e4
    book_size = size.sum(axis=(1, 2))
    spread = (newest.price[:, 1, 0] - newest.price[:, 0, 0]) * 2 / doubled * 1e4
    moved = np.where(has_before, (doubled / doubled_before - 1.0) * 1e4, 0.0)
    columns = [spread, moved]
    for _, first, last in groups(newest.levels):
        cut = slice(first, last)
        held, held_before = size[..., cut].sum(axis=2), size_before[..., cut].sum(axis=2)
        both = held.sum(axis=1)
        divisor = np.maximum(held, 1.0)
        distance = (size[..., cut] * away[..., cut]).sum(axis=2) / divisor
        wall = size[..., cut].max(axis=2) / divisor
        is_known = (held > 0) & (held_before > 0) & has_before[:, None]
        grown = np.where(is_known, np.log(divisor / np.maximum(held_before, 1.0)), 0.0)
        columns.append((held[:, 0] - held[:, 1]) / np.maximum(both, 1.0))
        named = (held / book_size[:, None], distance, grown, *((wall,) if last - first > 1 else ()))
        columns += [column[:, side] for side in range(len(SIDES)) for column in named]
    return np.stack(columns, axis=1)


class RunBooks:
    """The row of each bar of a run from the books that arrived before it: a ``CovariateSource``.

    It gets the run's events in order, live, in a replay and from the record. So a bar's row uses
    exactly the books that were known when the bar arrived.
    """

    def __init__(self, reading: BookReading) -> None:
        self.name: Final = ""
        self.reading: Final = reading
        self._histories: dict[str, OrderBookHistory] = {}
        self._rows: dict[str, dict[int, tuple[int, Floats] | None]] = {}  # by symbol and close
        self._last: dict[str, Bar] = {}

    def see(self, event: Event) -> None:
        """Process the next event: a bar gets its row at once, and a start forgets all books."""
        match event:
            case Depths():
                self._history(event.instrument).add(event)
            case Bar():
                self._close(event)
            case ModelChange():
                self._histories.clear()
            case _:
                pass

    def at(self, symbol: str, closes_ms: Ids) -> JoinedRows:
        """Return the rows of the bars that closed at *closes_ms*."""
        rows = self._rows.get(symbol, {})
        times = np.zeros(len(closes_ms), dtype=np.int64)
        values = np.full((len(closes_ms), len(self.reading.columns)), np.nan)
        for place, close_ms in enumerate(closes_ms.tolist()):
            if (row := rows.get(close_ms)) is not None:
                times[place], values[place] = row
        return JoinedRows(times, values)

    def _history(self, instrument: str) -> OrderBookHistory:
        return self._histories.setdefault(instrument, OrderBookHistory(2))

    def _close(self, bar: Bar) -> None:
        symbol, close_ms = bar.instrument.rpartition(":")[2], bar.closed_ms
        before = self._last.get(symbol)
        if before is not None and close_ms <= before.closed_ms:
            return  # an earlier bar again: keep its row
        self._last[symbol] = bar
        rows = self._rows.setdefault(symbol, {})
        rows[close_ms] = self._row(self._history(bar.instrument).until(close_ms), close_ms)
        if len(rows) > _KEPT:
            del rows[next(iter(rows))]

    def _row(self, books: Books | None, close_ms: int) -> tuple[int, Floats] | None:
        every_ms, levels = self.reading.every_ms, self.reading.levels
        if books is None or close_ms - int(books.seen_ms[-1]) > STALE_STEPS * every_ms:
            return None
        read = books.shallower(levels)
        newest, before = read.part(len(read) - 1, len(read)), read.part(0, 1)
        row = rows_of_books(newest, before, np.array([len(read) > 1]))
        return int(newest.seen_ms[0]), row[0]


def books_read_by(model: HasVectors | None) -> RunBooks | None:
    """Return the books that *model* reads as features; None if it reads none."""
    source = None if model is None else model.vectors
    return source if isinstance(source, RunBooks) else None
