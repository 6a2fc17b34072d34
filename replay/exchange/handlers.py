"""HTTP and websocket handlers."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import msgspec
from aiohttp import WSMsgType, web

from tracepaper.daemon.bybit.messages import ExchangeError
from tracepaper.daemon.config.values import is_loopback
from tracepaper.replay.exchange.answers import CATEGORIES, Answer
from tracepaper.replay.exchange.candles import key
from tracepaper.replay.exchange.channels import encode
from tracepaper.replay.exchange.fault_kinds import HttpReply
from tracepaper.replay.exchange.faults import fault_from
from tracepaper.replay.exchange.hub import Connection, Hub
from tracepaper.replay.exchange.market import Venue
from tracepaper.replay.exchange.surface import answer
from tracepaper.strategies.errors import ConfigInvalid

SPEED_MAX: Final = 1_000_000.0
"""The greatest value that `exchange.time_scale` accepts."""


class RestHandler:
    """The handler of every ``/v5`` request."""

    def __init__(self, hub: Hub, venue: Venue) -> None:
        self._hub = hub
        self._venue = venue

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request."""
        now_ms, faults = self._hub.clock.now_ms(), self._hub.faults
        if replace := faults.hit("answer", now_ms, request.path):
            replacement: HttpReply | ExchangeError = replace()
            if isinstance(replacement, HttpReply):
                return await reply(replacement)
            return _json_response(_envelope(replacement, now_ms))
        result = answer(self._venue, request.path, request.query, now_ms)
        if isinstance(result, dict):
            now_ms, result = self._with_faults(request.path, result, now_ms)
        body = _envelope(result, now_ms)
        if change_body := faults.hit("body", now_ms, request.path):
            body = change_body(body)
        return _json_response(body)

    def _with_faults(
        self, path: str, result: dict[str, Any], now_ms: int
    ) -> tuple[int, dict[str, Any]]:
        """Return the server's time and *result*, changed by the armed faults."""
        faults = self._hub.faults
        if result.get("list") and (change := faults.hit("rows", now_ms, path)):
            result = dict(result)
            result["list"] = change(result["list"], result)
        if change_time := faults.hit("time", now_ms, path):
            now_ms, result = change_time(now_ms, path, result)
        return now_ms, result


async def reply(content: HttpReply) -> web.Response:
    """Return *content* as a response after its wait."""
    await asyncio.sleep(content.wait_s)
    return web.Response(
        status=content.status,
        text=content.text,
        content_type=content.content_type,
        headers={"Location": content.location} if content.location else None,
    )


def _json_response(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


def _envelope(result: Answer, now_ms: int) -> bytes:
    """Return *answer* in the envelope of every body; an error is HTTP 200 too."""
    code, message = 0, "OK"
    if isinstance(result, ExchangeError):
        (code, message), result = result, {}
    body = {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": now_ms}
    return encode(body)


# ------------------------------------------------------------ control calls
#
# ``POST /control/fault`` arms a fault (``{"kind": "drop", "topic": "kline"}``, see ``faults``),
# ``GET /control/faults`` returns each kind's meaning, how often it was scheduled and fired, and
# when; ``POST /control/hold`` stops time until a client subscribes candles; ``POST /control/speed``
# (``{"speed": 60}``) sets how fast it runs.


class _Speed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a speed call: market seconds per machine second."""

    speed: Annotated[float, msgspec.Meta(gt=0, le=SPEED_MAX)]


class Control:
    """The handlers of ``/control``."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of every control call."""
        return [
            web.post("/control/fault", self.fault),
            web.get("/control/faults", self.faults),
            web.post("/control/hold", self.hold),
            web.post("/control/speed", self.speed),
        ]

    async def fault(self, request: web.Request) -> web.Response:
        """Arm the fault that the body describes; answer 400 with a sentence where it is invalid."""
        _reject_foreign(request)
        try:
            described = msgspec.json.decode(await request.read(), type=dict[str, Any])
            self._hub.arm(fault_from(described))
        except (msgspec.DecodeError, RecursionError, ConfigInvalid) as error:
            return _json({"error": str(error)}, status=400)
        return _json({"armed": described})

    async def faults(self, request: web.Request) -> web.Response:
        """Answer the tally of each kind."""
        _reject_foreign(request)
        return _json(self._hub.faults.report())

    async def hold(self, request: web.Request) -> web.Response:
        """Stop time until a client subscribes candles."""
        _reject_foreign(request)
        self._hub.clock.hold()
        self._hub.wake()
        return _json({"held": self._hub.clock.held})

    async def speed(self, request: web.Request) -> web.Response:
        """Set the speed of time; answer 400 with a sentence where the body has no valid speed."""
        _reject_foreign(request)
        try:
            requested = msgspec.json.decode(await request.read(), type=_Speed)
        except (msgspec.DecodeError, RecursionError) as error:
            sentence = f'This is no speed ({error}): give {{"speed": 60}}, up to {SPEED_MAX:,.0f}.'
            return _json({"error": sentence}, status=400)
        self._hub.clock.set_speed(requested.speed)  # frames keep their pace
        self._hub.wake()
        return _json({"speed": requested.speed, "time": self._hub.clock.now_ms()})


def _reject_foreign(request: web.Request) -> None:
    """Reject a caller on another machine, and a web page that makes the browser call."""
    if not (is_loopback(request.url.host or "") and is_loopback(request.remote or "")):
        raise web.HTTPForbidden(text="Control calls are answered on loopback only.")
    if "Origin" in request.headers:
        raise web.HTTPForbidden(text="Control calls are not for web pages.")


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return _json_response(encode(body), status)


SPOT_ARGS_MAX: Final = 10
CLOSE_TIMEOUT_S: Final = 1.0
ANSWER_S: Final = 0.01
"""Delay of an answer: pybit registers its callback only after it has sent the request."""

Message = dict[str, Any]


class StreamHandler:
    """The handler of ``/v5/public/{category}``."""

    def __init__(self, hub: Hub, seed: int) -> None:
        self._hub = hub
        self._seed = seed
        self._opened = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection until either side ends it."""
        category = request.match_info["category"]
        hub = self._hub
        if category not in CATEGORIES:
            raise web.HTTPNotFound
        if refuse := hub.faults.hit("handshake", hub.clock.now_ms()):
            return await reply(refuse())
        self._opened += 1
        socket = web.WebSocketResponse(compress=False, timeout=CLOSE_TIMEOUT_S)
        await socket.prepare(request)
        identity = f"{key(self._seed, category, self._opened):016x}"
        connection = Connection(category, identity, request)
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

    def _answer(self, connection: Connection, text: str) -> None:
        try:
            decoded = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            decoded = None
        request: Message = decoded if isinstance(decoded, dict) else {}
        match operation := request.get("op"):
            case "ping":
                _send(connection, pong(connection, request))
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
        # Spot acknowledges first; linear sends the opening frames first.
        ordered = [answer, *opening] if connection.category == "spot" else [*opening, answer]
        for body in ordered:
            connection.send(body)

    def _refusal(self, connection: Connection, topics: object) -> str:
        """Return why *topics* cannot be subscribed by *connection*, or an empty text."""
        if not isinstance(topics, list) or not all(isinstance(topic, str) for topic in topics):
            return "error:args must be a list of topics"
        if connection.category == "spot" and len(topics) > SPOT_ARGS_MAX:
            return "args size >10"
        for topic in topics:
            if self._hub.channel(connection.category, topic) is None:
                return f"error:handler not found,topic:{topic}"
        return ""


def _send(connection: Connection, message: Message) -> None:
    connection.send(encode(message))


def pong(connection: Connection, request: Message) -> Message:
    """Return the pong, whose ``op`` is ``ping``."""
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
    """Return a reply; spot omits a req_id that the request lacks."""
    reply: Message = {"success": success, "ret_msg": text, "conn_id": connection.identity}
    if "req_id" in request:
        reply["req_id"] = str(request["req_id"])
    elif connection.category != "spot":
        reply["req_id"] = ""
    return reply | {"op": operation}
