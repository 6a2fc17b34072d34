"""Recorded frames of the exchange: licensed copies always, the larger campaign set if there."""

from __future__ import annotations

import gzip
from pathlib import Path

HERE = Path(__file__).parents[1] / "data" / "bybit"
CAMPAIGN = Path(__file__).parents[3] / "shared" / "data"


def lines(path: Path) -> list[bytes]:
    """Return the lines of a plain or gzipped file."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return content.splitlines()


def recorded(name: str) -> list[bytes]:
    """Return the frames of a licensed recording in ``tests/data/bybit``."""
    return lines(HERE / name)


def examples(prefix: str) -> dict[str, bytes]:
    """Return the documentation examples of the campaign whose names begin with *prefix*."""
    folder = CAMPAIGN / "bybit_doc_examples"
    return {path.stem: path.read_bytes() for path in sorted(folder.glob(f"{prefix}*.json"))}
