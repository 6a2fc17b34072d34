"""Recorded order books beside the bars of a replay, for orders that a book fills.

Every frame is read; an event is made of those alone that can change an order or its place in a
queue. So nothing may be read ahead: an event is drawn once the engine has dealt with the last one.

The rules are docs/money.md, M61 to M77.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from tracepaper.daemon.broker.book_account import BookWatch
from tracepaper.daemon.broker.book_fills import BookLevel, BookMoves, Move, packed_moves
from tracepaper.daemon.bybit.instruments import exact
from tracepaper.daemon.bybit.messages import decode_book, decode_trades
from tracepaper.daemon.bybit.order_book import SILENT_MS
from tracepaper.daemon.bybit.wire import Book
from tracepaper.replay.archive.book_events import EventsFile
from tracepaper.replay.archive.order_book import DepthSource
from tracepaper.replay.backtest.feed import BEGUN, Scale, scale_of
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.market import (
    Bar,
    BookUpdate,
    Closed,
    Event,
    Instrument,
    Quote,
    Side,
)
from tracepaper.strategies.units import iso

MOVES_MOST: Final = 4_096
"""Moves that one event holds at most."""
SAMPLED_BOOKS: Final = 1_024
"""Sampled books read at once."""
SILENT: Final = "silent"
"""The cause of a gap in which no frame of the book came, though none is missing."""
_TAKERS: Final = {"Buy": Side.BUY, "Sell": Side.SELL}
Sides = tuple[list[tuple[int, int]], list[tuple[int, int]]]


class ReadFrame(NamedTuple):
    """One frame of a source, in the decimals of the run: of the book, of trades, or a gap."""

    at_ms: int
    cause: str = ""  # of a gap; what it holds beside comes after it
    book: Sides | None = None  # levels of bids and asks that are set; size 0 removes one
    is_snapshot: bool = False
    best: tuple[int, int] | None = None  # the best bid and ask after it; None while a side is empty
    trades: Sequence[tuple[Side, int, int]] = ()  # side of the taker, price, size


class FillSource(Protocol):
    """Where the book of one instrument is read from."""

    is_sampled: bool
    instrument_id: str
    first_ms: int
    last_ms: int
    torn: str  # what of its file is left out; empty where nothing is

    def frames(self, instrument: Instrument) -> Iterator[ReadFrame]:
        """Yield every frame, from the first on at each call, counted as *instrument* is."""
        ...

    def gaps(self) -> tuple[int, int]:
        """Return how many gaps there are, and how many milliseconds they last."""
        ...


def with_silences(frames: Iterable[ReadFrame]) -> Iterator[ReadFrame]:
    """Yield *frames*, and a gap from ``SILENT_MS`` after each that no frame of the book follows."""
    at_ms, stands_ms = 0, None
    for frame in frames:
        if not frame.cause:
            at_ms = max(at_ms, frame.at_ms)
        if stands_ms is not None and max(at_ms, frame.at_ms) > stands_ms:
            yield ReadFrame(stands_ms + 1, SILENT)
            stands_ms = None
        if frame.cause:
            stands_ms = None
        elif frame.book is not None:
            stands_ms = at_ms + SILENT_MS
        yield frame
    if stands_ms is not None:
        yield ReadFrame(stands_ms + 1, SILENT)


class EventsSource:
    """A file of ``data record --events``; it is read once to know its span and its gaps.

    Raises ``DataInvalid`` where it is none, or holds no frame of a book.
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
        self.torn = file.torn_sentence()

    def gaps(self) -> tuple[int, int]:
        """Return how many gaps there are, and how many milliseconds they last."""
        return self._gaps, self._missed_ms

    def frames(self, instrument: Instrument) -> Iterator[ReadFrame]:
        """Yield every frame, checked as it was recorded; block and RPI trades are left out."""
        of = self.header.instrument
        prices, sizes = of.price_decimals, of.quantity_decimals
        price = scale_of(1, prices, instrument.price_decimals, "prices", "--events")
        size = scale_of(1, sizes, instrument.quantity_decimals, "sizes", "--events")
        is_same = price == size == Scale()
        for line, read in EventsFile(self.path).received():
            if read is None:
                yield ReadFrame(line.received_ms, line.cause)
                continue
            if isinstance(read, Book):
                data = decode_book(line.data.encode())
                sides = (
                    [(exact(one, prices), exact(two, sizes)) for one, two in data.data.b],
                    [(exact(one, prices), exact(two, sizes)) for one, two in data.data.a],
                )
                best = None if read.quote is None else (read.quote.bid, read.quote.ask)
                if not is_same:
                    bids, asks = (
                        [(price.one(one), size.one(two)) for one, two in side] for side in sides
                    )
                    sides = (bids, asks)
                    best = None if best is None else (price.one(best[0]), price.one(best[1]))
                is_snapshot = data.type == "snapshot" or data.data.u == 1
                yield ReadFrame(read.server_ms, "", sides, is_snapshot, best)
                continue
            trades = [
                (
                    _TAKERS[one.side],
                    price.one(exact(one.p, prices)),
                    size.one(exact(one.v, sizes)),
                )
                for one in decode_trades(line.data.encode()).data
                if not (one.is_block or one.is_rpi)
            ]
            yield ReadFrame(read.server_ms, trades=trades)


class ChangedSource:
    """A source of later times or other prices, or without what followed a time that is known.

    What follows it is cut off, or nonsense stands in its place: a thousand times as much. So
    ``lookahead`` changes the future.
    """

    torn = ""

    def __init__(
        self,
        source: FillSource,
        *,
        later_ms: int = 0,
        price_factor: int = 1,
        known_ms: int | None = None,
        cut: bool = False,
    ) -> None:
        self._source = source
        self._later_ms, self._factor = later_ms, price_factor
        self._known_ms, self._cuts = known_ms, cut
        self.is_sampled, self.instrument_id = source.is_sampled, source.instrument_id
        self.first_ms, self.last_ms = source.first_ms + later_ms, source.last_ms + later_ms
        self.gaps = source.gaps

    def frames(self, instrument: Instrument) -> Iterator[ReadFrame]:
        """Yield every frame as it is changed."""
        for frame in self._source.frames(instrument):
            is_known = self._known_ms is None or frame.at_ms <= self._known_ms
            if not is_known and self._cuts:
                return
            yield _changed(frame, self._later_ms, self._factor, 1 if is_known else 1_000)


def _changed(frame: ReadFrame, later_ms: int, factor: int, more: int) -> ReadFrame:
    """Return *frame* later, its prices times *factor*, with *more* times as much on its levels."""
    book, best = frame.book, frame.best
    if book is not None:
        bids, asks = ([(price * factor, size * more) for price, size in side] for side in book)
        book = (bids, asks)
    return frame._replace(
        at_ms=frame.at_ms + later_ms,
        book=book,
        best=None if best is None else (best[0] * factor, best[1] * factor),
        trades=[(taker, price * factor, size * more) for taker, price, size in frame.trades],
    )


class SampledSource:
    """Books of ``data record`` without events: each is a book, and nothing is known between."""

    is_sampled = True
    torn = ""

    def __init__(self, depth: DepthSource) -> None:
        self._depth = depth
        self.instrument_id = depth.header.instrument
        self.first_ms, self.last_ms = int(depth.times[0]), int(depth.times[-1])

    def gaps(self) -> tuple[int, int]:
        """Return how many gaps there are, and how many milliseconds they last."""
        starts = [start for start in self._depth.starts.tolist() if start]
        times = self._depth.times
        return len(starts), sum(int(times[start] - times[start - 1]) for start in starts)

    def frames(self, instrument: Instrument) -> Iterator[ReadFrame]:
        """Yield every book as a snapshot, a gap before each that does not go on."""
        depth = self._depth
        header, units = depth.header, depth.units
        price = scale_of(
            units.price, header.price_decimals, instrument.price_decimals, "prices", "--depth"
        )
        size = scale_of(
            units.size, header.quantity_decimals, instrument.quantity_decimals, "sizes", "--depth"
        )
        causes = dict(zip(depth.starts.tolist(), depth.causes, strict=True))
        for start in range(0, len(depth.times), SAMPLED_BOOKS):
            books = depth.part(start, min(start + SAMPLED_BOOKS, len(depth.times)))
            of_books = (books.seen_ms, price.of(books.price), size.of(books.size))
            for row, (at_ms, prices, sizes) in enumerate(zip(*map(_plain, of_books), strict=True)):
                if cause := causes.get(start + row, "") if start + row else "":
                    yield ReadFrame(at_ms, cause)
                sides = tuple(
                    [pair for pair in zip(one, two, strict=True) if pair[1]]
                    for one, two in zip(prices, sizes, strict=True)
                )
                yield ReadFrame(
                    at_ms, "", (sides[0], sides[1]), is_snapshot=True,
                    best=(prices[0][0], prices[1][0]),
                )  # fmt: skip


def _plain(numbers: object) -> list:  # type: ignore[type-arg]
    return numbers.tolist()  # type: ignore[attr-defined]


class _Followed:
    """The book of one instrument, frame by frame, and the moves that no event holds yet."""

    def __init__(self, source: FillSource, instrument: Instrument, response_ms: int) -> None:
        self.key = instrument.id
        self.frame = 0
        self.at_ms = 0
        self._is_sampled = source.is_sampled
        frames = source.frames(instrument)
        self._frames = iter(frames if self._is_sampled else with_silences(frames))
        self._response_ms = response_ms
        self._bids: dict[int, tuple[int, int]] = {}  # size, and the frame that set it
        self._asks: dict[int, tuple[int, int]] = {}
        self.best: tuple[int, int] | None = None
        self._cause = BEGUN
        self._moves: list[Move] = []
        self.next: ReadFrame | None = next(self._frames, None)

    def is_due(self, until_ms: int) -> bool:
        """Whether the next frame is handed on by *until_ms*."""
        return self.next is not None and self.next.at_ms + self._response_ms <= until_ms

    def skip(self, frames: int, until_ms: int) -> None:
        """Take in as many *frames*, with which events were made, and all until *until_ms*."""
        while self.next is not None and (self.frame < frames or self.is_due(until_ms)):
            is_frame = not self.next.cause
            self.apply(None)
            if is_frame and self.frame <= frames:
                self._cause = ""

    def advance(self, watch: Callable[[str], BookWatch]) -> Iterator[BookUpdate]:
        """Read the next frame; yield each event that it causes."""
        frame = self.next
        assert frame is not None
        seen = watch(self.key)
        if seen.rests and not self._is_sampled:
            # What was on its way by then met the book that stood at that time.
            while (arrives_ms := seen.arrives_ms) is not None and arrives_ms < frame.at_ms:
                if self.best is None:
                    break
                self.at_ms = max(self.at_ms, arrives_ms)
                yield self._update(is_whole=True)
                seen = watch(self.key)
        if frame.cause and self._moves:
            yield self._update(is_whole=False)
            seen = watch(self.key)
        fills = self.apply(seen)
        if self.best is None or not seen.rests:
            return
        acts = bool(self._cause) or self._is_sampled or seen.has_strangers
        acts = acts or seen.acts(self._quote())
        if acts or fills:  # a trade alone needs no level beyond the touch
            yield self._update(is_whole=acts or frame.book is not None)
        elif len(self._moves) >= MOVES_MOST:
            yield self._update(is_whole=False)

    def arrivals(self, until_ms: int, watch: Callable[[str], BookWatch]) -> Iterator[BookUpdate]:
        """Yield the events of orders that arrive by *until_ms*, all frames until then known."""
        until_ms -= self._response_ms
        seen = watch(self.key)
        while not self._is_sampled and (at_ms := seen.arrives_ms) is not None and at_ms <= until_ms:
            if self.best is None:
                break
            self.at_ms = max(self.at_ms, at_ms)
            yield self._update(is_whole=True)
            seen = watch(self.key)

    def rest(self) -> Iterator[BookUpdate]:
        """Yield what no event holds yet."""
        if self._moves and self.best is not None:
            yield self._update(is_whole=False)

    def apply(self, seen: BookWatch | None) -> bool:
        """Take in the next frame; return whether what happened in it fills an order of *seen*."""
        frame = self.next
        assert frame is not None
        self.next = next(self._frames, None)
        if frame.cause:
            self.best, self._cause = None, frame.cause
            if frame.cause != SILENT:  # nothing is missing: the next frame makes it whole
                self._bids.clear()
                self._asks.clear()
            return False
        self.frame += 1
        self.at_ms = max(self.at_ms, frame.at_ms)
        known = self.best is not None and not self._is_sampled
        queued = seen if seen is not None and seen.queued and known else None
        if frame.book is None:
            return queued is not None and self._trade(frame, queued)
        self._set(frame)
        if frame.best is None:
            self._cause = self._cause or "empty"
        self.best = frame.best
        if queued is not None and self.best is not None:
            self._follow(frame, queued)
        return False

    def _set(self, frame: ReadFrame) -> None:
        assert frame.book is not None
        number = self.frame
        for levels, changed in zip((self._bids, self._asks), frame.book, strict=True):
            if frame.is_snapshot:
                before = dict(levels)
                levels.clear()
                for price, size in changed:
                    was = before.get(price)
                    is_kept = self._is_sampled and was is not None and was[0] == size
                    levels[price] = was if is_kept and was is not None else (size, number)
                continue
            for price, size in changed:
                if size:
                    levels[price] = (size, number)
                else:
                    levels.pop(price, None)

    def _follow(self, frame: ReadFrame, seen: BookWatch) -> None:
        """Note the levels that *frame* set at the prices of limits."""
        assert frame.book is not None
        if frame.is_snapshot:
            changed = {at: self._levels(at[0]).get(at[1], (0, 0))[0] for at in seen.queued}
        else:
            pairs = zip((Side.BUY, Side.SELL), frame.book, strict=True)
            changed = {
                (side, price): size
                for side, levels in pairs
                for price, size in levels
                if (side, price) in seen.queued
            }
        for (side, price), size in changed.items():
            if size or self._is_in_view(side, price):
                move = Move(self.at_ms, side, price, size)
                seen.take(move)
                self._moves.append(move)

    def _trade(self, frame: ReadFrame, seen: BookWatch) -> bool:
        """Note the trades that reach the price of a limit; return whether they fill one."""
        fills = False
        for taker, price, size in frame.trades:
            if seen.concerns(Side.SELL if taker is Side.BUY else Side.BUY, price):
                move = Move(self.at_ms, taker, price, size, is_trade=True)
                fills = seen.take(move) or fills
                self._moves.append(move)
        return fills

    def _levels(self, side: Side) -> dict[int, tuple[int, int]]:
        return self._bids if side is Side.BUY else self._asks

    def _is_in_view(self, side: Side, price: int) -> bool:
        """Whether a level that is gone stood before the last one that is known."""
        known = self._levels(side)
        return price > min(known) if side is Side.BUY else price < max(known)

    def _quote(self) -> Quote:
        assert self.best is not None
        bid, ask = self.best
        bid_size, ask_size = self._bids[bid][0], self._asks[ask][0]
        return Quote(self.key, bid, bid_size, ask, ask_size, self.at_ms, self.at_ms)

    def _update(self, *, is_whole: bool) -> BookUpdate:
        assert self.best is not None
        bid, ask = self.best
        if is_whole:
            bids = tuple(
                BookLevel(one, *self._bids[one]) for one in sorted(self._bids, reverse=True)
            )
            asks = tuple(BookLevel(one, *self._asks[one]) for one in sorted(self._asks))
        else:
            bids, asks = (BookLevel(bid, *self._bids[bid]),), (BookLevel(ask, *self._asks[ask]),)
        cause, moves = self._cause, tuple(self._moves)
        self._cause = ""
        self._moves.clear()
        return BookUpdate(
            self.key,
            cause,
            self.frame,
            self._is_sampled,
            packed_moves(BookMoves(moves, bids, asks, is_whole)),
            self.at_ms,
            self.at_ms + self._response_ms,
        )


class BookFeed:
    """The books of a replay: what can change an order comes between its bars.

    A frame dated until a bar's close comes before that bar, later by *response_ms*.
    """

    def __init__(
        self, sources: Sequence[FillSource], instruments: Sequence[Instrument], response_ms: int
    ) -> None:
        self.sources: Final = tuple(sources)
        self._instruments = {item.id: item for item in instruments}
        self._response_ms = response_ms
        self._followed: Sequence[_Followed] = ()

    def between(
        self,
        events: Iterable[Event],
        watch: Callable[[str], BookWatch],
        *,
        known: Callable[[str], int] = lambda _instrument: 0,
        known_ms: int = 0,
    ) -> Iterator[Event]:
        """Yield *events* and, before each bar, what of the books can change an order.

        *watch* is asked after each event. Frames that the run has dealt with are taken in silently:
        as many as *known* says of an instrument, and those until *known_ms*.
        """
        followed = self._followed = [
            _Followed(source, self._instruments[source.instrument_id], self._response_ms)
            for source in self.sources
        ]
        for one in followed:
            one.skip(known(one.key), known_ms)
        watching = _Watching(watch)
        for event in events:
            if isinstance(event, Bar | Closed):
                for update in self._until(event.market_ms, followed, watching):
                    watching.forget(update.instrument)
                    yield update
            watching.forget()
            yield event
            watching.forget()

    def _until(
        self, until_ms: int, followed: Sequence[_Followed], watch: Callable[[str], BookWatch]
    ) -> Iterator[BookUpdate]:
        """Yield what all frames until *until_ms* cause, in the order of their dates."""
        while due := [one for one in followed if one.is_due(until_ms)]:
            yield from min(due, key=_date).advance(watch)
        for one in followed:
            yield from one.arrivals(until_ms, watch)
            yield from one.rest()

    def best(self, instrument: str) -> tuple[int, int] | None:
        """Return the best bid and ask of *instrument* as read so far; None where it has none."""
        return next((one.best for one in self._followed if one.key == instrument), None)

    def warnings(self, from_ms: int, until_ms: int) -> tuple[str, ...]:
        """Say what is missing of the books from *from_ms* to *until_ms*, without a full stop."""
        said = []
        for source in self.sources:
            count, missed_ms = source.gaps()
            if count:
                said.append(
                    f"the book of {source.instrument_id} has {count:,} gaps of "
                    f"{missed_ms / 1000:,.1f} s in all: nothing is filled in one, and after it "
                    "what rests is at the back of its queue"
                )
            if source.first_ms - from_ms > SILENT_MS:
                said.append(
                    f"the book of {source.instrument_id} begins at {iso(source.first_ms)}: nothing "
                    "is filled before it"
                )
            if until_ms - source.last_ms > SILENT_MS:
                said.append(
                    f"the book of {source.instrument_id} ends at {iso(source.last_ms)}: nothing is "
                    "filled more than a minute after it"
                )
        return tuple(said)


def _date(followed: _Followed) -> int:
    return followed.next.at_ms if followed.next is not None else 0


class _Watching:
    """Asks for a watch once after each event."""

    def __init__(self, watch: Callable[[str], BookWatch]) -> None:
        self._ask = watch
        self._known: dict[str, BookWatch] = {}

    def __call__(self, instrument: str) -> BookWatch:
        if (known := self._known.get(instrument)) is None:
            known = self._known[instrument] = self._ask(instrument)
        return known

    def forget(self, instrument: str | None = None) -> None:
        """Ask anew."""
        if instrument is None:
            self._known.clear()
        else:
            self._known.pop(instrument, None)


def refuse_books(
    sources: Sequence[FillSource], instruments: Sequence[Instrument], from_ms: int, until_ms: int
) -> None:
    """Raise ``ConfigInvalid`` or ``DataInvalid`` for books that cannot fill this run's orders."""
    named = [source.instrument_id for source in sources]
    traded = [item.id for item in instruments]
    for key in named:
        if key not in traded:
            raise ConfigInvalid(
                f"--events holds {key}, and the run trades {', '.join(traded)}; leave it out."
            )
        if named.count(key) > 1:
            raise ConfigInvalid(f"--events names two files of {key}; give one a symbol.")
    for key in traded:
        if key not in named:
            raise ConfigInvalid(
                f"execution.model 'book' needs the book of {key}; give its file by --events."
            )
    items = {item.id: item for item in instruments}
    for source in sources:
        next(source.frames(items[source.instrument_id]), None)  # its first frame, and its decimals
        if source.last_ms < from_ms or source.first_ms > until_ms:
            raise DataInvalid(
                f"The book of {source.instrument_id} is of {iso(source.first_ms)} to "
                f"{iso(source.last_ms)}, and the bars are of {iso(from_ms)} to {iso(until_ms)}; "
                "give books and candles of one time."
            )
