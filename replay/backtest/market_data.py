"""``MarketData``, the inputs of a run, and how each source is read, replayed, changed and hashed.

A new source needs a reader and a row in ``SOURCES``. ``lookahead`` makes the changes
(docs/strategies.md, U8).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from itertools import chain, product
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tracepaper.daemon.config.loading import load_with_origins
from tracepaper.daemon.config.market import MarketSection
from tracepaper.daemon.config.values import STOCK
from tracepaper.replay.archive import Candles, FundingRates, merge_candles, read_funding
from tracepaper.replay.archive.books import RecordedDepth, read_depth
from tracepaper.replay.archive.candles import Span
from tracepaper.replay.archive.read import CandleInput, NamedFrame, read_candles
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.replay.backtest.tracks import (
    BarSpan,
    Track,
    candle_tracks,
    depth_tracks,
    frame_tracks,
    funding_tracks,
)
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import iso


class SourceReader(NamedTuple):
    """The options and configuration that control how files are read."""

    spec: RunSpec
    market: MarketSection
    frame_symbol: str | None  # the symbol of a frame without one
    candles: tuple[Candles, ...] = ()  # already read


class Cutoff(NamedTuple):
    """The end of what is known at the close of the bars that opened at ``at_ms``."""

    at_ms: int
    close_ms: int
    cut: bool  # whether later data are removed; else they are corrupted


class MarketSource(NamedTuple):
    """A source of data; ``digest`` takes one of its items."""

    read: Callable[[Sequence[Any], SourceReader], Sequence[Any]]  # paths, or data read before
    tracks: Callable[[Sequence[Any], BarSpan], list[Track]]
    until: Callable[[Sequence[Any], Cutoff], Sequence[Any]]
    digest: Callable[[Any], str]  # SHA-256 of all that affects a run


# ---------------------------------------------------------------- candles


def _read_candles(given: Sequence[CandleInput], reading: SourceReader) -> list[Candles]:
    """Read candles; the files of a share are joined, so that its sessions are those of all."""
    candles = [_candles(item, reading) for item in given]
    if any(part.category is Category.STOCK for part in candles):
        return merge_candles(candles)
    return candles


def _candles(item: CandleInput, reading: SourceReader) -> Candles:
    spec, is_share = reading.spec, reading.market.asset == STOCK
    if isinstance(item, NamedFrame):
        item = item._replace(symbol=item.symbol or reading.frame_symbol)
    category = Category.STOCK if is_share else spec.category
    return read_candles(item, category=category, columns=spec.columns)


def _candles_until(given: Sequence[Candles], cutoff: Cutoff) -> list[Candles]:
    """Remove the later candles, or corrupt them: prices tenfold, volumes zero."""
    if cutoff.cut:
        kept = [part[part.open_time_ms <= cutoff.at_ms] for part in given]
        return [part for part in kept if len(part)]
    changed = []
    for part in given:
        later = part.open_time_ms > cutoff.at_ms
        factor = np.where(later, 10, 1)
        nonsense = replace(
            part,
            open=part.open * factor,
            high=part.high * factor * np.where(later, 2, 1),
            close=part.close * factor,
            volume=np.where(later, 0, part.volume),
        )
        changed.append(nonsense)
    return changed


def _frames_until(given: Sequence[Candles], cutoff: Cutoff) -> list[Candles]:
    closed = [part[part.closes_ms <= cutoff.close_ms] for part in given]
    return [part for part in closed if len(part)]


# ---------------------------------------------------------------- funding


def _read_funding(
    given: Sequence[Path | FundingRates], _reading: SourceReader
) -> list[FundingRates]:
    return [read_funding(item) if isinstance(item, Path) else item for item in given]


def _funding_sha256(rates: FundingRates) -> str:
    digest = hashlib.sha256(rates.symbol.encode())
    for column in (rates.time_ms, rates.rate, rates.interval_ms):
        digest.update(b"" if column is None else column.tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- order books


def _read_depth(
    given: Sequence[Path | RecordedDepth], reading: SourceReader
) -> list[RecordedDepth]:
    """Read order books; reject a file that has none within the candles of the period."""
    books = [read_depth(item) if isinstance(item, Path) else item for item in given]
    from_ms, until_ms = reading.spec.from_ms, reading.spec.until_ms
    for recorded, part in product(books, reading.candles):
        if part.instrument != recorded.header.instrument.id or not len(part):
            continue
        begin_ms, end_ms = max(int(part.open_time_ms[0]), from_ms or 0), part.until_ms
        end_ms = end_ms if until_ms is None else min(end_ms, until_ms)
        first, last = np.searchsorted(recorded.times, (begin_ms, end_ms), side="right").tolist()
        if begin_ms < end_ms and first == last:
            raise DataInvalid(
                f"--depth holds books of {part.instrument} from {iso(int(recorded.times[0]))} "
                f"to {iso(int(recorded.times[-1]))}, and the bars are of {iso(begin_ms)} to "
                f"{iso(end_ms)}; give books and candles of one time."
            )
    return books


def _depth_until(given: Sequence[RecordedDepth], cutoff: Cutoff) -> list[RecordedDepth]:
    """Remove the later books, or corrupt them."""
    if cutoff.cut:
        return [replace(recorded, until_ms=cutoff.close_ms) for recorded in given]
    return [replace(recorded, known_ms=cutoff.close_ms) for recorded in given]


SOURCES: Final[Mapping[str, MarketSource]] = {
    "frames": MarketSource(
        read=lambda given, reading: [_candles(item, reading) for item in given],
        tracks=frame_tracks,
        until=_frames_until,
        digest=attrgetter("sha256"),
    ),
    "depth": MarketSource(
        read=_read_depth,
        tracks=depth_tracks,
        until=_depth_until,
        digest=lambda books: books.sha256,
    ),
    "candles": MarketSource(
        read=_read_candles,
        tracks=candle_tracks,
        until=_candles_until,
        digest=attrgetter("sha256"),
    ),
    "funding": MarketSource(
        read=_read_funding,
        tracks=funding_tracks,
        until=lambda given, cutoff: [
            rates.select(rates.time_ms <= cutoff.close_ms) for rates in given
        ],
        digest=_funding_sha256,
    ),
}
"""By the field of ``MarketSpec``; events of one time follow the order of the rows."""


@dataclass(frozen=True, eq=False)
class MarketData:
    """Candles, and other recorded data of their market; ``SOURCES`` has a row for each."""

    candles: Sequence[Candles]
    _: KW_ONLY
    funding: Sequence[FundingRates] = ()
    frames: Sequence[Candles] = ()  # of higher timeframes, from before the candles
    depth: Sequence[RecordedDepth] = ()  # order books; a bar reads those until its close

    @classmethod
    def read(cls, spec: RunSpec) -> Self:
        """Read the data of *spec*; raise ``DataInvalid`` or ``ConfigInvalid`` if implausible."""
        config, origins = load_with_origins(spec.given, spec.sections, caller=spec.caller)
        symbols = config.market.symbols
        is_chosen = ("market", "symbols") in origins and len(symbols) == 1
        reading = SourceReader(spec, config.market, symbols[0] if is_chosen else None)
        candles = tuple(SOURCES["candles"].read(spec.candles, reading))
        reading = reading._replace(candles=candles)
        rest = [field.name for field in fields(cls) if field.name != "candles"]
        return cls(
            candles,
            **{name: tuple(SOURCES[name].read(getattr(spec, name), reading)) for name in rest},
        )

    def within(self, spec: RunSpec) -> RunSpec:
        """Return *spec* with these data in place of file names."""
        data: dict[str, Any] = {
            field.name: tuple(getattr(self, field.name)) for field in fields(self)
        }
        return replace(spec, columns=(), **data)

    def of(self, symbols: Collection[str]) -> Self:
        """Return the data of *symbols* alone."""
        return replace(
            self,
            candles=[part for part in self.candles if part.symbol in symbols],
            funding=[rates for rates in self.funding if rates.symbol in symbols],
            frames=[part for part in self.frames if part.symbol in symbols],
            depth=[books for books in self.depth if books.header.instrument.symbol in symbols],
        )

    def _changed(self, change: Callable[[MarketSource, Sequence[Any]], Sequence[Any]]) -> Self:
        changed: dict[str, Any] = {
            field: change(source, getattr(self, field)) for field, source in SOURCES.items()
        }
        return replace(self, **changed)

    @property
    def opens_ms(self) -> NDArray[np.int64]:
        """The distinct open times of all bars, ascending."""
        return np.unique(np.concatenate([part.open_time_ms for part in self.candles]))

    @property
    def bounds(self) -> Span:
        """When the first bar opens, and the last one ends."""
        first_ms = min(int(part.open_time_ms[0]) for part in self.candles)
        return first_ms, max(part.until_ms for part in self.candles)

    @property
    def span_ms(self) -> int:
        """The longest span of a symbol's candles, in milliseconds.

        Of shares only time within sessions counts.
        """
        joined = merge_candles(self.candles)
        return max((int(part.steps.sum()) + 1) * part.interval_ms for part in joined)

    def close_of(self, at_ms: int) -> int:
        """Return the latest close of the bars that opened at *at_ms*."""
        return max(
            int(part.closes_ms[np.searchsorted(part.open_time_ms, at_ms)])
            for part in self.candles
            if at_ms in part.open_time_ms
        )

    def until(self, at_ms: int, *, cut: bool) -> Self:
        """Return the data known at the close of the bars that opened at *at_ms*.

        Later data are removed if *cut*, else corrupted.
        """
        cutoff = Cutoff(at_ms, self.close_of(at_ms), cut)
        return self._changed(lambda source, given: source.until(given, cutoff))

    def opening(self, from_ms: int, until_ms: int | None = None) -> Self:
        """Keep only the candles that open from *from_ms* until *until_ms*, both included."""
        cut = []
        for part in self.candles:
            first, last = int(np.searchsorted(part.open_time_ms, from_ms)), len(part)
            if until_ms is not None:
                last = int(np.searchsorted(part.open_time_ms, until_ms, side="right"))
            cut.append(part[first:last])
        return replace(self, candles=[part for part in cut if len(part)])

    def first(self, bars: int) -> Self:
        """Keep the first *bars* candles of each symbol."""
        return replace(self, candles=[part[:bars] for part in self.candles])

    def tracks(self, bars: BarSpan) -> list[Track]:
        """Return the events of every source, placed between *bars*."""
        of_each = (source.tracks(getattr(self, field), bars) for field, source in SOURCES.items())
        return list(chain.from_iterable(of_each))

    def sha256(self) -> dict[str, str]:
        """Return the hash of each source with data, independent of the order of its files."""
        return {
            field: hashlib.sha256("".join(sorted(map(source.digest, given))).encode()).hexdigest()
            for field, source in SOURCES.items()
            if (given := getattr(self, field))
        }
