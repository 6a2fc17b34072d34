"""``bench close``: bars of several instruments that close at once, one batch beside one by one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.replay.archive.candles import bars_of
from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.bench.replay import tiled
from tracepaper.strategies.strategy import Forecaster
from tracepaper.strategies.types import Bar

WARM_BARS: Final = 1_700
"""Enough for full windows, and so for what a step costs; forecasts follow after the context."""
_APART: Final = 37
"""Bars by which the instruments' prices are moved against each other."""

Tell = Callable[[str], None]


def measure(symbols: int = 30, rounds: int = 40, *, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Return milliseconds of CPU time that the default model takes for one close of *symbols*.

    Closes are answered in turn by one step each and by one batched step, through one forecaster;
    medians over *rounds*. ``batched_ratio`` is the one ÷ the other.
    """
    forecaster = load_forecaster(load(None, {}))
    closes = closes_of(symbols, WARM_BARS + 2 * rounds)
    tell(f"warming {symbols} instruments with {WARM_BARS:,} bars")
    for bars in zip(*closes[:WARM_BARS], strict=True):
        forecaster.warm(bars[0].instrument, bars)
    tell(f"{rounds} closes of {symbols} symbols, each way")
    spent: dict[str, list[float]] = {"single": [], "batched": []}
    for number, close in enumerate(closes[WARM_BARS:]):
        name = "batched" if number % 2 else "single"
        spent[name].append(seconds(forecaster, close, batched=number % 2 == 1))
    single, batched = (1e3 * statistics.median(values) for values in spent.values())
    return {
        "machine": machine_line(),
        "symbols": symbols,
        "rounds": rounds,
        "single_steps_ms": single,
        "batched_step_ms": batched,
        "batched_ms_a_bar": batched / symbols,
        "batched_ratio": batched / single,
        "reach_of_the_whole_close": 0.35,
    }


def closes_of(symbols: int, count: int) -> list[list[Bar]]:
    """Return *count* closes of a bar of each of *symbols* instruments, oldest first."""
    bars = bars_of(tiled(count + _APART * symbols))
    return [
        [
            msgspec.structs.replace(
                bars[at + _APART * number],
                instrument=f"linear:BENCH{number}USDT",
                open_time_ms=bars[at].open_time_ms,
                market_ms=bars[at].market_ms,
                seen_ms=bars[at].seen_ms,
            )
            for number in range(symbols)
        ]
        for at in range(count)
    ]


def seconds(forecaster: Forecaster, close: Sequence[Bar], *, batched: bool) -> float:
    """Return the CPU seconds of one close, batched or one bar after the other."""
    began = time.process_time()
    if batched:
        forecaster.predict_many(close)
    else:
        for bar in close:
            forecaster.step(bar)
    return time.process_time() - began
