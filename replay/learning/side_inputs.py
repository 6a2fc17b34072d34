"""What networks learn from beside the bars: covariates, order books, or another symbol's bars.

The rules are docs/models.md, L63, and docs/orderbook.md, D21 to D24.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np

from tracepaper.replay.archive.books import RecordedDepth, read_depth
from tracepaper.storage.covariates import CovariateFile, read_covariates
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
    CovariateSource,
    Floats,
    Ids,
    JoinedRows,
    takes_vectors,
    vector_scale,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import joined
from tracepaper.strategies.other_symbol import KnownOtherBars, OtherColumns, other_of
from tracepaper.strategies.units import DAY_MS, MINUTE_MS

if TYPE_CHECKING:
    from tracepaper.replay.learning.splits import Segment


DAYS_LEAST: Final = 7
"""Days of depth, without the gaps, below which nothing is said of a model."""
JUDGED_SOURCE: Final = "exchange"


def untrained_by(recorded_ms: int, sources: Collection[str]) -> list[str]:
    """Return why nothing can be said of what is learnt from so much depth of these *sources*."""
    reasons = []
    if recorded_ms < DAYS_LEAST * DAY_MS:
        reasons.append(
            f"untrained: {recorded_ms / MINUTE_MS:,.1f} minutes of depth, seven days are "
            "needed; no figure of it would mean anything."
        )
    if others := sorted({*sources} - {JUDGED_SOURCE}):
        reasons.append(
            f"untrained: books from {' and '.join(others)} are no recording of the exchange "
            "itself; only those that `tracepaper data record` took from it are judged."
        )
    return reasons


def read_stored(paths: Sequence[Path]) -> list[tuple[Path, RecordedDepth]]:
    """Read files of books of one depth and pace, oldest first.

    Raises ``DataInvalid`` for damage, for files that do not belong together, and for those of one
    instrument that overlap or count it in other units.
    """
    files = sorted(
        ((path, read_depth(path)) for path in paths), key=lambda each: int(each[1].times[0])
    )
    newest: dict[str, tuple[Path, RecordedDepth]] = {}
    for path, file in files:
        (first, other), header = files[0], file.header
        if (header.levels, header.every_ms) != (other.header.levels, other.header.every_ms):
            raise DataInvalid(
                f"{path} holds {header.words()}, and {first} {other.header.words()}; give files of "
                "one depth and pace."
            )
        before, older = newest.get(header.instrument.id, (path, None))
        newest[header.instrument.id] = path, file
        if older is None:
            continue
        if file.times[0] <= older.times[-1]:
            raise DataInvalid(
                f"{before.name} and {path.name} hold books of the same time; leave one out."
            )
        counted = (each.header.instrument for each in (file, older))
        units = {(of.price_decimals, of.quantity_decimals) for of in counted}
        if len(units) > 1:
            raise DataInvalid(
                f"{path} counts {header.instrument.id} in other units than {before.name}; the "
                "exchange changed its filters between them, so give files of one side of it."
            )
    return files


class SideInputs(ABC):
    """What stands beside the bars, and how it is standardised; most need little of this."""

    torn: Sequence[str] = ()
    """What is left out of files whose recorder was killed (D4)."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """The hash of what it was read from."""

    def of_card(self, card: Mapping[str, Any]) -> SideInputs | None:
        """Return it as *card*'s model reads and scales it; None where that takes none."""
        del card
        return self

    def of_bars(self, segments: Sequence[Segment], names: tuple[str, ...]) -> Self:
        """Return it beside the bars of *segments*, whose features are called *names*.

        Raises ``DataInvalid`` where it does not belong there.
        """
        del segments, names
        return self

    def fitted(self, until_ms: int) -> Self:
        """Return it standardised as the rows before *until_ms* are, and by no later one."""
        del until_ms
        return self

    @abstractmethod
    def joined(self, until_ms: int) -> CovariateColumns:
        """Return it as features; where nothing is fitted yet, that is, before *until_ms*."""

    def untrained(self) -> list[str]:
        """Return why nothing can be said of what is learnt from it; empty where it can."""
        return []

    def section(self, scale: CovariateScale) -> dict[str, Any]:
        """Return the part of a card's ``[features]`` that names it."""
        del scale
        return {}


@dataclass(frozen=True)
class CovariateInputs(SideInputs):
    """A user's covariates, and how they are standardised; None before that is fitted."""

    file: CovariateFile
    scale: CovariateScale | None = None

    @property
    def sha256(self) -> str:
        """The hash of the file."""
        return self.file.sha256

    def of_card(self, card: Mapping[str, Any]) -> Self | None:
        """Return them scaled as *card* says; a model that takes none leaves them aside."""
        return replace(self, scale=vector_scale(card)) if takes_vectors(card) else None

    def section(self, scale: CovariateScale) -> dict[str, Any]:
        """Return the part of a card's ``[features]`` that names them."""
        of = {"file": self.file.path.name, "sha256": self.file.sha256}
        return {"vectors": {**of, **scale.section()}}

    def fitted(self, until_ms: int) -> Self:
        """Return them standardised as the rows before *until_ms* are, and by no later one."""
        columns = self.file.columns if self.scale is None else self.scale.columns
        every = list(self.file.chosen(columns).values())
        return replace(self, scale=CovariateScale.fitted(columns, every, until_ms))

    def joined(self, until_ms: int) -> CovariateColumns:
        """Return them as features."""
        if self.scale is None:
            return self.fitted(until_ms).joined(until_ms)
        return CovariateColumns(self.scale, self.file.standing(self.scale.columns))


class DepthRows:
    """The row of each bar by recorded books: a ``CovariateSource`` that reads a part at a time.

    Each row is computed once, from the newest book at or before the close and the one before it.
    """

    _AT_ONCE: Final = 256

    def __init__(self, files: Mapping[str, Sequence[RecordedDepth]], reading: BookReading) -> None:
        """Read *files* of each symbol, oldest first."""
        self.name: Final = ""
        self._files, self._reading = files, reading
        self._kept: dict[str, dict[int, tuple[int, Floats] | None]] = {}

    def at(self, symbol: str, closes_ms: Ids) -> JoinedRows:
        """Return the rows of *symbol* at these closes."""
        rows = self._kept.setdefault(symbol, {})
        closes = closes_ms.tolist()
        if new := sorted(set(closes) - rows.keys()):
            rows.update(dict.fromkeys(new))
            for file in self._files.get(symbol, ()):
                rows.update(self._rows(file, np.array(new, dtype=np.int64)))
        times = np.zeros(len(closes), dtype=np.int64)
        values = np.full((len(closes), len(self._reading.columns)), np.nan)
        for place, close_ms in enumerate(closes):
            if (row := rows[close_ms]) is not None:
                times[place], values[place] = row
        return JoinedRows(times, values)

    def _rows(self, file: RecordedDepth, closes_ms: Ids) -> dict[int, tuple[int, Floats] | None]:
        """Return the row of each close at which *file* has a book that is not too old."""
        places = np.searchsorted(file.times, closes_ms, side="right") - 1
        age_ms = closes_ms - file.times[places]
        has = (places >= 0) & (age_ms <= STALE_STEPS * self._reading.every_ms)
        places, closes_ms = places[has], closes_ms[has]
        has_before = (places > 0) & ~np.isin(places, file.starts)
        by_close: dict[int, tuple[int, Floats] | None] = {}
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
            by_close |= {close_ms: (time_ms, row) for close_ms, time_ms, row in of}
        return by_close


@dataclass(frozen=True)
class BookInputs(SideInputs):
    """Recorded books beside candles, and how their rows are standardised; None before it is fitted.

    They are of one depth and pace, and any number of symbols.
    """

    paths: tuple[Path, ...]
    files: Mapping[str, Sequence[RecordedDepth]]  # by symbol, oldest first
    reading: BookReading
    source: DepthRows = field(compare=False)
    scale: CovariateScale | None = None
    bars: Mapping[str, Ids] = field(default_factory=dict, compare=False)
    """The closes of each symbol's bars of the interval that a model is made for."""

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Self:
        """Read *paths* as ``read_stored``."""
        files: dict[str, list[RecordedDepth]] = {}
        for _, file in read_stored(paths):
            files.setdefault(file.header.instrument.symbol, []).append(file)
        reading = BookReading(file.header.levels, file.header.every_ms)
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

    def of_bars(self, segments: Sequence[Segment], names: tuple[str, ...]) -> Self:
        """Return them beside the bars of *segments*.

        Raises ``DataInvalid`` for books too far apart for these, or of another market.
        """
        del names
        traded = {segment.candles.symbol: segment.candles.instrument for segment in segments}
        for symbol, group in self.files.items():
            for file in group:
                if (books_of := file.header.instrument.id) != traded.get(symbol, books_of):
                    raise DataInvalid(
                        f"--depth holds books of {books_of}, and the candles are of "
                        f"{traded[symbol]}; give books and candles of one market."
                    )
        if self.reading.every_ms > segments[0].interval_ms:
            raise DataInvalid(
                f"{self.paths[0]} holds a book each {self.reading.every_ms:,} ms, longer than a "
                "bar; record more often, or give candles of longer bars."
            )
        symbols = dict.fromkeys(segment.candles.symbol for segment in segments)
        return replace(
            self,
            bars={
                symbol: np.concatenate(
                    [
                        segment.close_time_ms
                        for segment in segments
                        if segment.candles.symbol == symbol
                    ]
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
        """Return them as features."""
        if self.scale is None:
            return self.fitted(until_ms).joined(until_ms)
        return CovariateColumns(self.scale, self.source)

    @property
    def sha256(self) -> str:
        """The hash of all files."""
        hashes = [file.sha256 for group in self.files.values() for file in group]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    @property
    def recorded_ms(self) -> int:
        """How long was recorded at bars, without gaps, of the symbol with the least."""
        durations = []
        for symbol, closes_ms in self.bars.items():
            books = sum(len(file.times) for file in self.files.get(symbol, ()))
            rows = int(np.isfinite(self.source.at(symbol, closes_ms).values).all(axis=1).sum())
            bar_ms = int(np.diff(closes_ms).min()) if len(closes_ms) > 1 else 0
            durations.append(min(books * self.reading.every_ms, rows * bar_ms))
        return min(durations, default=0)

    @property
    def torn(self) -> list[str]:  # type: ignore[override]
        """What is left out of files whose recorder was killed (D4)."""
        return [file.torn for group in self.files.values() for file in group if file.torn]

    def untrained(self) -> list[str]:
        """Return why nothing can be said of what is learnt from them; empty where it can."""
        sources = {file.header.source for group in self.files.values() for file in group}
        return untrained_by(self.recorded_ms, sources)

    def section(self, scale: CovariateScale) -> dict[str, Any]:
        """Return the part of a card's ``[features]`` that names them."""
        files = [
            {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
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


@dataclass(frozen=True)
class OtherInputs(SideInputs):
    """The bars of another symbol, which are among the candles; None before these are read."""

    symbol: str
    bars: KnownOtherBars | None = None

    def of_bars(self, segments: Sequence[Segment], names: tuple[str, ...]) -> Self:
        """Return the symbol's own bars of *segments*, whose features are called *names*.

        Raises ``DataInvalid`` where there are none, and where no bar of another symbol closes with
        one of them.
        """
        matching = [segment for segment in segments if segment.candles.symbol == self.symbol]
        if not matching:
            raise DataInvalid(
                f"The network asks {self.symbol}, and no --data holds enough bars of it without a "
                f"hole; give candles of {self.symbol} of the same time as well."
            )
        matching.sort(key=lambda segment: int(segment.open_time_ms[0]))
        closes = np.concatenate([segment.close_time_ms[segment.first :] for segment in matching])
        closes, first = np.unique(closes, return_index=True)  # of files that overlap
        values = np.concatenate([segment.values[segment.first :] for segment in matching])[first]
        if not any(
            np.isin(segment.close_time_ms[segment.first :], closes).any()
            for segment in segments
            if segment.candles.symbol != self.symbol
        ):
            raise DataInvalid(
                f"The network asks {self.symbol}, and --data holds no bars of a symbol of the same "
                "time that would ask it; give those as well."
            )
        return replace(self, bars=KnownOtherBars(self.symbol, names, closes, values))

    def joined(self, until_ms: int) -> OtherColumns:
        """Return them as features."""
        del until_ms
        assert self.bars is not None
        return OtherColumns.of(self.bars.names, self.bars)

    @property
    def sha256(self) -> str:
        """The symbol: its candles are hashed with the others."""
        return self.symbol


class SideFiles(NamedTuple):
    """The files that are given beside candles: of covariates, or of order books."""

    covariates: Path | None
    depth: Sequence[Path]

    def read(self) -> CovariateInputs | BookInputs | None:
        """Read them; raise ``ConfigInvalid`` where both are given."""
        if self.covariates is not None and self.depth:
            raise ConfigInvalid(
                "A network learns from --covariates or from --depth beside its bars; give one of "
                "them."
            )
        if self.depth:
            return BookInputs.read(self.depth)
        return (
            None if self.covariates is None else CovariateInputs(read_covariates(self.covariates))
        )


def inputs_of(card: Mapping[str, Any], given: SideInputs | None) -> SideInputs | None:
    """Return the inputs of *given* that the model of *card* reads beside its bars."""
    if symbol := other_of(card):
        return OtherInputs(symbol)
    return None if given is None else given.of_card(card)


def source_for(card: Mapping[str, Any], given: SideInputs | None) -> CovariateSource | None:
    """Return the source that the model of *card* is built with, of what is *given*.

    Raises ``ConfigInvalid`` or ``DataInvalid`` where the model needs another, or none.
    """
    reading = reading_of(card)
    if reading is not None and not isinstance(given, BookInputs):
        raise ConfigInvalid(
            f"The model was trained with order books of {reading.words}; give files of them by "
            "--depth, and none by --covariates."
        )
    if given is not None and (symbol := other_of(card)):
        raise ConfigInvalid(
            f"The model asks {symbol}, whose candles --data gives; leave --covariates and --depth "
            "out."
        )
    if isinstance(given, CovariateInputs):
        return given.file.standing(vector_scale(card).columns if takes_vectors(card) else ())
    return given.of_card(card).source if isinstance(given, BookInputs) else None
