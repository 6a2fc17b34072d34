"""The bounded queue of a live feed, what stands in it, and what the run holds at its start."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from msgspec import Struct

from tracepaper.strategies.frames import FrameRange
from tracepaper.strategies.types import Bar, Depth, Event, GapCause, Mark, Quote, Trade

T = TypeVar("T")


class EventQueue(Generic[T]):
    """First in, first out; ``try_put`` takes what may be dropped, ``put`` what may not.

    ``try_put`` refuses beyond a share of the limit, so that quotes, which are many and soon
    replaced, can never take the place of bars. ``put`` always succeeds: its callers are few
    by their nature (one reminder an instrument, operators' commands).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._items: deque[T] = deque()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def try_put(self, item: T, *, share: float = 1.0) -> bool:
        """Append *item* unless *share* of the limit is taken; return whether it was."""
        if len(self._items) >= self.limit * share:
            return False
        self.put(item)
        return True

    def put(self, item: T) -> None:
        """Append *item*, whatever the limit."""
        self._items.append(item)
        self._filled.set()

    async def get(self) -> T:
        """Return the oldest item, waiting for one."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        return self._items.popleft()


def no_frames(_market_ms: int) -> Sequence[FrameRange]:
    """Return that no candles of higher frames are wanted."""
    return ()


class FeedStart(Struct, frozen=True):
    """What the run already holds, by instrument id.

    ``known`` has the newest bar's open time (None or missing: none, so warm-up bars are fetched),
    ``known_funding`` the newest settlement's time, ``recent`` the bars by which closes are judged.
    ``first`` are delivered before all else, and
    ``started`` makes the event that follows the warm-up bars: a model is warm once it is delivered,
    and only then is anything subscribed. ``is_served`` says that this exchange served the run
    before, so that nothing it says now is a mistake of the configuration. A close further than
    ``plausible`` usual ranges from the last one is accepted once REST repeats it. Where
    ``gather_ms``, network time, is not 0, the bars of one close are delivered together.
    ``lacking_frames`` is asked, once the warm-up bars are delivered, for the candles of higher
    frames that they do not reach. Order books of ``depth`` levels a side, where it is not 0, are
    taken each ``depth_every_ms`` of market time.
    """

    interval_ms: int
    period_start_ms: int
    warmup_bars: int
    known: Mapping[str, int | None] = {}
    known_funding: Mapping[str, int] = {}
    recent: Mapping[str, Sequence[Bar]] = {}
    first: tuple[Event, ...] = ()
    started: Callable[[], Event] | None = None
    is_served: bool = False
    gather_ms: int = 0
    lacking_frames: Callable[[int], Sequence[FrameRange]] = no_frames
    plausible: float = 100.0
    depth: int = 0
    depth_every_ms: int = 1_000


class SampledBook(Struct, frozen=True):
    """A book of the grid, and why it does not go on from the one before; empty where it does."""

    depth: Depth
    cause: str


class BackfillPage(Struct, frozen=True):
    """What REST answered about the bars of an instrument from ``from_ms`` on."""

    instrument: str
    from_ms: int
    bars: tuple[Bar, ...]
    answered_s: float  # network time


class GapCauseNotice(Struct, frozen=True):
    """Bars of this instrument that come after this place in the queue may be missing, and why."""

    instrument: str
    cause: GapCause


class Submitted(Struct, frozen=True):
    """An event from outside or from a background task, delivered as it stands."""

    event: Event


class CloseTimeout(Struct, frozen=True):
    """The bars that opened at ``open_time_ms`` have been waited for long enough."""

    open_time_ms: int


class Stop(Struct, frozen=True):
    """The end of the feed."""


Item = (
    Bar
    | Quote
    | Mark
    | Trade
    | SampledBook
    | BackfillPage
    | GapCauseNotice
    | Submitted
    | CloseTimeout
    | Stop
)
