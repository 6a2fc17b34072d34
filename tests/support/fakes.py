"""Small real classes that implement the ports: no mocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tracepaper.strategies.gates.gate import MEASURES
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import BLOCK_BARS, Forecast, Step
from tracepaper.strategies.types.market import Bar, Event

Made = TypeVar("Made")


@contextmanager
def registered(
    registry: MutableMapping[str, Made], register: Callable[[], object]
) -> Iterator[None]:
    """Register something, and forget it afterwards."""
    before = dict(registry)
    try:
        register()
        yield
    finally:
        registry.clear()
        registry.update(before)


class ManualClock:
    """A clock that moves only when told; sleeping moves it."""

    def __init__(self, market_ms: int = 0) -> None:
        self._market_ms = market_ms
        self._network_s = 0.0
        self.slept: list[float] = []
        self.time_scale = 1.0

    def market_ms(self) -> int:
        return self._market_ms

    def network_s(self) -> float:
        return self._network_s

    def scaled_ms(self, seconds: float) -> float:
        return seconds * 1_000.0 * self.time_scale

    def wall_ms(self) -> int:
        return self._market_ms

    def observe(self, server_ms: int) -> None:
        self._market_ms = max(self._market_ms, server_ms)

    def synchronise(self, server_ms: int) -> None:
        self._market_ms = server_ms

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._network_s += seconds

    def advance(self, *, market_ms: int = 0, network_s: float = 0.0) -> None:
        self._market_ms += market_ms
        self._network_s += network_s


class JumpClock(ManualClock):
    """A manual clock that lets other tasks run while it sleeps."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        await asyncio.sleep(0)


class ScriptedFeed:
    """Yields the given events and ends."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._events = list(events)

    async def __aiter__(self) -> AsyncIterator[Event]:
        for event in self._events:
            yield event


class MemoryAudit:
    """Keeps every step in a list."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    async def append(self, *steps: Step) -> None:
        self.steps.extend(steps)


class FixedForecaster:
    """Answers each bar from a function of the bars seen so far: deterministic and without torch."""

    model_id = "0123456789ab"
    model_sha256 = "0123456789ab" + "0" * 52
    mode = "step"
    device = "cpu"
    dtype = "float32"
    threads = 1
    backend = "none"
    causal = True
    scanned_at_once = 8_192
    measures = MEASURES
    is_outside = False
    bucket_bars = BLOCK_BARS
    vectors: Any = None
    horizons: tuple[int, ...] = (30,)

    def __init__(
        self,
        answer: Callable[[Sequence[Bar]], Forecast | None],
        *,
        context: int = 3,
        calibration: Calibration | None = None,
    ) -> None:
        self._answer = answer
        self.context = context
        self.calibration = calibration
        self._bars: dict[str, list[Bar]] = {}
        self.warmed: list[int] = []

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        self._bars[instrument] = list(bars)
        self.warmed.append(len(bars))

    def step(self, bar: Bar) -> Forecast | None:
        bars = self._bars.setdefault(bar.instrument, [])
        bars.append(bar)
        if len(bars) < self.context:
            return None
        return self._answer(bars[-self.context :])

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        return [self.step(bar) for bar in bars]

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        return [self.step(bar) for bar in bars]
