"""What describes the HTTP interface, made from its routes: the OpenAPI document, docs/http.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_type_hints

import msgspec
from msgspec import Struct

from tracepaper.replay.page import answers, fleet, news
from tracepaper.replay.page.routes import MEANINGS, PREFIX, ROUTES, ReadRoute
from tracepaper.storage.fleet import overview

STREAMED: Final = (news.StreamHello, news.StreamStep)
_LINES: Final = (answers.Progress, answers.FinishedTask, answers.FailedTask)
_MODULES: Final = tuple(f"{module.__name__}." for module in (answers, overview))
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
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "description": MEANINGS[name],
                    "schema": {"type": "string"},
                }
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
    return {
        "summary": "A WebSocket: StreamHello, then a StreamStep for each stored step, "
        "of many at once the newest 200.",
        "parameters": [
            {
                "name": "run",
                "in": "query",
                "required": False,
                "description": "a run's id; the served or else the newest run",
                "schema": {"type": "string"},
            }
        ],
        "responses": {"101": {"description": "The messages are JSON, one value each."}},
    }


def _query(parameters: type[Struct]) -> list[dict[str, Any]]:
    schema = msgspec.json.schema(parameters)["$defs"][parameters.__name__]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": MEANINGS[name],
            "schema": shape,
        }
        for name, shape in schema["properties"].items()
    ]


def _of(type_: type[Struct]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=type_.__name__)}


def _first(type_: type[Struct]) -> str:
    return (type_.__doc__ or "").strip().splitlines()[0]


# ---------------------------------------------------------------- docs/http.md


def documentation(examples: Mapping[str, str]) -> str:
    """Return addresses, *examples* by path, and types of the interface as Markdown."""
    parts = ["## Addresses\n"]
    for route in ROUTES:
        parts.append(f"### `GET {PREFIX}{route.path}`\n\n{route.sentence}\n")
        names = [*route.places, *route.parameters.__struct_fields__]
        if names:
            parts.append("| parameter | meaning |\n|---|---|")
            parts.append("\n".join(f"| `{name}` | {MEANINGS[name]} |" for name in names) + "\n")
        kind = "lines of `Progress`, then `Done` with " if route.streams else ""
        parts.append(
            f"Answer: {kind}[`{route.answer.__name__}`](#{route.answer.__name__.lower()}).\n"
        )
        if example := examples.get(route.path):
            parts.append(example)
    parts.append("## Types\n")
    parts += [_type(struct) for struct in _types()]
    return "\n".join(parts)


def _types() -> list[type[Struct]]:
    every = (value for value in vars(answers).values() if isinstance(value, type))
    structs = (value for value in every if issubclass(value, Struct) and value is not Struct)
    return [
        *structs,
        fleet.Fleet,
        overview.FleetRun,
        overview.FleetPosition,
        fleet.PulledRun,
        *STREAMED,
    ]


def _type(type_: type[Struct]) -> str:
    hints = get_type_hints(type_)
    rows = "\n".join(f"| `{name}` | {_named(hints[name])} |" for name in type_.__struct_fields__)
    text = " ".join((type_.__doc__ or "").split())
    return f"### {type_.__name__}\n\n{text}\n\n| field | type |\n|---|---|\n{rows}\n"


def _named(hint: object) -> str:
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    for noise in (*_MODULES, "typing."):
        text = text.replace(noise, "")
    return f"`{text}`".replace(" | ", "` or `")
