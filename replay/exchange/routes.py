"""What a REST route is, and what a query asks of it: its page size, its window, its cursor.

A route is a function of a venue, a query and server time, declared by ``route`` where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, unquote

from tracepaper.replay.exchange.market import Venue

BAD_PARAMETER: Final = 10001
TIME_DIGITS_MAX: Final = 18
DERIVATIVES: Final = ("linear", "inverse")

Query = Mapping[str, str]


class Refused(NamedTuple):
    """An error of the exchange."""

    code: int
    message: str


class Flat(NamedTuple):
    """An answer whose body is not the usual envelope: fields beside the result, which is a list."""

    fields: dict[str, Any]
    result: list[dict[str, Any]]


Answer = dict[str, Any] | Flat | Refused
"""What a route gives: the ``result``, another body, or a refusal."""


class Limit(NamedTuple):
    """The default and the greatest ``limit`` of an endpoint."""

    default: int
    most: int


def page_size(query: Query, limit: Limit) -> int | Refused:
    """Return the page size asked for, within the endpoint's own."""
    asked = _integer(query, "limit")
    if isinstance(asked, Refused):
        return asked
    if asked is None:
        return limit.default
    if asked < 1:
        return Refused(BAD_PARAMETER, "params error: Limit is invalid")
    return min(asked, limit.most)


def window_of(
    query: Query, limit: Limit, start: str, end: str
) -> tuple[int | None, int | None, int] | Refused:
    """Return start, end and page size of *query*."""
    start_ms, end_ms = _integer(query, start), _integer(query, end)
    size = page_size(query, limit)
    for part in (start_ms, end_ms, size):
        if isinstance(part, Refused):
            return part
    assert not isinstance(start_ms, Refused)
    assert not isinstance(end_ms, Refused)
    assert not isinstance(size, Refused)
    if start_ms is not None and end_ms is not None and end_ms < start_ms:
        return Refused(BAD_PARAMETER, f"params error: {end} must not be less than {start}")
    return start_ms, end_ms, size


def _integer(query: Query, name: str) -> int | Refused | None:
    text = query.get(name, "")
    if not text:
        return None
    if not text.isdecimal() or len(text) > TIME_DIGITS_MAX:
        return Refused(BAD_PARAMETER, f"params error: {name} is invalid")
    return int(text)


def cursor_fields(query: Query) -> dict[str, str]:
    """Return the fields of the cursor of *query*, which clients send encoded once or twice."""
    fields = parse_qs(unquote(query.get("cursor", "")))
    return {name: values[0] for name, values in fields.items()}


# ------------------------------------------------------------ routes

BAD_SYMBOL: Final = Refused(BAD_PARAMETER, "Not supported symbols")
BAD_CATEGORY: Final = Refused(BAD_PARAMETER, "params error: Category is invalid")
MISSING: Final = {"category": BAD_CATEGORY, "symbol": BAD_SYMBOL}
"""What the exchange says of a parameter that is missing; of others a plain sentence."""


@dataclass(frozen=True)
class Route:
    """One route: *required* parameters may not be empty, *optional* ones are read where given."""

    path: str
    function: Callable[[Venue, Query, int], Answer]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def meaning(self) -> str:
        """What it answers, in one line."""
        return (self.function.__doc__ or "").partition("\n")[0]

    def __call__(self, venue: Venue, query: Query, now_ms: int) -> Answer:
        """Return the answer to *query* at *now_ms*, or its refusal."""
        for name in self.required:
            if not query.get(name, ""):
                plain = Refused(BAD_PARAMETER, f"params error: {name} is required")
                return MISSING.get(name, plain)
        return self.function(venue, query, now_ms)


def route(
    path: str, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()
) -> Callable[[Callable[[Venue, Query, int], Answer]], Route]:
    """Make the decorated function the route of *path*."""

    def declare(function: Callable[[Venue, Query, int], Answer]) -> Route:
        return Route(path, function, required, optional)

    return declare
