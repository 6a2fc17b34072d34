"""What a backtest costs here and elsewhere: CPU time a bar, the median of rounds in turns.

The candles are the bundled ones laid end to end and the orders those of crossing averages. Each of
the others is given the orders and keeps no record; here the averages are computed, and every
decision is stored.
Imports and the reading of candles are left out of all.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from long_replays import tiled
from other_backtesters import REQUIREMENTS, Ours, ask_peer

from tracepaper.replay.bench.machine import machine_line

ROUNDS, BARS = 3, 40_000


def main() -> None:
    """Print the table."""
    spent: dict[str, list[float]] = {}
    candles = tiled(BARS)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for _ in range(ROUNDS):
            ours = Ours(folder, "1", candles, fast=20, slow=100)
            bars = len(ours.bars)
            spent.setdefault("tracepaper", []).append(ours.cpu_s / bars)
            task = ours.task()
            for name in ("nautilus", "backtesting"):
                cpu_s = ask_peer(folder, name, task)["cpu_s"]
                spent.setdefault(name, []).append(cpu_s / bars)
    median = {name: statistics.median(seconds) for name, seconds in spent.items()}
    print(machine_line())
    print(f"{bars:,} bars, {len(ours.fills)} fills; medians of {ROUNDS} rounds of CPU time")
    for name, seconds in median.items():
        ratio = seconds / median["tracepaper"]
        version = REQUIREMENTS.get(name, (name,))[0]  # of NautilusTrader 1 with its core in Cython
        print(f"{version:24} {1e6 * seconds:6.1f} µs a bar, {ratio:.2f} times ours")


if __name__ == "__main__":
    main()
