"""What a class of a user's own may answer, however odd: one sentence, or a record that holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forging import forged, rechain
from records import rows, tamper

import tracepaper
from tracepaper import Action, BarContext, Cancel, Orders, Percent, Signal, Strategy, buy
from tracepaper.replay.run import Run
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid

MINUTE = 60_000
CONFIG: dict[str, Any] = {
    "market": {"symbols": ["BTCUSDT"], "interval": "1", "category": "linear"},
    "sizing": {"mode": "fixed", "quantity": "0.005"},
    "account": {"cash": "100000"},
}


def candles(count: int = 8) -> dict[str, Any]:
    """Return candles that go up and down by a tenth of a percent."""
    closes = 30_000.0 + 30.0 * (np.arange(count) % 4)
    return {
        "open_time": 1_700_000_040_000 + MINUTE * np.arange(count),
        "open": np.concatenate([closes[:1], closes[:-1]]),
        "high": closes + 130.0,
        "low": closes - 130.0,
        "close": closes,
        "volume": np.full(count, 7.0),
    }


def answered(
    answer: Callable[[BarContext], object], db: Path | None = None, category: str = "linear"
) -> Run[Any]:
    """Return the run of a class that answers so."""

    class Odd(Strategy):
        def decide(self, context: BarContext) -> Any:
            return answer(context)

    market = CONFIG["market"] | {"category": category}
    return tracepaper.backtest(Odd, candles(), config=CONFIG | {"market": market}, db=db)


def is_whole(path: Path) -> bool:
    """Return whether the chain of the newest run in *path* holds."""
    with Reader.open(path) as reader:
        return audit(reader.connection, reader.find("last")).passes


def test_a_time_before_all_time_refuses_the_entry() -> None:
    run = answered(lambda _: Signal(Action.LONG, "x", until=-(10**30)))
    assert len(run.orders) == 0


def grid(context: BarContext) -> Orders:
    """Take back all orders and send 150 others: 300 rows of orders, some with fills."""
    lower = (buy(0.001, limit=round(context.close - 1 - i / 10, 1)) for i in range(150))
    return Orders((Cancel(), *lower), "grid")


def test_a_step_of_more_rows_than_its_shape_counts_is_recorded_and_held_to_its_hash(
    tmp_path: Path,
) -> None:
    path = tmp_path / "many.db"
    run = answered(grid, path)
    assert run.verify().passes
    assert is_whole(path)
    (step, most), *_ = rows(
        path, "SELECT sequence, count(*) FROM orders GROUP BY sequence ORDER BY 2 DESC"
    )
    assert most > 256  # one row less, and its shape is what it was
    assert not is_whole(without(path, "orders", step))


def without(path: Path, table: str, step: int) -> Path:
    """Return a copy of the database without the last row of *step* in *table*."""
    last = f"(SELECT max(ordinal) FROM {table} WHERE sequence = {step})"
    statement = f"DELETE FROM {table} WHERE sequence = {step} AND ordinal = {last}"
    return forged(path, path.with_name("without.db"), statement, hide=False)


@pytest.mark.parametrize("column", ["open", "high", "low", "close", "volume", "unrealized_pnl"])
def test_a_step_without_a_number_is_one_sentence_of_verify(tmp_path: Path, column: str) -> None:
    path = tmp_path / "bar.db"
    run = answered(lambda _: Signal(Action.LONG, "x", stop=Percent(5)), path, "spot")
    last = "(SELECT max(sequence) FROM steps WHERE open > 0)"
    tamper(path, f"UPDATE steps SET {column} = NULL WHERE sequence = {last}")
    rechain(path)
    with pytest.raises(DataInvalid, match=r"holds what no step can hold .* restore a backup"):
        run.verify()
