"""The real daemon beside the embedded exchange in one loop; the test moves market time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from daemon_under_test import until_daemon
from records import check_record, run_again
from waiting import deadline

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.replay.exchange.server import EmbeddedExchange
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import Bar, RunKind

MINUTE = 60_000
SPEED = 600.0
"""How quick the exchange says that it is: it sends few books a candle."""
AFTER_MS = 3_000
"""Market time after a close at which REST calls it final."""


class ExchangesClock(SystemClock):
    """A clock that is always as right as the exchange's, which the test moves."""

    def __init__(self, exchange: EmbeddedExchange) -> None:
        super().__init__()
        self._exchange = exchange

    def market_ms(self) -> int:
        return int(self._exchange.clock.now_ms())

    def synchronise(self, server_ms: int) -> None:
        del server_ms  # it may have moved on meanwhile


class Live:
    """A daemon at work, what it stored, and the exchange that it listens to."""

    def __init__(self, exchange: EmbeddedExchange) -> None:
        self.exchange = exchange
        self.steps: list[Step] = []
        self.task: asyncio.Task[None] | None = None

    def watch(self, step: Step) -> bool:
        self.steps.append(step)
        return True

    def decided(self, open_ms: int) -> set[str]:
        """Return the symbols whose bar that opened at *open_ms* is decided."""
        return {
            step.event.instrument.partition(":")[2]
            for step in self.steps
            if isinstance(step.event, Bar)
            and step.event.open_time_ms == open_ms
            and step.decision is not None
        }

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for *condition*; fail at the deadline, or with the error that ended the daemon."""
        assert self.task is not None
        await until_daemon(self.task, condition)

    def trace(self) -> str:
        """Return the exchange's time, what each connection subscribes, and every stored event."""
        hub = self.exchange.hub
        return "\n".join(
            (
                f"the exchange's time: {self.exchange.clock.now_ms():.0f}",
                *(
                    f"{connection.identity}{' (cut)' * connection.is_cut}: "
                    f"{' '.join(sorted(connection.topics))}"
                    for connection in hub.connections
                ),
                *(f"{step.sequence} {step.event}" for step in self.steps),
            )
        )

    async def listening(self, topics: int) -> None:
        """Wait until *topics* are subscribed."""
        connections = self.exchange.hub.connections
        await self.until(
            lambda: sum(len(connection.topics) for connection in connections) >= topics
        )

    async def close_bar(self, expected: set[str], length_ms: int = MINUTE) -> int:
        """Let the open bar close; wait until the bars of *expected* are decided."""
        now_ms = int(self.exchange.clock.now_ms())
        open_ms = now_ms // length_ms * length_ms
        await self.exchange.advance(open_ms + length_ms + AFTER_MS - now_ms)
        await self.until(lambda: expected <= self.decided(open_ms))
        return open_ms


def settings(venue: EmbeddedExchange, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a run at *venue*."""
    given: dict[str, dict[str, Any]] = {
        "exchange": {
            "rest_url": venue.rest_url,
            "stream_url": venue.stream_url,
            "time_scale": SPEED,
            "certain_s": 0.5,
            "requests_per_s": 100,
        },
        "sizing": {"mode": "notional", "notional": "1000"},
        "account": {"cash": "1000000"},
        "http": {"port": 0},
    }
    for name, section in sections.items():
        before = {} if "mode" in section else given.get(name, {})  # a size goes with its mode
        given[name] = {**before, **section}
    return given


@asynccontextmanager
async def trading(
    venue: EmbeddedExchange, database: Path, **sections: Mapping[str, Any]
) -> AsyncIterator[Live]:
    """Run a daemon until the block ends, then stop it in good order."""
    live = Live(venue)
    daemon = Daemon(
        load(None, settings(venue, **sections)),
        database,
        kind=RunKind.LIVE,
        watch=live.watch,
        clock=ExchangesClock(venue),
    )
    live.task = asyncio.create_task(daemon.run())
    try:
        yield live
        daemon.stop()
        async with deadline():
            await asyncio.wait([live.task])
        live.task.result()
    except BaseException:
        # pytest keeps the folder of a failed test: what did not arrive can be read there.
        database.with_suffix(".trace").write_text(live.trace(), encoding="utf-8")
        raise
    finally:
        live.task.cancel()
        await asyncio.wait([live.task])


def check_parity(path: Path, folder: Path) -> None:
    """Check the record, and that a replay of what it holds decides the same, bit by bit."""
    check_record(path)
    parity = run_again(path, folder / "again.db")
    assert parity.passes, parity.differences
    assert parity.identical == parity.compared > 0
