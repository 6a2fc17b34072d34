"""Cuts the candle files that a user's class reads, as ``lookahead`` cuts the candles it is given.

A class that keeps a table of candles by their open times and looks it up by the close of the bar
that it decides reads the bar that begins then.
"""

from __future__ import annotations

import builtins
import gzip
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from tracepaper.replay.archive.names import NAMES, TIME
from tracepaper.replay.archive.read import parsed_times
from tracepaper.replay.archive.tables import FileTable, read_table, unpacked
from tracepaper.strategies.errors import TracepaperError

_CANDLE: Final = {TIME: NAMES[TIME], "close": NAMES["close"]}
"""The columns that make a table one of candles, whose times are opens."""

_served: Final[set[str]] = set()


def is_candle_file(path: str) -> bool:
    """Return whether *path* is a text, packed by gzip or not, with a time and a close."""
    return _table(Path(path)) is not None


def end_files(paths: Iterable[str], close_ms: int, folder: Path) -> None:
    """Let this process read candle files of *paths* without what closes after *close_ms*.

    The cut copies lie in *folder*. Files that compiled code opens by their names stay whole.
    """
    copies: dict[str, str] = {}
    for number, path in enumerate(paths):
        if (table := _table(Path(path))) is not None:
            copy = folder / f"{number}_{Path(path).name}"
            copy.write_bytes(_until(table, close_ms))
            copies[os.path.realpath(path)] = str(copy)
    builtins.open = io.open = _opener(copies)


def served() -> list[str]:
    """Return the files of which this process read a cut copy."""
    return sorted(_served)


def _opener(copies: Mapping[str, str]) -> Any:  # noqa: ANN401 - the signature of ``open``
    whole = io.open

    def opened(file: Any, *args: Any, **more: Any) -> Any:  # noqa: ANN401 - as ``open`` takes them
        name = "" if isinstance(file, int) else os.path.realpath(os.fsdecode(file))
        if name in copies:
            _served.add(name)
            file = copies[name]
        return whole(file, *args, **more)

    return opened


def _table(path: Path) -> FileTable | None:
    """Return the table in the file at *path*; None if it is no text of candles."""
    try:
        table = read_table(path)
        is_text = unpacked(path)[0] in {path.name.lower(), path.stem.lower()}
        has_both = len(table.find(_CANDLE)) == len(_CANDLE)
    except (TracepaperError, OSError):
        return None
    return table if is_text and has_both and table.unit == "line" and len(table.lines) > 1 else None


def _until(table: FileTable, close_ms: int) -> bytes:
    """Return the file of *table* without the candles that close after *close_ms*."""
    times, _ = parsed_times(table, table.find(_CANDLE)[TIME], "the open time")
    interval_ms = int(np.diff(np.unique(times)).min(initial=np.iinfo(np.int64).max))
    later = set(table.lines[times > close_ms - interval_ms].tolist())
    lines = unpacked(table.path)[1].splitlines(keepends=True)
    kept = b"".join(line for number, line in enumerate(lines, 1) if number not in later)
    return gzip.compress(kept) if table.path.suffix.lower() == ".gz" else kept
