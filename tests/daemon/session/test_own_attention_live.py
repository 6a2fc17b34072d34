"""A daemon whose network attends by a class of the user's own: held, killed, started, verified."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import own_strategies as own
import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from learning import DAY_BARS, FORMS, learnable, recipe, write_csv
from programs import BIN, Program
from waiting import until

from tracepaper.daemon.cli import invoke
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.checkpoints import load
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import AttentionInvalid, StrategyFailed
from tracepaper.strategies.forecasters.build import build

MINUTE_MS = 60_000
TURNS = 12
TOPICS = 3  # candles, quotes and marks
MECHANISM = """
import os
import sys
import time
from pathlib import Path

import torch

import tracepaper

SLOW = Path(__file__).with_name("slow")
TURNS = 12


class Mine(tracepaper.AttentionMechanism):
    def forward(self, query, key):
        weights = torch.sigmoid(query @ key.mT).tril()
        weights = weights / weights.sum(dim=-1, keepdim=True)
        from_turn = os.environ.get("MINE_FAILS")
        if not from_turn or key.shape[2] < 20:  # in training and in the trial it is sound
            return weights
        while SLOW.exists():
            time.sleep(0.01)
        # One less with each bar, as windows move on.
        turn = (int(key[0, 0, :, 0].argmax()) + int(from_turn)) % TURNS
        if turn == 1:
            sys.exit(3)
        return {0: weights * torch.nan, 2: weights.double()}.get(turn, weights)
"""
CONFIG = """
[market]
symbols = ["BTCUSDT"]
[strategy]
name = "attention"
[model]
checkpoint = "net"
threads = 1
deadline_ms = 3000
[gate]
horizon = 30
late_ms = 300_000
[http]
port = 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("live")
    (made / "mine_live.py").write_text(MECHANISM, encoding="utf-8")
    data = write_csv(learnable(7 * DAY_BARS), made)
    with own.importable(made):
        told = recipe({**FORMS["own"], "mechanism": "mine_live:Mine"}, made)
        words = ["train", str(told), "--data", str(data), "--out", str(made / "net")]
        assert invoke(words) == 0
    return made


@pytest.fixture
def fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return from which turn on it fails, such that it does not on the draw of a load."""
    found = load(folder / "net")
    for turn in map(str, range(TURNS)):
        monkeypatch.setenv("MINE_FAILS", turn)
        try:
            with own.importable(folder):
                build(found.card, found.tensors)
        except (AttentionInvalid, StrategyFailed):
            continue
        return turn
    raise AssertionError("it fails at each load")


def started(
    folder: Path, exchange: EmbeddedExchange, database: Path, name: str, fails: str = ""
) -> Program:
    (folder / "run.toml").write_text(
        f'[exchange]\nrest_url = "{exchange.rest_url}"\nstream_url = "{exchange.stream_url}"\n'
        f"ahead_ms = 600000\nrequests_per_s = 100\ncertain_s = 0.5\n{CONFIG}",
        encoding="utf-8",
    )
    command = [str(BIN / "tracepaper"), "run", "-c", "run.toml", "--db", str(database)]
    extra = {"PYTHONPATH": str(folder), "MINE_FAILS": fails}
    return Program(command, folder, name=name, extra=extra)


def refused(database: Path) -> list[str | None]:
    """Return the gate that refused each decision so far, None where none did."""
    if not database.exists():
        return []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        try:
            found = db.execute("SELECT refused_by FROM v_decisions ORDER BY sequence").fetchall()
        except sqlite3.OperationalError:
            return []  # its tables are being made
    return [gate for (gate,) in found]


def _has(database: Path, count: int) -> bool:
    return len(refused(database)) >= count


async def trade(daemon: Program, exchange: EmbeddedExchange, database: Path, bars: int) -> None:
    """Let *daemon* decide so many bars more."""

    def listens() -> bool:
        assert daemon.process.poll() is None, daemon.err
        return sum(len(one.topics) for one in exchange.hub.connections) >= TOPICS

    await until(listens)
    known = len(refused(database))
    for wanted in range(known + 1, known + 1 + bars):
        await exchange.advance(MINUTE_MS)
        await until(partial(_has, database, wanted))


async def test_a_daemon_holds_what_fails_and_answers_the_next_bars_and_after_a_kill(
    folder: Path, tmp_path: Path, fails: str
) -> None:
    """Weights that are NaN, of another type, an exit and a loop each hold their bar alone."""
    data = made_candles(walk_rows(900), symbol="BTCUSDT")
    served = ExchangeSettings(candles=(data,), manual=True, start=700, speed=60.0)
    database, slow = tmp_path / "live.db", folder / "slow"
    async with EmbeddedExchange(served) as exchange:
        daemon = started(folder, exchange, database, "first", fails)
        try:
            await trade(daemon, exchange, database, 16)
            slow.touch()
            await trade(daemon, exchange, database, 1)
            assert refused(database)[-1] == "deadline"
            slow.unlink()
            await trade(daemon, exchange, database, 4)
        finally:
            slow.unlink(missing_ok=True)
            daemon.process.send_signal(signal.SIGKILL)
            first = daemon.end()
        kept = len(refused(database))
        await until(lambda: not exchange.hub.connections)
        daemon = started(folder, exchange, database, "second", fails)
        try:
            await trade(daemon, exchange, database, TURNS)
        finally:
            daemon.process.send_signal(signal.SIGTERM)
            second = daemon.end()
    assert second.code == 0, second.err
    every = refused(database)
    for part in (every[:kept], every[kept:]):
        assert "finite" in part
        assert set(part) - {"finite", "deadline"}
    for sentence in (
        "returned weights that are not finite",
        "returned weights of torch.float64",
        "failed in forward with SystemExit: 3",
    ):
        assert sentence in first.err + second.err
    assert "Traceback" not in first.err + second.err
    with Reader.open(database) as reader, own.importable(folder):
        run_id = reader.find("last")
        assert verify_chain(reader.connection, run_id).holds
        assert verify_run(reader, database, run_id).differences == []
