"""The loop of a run: an event, or the bars of one close, through model and engine into the log.

``drive`` does it for a live feed, ``replay/backtest/run.py`` for known events.

A thread cannot be cancelled, so only the forecaster runs there, never the engine. A forecast that
misses its deadline becomes a ``PredictionTimeout``; its ring update still happens before the next
forecast, because one thread takes the bars in order.
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
from typing import Any, Final, Protocol, TypeVar

from tracepaper.daemon.clock import Append, Feed, Predict
from tracepaper.daemon.engine.engine import Engine
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.covariates import run_source
from tracepaper.strategies.errors import DataInvalid, InvariantBroken
from tracepaper.strategies.types.decisions import Forecast, Prediction, PredictionTimeout, Step
from tracepaper.strategies.types.market import (
    Bar,
    Close,
    CloseStart,
    Event,
    FrameBar,
    Gap,
    ModelChange,
    RetrainingEnd,
    Unit,
)

GROUP_STEPS: Final = 100
"""Most steps of a live feed in one commit: what a kill can cost of a backlog, fetched again."""


class KnownPredictor(Protocol):
    """A predictor of known events: in this thread, without a deadline."""

    is_silent: bool
    """Whether it predicts nothing: then steps that change only prices need not be taken singly."""

    def predict(self, unit: Unit, /) -> Sequence[Prediction]:
        """Return the forecast at each event of *unit*, as ``Predict`` does."""
        ...


def gathered(events: Iterable[Event]) -> Iterator[Unit]:
    """Yield *events*, each ``CloseStart`` as one with the bars that follow it.

    Raises ``DataInvalid`` where other events or none follow it.
    """
    remaining = iter(events)
    for event in remaining:
        if type(event) is CloseStart:
            yield _close(event, remaining)
        else:
            yield event


def _close(closed: CloseStart, following: Iterable[Event]) -> Close:
    """Return *closed* with the bars that it counts, drawn from *following*."""
    bars: list[Bar] = []
    for event in following:
        if not isinstance(event, Bar) or event.open_time_ms != closed.open_time_ms:
            break
        bars.append(event)
        if len(bars) >= closed.bars:
            break
    if len(bars) != closed.bars:
        raise DataInvalid(
            f"{len(bars)} of the {closed.bars} bars follow that opened at {closed.open_time_ms} "
            "and were closed together: rows are missing; restore a backup."
        )
    return Close(closed, bars)


def events_of(unit: Unit) -> Sequence[Event]:
    """Return the events that *unit* consists of, one for each of its steps."""
    return (unit.closed, *unit.bars) if isinstance(unit, Close) else (unit,)


def steps_of(engine: Engine, unit: Unit, predictions: Sequence[Prediction]) -> list[Step]:
    """Return the step of each event of *unit*, given the prediction at each.

    They are stored together or not at all. Live and in replay every event goes through here.
    """
    if isinstance(unit, Close):
        return engine.close(unit.closed, unit.bars, predictions[1:])
    return [engine.step(unit, predictions[0])]


async def nothing_new(_unit: Unit) -> Event | None:
    """Return None: nothing becomes known beside the feed's events."""
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
    """Carry every event of a live feed through the engine; stop if it cannot be recorded.

    *watch* sees each step once it is stored, and ends the loop by returning False. What
    *newly_known* returns is an event before the unit that it is asked about. Where *is_behind* says
    that another event follows at once, steps of late bars that trade nothing are stored with its
    own, ``GROUP_STEPS`` at most in one commit.
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
        go_on = [watch(step) for step in steps]  # each of them is seen, whatever the first says
        steps = []
        if not all(go_on):
            return


def _may_wait(step: Step) -> bool:
    """Return whether nobody acts on *step*: its bar is late, and it trades nothing."""
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
"""Bars that may wait for a stuck model before the run is ended."""

T = TypeVar("T")


class BarHistory:
    """The newest ``context`` accepted bars of every instrument, which warm a model."""

    def __init__(self, instruments: Iterable[str], *, context: int) -> None:
        self.context = context
        self._bars: dict[str, deque[Bar]] = {key: deque(maxlen=context) for key in instruments}

    def push(self, bar: Bar) -> bool:
        """Remember *bar*; return False for one that is not newer than the last."""
        bars = self._bars[bar.instrument]
        if bars and bar.open_time_ms <= bars[-1].open_time_ms:
            return False
        bars.append(bar)
        return True

    def last(self, instrument: str) -> Bar | None:
        """Return the newest remembered bar of *instrument*."""
        bars = self._bars[instrument]
        return bars[-1] if bars else None

    def warm_from(self, waiting: Collection[str] = ()) -> tuple[tuple[str, int], ...]:
        """Return the first remembered bar of each instrument that has any.

        A model is warmed for those of *waiting* once the bars have come that they wait for.
        """
        return tuple(
            (key, bars[0].open_time_ms)
            for key, bars in self._bars.items()
            if bars and key not in waiting
        )

    def lacking(self, period_start_ms: int) -> set[str]:
        """Return the instruments whose last bar before *period_start_ms* has not come."""
        return {
            key
            for key, bars in self._bars.items()
            if not bars or bars[-1].close_time_ms < period_start_ms
        }

    def by_instrument(self) -> dict[str, list[Bar]]:
        """Return the remembered bars of each instrument."""
        return {key: list(bars) for key, bars in self._bars.items() if bars}

    def since(self, instrument: str, open_time_ms: int) -> list[Bar]:
        """Return the remembered bars of *instrument* from *open_time_ms* on."""
        return [bar for bar in self._bars[instrument] if bar.open_time_ms >= open_time_ms]


class Aside:
    """A model that is warmed beside the running one, with the bars known at ``RetrainingEnd``.

    Live, a thread of its own warms it while the running model answers bars; the new one is then
    called as that was, bars in the groups in which they came, so that a replay of the record gets
    the same bits.
    """

    def __init__(self, forecaster: Forecaster, bars: Mapping[str, Sequence[Bar]]) -> None:
        self.forecaster = forecaster
        self.since: list[tuple[str, tuple[Any, ...]]] = []  # the calls of the running model
        self._past: Mapping[str, Sequence[Bar]] | None = bars

    def warm(self) -> None:
        """Warm the model with the bars known at the event, once."""
        history, self._past = self._past or {}, None
        for instrument, bars in history.items():
            self.forecaster.warm(instrument, bars)

    def catch_up(self) -> None:
        """Call the model as the running one was called since."""
        self.warm()
        for method, given in self.since:
            getattr(self.forecaster, method)(*given)


class InlinePredictor:
    """Predicts in the caller's thread, without a deadline: for replay, where nothing waits.

    Where a start comes before an instrument's bars, the model is warmed for it at the last of them
    before the period, or at the first in it.
    """

    is_silent = False

    def __init__(
        self,
        forecaster: Forecaster,
        history: BarHistory,
        *,
        period_start_ms: int,
        started: bool = False,
    ) -> None:
        """Answer by *forecaster*; only once a start has warmed it, unless it is *started*."""
        self.history = history
        self.aside: Aside | None = None  # the promoted model, while it is warmed
        self._forecaster = forecaster
        self._prepared: dict[str, Forecaster] = {}
        self._period_start_ms = period_start_ms
        self._started = started
        self._cold: set[str] = set()  # instruments without a warm model yet, behind a start
        self._source = run_source(forecaster)

    @property
    def forecaster(self) -> Forecaster:
        """The model that answers now."""
        return self._forecaster

    def prepare(self, forecaster: Forecaster) -> None:
        """Keep another model for the change to it, which is an event."""
        self._prepared[forecaster.model_sha256] = forecaster

    def see(self, *events: Event) -> None:
        """Show *events* to a model that reads books or other symbols, before it is asked."""
        if self._source is not None:
            for event in events:
                self._source.see(event)

    def predict(self, unit: Unit, recorded: Sequence[Prediction] = ()) -> list[Prediction]:
        """Return the forecast at each event of *unit*; a *recorded* timeout stays one."""
        self.see(*events_of(unit))
        return self.answer(unit, recorded)

    def answer(self, unit: Unit, recorded: Sequence[Prediction] = ()) -> list[Prediction]:
        """Return the forecast at each event of *unit*, which the model has seen."""
        match unit:
            case Close(bars=bars):  # in one batch: one of each of some instruments
                newest = self._newest(bars)
                forecasts = self._call("predict_many", newest) if newest else []
                return [None, *self._answers(bars, newest, forecasts, recorded[1:])]
            case Bar():
                newest = self._newest([unit])
                forecasts = [self._call("step", unit)] if newest else []
                return self._answers([unit], newest, forecasts, recorded)
            case RetrainingEnd(takes_over=True):
                if (candidate := self._prepared.get(unit.candidate_sha256)) is not None:
                    self.aside = Aside(candidate, self.history.by_instrument())
            case ModelChange():
                self._change(unit)
            case _:
                pass
        return [None]

    def _newest(self, bars: Sequence[Bar]) -> list[Bar]:
        """Remember *bars*; return those that the model steps through."""
        # Bars before the start are only remembered: the start warms the model with them.
        return [bar for bar in bars if self.history.push(bar) and self._asks(bar)]

    def _answers(
        self,
        bars: Sequence[Bar],
        newest: Sequence[Bar],
        forecasts: Sequence[Forecast | None],
        recorded: Sequence[Prediction],
    ) -> list[Prediction]:
        """Return the *forecasts* of the *newest* of *bars*, at each of *bars*."""
        if not newest or bars[0].open_time_ms < self._period_start_ms:
            return [None] * len(bars)
        by_key = dict(zip((bar.instrument for bar in newest), forecasts, strict=True))
        predictions: list[Prediction] = [by_key.get(bar.instrument) for bar in bars]
        for place, prediction in enumerate(recorded):
            if isinstance(prediction, PredictionTimeout):
                predictions[place] = prediction
        return predictions

    def _change(self, change: ModelChange) -> None:
        """Warm the model of a start, or change to a promoted one."""
        candidate, aside = self._prepared.pop(change.model_sha256, None), self.aside
        self.aside = None
        if candidate is not None:
            self._forecaster = candidate
            if aside is not None and aside.forecaster is candidate and not change.warm_from:
                aside.catch_up()
                return
        warm(self._forecaster, self.history, change)
        self._started = True
        named = {key for key, _ in change.warm_from}
        # Behind a start that names none, each instrument is asked from its first bar on.
        self._cold = self.history.lacking(self._period_start_ms) - named if named else set()

    def _asks(self, bar: Bar) -> bool:
        """Return whether the model steps through *bar*; warm it where that is the bar to do it."""
        key = bar.instrument
        if not self._started or key not in self._cold:
            return self._started
        if bar.close_time_ms < self._period_start_ms:
            return False  # later bars before the period follow
        past, is_early = self.history.since(key, 0), bar.open_time_ms < self._period_start_ms
        self._call("warm", key, past if is_early else past[:-1])
        self._cold.remove(key)
        return not is_early

    def _call(self, method: str, *given: object) -> Any:  # noqa: ANN401 - what *method* returns
        """Call the running model, and later the one that is warmed aside alike."""
        if self.aside is not None:
            self.aside.since.append((method, given))
        return getattr(self._forecaster, method)(*given)


class Worker:
    """Runs jobs one after the other in a thread, whose unfinished work a process does not wait for.

    See ``exit_without_waiting``.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)

    def submit(self, work: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Queue *work*; return the future of its result in the running loop."""
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

    def prepare(self, forecaster: Forecaster) -> None:
        """Keep another model for the change to it, which is an event."""
        self._inline.prepare(forecaster)

    async def warm_aside(self, worker: Worker) -> None:
        """Warm the promoted model in *worker*, while the running one goes on to answer bars."""
        if (aside := self._inline.aside) is not None:
            await worker.submit(aside.warm)

    async def predict(self, unit: Unit) -> Sequence[Prediction]:
        """Return the forecast at each event of *unit*, or timeouts where they are late."""
        events = events_of(unit)
        # Here and not in the worker: a late answer must not see what came after its bar.
        self._inline.see(*events)
        last = events[-1]
        if not isinstance(last, Bar | ModelChange | RetrainingEnd):
            return [None]
        answer = self._worker.submit(self._inline.answer, unit)
        if not isinstance(last, Bar) or last.open_time_ms < self._period_start_ms:
            return await _answer_of(answer)  # nothing is decided until the model is warm
        if len(self._pending) >= PENDING_LIMIT:
            raise InvariantBroken(
                f"the model left {PENDING_LIMIT} bars unanswered; raise model.deadline_ms or "
                "choose a smaller model"
            )
        self._pending.add(answer)
        answer.add_done_callback(self._pending.discard)
        try:
            # Not `wait_for`: before Python 3.12 it loses a stop that comes with the answer.
            async with asyncio.timeout(self._deadline_ms / 1000):
                return await _answer_of(answer)
        except TimeoutError:  # the work goes on
            timeout = PredictionTimeout(self._deadline_ms)
            return [timeout if isinstance(event, Bar) else None for event in events]


async def _answer_of(answer: asyncio.Future[T]) -> T:
    """Return *answer*; a simultaneous stop does not hide an error of the model."""
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        if answer.done() and (error := answer.exception()) is not None:
            raise error from None
        raise


async def no_forecast(unit: Unit) -> Sequence[Prediction]:
    """Return None for each event of *unit*: for strategies that need no forecast."""
    return [None] * len(events_of(unit))


def warm(forecaster: Forecaster, history: BarHistory, change: ModelChange) -> None:
    """Warm *forecaster* with the remembered bars that *change* names."""
    for instrument, open_time_ms in change.warm_from:
        forecaster.warm(instrument, history.since(instrument, open_time_ms))
