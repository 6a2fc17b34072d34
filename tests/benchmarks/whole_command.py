"""Measures a backtest as a whole command, in CPU seconds: a year of five-minute bars, with its log.

    PYTHONPATH=tests:tests/support python tests/benchmarks/whole_command.py

The start of the process, its imports, the candle file and the printed result are part of it.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from long_replays import tiled
from programs import BIN, environment

from tracepaper.replay.bench.machine import machine_line

BARS: Final = 105_120
INTERVAL_MS: Final = 5 * 60_000
ROUNDS: Final = 5


def cpu_s(words: Callable[[int], Sequence[str]], rounds: int) -> float:
    """Return the median CPU seconds of ``tracepaper`` with the arguments *words* of each round.

    Python may keep compiled modules, as in every installation.
    """
    kept = {key: text for key, text in environment().items() if key != "PYTHONDONTWRITEBYTECODE"}
    seconds = []
    for turn in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [str(BIN / "tracepaper"), *words(turn)], env=kept, stdout=subprocess.DEVNULL, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(seconds)


def write_year(path: Path) -> None:
    """Write a year of five-minute candles to *path* as CSV with a header."""
    candles = tiled(BARS)
    price, volume = 10.0**candles.price_decimals, 10.0**candles.volume_decimals
    first_ms = int(candles.open_time_ms[0]) // INTERVAL_MS * INTERVAL_MS
    columns = [
        first_ms + np.arange(BARS) * INTERVAL_MS,
        *(getattr(candles, name) / price for name in ("open", "high", "low", "close")),
        candles.volume / volume,
    ]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    lines = ["timestamp,open,high,low,close,volume", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure() -> dict[str, Any]:
    """Return every figure."""
    with tempfile.TemporaryDirectory(prefix="command-") as folder:
        candles = Path(folder, "year.csv")
        write_year(candles)

        def words(turn: int) -> list[str]:
            record = Path(folder, f"{turn}.db")
            market = [f"BTCUSDT={candles}", "--category", "linear"]
            return ["replay", *market, "--strategy", "sma_cross", "--db", str(record)]

        return {
            "machine": machine_line(),
            "bars": BARS,
            "replay_cpu_s": cpu_s(words, ROUNDS),
            "start_cpu_s": cpu_s(lambda _turn: ["replay", "--help"], ROUNDS),
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(), indent=1) + "\n")
