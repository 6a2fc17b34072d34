"""Whole runs of several strategies on cross margin: derived again, killed, pruned, forged, live."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from exchange_client import FIRST_MS, candles, walk_rows
from forging import rechain
from killed_replays import killed_and_resumed
from records import check_record, rows
from several_live import MINUTE, check_parity, trading
from several_strategies import SCRIPTED, configured
from storage_cases import prune

from tracepaper.daemon.broker.cross_account import CALLED
from tracepaper.daemon.config.loading import Config
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.recorded import rerun_recorded
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.integrity import audit as audited
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.decisions import FillModel

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
LIQUIDATED = "model = 'liquidation'"


def data(count: int = 160) -> list[Candles]:
    """Return wild walks: bars of some percent, now and then one that moves by a fifth."""
    made = []
    for seed, symbol in enumerate(SYMBOLS):
        rng, price, rows = random.Random(seed + 6), 10_000, []
        for _ in range(count):
            opened = price
            jump = rng.choice((-1, 1)) * rng.randint(0, 2_000) if rng.random() < 0.08 else 0
            close = max(opened + rng.randint(-250, 250) + jump * opened // 10_000, 500)
            high = max(opened, close) + rng.randint(0, 100)
            low = max(min(opened, close) - rng.randint(0, 100), 400)
            rows.append((opened, high, low, close, 5_000 + rng.randint(0, 500)))
            price = close
        made.append(candles(rows, symbol=symbol, interval_ms=60 * MINUTE))
    return made


def crossed(**sections: Any) -> Config:
    given: dict[str, Any] = {
        "market": {"symbols": SYMBOLS, "interval": "60"},
        "sizing": {"mode": "notional", "notional": "40000"},
        "account": {"cash": "10000", "margin": "cross", "leverage": "30"},
        **sections,
    }
    return configured(options=[{"seed": seed} for seed in (5, 6, 7)], reset="day", **given)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("several") / "a.db"
    log = SqlAuditLog.open(path)
    run_replay(build(crossed(), data(), started_at_ms=0, database=path), log, Tally())
    log.end(1)
    log.close()
    return path


def test_a_run_with_liquidations_is_derived_again(once: Path) -> None:
    taken = rows(once, f"SELECT instrument, reason FROM v_fills WHERE {LIQUIDATED}")
    assert len({key for key, _ in taken}) > 1
    assert {reason.partition(": ")[0] for _, reason in taken} == {CALLED}
    parts = rows(
        once, f"SELECT count(*), count(DISTINCT twin) FROM v_twin_fills WHERE {LIQUIDATED}"
    )
    assert parts[0][0] > len(taken)
    assert parts[0][1] > 1
    check_record(once)


def test_what_was_recorded_is_run_again_with_equal_decisions(once: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.db"
    log = SqlAuditLog.open(again)
    rerun_recorded(f"{once}#last", log, again, Tally(), started_at_ms=2)
    log.end(3)
    log.close()
    for query in (
        "SELECT decision_sha256 FROM v_decisions ORDER BY sequence",
        "SELECT order_id, price, quantity FROM v_fills ORDER BY sequence, order_id",
        "SELECT twin, order_id, price, quantity FROM v_twin_fills ORDER BY sequence, 2, 1",
        "SELECT strategy, gates, equity_text FROM v_strategy_decisions ORDER BY sequence, 1",
    ):
        assert rows(again, query) == rows(once, query)


@pytest.mark.parametrize("bars", [90, 101, 330])
def test_a_run_that_is_killed_goes_on_to_the_same_end(
    once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bars: int
) -> None:
    cut = killed_and_resumed(crossed(), data(), tmp_path, monkeypatch, bars=bars)
    check_record(cut)
    for query in (
        "SELECT instrument, open_time_ms, decision_sha256 FROM v_decisions ORDER BY 2, 1",
        "SELECT twin, instrument, price, quantity FROM v_twin_fills ORDER BY filled_ms, 1, 2, 3, 4",
        "SELECT strategy, equity_text FROM v_strategy_decisions ORDER BY open_time_ms, 1, 2",
    ):
        assert rows(cut, query) == rows(once, query)


def test_what_a_prune_keeps_still_adds_up(once: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(once, tmp_path / "a.db"))
    (pruned,) = prune(path, keep_days=4, pruned_at_ms=5)
    assert pruned.steps > 50
    check_record(path)


@pytest.mark.parametrize(
    "forged",
    [
        "UPDATE twin_fills SET quantity = quantity - 1 {}",
        "UPDATE twin_fills SET fee = fee + 1 {}",
        "DELETE FROM twin_fills {}",
    ],
)
def test_a_forged_part_of_a_liquidation_is_named(once: Path, tmp_path: Path, forged: str) -> None:
    path = Path(shutil.copy(once, tmp_path / "a.db"))
    where = f"WHERE (step, book) = (SELECT step, max(book) FROM twin_fills WHERE {LIQUIDATED})"
    with closing(sqlite3.connect(path)) as database:
        assert database.execute(forged.format(where)).rowcount > 0
        database.commit()
    rechain(path)
    with Reader.open(path) as reader:
        problem = audited(reader.connection, reader.find("last")).problem
        assert problem is not None
        is_gone = forged.startswith("DELETE")
        what = "a row was removed" if is_gone else "parts of a fill do not add up to it"
        assert what in problem.sentence


async def test_a_crash_takes_the_parts_of_both_symbols_live_as_replayed(tmp_path: Path) -> None:
    path, both, warm = tmp_path / "live.db", set(SYMBOLS[:2]), 100
    crash = walk_rows(200)
    price = crash[warm + 4][0]
    low = 7 * price // 10
    crash[warm + 4] = (price, price + 10, low, low, 50_000)
    crash[warm + 5 :] = [(low, low + 200, low - 200, low, 5_000)] * (195 - warm)
    served = ExchangeSettings(
        candles=(
            candles(crash, symbol="BTCUSDT"),
            candles(walk_rows(200, seed=2), symbol="ETHUSDT"),
        ),
        manual=True, start=warm, speed=60.0,
    )  # fmt: skip
    long = {"says": {str(at): ["LONG", None] for at in range(9)}}
    given: dict[str, Any] = {
        "exchange": {"time_scale": 60.0, "backoff_max_s": 0.1},
        "market": {"symbols": list(SYMBOLS[:2])},
        "strategies": {
            "long": {"name": SCRIPTED, "share": "0.5", "options": long},
            "more": {"name": SCRIPTED, "share": "0.4", "options": long},
        },
        "account": {"cash": "10000", "margin": "cross", "leverage": "10"},
        "sizing": {"mode": "notional", "notional": "20000"},
    }
    async with EmbeddedExchange(served) as exchange, trading(exchange, path, **given) as live:
        await live.listening(6)
        while exchange.clock.now_ms() < FIRST_MS + (warm + 5) * MINUTE:
            await live.close_bar(both)
        taken = [
            fill
            for step in live.steps
            for twin in step.twins
            for fill in twin.fills
            if fill.model is FillModel.LIQUIDATION
        ]
        assert any(step.fills for step in live.steps)
        assert len(taken) >= 4, "of two symbols the parts of two strategies"
        assert live.steps[-1].account.equity >= 0
        await live.close_bar(both)
    check_parity(path, tmp_path)
