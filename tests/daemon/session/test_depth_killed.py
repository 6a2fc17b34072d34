"""A daemon that takes order books is killed and started again: nothing comes twice."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import book_modality_cases as cases
import own_strategies as own
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from learning import write_csv
from programs import BIN, Program
from waiting import until

from tracepaper.daemon.cli import invoke
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.order_book import books_in
from tracepaper.strategies.types.market import Bar, Depths, ModelChange

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


BY_CLASS = """
[market]
symbols = ["BTCUSDT"]
depth = 20
[strategy]
name = "by_live_books:Mine"
[model]
checkpoint = "none"
"""
BY_NETWORK = f"""
[market]
symbols = ["BTCUSDT"]
depth = 20
depth_every_ms = {cases.EVERY_MS}
[strategy]
name = "attention"
[model]
checkpoint = "out"
threads = 1
[gate]
horizon = 30
late_ms = 300_000
"""


def started(
    folder: Path, exchange: EmbeddedExchange, name: str, decides: str = BY_CLASS
) -> Program:
    """Return a daemon that trades by the books of *exchange*."""
    (folder / "by_live_books.py").write_text(own.source(head="books = 600", decide=DECIDE))
    (folder / "run.toml").write_text(
        f'[exchange]\nrest_url = "{exchange.rest_url}"\nstream_url = "{exchange.stream_url}"\n'
        f"ahead_ms = 600000\nrequests_per_s = 100\ncertain_s = 0.5\n{decides}"
        '[sizing]\nmode = "notional"\nnotional = "1000"\n[http]\nport = 0\n'
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


async def test_a_network_that_reads_books_answers_from_the_first_bar_after_a_kill(
    tmp_path: Path,
) -> None:
    """Warm bars have no book and are neutral; verify knows each bar's books as the daemon did."""
    candles = write_csv(cases.candles(cases.COUNT), tmp_path)
    cases.write_books(tmp_path / "books.depth", cases.COUNT)
    (tmp_path / "recipe.toml").write_text(cases.RECIPE + cases.SPLIT, "utf-8")
    told = (tmp_path / "recipe.toml", "--data", candles, "--depth", tmp_path / "books.depth")
    assert invoke([str(word) for word in ("train", *told, "--out", tmp_path / "out")]) == 0
    data = made_candles(walk_rows(900), symbol="BTCUSDT")
    served = ExchangeSettings(candles=(data,), manual=True, start=700, speed=SPEED)
    path = tmp_path / "live.db"
    async with EmbeddedExchange(served) as exchange:
        for name, stop in (("first", signal.SIGKILL), ("second", signal.SIGTERM)):
            daemon = started(tmp_path, exchange, name, BY_NETWORK)
            try:
                await trade(daemon, exchange, path, 3)
                await exchange.advance(40_000)
            finally:
                daemon.process.send_signal(stop)
                ended = daemon.end()
            await until(lambda: not exchange.hub.connections)
    assert ended.code == 0, ended.err
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        assert verify_chain(reader.connection, run_id).holds
        assert verify_run(reader, path, run_id).differences == []
        events = [event for _, _, event, _ in reader.events(run_id)]
    has_book: list[tuple[int, bool]] = []  # of each bar that came after a start
    known_ms: list[int] | None = None
    for event in events:
        match event:
            case ModelChange():
                known_ms = []
            case Depths():
                (known_ms := known_ms or []).extend(books_in(event).seen_ms.tolist())
            case Bar() if known_ms is not None:
                close_ms = event.close_time_ms
                fresh = any(close_ms - 2 * cases.EVERY_MS <= at <= close_ms for at in known_ms)
                has_book.append((event.open_time_ms, fresh))
    decided_bars = "SELECT open_time_ms, mean_return IS NOT NULL FROM v_decisions ORDER BY sequence"
    answered = {at: bool(said) for at, said in stored(path, decided_bars)}
    assert answered == {at: fresh for at, fresh in has_book if at in answered}
    assert sum(answered.values()) >= 5
