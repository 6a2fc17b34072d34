"""The public websocket: operations in, acknowledgements and pongs of each category out."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from tracepaper.replay.exchange.channels import encode
from tracepaper.replay.exchange.fault_kinds import HandshakeFault
from tracepaper.replay.exchange.hub import Connection, Hub, Limiter
from tracepaper.replay.exchange.path import key
from tracepaper.replay.exchange.rest import reply

CATEGORIES: Final = ("linear", "spot", "inverse", "option")
SPOT_ARGS_MAX: Final = 10
ARGS_CHARACTERS_MAX: Final = 21_000
CONNECTIONS_PER_WINDOW: Final = 500
CONNECTION_WINDOW_S: Final = 300.0
CLOSE_TIMEOUT_S: Final = 1.0
ANSWER_S: Final = 0.01
"""No exchange answers within microseconds, and pybit registers its callback after it has sent."""

Message = dict[str, Any]


class StreamHandler:
    """The handler of ``/v5/public/{category}``."""

    def __init__(self, hub: Hub, seed: int) -> None:
        self._hub = hub
        self._seed = seed
        self._opened = 0
        self._limiter = Limiter(CONNECTIONS_PER_WINDOW, CONNECTION_WINDOW_S)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection until either side ends it."""
        category = request.match_info["category"]
        hub = self._hub
        if category not in CATEGORIES:
            raise web.HTTPNotFound
        if refused := hub.faults.hit(HandshakeFault, hub.clock.now_ms()):
            kind, hit = refused
            return await reply(kind.effect(hit))
        if not self._limiter.admits(asyncio.get_running_loop().time()):
            return web.Response(status=403, text="too many connections")
        self._opened += 1
        socket = web.WebSocketResponse(compress=False, timeout=CLOSE_TIMEOUT_S)
        await socket.prepare(request)
        connection = Connection(category, self._identity(category), request)
        hub.connections.add(connection)
        writer = asyncio.create_task(connection.write(socket))
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    await asyncio.sleep(ANSWER_S)
                    self._answer(connection, message.data)
        finally:
            hub.leave(connection)
            writer.cancel()
            await asyncio.wait([writer])
        return socket

    def _identity(self, category: str) -> str:
        """Return a connection id in the category's form: a short one on linear, a uuid on spot."""
        digits = f"{key(self._seed, category, self._opened):016x}"
        if category == "spot":
            return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[:3]}-{digits[4:16]}"
        return f"d{digits}-{digits[:5]}"

    def _answer(self, connection: Connection, text: str) -> None:
        """Answer one request of the client."""
        try:
            decoded = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            decoded = None
        request: Message = decoded if isinstance(decoded, dict) else {}
        match operation := request.get("op"):
            case "ping":
                _send(connection, pong(connection, request, self._hub.clock.now_ms()))
            case "subscribe" | "unsubscribe":
                self._change(connection, operation, request)
            case _:
                _send(connection, acknowledgement(connection, request, "error:unknown op"))

    def _change(self, connection: Connection, operation: str, request: Message) -> None:
        """Subscribe or unsubscribe the topics of *request*, all or none."""
        topics = request.get("args")
        if error := self._refusal(connection, topics):
            _send(connection, acknowledgement(connection, request, error))
            return
        assert isinstance(topics, list)
        opening: list[bytes] = []
        for topic in topics:
            if operation == "subscribe":
                opening += self._hub.subscribe(connection, topic)
            else:
                self._hub.unsubscribe(connection, topic)
        answer = encode(acknowledgement(connection, request, ""))
        # Spot acknowledges first; linear sends what it has buffered before.
        ordered = [answer, *opening] if connection.category == "spot" else [*opening, answer]
        for body in ordered:
            connection.send(body)

    def _refusal(self, connection: Connection, topics: object) -> str:
        """Return why *topics* cannot be subscribed by *connection*, or an empty text."""
        if not isinstance(topics, list) or not all(isinstance(topic, str) for topic in topics):
            return "error:args must be a list of topics"
        if connection.category == "spot" and len(topics) > SPOT_ARGS_MAX:
            return "args size >10"
        characters = sum(map(len, topics)) + sum(map(len, connection.topics))
        if characters > ARGS_CHARACTERS_MAX:
            return f"error:args characters >{ARGS_CHARACTERS_MAX}"
        for topic in topics:
            if self._hub.channel(connection.category, topic) is None:
                return f"error:handler not found,topic:{topic}"
        return ""


def _send(connection: Connection, message: Message) -> None:
    connection.send(encode(message))


def pong(connection: Connection, request: Message, now_ms: int) -> Message:
    """Return the pong of the connection's category: on spot and linear its ``op`` is ``ping``."""
    if connection.category == "option":
        return {"op": "pong", "args": [str(now_ms)]}
    return _reply(connection, request, success=True, text="pong", operation="ping")


def acknowledgement(connection: Connection, request: Message, error: str) -> Message:
    """Return the acknowledgement of *request*; it names no topic."""
    operation = str(request.get("op", ""))
    if error:
        return _reply(connection, request, success=False, text=error, operation=operation)
    text = operation if connection.category == "spot" else ""
    return _reply(connection, request, success=True, text=text, operation=operation)


def _reply(
    connection: Connection, request: Message, *, success: bool, text: str, operation: str
) -> Message:
    """Return a reply in the key order of the category; spot has no req_id where none was sent."""
    reply: Message = {"success": success, "ret_msg": text, "conn_id": connection.identity}
    if "req_id" in request:
        reply["req_id"] = str(request["req_id"])
    elif connection.category != "spot":
        reply["req_id"] = ""
    return reply | {"op": operation}
