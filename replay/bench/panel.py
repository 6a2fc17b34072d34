"""``bench assets --closes``: whole runs by a network over many assets: replay, its checks, live.

The weights are untrained and each symbol's candles are the bundled ones, moved against each other:
it is a test of size. All of it is done in a process of its own, whose peak of memory is told.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.request import Request, Watch, carry_out
from tracepaper.replay.bench.live import Spent, live_config, timed_closes
from tracepaper.replay.bench.machine import measure_apart, most_resident_mb
from tracepaper.replay.bench.replay import tiled
from tracepaper.replay.bench.workloads import SCHEMA, write_model
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.learning.fit import use_threads
from tracepaper.storage.chain.walk import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.features.rows import schema
from tracepaper.strategies.types.decisions import Forecast, Step
from tracepaper.strategies.types.market import Bar

_Made = TypeVar("_Made")

LIVE_CLOSES_MOST: Final = 3
LIVE_DEADLINE_MS: Final = 600_000
"""No answer is dropped, however busy the machine is."""
_APART: Final = 37
"""Bars by which the symbols' prices are moved against each other."""
_PROGRAM: Final = (
    "from tracepaper.replay.bench.panel import print_figures; "
    "print_figures({assets}, {bars}, {closes})"
)


def measure_panel(assets: int, bars: int, closes: int) -> dict[str, Any]:
    """Measure runs of *closes* closes of *assets* symbols that look back on *bars* bars.

    One thread, in a fresh process. Raises ``ConfigInvalid`` where that process fails.
    """
    program = _PROGRAM.format(assets=assets, bars=bars, closes=closes)
    return measure_apart(program, f"A run of {assets:,} assets of {bars:,} bars")


def print_figures(assets: int, bars: int, closes: int) -> None:
    """Print the figures of :func:`measure_panel` as JSON; in the process that is measured."""
    use_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(f"\n{json.dumps(_figures(Path(folder), assets, bars, closes))}\n")


@dataclass
class CloseTimes:
    """What each close of a replay takes: from the last step of one to the last of the next."""

    size: int
    spent: Spent = field(default_factory=Spent)
    decided: int = 0
    answered: int = 0

    def observe(self, step: Step) -> None:
        """Take a step in; the first close, behind the warm-up, begins the first that is timed."""
        if not isinstance(step.event, Bar) or step.decision is None:
            return
        self.decided += 1
        self.answered += isinstance(step.prediction, Forecast)
        if self.decided % self.size == 0:
            if self.decided > self.size:
                self.spent.__exit__()
            self.spent.__enter__()


def panel_of(symbols: tuple[str, ...], count: int) -> tuple[Candles, ...]:
    """Return *count* bars of each of *symbols*: the bundled candles, moved against each other."""
    whole = tiled(count + _APART * len(symbols))
    opened = whole.open_time_ms[:count]
    found = []
    for number, symbol in enumerate(symbols):
        rows = slice(_APART * number, _APART * number + count)
        found.append(
            replace(
                whole,
                symbol=symbol,
                open_time_ms=opened,
                open=whole.open[rows],
                high=whole.high[rows],
                low=whole.low[rows],
                close=whole.close[rows],
                volume=whole.volume[rows],
                turnover=None if whole.turnover is None else whole.turnover[rows],
            )
        )
    return tuple(found)


def _figures(folder: Path, assets: int, bars: int, closes: int) -> dict[str, Any]:
    symbols = tuple(f"BENCH{number}USDT" for number in range(assets))
    config = write_model(folder / "model", symbols, bars)
    context = config.receptive_field + schema(SCHEMA).lookback - 1
    database, times = folder / "run.db", CloseTimes(assets)
    data = panel_of(symbols, context + closes + 1)
    made, replay_cpu_s = _cpu_s(
        lambda: carry_out(
            Request(
                data=data,
                overrides={
                    "market": {"symbols": symbols, "interval": "1"},
                    "strategy": {"name": "crossasset"},
                    "model": {"checkpoint": str(folder / "model")},
                    "sizing": {"mode": "equity", "max_gross": "1"},
                },
                from_text=str(int(data[0].open_time_ms[context])),
                database=database,
            ),
            Watch(observe=times.observe),
        )
    )
    replay_mb = most_resident_mb()
    with Reader.open(database) as reader:
        chain, chain_cpu_s = _cpu_s(lambda: verify_chain(reader.connection, made.run_id))
        derived, verify_cpu_s = _cpu_s(lambda: verify_run(reader, database, made.run_id))
        ((fills,),) = reader.connection.execute("SELECT count(*) FROM v_fills").fetchall()
    verify_mb = most_resident_mb()
    size = database.stat().st_size
    taken = live_config("crossasset", symbols, str(folder / "model"), deadline_ms=LIVE_DEADLINE_MS)
    live = timed_closes(taken, min(closes, LIVE_CLOSES_MOST), warm=1)
    return {
        "symbols": assets,
        "network": f"crossasset, {config.layers} layers, window {config.window}, width "
        f"{config.dim}",
        "bars_looked_back_on": config.receptive_field,
        "tokens_a_close": assets * config.receptive_field,
        "bars_of_warm_up": assets * context,
        "closes": closes + 1,
        "decisions": times.decided,
        "answered": times.answered,
        "fills": fills,
        "replay_cpu_s": replay_cpu_s,
        "replay_close_cpu_s": _told(times.spent.cpu_ms),
        "replay_close_wall_s": _told(times.spent.wall_ms),
        "replay_peak_mb": replay_mb,
        "database_mb": size / 1e6,
        "database_bytes_a_bar": size / assets / (context + closes + 1),
        "audit_verify_holds": chain.holds,
        "audit_verify_cpu_s": chain_cpu_s,
        "verify_agreed": derived.agreed,
        "verify_differences": len(derived.differences),
        "verify_cpu_s": verify_cpu_s,
        "verify_peak_mb": verify_mb,
        "live_close_cpu_s": _told(live.cpu_ms),
        "live_close_wall_s": _told(live.wall_ms),
        "live_peak_mb": most_resident_mb(),
    }


def _told(milliseconds: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(milliseconds) / 1e3,
        "p99": statistics.quantiles(milliseconds, n=100, method="inclusive")[98] / 1e3,
    }


def _cpu_s(job: Callable[[], _Made]) -> tuple[_Made, float]:
    """Return the result of *job*, and its CPU seconds."""
    began = time.process_time()
    found = job()
    return found, time.process_time() - began
