"""Files of order books → stretches without a hole, their labels, and the parts of their time."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from tracepaper.replay.archive.columns import instant
from tracepaper.replay.archive.order_book import DepthHeader, read_depth
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import Books, Integers
from tracepaper.strategies.units import DAY_MS, MINUTE_MS, iso

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
