"""Records of daemons derived from a time on, with a model and with quotes, and forged."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bybit_server import MINUTE, START_MS, ScriptedServer, ticker
from daemon_under_test import daemon, decide, price
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from forging import rechain, verified
from models import ONE_LAYER_CONTEXT, written
from records import rows, tamper
from several_live import trading

from tracepaper.daemon.engine.history import InstrumentState
from tracepaper.replay.checks.changed_run import changed_run
from tracepaper.replay.checks.verify import Verification
from tracepaper.replay.checks.what_if import what_if
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import TracepaperError

pytestmark = pytest.mark.usefixtures("one_thread")

OFF = {"edge": "0", "confidence": "0", "collapse": "0", "shift": "1", "direction": "0"}
EVERY = ["MOMENTUM", "MIXED", "MEAN_REVERSION"]
LATE = 560
"""Bars that REST brings while the stream is silent: more than the model looks back on."""


def by_model(folder: Path) -> dict[str, Any]:
    """Return the sections of a daemon whose small model passes every gate."""
    written(folder)
    return {
        "strategy": {"name": "attention", "shadows": ["ungated", "random_gate", "held"]},
        "model": {"checkpoint": str(folder)},
        "gate": {"plausible": "10000", **OFF, "regimes": EVERY, "horizon": 30},
    }


async def forecast(database: Path, sections: dict[str, Any]) -> None:
    """Let a daemon decide by its model, miss more bars than its context, and start again."""
    async with ScriptedServer() as server:
        for before in range(1, ONE_LAYER_CONTEXT + 2):
            server.add_candle(START_MS - before * MINUTE, price(before))
        async with daemon(server, database, **sections) as running:
            await decide(running, 0, 14)
            running.pass_bars(LATE)
            server.server_ms = START_MS + running.minute * MINUTE + 2_500
            await server.send(ticker(server.server_ms, price(running.minute)))
            await running.until(lambda: running.decided() >= 14 + LATE)
            await decide(running, 14 + LATE, 12)
        async with daemon(server, database, **sections) as running:
            await decide(running, 26 + LATE, 6)


def by_quotes() -> dict[str, Any]:
    """Return the sections of a daemon that turns every two bars, under stops and targets."""
    return {
        "market": {"symbols": ["BTCUSDT"]},
        "strategy": {"name": "recorded_strategies:ProtectedTurns", "options": {"bars": 2}},
        "sizing": {"mode": "fixed", "quantity": "0.05"},
    }


async def trade(database: Path, sections: dict[str, Any]) -> None:
    """Let a daemon trade at the embedded exchange, and start again."""
    data = made_candles(walk_rows(400), symbol="BTCUSDT")
    served = ExchangeSettings(candles=(data,), manual=True, start=200, speed=60.0)
    async with EmbeddedExchange(served) as exchange:
        for bars in (10, 8):
            async with trading(exchange, database, **sections) as live:
                await live.listening(3)
                for _ in range(bars):
                    await live.close_bar({"BTCUSDT"})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the database of each daemon, with all that belongs beside it."""
    folder = tmp_path_factory.mktemp("model")
    model, quotes = folder / "run.db", tmp_path_factory.mktemp("quotes") / "run.db"
    asyncio.run(forecast(model, by_model(folder / "checkpoint")))
    asyncio.run(trade(quotes, by_quotes()))
    return {"model": model, "quotes": quotes}


DERIVED = {"model": 12, "quotes": 8}
"""The newest bars of each record, which are derived."""


@pytest.fixture(autouse=True)
def short_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no decision ask for the range of a day, which runs of minutes do not have."""
    monkeypatch.setattr(InstrumentState, "lookback", property(lambda of: of.reach))


@pytest.fixture(params=DERIVED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def derived(path: Path, name: str, database: Path) -> Verification:
    """Derive the newest bars of *path*; the models of the record *name* are beside *database*."""
    times = rows(database, "SELECT DISTINCT open_time_ms FROM v_decisions ORDER BY 1")
    return verified(path, database, from_ms=times[-DERIVED[name]][0])


def test_what_a_daemon_did_last_is_derived_alone(recorded: dict[str, Path], name: str) -> None:
    verification = derived(recorded[name], name, recorded[name])
    assert verification.passes, verification.differences[:3]
    assert verification.exact
    assert DERIVED[name] == verification.decisions == verification.agreed
    assert verification.chained > 0


INERT = {"sizing": {"notional": "7777"}}
"""A key of a size that these runs are not sized by."""


def test_a_change_without_effect_decides_all_that_a_daemon_decided(
    recorded: dict[str, Path], name: str
) -> None:
    path = recorded[name]
    with Reader.open(path) as reader:
        result = what_if(changed_run(reader, path, reader.find("last"), changes=INERT))
    assert not result.changed, result.causes
    before, after, _ = ({**account, "account": ""} for account in result.accounts)
    assert before == after
    assert before["fills"]


LAST = "(SELECT max(sequence) FROM steps WHERE outcome IS NOT NULL)"
FORGED = {
    "model": {
        "a bar of the context": (
            f"UPDATE steps SET close = close - 1 WHERE sequence = {LAST} - 200"
        ),
        "what the model said": f"UPDATE answers SET mean_return = 0.01 WHERE sequence = {LAST}",
        "what the model looked at": f"UPDATE answers SET recent_mass = 0.5 WHERE sequence = {LAST}",
    },
    "quotes": {
        "a quote that filled": (
            "UPDATE events SET content = json_set(content, '$.ask', "
            "json_extract(content, '$.ask') + 7, '$.bid', json_extract(content, '$.bid') + 7) "
            "WHERE sequence = (SELECT max(sequence) FROM fills)"
        ),
        "a fill's price": (
            "UPDATE fills SET price = price + 1 WHERE sequence = (SELECT max(sequence) FROM fills)"
        ),
        "a fill's reference": (
            "UPDATE fills SET reference_price = reference_price + 1 "
            "WHERE sequence = (SELECT max(sequence) FROM fills)"
        ),
        "all losing fills": (
            "DELETE FROM fills WHERE order_id IN "
            "(SELECT order_id FROM ledger WHERE kind = 'realized' AND amount < 0)"
        ),
    },
}


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name in FORGED for what in FORGED[name]]
)
def test_what_is_forged_in_a_record_of_a_daemon_is_found_by_its_newest_bars(
    recorded: dict[str, Path], name: str, what: str, tmp_path: Path
) -> None:
    path = Path(shutil.copy(recorded[name], tmp_path / "forged.db"))
    tamper(path, FORGED[name][what])
    rechain(path)
    with suppress(TracepaperError):  # one sentence
        assert not derived(path, name, recorded[name]).passes
