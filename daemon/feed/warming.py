"""What a start asks the exchange for: how many requests, how long they take, and in which order.

The rules are docs/universe.md, V4 to V7.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from tracepaper.strategies.api.timeframes import FrameRange

FRAMES_BEFORE_START: Final = 20
"""Requests for candles of higher timeframes that are answered before the first decision."""


class WarmUp(NamedTuple):
    """What warms a new run: requests for its own bars and for higher timeframes."""

    symbols: int
    of_bars: int
    of_frames: int
    requests_per_s: float

    @property
    def requests(self) -> int:
        """All requests."""
        return self.of_bars + self.of_frames

    @property
    def minutes(self) -> float:
        """How long all of them take at the configured pace."""
        return self.requests / self.requests_per_s / 60

    def sentence(self) -> str:
        """Say what it takes."""
        frames = "" if not self.of_frames else f" and {self.of_frames:,} for higher timeframes"
        return (
            f"{self.symbols} symbols: {self.of_bars:,} requests for bars{frames}, "
            f"{self.minutes:.1f} minutes at {self.requests_per_s:g} a second"
        )


def pages(lack: FrameRange, candles_max: int) -> int:
    """Return how many requests *lack* takes, each of *candles_max* candles at most."""
    candles = (lack.until_ms - lack.from_ms) // lack.interval_ms
    return -(-candles // candles_max)


def warm_up(
    symbols: int,
    bars: int,
    frames: Iterable[FrameRange],
    *,
    candles_max: int,
    requests_per_s: float,
) -> WarmUp:
    """Return the requests that warm *symbols*, by *bars* of each and *frames* of all of them."""
    of_frames = sum(pages(lack, candles_max) for lack in frames)
    return WarmUp(symbols, symbols * -(-bars // candles_max), of_frames, requests_per_s)


class FrameQueue:
    """The ranges of candles of higher timeframes that a start lacks, the most urgent first.

    Instruments of *urgent* (those that hold something, or have orders) come before the others,
    which keep the order of the run. ``first`` are those within ``FRAMES_BEFORE_START`` requests;
    the others are drawn from ``later``, whose instruments say when they will be answered.
    """

    def __init__(
        self,
        ranges: Mapping[str, Collection[FrameRange]],
        *,
        urgent: Collection[str],
        candles_max: int,
    ) -> None:
        self._candles_max = candles_max
        self.first: list[FrameRange] = []
        self.later: deque[FrameRange] = deque()
        asked = 0
        for key in sorted(ranges, key=lambda key: key not in urgent):  # stable: the run's order
            asked += self._pages(ranges[key])
            (self.later if asked > FRAMES_BEFORE_START else self.first).extend(ranges[key])
        self._left = Counter(lack.instrument for lack in self.later)

    def pop(self) -> FrameRange:
        """Return the next of the later ones; it counts until it is :meth:`answered`."""
        return self.later.popleft()

    def answered(self, lack: FrameRange) -> None:
        """Note that *lack* was answered."""
        self._left[lack.instrument] -= 1

    def requests_until(self, instrument: str) -> int | None:
        """Return how many requests it takes until *instrument* lacks nothing; None where it does.

        The one that is under way counts as one.
        """
        if not self._left[instrument]:
            return None
        places = [place for place, lack in enumerate(self.later) if lack.instrument == instrument]
        ahead = list(self.later)[: places[-1] + 1] if places else []
        return self._pages(ahead) + 1

    def _pages(self, ranges: Iterable[FrameRange]) -> int:
        return sum(pages(lack, self._candles_max) for lack in ranges)
