"""``drive(feed, think, engine, audit)``: the one loop, used live and in replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.ports import AuditLog, Feed, Predictor
from tracepaper.daemon.session.outside import Outside
from tracepaper.strategies.types import Reading, Step


async def drive(
    feed: Feed,
    predictor: Predictor,
    engine: Engine,
    audit: AuditLog,
    *,
    watch: Callable[[Step], bool] = lambda _step: True,
    heard: Callable[[], Sequence[Outside]] = tuple,
) -> None:
    """Carry every event through the engine; stop if it cannot be recorded.

    *watch* sees each step once it is stored, and ends the loop by returning False. *heard* returns
    what a user's class has opened since it was asked last; each of it is a step of its own.
    """
    async for event in feed:
        prediction = await predictor(event)
        step = engine.step(event, prediction)
        await audit.append(step)
        for item in heard():
            reading = Reading(item.what, item.name, event.market_ms, event.seen_ms)
            await audit.append(engine.step(reading, None))
        if not watch(step):
            return
