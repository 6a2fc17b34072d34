"""Features of an order book at a bar's close, by groups of levels, and the books of a run.

A row is made of the newest book dated at or before the close and of the one a step before it. Each
column is of one group of levels, which its name says: ``2_5_imbalance`` is of the second to the
fifth best. Scales cancel, so that books of any instrument read alike. A bar without a book, with an
old one, or whose newest lies before a gap or a start, has no row.

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
from tracepaper.strategies.errors import CheckpointMismatch
from tracepaper.strategies.order_book import LEVELS_MAX, SIDES, Books, OrderBookHistory
from tracepaper.strategies.types.market import Bar, Depths, Event, ModelChange

PREFIX: Final = "book_"
"""What the names of these features begin with."""
SECTION: Final = "book"
"""Of a card's ``[features]``, where they are described."""
ENDS: Final = (1, 5, 10, 50, 200, LEVELS_MAX)
"""The last level of each group, counted from the touch."""
MID: Final = "mid"
"""The group of what is of no level: the spread, the mid's move and the row's age."""
STALE_STEPS: Final = 2
"""Steps of the grid after which a book is too old for a bar (D17)."""
WANTED: Final = STALE_STEPS + 1
"""Books before a close that its row depends on."""
FALSE_BEYOND: Final = 0.01
"""A book is false whose mid lies by so much of the price beyond its bar and the close before."""
_KEPT: Final = 1 << 17
"""Rows kept a symbol: more than a window and what a scan reads ahead."""


@dataclass(frozen=True, slots=True)
class BookReading:
    """Which books a model reads: levels a side, and milliseconds from one to the next."""

    levels: int
    every_ms: int

    @property
    def words(self) -> str:
        """Say them."""
        return f"{self.levels} levels each {self.every_ms:,} ms"

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of a row's columns."""
        return (
            *(f"{MID}_{name}" for name in ("spread", "moved")),
            *(
                f"{name}_{of}"
                for name, first, last in groups(self.levels)
                for of in (_OF_LEVELS if last - first > 1 else _OF_A_LEVEL)
            ),
        )


def reading_of(card: Mapping[str, Any]) -> BookReading | None:
    """Return which order books the model of *card* reads beside its bars; None where none.

    Raises ``CheckpointMismatch`` where the card does not say it.
    """
    if (section := section_beside(card, SECTION)) is None:
        return None
    levels, every_ms = section.get("levels"), section.get("every_ms")
    if type(levels) is not int or type(every_ms) is not int or min(levels, every_ms) < 1:
        raise CheckpointMismatch(
            "The card's features.book must name levels and every_ms; use the card that was written."
        )
    return BookReading(levels, every_ms)


def scale_of(card: Mapping[str, Any]) -> CovariateScale:
    """Return how *card* scales the columns of books; raise ``CheckpointMismatch`` for others."""
    scale, reading = (
        CovariateScale.of(section_beside(card, SECTION) or {}, PREFIX),
        reading_of(card),
    )
    if reading is None or scale.columns != reading.columns:
        raise CheckpointMismatch(
            "The card's features.book lists other columns than this version makes of its levels; "
            "train it again."
        )
    return scale


_OF_LEVELS: Final = (
    "imbalance",
    *(f"{side}_{name}" for side in SIDES for name in ("share", "distance", "grown", "wall")),
)
_OF_A_LEVEL: Final = tuple(name for name in _OF_LEVELS if not name.endswith("wall"))


def groups(levels: int) -> list[tuple[str, int, int]]:
    """Return the groups of so many *levels*: a name, the first place and the one after the last."""
    ranges, first = [], 0
    for end in ENDS:
        last = min(end, levels)
        if last > first:
            name = f"{last}" if last == first + 1 else f"{first + 1}_{last}"
            ranges.append((name, first, last))
        first = last
    return ranges


def group_of(feature: str) -> str:
    """Return the group of levels of a feature of this name, such as ``2_5``; empty of others."""
    if not feature.startswith(PREFIX):
        return ""
    words = feature.removeprefix(PREFIX).split("_")
    count = next((at for at, word in enumerate(words) if not word.isdecimal()), 0)
    return "_".join(words[:count]) or MID


def rows_of_books(newest: Books, before: Books, has_before: NDArray[np.bool_]) -> Floats:
    """Return [book, column] of each *newest* book, by the one a step *before* it where it has one.

    Of a group of levels: ``imbalance``, the size of its bids less that of its asks, over both.
    Of a side of it: ``share`` of the whole book's size, mean ``distance`` from the mid weighted by
    size (basis points), ``wall``, the largest level's share of it, and ``grown``, the log of its
    size over that a step ago. ``spread`` and ``moved`` are in basis points of the mid.
    """
    doubled, doubled_before = newest.doubled_mid, before.doubled_mid
    size, was = newest.size.astype(np.float64), before.size.astype(np.float64)
    away = np.abs(newest.price * 2 / doubled[:, None, None] - 1.0) * 1e4
    whole = size.sum(axis=(1, 2))
    spread = (newest.price[:, 1, 0] - newest.price[:, 0, 0]) * 2 / doubled * 1e4
    moved = np.where(has_before, (doubled / doubled_before - 1.0) * 1e4, 0.0)
    columns = [spread, moved]
    for _, first, last in groups(newest.levels):
        cut = slice(first, last)
        held, held_before = size[..., cut].sum(axis=2), was[..., cut].sum(axis=2)  # [book, side]
        both = held.sum(axis=1)
        some = np.maximum(held, 1.0)
        distance = (size[..., cut] * away[..., cut]).sum(axis=2) / some
        wall = size[..., cut].max(axis=2) / some
        is_known = (held > 0) & (held_before > 0) & has_before[:, None]
        grown = np.where(is_known, np.log(some / np.maximum(held_before, 1.0)), 0.0)
        columns.append((held[:, 0] - held[:, 1]) / np.maximum(both, 1.0))
        named = (held / whole[:, None], distance, grown, *((wall,) if last - first > 1 else ()))
        columns += [of[:, side] for side in range(len(SIDES)) for of in named]
    return np.stack(columns, axis=1)


class RunBooks:
    """The row of each bar of a run, by the books that came before it: a ``CovariateSource``.

    The events of the run are shown to it in their order, live, in a replay and from the record
    alike. So a bar knows the books that were known when it came, and no later one.
    """

    def __init__(self, reading: BookReading) -> None:
        self.name: Final = ""
        self.reading: Final = reading
        self._histories: dict[str, OrderBookHistory] = {}
        self._rows: dict[str, dict[int, tuple[int, Floats] | None]] = {}  # by symbol and close
        self._last: dict[str, Bar] = {}

    def see(self, event: Event) -> None:
        """Take in the next event; a bar's row is made as it comes, and a start forgets books."""
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
        """Return the rows of the bars that closed at these times."""
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
            return  # of an earlier bar again: what was known of it stands
        self._last[symbol] = bar
        history = self._history(bar.instrument)
        _hide_false(history, bar, bar if before is None else before)
        rows = self._rows.setdefault(symbol, {})
        rows[close_ms] = self._row(history.until(close_ms), close_ms)
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


def _hide_false(history: OrderBookHistory, bar: Bar, before: Bar) -> None:
    """Hide what stands up to the last book that *bar*, the newest, shows to be false."""
    if (books := history.until(bar.closed_ms)) is None:
        return
    low, high = min(bar.low, before.close), max(bar.high, before.close)
    mid = books.doubled_mid / 2
    is_far = (mid < low * (1 - FALSE_BEYOND)) | (mid > high * (1 + FALSE_BEYOND))
    is_own = books.seen_ms > min(before.closed_ms, bar.open_time_ms)
    if false_ms := books.seen_ms[is_far & is_own].tolist():
        history.hide(false_ms[-1])


def books_read_by(model: HasVectors | None) -> RunBooks | None:
    """Return the books that *model* reads as features; None where it reads none."""
    source = None if model is None else model.vectors
    return source if isinstance(source, RunBooks) else None
