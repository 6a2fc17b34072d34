"""A daemon goes on in a new file at the first close of a month."""

from __future__ import annotations

from pathlib import Path

import pytest
from exchange_client import candles, walk_rows
from records import check_record, rows
from several_live import MINUTE, SPEED, trading

from tracepaper.daemon.session.account_chain import account_chain, joints_of
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.months import month_start
from tracepaper.strategies.units import DAY_MS, HOUR_MS, day_text

BEFORE = 4
"""Bars of the old month."""


@pytest.mark.parametrize("is_refused", [False, True])
async def test_a_daemon_goes_on_in_a_new_file_at_the_first_close_of_a_month(
    tmp_path: Path, is_refused: bool
) -> None:
    turn_ms = month_start(12 * 55)
    data = candles(walk_rows(260, seed=3), first_ms=turn_ms - (200 + BEFORE) * MINUTE)
    served = ExchangeSettings(candles=(data,), manual=True, start=200, speed=SPEED)
    strategy = {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False}
    path = tmp_path / "tp.db"
    older = path.with_name(f"tp.db.{day_text(turn_ms - 1)}")
    if is_refused:
        older.write_bytes(b"another file")
    async with EmbeddedExchange(served) as exchange:
        rotating = {"rotate": "month"}
        async with trading(exchange, path, strategy=strategy, storage=rotating) as live:
            await live.listening(3)
            for _ in range(2 * BEFORE):
                await live.close_bar({"BTCUSDT"})
    files = [path] if is_refused else [older, path]
    chain = account_chain(files)
    assert [joint.follows for joint in joints_of(chain)] == [True] * (len(files) - 1)
    opened = "SELECT open_time_ms FROM v_decisions ORDER BY 1"
    decided = [[at_ms for (at_ms,) in rows(file, opened)] for file in files]
    due = [turn_ms + place * MINUTE for place in range(-BEFORE, BEFORE)]
    assert decided == ([due] if is_refused else [due[:BEFORE], due[BEFORE:]])
    assert sum(map(check_record, files)) == 2 * BEFORE


async def test_a_refused_rotation_is_tried_again_a_day_later(tmp_path: Path) -> None:
    turn_ms = month_start(12 * 55)
    walk = walk_rows(260, seed=3)
    data = candles(walk, interval_ms=HOUR_MS, first_ms=turn_ms - 201 * HOUR_MS)
    served = ExchangeSettings(candles=(data,), manual=True, start=200, speed=SPEED)
    path = tmp_path / "tp.db"
    older = path.with_name(f"tp.db.{day_text(turn_ms - 1)}")
    older.write_bytes(b"another file")
    async with EmbeddedExchange(served) as exchange:
        sections = {"storage": {"rotate": "month"}, "market": {"interval": "60"}}
        async with trading(exchange, path, strategy={"name": "sma_cross"}, **sections) as live:
            await live.listening(3)
            await live.close_bar({"BTCUSDT"}, HOUR_MS)
            await live.close_bar({"BTCUSDT"}, HOUR_MS)
            older.unlink()
            for _ in range(25):
                await live.close_bar({"BTCUSDT"}, HOUR_MS)
    decided = "SELECT min(open_time_ms), max(open_time_ms) FROM v_decisions"
    # The refusal came a moment after the close, so the first close a day later is the next one.
    newest_ms = turn_ms + DAY_MS
    older = path.with_name(f"tp.db.{day_text(newest_ms)}")
    assert rows(older, decided) == [(turn_ms - HOUR_MS, newest_ms)]
    assert rows(path, decided) == [(newest_ms + HOUR_MS, newest_ms + HOUR_MS)]
