"""Addresses and types of the HTTP interface for docs/http.md, with answers about a stored run."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_type_hints

import explained_runs
import msgspec
from msgspec import Struct

from tracepaper.replay.page import answers
from tracepaper.replay.page.databases import Databases
from tracepaper.replay.page.interface import STREAMED
from tracepaper.replay.page.routes import MEANINGS, PREFIX, ROUTES, ReadRoute, match
from tracepaper.storage.database.reader import Reader

_MODULE: Final = f"{answers.__name__}."

QUERIES: Final[Mapping[str, dict[str, str]]] = {
    "/runs/{run}/candles": {"points": "2"},
    "/runs/{run}/equity": {"points": "2"},
    "/runs/{run}/views/{view}": {"limit": "1"},
}
UNSHOWN: Final = ("/verify", "/ask", "/report", "/what-if", "/compare", "/sweeps/{sweep}")
"""What derives anew, or answers with a whole document."""
RUN_ID: Final = "3f8a0767015d8368"
VOLATILE: Final = {
    r"\b[0-9a-f]{64}\b": "9f86d081884c7d65…",
    r"\b0\.1\.0\+[\w.]+": "0.1.0+g1a2b3c4d5.62bb04aab76d",
    r"\b1[89]\d{11}\b|\b17[5-9]\d{10}\b": "1750000000000",
}
"""What differs from run to run, and what is shown in its place; markets are of 2023."""
ITEMS, KEYS, LETTERS = 2, 12, 90
"""So many of a list, of an object within the answer, and of a text are shown."""


def examples() -> dict[str, str]:
    """Return by path one request and its answer, as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        path = explained_runs.replayed(Path(folder))
        with Reader.open(path) as reader:
            run_id = reader.find("last")
            (sequence,) = reader.connection.execute(
                "SELECT max(sequence) FROM v_decisions WHERE mean_return IS NOT NULL"
            ).fetchone()
        databases = Databases([path])
        names = {
            **dict.fromkeys(("run", "left", "right"), run_id),
            "sequence": str(sequence),
            "view": "decisions",
        }
        routes = [route for route in ROUTES if not route.path.endswith(UNSHOWN)]
        texts = {route.path: _example(databases, route, names) for route in routes}
        return {place: _lasting(text, folder, run_id) for place, text in texts.items()}


def _lasting(text: str, folder: str, run_id: str) -> str:
    """Return *text* without what differs from run to run: ids, hashes, clocks and folders."""
    text = text.replace(run_id, RUN_ID).replace(run_id[:8], RUN_ID[:8])
    text = text.replace(f"{folder}/", "")
    for name, instead in VOLATILE.items():
        text = re.sub(name, instead, text)
    return text


def _example(databases: Databases, route: ReadRoute, names: Mapping[str, str]) -> str:
    path, query = route.path.format(**names), QUERIES.get(route.path, {})
    answer = msgspec.to_builtins(match(path, query).respond(databases, lambda *_: None))
    text = "&".join(f"{name}={value}" for name, value in query.items())
    lines = ",\n".join(f'  "{name}": {_shown(value)}' for name, value in answer.items())
    address = f"{PREFIX}{path}{'?' if text else ''}{text}"
    return f"`{address}`\n\n```json\n{{\n{lines}\n}}\n```\n"


def _shown(value: Any) -> str:
    return json.dumps(_cut(value), ensure_ascii=False)


def _cut(value: Any) -> Any:
    """Return the beginning of *value*; floats without the digits that differ between processors."""
    match value:
        case float():
            return float(f"{value:.6g}" if abs(value) >= 1 else f"{value:.4f}")
        case str() if len(value) > LETTERS:
            return f"{value[: LETTERS - 1]}…"
        case list() | tuple():
            return [_cut(element) for element in value[:ITEMS]]
        case dict():
            return {name: _cut(element) for name, element in [*value.items()][:KEYS]}
        case _:
            return value


def documentation() -> str:
    """Return addresses, each with an example, and types of the interface as Markdown."""
    shown = examples()
    parts = ["## Addresses\n", "| parameter | meaning |\n|---|---|"]
    parts.append("\n".join(f"| `{name}` | {text} |" for name, text in MEANINGS.items()) + "\n")
    for route in ROUTES:
        parts.append(f"### `GET {PREFIX}{route.path}`\n\n{route.sentence}\n")
        names = [*route.places, *route.parameters.__struct_fields__]
        if names:
            parts.append(f"Parameters: {', '.join(f'`{name}`' for name in names)}.\n")
        kind = "lines of `Progress`, then `Done` with " if route.streams else ""
        parts.append(
            f"Answer: {kind}[`{route.answer.__name__}`](#{route.answer.__name__.lower()}).\n"
        )
        if example := shown.get(route.path):
            parts.append(example)
    parts.append("## Types\n")
    parts += [_type(struct) for struct in _types()]
    return "\n".join(parts)


def _types() -> list[type[Struct]]:
    every = (value for value in vars(answers).values() if isinstance(value, type))
    structs = (value for value in every if issubclass(value, Struct) and value is not Struct)
    return [*structs, *STREAMED]


def _type(type_: type[Struct]) -> str:
    hints = get_type_hints(type_)
    rows = "\n".join(f"{name}: {_named(hints[name])}" for name in type_.__struct_fields__)
    text = " ".join((type_.__doc__ or "").split())
    return f"### {type_.__name__}\n\n{text}\n\n```yaml\n{rows}\n```\n"


def _named(hint: object) -> str:
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    for noise in (_MODULE, "typing."):
        text = text.replace(noise, "")
    return text.replace(" | ", " or ")
