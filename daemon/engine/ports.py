"""The protocols between the engine and the world: clock, feed, judge, predictor and log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from tracepaper.strategies.types import (
    Bar,
    Event,
    Funding,
    Mark,
    Prediction,
    Quote,
    Step,
    Trade,
)


class Clock(Protocol):
    """Market time is the exchange's; network time is monotonic and never scaled."""

    def market_ms(self) -> int:
        """Return market time: last server time + elapsed x ``exchange.time_scale``."""
        ...

    def network_s(self) -> float:
        """Return monotonic seconds, for pings, watchdogs, backoff and deadlines."""
        ...

    def wall_ms(self) -> int:
        """Return the machine's UTC time in milliseconds, for ``started_at`` and the like."""
        ...

    def observe(self, server_ms: int) -> None:
        """Learn that server time is at least *server_ms* (the ``ts`` of a frame)."""
        ...

    def synchronise(self, server_ms: int) -> None:
        """Set server time to *server_ms* (a REST answer just read), forwards or backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds* of network time."""
        ...


class Feed(Protocol):
    """Events in the order in which the engine must see them."""

    def __aiter__(self) -> AsyncIterator[Event | None]:
        """Yield events until the feed ends; None before a wait where an event was promised."""
        ...


class PriceJudge(Protocol):
    """What a feed asks of the engine about prices and rates that jump: which belong together."""

    def doubts(self, price: Quote | Mark | Funding, /) -> bool:
        """Return whether *price* would not be believed by itself."""
        ...

    def is_evidence(self, price: Quote | Mark | Trade, /) -> bool:
        """Return whether *price* is evidence for what was not believed, or for an absurd rate."""
        ...

    def settled_ms(self, instrument: str, /) -> int:
        """Return the time of the newest settlement of *instrument* that was booked, or -1."""
        ...

    def repeats(self, price: Quote | Mark, /) -> bool:
        """Return whether *price* only says again what its source said and was not believed."""
        ...

    def holds_quote(self, instrument: str, /) -> bool:
        """Return whether the newest quote of *instrument* was not believed."""
        ...


class Predictor(Protocol):
    """Where the model runs, and the only thing that may run elsewhere."""

    async def predict(self, event: Event, /) -> Prediction:
        """Return the forecast of *event*, that it timed out, or None where none is needed."""
        ...

    async def predict_close(self, bars: Sequence[Bar], /) -> Sequence[Prediction]:
        """Return the same for each of *bars*, one of each of some instruments, at once."""
        ...


class AuditLog(Protocol):
    """Where steps are kept; a step that could not be kept must not be acted on."""

    async def append(self, *steps: Step) -> None:
        """Store *steps* in one transaction, or raise ``AuditUnwritable``."""
        ...
