"""What a prune keeps holds the cash of strategies and shadow accounts."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from report_cases import BTC

from tracepaper import backtest
from tracepaper.storage.chain.trades import check_trades

CROSS = {"name": "sma_cross", "slow": 20}
RUNS: dict[str, dict[str, Any]] = {
    "strategies": {
        "strategies": {
            "a": {**CROSS, "fast": 5, "share": "0.7"},
            "b": {**CROSS, "fast": 8, "share": "0.2"},
        }
    },
    "shadow": {"strategy": {**CROSS, "fast": 5, "twins": ["ungated"]}},
}
FORGED = (
    "cash = cash + (book * 2 - 3) * 300000000000",  # 3,000 of one to the other, from the start
    "cash = cash + 10, account_realized_pnl = account_realized_pnl + 10",
)


@pytest.mark.parametrize("which", RUNS)
def test_cash_that_was_moved_between_accounts_is_named(tmp_path: Path, which: str) -> None:
    path = tmp_path / "a.db"
    config = {"sizing": {"mode": "fixed", "quantity": "0.1"}, **RUNS[which]}
    with backtest(None, BTC, config=config, db=path, end="2025-05-04T21:00") as run:
        run_id = run.run_id
    with closing(sqlite3.connect(path)) as connection:
        assert check_trades(connection, run_id) is None
        for change in FORGED:
            connection.execute(f"UPDATE holdings SET {change} WHERE twin IS NOT NULL")
            problem = check_trades(connection, run_id)
            assert problem is not None
            assert problem.tables == ("holdings",)
            connection.rollback()
