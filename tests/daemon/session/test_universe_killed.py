"""A daemon with a universe is killed in each of its moments: no choice is lost or made twice."""

from __future__ import annotations

import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from programs import BIN, Program
from several_live import check_parity
from waiting import until

from tracepaper.daemon.config.market import UniverseRule
from tracepaper.daemon.feed.universe import next_choice_ms
from tracepaper.replay.exchange.fault_kinds import Fault
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.market import Bar, UniverseChange

MINUTE_MS = 60_000
NAMES = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
TICKERS, CANDLES = "/v5/market/tickers", "/v5/market/kline"
EVERY = [f"{hour:02d}:{minute:02d}" for hour in range(24) for minute in range(0, 60, 4)]
RULE = UniverseRule(top=1, at=tuple(EVERY))
CONFIG = f"""
[market]
symbols = ["AAAUSDT", "BBBUSDT", "CCCUSDT"]
[market.universe]
top = 1
at = {EVERY}
[strategy]
name = "sma_cross"
fast = 3
slow = 7
long_only = false
[sizing]
mode = "notional"
notional = "1000"
[http]
port = 0
"""


class Killed:
    """One database, and the daemons that trade into it one after another."""

    def __init__(self, folder: Path, exchange: EmbeddedExchange) -> None:
        self.path, self.exchange = folder / "live.db", exchange
        self._folder, self._count = folder, 0
        (folder / "run.toml").write_text(
            f'[exchange]\nrest_url = "{exchange.rest_url}"\nstream_url = "{exchange.stream_url}"\n'
            f"ahead_ms = 600000\nrequests_per_s = 100\ncertain_s = 0.5\n{CONFIG}"
        )
        self.daemon = self.started()

    def started(self) -> Program:
        command = [str(BIN / "tracepaper"), "run", "-c", "run.toml", "--db", "live.db"]
        self._count += 1
        return Program(command, self._folder, name=f"daemon-{self._count}")

    async def killed_when(self, condition: Callable[[], object]) -> None:
        """Kill the daemon once *condition* holds, and start another one."""

        def holds() -> bool:
            assert self.daemon.process.poll() is None, self.daemon.err
            return bool(condition())

        await until(holds)
        self.daemon.process.send_signal(signal.SIGKILL)
        self.daemon.kill()
        await until(lambda: not self.exchange.hub.connections)
        self.daemon = self.started()

    def hangs(self, path: str) -> Callable[[], bool]:
        """Let the next request of *path* wait; the answer says whether it does."""
        before = self.exchange.faults.tally("hang").fired
        self.exchange.faults.arm(Fault("hang", topic=path, ms=3_600_000))
        return lambda: self.exchange.faults.tally("hang").fired > before

    async def trade(self, minutes: int) -> None:
        """Let so many closes more be decided."""

        def listens() -> bool:
            assert self.daemon.process.poll() is None, self.daemon.err
            return sum(len(one.topics) for one in self.exchange.hub.connections) >= 9

        await until(listens)
        for _ in range(minutes):
            wanted = self.count("SELECT count(*) FROM v_decisions") + len(NAMES)
            for _ in range(6):
                await self.exchange.advance(MINUTE_MS // 6)
            await until(partial(self._has_decided, wanted))

    def _has_decided(self, wanted: int) -> bool:
        return self.count("SELECT count(*) FROM v_decisions") >= wanted

    def choices(self) -> int:
        return self.count("SELECT count(*) FROM v_events WHERE kind = 'universe'")

    def count(self, query: str) -> int:
        if not self.path.exists():
            return 0
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as database:
            try:
                return int(database.execute(query).fetchone()[0])
            except sqlite3.OperationalError:
                return 0  # its tables are being made

    async def trade_until(self, condition: Callable[[], object]) -> None:
        """Let closes be decided until *condition* holds: a choice is due within four of them."""
        for _ in range(8):
            if condition():
                return
            await self.trade(1)
        await until(condition)


@pytest.mark.slow
async def test_a_daemon_that_is_killed_at_any_moment_of_a_choice_goes_on_with_it(
    tmp_path: Path,
) -> None:
    data = tuple(
        made_candles(walk_rows(300, seed=seed), symbol=name) for seed, name in enumerate(NAMES)
    )
    served = ExchangeSettings(candles=data, manual=True, start=200, speed=60.0)
    async with EmbeddedExchange(served) as exchange:
        exchange.faults.arm(Fault("hang", topic=TICKERS, ms=3_600_000))
        run = Killed(tmp_path, exchange)
        try:
            # In the first choice: it is made by the next start, before any bar.
            await run.killed_when(lambda: exchange.faults.tally("hang").fired)
            # Behind the first choice, in the warm-up.
            waits = run.hangs(CANDLES)
            await run.killed_when(lambda: waits() and run.choices())
            await run.trade(1)
            assert run.choices() == 1
            # In a choice that is due amid the run.
            waits = run.hangs(TICKERS)
            await run.trade_until(waits)
            await run.killed_when(waits)
            assert run.choices() == 1
            await run.trade(1)
            await until(lambda: run.choices() == 2)
            # Right behind one.
            await run.trade_until(lambda: run.choices() == 3)
            await run.killed_when(lambda: run.choices() == 3)
            await run.trade(2)
        finally:
            run.daemon.process.send_signal(signal.SIGTERM)
            ended = run.daemon.end()
    assert ended.code == 0, ended.err
    with Reader.open(run.path) as reader:
        assert len(reader.run_ids()) == 1
        events = [event for _, _, event, _ in reader.events(reader.find("last"))]
    made_ms = [event.market_ms for event in events if isinstance(event, UniverseChange)]
    assert all(later_ms >= next_choice_ms(RULE, at_ms) for at_ms, later_ms in pairwise(made_ms))
    assert len(made_ms) == 3
    first = next(place for place, event in enumerate(events) if isinstance(event, UniverseChange))
    assert not any(isinstance(event, Bar) for event in events[:first])
    opened = Counter(
        (event.instrument, event.open_time_ms) for event in events if isinstance(event, Bar)
    )
    assert set(opened.values()) == {1}
    check_parity(run.path, tmp_path)
