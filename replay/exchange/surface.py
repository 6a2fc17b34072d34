"""Every REST route and every kind of topic that the exchange serves, gathered from their modules.

A new one is a function declared by ``route`` or ``topic`` in one of ``MODULES``; the server, the
control call ``/control/surface``, the listing of the command and its page find it here.
"""

from __future__ import annotations

from typing import Final

from tracepaper.replay.exchange import answers, channels, quotes, risk, statistics
from tracepaper.replay.exchange.channels import Channel, Topic, TopicRequest
from tracepaper.replay.exchange.false_prices import FAULTS
from tracepaper.replay.exchange.market import Venue
from tracepaper.replay.exchange.routes import Answer, Query, Refused, Route

ROUTE_NOT_FOUND: Final = 10017
MODULES: Final = (answers, channels, quotes, risk, statistics)
ROUTES: Final = {
    one.path: one for module in MODULES for one in vars(module).values() if isinstance(one, Route)
}
"""Every route by its path."""
TOPICS: Final = {
    one.name: one for module in MODULES for one in vars(module).values() if isinstance(one, Topic)
}
"""Every kind of topic by its name."""


def answer(venue: Venue, path: str, query: Query, now_ms: int) -> Answer:
    """Return what *path* answers to *query* at *now_ms*, or the refusal of either."""
    route = ROUTES.get(path)
    if route is None:
        return Refused(ROUTE_NOT_FOUND, "Route not found.")
    return route(venue, query, now_ms)


def find_channel(asked: TopicRequest) -> Channel | None:
    """Return a new channel of the topic asked for, or None where there is no such topic."""
    topic = TOPICS.get(asked.name)
    return None if topic is None else topic.function(asked)


def listing() -> dict[str, dict[str, str]]:
    """Return every route with its parameters, every form of topic and every fault, with what it is.

    Parameters that may be left out stand in brackets.
    """
    return {
        "routes": {_call(one): one.meaning for one in ROUTES.values()},
        "topics": {one.form: one.meaning for one in TOPICS.values()},
        "faults": {one.name: one.meaning for one in FAULTS.values()},
    }


def _call(route: Route) -> str:
    """Return the path of *route* with its parameters."""
    return " ".join((route.path, *route.required, *(f"[{name}]" for name in route.optional)))
