"""``drive(feed, think, engine, audit)``: the one loop, used live and in replay."""

from __future__ import annotations

from collections.abc import Callable

from tracepaper.daemon.engine import Engine
from tracepaper.daemon.ports import AuditLog, Feed, Think
from tracepaper.strategies.types import Step


async def drive(
    feed: Feed,
    think: Think,
    engine: Engine,
    audit: AuditLog,
    *,
    watch: Callable[[Step], bool] = lambda _step: True,
) -> None:
    """Carry every event through the engine; stop if it cannot be recorded.

    *watch* sees each step once it is stored, and ends the loop by returning False.
    """
    async for event in feed:
        answer = await think(event)
        step = engine.step(event, answer)
        await audit.append(step)
        if not watch(step):
            return
