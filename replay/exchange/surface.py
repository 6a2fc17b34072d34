"""The registry of routes and topics.

A new route or topic is a function decorated by ``route`` or ``topic`` in one of ``MODULES``; the
server, the command's listing and its page find it here.
"""

from __future__ import annotations

from typing import Final

from tracepaper.daemon.bybit.messages import ExchangeError
from tracepaper.replay.exchange import answers, channels, quotes, reference
from tracepaper.replay.exchange.answers import Answer, Query, Route
from tracepaper.replay.exchange.channels import Channel, Topic, TopicRequest
from tracepaper.replay.exchange.fault_kinds import FAULTS
from tracepaper.replay.exchange.market import Venue

ROUTE_NOT_FOUND: Final = 10017
MODULES: Final = (answers, channels, quotes, reference)
_DECLARED: Final = [value for module in MODULES for value in vars(module).values()]
ROUTES: Final = {route.path: route for route in _DECLARED if isinstance(route, Route)}
"""Every route by its path."""
TOPICS: Final = {topic.name: topic for topic in _DECLARED if isinstance(topic, Topic)}
"""Every kind of topic by its name."""


def answer(venue: Venue, path: str, query: Query, now_ms: int) -> Answer:
    """Return the answer to *query* at *now_ms*, or an error, also for an unknown *path*."""
    route = ROUTES.get(path)
    if route is None:
        return ExchangeError(ROUTE_NOT_FOUND, "Route not found.")
    return route(venue, query, now_ms)


def find_channel(request: TopicRequest) -> Channel | None:
    """Return a new channel for *request*, or None for an unknown topic."""
    topic = TOPICS.get(request.name)
    return None if topic is None else topic.function(request)


def listing() -> dict[str, dict[str, str]]:
    """Return the meaning of every route with its parameters, every form of topic and every fault.

    Optional parameters are in brackets.
    """
    calls = {}
    for route in ROUTES.values():
        optional = (f"[{name}]" for name in route.optional)
        calls[" ".join((route.path, *route.required, *optional))] = route.meaning
    return {
        "routes": calls,
        "topics": {entry.form: entry.meaning for entry in TOPICS.values()},
        "faults": {
            f"{name} {form}".strip(): each.meaning
            for name, kind in FAULTS.items()
            for form, each in kind.forms.items()
        },
    }
