"""A portfolio strategy sees the order books of each symbol, live and in a replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from depth_cases import FIRST_MS, header, walk, write
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from recordings import record
from records import check_record, rows
from several_live import trading

from tracepaper.daemon.config.loading import load
from tracepaper.replay.archive.books import read_depth
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.api.context import BarContext, Orders, Signal
from tracepaper.strategies.api.strategy import PortfolioStrategy
from tracepaper.strategies.types.decisions import Action

SYMBOLS = ("BTCUSDT", "ETHUSDT")
BARS = 12
SPEED = 60.0
TOPICS = 8  # candles, quotes, marks and books of each


class Both(PortfolioStrategy):
    """Notes the number of books of each symbol at the close and the age of the newest."""

    books = 30
    reads_history = False

    def __init__(self, options: dict[str, object]) -> None:
        self._options = options

    def decide(self, contexts: Mapping[str, BarContext]) -> Mapping[str, Signal | Orders]:
        signals = {}
        for symbol, context in contexts.items():
            books = context.depth
            age = -1.0 if books is None else float(context.time - books.seen_ms[-1])
            count = 0.0 if books is None else float(len(books))
            signals[symbol] = Signal(Action.HOLD, "seen", note={"age": age, "count": count})
        return signals


def sections() -> dict[str, dict[str, Any]]:
    return {
        "market": {"symbols": SYMBOLS, "depth": 5},
        "strategy": {"name": f"{__name__}:Both"},
        "model": {"checkpoint": "none"},
    }


def noted(path: Path, name: str) -> dict[str, list[float]]:
    query = (
        "SELECT d.instrument, n.number FROM v_notes n JOIN v_decisions d USING (run_id, sequence) "
        "WHERE n.name = ? ORDER BY sequence"
    )
    numbers: dict[str, list[float]] = {}
    for instrument, number in rows(path, query, name):
        numbers.setdefault(instrument.partition(":")[2], []).append(number)
    return numbers


def test_each_symbol_of_a_replay_sees_its_own_books(tmp_path: Path) -> None:
    data, depth = [], []
    for number, symbol in enumerate(SYMBOLS):
        series = made_candles(walk_rows(BARS, seed=number + 1), symbol=symbol)
        shift = FIRST_MS - int(series.open_time_ms[0])
        data.append(replace(series, open_time_ms=series.open_time_ms + shift))
        if number == 0:  # the other symbol has no books
            write(
                tmp_path / symbol,
                walk(60 * BARS + 1, seed=number, first_ms=FIRST_MS),
                of=header(of=f"linear:{symbol}"),
            )
            depth.append(read_depth(tmp_path / symbol))
    path = tmp_path / "a.db"
    record(path, load(None, sections()), data, depth=depth)
    assert noted(path, "age") == {"BTCUSDT": [0.0] * BARS, "ETHUSDT": [-1.0] * BARS}
    assert noted(path, "count")["BTCUSDT"] == [30.0] * BARS
    check_record(path)


async def test_the_books_of_all_symbols_come_before_a_close_of_all(tmp_path: Path) -> None:
    served = ExchangeSettings(
        candles=tuple(
            made_candles(walk_rows(400, seed=number), symbol=symbol)
            for number, symbol in enumerate(SYMBOLS)
        ),
        manual=True,
        start=200,
        speed=SPEED,
    )
    path = tmp_path / "live.db"
    given = sections()
    given["exchange"] = {"time_scale": SPEED}
    async with EmbeddedExchange(served) as exchange, trading(exchange, path, **given) as live:
        await live.listening(TOPICS)
        for _ in range(4):
            await live.close_bar(set(SYMBOLS))
    ages = noted(path, "age")
    assert set(ages) == set(SYMBOLS)
    for symbol in SYMBOLS:
        assert min(ages[symbol][1:]) >= 0
        assert max(ages[symbol][1:]) <= 2_000, ages
    check_record(path)
