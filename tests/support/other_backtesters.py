"""Other people's backtesters, each in an environment of its own, and a task for them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from programs import interpreter_with
from waiting import deadline_s

from tracepaper.daemon.config.loading import load
from tracepaper.replay.archive import Candles, read_candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews

TESTS = Path(__file__).parents[1]
CANDLES = TESTS / "data" / "candles" / "binance_um_BTCUSDT_1m_2025-05.csv.gz"
REQUIREMENTS = {
    "backtesting": ("backtesting==0.6.6",),
    "nautilus": ("nautilus_trader==1.221.0",),
    "at2": ("at2==0.0.1", "accelerate==1.15.0", "torch==2.13.0"),
    "flashtrace": ("flashtrace==0.1.1", "torch==2.13.0"),
    "captum": ("captum==0.9.0", "transformers==5.24.0", "torch==2.13.0"),
    "inseq": ("inseq==0.7.1", "torch==2.13.0"),
    "transformer_lens": ("transformer-lens==4.3.0", "torch==2.13.0"),
    "bertviz": ("bertviz==1.4.1", "torch==2.13.0"),
    "empyrical": ("empyrical-reloaded==0.5.12", "pytz==2025.2"),  # which it imports undeclared
}
CASH, FEE = "10000000", "0.00055"
Task = dict[str, Any]
Peer = Callable[[str, Task], dict[str, Any]]


def ask_peer(folder: Path, name: str, task: Task) -> dict[str, Any]:
    """Return the answer of the program of *name* to *task*, which are kept in *folder*."""
    given, answer = folder / "task.json", folder / "answer.json"
    given.write_text(json.dumps(task), encoding="utf-8")
    program = TESTS / "peers" / "programs" / f"with_{name}.py"
    python = interpreter_with(REQUIREMENTS[name], Path(sys.prefix) / "peers" / name)
    subprocess.run([python, program, given, answer], check=True, timeout=deadline_s(600))
    read: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return read


class Ours:
    """A run of crossing averages, long and short, and what a peer is given of it."""

    def __init__(
        self,
        folder: Path,
        quantity: str,
        candles: Candles | None = None,
        *,
        fast: int = 3,
        slow: int = 8,
    ) -> None:
        candles = candles or read_candles(CANDLES)
        config = load(
            None,
            {
                "market": {"symbols": [candles.symbol], "interval": "1", "category": "linear"},
                "strategy": {"name": "sma_cross", "fast": fast, "slow": slow, "long_only": False},
                "sizing": {"mode": "fixed", "quantity": quantity},
                "execution": {"taker_fee": FEE, "slippage_bp": "0", "spread_bp": "0"},
                "account": {"cash": CASH},
            },
        )
        path = folder / "ours.db"
        path.unlink(missing_ok=True)
        log = SqlAuditLog.open(path)
        replay = build(config, MarketData([candles]), started_at_ms=1, database=path)
        began = time.process_time()
        run_replay(replay, log, Tally())
        self.cpu_s = time.process_time() - began
        log.close()
        with Reader.open(path) as reader:
            views = RunViews(reader.connection, reader.find("last"))
            self.bars, self.fills = views.rows("v_bars"), views.rows("v_fills")
            self.equity, self.ledger = views.rows("v_equity"), views.rows("v_ledger")
        self.places = {bar["open_time_ms"]: place for place, bar in enumerate(self.bars)}

    def task(self) -> Task:
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
    """Return a fill's quantity, below 0 where it sold."""
    quantity = Decimal(fill["quantity_text"])
    return quantity if fill["side"] == "BUY" else -quantity
