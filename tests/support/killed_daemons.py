"""Daemons that are killed and started again on one database, beside an exchange in this process."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from programs import BIN, Program
from waiting import until

from tracepaper.replay.exchange.fault_kinds import Fault
from tracepaper.replay.exchange.server import EmbeddedExchange

MINUTE_MS = 60_000
CANDLES = "/v5/market/kline"


class KilledDaemon:
    """One database, and the daemons that trade into it one after another."""

    def __init__(
        self,
        folder: Path,
        exchange: EmbeddedExchange,
        config: str,
        symbols: int,
        *,
        requests_per_s: int = 100,
    ) -> None:
        self.path, self.exchange = folder / "live.db", exchange
        self._symbols = symbols
        self._folder, self._count = folder, 0
        (folder / "run.toml").write_text(
            f'[exchange]\nrest_url = "{exchange.rest_url}"\nstream_url = "{exchange.stream_url}"\n'
            f"ahead_ms = 600000\nrequests_per_s = {requests_per_s}\ncertain_s = 0.5\n{config}"
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
            return (
                sum(len(one.topics) for one in self.exchange.hub.connections) >= 3 * self._symbols
            )

        await until(listens)
        for _ in range(minutes):
            wanted = self.count("SELECT count(*) FROM v_decisions") + self._symbols
            for _ in range(6):
                await self.exchange.advance(MINUTE_MS // 6)
            await until(partial(self._has_decided, wanted))

    def _has_decided(self, wanted: int) -> bool:
        return self.count("SELECT count(*) FROM v_decisions") >= wanted

    def events(self, kind: str) -> int:
        return self.count(f"SELECT count(*) FROM v_events WHERE kind = '{kind}'")

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

    def ended(self) -> None:
        """Stop the daemon in good order."""
        self.daemon.process.send_signal(signal.SIGTERM)
        ended = self.daemon.end()
        assert ended.code == 0, ended.err
