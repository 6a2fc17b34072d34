"""Recorded order books that fill the orders of a replay.

Every frame is read, but only frames that can change an order or its place in a queue become events.
That depends on the open orders, so events must not be read ahead of the engine.

The rules are docs/money.md, M61 to M77.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from tracepaper.daemon.bybit.order_book import frame_of
from tracepaper.daemon.feed.book_follower import SILENT, BookFollower, ReadFrame, Silence, Watch
from tracepaper.replay.archive.books import RecordedDepth
from tracepaper.replay.archive.events import EventsFile
from tracepaper.replay.backtest.tracks import Scale, depth_scales, reject_named, scale_of
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import SILENT_MS
from tracepaper.strategies.types.market import (
    Bar,
    BookUpdate,
    CloseStart,
    Event,
    Instrument,
)
from tracepaper.strategies.units import iso

SAMPLED_BOOKS: Final = 1_024
"""Sampled books read at once."""


class FillSource(Protocol):
    """A recording of the order book of one instrument."""

    is_sampled: bool
    instrument_id: str
    first_ms: int
    last_ms: int
    torn: str  # which part of the file is left out, in words; empty if none

    def frames(self, instrument: Instrument) -> Iterator[ReadFrame]:
        """Yield every frame in the scales of *instrument*; each call begins at the first."""
        ...

    def gaps(self) -> tuple[int, int]:
        """Return the number of gaps and their total milliseconds."""
        ...


def with_silences(frames: Iterable[ReadFrame]) -> Iterator[ReadFrame]:
    """Yield *frames*, and a gap wherever no frame of the book follows within ``SILENT_MS``."""
    silence = Silence()
    for frame in frames:
        if (silent := silence.before(frame)) is not None:
            yield silent
        yield frame
    if (silent := silence.until()) is not None:
        yield silent


class EventsSource:
    """A file of ``data record --events``, read once for its span and gaps.

    Raises ``DataInvalid`` for another kind of file, and for one without a frame of a book.
    """

    is_sampled = False

    def __init__(self, path: Path) -> None:
        file = EventsFile(path)
        self.path: Final = path
        self.header: Final = file.header
        self.instrument_id = file.header.instrument.id
        first = last = heard = lost = None
        self._gaps = self._missed_ms = 0
        for frame in with_silences(
            ReadFrame(at_ms, cause, ([], []) if is_book else None)
            for at_ms, cause, is_book in file.dates()
        ):
            if frame.cause:
                if heard is not None and lost is None:
                    lost = frame.at_ms if frame.cause == SILENT else heard
                continue
            heard = frame.at_ms
            if frame.book is None:
                continue
            first, last = heard if first is None else first, heard
            if lost is not None:
                self._gaps, self._missed_ms, lost = (
                    self._gaps + 1,
                    self._missed_ms + last - lost,
                    None,
                )
        if first is None or last is None:
            raise DataInvalid(
                f"{path} holds no frame of an order book, and nothing else fills orders; record "
                "one by `tracepaper data record --events`."
            )
        self.first_ms, self.last_ms = first, last
        self.torn = file.torn
        self.sha256: Final = file.sha256

    def gaps(self) -> tuple[int, int]:
        """Return the number of gaps and their total milliseconds."""
        return self._gaps, self._missed_ms

    def frames(self, instrument: Instrument) -> Iterator[ReadFrame]:
        """Yield every frame, checked as in the daemon; leave out block and RPI trades."""
        of = self.header.instrument
        price = scale_of(1, of.price_decimals, instrument.price_decimals, "prices", "--events")
        size = scale_of(1, of.quantity_decimals, instrument.quantity_decimals, "sizes", "--events")
        is_same = price == size == Scale()
        for line, read in EventsFile(self.path).received():
            if read is None:
                yield ReadFrame(line.received_ms, line.cause)
                continue
            frame = frame_of(read, line.data.encode(), of)
            yield frame if is_same else _mapped(frame, price.of, size.of)


def _mapped(frame: ReadFrame, price: Callable[[int], int], size: Callable[[int], int]) -> ReadFrame:
    """Return *frame* with its prices and sizes mapped."""
    book, best = frame.book, frame.best
    if book is not None:
        bids, asks = ([(price(ticks), size(lots)) for ticks, lots in side] for side in book)
        book = (bids, asks)
    return frame._replace(
        book=book,
        best=None if best is None else (price(best[0]), price(best[1])),
        trades=[(taker, price(ticks), size(lots)) for taker, ticks, lots in frame.trades],
    )


class ChangedSource:
    """A source changed after *known_ms*, for ``lookahead``.

    Frames after *known_ms* are removed if *cut*, else their sizes are multiplied by 1,000.
    """

    torn = ""

    def __init__(self, source: FillSource, known_ms: int, *, cut: bool) -> None:
        self._source, self._known_ms, self._cuts = source, known_ms, cut
        self.is_sampled, self.instrument_id = source.is_sampled, source.instrument_id
        self.first_ms, self.last_ms = source.first_ms, source.last_ms
        self.gaps = source.gaps

    def frames(self, instrument: Instrument) -> Iterator[ReadFrame]:
        """Yield every changed frame."""
        for frame in self._source.frames(instrument):
            if frame.at_ms <= self._known_ms:
                yield frame
            elif self._cuts:
                return
            else:
                yield _mapped(frame, int, (1_000).__mul__)


class SampledSource:
    """Sampled books of ``data record``: snapshots, with nothing known between them."""

    is_sampled = True
    torn = ""

    def __init__(self, depth: RecordedDepth) -> None:
        self._depth = depth
        self.instrument_id = depth.header.instrument.id
        self.first_ms, self.last_ms = int(depth.times[0]), int(depth.times[-1])

    def gaps(self) -> tuple[int, int]:
        """Return the number of gaps and their total milliseconds."""
        starts = [start for start in self._depth.starts.tolist() if start]
        times = self._depth.times
        return len(starts), sum(int(times[start] - times[start - 1]) for start in starts)

    def frames(self, instrument: Instrument) -> Iterator[ReadFrame]:
        """Yield every book as a snapshot, with a gap before each that follows an interruption."""
        depth = self._depth
        price, size = depth_scales(depth, instrument)
        causes = dict(zip(depth.starts.tolist(), depth.causes, strict=True))
        for start in range(0, len(depth.times), SAMPLED_BOOKS):
            books = depth.part(start, min(start + SAMPLED_BOOKS, len(depth.times)))
            of_books = (books.seen_ms, price.of(books.price), size.of(books.size))
            for row, (at_ms, prices, sizes) in enumerate(zip(*map(_plain, of_books), strict=True)):
                if cause := causes.get(start + row, "") if start + row else "":
                    yield ReadFrame(at_ms, cause)
                sides = tuple(
                    [pair for pair in zip(side_prices, side_sizes, strict=True) if pair[1]]
                    for side_prices, side_sizes in zip(prices, sizes, strict=True)
                )
                yield ReadFrame(
                    at_ms, "", (sides[0], sides[1]), is_snapshot=True,
                    best=(prices[0][0], prices[1][0]),
                )  # fmt: skip


def _plain(numbers: object) -> list:  # type: ignore[type-arg]
    return numbers.tolist()  # type: ignore[attr-defined]


class _SourceBook(BookFollower):
    """The book of one instrument at the current time of the replay, and its source's next frame."""

    def __init__(self, source: FillSource, instrument: Instrument, response_ms: int) -> None:
        super().__init__(instrument.id, response_ms, is_sampled=source.is_sampled)
        self._handed_on_ms = response_ms
        frames = source.frames(instrument)
        self._frames = iter(frames if source.is_sampled else with_silences(frames))
        self.next: ReadFrame | None = next(self._frames, None)

    def is_due(self, until_ms: int) -> bool:
        """Return whether the next frame is due by *until_ms*."""
        return self.next is not None and self.next.at_ms + self._handed_on_ms <= until_ms

    def take(self) -> ReadFrame:
        """Return the next frame, and advance."""
        frame = self.next
        assert frame is not None
        self.next = next(self._frames, None)
        return frame

    def skip(self, frames: int, until_ms: int) -> None:
        """Apply the first *frames* frames, which the run has processed, and all due by then."""
        while self.next is not None and (self.frame < frames or self.is_due(until_ms)):
            frame = self.take()
            self.apply(frame, None)
            if not frame.cause and self.frame <= frames:
                self.resume()


class BookFeed:
    """The order books of a replay: yields the updates that can change an order between its bars.

    A frame is due *response_ms* after its time. Frames due by a bar's close precede that bar.
    """

    def __init__(
        self, sources: Sequence[FillSource], instruments: Sequence[Instrument], response_ms: int
    ) -> None:
        self.sources: Final = tuple(sources)
        self._instruments = {item.id: item for item in instruments}
        self._response_ms = response_ms

    def between(
        self,
        events: Iterable[Event],
        watch: Watch,
        *,
        frames_read: Callable[[str], int] = lambda _instrument: 0,
        known_ms: int = 0,
    ) -> Iterator[Event]:
        """Yield *events* and, before each bar, the book updates that can change an order.

        *watch* is called after each event. Frames that a resumed run has processed yield no update:
        the first *frames_read* of an instrument, and those due by *known_ms*.
        """
        followed = [
            _SourceBook(source, self._instruments[source.instrument_id], self._response_ms)
            for source in self.sources
        ]
        for book in followed:
            book.skip(frames_read(book.key), known_ms)
        for event in events:
            for book in followed:
                book.forget()
            if isinstance(event, Bar | CloseStart):
                yield from self._until(event.market_ms, followed, watch)
            yield event

    def _until(
        self, until_ms: int, followed: Sequence[_SourceBook], watch: Watch
    ) -> Iterator[BookUpdate]:
        """Yield the updates of all frames due by *until_ms*, in the order of their times."""
        while due := [book for book in followed if book.is_due(until_ms)]:
            earliest = min(due, key=_date)
            yield from earliest.advance(earliest.take(), watch)
        for book in followed:
            yield from book.arrivals(until_ms, watch)
            yield from book.rest()

    def warnings(self, from_ms: int, until_ms: int) -> tuple[str, ...]:
        """Return what the books lack from *from_ms* to *until_ms*, in words without a full stop."""
        texts = []
        for source in self.sources:
            count, missed_ms = source.gaps()
            if count:
                texts.append(
                    f"the book of {source.instrument_id} has {count:,} gaps of "
                    f"{missed_ms / 1000:,.1f} s in all: nothing is filled in one, and after it "
                    "what rests is at the back of its queue"
                )
            if source.first_ms - from_ms > SILENT_MS:
                texts.append(
                    f"the book of {source.instrument_id} begins at {iso(source.first_ms)}: nothing "
                    "is filled before it"
                )
            if until_ms - source.last_ms > SILENT_MS:
                texts.append(
                    f"the book of {source.instrument_id} ends at {iso(source.last_ms)}: nothing is "
                    "filled more than a minute after it"
                )
        return tuple(texts)


def _date(followed: _SourceBook) -> int:
    return followed.next.at_ms if followed.next is not None else 0


def reject_books(
    sources: Sequence[FillSource], instruments: Sequence[Instrument], from_ms: int, until_ms: int
) -> None:
    """Raise ``ConfigInvalid`` or ``DataInvalid`` for books that cannot fill this run's orders."""
    named = [source.instrument_id for source in sources]
    traded = [item.id for item in instruments]
    reject_named("--events", named, traded)
    for key in traded:
        if key not in named:
            raise ConfigInvalid(
                f"execution.model 'book' needs the book of {key}; give its file by --events."
            )
    items = {item.id: item for item in instruments}
    for source in sources:
        next(source.frames(items[source.instrument_id]), None)  # raises where decimals do not fit
        if source.last_ms < from_ms or source.first_ms > until_ms:
            raise DataInvalid(
                f"The book of {source.instrument_id} is of {iso(source.first_ms)} to "
                f"{iso(source.last_ms)}, and the bars are of {iso(from_ms)} to {iso(until_ms)}; "
                "give books and candles of one time."
            )
