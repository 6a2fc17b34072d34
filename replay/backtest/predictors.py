"""Batched forecasts of known bars, and the tolerances within which forecasts agree.

A scan is only for networks that declare themselves causal. Some bars of every run are computed
again from the bars up to them: a network that reads later bars differs there.

``verify`` of a run from another machine, ``parity``, ``recursive``, ``lookahead`` and the probes of
a scan use these tolerances. All other values must be equal. The rule is docs/identity.md, I8.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np

from tracepaper.daemon.session.loop import BarHistory, events_of, warm
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.covariates import run_source
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.time_buckets import weights_of
from tracepaper.strategies.types.decisions import (
    Decision,
    Forecast,
    ForecastColumns,
    HeadForecasts,
    Prediction,
    RunRow,
)
from tracepaper.strategies.types.forecast_columns import columns_of
from tracepaper.strategies.types.market import Bar, CloseStart, Event, ModelChange, Unit

ENVIRONMENT: Final = (
    *("mode", "device", "dtype", "threads", "backend"),
    *("torch_version", "instruction_set", "libraries"),
)
"""The fields of a run that the last bits of a forecast depend on."""


def differs(
    then: RunRow | ModelChange, here: RunRow | ModelChange, names: Iterable[str] = ENVIRONMENT
) -> str:
    """Return the fields that differ *here*, in words; if empty, every bit must be equal."""
    pairs = [(name, getattr(then, name), getattr(here, name)) for name in names]
    return ", ".join(
        f"{name} was {was} and is {now} here" for name, was, now in pairs if was != now
    )


RETURNS: Final = 1e-4
"""Tolerance of returns, in standard deviations of the forecast at that horizon."""
SHARES: Final = 1e-4
"""Absolute tolerance of probabilities, masses, confidences and strengths."""
MEASURES: Final = 1e-4
"""Tolerance of measures, relative to the measure or its threshold, at least to 1."""

RETURN_FIELDS: Final = ("mean_return", "stdev_return", "volatility")
"""Fields of a forecast with the tolerance ``RETURNS``."""
SHARE_FIELDS: Final = ("p_down", "p_flat", "p_up")
"""Fields of a forecast with the tolerance ``SHARES``."""
EXPLANATION_FIELDS: Final = (
    *("confidence_entropy", "rollout_entropy", "content_free", "recent_mass", "event_focus"),
    *("older_mass", "shift", "l1_error", "entropy", "buckets"),
)
"""Fields of an explanation with the tolerance ``SHARES``; the last two are arrays."""


def near(first: float | None, second: float | None, bound: float) -> bool:
    """Return whether two numbers differ by at most *bound*.

    None agrees only with None, NaN only with NaN.
    """
    if first is None or second is None:
        return first is second
    if math.isnan(first) or math.isnan(second):
        return math.isnan(first) and math.isnan(second)
    return math.isfinite(first) and math.isfinite(second) and abs(first - second) <= bound


def near_measure(first: float | None, second: float | None) -> bool:
    """Return whether two measures, or a measure and its threshold, agree."""
    size = 0.0 if first is None or second is None else max(abs(first), abs(second))
    return near(first, second, MEASURES * max(size, 1.0))


def measures_agree(first: Decision, second: Decision) -> bool:
    """Return whether the gates are the same and their measures agree."""
    same = first.gate_set.gates == second.gate_set.gates
    return same and all(map(near_measure, first.measures, second.measures))


def predictions_agree(first: Prediction, second: Prediction) -> bool:
    """Return whether two predictions agree in every field, within the tolerances."""
    if not isinstance(first, Forecast) or not isinstance(second, Forecast):
        return type(first) is type(second)
    return first.horizons == second.horizons and all(
        field_agrees(name, first, second)
        for name in (*RETURN_FIELDS, *SHARE_FIELDS, *EXPLANATION_FIELDS, "heads")
    )


def field_agrees(name: str, first: Forecast, second: Forecast) -> bool:
    """Return whether two forecasts agree in a field of theirs or of their explanations."""
    if name == "heads":
        return heads_agree(first.heads, second.heads, len(first.horizons))
    if name in EXPLANATION_FIELDS:
        if first.explanation is None or second.explanation is None:
            return True
        values, others = (getattr(of.explanation, name) for of in (first, second))
        if not isinstance(values, bytes):
            return near(values, others, SHARES)
        # Compare arrays up to the shorter length.
        read = weights_of if name == "buckets" else partial(np.frombuffer, dtype="<f4")
        arrays = (read(of).tolist() for of in (values, others))
        return all(near(share, other, SHARES) for share, other in zip(*arrays, strict=False))
    values, others = getattr(first, name), getattr(second, name)
    bounds = [SHARES] * len(values)
    if name in RETURN_FIELDS:
        # Without a deviation the tolerance is relative to the values.
        bounds = [RETURNS * size for size in first.stdev_return or map(abs, values)]
    return len(values) == len(others) and all(map(near, values, others, bounds))


def heads_agree(first: HeadForecasts | None, second: HeadForecasts | None, horizons: int) -> bool:
    """Return whether the auxiliary heads of two networks agree at each of *horizons* horizons.

    The tolerance is ``RETURNS`` times the head's largest value at that horizon. Regimes have two:
    one of the probabilities, one of the volatilities. NaN agrees only with NaN.
    """
    if first is None or second is None:
        return first is second
    for name in HeadForecasts.__struct_fields__:
        values, others = (np.frombuffer(getattr(of, name), "<f4") for of in (first, second))
        if len(values) != len(others):
            return False
        unknown = np.isnan(values)
        if (unknown != np.isnan(others)).any():
            return False
        shape = (horizons, -1, 2 if name == "regimes" else 1)
        values, others = (np.where(unknown, 0.0, of).reshape(shape) for of in (values, others))
        if (
            values.size
            and not (
                np.abs(values - others) <= RETURNS * np.abs(values).max(1, keepdims=True)
            ).all()
        ):
            return False
    return True


CHUNK_EVENTS: Final = 8_192
"""Events read ahead: enough to make a batch pay; forecasts take a few megabytes."""
CHUNK_INSTRUMENTS: Final = 16
"""More instruments read further ahead, 512 bars each: a shorter scan costs as much."""
PROBE_EVERY_CHUNKS: Final = 16
"""Chunks from one probe to the next; probes take turns over the instruments."""


class ScanPredictor:
    """Computes the forecasts of known bars in batches, and returns them bar by bar.

    *prober* is a second forecaster of the same checkpoint. It computes sampled bars again from the
    bars up to them; the run stops if one differs. None samples nothing.
    """

    is_silent = False

    def __init__(
        self,
        forecaster: Forecaster,
        prober: Forecaster | None,
        instruments: Iterable[str],
        *,
        period_start_ms: int,
    ) -> None:
        if not forecaster.causal:
            raise InvariantBroken("only a causal network may see a batch of known bars")
        self._forecaster = forecaster
        self._prober = prober
        self._period_start_ms = period_start_ms
        self.history = BarHistory(instruments, context=forecaster.context)
        self._waiting: dict[str, deque[tuple[Bar, Forecast | None]]] = {
            key: deque() for key in instruments
        }
        at_once = min(CHUNK_EVENTS, forecaster.scanned_at_once)
        self._chunk_events = at_once * -(-len(self._waiting) // CHUNK_INSTRUMENTS)
        self.columns: dict[str, ForecastColumns] = {}  # of the chunk, by instrument
        self._chunks = 0
        self._next_probe = 1
        self.probed = 0
        sources = map(run_source, (forecaster, prober))
        self._sources = [source for source in sources if source is not None]

    def read_ahead(self, events: Iterable[Event]) -> Iterator[Event]:
        """Yield *events* unchanged; compute the forecasts of each chunk before its first event.

        A recorded start ends a chunk: there the model is warmed as it was in the record.
        """
        chunk: list[Event] = []
        due = 0  # bars left of the current close: a chunk must not split it, or a probe lacks bars
        for event in events:
            for source in self._sources:
                source.see(event)
            if isinstance(event, ModelChange):
                yield from self._computed(chunk)
                chunk = []
                warm(self._forecaster, self.history, event)
                yield event
                continue
            chunk.append(event)
            due = event.bars if isinstance(event, CloseStart) else max(due - 1, 0)
            if len(chunk) >= self._chunk_events and not due:
                yield from self._computed(chunk)
                chunk = []
        yield from self._computed(chunk)

    def _computed(self, chunk: list[Event]) -> list[Event]:
        """Compute and queue the forecasts of *chunk*; return it."""
        fresh: dict[str, list[Bar]] = {}
        for event in chunk:
            if isinstance(event, Bar) and self._is_newest(event, fresh):
                fresh.setdefault(event.instrument, []).append(event)
        self.columns.clear()
        for key, bars in fresh.items():
            forecasts = self._forecaster.scan(bars)
            self._waiting[key].extend(zip(bars, forecasts, strict=True))
            if (columns := columns_of(forecasts)) is not None:
                self.columns[key] = columns
        if fresh:
            self._probe(fresh)
        return chunk

    def _is_newest(self, bar: Bar, fresh: dict[str, list[Bar]]) -> bool:
        """Return whether *bar* is newer than all bars read; a revision gets no forecast."""
        if bars := fresh.get(bar.instrument):
            return bar.open_time_ms > bars[-1].open_time_ms
        last = self.history.last(bar.instrument)
        return last is None or bar.open_time_ms > last.open_time_ms

    def predict(self, unit: Unit) -> list[Prediction]:
        """Return the queued forecast of each event of *unit*; None for events without one."""
        return [self._computed_for(event) for event in events_of(unit)]

    def _computed_for(self, event: Event) -> Prediction:
        if not isinstance(event, Bar) or not self.history.push(event):
            return None
        bar, forecast = self._waiting[event.instrument].popleft()
        if bar is not event:
            raise InvariantBroken(f"the scan computed {bar.open_time_ms}, not this bar's row")
        return forecast if event.open_time_ms >= self._period_start_ms else None

    def _probe(self, fresh: Mapping[str, Sequence[Bar]]) -> None:
        """If a probe is due, compute one bar of this chunk again from the bars up to it.

        All instruments share the network, so one is enough; they take turns.
        """
        self._chunks += 1
        if self._prober is None or self._chunks < self._next_probe:
            return
        keys = sorted(fresh)
        for turn in range(len(keys)):
            key = keys[(self.probed + turn) % len(keys)]
            past = [*self.history.since(key, 0), *fresh[key]]
            place = self._place(len(past), len(fresh[key]))
            if place is not None:
                self._compare(self._prober, key, past, place)
                self._next_probe = self._chunks + PROBE_EVERY_CHUNKS
                return

    def _place(self, count: int, fresh: int) -> int | None:
        """Return the index to probe of *count* bars, *fresh* of them new; None if too few."""
        # Another index in every chunk, never the last bar: later bars must exist.
        place = count - 2 - (self._chunks * 7_919) % max(fresh - 1, 1)
        context = self._forecaster.context
        if place + 1 < context:
            place = min(context - 1, count - 2)
        return place if place + 1 >= context else None

    def _compare(self, prober: Forecaster, key: str, past: Sequence[Bar], place: int) -> None:
        """Raise ``InvariantBroken`` unless the bars up to *place* give the same forecast."""
        waiting = {bar.open_time_ms: forecast for bar, forecast in self._waiting[key]}
        expected = waiting.get(past[place].open_time_ms)
        # One bar more than the context: the shift compares with the bar before.
        first = max(place - self._forecaster.context, 0)
        context = past[first : place + 1]
        prober.warm(context[-1].instrument, context[:-1])
        derived = prober.step(context[-1])
        self.probed += 1
        if not predictions_agree(expected, derived):
            raise InvariantBroken(
                f"the network saw later bars: its forecast of {key} at "
                f"{past[place].open_time_ms} differs without them"
            )
