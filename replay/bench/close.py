"""``bench close``: instruments that close at once, gathered beside one by one."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.engine.runner import drive
from tracepaper.daemon.session.build import needs_forecaster
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.replay.archive.candles import bars_of
from tracepaper.replay.archive.instruments import archive_instrument
from tracepaper.replay.bench.live import live_config, live_parts, quote_of
from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.bench.replay import tiled
from tracepaper.strategies.strategy import Forecaster
from tracepaper.strategies.types import Bar, Closed, Event, Source

WARM_UP_CLOSES: Final = 20
"""Closes that are decided, half of them each way, before the first that is timed."""
REACH: Final = 0.35
REACH_LIVE_MS: Final = 500.0
"""After the last bar of a close of fifty symbols all of its decisions are committed."""
LIVE_CLOSES_LEAST: Final = 100
"""Fewer closes have no hundredth that is the slowest."""
SLOW_BARS: Final = 100
"""Bars of warm-up of the strategy without a model."""
_APART: Final = 37
"""Bars by which the instruments' prices are moved against each other."""

Tell = Callable[[str], None]


@dataclass
class Spent:
    """What closes took, in milliseconds of wall time and of the process's CPU time."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = self._began
        self.wall_ms.append(1e3 * (time.perf_counter() - wall))
        self.cpu_ms.append(1e3 * (time.process_time() - cpu))

    def medians(self) -> dict[str, float]:
        """Return the median of both times."""
        return {"wall": statistics.median(self.wall_ms), "cpu": statistics.median(self.cpu_ms)}


def measure(symbols: int = 30, rounds: int = 40, *, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Return milliseconds from the delivery of a close to the commit of its last decision.

    One run of *symbols* with the default model takes closes in turn gathered (announced, predicted
    in one batch, stored in one transaction) and one by one, as with ``gather_ms = 0``; medians
    over *rounds* closes each way. ``wall_ratio`` is the one ÷ the other in wall time, waits for the
    disk included: it is held to the reach. The same of CPU time, and of the model alone, follow.
    """
    config = live_config("attention", [f"BENCH{number}USDT" for number in range(symbols)])
    return {
        "machine": machine_line(),
        "symbols": symbols,
        "rounds": rounds,
        **compare(config, load_forecaster(config), rounds, tell=tell),
    }


def compare(
    config: Config, forecaster: Forecaster, rounds: int, *, tell: Tell = lambda _: None
) -> dict[str, Any]:
    """Return the times of *rounds* closes each way by *forecaster*, and their ratios."""
    context = forecaster.context
    decided = context + WARM_UP_CLOSES + 2 * rounds
    closes = closes_of(len(config.market.symbols), decided + 2 * rounds)
    feed = _timed(config, forecaster, closes[:decided], context, tell=tell)
    tell("the model alone")
    whole = {name: spent.medians() for name, spent in feed.spent.items()}
    alone = {name: spent.medians() for name, spent in model_alone(forecaster, closes[decided:])}
    return {
        "one_by_one_ms": whole["one_by_one"],
        "gathered_ms": whole["gathered"],
        "wall_ratio": whole["gathered"]["wall"] / whole["one_by_one"]["wall"],
        "reach_of_wall_ratio": REACH,
        "cpu_ratio": whole["gathered"]["cpu"] / whole["one_by_one"]["cpu"],
        "model_alone_cpu_ms": {name: each["cpu"] for name, each in alone.items()},
        "model_alone_cpu_ratio": alone["gathered"]["cpu"] / alone["one_by_one"]["cpu"],
    }


def measure_live(
    symbols: int, closes: int, *, model: bool = True, tell: Tell = lambda _: None
) -> dict[str, Any]:
    """Return milliseconds of wall time from the last bar of a close to its last commit.

    Each of *closes* is one of *symbols* instruments that fill by quotes, as live: a quote of each,
    then their bars behind the ``Closed`` that gathered them, decided and committed together.
    """
    figures: dict[str, Any] = {"machine": machine_line(), "symbols": symbols, "closes": closes}
    for name, strategy in (("without_model", "sma_cross"), ("with_model", "attention")):
        if strategy == "attention" and not model:
            continue
        config = live_config(strategy, [f"BENCH{number}USDT" for number in range(symbols)])
        forecaster = load_forecaster(config) if needs_forecaster(config) else None
        context = SLOW_BARS if forecaster is None else forecaster.context
        given = closes_of(symbols, context + WARM_UP_CLOSES + closes)
        feed = _timed(config, forecaster, given, context, only="gathered", tell=tell)
        wall_ms = sorted(feed.spent["gathered"].wall_ms)
        figures[f"{name}_ms"] = {
            "median": statistics.median(wall_ms),
            "p99": statistics.quantiles(wall_ms, n=100)[98],
            "longest": wall_ms[-1],
        }
    figures["reach_ms"] = REACH_LIVE_MS
    return figures


def _timed(
    config: Config,
    forecaster: Forecaster | None,
    closes: Sequence[Sequence[Bar]],
    context: int,
    *,
    only: str = "",
    tell: Tell,
) -> TimedFeed:
    """Return the feed that took *closes* through a run; the first *context* of them warm it."""
    symbols = config.market.symbols
    instrument = archive_instrument(tiled(context))
    instruments = [msgspec.structs.replace(instrument, symbol=symbol) for symbol in symbols]
    start_ms = closes[context][0].open_time_ms
    tell(f"warming {len(symbols)} instruments with {context:,} bars")
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "bench.db"
        with live_parts(config, instruments, forecaster, database, start_ms=start_ms) as parts:
            feed = TimedFeed(closes[:context], parts.start, closes[context:], tell, only=only)
            asyncio.run(drive(feed, parts.predictor, parts.engine, parts.audit))
    return feed


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
                source=Source.STREAM,
            )
            for number in range(symbols)
        ]
        for at in range(count)
    ]


def gathered(close: Sequence[Bar]) -> list[Event]:
    """Return *close* as the feed delivers it: announced by its ``Closed``."""
    first = close[0]
    return [Closed(first.open_time_ms, len(close), (), first.market_ms, first.seen_ms), *close]


class TimedFeed:
    """Delivers closes in turn one by one and gathered; times each until its last step is stored.

    The loop asks for an event once the steps of those before it are committed.
    """

    def __init__(
        self,
        past: Sequence[Sequence[Bar]],
        start: Callable[[], Event],
        closes: Sequence[Sequence[Bar]],
        tell: Tell,
        *,
        only: str = "",
    ) -> None:
        self.spent: Mapping[str, Spent] = {"one_by_one": Spent(), "gathered": Spent()}
        self._past = past
        self._start = start
        self._closes = closes
        self._tell = tell
        self._only = only  # the one way in which closes are delivered; in turn without it

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the bars before the start, the start, then quotes and bars close by close."""
        for close in self._past:
            for event in gathered(close):
                yield event
        yield self._start()
        self._tell(f"{len(self._closes)} closes of {len(self._closes[0])} symbols")
        warming: Mapping[str, Spent] = defaultdict(Spent)
        for number, close in enumerate(self._closes):
            for bar in close:
                yield quote_of(bar)
            name, events = "one_by_one", list[Event](close)
            if self._only == "gathered" or (not self._only and number % 2):
                name, events = "gathered", gathered(close)
            spent = warming if number < WARM_UP_CLOSES else self.spent
            with spent[name]:
                for event in events:
                    yield event


def model_alone(
    forecaster: Forecaster, closes: Sequence[Sequence[Bar]]
) -> Iterable[tuple[str, Spent]]:
    """Return what the model's answers to *closes* took, in turn bar by bar and batched."""
    single, batched = Spent(), Spent()
    for number, close in enumerate(closes):
        if number % 2:
            with batched:
                forecaster.predict_many(close)
        else:
            with single:
                for bar in close:
                    forecaster.step(bar)
    return ("one_by_one", single), ("gathered", batched)
