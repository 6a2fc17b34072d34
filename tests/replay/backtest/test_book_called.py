"""Events of books as people give them: typed, from Python, in a sweep, in checks, and wrongly."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import user_strategies as users
from records import rows
from seeded_events import SeededMarket, seeded_market

from tracepaper import backtest, sweep
from tracepaper.daemon.cli import invoke
from tracepaper.replay.sweep.executor import InThisProcess

STRATEGY = """
from tracepaper.strategies.api.context import Orders, buy, sell
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.units import to_tick


class Quotes(Strategy):
    sees_account = True

    def __init__(self, options):
        self.away = float(options.get("away", 0.2))

    def decide(self, context):
        close, held = float(context.history.close[-1]), context.account.position.quantity
        item = context.instrument
        asked = [
            buy(1.5, limit=to_tick(close - self.away, item), tag="bid"),
            sell(1.5, limit=to_tick(close + self.away, item), tag="ask"),
        ]
        if abs(held) > 2:
            leave = sell if held > 0 else buy
            asked.append(leave(abs(held), reduce_only=True, tag="out"))
        return Orders(tuple(asked), f"quotes around {held}")
"""
RUN = """
[strategy]
name = "quotes_at_books:Quotes"
[account]
cash = "100000000"
[model]
checkpoint = "none"
[execution]
model = "book"
"""
CONFIG = {
    "account": {"cash": "100000000"},
    "model": {"checkpoint": "none"},
    "execution": {"model": "book"},
}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> SeededMarket:
    return seeded_market(tmp_path_factory.mktemp("market"), minutes=90, every_ms=3_000)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "quotes_at_books.py").write_text(STRATEGY)
    (tmp_path / "run.toml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACEPAPER_TRIALS", str(tmp_path / "trials.db"))
    return tmp_path


def typed(place: Path, *words: str | Path) -> int:
    with users.importable(place):
        return invoke([str(word) for word in words])


def fills(path: Path) -> list[tuple[Any, ...]]:
    sql = "SELECT filled_ms, side, price_text, quantity_text, model FROM v_fills ORDER BY sequence"
    return rows(path, sql)


def test_the_command_the_call_and_a_sweep_make_the_same_run(
    place: Path, market: SeededMarket
) -> None:
    given = ("-c", "run.toml", "--events", market.events, "--db", "a.db")
    assert typed(place, "replay", market.candles, *given) == 0
    with users.importable(place):
        backtest(
            "quotes_at_books:Quotes", market.candles, config=CONFIG, events=market.events, db="b.db"
        ).close()
        swept = sweep(
            "quotes_at_books:Quotes", market.candles, {"away": [0.2, 0.4]}, config=CONFIG,
            events=[market.events], objective="return", executor=InThisProcess(), progress=False,
        )  # fmt: skip
    rows = fills(place / "a.db")
    assert len(rows) > 8
    assert {row[4] for row in rows} == {"book"}
    assert fills(place / "b.db") == rows
    assert [cell.error for cell in swept.cells] == ["", ""]
    assert swept.command is not None
    words = shlex.split(swept.command)
    assert words[words.index("--events") + 1] == str(market.events)
    ways = {cell.point["away"]: cell.value for cell in swept.cells}
    assert ways[0.2] != ways[0.4]
