"""``bench replay``: bars a CPU second; a figure is the median of rounds in turns."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tracepaper.daemon.config.loading import load
from tracepaper.replay.archive import Candles, read_candles, slice_candles
from tracepaper.replay.archive.columns import IntArray
from tracepaper.replay.backtest.build import Replay, build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.predictors import CHUNK_EVENTS
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.bench.machine import machine_line, resident_mb
from tracepaper.replay.samples import DEMO_CANDLES
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.strategies.api.context import BarContext, Percent, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.indicators import rsi
from tracepaper.strategies.types.decisions import Action, Forecast, Step
from tracepaper.strategies.types.market import Bar

if TYPE_CHECKING:
    from tracepaper.replay.bench.workloads import Scan

YEAR_BARS: Final = 525_600
REACH_BARS_PER_CPU_S: Final = 50_000
REACH_WRITTEN_BARS_PER_CPU_S: Final = 25_000
REACH_TIMES_PLAIN_LOOP: Final = 9.0
REACH_FIFTY_TIMES_ONE: Final = 1.1
REACH_TWO_TIMES_ONE: Final = 1.7
REACH_WINDOWED_BAR_MS: Final = 4.0
SYMBOLS: Final = 50
NAIVE_SAMPLE: Final = 3
APART: Final = 64
"""Events beside bars by which the end of a chunk may differ from so many bars."""
BESIDE: Final = 8
"""Times that each network runs alone after a scan, where each bar takes a whole window."""
SCANS: Final = 4
"""Chunks that the network alone scans after each chunk of events."""

Tell = Callable[[str], None]


class Reversion(Strategy):
    """What a user writes: an indicator of ``context.history``, a stop, and a note at every bar."""

    warmup = 100

    def __init__(self, _options: dict[str, Any]) -> None:
        """Take no options."""

    def decide(self, context: BarContext) -> Signal:
        """Buy what has fallen, and sell it when it has risen."""
        strength = float(rsi(context.history.close, 14, window=100)[-1])
        note = {"rsi": strength}
        if strength < 30:
            return Signal(Action.LONG, "it has fallen", stop=Percent(2.0), note=note)
        if strength > 60:
            return Signal(Action.FLAT, "it has risen", note=note)
        return Signal(Action.HOLD, "between the two", note=note)


def tiled(bars: int) -> Candles:
    """Return the bundled candles laid end to end until there are *bars* of them."""
    once = read_candles(DEMO_CANDLES)
    times = -(-bars // len(once))
    span_ms = len(once) * once.interval_ms

    def repeated(values: IntArray) -> IntArray:
        return np.tile(values, times)[:bars]

    opened = np.concatenate([once.open_time_ms + turn * span_ms for turn in range(times)])[:bars]
    return replace(
        once,
        open_time_ms=opened,
        open=repeated(once.open),
        high=repeated(once.high),
        low=repeated(once.low),
        close=repeated(once.close),
        volume=repeated(once.volume),
        turnover=None if once.turnover is None else repeated(once.turnover),
    )


def replay_of(
    parts: Sequence[Candles],
    strategy: str,
    *,
    checkpoint: Path | None = None,
    times: int = 1,
) -> Replay:
    """Return a replay of *parts* by *strategy*, with money that never runs out.

    *checkpoint* is the folder of the model, by default the one that is shipped. The strategy trades
    several *times* on one account where that is more than once.
    """
    symbols = [part.symbol for part in parts]
    sections: dict[str, dict[str, Any]] = {
        "market": {"category": "linear", "symbols": symbols, "interval": "1"},
        "strategy": {"name": strategy},
        "sizing": {"mode": "fixed", "quantity": "1"},
        "account": {"cash": "1000000"},
        "model": {} if checkpoint is None else {"checkpoint": str(checkpoint)},
    }
    if times > 1:
        chosen = {**sections.pop("strategy"), "share": str(Decimal(1) / times)}
        sections["strategies"] = {f"strategy_{number}": chosen for number in range(times)}
    return build(load(None, sections), MarketData(parts), started_at_ms=0)


@dataclass(frozen=True)
class _Logged:
    """One replay into a new database: CPU seconds, the file's bytes, and memory on the way."""

    cpu_s: float
    size: int
    memory: list[tuple[int, float]]  # bars so far, and MB then


def _logged(replay: Replay) -> _Logged:
    marks: list[tuple[int, float]] = []
    tally = Tally(progress=lambda done: marks.append((done, resident_mb())))
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "bench.db"
        _, cpu_s = _record(replay, database, tally)
        return _Logged(cpu_s, database.stat().st_size, marks)


class _WatchedLog(SqlAuditLog):
    """A log that shows each step after it was taken."""

    observe: Callable[[Step], None] = staticmethod(lambda _step: None)

    def append_now(self, *steps: Step) -> None:
        super().append_now(*steps)
        for step in steps:
            self.observe(step)


def _record(
    replay: Replay,
    database: Path,
    tally: Tally,
    observe: Callable[[Step], None] = lambda _step: None,
) -> tuple[float, float]:
    """Log *replay* in the new *database*; return the seconds of wall and of CPU time it took.

    *observe* is shown each step that is taken singly, as all are with a model.
    """
    audit = _WatchedLog.open(database)
    audit.observe = observe
    wall, began = time.perf_counter(), time.process_time()
    run_replay(replay, audit, tally)
    spent = time.perf_counter() - wall, time.process_time() - began
    audit.end(0)
    audit.close()
    return spent


def measure_replay(
    bars: int = 200_000, *, rounds: int = 3, tell: Tell = lambda _: None
) -> dict[str, Any]:
    """Return the figures of a replay without a model: medians over *rounds*, on CPU time.

    Each round replays the same bars into a new database, and beside it as many bars of
    ``SYMBOLS`` instruments, as many by a class as users write them, as many by two strategies on
    one account, and a plain Python loop of the same strategy, without engine or log.
    """
    candles = tiled(bars)
    # As many bars, of instruments that all close at the same times.
    rows = slice(0, max(1, bars // SYMBOLS))
    several = [
        replace(slice_candles(candles, rows), symbol=f"S{number:02}USDT")
        for number in range(SYMBOLS)
    ]
    alone, ratios, plain, written, shared = [], [], [], [], []
    for turn in range(rounds):
        tell(f"round {turn + 1} of {rounds}: {bars:,} bars, of one symbol and of {SYMBOLS}")
        alone.append(_logged(replay_of([candles], "sma_cross")))
        together = _logged(replay_of(several, "sma_cross"))
        bars_together = sum(len(part) for part in several)
        ratios.append(together.cpu_s / bars_together * bars / alone[-1].cpu_s)
        two = _logged(replay_of([candles], "sma_cross", times=2))
        shared.append(two.cpu_s / alone[-1].cpu_s)
        own = replay_of([candles], f"{__name__}:{Reversion.__name__}")
        written.append(bars / _logged(own).cpu_s)
        closes = candles.close.tolist()
        began = time.process_time()
        _plain_loop(closes)
        plain.append(time.process_time() - began)
    seconds = statistics.median(one.cpu_s for one in alone)
    marks = [held_mb for _, held_mb in alone[-1].memory]
    return {
        "machine": machine_line(),
        "bars": bars,
        "bars_per_cpu_s": bars / seconds,
        "reach_bars_per_cpu_s": REACH_BARS_PER_CPU_S,
        "history_stop_notes_bars_per_cpu_s": statistics.median(written),
        "reach_history_stop_notes_bars_per_cpu_s": REACH_WRITTEN_BARS_PER_CPU_S,
        "plain_loop_bars_per_cpu_s": bars / statistics.median(plain),
        "times_plain_loop": seconds / statistics.median(plain),
        "reach_times_plain_loop": REACH_TIMES_PLAIN_LOOP,
        "fifty_symbols_times_one": statistics.median(ratios),
        "reach_fifty_symbols_times_one": REACH_FIFTY_TIMES_ONE,
        "two_strategies_times_one": statistics.median(shared),
        "reach_two_strategies_times_one": REACH_TWO_TIMES_ONE,
        "database_bytes_per_bar": statistics.median(one.size for one in alone) / bars,
        "rss_mb_at_a_quarter": marks[len(marks) // 4],
        "rss_mb_at_the_end": marks[-1],
    }


def _plain_loop(closes: list[int], fast: int = 20, slow: int = 100) -> int:
    """Run the same strategy in the fewest lines of Python: no exact money, no log, no gates."""
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


def measure_model(bars: int = 30_000, *, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Return the figures of a replay with the default model, every bar gated and explained.

    A year is extrapolated from *bars* after the warm-up, unless *bars* is a year; so is the
    naive route, which runs the network anew over the whole context at every bar.
    """
    from tracepaper.replay.bench.workloads import Scan
    from tracepaper.strategies.forecasters.streaming import StreamingForecaster
    from tracepaper.strategies.forecasters.tabular import network_half

    candles = tiled(bars + 7_201)
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "bench.db"
        tell("loading the model")
        replay = replay_of([candles], "attention")
        tell(f"replaying {len(candles):,} bars")
        assert replay.forecaster is not None
        network = network_half(replay.forecaster)
        assert isinstance(network, StreamingForecaster)
        watch = ExplainedBars(Scan(network.network))
        spent = _record(replay, database, Tally(progress=watch.observe))
        wall_s, cpu_s = (seconds - watch.aside_s for seconds in spent)
        size = database.stat().st_size / len(candles)
    tell("running the network anew, as the naive route does")
    naive_s = forward_seconds(NAIVE_SAMPLE)
    return {
        "machine": machine_line(),
        "bars": len(candles),
        "bars_per_wall_s": len(candles) / wall_s,
        "bars_per_cpu_s": len(candles) / cpu_s,
        "year_minutes_wall": YEAR_BARS / (len(candles) / wall_s) / 60,
        "year_is_extrapolated": len(candles) < YEAR_BARS,
        "naive_seconds_a_bar": naive_s,
        "naive_year_hours": naive_s * YEAR_BARS / 3600,
        "times_faster_than_naive": naive_s / (wall_s / len(candles)),
        "database_bytes_per_bar": size,
        "rss_mb_peak": watch.peak_mb,
        **watch.figures(),
    }


def measure_windows(
    checkpoint: Path, bars: int = 600, *, tell: Tell = lambda _: None
) -> dict[str, Any]:
    """Measure the cost of a bar of the windowed model in *checkpoint*, logged in full.

    *checkpoint* is a folder or a bundled name, of a network or an ensemble with one. Beside it, in
    the same run, the network alone and full attention of the same size. Raises ``ConfigInvalid`` of
    a model that streams or has no attention.
    """
    from tracepaper.replay.bench.workloads import WholeWindow
    from tracepaper.strategies.forecasters.attribution import attending

    tell("loading the model")
    replay = replay_of([tiled(1)], "attention", checkpoint=checkpoint)
    assert replay.forecaster is not None
    forecaster = attending(replay.forecaster)
    if forecaster is None or forecaster.streams:
        raise ConfigInvalid(
            f"{checkpoint} is no model of whole windows; measure the default one with --model."
        )
    at_once = forecaster.scanned_at_once
    watch = WindowedBars(WholeWindow(forecaster.model.network).routes(), at_once)
    first = -(-forecaster.context // at_once) * at_once  # from there on every scan is answered
    candles = tiled(max(first + at_once, bars + forecaster.context))
    replay = replay_of([candles], "attention", checkpoint=checkpoint)
    tell(f"replaying {len(candles):,} bars")
    with tempfile.TemporaryDirectory() as folder:
        _record(replay, Path(folder) / "bench.db", Tally(), watch.observe)
    config = forecaster.model.network.config
    return {
        "machine": machine_line(),
        "network": f"{config.layers} layers, window {config.window}, width {config.dim}, "
        f"{config.features} features",
        "bars": len(candles) - forecaster.context,
        **watch.figures(),
        "reach_bar_ms": REACH_WINDOWED_BAR_MS,
    }


class WindowedBars:
    """What a bar of a network of whole windows costs in a replay, beside the network alone.

    The cost is the CPU time from the end of one scan to the end of the next, of *at_once* bars:
    features, network, explanation, forecast, engine and log. After each scan every route of
    *routes* runs some times; that time is left out.
    """

    def __init__(self, routes: Mapping[str, Callable[[], object]], at_once: int) -> None:
        self._mark: float | None = None
        self._at_once = at_once
        self._bars = 0
        self._spent: list[float] = []  # seconds a bar, of each scan
        self._routes = routes
        self._beside: dict[str, list[float]] = {name: [] for name in routes}

    def observe(self, step: Step) -> None:
        """Take the time where *step* is the last of a scan, and that of the routes."""
        self._bars += isinstance(step.event, Bar)
        if self._bars % self._at_once or not isinstance(step.prediction, Forecast):
            return
        if self._mark is not None:
            self._spent.append((time.process_time() - self._mark) / self._at_once)
        for name, route in [*self._routes.items()] * BESIDE:
            before = time.process_time()
            route()
            self._beside[name].append(time.process_time() - before)
        self._mark = time.process_time()

    def figures(self) -> dict[str, float]:
        """Return milliseconds, medians, and the bar's ratio to each route's."""
        bar = 1e3 * statistics.median(self._spent)
        beside = {name: 1e3 * statistics.median(taken) for name, taken in self._beside.items()}
        return {
            "bar_ms": bar,
            **{f"{name}_ms": taken for name, taken in beside.items()},
            **{f"bar_to_{name}": bar / taken for name, taken in beside.items()},
        }


class ExplainedBars:
    """What an explained bar costs in a replay, beside its network's own scan in the same run.

    The cost is the CPU time from one chunk of events that is read ahead to the next: features,
    network, forecasts, engine and log of as many bars. After each chunk the network alone scans
    random rows; that time is left out of the replay's.
    """

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._mark = 0.0
        self._bars = 0  # at the mark
        self._chunk = 0
        self._replayed: list[float] = []  # seconds a bar
        self._scanned: list[float] = []
        self.aside_s = 0.0
        self.peak_mb = 0.0

    def observe(self, bars: int) -> None:
        """Take the time once a chunk has passed, and scan as a reference."""
        self.peak_mb = max(self.peak_mb, resident_mb())
        if (chunk := (bars + APART) // CHUNK_EVENTS) == self._chunk:
            return
        self._chunk = chunk
        began = time.process_time()
        if self._bars:
            self._replayed.append((began - self._mark) / (bars - self._bars))
        for _ in range(SCANS):
            before = time.process_time()
            scanned = self._scan.advance()
            self._scanned.append((time.process_time() - before) / scanned)
        self._mark, self._bars = time.process_time(), bars
        self.aside_s += self._mark - began

    def figures(self) -> dict[str, float]:
        """Return microseconds a bar and their ratio, medians; nothing below two whole chunks."""
        if not self._replayed:
            return {}
        replayed, scanned = (1e6 * statistics.median(x) for x in (self._replayed, self._scanned))
        return {
            "explained_bar_us": replayed,
            "network_scan_us": scanned,
            "explained_bar_to_scan": replayed / scanned,
            "reach_explained_bar_to_scan": 1.6,
        }


def forward_seconds(times: int) -> float:
    """Return the median wall seconds of a forward over the default network's whole context."""
    from tracepaper.replay.bench.workloads import forward_whole, whole_context
    from tracepaper.strategies.networks.flash import FlashConfig

    network, rows = whole_context(FlashConfig())
    forward_whole(network, rows)
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        forward_whole(network, rows)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
