"""Read pages that are single files: the record in them, and what a reader sees of it."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracepaper.replay.document.charts import Chart
from tracepaper.replay.document.values import Table, TitledParts


def record_in(page: str) -> dict[str, Any]:
    """Return the record that lies in *page*: answers by the paths of their requests."""
    [packed] = re.findall(r'type="application/gzip\+base64" id="record">([^<]*)</script>', page)
    return unpacked(packed)


def unpacked(packed: str) -> dict[str, Any]:
    """Read base64 of gzip of JSON."""
    record: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed)))
    return record


def document_in(path: Path) -> dict[str, Any]:
    """Return the document of the page at *path*: alone there, or the report of its run."""
    record = record_in(path.read_text(encoding="utf-8"))
    [document] = [
        answer for name, answer in record.items() if name.endswith(("/document", "/report"))
    ]
    content: dict[str, Any] = document
    return content


def said_in(path: Path) -> str:
    """Return every text of the document of the page at *path*, a line each."""
    return "\n".join(_texts(document_in(path)))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)


def tables_of(document: TitledParts) -> dict[str, Table]:
    """Return the tables of *document* by key, those in folds left out."""
    return {part.key: part for part in document.parts if isinstance(part, Table)}


def layers_of(chart: Chart | None) -> dict[str, Any]:
    """Return the layers of *chart* by name, of equal names the first."""
    assert chart is not None
    named = [layer for panel in chart.panels for layer in panel.layers]
    return {getattr(layer, "name", ""): layer for layer in reversed(named)}
