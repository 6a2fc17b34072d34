"""``advance``: an event, or the bars of one close, through the engine into the log.

``drive`` does it for a live feed, ``replay/backtest/run.py`` for known events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.ports import AuditLog, Feed, Predictor
from tracepaper.daemon.session.outside import Outside
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import Bar, Closed, Event, Gap, Prediction, Reading, Step

GROUP_STEPS: Final = 100
"""Most steps of a live feed in one commit: what a kill can cost of a backlog, fetched again."""


class Close(NamedTuple):
    """The bars of one close behind the event that announced them: one prediction, one commit."""

    closed: Closed
    bars: Sequence[Bar]


Unit = Event | Close
"""What the engine takes in at once."""


class KnownPredictor(Protocol):
    """What answers known events: in this thread, without a deadline."""

    def predict(self, event: Event, /) -> Prediction:
        """Return the forecast of *event*, that it timed out, or None where none is needed."""
        ...

    def predict_close(self, bars: Sequence[Bar], /) -> Sequence[Prediction]:
        """Return the same for each of *bars*, one of each of some instruments, at once."""
        ...


def gathered(events: Iterable[Event]) -> Iterator[Unit]:
    """Yield *events*, each ``Closed`` as one with the bars that follow it.

    Raises ``DataInvalid`` where other events or none follow it.
    """
    remaining = iter(events)
    for event in remaining:
        if type(event) is Closed:
            yield _close(event, remaining)
        else:
            yield event


def _close(closed: Closed, following: Iterable[Event]) -> Close:
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


def predictions_of(predictor: KnownPredictor, unit: Unit) -> Sequence[Prediction]:
    """Return what *predictor* says to each of the events of *unit*."""
    if isinstance(unit, Close):
        return (predictor.predict(unit.closed), *predictor.predict_close(unit.bars))
    return (predictor.predict(unit),)


def steps_of(engine: Engine, unit: Unit, predictions: Sequence[Prediction]) -> list[Step]:
    """Return the step of each of the events of *unit*, given what was predicted at each."""
    if isinstance(unit, Close):
        return engine.close(unit.closed, unit.bars, predictions[1:])
    return [engine.step(unit, predictions[0])]


def advance(
    engine: Engine,
    unit: Unit,
    predictions: Sequence[Prediction],
    newly_opened: Callable[[], Sequence[Outside]],
) -> list[Step]:
    """Return the steps that *unit* causes; they are stored together or not at all.

    *newly_opened* returns what a user's class has opened since the call before; each of it is a
    step of its own, after these. Live and in replay every event goes through here.
    """
    steps = steps_of(engine, unit, predictions)
    if opened := newly_opened():
        at = steps[0].event
        readings = [Reading(one.what, one.name, at.market_ms, at.seen_ms) for one in opened]
        steps += [engine.step(reading, None) for reading in readings]
    return steps


async def drive(
    feed: Feed,
    predictor: Predictor,
    engine: Engine,
    audit: AuditLog,
    *,
    watch: Callable[[Step], bool] = lambda _step: True,
    newly_opened: Callable[[], Sequence[Outside]] = tuple,
    is_behind: Callable[[], bool] = lambda: False,
) -> None:
    """Carry every event of a live feed through the engine; stop if it cannot be recorded.

    *watch* sees each step once it is stored, and ends the loop by returning False. Where
    *is_behind* says that more comes without a wait, steps of late bars that trade nothing are
    stored with those that follow, ``GROUP_STEPS`` at most in one commit.
    """
    steps: list[Step] = []
    async for unit in _gathered(feed):
        if unit is not None:
            predictions = await _predict(predictor, unit)
            steps += (new := advance(engine, unit, predictions, newly_opened))
            if len(steps) < GROUP_STEPS and all(map(_may_wait, new)) and is_behind():
                continue
        if not steps:
            continue
        await audit.append(*steps)
        go_on = [watch(step) for step in steps]  # each of them is seen, whatever the first says
        steps = []
        if not all(go_on):
            return
    if steps:
        await audit.append(*steps)
        for step in steps:
            watch(step)


def _may_wait(step: Step) -> bool:
    """Return whether nobody acts on *step*: its bar is late, and it trades nothing."""
    event = step.event
    if isinstance(event, Bar):
        is_late = event.seen_ms - event.close_time_ms > event.interval_ms
        return is_late and not step.orders and not step.fills
    return isinstance(event, Closed | Gap)


async def _predict(predictor: Predictor, unit: Unit) -> Sequence[Prediction]:
    """Return what *predictor* says to each of the events of *unit*; a ``Closed`` needs nothing."""
    if isinstance(unit, Close):
        return (None, *await predictor.predict_close(unit.bars))
    return (await predictor.predict(unit),)


async def _gathered(feed: Feed) -> AsyncIterator[Unit | None]:
    events = aiter(feed)
    async for event in events:
        if isinstance(event, Closed):
            bars = [await anext(events) for _ in range(event.bars)]
            yield _close(event, (bar for bar in bars if bar is not None))
        else:
            yield event
