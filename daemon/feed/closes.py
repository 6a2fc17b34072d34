"""The bars of one close, gathered: held until all that are due have come, or the wait is over.

The rule is docs/time.md, T22.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from msgspec import structs

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.feed.state import FeedState
from tracepaper.strategies.types.market import Bar, CloseStart, Event, Funding, Gap, Source


class CloseGatherer:
    """Holds the stream's bars of the newest close until all that are due have come.

    A bar is due where its instrument's stream is connected and nothing is missing before it. The
    first bar of a close calls *remind* with its open time, so that :meth:`expire` follows once the
    wait is over. Late bars, bars repaired by REST and revisions are not held.
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
        self._absent: dict[str, None] = {}  # in the order of the run, of the bars held
        self._newest_ms = {key: state.sequence.next_open_ms - 1 for key, state in states.items()}
        self._closed_ms = -1  # the newest close that went on

    def push(self, event: Event) -> Iterator[Event]:
        """Yield the events that need not wait any longer now that *event* has come."""
        if not isinstance(event, Bar):
            if isinstance(event, Gap | Funding) and event.instrument in self._bars:
                yield from self.flush()  # it belongs after the bar that is held
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
        """Yield the bars that opened at *open_ms* if they are still held: the wait is over."""
        if self._bars and self._open_ms == open_ms:
            yield from self.flush()

    def flush(self) -> Iterator[Event]:
        """Yield a ``CloseStart`` and the bars held, in the order of the run's instruments."""
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
        """Return whether the bar of *key* that opened with those held is its stream's next one."""
        state = self._states[key]
        is_next = state.sequence.next_open_ms == self._open_ms and not len(state.pending)
        return is_next and self._is_up(state)
