"""Answers of the HTTP interface about a stored run, cut short, for docs/http.md."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import explained_runs
import msgspec

from tracepaper.replay.page.databases import Databases
from tracepaper.replay.page.routes import PREFIX, ROUTES, ReadRoute, match
from tracepaper.storage.database.reader import Reader

QUERIES: Final[Mapping[str, dict[str, str]]] = {
    "/runs/{run}/candles": {"points": "2"},
    "/runs/{run}/series": {"points": "2"},
    "/runs/{run}/noted": {"points": "2"},
    "/runs/{run}/equity": {"points": "2"},
    "/runs/{run}/views/{view}": {"limit": "1"},
}
UNSHOWN: Final = ("/verify", "/ask", "/report", "/what-if", "/sweeps/{sweep}", "/fleet", "/pull")
"""What derives anew, answers with a whole document, or asks a fleet's server."""
RUN_ID: Final = "3f8a0767015d8368"
VOLATILE: Final = {
    r"\b[0-9a-f]{64}\b": "9f86d081884c7d65…",
    r"\b0\.1\.0\+[0-9a-f]+": "0.1.0+62bb04aab76d",
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
        shelf = Databases([path])
        names = {
            **dict.fromkeys(("run", "left", "right"), run_id),
            "sequence": str(sequence),
            "view": "decisions",
        }
        routes = [route for route in ROUTES if not route.path.endswith(UNSHOWN)]
        texts = {route.path: _example(shelf, route, names) for route in routes}
        return {place: _lasting(text, folder, run_id) for place, text in texts.items()}


def _lasting(text: str, folder: str, run_id: str) -> str:
    """Return *text* without what differs from run to run: ids, hashes, clocks and folders."""
    text = text.replace(run_id, RUN_ID).replace(f"{folder}/", "")
    for name, instead in VOLATILE.items():
        text = re.sub(name, instead, text)
    return text


def _example(shelf: Databases, route: ReadRoute, names: Mapping[str, str]) -> str:
    path, query = route.path.format(**names), QUERIES.get(route.path, {})
    answer = msgspec.to_builtins(match(path, query).respond(shelf, lambda *_: None))
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
