"""The embedded exchange, which adds each route and topic that is called to a file.

Arguments: the file, then those of `tracepaper exchange`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aiohttp import web

from tracepaper.daemon.cli import main
from tracepaper.replay.exchange.handlers import RestHandler
from tracepaper.replay.exchange.hub import Connection, Hub

calls = Path(sys.argv.pop(1))
handle, subscribe = RestHandler.handle, Hub.subscribe


def log(name: str) -> None:
    """Add one line."""
    with calls.open("a", encoding="utf-8") as lines:
        lines.write(f"{name}\n")


async def logged_handle(handler: RestHandler, request: web.Request) -> web.Response:
    """Answer as ever."""
    log(request.path)
    return await handle(handler, request)


def logged_subscribe(hub: Hub, connection: Connection, topic: str) -> list[bytes]:
    """Subscribe as ever."""
    log(topic.partition(".")[0])
    return subscribe(hub, connection, topic)


RestHandler.handle = logged_handle  # type: ignore[method-assign, assignment]
Hub.subscribe = logged_subscribe  # type: ignore[method-assign, assignment]
main()
