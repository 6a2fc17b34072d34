"""Follows an order book frame by frame, and makes an event of those that can change an order.

A live feed and a replay follow alike: every frame is read, and the broker is asked what of the book
can change an order before each. So nothing may be read ahead: an event is drawn once the engine has
dealt with the last one. What a replay knows by its files' dates is decided live as frames come
(``LiveBook``): which of them belong before a bar, and where a book went silent. All of it is pure.

The rules are docs/money.md, M61 to M85.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from tracepaper.daemon.broker.book_fills import BookLevel, BookMoves, Move, pack_moves
from tracepaper.daemon.broker.book_matching import BookWatch
from tracepaper.daemon.broker.broker import Broker
from tracepaper.daemon.config.loading import Config
from tracepaper.strategies.order_book import SILENT_MS
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Bar, BookUpdate, Quote, Side
from tracepaper.strategies.units import interval_start

MOVES_MOST: Final = 4_096
"""Moves that one event holds at most."""
BEGUN: Final = "stopped"
"""The cause of the gap before the first book."""
SILENT: Final = "silent"
"""The cause of a gap in which no frame of the book came, though none is missing."""
Sides = tuple[list[tuple[int, int]], list[tuple[int, int]]]
Watch = Callable[[str], BookWatch]
"""Says what of the book of an instrument can change an order now."""


class ReadFrame(NamedTuple):
    """One frame of a source, in the decimals of the run: of the book, of trades, or a gap."""

    at_ms: int
    cause: str = ""  # of a gap; what it holds beside comes after it
    book: Sides | None = None  # levels of bids and asks that are set; size 0 removes one
    is_snapshot: bool = False
    best: tuple[int, int] | None = None  # the best bid and ask after it; None while a side is empty
    trades: Sequence[tuple[Side, int, int]] = ()  # side of the taker, price, size


class Silence:
    """Says where a book begins to be silent: ``SILENT_MS`` after a frame that none follows."""

    def __init__(self) -> None:
        self._at_ms = 0
        self._stands_ms: int | None = None

    def before(self, frame: ReadFrame) -> ReadFrame | None:
        """Take in the next *frame*; return the gap that belongs before it, if there is one."""
        if not frame.cause:
            self._at_ms = max(self._at_ms, frame.at_ms)
        silent = self.until(max(self._at_ms, frame.at_ms))
        if frame.cause:
            self._stands_ms = None
        elif frame.book is not None:
            self._stands_ms = self._at_ms + SILENT_MS
        return silent

    def until(self, at_ms: int | None = None) -> ReadFrame | None:
        """Return the gap that has begun by *at_ms*, once; without it, where nothing follows."""
        stands_ms = self._stands_ms
        if stands_ms is None or (at_ms is not None and at_ms <= stands_ms):
            return None
        self._stands_ms = None
        return ReadFrame(stands_ms + 1, SILENT)


class BookFollower:
    """The book of one instrument, frame by frame, and the moves that no event holds yet.

    ``frame`` counts frames, from that number on; events are seen *response_ms* after their date.
    """

    def __init__(
        self, instrument: str, response_ms: int, *, is_sampled: bool = False, frame: int = 0
    ) -> None:
        self.key: Final = instrument
        self.frame = frame
        self.at_ms = 0
        self.best: tuple[int, int] | None = None
        self._is_sampled = is_sampled
        self._response_ms = response_ms
        self._bids: dict[int, tuple[int, int]] = {}  # size, and the frame that set it
        self._asks: dict[int, tuple[int, int]] = {}
        self._cause = BEGUN
        self._moves: list[Move] = []
        self._watched: BookWatch | None = None  # what was asked since the last event

    def goes_on(self) -> None:
        """Take the book to go on from what the run knows of it."""
        self._cause = ""

    def forget(self) -> None:
        """Ask anew what can change an order: something else than the book may have changed one."""
        self._watched = None

    def _check(self, watch: Watch) -> BookWatch:
        """Return the moves that can change an order now, with those that no event holds yet."""
        if self._watched is None:
            self._watched = watch(self.key)
            for move in self._moves:
                self._watched.take(move)
        return self._watched

    def advance(self, frame: ReadFrame, watch: Watch) -> Iterator[BookUpdate]:
        """Take in the next *frame*; yield each event that it causes."""
        watched = self._check(watch)
        if watched.rests and not self._is_sampled:
            # What was on its way by then met the book that stood at that time.
            while (arrives_ms := watched.arrives_ms) is not None and arrives_ms < frame.at_ms:
                if self.best is None:
                    break
                self.at_ms = max(self.at_ms, arrives_ms)
                yield self._update(is_whole=True)
                watched = self._check(watch)
        if frame.cause and self._moves:
            yield self._update(is_whole=False)
            watched = self._check(watch)
        fills = self.apply(frame, watched)
        if self.best is None or not watched.rests:
            return
        acts = bool(self._cause) or self._is_sampled or watched.has_unknown_places
        acts = acts or watched.acts(self._quote())
        if acts or fills:  # a trade alone needs no level beyond the touch
            yield self._update(is_whole=acts or frame.book is not None)
        elif len(self._moves) >= MOVES_MOST:
            yield self._update(is_whole=False)

    def arrivals(self, until_ms: int, watch: Watch) -> Iterator[BookUpdate]:
        """Yield the events of orders that arrive by *until_ms*, all frames until then known."""
        until_ms -= self._response_ms
        watched = self._check(watch)
        while (
            not self._is_sampled and (at_ms := watched.arrives_ms) is not None and at_ms <= until_ms
        ):
            if self.best is None:
                break
            self.at_ms = max(self.at_ms, at_ms)
            yield self._update(is_whole=True)
            watched = self._check(watch)

    def rest(self) -> Iterator[BookUpdate]:
        """Yield what no event holds yet."""
        if self._moves and self.best is not None:
            yield self._update(is_whole=False)

    def apply(self, frame: ReadFrame, watched: BookWatch | None) -> bool:
        """Take in *frame*; return whether what happened in it fills an order of *watched*."""
        if frame.cause:
            self.best, self._cause = None, frame.cause
            if frame.cause != SILENT:  # nothing is missing: the next frame makes it whole
                self._bids.clear()
                self._asks.clear()
            return False
        self.frame += 1
        self.at_ms = max(self.at_ms, frame.at_ms)
        has_book = self.best is not None and not self._is_sampled
        queued = watched if watched is not None and watched.queued and has_book else None
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

    def _follow(self, frame: ReadFrame, watched: BookWatch) -> None:
        """Note the levels that *frame* set at the prices of limits."""
        assert frame.book is not None
        if frame.is_snapshot:
            changed = {at: self._levels(at[0]).get(at[1], (0, 0))[0] for at in watched.queued}
        else:
            pairs = zip((Side.BUY, Side.SELL), frame.book, strict=True)
            changed = {
                (side, price): size
                for side, levels in pairs
                for price, size in levels
                if (side, price) in watched.queued
            }
        for (side, price), size in changed.items():
            if size or self._is_in_view(side, price):
                move = Move(self.at_ms, side, price, size)
                watched.take(move)
                self._moves.append(move)

    def _trade(self, frame: ReadFrame, watched: BookWatch) -> bool:
        """Note the trades that reach the price of a limit; return whether they fill one."""
        fills = False
        for taker, price, size in frame.trades:
            if watched.concerns(Side.SELL if taker is Side.BUY else Side.BUY, price):
                move = Move(self.at_ms, taker, price, size, is_trade=True)
                fills = watched.take(move) or fills
                self._moves.append(move)
        return fills

    def _levels(self, side: Side) -> dict[int, tuple[int, int]]:
        return self._bids if side is Side.BUY else self._asks

    def _is_in_view(self, side: Side, price: int) -> bool:
        """Whether a level that is gone stood before the last one that is known."""
        levels = self._levels(side)
        return price > min(levels) if side is Side.BUY else price < max(levels)

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
                BookLevel(price, *self._bids[price]) for price in sorted(self._bids, reverse=True)
            )
            asks = tuple(BookLevel(price, *self._asks[price]) for price in sorted(self._asks))
        else:
            bids, asks = (BookLevel(bid, *self._bids[bid]),), (BookLevel(ask, *self._asks[ask]),)
        cause, moves = self._cause, tuple(self._moves)
        self._cause, self._watched = "", None
        self._moves.clear()
        return BookUpdate(
            self.key,
            cause,
            self.frame,
            self._is_sampled,
            pack_moves(BookMoves(moves, bids, asks, is_whole)),
            self.at_ms,
            self.at_ms + self._response_ms,
        )


# ---------------------------------------------------------------- live

LEVELS: Final = 200
"""Levels a side where [market] depth is 0."""
HELD_S: Final = 5.0
"""A bar is waited for until a frame dated so long after its close: then all go on without it."""
HELD_MOST: Final = 4_096
"""Frames that wait for a bar at most."""


class LiveBook:
    """Makes events of the frames of one instrument's book, as a replay does of a file.

    A frame dated after the close of the bar that is due waits for that bar. *watch* is asked what
    can change an order after each event; frames are counted on from *frames* of an earlier process,
    and of the book so many *levels* a side are asked for.
    """

    def __init__(
        self,
        instrument: str,
        watch: Watch,
        *,
        levels: int = LEVELS,
        interval_ms: int,
        response_ms: int,
        frames: int = 0,
        time_scale: float = 1.0,
    ) -> None:
        self.levels: Final = levels
        self._watch = watch
        self._held_ms = int(HELD_S * 1_000 * time_scale)
        self._interval_ms, self._response_ms = interval_ms, response_ms
        self._follower = BookFollower(instrument, response_ms, frame=frames)
        self._silence = Silence()
        self._held: deque[ReadFrame] = deque()
        self._due_ms: int | None = None  # the close of the bar that comes next

    @property
    def held(self) -> int:
        """How many frames wait for a bar."""
        return len(self._held)

    def take(self, frame: ReadFrame) -> Iterator[BookUpdate]:
        """Take in the next *frame*; yield the events of all that need not wait for a bar."""
        self._held.append(frame)
        if self._due_ms is None or self._has_waited(self._due_ms):
            seen_ms = frame.at_ms + self._response_ms
            self._due_ms = interval_start(seen_ms - 1, self._interval_ms) + self._interval_ms
        yield from self._release()

    def forget(self) -> None:
        """Ask anew what can change an order, after an event that is none of the book."""
        self._follower.forget()

    def before(self, bar: Bar) -> Iterator[BookUpdate]:
        """Yield the events that belong before *bar*, whatever its frames were."""
        if self._due_ms is not None and bar.close_time_ms < self._due_ms:
            return  # a revision, or one that was given up
        self._due_ms = bar.close_time_ms
        yield from self._release()
        silent = self._silence.until(bar.close_time_ms - self._response_ms)
        if silent is not None:
            yield from self._follower.advance(silent, self._watch)
        yield from self._follower.arrivals(bar.close_time_ms, self._watch)
        yield from self._follower.rest()

    def after(self, bar: Bar) -> Iterator[BookUpdate]:
        """Let what waited for *bar* go on, which is decided now; yield its events."""
        self._due_ms = max(self._due_ms or 0, bar.close_time_ms + bar.interval_ms)
        yield from self._release()

    def _release(self) -> Iterator[BookUpdate]:
        """Yield the events of the frames that do not belong after the bar that is due."""
        while self._held and self._due_ms is not None:
            if self._held[0].at_ms + self._response_ms > self._due_ms:
                return
            frame = self._held.popleft()
            if (silent := self._silence.before(frame)) is not None:
                yield from self._follower.advance(silent, self._watch)
            yield from self._follower.advance(frame, self._watch)

    def _has_waited(self, due_ms: int) -> bool:
        """Whether the bar that closes at *due_ms* was waited for long enough."""
        return self._held[-1].at_ms > due_ms + self._held_ms or len(self._held) > HELD_MOST


def live_book(config: Config, broker: Broker) -> LiveBook | None:
    """Return the follower of a live run's book; None where no book fills its orders."""
    if broker.settings.execution is not FillModel.BOOK:
        return None
    ((instrument, frames),) = broker.frames_read().items()  # of one symbol: `live_execution`
    return LiveBook(
        instrument,
        broker.watch,
        levels=config.market.depth or LEVELS,
        interval_ms=config.market.interval_ms,
        response_ms=config.execution.response_ms,
        frames=frames,
        time_scale=config.exchange.time_scale,
    )
