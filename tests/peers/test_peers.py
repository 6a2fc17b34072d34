"""The same candles and orders through other backtesters, where their rules agree with ours.

What is compared: market orders of fixed size, decided at a bar's close and filled at the next
open, a fee in the quote currency, no spread, no slippage, no funding. There the fills must be equal
to the digit and the accounts as near as the peer computes. Elsewhere the rules differ:

- **backtesting.py** counts in floats, takes whole units, and closes and reopens on a reversal, as
  two trades. It sends nothing on the first bar. Its limit and stop orders may fill in the bar of
  their own order's fill; ours follow the bar's worse path. It has no funding, no quotes, and no
  maintenance margin.
- **NautilusTrader** rounds money to the currency's eight decimals as ours does, each fee half to
  even. After a bar it fills a market order at that bar's close, which ours never does, so it is
  given the opens as quotes. Its margin is that of the whole account, and nothing is liquidated.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tracepaper.daemon.config.loading import load
from tracepaper.replay.archive import read_candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews

CANDLES = Path(__file__).parents[1] / "data" / "candles" / "binance_um_BTCUSDT_1m_2025-05.csv.gz"
CASH, FEE = "10000000", "0.00055"
Peer = Callable[[str, dict[str, Any]], dict[str, Any]]

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1_800)]


class Ours:
    """A run of crossing averages, long and short, and what a peer is given of it."""

    def __init__(self, folder: Path, quantity: str) -> None:
        candles = read_candles(CANDLES)
        config = load(
            None,
            {
                "market": {"symbols": ["BTCUSDT"], "interval": "1", "category": "linear"},
                "strategy": {"name": "sma_cross", "fast": 3, "slow": 8, "long_only": False},
                "sizing": {"mode": "fixed", "quantity": quantity},
                "execution": {"taker_fee": FEE, "slippage_bp": "0", "spread_bp": "0"},
                "account": {"cash": CASH},
            },
        )
        path = folder / "ours.db"
        log = SqlAuditLog.open(path)
        run_replay(
            build(config, MarketData([candles]), started_at_ms=1, database=path), log, Tally()
        )
        log.close()
        with Reader.open(path) as reader:
            views = RunViews(reader.connection, reader.find("last"))
            self.bars, self.fills = views.rows("v_bars"), views.rows("v_fills")
            self.equity, self.ledger = views.rows("v_equity"), views.rows("v_ledger")
        assert len(self.fills) > 200
        self.places = {bar["open_time_ms"]: place for place, bar in enumerate(self.bars)}

    def task(self) -> dict[str, Any]:
        """Return candles and orders as text: an order stands at the bar that decided it."""
        return {
            "cash": CASH,
            "fee": FEE,
            "times_ms": [bar["open_time_ms"] for bar in self.bars],
            "candles": [
                [bar[f"{name}_text"] for name in ("open", "high", "low", "close")]
                for bar in self.bars
            ],
            "orders": [[self.place(fill) - 1, str(signed(fill))] for fill in self.fills],
        }

    def place(self, fill: Row) -> int:
        """Return which bar's open filled *fill*."""
        return self.places[fill["filled_ms"]]


def signed(fill: Row) -> Decimal:
    quantity = Decimal(fill["quantity_text"])
    return quantity if fill["side"] == "BUY" else -quantity


def test_backtesting_py_comes_to_the_same_equity_at_every_close(peer: Peer, tmp_path: Path) -> None:
    ours = Ours(tmp_path, "1")
    theirs = peer("backtesting", ours.task())
    decided = [row["equity"] for row in ours.equity if row["instrument"] is not None]
    closes = decided[-len(ours.bars) :]
    assert theirs["equity"] == pytest.approx(closes, rel=1e-12)
    entered = {(place, price) for place, _, _, price, _ in theirs["trades"]}
    left = {(place, price) for _, place, _, _, price in theirs["trades"]}
    filled = [(ours.place(fill), float(fill["price_text"])) for fill in ours.fills]
    assert entered <= set(filled)
    assert left <= set(filled)
    assert len(entered) >= len(filled) - 1  # the last one is still open


def test_nautilus_fills_the_same_orders_at_the_same_prices_and_fees(
    peer: Peer, tmp_path: Path
) -> None:
    ours = Ours(tmp_path, "0.123")
    theirs = peer("nautilus", ours.task())
    own = [(ours.place(fill), signed(fill), Decimal(fill["price_text"])) for fill in ours.fills]
    assert [(at, Decimal(q), Decimal(price)) for at, q, price, _ in theirs["fills"]] == own
    eighth = Decimal("1e-8")
    for (*_, fee), fill in zip(theirs["fills"], ours.fills, strict=True):
        assert abs(Decimal(fee) - Decimal(fill["fee_text"])) <= eighth
    left = Decimal(ours.ledger[-1]["balance_text"])
    assert abs(Decimal(theirs["cash"]) - left) <= eighth * len(ours.fills) * 2
