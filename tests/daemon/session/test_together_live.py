"""Cross-asset networks trade live, through restarts, lost connections and halts."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from learning import learnable
from models import TOGETHER, TOGETHER_CONTEXT, TOGETHER_EVERY, together
from recordings import record
from records import rows
from several_live import SPEED, check_parity, trading

from tracepaper.daemon.config.loading import load as load_config
from tracepaper.replay.archive import Candles
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings

OTHERS = {"AAAUSDT", "CCCUSDT"}
BARS, START = 620, 560


def data(*, shorter: int = 0) -> list[Candles]:
    """Return the candles of all symbols; the second lacks its first *shorter* candles."""
    candles = [learnable(BARS, seed=at, symbol=symbol) for at, symbol in enumerate(TOGETHER)]
    candles[1] = candles[1][shorter:]
    return candles


def sections(folder: Path, kind: str, **more: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {
        "strategy": {"name": kind, "shadows": ("random_gate",)},
        "model": {"checkpoint": str(folder), "deadline_ms": 60_000},
        "market": {"symbols": TOGETHER, "gather_ms": 40},
        "sizing": {"mode": "equity", "fraction": "1"},
        "exchange": {"certain_s": 0.1},
    }
    for name, section in more.items():
        merged[name] = {**merged.get(name, {}), **section}
    return merged


def serving(candles: Sequence[Candles], *, start: int = START) -> EmbeddedExchange:
    """Serve *candles* from so many bars after the first that all of them have."""
    return EmbeddedExchange(
        ExchangeSettings(candles=tuple(candles), manual=True, start=start, speed=SPEED)
    )


def weights(path: Path) -> dict[tuple[int, str], float]:
    """Return the noted weight of each decision, by open time and instrument."""
    query = "SELECT open_time_ms, instrument, number FROM v_notes WHERE name = 'weight'"
    return {(at, name): weight for at, name, weight in rows(path, query)}


def why(path: Path, open_ms: int) -> set[tuple[Any, ...]]:
    """Return symbol, action, refusing gate and reason of each decision at a close."""
    query = (
        "SELECT substr(d.instrument, 8), d.action, d.refused_by, n.text FROM v_decisions d LEFT "
        "JOIN v_notes n ON n.run_id = d.run_id AND n.sequence = d.sequence AND n.name = "
        f"'no_answer' WHERE d.open_time_ms = {open_ms}"
    )
    return set(rows(path, query))


def cut(path: Path, copy: Path) -> Path:
    """Return a copy of a database in use, as if its process were killed now."""
    with closing(sqlite3.connect(path)) as connection, closing(sqlite3.connect(copy)) as other:
        connection.backup(other)
    return copy


@pytest.mark.sockets
@pytest.mark.parametrize("kind", ["crossasset", "portfolio"])
async def test_killed_and_started_again_it_decides_as_a_replay_of_the_candles_does(
    kind: str, tmp_path: Path
) -> None:
    folder, candles = together(tmp_path / kind, kind), data()
    given, killed = sections(folder, kind), tmp_path / "killed.db"
    async with serving(candles) as exchange:
        async with trading(exchange, tmp_path / "first.db", **given) as live:
            await live.listening(9)
            for _ in range(7):
                await live.close_bar(set(TOGETHER))
            cut(tmp_path / "first.db", killed)
            await live.close_bar(set(TOGETHER))
        for bars in (6, 5):  # a kill, then an orderly restart
            async with trading(exchange, killed, **given) as live:
                await live.listening(9)
                for _ in range(bars):
                    await live.close_bar(set(TOGETHER))
    check_parity(killed, tmp_path)
    assert rows(killed, "SELECT count(DISTINCT run_id) FROM v_runs") == [(1,)]
    assert rows(killed, "SELECT count(*) FROM v_fills")[0][0] > 3
    assert rows(killed, "SELECT count(*) FROM v_shadow_fills WHERE shadow = 'ungated'")[0][0] > 3
    path = tmp_path / "archive.db"
    record(path, load_config(None, given), candles)
    live_said, weights_of = weights(killed), weights(path)
    assert len(live_said) >= 3 * 5
    assert live_said == {key: weights_of[key] for key in live_said}


async def test_a_close_that_a_bar_misses_holds_all_and_is_followed_when_it_came(
    tmp_path: Path,
) -> None:
    folder, path = together(tmp_path / "portfolio", "portfolio"), tmp_path / "late.db"
    async with (
        serving(data()) as exchange,
        trading(exchange, path, **sections(folder, "portfolio")) as live,
    ):
        await live.listening(9)
        await live.close_bar(set(TOGETHER))
        exchange.arm("wrong_close", form="missing", topic="kline.1.BBBUSDT")
        missed, then = [await live.close_bar(OTHERS) for _ in range(2)]
        both = missed, then  # the second closes before REST has answered about the first
        await live.until(lambda: all("BBBUSDT" in live.decided(at) for at in both))
        after = [await live.close_bar(set(TOGETHER)) for _ in range(TOGETHER_EVERY + 1)]
    check_parity(path, tmp_path)
    missing = "BBBUSDT has no bar at this close"
    late = "a bar came after the others of its close"
    assert why(path, missed) == {
        ("AAAUSDT", "HOLD", "finite", missing),
        ("BBBUSDT", "HOLD", "late", late),
        ("CCCUSDT", "HOLD", "finite", missing),
    }
    decided = [at for at in after if (at // 60_000 + 1) % TOGETHER_EVERY == 0]
    assert decided
    assert {at for at, _ in weights(path)} >= set(decided)


async def test_a_symbol_with_less_of_a_past_holds_all_until_it_has_enough(tmp_path: Path) -> None:
    folder, path = together(tmp_path / "portfolio", "portfolio"), tmp_path / "young.db"
    lacking = 4
    async with (
        serving(data(shorter=60), start=TOGETHER_CONTEXT - lacking) as exchange,
        trading(exchange, path, **sections(folder, "portfolio")) as live,
    ):
        await live.listening(9)
        closes = [await live.close_bar(set(TOGETHER)) for _ in range(lacking + TOGETHER_EVERY)]
    check_parity(path, tmp_path)
    reasons = why(path, closes[1])  # the first decision may precede the first quotes
    held = TOGETHER_CONTEXT - lacking + 2
    short = f"BBBUSDT has {held} of the {TOGETHER_CONTEXT} bars it needs"
    assert ("AAAUSDT", "HOLD", "finite", short) in reasons
    assert ("BBBUSDT", "HOLD", "warm", None) in reasons
    times = {at for at, _ in weights(path)}
    assert times
    assert min(times) >= closes[lacking - 1]
