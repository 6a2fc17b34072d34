"""The whole backtest against an independent, vectorised computation, to the last tick.

``sma_cross`` 20/100, quantity 1, next_open, no slippage, fee 0.055 %: cash, trades and equity must
be equal on any candle file without holes. The computation below shares no code with the engine.
"""

from __future__ import annotations

import sqlite3
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import numpy as np
import pytest
from recordings import record

from tracepaper.daemon.config.loading import load
from tracepaper.replay.archive import Candles, read_candles
from tracepaper.strategies.units import INTERVAL_NAMES

CANDLES = Path(__file__).parents[2] / "data" / "candles"
SHARED = Path(__file__).parents[4] / "shared" / "data" / "klines"
FEE = Decimal("0.00055")
CASH = Decimal(1_000_000)
FAST, SLOW = 20, 100


def whole_files() -> list[Path]:
    """Return every candle file without holes: the licensed copies, and more where they lie."""
    files = sorted(CANDLES.glob("*.csv.gz"))
    files += sorted(SHARED.glob("bybit_linear_*_1?_*.csv.gz"))
    return [
        path
        for path in files
        if "funding" not in path.name
        and "quotes" not in path.name
        and "spot" not in path.name
        and len(read_candles(path)) > 3 * SLOW
        and not read_candles(path).gaps
    ]


def vectorised(candles: Candles, *, long_only: bool) -> tuple[Decimal, Decimal, int]:
    """Return cash, equity and number of trades at the end, from whole columns at once."""
    closes = candles.close.astype(object)
    opens = candles.open.astype(object)
    sums = np.concatenate([[0], np.cumsum(closes)])
    quick = sums[SLOW:] - sums[SLOW - FAST : -FAST]
    calm = sums[SLOW:] - sums[:-SLOW]
    above = quick * SLOW > calm * FAST
    target = np.zeros(len(closes) + 1, dtype=object)
    target[SLOW:] = np.where(above, 1, 0 if long_only else -1)
    held = target[:-1]  # decided at a close, held from the next open on
    change = held - np.concatenate([[0], held[:-1]])
    traded = np.flatnonzero(change)
    scale = Decimal(1).scaleb(-candles.price_decimals)
    paid = [
        (int(change[place]), abs(int(change[place])) * int(opens[place]) * scale)
        for place in traded
    ]
    fees = sum(
        ((size * FEE).quantize(Decimal("1e-8"), rounding=ROUND_HALF_EVEN) for _, size in paid),
        Decimal(0),
    )
    spent = sum((size if signed > 0 else -size for signed, size in paid), Decimal(0))
    equity = CASH - spent - fees + int(held[-1]) * int(closes[-1]) * scale
    return CASH - spent - fees, equity, len(traded)


@pytest.mark.parametrize("long_only", [True, False])
@pytest.mark.parametrize("path", whole_files(), ids=lambda path: path.name)
def test_cash_trades_and_equity_equal_an_independent_computation(
    tmp_path: Path, path: Path, long_only: bool
) -> None:
    candles = read_candles(path)
    assert candles.gaps == []
    names = INTERVAL_NAMES
    config = load(
        None,
        {
            "market": {"symbols": [candles.symbol], "interval": names[candles.interval_ms]},
            "strategy": {
                "name": "sma_cross", "fast": FAST, "slow": SLOW, "long_only": long_only,
            },
            "sizing": {"mode": "fixed", "quantity": "1"},
            "execution": {"taker_fee": str(FEE)},
            "account": {"cash": str(CASH)},
        },
    )  # fmt: skip
    database = tmp_path / "run.db"
    record(database, config, [candles])
    cash, equity, trades = vectorised(candles, long_only=long_only)
    with sqlite3.connect(database) as db:
        fills = db.execute("SELECT count(*) FROM v_fills").fetchone()[0]
        row = db.execute(
            "SELECT equity_text, fees_paid_text, unrealized_pnl_text FROM v_equity"
            " ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        paid = db.execute("SELECT side, quantity_text, price_text, fee_text FROM v_fills")
        spent = sum(
            (
                (1 if side == "BUY" else -1) * Decimal(quantity) * Decimal(price) + Decimal(fee)
                for side, quantity, price, fee in paid
            ),
            Decimal(0),
        )
    assert fills == trades > 0
    assert Decimal(row[0]) == equity
    assert CASH - spent == cash
