"""Topics as streams of due frames: what a channel is, and the pace at which frames may come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import msgspec

BOOK_FRAMES_PER_WALL_S: Final = 40
TICKER_FRAMES_PER_WALL_S: Final = 20
TRADE_FRAMES_PER_WALL_S: Final = 50
BOOK_FRAMES_PER_CANDLE_MIN: Final = 5
GRID_MS: Final = 100

encode: Final[Callable[[Any], bytes]] = msgspec.json.Encoder().encode


class Frame(NamedTuple):
    """One text frame of *topic*, to be sent at *at_ms* market time."""

    topic: str
    body: bytes
    at_ms: float


Due = tuple[float, Callable[[], list[Frame]]]
"""A market time, and what to build when it comes."""


class Channel(Protocol):
    """One topic of one category."""

    def opening(self, now_ms: int) -> list[Frame]:
        """Return what a new subscriber is sent at once: state, and older than now."""
        ...

    def steps(self, from_ms: int) -> Iterator[Due]:
        """Yield what is due after *from_ms*, in time order, until the data ends."""
        ...

    def reset(self) -> None:
        """Forget what was sent, as nobody listens any more; counters never go back."""
        ...


@dataclass(frozen=True)
class Pacing:
    """Market milliseconds between frames; above speed 1 the wall clock caps books and tickers.

    Candles and trades are never left out: trades that fall together share a frame.
    """

    speed: float

    def trade_gap_ms(self) -> int:
        """Return the span of trades that share a frame; 1 sends each moment's by itself."""
        return self._gap_ms(TRADE_FRAMES_PER_WALL_S, 1)

    def book_gap_ms(self, interval_ms: int) -> int:
        """Return the least gap between two book frames: never fewer than four a candle."""
        gap = self._gap_ms(BOOK_FRAMES_PER_WALL_S, GRID_MS)
        return min(gap, interval_ms // BOOK_FRAMES_PER_CANDLE_MIN)

    def ticker_gap_ms(self, interval_ms: int) -> int:
        """Return the least gap between two ticker frames: never less than one a candle."""
        return min(self._gap_ms(TICKER_FRAMES_PER_WALL_S, GRID_MS), interval_ms)

    def notice_gap_ms(self, natural_ms: int) -> int:
        """Return the least gap between two frames of a topic that comes each *natural_ms*."""
        return self._gap_ms(TICKER_FRAMES_PER_WALL_S, natural_ms)

    def _gap_ms(self, frames_per_s: int, natural_ms: int) -> int:
        if self.speed <= 1:
            return natural_ms
        return max(natural_ms, int(1000 * self.speed / frames_per_s))
