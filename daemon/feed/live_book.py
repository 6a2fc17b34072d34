"""``LiveBook``: the order book of a run between its bars, for orders that a book fills.

What a replay knows by its files' dates is decided here as frames come: which of them belong before
a bar, and where a book went silent. It is pure; the frames it holds back are bounded.

The rules are docs/money.md, M78 to M85.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from tracepaper.daemon.broker.broker import Broker
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.feed.book_follower import BookFollower, ReadFrame, Silence, Watch
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Bar, BookUpdate
from tracepaper.strategies.units import interval_start

LEVELS: Final = 200
"""Levels a side where [market] depth is 0."""
HELD_S: Final = 5.0
"""A bar is waited for until a frame dated so long after its close: then all go on without it."""
HELD_MOST: Final = 4_096
"""Frames that wait for a bar at most."""
OVERFLOW: Final = "overflow"
"""The cause of a gap where the queue of the feed had no room for a frame."""


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
