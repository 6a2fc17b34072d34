"""The loop of a run: each event, or the bars of one close, go through model and engine to the log.

``drive`` runs it for a live feed, ``replay/backtest/run.py`` for known events.

Only the forecaster runs in a thread, never the engine, because a thread cannot be cancelled. A
forecast that misses its deadline becomes a ``PredictionTimeout``. The model still takes in its bar
before the next forecast, because one thread takes the bars in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

from tracepaper.daemon.clock import Append, Feed, Predict
from tracepaper.daemon.engine.engine import Engine
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.covariates import run_source
from tracepaper.strategies.errors import DataInvalid, InvariantBroken
from tracepaper.strategies.types.decisions import (
    Forecast,
    ForecastColumns,
    Prediction,
    PredictionTimeout,
    Step,
)
from tracepaper.strategies.types.market import (
    Bar,
    Close,
    CloseStart,
    Event,
    FrameBar,
    Gap,
    ModelChange,
    Unit,
)

GROUP_STEPS: Final = 100
"""Most steps of a live feed in one commit: after a kill so many have to be fetched again."""


class KnownPredictor(Protocol):
    """A predictor for known events: it runs in the caller's thread, without a deadline."""

    is_silent: bool
    """Whether it never predicts; steps that only change prices may then be taken together."""

    @property
    def columns(self) -> Mapping[str, ForecastColumns]:
        """Known forecasts of the next bars, by instrument; empty if there are none."""
        ...

    def predict(self, unit: Unit, /) -> Sequence[Prediction]:
        """Return the forecast at each event of *unit*, as ``Predict`` does."""
        ...


def gathered(events: Iterable[Event]) -> Iterator[Unit]:
    """Yield *events*, each ``CloseStart`` together with its bars as one ``Close``.

    Raises ``DataInvalid`` if other events or none follow a ``CloseStart``.
    """
    remaining = iter(events)
    for event in remaining:
        if type(event) is CloseStart:
            yield _close(event, remaining)
        else:
            yield event


def _close(closed: CloseStart, following: Iterable[Event]) -> Close:
    """Return *closed* with its bars, the next events of *following*."""
    bars: list[Bar] = []
    for event in following:
        if not isinstance(event, Bar) or event.open_time_ms != closed.open_time_ms:
            break
        bars.append(event)
        if len(bars) >= closed.bars:
            break
    if len(bars) != closed.bars:
        raise DataInvalid(
            f"Of {closed.bars} bars that closed together only {len(bars)} follow (open time "
            f"{closed.open_time_ms}): rows are missing; restore a backup."
        )
    return Close(closed, bars)


def events_of(unit: Unit) -> Sequence[Event]:
    """Return the events of *unit*, one for each of its steps."""
    return (unit.closed, *unit.bars) if isinstance(unit, Close) else (unit,)


def steps_of(
    engine: Engine, unit: Unit, predictions: Sequence[Prediction] | None = None
) -> list[Step]:
    """Return the step of each event of *unit*, given the prediction for each; None without any.

    The steps are stored together or not at all. Live runs and replays both use this function.
    """
    if predictions is None:
        predictions = (None,) * len(events_of(unit))
    if isinstance(unit, Close):
        return engine.close(unit.closed, unit.bars, predictions[1:])
    return [engine.step(unit, predictions[0])]


async def nothing_new(_unit: Unit) -> Event | None:
    """Return None: no event comes from a source beside the feed."""
    return None


async def drive(
    feed: Feed,
    predict: Predict,
    engine: Engine,
    append: Append,
    *,
    watch: Callable[[Step], bool] = lambda _step: True,
    newly_known: Callable[[Unit], Awaitable[Event | None]] = nothing_new,
    is_behind: Callable[[], bool] = lambda: False,
) -> None:
    """Take every event of a live feed through model and engine to the log.

    *watch* is called with each stored step and ends the loop by returning False. *newly_known* is
    called with each unit and may return an event to take before it. *is_behind* returns whether
    another event follows at once; then the steps of late bars without a trade are stored together
    with the next ones, at most ``GROUP_STEPS`` in one commit.
    """
    steps: list[Step] = []
    async for unit in _gathered(feed):
        before = await newly_known(unit)
        new: list[Step] = []
        for each in (unit,) if before is None else (before, unit):
            predictions = await predict(each)
            new += steps_of(engine, each, predictions)
        steps += new
        if len(steps) < GROUP_STEPS and all(map(_may_wait, new)) and is_behind():
            continue
        await append(*steps)
        answers = [watch(step) for step in steps]  # watch sees all steps, even after a False
        steps = []
        if not all(answers):
            return


def _may_wait(step: Step) -> bool:
    """Return whether the commit of *step* may wait: its bar is late and it trades nothing."""
    event = step.event
    if isinstance(event, Bar):
        is_late = event.seen_ms - event.close_time_ms > event.interval_ms
        return is_late and not step.orders and not step.fills
    return isinstance(event, CloseStart | Gap | FrameBar)


async def _gathered(feed: Feed) -> AsyncIterator[Unit]:
    events = aiter(feed)
    async for event in events:
        if isinstance(event, CloseStart):
            bars = [await anext(events) for _ in range(event.bars)]
            yield _close(event, bars)
        else:
            yield event


PENDING_LIMIT: Final = 1_000
"""Most bars that may wait for a model that hangs; one more ends the run."""

T = TypeVar("T")


class BarHistory:
    """The newest ``context`` accepted bars of every instrument, which warm a model."""

    def __init__(self, instruments: Iterable[str], *, context: int) -> None:
        self.context = context
        self._bars: dict[str, deque[Bar]] = {key: deque(maxlen=context) for key in instruments}

    def push(self, bar: Bar) -> bool:
        """Keep *bar*; return False if it is not newer than the last one."""
        bars = self._bars[bar.instrument]
        if bars and bar.open_time_ms <= bars[-1].open_time_ms:
            return False
        bars.append(bar)
        return True

    def last(self, instrument: str) -> Bar | None:
        """Return the newest kept bar of *instrument*."""
        bars = self._bars[instrument]
        return bars[-1] if bars else None

    def warm_from(self, waiting: Collection[str] = ()) -> tuple[tuple[str, int], ...]:
        """Return the open time of the first kept bar of each instrument that has any.

        Instruments in *waiting* are left out: they are warmed up once their bars have arrived.
        """
        return tuple(
            (key, bars[0].open_time_ms)
            for key, bars in self._bars.items()
            if bars and key not in waiting
        )

    def lacking(self, period_start_ms: int) -> set[str]:
        """Return the instruments whose last bar before *period_start_ms* has not arrived."""
        return {
            key
            for key, bars in self._bars.items()
            if not bars or bars[-1].close_time_ms < period_start_ms
        }

    def by_instrument(self) -> dict[str, list[Bar]]:
        """Return the kept bars of each instrument."""
        return {key: list(bars) for key, bars in self._bars.items() if bars}

    def since(self, instrument: str, open_time_ms: int) -> list[Bar]:
        """Return the kept bars of *instrument* from *open_time_ms* on."""
        return [bar for bar in self._bars[instrument] if bar.open_time_ms >= open_time_ms]


class InlinePredictor:
    """Predicts in the caller's thread, without a deadline: for replays.

    A start may come before the bars that warm an instrument up. The model is then warmed up for it
    at its last bar before the period, or at its first bar in it.
    """

    is_silent = False
    columns: Mapping[str, ForecastColumns] = MappingProxyType({})

    def __init__(
        self,
        forecaster: Forecaster,
        history: BarHistory,
        *,
        period_start_ms: int,
        started: bool = False,
    ) -> None:
        """Predict with *forecaster* after the event of a start, or at once if it is *started*."""
        self.history = history
        self._forecaster = forecaster
        self._period_start_ms = period_start_ms
        self._started = started
        self._cold: set[str] = set()  # instruments for which the model is not warmed up yet
        self._source = run_source(forecaster)

    def see(self, *events: Event) -> None:
        """Show *events* to a model that reads order books, other symbols or covariates."""
        if self._source is not None:
            for event in events:
                self._source.see(event)

    def predict(self, unit: Unit, recorded: Sequence[Prediction] = ()) -> list[Prediction]:
        """Return the forecast for each event of *unit*; a *recorded* timeout stays a timeout."""
        self.see(*events_of(unit))
        return self.answer(unit, recorded)

    def answer(self, unit: Unit, recorded: Sequence[Prediction] = ()) -> list[Prediction]:
        """Return the forecast for each event of *unit*, which ``see`` was called with."""
        match unit:
            case Close(bars=bars):  # one batch, with at most one bar of an instrument
                newest = self._newest(bars)
                forecasts = self._forecaster.predict_many(newest) if newest else []
                return [None, *self._answers(bars, newest, forecasts, recorded[1:])]
            case Bar():
                newest = self._newest([unit])
                forecasts = [self._forecaster.step(unit)] if newest else []
                return self._answers([unit], newest, forecasts, recorded)
            case ModelChange():
                self._change(unit)
            case _:
                pass
        return [None]

    def _newest(self, bars: Sequence[Bar]) -> list[Bar]:
        """Keep *bars*; return those that the model steps through."""
        # Bars before the start are only kept: the start warms the model up with them.
        return [bar for bar in bars if self.history.push(bar) and self._steps_through(bar)]

    def _answers(
        self,
        bars: Sequence[Bar],
        newest: Sequence[Bar],
        forecasts: Sequence[Forecast | None],
        recorded: Sequence[Prediction],
    ) -> list[Prediction]:
        """Return the prediction for each of *bars*, given the *forecasts* for the *newest*."""
        if not newest or bars[0].open_time_ms < self._period_start_ms:
            return [None] * len(bars)
        by_key = dict(zip((bar.instrument for bar in newest), forecasts, strict=True))
        predictions: list[Prediction] = [by_key.get(bar.instrument) for bar in bars]
        for index, prediction in enumerate(recorded):
            if isinstance(prediction, PredictionTimeout):
                predictions[index] = prediction
        return predictions

    def _change(self, change: ModelChange) -> None:
        """Warm the model up at a start."""
        warm(self._forecaster, self.history, change)
        self._started = True
        warmed = {key for key, _ in change.warm_from}
        # After a start that warms no instrument, each one is stepped from its first bar on.
        self._cold = self.history.lacking(self._period_start_ms) - warmed if warmed else set()

    def _steps_through(self, bar: Bar) -> bool:
        """Return whether the model steps through *bar*; warm it up for a cold instrument."""
        key = bar.instrument
        if not self._started or key not in self._cold:
            return self._started
        if bar.close_time_ms < self._period_start_ms:
            return False  # later bars before the period follow
        past, is_early = self.history.since(key, 0), bar.open_time_ms < self._period_start_ms
        self._forecaster.warm(key, past if is_early else past[:-1])
        self._cold.remove(key)
        return not is_early


class Worker:
    """Runs jobs one after the other in a thread.

    A process does not wait for them at its end (``exit_without_waiting``).
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)

    def submit(self, work: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Queue *work*; return a future of the running loop for its result."""
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


class WorkerPredictor:
    """Predicts in one worker thread, within a deadline of network time."""

    def __init__(
        self,
        forecaster: Forecaster,
        history: BarHistory,
        worker: Worker,
        *,
        period_start_ms: int,
        deadline_ms: int,
    ) -> None:
        self._inline = InlinePredictor(forecaster, history, period_start_ms=period_start_ms)
        self._deadline_ms = deadline_ms
        self._worker = worker
        self._period_start_ms = period_start_ms
        self._pending: set[asyncio.Future[Any]] = set()

    async def predict(self, unit: Unit) -> Sequence[Prediction]:
        """Return the forecast for each event of *unit*; timeouts if they miss the deadline."""
        events = events_of(unit)
        # Not in the worker: a late forecast must not see events after its bar.
        self._inline.see(*events)
        last = events[-1]
        if not isinstance(last, Bar | ModelChange):
            return [None]
        answer = self._worker.submit(self._inline.answer, unit)
        if not isinstance(last, Bar) or last.open_time_ms < self._period_start_ms:
            return await _result_of(answer)  # without a deadline: nothing is decided at this event
        if len(self._pending) >= PENDING_LIMIT:
            raise InvariantBroken(
                f"the model left {PENDING_LIMIT} bars unanswered; raise model.deadline_ms or "
                "choose a smaller model"
            )
        self._pending.add(answer)
        answer.add_done_callback(self._pending.discard)
        try:
            # Not `wait_for`: before Python 3.12 it loses a stop that arrives with the answer.
            async with asyncio.timeout(self._deadline_ms / 1000):
                return await _result_of(answer)
        except TimeoutError:  # the worker continues
            timeout = PredictionTimeout(self._deadline_ms)
            return [timeout if isinstance(event, Bar) else None for event in events]


async def _result_of(answer: asyncio.Future[T]) -> T:
    """Return the result of *answer*; a stop at the same time must not hide a model's error."""
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        if answer.done() and (error := answer.exception()) is not None:
            raise error from None
        raise


async def no_forecast(unit: Unit) -> Sequence[Prediction]:
    """Return None for each event of *unit*: the predictor of strategies without a model."""
    return [None] * len(events_of(unit))


def warm(forecaster: Forecaster, history: BarHistory, change: ModelChange) -> None:
    """Warm *forecaster* up with the kept bars from the times that *change* names."""
    for instrument, open_time_ms in change.warm_from:
        forecaster.warm(instrument, history.since(instrument, open_time_ms))
