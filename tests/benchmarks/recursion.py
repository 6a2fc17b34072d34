"""Measures forecasts of several steps: the answered horizon, and one carried on by forecasts.

    PYTHONPATH=tests:tests/support python tests/benchmarks/recursion.py

``flash-15m`` answers 4 and 16 bars. Carried on, each answer of 4 bars becomes four bars, on which
the model is asked again: closes on a line to the mean, each as wide as the volatility, with the
last volume. Both are judged on untouched candles of two symbols.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from tracepaper.replay.archive import read_candles
from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.samples import MONTH_CANDLES
from tracepaper.storage import checkpoints
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.forecasters.build import build
from tracepaper.strategies.types.market import Bar

STEP, AHEAD, EVERY = 4, 16, 16
"""Bars of a forecast that is carried on, of the whole, and from one judged bar to the next."""
DAY_MS: Final = 86_400_000
Answer = tuple[float, float]
"""Mean and variance of the log return of ``AHEAD`` bars."""


def answers(forecaster: Forecaster, bars: list[Bar]) -> tuple[Answer, Answer]:
    """Return what is answered after *bars* at once, and what is carried on."""
    *before, last = bars
    forecaster.warm(last.instrument, before)
    forecast = forecaster.step(last)
    assert forecast is not None
    at = forecast.horizons.index(AHEAD)
    whole = forecast.mean_return[at], forecast.volatility[at] ** 2
    mean, variance = forecast.mean_return[0], forecast.volatility[0] ** 2
    for _ in range(AHEAD // STEP - 1):
        for bar in invented(last, forecast.mean_return[0], forecast.volatility[0]):
            forecast, last = forecaster.step(bar), bar
        assert forecast is not None
        mean += forecast.mean_return[0]
        variance += forecast.volatility[0] ** 2
    return whole, (mean, variance)


def invented(bar: Bar, mean: float, volatility: float) -> Iterator[Bar]:
    """Yield ``STEP`` bars after *bar* that move as a forecast says."""
    for _ in range(STEP):
        start, close = bar.close, round(bar.close * math.exp(mean / STEP))
        reach = math.exp(volatility / math.sqrt(STEP) / 2)
        bar = replace(
            bar,
            open_time_ms=bar.open_time_ms + bar.interval_ms,
            open=start,
            high=round(max(start, close) * reach),
            low=round(min(start, close) / reach),
            close=close,
        )
        yield bar


def judged(forecaster: Forecaster, bars: list[Bar]) -> Iterator[NDArray[np.float64]]:
    """Yield day, and by way of answering the absolute error in basis points and the QLIKE."""
    closes = np.log([bar.close for bar in bars])
    for end in range(forecaster.context, len(bars) - AHEAD, EVERY):
        later = closes[end - 1 : end + AHEAD]
        moved, realised = later[-1] - later[0], np.square(np.diff(later)).sum()
        row = [float(bars[end].open_time_ms // DAY_MS)]
        for mean, variance in answers(forecaster, bars[end - forecaster.context : end]):
            ratio = realised / variance
            row += [1e4 * abs(moved - mean), ratio - math.log(ratio) - 1.0]
        yield np.array(row)


def measure() -> dict[str, Any]:
    """Return the figures of both ways, and their differences with the errors by day."""
    torch.set_num_threads(1)
    stored = checkpoints.load(checkpoints.BUNDLED / "flash-15m")
    forecaster = build(stored.card, stored.tensors)
    rows = np.array(
        [row for path in MONTH_CANDLES for row in judged(forecaster, read_candles(path).bars())]
    )
    days = np.unique(rows[:, 0])
    result: dict[str, Any] = {"bars": len(rows), "days": len(days)}
    for name, at in (("absolute_error_bp", 1), ("qlike", 2)):
        less = [
            (of := rows[rows[:, 0] == day])[:, at + 2].mean() - of[:, at].mean() for day in days
        ]
        result |= {
            f"{name}_answered": rows[:, at].mean(),
            f"{name}_carried_on": rows[:, at + 2].mean(),
            f"{name}_worse_by": np.mean(less),
            f"{name}_error_by_days": np.std(less, ddof=1) / math.sqrt(len(days)),
        }
    return result


if __name__ == "__main__":
    sys.stdout.write(f"{json.dumps(measure() | {'machine': machine_line()})}\n")
