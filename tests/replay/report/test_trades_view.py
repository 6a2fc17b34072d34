"""``v_trades`` equals the report's closed trades and those of ``Run.trades``."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from report_cases import BTC, funding_file

from tracepaper import Action, Percent, Signal, Strategy
from tracepaper.replay.api import backtest
from tracepaper.replay.run import Run
from tracepaper.replay.samples import DEMO_CANDLES
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews

SIZED: dict[str, Any] = {"sizing": {"mode": "fixed", "quantity": "0.1"}}
COSTLY: dict[str, Any] = {"slippage_bp": "2", "spread_bp": "1"}
FORECAST = ("mean_return", "stdev_return", "volatility", "horizon")


class StopNextBars(Strategy):
    """Enters after each bar, with a stop that the next bars reach."""

    warmup = 1

    def decide(self, context: Any) -> Signal:
        action = Action.LONG if context.exact.close % 2 else Action.SHORT
        return Signal(action, "in", stop=Percent(0.05), target=Percent(0.1), reenter=True)


def rows(run: Run[Any]) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(run.database)) as connection:
        connection.row_factory = sqlite3.Row
        query = "SELECT * FROM v_trades WHERE run_id = ? ORDER BY closed_ms, instrument"
        return [dict(row) for row in connection.execute(query, (run.run_id,))]


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "turns": ("sma_cross", BTC, {"config": {**SIZED, "execution": COSTLY}}),
    "stops": (StopNextBars, BTC, {"config": {**SIZED, "execution": COSTLY},
                               "end": "2025-05-04T20:00"}),
    "spot": (StopNextBars, {"BTCUSDT": BTC}, {"config": {**SIZED, "market": {"category": "spot"}},
                                           "end": "2025-05-04T18:00"}),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def run(request: pytest.FixtureRequest) -> Iterator[Run[Any]]:
    strategy, data, more = CASES[request.param]
    params = {"fast": 5, "slow": 20} if strategy == "sma_cross" else None
    with backtest(strategy, data, params=params, **more) as done:
        yield done


def test_a_trade_has_the_forecast_of_the_decision_that_opened_it(tmp_path: Path) -> None:
    def read(path: Path) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
        with Reader.open(path) as reader:
            views = RunViews(reader.connection, reader.run_ids()[0])
            decided = {row["sequence"]: row for row in views.rows("v_decisions")}
            return views.rows("v_trades"), decided

    gate = {"confidence": "0", "direction": "0", "edge": "0", "shift": "1", "collapse": "-9"}
    new = tmp_path / "new.db"
    config = {"market": {"interval": "1"}, "gate": gate, **SIZED}
    backtest("attention", DEMO_CANDLES, config=config, end="2025-05-31T09:00", db=new)
    trades, decided = read(new)
    assert trades
    for trade in trades:
        opened = decided[trade["entry_sequence"]]
        assert opened["mean_return"] is not None
        assert {name: trade[name] for name in FORECAST} == {name: opened[name] for name in FORECAST}


def test_what_it_earned_is_gross_less_costs_and_funding(run: Run[Any]) -> None:
    for row in rows(run):
        left = row["gross"] - row["costs"] - row["funding"]
        assert row["net"] == pytest.approx(left, abs=1e-9)
        assert row["costs"] >= row["fees"] - 1e-6 >= -1e-6
        assert row["bars_held"] == row["closed_ms"] // 60_000 - row["opened_ms"] // 60_000


def test_funding_is_that_of_the_time_it_was_held(tmp_path: Any) -> None:
    class HoldingStrategy(Strategy):
        warmup = 1

        def decide(self, context: Any) -> Signal:
            side = Action.LONG if context.time // 36_000_000 % 2 else Action.SHORT
            return Signal(side, f"{side.value} for ten hours")

    files = (funding_file(tmp_path),)
    with backtest(
        HoldingStrategy, DEMO_CANDLES, config=SIZED, funding=files, end="2025-05-29"
    ) as run:
        trades = rows(run)
        assert len(trades) > 4
        held = {row["opened_ms"]: row["funding"] for row in trades}
        with closing(sqlite3.connect(run.database)) as connection:
            for row in trades:
                query = (
                    "SELECT -sum(amount) FROM v_ledger WHERE kind = 'funding' "
                    "AND market_ms > ? AND market_ms <= ?"
                )
                span = (row["opened_ms"], row["closed_ms"])
                ((paid,),) = connection.execute(query, span).fetchall()
                assert row["funding"] == pytest.approx(paid or 0.0, abs=1e-9)
        assert sum(value != 0 for value in held.values()) >= 3
