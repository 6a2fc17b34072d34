"""Measures how often a day or an hour loses more than the value at risk that was stated before it.

    python tests/benchmarks/shortfalls.py FOLDER [PERIODS]

Each candle file of FOLDER (csv.gz, of days or hours) is a book of one long position. At each
period the value at risk of the last PERIODS (250 by default) is stated, by history and by forecast
volatility, and compared with the return of the next period. A row shows how often that was worse,
with the binomial error of the stated rate. A file needs 500 such periods.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from tracepaper.replay.archive import read_candles
from tracepaper.replay.report.book_risk import LEVELS, forecast_scaled, returns_of
from tracepaper.replay.run_columns import Floats
from tracepaper.strategies.shortfall import value_at_risk
from tracepaper.strategies.units import DAY_MS, HOUR_MS

LEAST: Final = 500
LENGTHS: Final = {"1d": DAY_MS, "1h": HOUR_MS}


def breaches(returns: Floats, periods: int) -> dict[tuple[str, float], Floats]:
    """Return by method and level whether each return was below its value at risk: [period]."""
    worse: dict[tuple[str, float], list[bool]] = {}
    for end in range(periods, returns.size):
        past = returns[end - periods : end]
        for method, values in (("history", past), ("forecast", forecast_scaled(past))):
            for level in LEVELS:
                breach = returns[end] < -value_at_risk(values, level)
                worse.setdefault((method, level), []).append(bool(breach))
    return {key: np.array(column, dtype=np.float64) for key, column in worse.items()}


def rows(folder: Path, periods: int) -> Iterator[str]:
    """Yield a line for each file, method and level."""
    summed: dict[tuple[str, str, float], list[Floats]] = {}
    for path in sorted(folder.glob("*_1[dh]_*.csv.gz")):
        named = re.search(r"_(1[dh])_", path.name)
        if named is None or path.name.startswith(("arca", "nasdaq")):
            continue  # sessions have no close at each midnight
        length_ms = LENGTHS[named[1]]
        candles = read_candles(str(path), category="linear")
        closes = candles.close / 10.0**candles.price_decimals
        returns = returns_of(candles.open_time_ms + candles.interval_ms, closes, length_ms)
        values = np.array(list(returns.values()))
        if values.size < periods + LEAST:
            yield f"{path.name}: {values.size} returns, too few"
            continue
        for (method, level), worse in breaches(values, periods).items():
            yield line(path.name, method, level, worse)
            summed.setdefault((named[1], method, level), []).append(worse)
    for (name, method, level), parts in summed.items():
        yield line(f"all {name}", method, level, np.concatenate(parts))


def line(name: str, method: str, level: float, worse: Floats) -> str:
    """Return the rate of breaches beside the stated one and its binomial error."""
    error = math.sqrt(level * (1 - level) / worse.size)
    return (
        f"{name:42} {method:9} {level:5.1%} stated, {worse.mean():6.2%} ± {error:.2%} of "
        f"{worse.size:,}"
    )


if __name__ == "__main__":
    most = int(sys.argv[2]) if len(sys.argv) > 2 else 250
    for text in rows(Path(sys.argv[1]), most):
        sys.stdout.write(f"{text}\n")
