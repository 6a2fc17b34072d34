"""A daemon killed in each moment of a liquidation on cross margin: nothing is lost or repeated."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import own_strategies as own
import pytest
from exchange_client import candles, walk_rows
from programs import BIN, Program
from several_live import check_parity
from waiting import deadline_s, until

from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.decisions import Fill, FillModel

SYMBOLS = ("BTCUSDT", "ETHUSDT")
MINUTE_MS = 60_000
WARM = 100
CRASH = WARM + 4
MODULE = """
import os
import signal

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action, FillModel


class Long(Strategy):
    def decide(self, context):
        return Signal(Action.LONG, "now")


MOMENT = os.environ.get("KILLED", "")
APPENDS, WRITES = SqlAuditLog._append_live, SqlAuditLog._write
SEEN = []


def end(moment):
    if SEEN and moment == MOMENT:
        os.kill(os.getpid(), signal.SIGKILL)


def append(log, *steps):
    fills = [fill for step in steps for fill in step.fills]
    SEEN.extend(fill for fill in fills if fill.model is FillModel.LIQUIDATION)
    APPENDS(log, *steps)
    end("after its commit")


def write(log, commits):
    WRITES(log, commits)
    end("before its commit")


if MOMENT:
    SqlAuditLog._append_live, SqlAuditLog._write = append, write
"""
"""A strategy that is always long, beside what kills its process at a moment of a liquidation."""
ONE = {"strategy": {"name": "killed_cross:Long"}, "sizing": {"notional": "40000"}}
SEVERAL = {
    "strategies": {
        "long": {"name": "killed_cross:Long", "share": "0.5"},
        "more": {"name": "killed_cross:Long", "share": "0.4"},
    },
    "sizing": {"notional": "20000"},
}


def crashing() -> list[tuple[int, int, int, int, int]]:
    """Return a walk whose price falls by 30 % within a minute, and stays."""
    rows = walk_rows(200)
    price = rows[CRASH][0]
    low = 7 * price // 10
    rows[CRASH] = (price, price + 10, low, low, 50_000)
    rows[CRASH + 1 :] = [(low, low + 200, low - 200, low, 5_000)] * (199 - CRASH)
    return rows


def count(path: Path, query: str) -> int:
    if not path.exists():
        return 0
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        try:
            return int(database.execute(query).fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # its tables are being made


def toml(section: dict[str, Any], name: str = "") -> str:
    """Return a section, with its tables below it, as TOML."""
    plain = {key: value for key, value in section.items() if not isinstance(value, dict)}
    lines = [f"[{name}]"] if name and plain else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in section.items():
        if isinstance(value, dict):
            lines.append(toml(value, f"{name}.{key}" if name else key))
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategies", "moment"), [(ONE, "before its commit"), (SEVERAL, "after its commit")]
)
async def test_a_daemon_killed_amid_a_liquidation_loses_and_repeats_nothing(
    tmp_path: Path, strategies: dict[str, Any], moment: str
) -> None:
    (tmp_path / "killed_cross.py").write_text(MODULE)
    path = tmp_path / "live.db"
    served = ExchangeSettings(
        candles=(
            candles(crashing(), symbol="BTCUSDT"),
            candles(walk_rows(200, seed=2), symbol="ETHUSDT"),
        ),
        manual=True, start=WARM, speed=60.0,
    )  # fmt: skip
    command = [str(BIN / "tracepaper"), "run", "-c", "run.toml", "--db", "live.db"]
    async with EmbeddedExchange(served) as exchange:
        given = {
            "market": {"symbols": list(SYMBOLS)},
            "exchange": {
                "rest_url": exchange.rest_url, "stream_url": exchange.stream_url,
                "ahead_ms": 600_000, "requests_per_s": 100, "certain_s": 0.5,
            },
            "account": {"cash": "10000", "margin": "cross", "leverage": "10"},
            "http": {"port": 0},
            **strategies,
        }  # fmt: skip
        given["sizing"] = {"mode": "notional", **strategies["sizing"]}
        (tmp_path / "run.toml").write_text(toml(given))
        environment = {"PYTHONPATH": str(tmp_path)}

        def started(name: str, **more: str) -> Program:
            return Program(command, tmp_path, name=name, extra=environment | more)

        def listens() -> bool:
            return sum(len(one.topics) for one in exchange.hub.connections) >= 6

        def decided() -> int:
            return count(path, "SELECT count(*) FROM v_decisions")

        async def trade(daemon: Program) -> bool:
            """Let the next close be decided; false where the daemon was killed before."""
            wanted = decided() + len(SYMBOLS)
            for _ in range(6):
                await exchange.advance(MINUTE_MS // 6)
            await until(lambda: decided() >= wanted or daemon.process.poll() is not None)
            return daemon.process.poll() is None

        daemon = started("killed", KILLED=moment)
        try:
            await until(listens)
            for _ in range(8):
                if not await trade(daemon):
                    break
            assert daemon.process.wait(deadline_s()) == -signal.SIGKILL, daemon.err
        finally:
            daemon.end()
        stored = taken(path)
        assert len(stored) == (len(SYMBOLS) if moment == "after its commit" else 0)
        await until(lambda: not exchange.hub.connections)
        daemon = started("second")
        try:
            await until(listens)
            for _ in range(3):
                assert await trade(daemon), daemon.err
        finally:
            daemon.process.send_signal(signal.SIGTERM)
            ended = daemon.end()
        assert ended.code == 0, ended.err
    found = taken(path)
    assert found[: len(stored)] == stored
    first = found[: len(SYMBOLS)]
    assert {fill.instrument for fill in first} == {f"linear:{one}" for one in SYMBOLS}
    with own.importable(tmp_path):
        check_parity(path, tmp_path)
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        assert audit(reader.connection, run_id).problem is None
        assert all(kept.account.equity >= 0 for kept in reader.steps(run_id))


def taken(path: Path) -> list[Fill]:
    with Reader.open(path) as reader:
        return [
            fill
            for kept in reader.steps(reader.find("last"))
            for fill in kept.fills
            if fill.model is FillModel.LIQUIDATION
        ]
