"""Forecasts of known bars in one batched pass, handed out one bar at a time.

Only for networks declared causal. Each bar is handed its own row, and some bars of every run are
computed anew from a truncated prefix: a network that peeks at later bars would differ there,
and comparing rows with one another would not show it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tracepaper.daemon.session.predictor import BarHistory, warm
from tracepaper.replay.backtest.agreement import answers_agree
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.strategy import Forecaster
from tracepaper.strategies.types import Bar, Event, Forecast, ModelChange, Prediction

CHUNK_EVENTS: Final = 8_192
"""Events read ahead: enough for the batched pass to pay, a few megabytes of forecasts."""

PROBE_EVERY_CHUNKS: Final = 16


class ScanPredictor:
    """Reads ahead in a feed of known bars, and answers each with the row computed for it.

    *prober* is a second forecaster of the same checkpoint: it re-derives sampled bars from
    nothing but the bars up to them, and the run stops if one differs.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        prober: Forecaster,
        instruments: Iterable[str],
        *,
        period_start_ms: int,
    ) -> None:
        if not forecaster.causal:
            raise InvariantBroken("only a causal network may see a batch of known bars")
        self._forecaster = forecaster
        self._prober = prober
        self._period_start_ms = period_start_ms
        self.memory = BarHistory(instruments, context=forecaster.context)
        self._waiting: dict[str, deque[tuple[Bar, Forecast | None]]] = {
            key: deque() for key in instruments
        }
        self._chunks = 0
        self.probed = 0

    def read_ahead(self, events: Iterable[Event]) -> Iterator[Event]:
        """Yield *events* unchanged, computing the forecasts of each chunk before its first.

        A recorded start cuts the chunk: the model is warmed there as it was then.
        """
        chunk: list[Event] = []
        for event in events:
            if isinstance(event, ModelChange):
                yield from self._computed(chunk)
                chunk = []
                warm(self._forecaster, self.memory, event)
                yield event
                continue
            chunk.append(event)
            if len(chunk) == CHUNK_EVENTS:
                yield from self._computed(chunk)
                chunk = []
        yield from self._computed(chunk)

    def _computed(self, chunk: list[Event]) -> list[Event]:
        """Return *chunk* with the forecasts of its bars waiting to be asked for."""
        fresh: dict[str, list[Bar]] = {}
        for event in chunk:
            if isinstance(event, Bar) and self._is_newest(event, fresh):
                fresh.setdefault(event.instrument, []).append(event)
        for key, bars in fresh.items():
            self._waiting[key].extend(zip(bars, self._forecaster.scan(bars), strict=True))
        if fresh:
            self._probe(fresh)
        return chunk

    def _is_newest(self, bar: Bar, fresh: dict[str, list[Bar]]) -> bool:
        """Return whether *bar* is newer than all that was read: a revision gets no forecast."""
        if known := fresh.get(bar.instrument):
            return bar.open_time_ms > known[-1].open_time_ms
        last = self.memory.last(bar.instrument)
        return last is None or bar.open_time_ms > last.open_time_ms

    def predict(self, event: Event) -> Prediction:
        """Return the forecast that was computed for *event*, and for no other bar."""
        if not isinstance(event, Bar) or not self.memory.push(event):
            return None
        bar, forecast = self._waiting[event.instrument].popleft()
        if bar is not event:
            raise InvariantBroken(f"the scan computed {bar.open_time_ms}, not this bar's row")
        return forecast if event.open_time_ms >= self._period_start_ms else None

    async def __call__(self, event: Event) -> Prediction:
        """Return the prediction for *event*; never waits."""
        return self.predict(event)

    def _probe(self, fresh: dict[str, list[Bar]]) -> None:
        """Compute one bar of this chunk again, from the bars up to it alone."""
        self._chunks += 1
        if (self._chunks - 1) % PROBE_EVERY_CHUNKS:
            return
        for key, bars in fresh.items():
            past = [*self.memory.since(key, 0), *bars]
            # A different place in every chunk, and never the last bar: the future must exist.
            place = len(past) - 2 - (self._chunks * 7_919) % max(len(bars) - 1, 1)
            context = self._forecaster.context
            if place + 1 < context:
                place = min(context - 1, len(past) - 2)
            if place + 1 < context:
                continue
            waiting = {bar.open_time_ms: said for bar, said in self._waiting[key]}
            expected = waiting.get(past[place].open_time_ms)
            derived = _derived(self._prober, past[place + 1 - context : place + 1])
            self.probed += 1
            if not answers_agree(expected, derived):
                raise InvariantBroken(
                    f"the network saw later bars: its forecast of {key} at "
                    f"{past[place].open_time_ms} differs without them"
                )


def _derived(prober: Forecaster, bars: Sequence[Bar]) -> Forecast | None:
    """Return the forecast of the last of *bars* by a model that has seen only these."""
    prober.warm(bars[-1].instrument, bars[:-1])
    return prober.step(bars[-1])
