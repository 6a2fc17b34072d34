"""Measures replays in bars per CPU second; each figure is the median of interleaved rounds.

    PYTHONPATH=tests:tests/support python tests/benchmarks/replay_speed.py [--bars N]
        [--model | --checkpoint MODEL | --signals]

With a model every bar is gated, explained and stored.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from long_replays import replay_of, tiled

from tracepaper.replay.backtest.build import Replay
from tracepaper.replay.backtest.predictors import CHUNK_EVENTS
from tracepaper.replay.backtest.run import PROGRESS_EVENTS, Tally, run_replay
from tracepaper.replay.bench.attention import Scan
from tracepaper.replay.bench.machine import Route, machine_line, resident_mb
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.integrity import audit as audit_record
from tracepaper.storage.database.connection import REPLAY_PAGE_BYTES
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.memory_log import MemoryLog
from tracepaper.strategies.api.arrays import BarArrays
from tracepaper.strategies.api.context import BarContext, Percent, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecasters.attribution import attending
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.indicators import rsi, sma
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.types.decisions import Action, GateSet, QuietStretch, RunRow, Step

YEAR_BARS: Final = 525_600
COMPARED: Final = ("one", "symbols", "written", "plain", "memory", "audit")
ROUNDS: Final = 3
ALONE_S: Final = 1.0
"""CPU seconds per round in which the network alone explains bars."""
AHEAD: Final = 2 * PROGRESS_EVENTS
"""Bars before the end of a chunk from which timing may begin: at the next report of progress."""


class Reversion(Strategy):
    """A typical user's strategy: an indicator column, a stop, and a note at every bar."""

    warmup = 100

    def columns(self, history: BarArrays) -> Mapping[str, npt.NDArray[np.float64]]:
        """Return the indicator."""
        return {"rsi": rsi(history.close, 14, window=100)}

    def decide(self, context: BarContext) -> Signal:
        """Buy after a fall, and sell after a rise."""
        strength = float(context.columns["rsi"][-1])
        note = {"rsi": strength}
        if strength < 30:
            return Signal(Action.LONG, "it has fallen", stop=Percent(2.0), note=note)
        if strength > 60:
            return Signal(Action.FLAT, "it has risen", note=note)
        return Signal(Action.HOLD, "between the two", note=note)


class Vectorised(Strategy):
    """The built-in crossing of averages, as a user writes it by arrays."""

    warmup = 100

    def signals(self, history: BarArrays) -> npt.NDArray[np.bool_]:
        """Return whether the fast average is above the slow one."""
        return sma(history.close, 20) > sma(history.close, 100)


@dataclass
class RecordingCost:
    """The cost of one replay into a new database: seconds, the file's bytes, memory in MB."""

    begun: tuple[float, float] = (0.0, 0.0)  # wall and CPU
    skipped: int = 0  # bars before that
    wall_s: float = 0.0
    cpu_s: float = 0.0
    log_s: float = 0.0  # CPU seconds of encoding, hashing and storing, part of ``cpu_s``
    audit_s: float = 0.0  # CPU seconds of ``audit verify``, without a model's card
    size: int = 0
    memory_mb: list[float] = field(default_factory=list)


class _WatchedLog(SqlAuditLog):
    """A log that adds up the CPU seconds of its commits."""

    cpu_s = 0.0

    def flush(self) -> None:
        began = time.process_time()
        super().flush()
        self.cpu_s += time.process_time() - began


def recorded(replay: Replay, *, after: int = 0) -> RecordingCost:
    """Replay into a new database and return its cost.

    The seconds count from the first report of progress at or after bar *after*.
    """
    record = RecordingCost()

    def begin() -> None:
        record.begun, audit.cpu_s = (time.perf_counter(), time.process_time()), 0.0

    def report(bars: int) -> None:
        record.memory_mb.append(resident_mb())
        if record.skipped < after <= bars:
            record.skipped = bars
            begin()

    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "bench.db"
        audit = _WatchedLog.open(database, page_bytes=REPLAY_PAGE_BYTES)
        begin()
        run_replay(replay, audit, Tally(progress=report))
        record.wall_s = time.perf_counter() - record.begun[0]
        record.cpu_s = time.process_time() - record.begun[1]
        record.log_s = audit.cpu_s
        audit.end(0)
        audit.close()
        record.size = database.stat().st_size
        with Reader.open(database) as reader:
            began = time.process_time()
            audit_record(reader.connection, replay.run.run_id)
            record.audit_s = time.process_time() - began
    return record


def measure_replay(bars: int = 200_000, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return the figures of a replay without a model: medians over *rounds*, on CPU time.

    Each round replays the same bars into a new database: with a built-in strategy, a user's class
    and two symbols. It also replays them in memory, as a trial of a sweep does, and in a plain
    Python loop without engine or log.
    """
    candles = tiled(bars)
    closes = candles.close.tolist()
    spent: dict[str, list[float]] = {name: [] for name in COMPARED}
    for _ in range(rounds):
        single = recorded(replay_of([candles], "sma_cross"))
        spent["one"].append(single.cpu_s / bars)
        spent["audit"].append(single.audit_s / bars)
        symbols = recorded(replay_of([candles, replace(candles, symbol="ETHUSDT")], "sma_cross"))
        spent["symbols"].append(symbols.cpu_s / bars)
        written = recorded(replay_of([candles], f"{Path(__file__).stem}:{Reversion.__name__}"))
        spent["written"].append(written.cpu_s / bars)
        replay = replay_of([candles], "sma_cross")
        replay.engine.stores_state = False
        began = time.process_time()
        with MemoryLog() as log:
            run_replay(replay, log, Tally())
        spent["memory"].append((time.process_time() - began) / bars)
        began = time.process_time()
        _plain_loop(closes)
        spent["plain"].append((time.process_time() - began) / bars)
    median = {name: statistics.median(seconds) for name, seconds in spent.items()}
    return {
        "machine": machine_line(),
        "bars": bars,
        "bars_per_cpu_s": 1 / median["one"],
        "history_stop_notes_bars_per_cpu_s": 1 / median["written"],
        "times_plain_loop": median["one"] / median["plain"],
        "two_symbols_times_one": median["symbols"] / median["one"],
        "trial_in_memory_cpu_us_per_bar": 1e6 * median["memory"],
        "audit_verify_cpu_us_per_step": 1e6 * median["audit"],
        "database_bytes_per_bar": single.size / bars,
        "rss_mb_at_a_quarter": single.memory_mb[len(single.memory_mb) // 4],
        "rss_mb_at_the_end": single.memory_mb[-1],
    }


class _NoLog:
    """Keeps nothing, so that the engine is measured alone."""

    room = 4_000

    def begin(self, run: RunRow, gate_sets: Sequence[GateSet]) -> None:
        """Open nothing."""

    def append_now(self, *steps: Step) -> None:
        """Drop *steps*."""

    def append_stretch(self, stretch: QuietStretch) -> None:
        """Drop *stretch*."""

    def flush(self) -> None:
        """Store nothing."""


def measure_signals(bars: int, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return the CPU time of a bar as multiples of a plain loop's, medians over *rounds*.

    They are those of a class with ``signals``, with its record and by the engine alone.
    """
    candles = tiled(bars)
    closes, name = candles.close.tolist(), f"{Path(__file__).stem}:{Vectorised.__name__}"
    ratios: dict[str, list[float]] = {"recorded": [], "alone": []}
    for _ in range(rounds):
        began = time.process_time()
        _plain_loop(closes)
        plain = time.process_time() - began
        ratios["recorded"].append(recorded(replay_of([candles], name)).cpu_s / plain)
        replay = replay_of([candles], name)
        replay.engine.stores_state = False
        began = time.process_time()
        run_replay(replay, _NoLog(), Tally())
        ratios["alone"].append((time.process_time() - began) / plain)
    times = {f"{way}_times_plain_loop": statistics.median(of) for way, of in ratios.items()}
    return {"machine": machine_line(), "bars": bars, **times}


def _plain_loop(closes: list[int], fast: int = 20, slow: int = 100) -> int:
    """Run the same strategy in plain Python, without exact money, log or gates."""
    window: deque[int] = deque(maxlen=slow)
    held, cash, pending = 0, 0, 0
    for close in closes:
        cash -= (pending - held) * close
        held = pending
        window.append(close)
        if len(window) == slow:
            recent = list(window)
            pending = int(sum(recent[-fast:]) * slow > sum(recent) * fast)
    return cash + held * closes[-1]


def explained_window(network: Network) -> Route:
    """Return a function that explains the output of *network* for a window of random rows."""
    generator = torch.Generator().manual_seed(0)
    bars = network.config.receptive_field
    x = torch.randn(1, bars, network.config.features, generator=generator).clamp(-5, 5)

    def route() -> object:
        with torch.inference_mode():
            return network.explain(x, torch.arange(bars))

    return route


def measure_model(
    bars: int = 20_000, *, checkpoint: Path | None = None, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Return the figures of a replay with a model, every bar gated, explained and stored.

    *checkpoint* is the folder or bundled name of a network, or of an ensemble with one. In each
    round the network alone explains bars or windows for ``ALONE_S``. Raises ``ConfigInvalid`` for
    a model without attention.
    """
    forecaster = replay_of([tiled(1)], "attention", checkpoint=checkpoint).forecaster
    assert forecaster is not None
    network = attending(forecaster)
    if network is None:
        raise ConfigInvalid(f"{checkpoint} has no attention; measure a network's checkpoint.")
    if isinstance(network, StreamingForecaster):
        alone: Callable[[], int] = Scan(network.network).advance
    else:
        window = explained_window(network.model.network)

        def alone() -> int:
            window()
            return 1

    chunk = min(CHUNK_EVENTS, forecaster.scanned_at_once)
    warm = max(forecaster.context, -(-forecaster.context // chunk) * chunk - AHEAD)
    candles = tiled(warm + PROGRESS_EVENTS + bars)  # at least *bars* are timed
    replayed, explained, logged = [], [], []
    for _ in range(rounds):
        record = recorded(replay_of([candles], "attention", checkpoint=checkpoint), after=warm)
        timed = len(candles) - record.skipped
        replayed.append(record.cpu_s / timed)
        logged.append(record.log_s / timed)
        began, done = time.process_time(), 0
        while time.process_time() - began < ALONE_S:
            done += alone()
        explained.append((time.process_time() - began) / done)
    bar, network_alone = statistics.median(replayed), statistics.median(explained)
    return {
        "machine": machine_line(),
        "bars": bars,
        "bar_cpu_ms": 1e3 * bar,
        "network_alone_cpu_ms": 1e3 * network_alone,
        "bar_to_network_alone": bar / network_alone,
        "log_cpu_us_per_bar": 1e6 * statistics.median(logged),
        "year_minutes_wall_extrapolated": YEAR_BARS * record.wall_s / timed / 60,
        "database_bytes_per_bar": record.size / len(candles),
        "rss_mb_peak": max(record.memory_mb),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bars", type=int)
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--signals", action="store_true")
    given = parser.parse_args()
    chosen = {} if given.bars is None else {"bars": given.bars}
    if given.model or given.checkpoint is not None:
        figures = measure_model(**chosen, checkpoint=given.checkpoint)
    elif given.signals:
        figures = measure_signals(given.bars or YEAR_BARS)
    else:
        figures = measure_replay(**chosen)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
