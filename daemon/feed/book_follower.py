"""Follows an order book frame by frame, and makes events of the changes that may affect an order.

Live feeds and replays use the same code. Before each frame the broker is asked which changes of the
book can affect an order, so the next event may be drawn only when the engine has taken in the last
one. ``LiveBook`` decides from the frames as they arrive what a replay knows from its files' dates:
which frames belong before a bar, and where a book went silent. All of it is pure.

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
"""Most moves of one event."""
BEGUN: Final = "stopped"
"""The cause of the gap before the first book."""
SILENT: Final = "silent"
"""The cause of a gap without frames of the book in which nothing is missing."""
Sides = tuple[list[tuple[int, int]], list[tuple[int, int]]]
Watch = Callable[[str], BookWatch]
"""Returns which changes of an instrument's book can affect an order now."""


class ReadFrame(NamedTuple):
    """One frame of a book or of trades, or a gap, in the decimals of the run."""

    at_ms: int
    cause: str = ""  # of a gap; a book or trades in the same frame come after the gap
    book: Sides | None = None  # changed levels of bids and asks; size 0 removes a level
    is_snapshot: bool = False
    best: tuple[int, int] | None = None  # best bid and ask after the frame; None: an empty side
    trades: Sequence[tuple[Side, int, int]] = ()  # the taker's side, price, size


class Silence:
    """Finds where a book goes silent: ``SILENT_MS`` after a frame without a next one."""

    def __init__(self) -> None:
        self._at_ms = 0
        self._valid_until_ms: int | None = None

    def before(self, frame: ReadFrame) -> ReadFrame | None:
        """Take in the next *frame*; return the silent gap before it, if there is one."""
        if not frame.cause:
            self._at_ms = max(self._at_ms, frame.at_ms)
        silent = self.until(max(self._at_ms, frame.at_ms))
        if frame.cause:
            self._valid_until_ms = None
        elif frame.book is not None:
            self._valid_until_ms = self._at_ms + SILENT_MS
        return silent

    def until(self, at_ms: int | None = None) -> ReadFrame | None:
        """Return the silent gap that began before *at_ms*, once; None: there is no next frame."""
        valid_until_ms = self._valid_until_ms
        if valid_until_ms is None or (at_ms is not None and at_ms <= valid_until_ms):
            return None
        self._valid_until_ms = None
        return ReadFrame(valid_until_ms + 1, SILENT)


class BookFollower:
    """The book of one instrument, and the moves that are in no event yet.

    ``frame`` counts frames, starting from *frame*. An event's ``seen_ms`` is *response_ms* after
    its date.
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
        self._watched: BookWatch | None = None  # the broker's answer since the last event

    def resume(self) -> None:
        """Continue the run's book without a gap."""
        self._cause = ""

    def forget(self) -> None:
        """Ask the broker again: another event than one of the book may have changed an order."""
        self._watched = None

    def _check(self, watch: Watch) -> BookWatch:
        """Return which changes can affect an order now, given the moves that are in no event."""
        if self._watched is None:
            self._watched = watch(self.key)
            for move in self._moves:
                self._watched.take(move)
        return self._watched

    def advance(self, frame: ReadFrame, watch: Watch) -> Iterator[BookUpdate]:
        """Take in the next *frame*; yield each event that it causes."""
        watched = self._check(watch)
        if (arrives_ms := watched.arrives_ms) is not None and arrives_ms < frame.at_ms:
            # Orders that arrive before this frame meet the book as it was then.
            yield from self._arrivals(frame.at_ms - 1, watch)
            watched = self._check(watch)
        if frame.cause and self._moves:
            yield self._update(is_whole=False)
            watched = self._check(watch)
        fills = self.apply(frame, watched)
        if self.best is None or not watched.rests:
            return
        acts = bool(self._cause) or self._is_sampled or watched.has_unknown_places
        acts = acts or watched.acts(self._quote())
        if acts or fills:  # a fill by trades needs only the best levels
            yield self._update(is_whole=acts or frame.book is not None)
        elif len(self._moves) >= MOVES_MOST:
            yield self._update(is_whole=False)

    def arrivals(self, until_ms: int, watch: Watch) -> Iterator[BookUpdate]:
        """Yield the events of orders that arrive by *until_ms*, when all frames until then are in.

        *until_ms* is a ``seen_ms``.
        """
        yield from self._arrivals(until_ms - self._response_ms, watch)

    def _arrivals(self, until_ms: int, watch: Watch) -> Iterator[BookUpdate]:
        if self._is_sampled:
            return
        while (arrives_ms := self._check(watch).arrives_ms) is not None and arrives_ms <= until_ms:
            if self.best is None:
                break
            self.at_ms = max(self.at_ms, arrives_ms)
            yield self._update(is_whole=True)

    def rest(self) -> Iterator[BookUpdate]:
        """Yield an event of the moves that are in none yet."""
        if self._moves and self.best is not None:
            yield self._update(is_whole=False)

    def apply(self, frame: ReadFrame, watched: BookWatch | None) -> bool:
        """Take in *frame*; return whether its trades fill an order of *watched*."""
        if frame.cause:
            self.best, self._cause = None, frame.cause
            if frame.cause != SILENT:  # after a silence the known levels are still right
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
        """Add a move for each level that *frame* changed at the price of a limit order."""
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
        """Add a move for each trade that reaches a limit order; return whether one fills."""
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
        """Return whether a removed level was better than the last known one."""
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
"""Frames wait for a bar until one is dated this long after its close; then they continue."""
HELD_MOST: Final = 4_096
"""Most frames that wait for a bar."""


class LiveBook:
    """Makes events of the frames of one instrument's book, as a replay does of a file.

    A frame dated after the close of the next bar waits for that bar. *watch* is asked after each
    event which changes can affect an order. *frames* continues the count of an earlier process.
    *levels* is the requested depth a side.
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
        self._due_ms: int | None = None  # the close of the next bar

    @property
    def held(self) -> int:
        """The number of frames that wait for a bar."""
        return len(self._held)

    def take(self, frame: ReadFrame) -> Iterator[BookUpdate]:
        """Take in the next *frame*; yield the events of the frames that need not wait."""
        self._held.append(frame)
        if self._due_ms is None or self._has_waited(self._due_ms):
            seen_ms = frame.at_ms + self._response_ms
            self._due_ms = interval_start(seen_ms - 1, self._interval_ms) + self._interval_ms
        yield from self._release()

    def forget(self) -> None:
        """Ask the broker again: another event than one of the book may have changed an order."""
        self._follower.forget()

    def before(self, bar: Bar) -> Iterator[BookUpdate]:
        """Yield the events that belong before *bar*."""
        if self._due_ms is not None and bar.close_time_ms < self._due_ms:
            return  # a revision, or a bar that the frames no longer waited for
        self._due_ms = bar.close_time_ms
        yield from self._release()
        silent = self._silence.until(bar.close_time_ms - self._response_ms)
        if silent is not None:
            yield from self._follower.advance(silent, self._watch)
        yield from self._follower.arrivals(bar.close_time_ms, self._watch)
        yield from self._follower.rest()

    def after(self, bar: Bar) -> Iterator[BookUpdate]:
        """Yield the events of the frames that waited for *bar*, which is decided now."""
        self._due_ms = max(self._due_ms or 0, bar.close_time_ms + bar.interval_ms)
        yield from self._release()

    def _release(self) -> Iterator[BookUpdate]:
        """Yield the events of the frames that need not wait for the next bar."""
        while self._held and self._due_ms is not None:
            if self._held[0].at_ms + self._response_ms > self._due_ms:
                return
            frame = self._held.popleft()
            if (silent := self._silence.before(frame)) is not None:
                yield from self._follower.advance(silent, self._watch)
            yield from self._follower.advance(frame, self._watch)

    def _has_waited(self, due_ms: int) -> bool:
        """Return whether the wait for the bar that closes at *due_ms* is over."""
        return self._held[-1].at_ms > due_ms + self._held_ms or len(self._held) > HELD_MOST


def live_book(config: Config, broker: Broker) -> LiveBook | None:
    """Return the follower of a live run's book; None if no book fills its orders."""
    if broker.settings.execution is not FillModel.BOOK:
        return None
    ((instrument, frames),) = broker.frames_read().items()  # `COMBINATIONS` allows one symbol
    return LiveBook(
        instrument,
        broker.watch,
        levels=config.market.depth or LEVELS,
        interval_ms=config.market.interval_ms,
        response_ms=config.execution.response_ms,
        frames=frames,
        time_scale=config.exchange.time_scale,
    )
