"""Control calls, loopback only and no part of the exchange's surface.

``POST /control/fault`` arms a fault (``{"kind": "drop", "topic": "kline"}``, see ``faults``),
``GET /control/faults`` tells what each kind does, how often it was scheduled and fired, and when;
``POST /control/release`` lets held time run; ``GET /control/status`` tells time and counts.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Final

import msgspec
from aiohttp import web

from tracepaper.replay.exchange.channels import encode
from tracepaper.replay.exchange.faults import fault_from
from tracepaper.replay.exchange.hub import Hub
from tracepaper.strategies.errors import ConfigInvalid

LOCAL_NAMES: Final = ("localhost",)


class Control:
    """The handlers of ``/control``."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of every control call."""
        return [
            web.post("/control/fault", self.fault),
            web.get("/control/faults", self.faults),
            web.post("/control/release", self.release),
            web.get("/control/status", self.status),
        ]

    async def fault(self, request: web.Request) -> web.Response:
        """Arm the fault of the body; 400 with a sentence where it is none."""
        _refuse_foreign(request)
        try:
            described = msgspec.json.decode(await request.read(), type=dict[str, Any])
            self._hub.arm(fault_from(described))
        except (msgspec.DecodeError, RecursionError, ConfigInvalid) as error:
            return _json({"error": str(error)}, status=400)
        return _json({"armed": described})

    async def faults(self, request: web.Request) -> web.Response:
        """Answer the tally of each kind."""
        _refuse_foreign(request)
        return _json(self._hub.faults.report())

    async def release(self, request: web.Request) -> web.Response:
        """Let held time run."""
        _refuse_foreign(request)
        self._hub.release()
        return _json({"held": self._hub.clock.held})

    async def status(self, request: web.Request) -> web.Response:
        """Answer market time, whether it is held or ended, and what was sent."""
        _refuse_foreign(request)
        hub = self._hub
        return _json(
            {
                "time": hub.clock.now_ms(),
                "held": hub.clock.held,
                "ended": hub.clock.ended,
                "connections": len(hub.connections),
                "frames_sent": hub.frames_sent,
            }
        )


def _refuse_foreign(request: web.Request) -> None:
    """Refuse a caller that is not on this machine, or a web page that made a browser call."""
    name = request.url.host or ""
    local = name in LOCAL_NAMES or (_is_address(name) and ip_address(name).is_loopback)
    remote = request.remote or ""
    if not local or not _is_address(remote) or not ip_address(remote).is_loopback:
        raise web.HTTPForbidden(text="Control calls are answered on loopback only.")
    if "Origin" in request.headers:
        raise web.HTTPForbidden(text="Control calls are not for web pages.")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=encode(body), status=status, content_type="application/json")
