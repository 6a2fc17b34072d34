"""Side inputs of networks: covariates, order books, or another symbol's bars.

The rules are docs/models.md, L63, and docs/orderbook.md, D21 to D23.
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
"""A model that was fitted to fewer days of depth, without gaps, is not judged."""
JUDGED_SOURCE: Final = "exchange"


def untrained_by(recorded_ms: int, sources: Collection[str]) -> list[str]:
    """Return why a model fitted to these recordings counts as untrained; empty if it does not."""
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


def require_reading(path: Path, reading: BookReading, wanted: BookReading) -> None:
    """Raise ``DataInvalid`` if the *reading* of *path* is too shallow or has another pace."""
    if reading.levels < wanted.levels or reading.every_ms != wanted.every_ms:
        raise DataInvalid(
            f"{path} holds {reading.words}, and the model reads {wanted.words}; record these, or "
            "train on this file."
        )


def read_stored(paths: Sequence[Path]) -> list[tuple[Path, RecordedDepth]]:
    """Read files of books with the same depth and pace, oldest first.

    Raises ``DataInvalid`` for damage, for files that differ in depth or pace, and for files of one
    instrument that overlap or differ in units.
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
        instruments = (each.header.instrument for each in (file, older))
        units = {(each.price_decimals, each.quantity_decimals) for each in instruments}
        if len(units) > 1:
            raise DataInvalid(
                f"{path} has {header.instrument.id} in other units than {before.name}; the "
                "exchange changed its filters between them, so leave one out."
            )
    return files


class SideInputs(ABC):
    """Inputs besides the bars, and their standardisation."""

    torn: Sequence[str] = ()
    """Sentences about incomplete files of a killed recorder (D4)."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """The hash of the source."""

    def of_card(self, card: Mapping[str, Any]) -> SideInputs | None:
        """Return the inputs with *card*'s columns and scale; None if its model takes none."""
        del card
        return self

    def of_bars(self, segments: Sequence[Segment], names: tuple[str, ...]) -> Self:
        """Return the inputs for the bars of *segments*, with features *names*.

        Raises ``DataInvalid`` if they do not fit the bars.
        """
        del segments, names
        return self

    @abstractmethod
    def joined(self, until_ms: int) -> CovariateColumns:
        """Return the inputs as features; a missing scale is fitted before *until_ms*."""

    def untrained(self) -> list[str]:
        """Return why a model fitted to them counts as untrained; empty if it does not."""
        return []

    def section(self, scale: CovariateScale) -> dict[str, Any]:
        """Return the part of a card's ``[features]`` that describes the inputs."""
        del scale
        return {}


@dataclass(frozen=True)
class CovariateInputs(SideInputs):
    """A user's covariates; ``scale`` is None before it is fitted."""

    file: CovariateFile
    scale: CovariateScale | None = None

    @property
    def sha256(self) -> str:
        """The hash of the file."""
        return self.file.sha256

    def of_card(self, card: Mapping[str, Any]) -> Self | None:
        """Return the covariates with *card*'s scale; None if its model takes none."""
        return replace(self, scale=vector_scale(card)) if takes_vectors(card) else None

    def section(self, scale: CovariateScale) -> dict[str, Any]:
        """Return ``[features.vectors]`` of a card."""
        file = {"file": self.file.path.name, "sha256": self.file.sha256}
        return {"vectors": {**file, **scale.section()}}

    def joined(self, until_ms: int) -> CovariateColumns:
        """Return the covariates as features."""
        columns, scale = self.file.columns, self.scale
        if scale is None:
            rows = list(self.file.chosen(columns).values())
            scale = CovariateScale.fitted(columns, rows, until_ms)
        return CovariateColumns(scale, self.file.standing(scale.columns))


class DepthRows:
    """A ``CovariateSource`` of recorded books: a row of features for each bar.

    A row comes from the newest book at or before the close and the book before that. Rows are
    computed in parts and cached.
    """

    _AT_ONCE: Final = 256

    def __init__(self, files: Mapping[str, Sequence[RecordedDepth]], reading: BookReading) -> None:
        """Read *files* of each symbol, oldest first."""
        self.name: Final = ""
        self._files, self._reading = files, reading
        self._kept: dict[str, dict[int, tuple[int, Floats] | None]] = {}

    def at(self, symbol: str, closes_ms: Ids) -> JoinedRows:
        """Return the rows of *symbol* at the closes *closes_ms*."""
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
            dated = zip(newest.seen_ms.tolist(), rows, strict=True)
            by_close |= dict(zip(closes_ms[cut].tolist(), dated, strict=True))
        return by_close


@dataclass(frozen=True)
class BookInputs(SideInputs):
    """Recorded books with one depth and pace, of any number of symbols.

    ``scale`` is None before it is fitted.
    """

    paths: tuple[Path, ...]
    files: Mapping[str, Sequence[RecordedDepth]]  # by symbol, oldest first
    reading: BookReading
    source: DepthRows = field(compare=False)
    scale: CovariateScale | None = None
    bars: Mapping[str, Ids] = field(default_factory=dict, compare=False)
    """The closes of each symbol's bars at the model's interval."""

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Self:
        """Read *paths* with ``read_stored``."""
        files: dict[str, list[RecordedDepth]] = {}
        stored = [file for _, file in read_stored(paths)]
        for file in stored:
            files.setdefault(file.header.instrument.symbol, []).append(file)
        reading = BookReading(stored[0].header.levels, stored[0].header.every_ms)
        return cls(tuple(paths), files, reading, DepthRows(files, reading))

    def of_card(self, card: Mapping[str, Any]) -> Self:
        """Return the books with *card*'s depth, pace and scale.

        Raises ``ConfigInvalid`` for a model without books, and ``DataInvalid`` for books that are
        too shallow or have another pace.
        """
        wanted = reading_of(card)
        if wanted is None:
            raise ConfigInvalid("The model was trained without order books; leave --depth out.")
        require_reading(self.paths[0], self.reading, wanted)
        source = DepthRows(self.files, wanted)
        return replace(self, reading=wanted, source=source, scale=scale_of(card))

    def of_bars(self, segments: Sequence[Segment], names: tuple[str, ...]) -> Self:
        """Return the books for the bars of *segments*.

        Raises ``DataInvalid`` for fewer books than bars, or another market.
        """
        del names
        traded = {segment.candles.symbol: segment.candles.instrument for segment in segments}
        for symbol, group in self.files.items():
            for file in group:
                instrument = file.header.instrument.id
                if instrument != traded.get(symbol, instrument):
                    raise DataInvalid(
                        f"--depth holds books of {instrument}, and the candles are of "
                        f"{traded[symbol]}; give books and candles of one market."
                    )
        if self.reading.every_ms > segments[0].interval_ms:
            raise DataInvalid(
                f"{self.paths[0]} holds a book each {self.reading.every_ms:,} ms, longer than a "
                "bar; record more often, or give candles of longer bars."
            )
        closes: dict[str, list[Ids]] = {}
        for segment in segments:
            closes.setdefault(segment.candles.symbol, []).append(segment.close_time_ms)
        bars = {symbol: np.concatenate(each) for symbol, each in closes.items()}
        return replace(self, bars=bars)

    def joined(self, until_ms: int) -> CovariateColumns:
        """Return the books as features."""
        scale = self.scale
        if scale is None:
            rows = [self.source.at(symbol, closes) for symbol, closes in self.bars.items()]
            scale = CovariateScale.fitted(self.reading.columns, rows, until_ms, PREFIX)
        return CovariateColumns(scale, self.source)

    @property
    def sha256(self) -> str:
        """The hash of all files."""
        hashes = [file.sha256 for group in self.files.values() for file in group]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    @property
    def recorded_ms(self) -> int:
        """The recorded time at bars, without gaps, of the symbol with the shortest."""
        durations = []
        for symbol, closes_ms in self.bars.items():
            books = sum(len(file.times) for file in self.files.get(symbol, ()))
            rows = int(np.isfinite(self.source.at(symbol, closes_ms).values).all(axis=1).sum())
            bar_ms = int(np.diff(closes_ms).min()) if len(closes_ms) > 1 else 0
            durations.append(min(books * self.reading.every_ms, rows * bar_ms))
        return min(durations, default=0)

    @property
    def torn(self) -> list[str]:  # type: ignore[override]
        """Sentences about incomplete files of a killed recorder (D4)."""
        return [file.torn for group in self.files.values() for file in group if file.torn]

    def untrained(self) -> list[str]:
        """Return why a model fitted to them counts as untrained; empty if it does not."""
        sources = {file.header.source for group in self.files.values() for file in group}
        return untrained_by(self.recorded_ms, sources)

    def section(self, scale: CovariateScale) -> dict[str, Any]:
        """Return the part of a card's ``[features]`` that describes the books."""
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
    """Another symbol's bars, which the candles include; ``bars`` is None before they are read."""

    symbol: str
    bars: KnownOtherBars | None = None

    def of_bars(self, segments: Sequence[Segment], names: tuple[str, ...]) -> Self:
        """Return the inputs with the symbol's bars of *segments*, with features *names*.

        Raises ``DataInvalid`` if there are none, or if no bar of another symbol closes with one of
        them.
        """
        matching = [segment for segment in segments if segment.candles.symbol == self.symbol]
        if not matching:
            raise DataInvalid(
                f"The network reads {self.symbol} too, and no --data holds enough bars of it "
                f"without a gap; give candles of {self.symbol} of the same time as well."
            )
        matching.sort(key=lambda segment: int(segment.open_time_ms[0]))
        closes = np.concatenate([segment.close_time_ms[segment.first :] for segment in matching])
        closes, first = np.unique(closes, return_index=True)  # files may overlap
        values = np.concatenate([segment.values[segment.first :] for segment in matching])[first]
        if not any(
            np.isin(segment.close_time_ms[segment.first :], closes).any()
            for segment in segments
            if segment.candles.symbol != self.symbol
        ):
            raise DataInvalid(
                f"The network forecasts other symbols than {self.symbol}, and --data holds no bars "
                "of another symbol at the same time; give those as well."
            )
        return replace(self, bars=KnownOtherBars(self.symbol, names, closes, values))

    def joined(self, until_ms: int) -> OtherColumns:
        """Return the symbol's bars as features."""
        del until_ms
        assert self.bars is not None
        return OtherColumns.of(self.bars.names, self.bars)

    @property
    def sha256(self) -> str:
        """The symbol; its candles are hashed with all candles."""
        return self.symbol


class SideFiles(NamedTuple):
    """The files of side inputs: covariates, which may be a frame, or order books."""

    covariates: Any
    depth: Sequence[Path]

    def read(self) -> CovariateInputs | BookInputs | None:
        """Read the files; raise ``ConfigInvalid`` if both kinds are given."""
        if self.covariates is not None and self.depth:
            raise ConfigInvalid("A network takes either --covariates or --depth; give one of them.")
        if self.depth:
            return BookInputs.read(self.depth)
        if self.covariates is None:
            return None
        return CovariateInputs(read_covariates(self.covariates))


def inputs_of(card: Mapping[str, Any], given: SideInputs | None) -> SideInputs | None:
    """Return the side inputs of *card*'s model, from *given* or another symbol's bars."""
    if symbol := other_of(card):
        return OtherInputs(symbol)
    return None if given is None else given.of_card(card)


def source_for(card: Mapping[str, Any], given: SideInputs | None) -> CovariateSource | None:
    """Return the source of *given* inputs to build *card*'s model with.

    Raises ``ConfigInvalid`` or ``DataInvalid`` if the model needs other inputs, or none.
    """
    reading = reading_of(card)
    if reading is not None and not isinstance(given, BookInputs):
        raise ConfigInvalid(
            f"The model was trained with order books of {reading.words}; give files of them by "
            "--depth, and none by --covariates."
        )
    if given is not None and (symbol := other_of(card)):
        raise ConfigInvalid(
            f"The model reads {symbol} too, from --data; leave --covariates and --depth out."
        )
    if isinstance(given, CovariateInputs):
        return given.file.standing(vector_scale(card).columns if takes_vectors(card) else ())
    return given.of_card(card).source if isinstance(given, BookInputs) else None
