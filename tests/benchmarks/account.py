"""Measures an account over many files: its report, and a rotation, in CPU time.

    PYTHONPATH=tests:tests/support python tests/benchmarks/account.py

The same bars are lived through in one file and in one a month. A month has five days of minutes, so
what each file costs weighs six times as much as in a real one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from builders import bars, quote
from fed_daemon import Process
from whole_command import cpu_s

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.rotation import rotate
from tracepaper.replay.bench.machine import machine_line
from tracepaper.strategies.types.decisions import FillModel

WARM: Final = 8
MONTHS: Final = 36
MONTH_BARS: Final = 7_200
ROUNDS: Final = 3
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "market": {"symbols": ["BTCUSDT"]},
    "strategy": {"name": "sma_cross", "fast": 20, "slow": 100, "long_only": False},
    "sizing": {"mode": "fixed", "quantity": "1"},
    "execution": {"fill_within_ms": 60_000, "spread_bp": "1"},
}


class Lives:
    """A daemon's lives on one database, over the bars of a seeded walk."""

    def __init__(self, path: Path, months: int, month_bars: int) -> None:
        self._path, self._walk = path, bars(WARM + months * month_bars, seed=4)
        self._reached = WARM

    def live(self, count: int) -> None:
        """Live through the next *count* bars, each behind a quote."""
        first, self._reached = self._reached, self._reached + count
        process = Process(self._path, load(None, SETTINGS), FillModel.QUOTE, warm=first)
        process.begin()
        if not process.opened.resumed:
            for warming in self._walk[first - WARM : first]:
                process.feed(warming)
            process.start()
        for at in range(first, self._reached):
            item, before = self._walk[at], self._walk[at - 1].close
            process.feed(quote(before - 5, before + 5, at_ms=item.open_time_ms + 500))
            process.feed(item)
            process.steps.clear()
        process.stop()


def report_s(*files: Path) -> float:
    """Return the median CPU seconds of `report` over *files*, the whole command."""
    return cpu_s(lambda _turn: ["report", *map(str, files), "--json"], ROUNDS)


def measure(months: int = MONTHS, month_bars: int = MONTH_BARS) -> dict[str, Any]:
    """Return the figures: a report of *months* files of *month_bars*, and the last rotation."""
    with tempfile.TemporaryDirectory() as folder:
        single, file = Path(folder) / "single.db", Path(folder) / "rotated.db"
        whole, monthly = Lives(single, months, month_bars), Lives(file, months, month_bars)
        whole.live(months * month_bars)
        files = [file]
        for month in range(months):
            if month:
                files.append(rotate(file, file.with_name(f"until_{month}.db")).older)
            monthly.live(month_bars)
        reports = {name: report_s(*given) for name, given in (("one", [single]), ("many", files))}
        megabytes = single.stat().st_size / 1e6
        began = time.process_time()
        rotate(single, is_own=True)
        rotation_s = time.process_time() - began
    return {
        "machine": machine_line(),
        "files": len(files),
        "bars": months * month_bars,
        "report_cpu_s": reports["one"],
        "report_of_files_times_one": reports["many"] / reports["one"],
        "rotated_mb": megabytes,
        "rotation_cpu_s_per_500_mb": rotation_s * 500 / megabytes,
    }


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=2)
