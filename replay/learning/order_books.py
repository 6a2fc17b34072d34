"""Files of order books → stretches without a hole, their labels, and the parts of their time.

Beside candles: the row of features that each bar has of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np

from tracepaper.replay.archive.columns import instant
from tracepaper.replay.archive.order_book import DepthHeader, StoredDepth, read_depth
from tracepaper.strategies.book_features import (
    PREFIX,
    SECTION,
    STALE_STEPS,
    BookReading,
    reading_of,
    rows_of_books,
    scale_of,
)
from tracepaper.strategies.covariates import (
    CovariateColumns,
    CovariateScale,
    Floats,
    Ids,
    JoinedRows,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import Books, Integers, joined
from tracepaper.strategies.units import DAY_MS, MINUTE_MS, iso

if TYPE_CHECKING:
    from tracepaper.replay.learning.splits import Segment

DAYS_LEAST: Final = 7
"""Days of depth, without the gaps, below which nothing is said of a model."""
JUDGED_SOURCE: Final = "exchange"
UNKNOWN: Final = -100
"""The label of a book whose horizon lies behind a gap, or in a later part."""
SHARES: Final = (0.7, 0.8)
"""Of all books: where training and validation end; the rest stays untouched for the figures."""


@dataclass(frozen=True)
class BookSource:
    """A file as the card names it."""

    name: str
    sha256: str
    source: str
    books: int
    from_ms: int
    until_ms: int


class BookParts(NamedTuple):
    """Stretches of each part of the calendar; no label of one reaches into the next."""

    training: list[Books]
    validation: list[Books]
    untouched: list[Books]


@dataclass(frozen=True)
class BookDataset:
    """What files of one instrument's books hold together, oldest first."""

    header: DepthHeader
    stretches: tuple[Books, ...]
    files: tuple[BookSource, ...]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, paths: Sequence[str | Path]) -> BookDataset:
        """Read *paths*; raise ``DataInvalid`` for damage, overlap, and files that do not belong."""
        stretches: list[Books] = []
        files: list[BookSource] = []
        notes: list[str] = []
        header: DepthHeader | None = None
        for path in map(Path, paths):
            found = read_depth(path)
            header = header or found.header
            _same(header, found.header, path, files)
            stretches += found.stretches()
            files.append(
                BookSource(
                    path.name,
                    hashlib.sha256(path.read_bytes()).hexdigest(),
                    found.header.source,
                    len(found.books),
                    int(found.books.seen_ms[0]),
                    int(found.books.seen_ms[-1]),
                )
            )
            notes += [found.torn] if found.torn else []
        if header is None:
            raise ConfigInvalid("--data FILE is missing; `tracepaper data record` makes one.")
        ordered = sorted(files, key=lambda file: file.from_ms)
        for before, after in pairwise(ordered):
            if after.from_ms <= before.until_ms:
                raise DataInvalid(
                    f"{before.name} and {after.name} hold books of the same time; leave one out."
                )
        stretches.sort(key=lambda books: int(books.seen_ms[0]))
        return cls(header, tuple(stretches), tuple(ordered), tuple(notes))

    @property
    def recorded_ms(self) -> int:
        """How long was recorded, without the gaps."""
        return sum(map(len, self.stretches)) * self.header.every_ms

    def untrained(self) -> list[str]:
        """Return why nothing can be said of what is learnt from it; empty where it can."""
        return untrained_by(self.recorded_ms, {file.source for file in self.files})

    def untouched(self) -> tuple[tuple[str, ...], int, int] | None:
        """Return its symbol, and from and until when its last part is; None where untrained."""
        if self.untrained():
            return None
        symbol = self.header.instrument.partition(":")[2]
        # The card names the time to the second.
        start = instant(iso(int(self.parts().untouched[0].seen_ms[0])))
        return (symbol,), start, int(self.stretches[-1].seen_ms[-1]) + 1

    def parts(self) -> BookParts:
        """Cut the stretches by the calendar into training, validation and untouched time."""
        times = np.concatenate([books.seen_ms for books in self.stretches])
        first, second = (round(len(times) * share) for share in SHARES)
        bounds = [int(times[0]), int(times[first]), int(times[second]), int(times[-1]) + 1]
        return BookParts(*(self.between(*span) for span in pairwise(bounds)))

    def between(self, from_ms: int | None, until_ms: int | None) -> list[Books]:
        """Return the stretches from *from_ms* until *until_ms*, exclusive; None is as far as known.

        A stretch that a bound cuts ends there: no label of it reaches further.
        """
        found = []
        for books in self.stretches:
            start = 0 if from_ms is None else int(np.searchsorted(books.seen_ms, from_ms))
            stop = len(books) if until_ms is None else int(np.searchsorted(books.seen_ms, until_ms))
            if stop > start:
                found.append(books.part(start, stop))
        return found


def untrained_by(recorded_ms: int, sources: Collection[str]) -> list[str]:
    """Return why nothing can be said of what is learnt from so much depth of these *sources*."""
    said = []
    if recorded_ms < DAYS_LEAST * DAY_MS:
        said.append(
            f"untrained: {recorded_ms / MINUTE_MS:,.1f} minutes of depth, seven days are "
            "needed; no figure of it would mean anything."
        )
    if others := sorted({*sources} - {JUDGED_SOURCE}):
        said.append(
            f"untrained: books from {' and '.join(others)} are no recording of the exchange "
            "itself; only those that `tracepaper data record` took from it are judged."
        )
    return said


def _same(
    wanted: DepthHeader, header: DepthHeader, path: Path, before: Sequence[BookSource]
) -> None:
    """Raise ``DataInvalid`` unless the books of *path* can stand beside those *before*."""
    if header.words() != wanted.words():
        raise DataInvalid(
            f"{path} holds {header.words()}, and {before[0].name} {wanted.words()}; give files of "
            "one instrument, depth and pace."
        )
    if (header.price_decimals, header.quantity_decimals) != (
        wanted.price_decimals,
        wanted.quantity_decimals,
    ):
        raise DataInvalid(
            f"{path} counts {header.instrument} in other units than {before[0].name}; the "
            "exchange changed its filters between them, so give files of one side of it."
        )


def labels_of(books: Books, horizons: Sequence[int]) -> Integers:
    """Return which way the mid of *books* moved to each horizon, int64 [book, horizon].

    0 is down, 1 flat and 2 up; ``UNKNOWN`` where the books end before. Exact: no rounding is in it.
    """
    mid = books.doubled_mid
    found = np.full((len(books), len(horizons)), UNKNOWN, dtype=np.int64)
    for column, horizon in enumerate(horizons):
        if horizon < len(books):
            found[:-horizon, column] = np.sign(mid[horizon:] - mid[:-horizon]) + 1
    return found


# ---------------------------------------------------------------- beside candles


class DepthRows:
    """The row of each bar by recorded books: a ``CovariateSource`` that reads a part at a time.

    Each row is computed once, from the newest book at or before the close and the one before it.
    """

    _AT_ONCE: Final = 256

    def __init__(self, files: Mapping[str, Sequence[StoredDepth]], reading: BookReading) -> None:
        """Read *files* of each symbol, oldest first."""
        self.name: Final = ""
        self._files, self._reading = files, reading
        self._known: dict[str, dict[int, tuple[int, Floats] | None]] = {}

    def at(self, symbol: str, closes_ms: Ids) -> JoinedRows:
        """Return the rows of *symbol* at these closes."""
        known = self._known.setdefault(symbol, {})
        asked = closes_ms.tolist()
        if new := sorted(set(asked) - known.keys()):
            known.update(dict.fromkeys(new))
            for file in self._files.get(symbol, ()):
                known.update(self._rows(file, np.array(new, dtype=np.int64)))
        times = np.zeros(len(asked), dtype=np.int64)
        values = np.full((len(asked), len(self._reading.columns)), np.nan)
        for place, close_ms in enumerate(asked):
            if (row := known[close_ms]) is not None:
                times[place], values[place] = row
        return JoinedRows(times, values)

    def look(self, close_ms: int) -> None:
        """Do nothing: nothing comes."""

    def _rows(self, file: StoredDepth, closes_ms: Ids) -> dict[int, tuple[int, Floats] | None]:
        """Return the row of each close at which *file* has a book that is not too old."""
        places = np.searchsorted(file.times, closes_ms, side="right") - 1
        age_ms = closes_ms - file.times[places]
        has = (places >= 0) & (age_ms <= STALE_STEPS * self._reading.every_ms)
        places, closes_ms = places[has], closes_ms[has]
        has_before = (places > 0) & ~np.isin(places, file.starts)
        found: dict[int, tuple[int, Floats] | None] = {}
        for start in range(0, len(places), self._AT_ONCE):
            cut = slice(start, start + self._AT_ONCE)
            pairs = [
                file.part(place - int(follows), place + 1).shallower(self._reading.levels)
                for place, follows in zip(places[cut].tolist(), has_before[cut], strict=True)
            ]
            newest = joined([pair.part(len(pair) - 1, len(pair)) for pair in pairs])
            before = joined([pair.part(0, 1) for pair in pairs])
            rows = rows_of_books(newest, before, has_before[cut])
            of = zip(closes_ms[cut].tolist(), newest.seen_ms.tolist(), rows, strict=True)
            found |= {close_ms: (time_ms, row) for close_ms, time_ms, row in of}
        return found


@dataclass(frozen=True)
class SuppliedBooks:
    """Recorded books beside candles, and how their rows are standardised; None before it is fitted.

    They are of one depth and pace, and any number of symbols.
    """

    paths: tuple[Path, ...]
    files: Mapping[str, Sequence[StoredDepth]]  # by symbol, oldest first
    reading: BookReading
    source: DepthRows = field(compare=False)
    scale: CovariateScale | None = None
    bars: Mapping[str, Ids] = field(default_factory=dict, compare=False)
    """The closes of each symbol's bars of the interval that a model is made for."""

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Self:
        """Read *paths*; raise ``DataInvalid`` for files that do not belong together, or overlap."""
        files: dict[str, list[StoredDepth]] = {}
        every = [StoredDepth(path) for path in paths]
        first = every[0].header
        for path, one in zip(paths, every, strict=True):
            header = one.header
            if (header.levels, header.every_ms) != (first.levels, first.every_ms):
                raise DataInvalid(
                    f"{path} holds {header.words()}, and {paths[0]} {first.words()}; give files of "
                    "one depth and pace."
                )
            files.setdefault(header.instrument.partition(":")[2], []).append(one)
        for symbol, own in files.items():
            own.sort(key=lambda one: int(one.times[0]))
            if any(after.times[0] <= before.times[-1] for before, after in pairwise(own)):
                raise DataInvalid(
                    f"Two --depth files hold books of {symbol} of the same time; leave one out."
                )
        reading = BookReading(first.levels, first.every_ms)
        return cls(tuple(paths), files, reading, DepthRows(files, reading))

    def of_card(self, card: Mapping[str, Any]) -> Self:
        """Return them as *card*'s model reads and scales them.

        Raises ``DataInvalid`` where these are other books.
        """
        wanted = reading_of(card)
        if wanted is None:
            raise ConfigInvalid("The model was trained without order books; leave --depth out.")
        if self.reading.levels < wanted.levels or self.reading.every_ms != wanted.every_ms:
            raise DataInvalid(
                f"{self.paths[0]} holds {self.reading.words}, and the model reads {wanted.words}; "
                "record so, or train on this file."
            )
        source = DepthRows(self.files, wanted)
        return replace(self, reading=wanted, source=source, scale=scale_of(card))

    def of_bars(self, segments: Sequence[Segment]) -> Self:
        """Return them beside the bars of *segments*; raise for books too far apart for these."""
        if self.reading.every_ms > segments[0].interval_ms:
            raise DataInvalid(
                f"{self.paths[0]} holds a book each {self.reading.every_ms:,} ms, longer than a "
                "bar; record more often, or give candles of longer bars."
            )
        symbols = dict.fromkeys(one.candles.symbol for one in segments)
        return replace(
            self,
            bars={
                symbol: np.concatenate(
                    [one.close_time_ms for one in segments if one.candles.symbol == symbol]
                )
                for symbol in symbols
            },
        )

    def fitted(self, until_ms: int) -> Self:
        """Return them standardised as the rows before *until_ms* are, and by no later one."""
        every = [self.source.at(symbol, closes) for symbol, closes in self.bars.items()]
        columns = self.reading.columns
        return replace(self, scale=CovariateScale.fitted(columns, every, until_ms, PREFIX))

    def joined(self, until_ms: int) -> CovariateColumns:
        """Return them as features; where nothing is fitted yet, that is, before *until_ms*."""
        if self.scale is None:
            return self.fitted(until_ms).joined(until_ms)
        return CovariateColumns(self.scale, self.source)

    @property
    def words(self) -> tuple[str, ...]:
        """The options that name the files."""
        return tuple(word for path in self.paths for word in ("--depth", path.name))

    @property
    def sha256(self) -> str:
        """The hash of all files."""
        hashes = [one.sha256 for own in self.files.values() for one in own]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    @property
    def recorded_ms(self) -> int:
        """How long was recorded at bars, without gaps, of the symbol with the least."""
        found = []
        for symbol, closes_ms in self.bars.items():
            books = sum(len(one.times) for one in self.files.get(symbol, ()))
            rows = int(np.isfinite(self.source.at(symbol, closes_ms).values).all(axis=1).sum())
            bar_ms = int(np.diff(closes_ms).min()) if len(closes_ms) > 1 else 0
            found.append(min(books * self.reading.every_ms, rows * bar_ms))
        return min(found, default=0)

    def untrained(self) -> list[str]:
        """Return why nothing can be said of what is learnt from them; empty where it can."""
        sources = {one.header.source for own in self.files.values() for one in own}
        return untrained_by(self.recorded_ms, sources)

    def section(self, scale: CovariateScale) -> dict[str, Any]:
        """Return what ``[features]`` of a card says of them."""
        files = [
            {
                "name": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in self.paths
        ]
        return {
            SECTION: {
                "levels": self.reading.levels,
                "every_ms": self.reading.every_ms,
                "recorded_ms": self.recorded_ms,
                "files": files,
                **scale.section(),
            }
        }
