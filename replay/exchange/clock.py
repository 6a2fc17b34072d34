"""Market time of the exchange: scaled, held, manual, jumping over holes, stopped at the end."""

from __future__ import annotations

from collections.abc import Callable


class MarketClock:
    """Server time in ms. It never goes back.

    ``monotonic`` gives machine seconds; it is an argument, so a test needs no machine time. A
    *manual* clock moves by ``set`` alone; a *held* one stands still until ``release``.
    """

    def __init__(
        self,
        start_ms: int,
        *,
        speed: float,
        monotonic: Callable[[], float],
        manual: bool = False,
        held: bool = False,
    ) -> None:
        self.speed = speed
        self.manual = manual
        self._monotonic = monotonic
        self._held = held
        self._anchor_ms = float(start_ms)
        self._anchor_s = monotonic()
        self._end_ms: int | None = None

    @property
    def held(self) -> bool:
        """Whether time stands still until a client has subscribed a candle topic."""
        return self._held

    @property
    def ended(self) -> bool:
        """Whether the data is over; time then stands at its end."""
        return self._end_ms is not None and self.now_ms() >= self._end_ms

    def now_ms(self) -> int:
        """Return server time."""
        if self.manual or self._held:
            now = int(self._anchor_ms)
        else:
            elapsed_s = self._monotonic() - self._anchor_s
            now = int(self._anchor_ms + elapsed_s * 1000 * self.speed)
        return now if self._end_ms is None else min(now, self._end_ms)

    def seconds_until(self, time_ms: float) -> float | None:
        """Return machine seconds until *time_ms*; None where time does not run by itself."""
        if self.manual or self._held:
            return None
        return max(0.0, (time_ms - self.now_ms()) / (1000 * self.speed))

    def set(self, time_ms: float) -> None:
        """Move forward to *time_ms*; an earlier time changes nothing."""
        if time_ms > self.now_ms():
            self._anchor_ms = time_ms
            self._anchor_s = self._monotonic()

    def release(self) -> None:
        """Let a held clock run."""
        if self._held:
            self._held = False
            self._anchor_s = self._monotonic()

    def stop_at(self, end_ms: int) -> None:
        """Let time run to *end_ms* and no further."""
        self._end_ms = end_ms
