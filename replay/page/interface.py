"""The OpenAPI document of the HTTP interface, generated from its routes."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from tracepaper.replay.page import answers, news
from tracepaper.replay.page.routes import MEANINGS, PREFIX, ROUTES, ReadRoute

STREAMED: Final = (news.StreamHello, news.StreamStep)
_LINES: Final = (answers.Progress, answers.FinishedTask, answers.FailedTask)
_REFERENCE: Final = "#/components/schemas/{name}"


def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the interface."""
    types = [*dict.fromkeys(route.answer for route in ROUTES), *STREAMED, *_LINES, answers.Error]
    _, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tracepaper", "version": "1"},
        "paths": {
            **{f"{PREFIX}{route.path}": {"get": _operation(route)} for route in ROUTES},
            f"{PREFIX}/stream": {"get": _stream()},
        },
        "components": {"schemas": components},
    }


def _operation(route: ReadRoute) -> dict[str, Any]:
    body: dict[str, Any] = {"schema": _of(route.answer)}
    if route.streams:
        body = {"schema": {"oneOf": [_of(line) for line in _LINES]}}
    content = "application/x-ndjson" if route.streams else "application/json"
    return {
        "summary": route.sentence,
        "parameters": [
            *(
                _parameter(name, "path", MEANINGS[name], {"type": "string"})
                for name in route.places
            ),
            *_query(route.parameters),
        ],
        "responses": {
            "200": {"description": _first(route.answer), "content": {content: body}},
            "default": {
                "description": _first(answers.Error),
                "content": {"application/json": {"schema": _of(answers.Error)}},
            },
        },
    }


def _stream() -> dict[str, Any]:
    run = "a run's id; by default the served or else the newest run"
    return {
        "summary": "A WebSocket: StreamHello, then a StreamStep for each stored step; "
        "at most the newest 200 at once.",
        "parameters": [_parameter("run", "query", run, {"type": "string"})],
        "responses": {"101": {"description": "The messages are JSON, one value each."}},
    }


def _query(parameters: type[Struct]) -> list[dict[str, Any]]:
    schema = msgspec.json.schema(parameters)["$defs"]["Parameters"]
    shapes = schema["properties"].items()
    return [_parameter(name, "query", MEANINGS[name], shape) for name, shape in shapes]


def _parameter(name: str, place: str, meaning: str, schema: dict[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": meaning,
        "schema": schema,
    }


def _of(type_: type[Struct]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=type_.__name__)}


def _first(type_: type[Struct]) -> str:
    return (type_.__doc__ or "").strip().splitlines()[0]
