"""Recorded frames of the exchange, licensed."""

from __future__ import annotations

import gzip
from pathlib import Path

HERE = Path(__file__).parents[1] / "data" / "bybit"


def recorded(name: str) -> list[bytes]:
    """Return the frames of a recording in ``tests/data/bybit``, plain or gzipped."""
    path = HERE / name
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return content.splitlines()
