"""``advance``: one event through the engine into the log; ``drive`` does it for a live feed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.ports import AuditLog, Feed, Predictor
from tracepaper.daemon.session.outside import Outside
from tracepaper.strategies.types import Event, Prediction, Reading, Step


def advance(
    engine: Engine,
    event: Event,
    prediction: Prediction,
    append: Callable[[Step], object],
    newly_opened: Callable[[], Sequence[Outside]],
) -> Step:
    """Return the step that *event* causes, once it was handed to *append*.

    *newly_opened* returns what a user's class has opened since the call before; each of it is a
    step of its own, after this one. Live and in replay every event goes through here.
    """
    step = engine.step(event, prediction)
    append(step)
    for item in newly_opened():
        reading = Reading(item.what, item.name, event.market_ms, event.seen_ms)
        append(engine.step(reading, None))
    return step


async def drive(
    feed: Feed,
    predictor: Predictor,
    engine: Engine,
    audit: AuditLog,
    *,
    watch: Callable[[Step], bool] = lambda _step: True,
    newly_opened: Callable[[], Sequence[Outside]] = tuple,
) -> None:
    """Carry every event of a live feed through the engine; stop if it cannot be recorded.

    *watch* sees each step once it is stored, and ends the loop by returning False.
    """
    steps: list[Step] = []
    async for event in feed:
        prediction = await predictor(event)
        step = advance(engine, event, prediction, steps.append, newly_opened)
        for caused in steps:
            await audit.append(caused)
        steps.clear()
        if not watch(step):
            return
