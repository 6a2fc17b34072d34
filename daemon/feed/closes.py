"""Gathers the bars of one close, so that they are decided together.

The rule is docs/time.md, T22.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from msgspec import structs

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.feed.state import FeedState
from tracepaper.strategies.types.market import Bar, CloseStart, Event, Funding, Gap, Source


class CloseGatherer:
    """Holds the stream's bars of the newest close until all expected ones have arrived.

    A bar is expected if its instrument's stream is connected and no earlier bar is missing. At the
    first bar of a close *remind* is called with its open time; it has to call :meth:`expire` when
    the wait is over. Late bars, bars from REST and revisions are not held.
    """

    def __init__(
        self,
        states: Mapping[str, FeedState],
        *,
        clock: Clock,
        is_up: Callable[[FeedState], bool],
        remind: Callable[[int], None],
    ) -> None:
        self._states = states
        self._clock = clock
        self._is_up = is_up
        self._remind = remind
        self._bars: dict[str, Bar] = {}
        self._absent: dict[str, None] = {}  # instruments without a held bar, in the run's order
        self._newest_ms = {key: state.sequence.next_open_ms - 1 for key, state in states.items()}
        self._closed_ms = -1  # the open time of the newest close that was released

    def push(self, event: Event) -> Iterator[Event]:
        """Take in *event*; yield all events that need not wait any longer."""
        if not isinstance(event, Bar):
            if isinstance(event, Gap | Funding) and event.instrument in self._bars:
                yield from self.flush()  # the event belongs after the held bar
            yield event
            return
        key, open_ms = event.instrument, event.open_time_ms
        is_revision = open_ms <= self._newest_ms[key]
        self._newest_ms[key] = max(open_ms, self._newest_ms[key])
        if self._bars and (key in self._bars or open_ms > self._open_ms):
            yield from self.flush()
        is_late = open_ms <= self._closed_ms or (bool(self._bars) and open_ms < self._open_ms)
        if is_revision or is_late or event.source is Source.REST:
            yield event
            return
        if not self._bars:
            self._remind(open_ms)
            self._absent = dict.fromkeys(self._states)
        self._bars[key] = event
        self._absent.pop(key, None)
        if not any(map(self._is_due, self._absent)):
            yield from self.flush()

    def expire(self, open_ms: int) -> Iterator[Event]:
        """Yield the held bars if they opened at *open_ms*: their wait is over."""
        if self._bars and self._open_ms == open_ms:
            yield from self.flush()

    def flush(self) -> Iterator[Event]:
        """Yield a ``CloseStart`` and the held bars, in the order of the run's instruments."""
        held, self._bars = self._bars, {}
        if not held:
            return
        open_ms = next(iter(held.values())).open_time_ms
        self._closed_ms = max(open_ms, self._closed_ms)
        now_ms = self._clock.market_ms()
        absent = tuple(key for key in self._states if key not in held)
        yield CloseStart(open_ms, len(held), absent, now_ms, now_ms)
        for key in self._states:
            if key in held:
                yield structs.replace(held[key], seen_ms=now_ms)

    @property
    def _open_ms(self) -> int:
        return next(iter(self._bars.values())).open_time_ms

    def _is_due(self, key: str) -> bool:
        """Return whether the stream of *key* is expected to bring the bar of the held close."""
        state = self._states[key]
        is_next = state.sequence.next_open_ms == self._open_ms and not len(state.pending)
        return is_next and self._is_up(state)
