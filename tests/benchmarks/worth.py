"""Measures what a trader's questions of a result cost, in CPU seconds.

    PYTHONPATH=tests:tests/support python tests/benchmarks/worth.py

The risk of a hundred open positions over a year of hours, and one re-run of `report --stress` over
a year of minutes without a model.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from long_replays import tiled

from tracepaper import Action, Signal, Strategy, backtest, open_run
from tracepaper.replay.archive import Candles
from tracepaper.replay.bench.machine import machine_line
from tracepaper.strategies.units import HOUR_MS

YEAR_OF_MINUTES: Final = 525_600
YEAR_OF_HOURS: Final = 8_760
POSITIONS: Final = 100


class Held(Strategy):
    """Buys once and holds."""

    def decide(self, context: Any) -> Signal:
        """Want a long position."""
        return Signal(Action.LONG, "hold")


def hours(symbol: str, bars: int, seed: int) -> Candles:
    """Return *bars* hourly candles: the bundled candles' moves in another order."""
    candles = tiled(bars)
    order = np.random.default_rng(seed).permutation(bars)
    names = ("open", "high", "low", "close", "volume")
    return replace(
        candles,
        symbol=symbol,
        interval_ms=HOUR_MS,
        open_time_ms=candles.open_time_ms[0] // HOUR_MS * HOUR_MS + np.arange(bars) * HOUR_MS,
        turnover=None,
        **{name: getattr(candles, name)[order] for name in names},
    )


def cpu_s(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of *call*, and what it returns."""
    began = time.process_time()
    result = call()
    return time.process_time() - began, result


def measure() -> dict[str, Any]:
    """Return every figure."""
    with tempfile.TemporaryDirectory(prefix="worth-") as folder:
        book, year = Path(folder, "book.db"), Path(folder, "year.db")
        parts = [hours(f"COIN{k:02}USDT", YEAR_OF_HOURS, k) for k in range(POSITIONS)]
        sizing = {"mode": "equity", "fraction": "0.005"}
        held = backtest(Held, parts, db=book, config={"sizing": sizing})
        risk_s, risk = cpu_s(held.risk)
        backtest("sma_cross", tiled(YEAR_OF_MINUTES), db=year)
        run = open_run("last", year)
        stress_s, stress = cpu_s(run.stress)
        return {
            "machine": machine_line(),
            "positions": len(risk.document["book_exposure"]),
            "risk_cpu_s": risk_s,
            "stress_rerun_cpu_s": stress_s / len(stress.document["reruns"]["rows"]),
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(), indent=1) + "\n")
