"""A daemon that takes order books is killed and started again: nothing comes twice."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import own_strategies as own
import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from programs import BIN, Program
from waiting import until

from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.chain.walk import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.order_book import books_in
from tracepaper.strategies.types.market import Depths

MINUTE_MS = 60_000
SPEED = 60.0
TOPICS = 4  # candles, quotes, marks and books
DECIDE = """
books = now.depth
if books is None:
    return Signal(Action.HOLD, 'no book')
note = {'count': float(len(books)), 'last_ms': float(books.seen_ms[-1] - now.time)}
heavier = books.size[:, 0, 0].sum() > books.size[:, 1, 0].sum()
return Signal(Action.LONG if heavier else Action.FLAT, 'by books', note=note)
"""


def started(folder: Path, exchange: EmbeddedExchange, name: str) -> Program:
    """Return a daemon that trades by the books of *exchange*."""
    (folder / "by_live_books.py").write_text(own.source(head="books = 600", decide=DECIDE))
    (folder / "run.toml").write_text(
        f'[exchange]\nrest_url = "{exchange.rest_url}"\nstream_url = "{exchange.stream_url}"\n'
        f"ahead_ms = 600000\nrequests_per_s = 100\ncertain_s = 0.5\n"
        '[market]\nsymbols = ["BTCUSDT"]\ndepth = 20\n[strategy]\nname = "by_live_books:Mine"\n'
        '[model]\ncheckpoint = "none"\n[sizing]\nmode = "notional"\nnotional = "1000"\n'
        "[http]\nport = 0\n"
    )
    command = [str(BIN / "tracepaper"), "run", "-c", "run.toml", "--db", "live.db"]
    return Program(command, folder, name=name, extra={"PYTHONPATH": str(folder)})


def stored(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        try:
            return database.execute(query).fetchall()
        except sqlite3.OperationalError:
            return []  # its tables are being made


def decided(path: Path) -> int:
    found = stored(path, "SELECT count(*) FROM v_decisions") if path.exists() else []
    return int(found[0][0]) if found else 0


def _has(path: Path, count: int) -> bool:
    return decided(path) >= count


async def trade(daemon: Program, exchange: EmbeddedExchange, path: Path, minutes: int) -> None:
    """Let *daemon* decide so many bars more."""

    def listens() -> bool:
        assert daemon.process.poll() is None, daemon.err
        return sum(len(one.topics) for one in exchange.hub.connections) >= TOPICS

    await until(listens)
    for wanted in range(decided(path) + 1, decided(path) + 1 + minutes):
        for _ in range(10):
            await exchange.advance(MINUTE_MS // 10)
        await until(partial(_has, path, wanted))


@pytest.mark.slow
async def test_a_killed_daemon_goes_on_behind_a_gap(tmp_path: Path) -> None:
    data = made_candles(walk_rows(400), symbol="BTCUSDT")
    served = ExchangeSettings(candles=(data,), manual=True, start=200, speed=SPEED)
    path = tmp_path / "live.db"
    async with EmbeddedExchange(served) as exchange:
        daemon = started(tmp_path, exchange, "first")
        try:
            await trade(daemon, exchange, path, 2)
            await exchange.advance(40_000)  # these books wait for their bar
        finally:
            daemon.process.send_signal(signal.SIGKILL)
            daemon.kill()
        killed_ms, kept = exchange.clock.now_ms(), decided(path)
        await until(lambda: not exchange.hub.connections)
        daemon = started(tmp_path, exchange, "second")
        try:
            await trade(daemon, exchange, path, 2)
        finally:
            daemon.process.send_signal(signal.SIGTERM)
            ended = daemon.end()
    assert ended.code == 0, ended.err
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        assert verify_chain(reader.connection, run_id).holds
        with own.importable(tmp_path):
            assert verify_run(reader, path, run_id).differences == []
        found = [event for _, _, event, _ in reader.events(run_id) if isinstance(event, Depths)]
    assert [one.cause for one in found if one.cause] == ["stopped", "stopped"]
    for one, two in pairwise(found):
        assert two.first_ms == one.next_ms or (two.cause and two.first_ms > one.next_ms)
    times = [at for one in found for at in books_in(one).seen_ms.tolist()]
    assert sum(at < killed_ms - 40_000 for at in times) >= 110
    opens = stored(path, "SELECT open_time_ms FROM v_decisions ORDER BY sequence")
    assert len(opens) > kept >= 2
    assert {two - one for (one,), (two,) in pairwise(opens)} == {MINUTE_MS}
    noted = stored(path, "SELECT number FROM v_notes WHERE name = 'last_ms'")
    assert noted
    assert max(ahead for (ahead,) in noted) <= 0
