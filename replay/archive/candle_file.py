"""Candles of one symbol as a CSV file that grows: what ``data fetch`` and a retraining write.

Every command reads it as it reads any file of candles. Numbers are exact decimals.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Final, Self

import numpy as np

from tracepaper.replay.archive.columns import IntArray
from tracepaper.storage.covariates import write_whole
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import Bar, Instrument
from tracepaper.strategies.units import interval_text, unscaled

HEADER: Final = "open_time,open,high,low,close,volume,turnover\n"

Lines = dict[int, str]
"""Lines of a file by the time at which their candle opens."""


def file_name(instrument: Instrument, interval_ms: int) -> str:
    """Return the name that says category, symbol and interval: ``linear_BTCUSDT_1m.csv``."""
    return f"{instrument.category}_{instrument.symbol}_{interval_text(interval_ms)}.csv"


def lines_of(instrument: Instrument, bars: Iterable[Bar]) -> Lines:
    """Return the lines of *bars*, which are counted in the decimals of *instrument*."""
    price, volume = instrument.price_decimals, instrument.volume_decimals
    lines = {}
    for bar in bars:
        paid = bar.turnover
        cells = (
            str(bar.open_time_ms),
            *(unscaled(each, price) for each in (bar.open, bar.high, bar.low, bar.close)),
            unscaled(bar.volume, volume),
            "" if paid is None else unscaled(paid, instrument.turnover_decimals),
        )
        lines[bar.open_time_ms] = ",".join(cells) + "\n"
    return lines


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write the file *path* of *lines*, the oldest first, whole or not at all."""
    write_whole((line.encode() for line in chain((HEADER,), lines)), path)


class CandleFile:
    """A file to which candles are added; one process adds to it.

    What is added is on the disk at once, in ``PATH.part``, and becomes part of the file when it is
    closed, or opened after a kill. Raises ``ConfigInvalid`` where another process adds to it, or
    the file is another's.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._part = path, path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._added = self._part.open("a", encoding="ascii")
        try:
            if not self._is_locked():
                raise ConfigInvalid(  # noqa: TRY301 - it closes what was opened, as any other
                    f"{path} is being fetched by another process; wait for its end, or name "
                    "another --out."
                )
            self.times = self._settle()
        except BaseException:
            self._added.close()
            raise

    def _is_locked(self) -> bool:
        """Return whether this process, and no other, adds to the file from now on."""
        opened = self._added.fileno()
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # Between opening and locking the file, its holder may have ended and removed it.
        return self._part.exists() and os.path.samestat(os.fstat(opened), self._part.stat())

    def _settle(self) -> IntArray:
        """Bring what was added into the file; return the open times of all its lines.

        Lines are merged as they are read, so that years of minutes need little memory.
        """
        held, added = (_times(self._lines(path)) for path in (self._path, self._part))
        if added.size:
            lines = self._lines(self._part)
            if (np.diff(added) <= 0).any():  # the pages of several gaps
                lines = iter(sorted(dict(lines).items()))
            merged = merge(self._lines(self._path), lines, key=itemgetter(0))
            by_time = groupby(merged, key=itemgetter(0))  # a kill may have left a line in both
            write_lines(self._path, (next(same)[1] for _, same in by_time))
        os.truncate(self._added.fileno(), 0)
        return np.union1d(held, added)

    def _lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """Yield the lines of *path*, each with its open time, but one that a kill left torn."""
        if not path.exists():
            return
        try:
            with path.open(encoding="utf-8") as file:
                if path == self._path and file.readline() not in {HEADER, ""}:
                    raise ValueError(path)  # noqa: TRY301 - as a line without a time
                for line in file:
                    if line.endswith("\n"):
                        yield int(line.partition(",")[0]), line
        except ValueError:
            raise ConfigInvalid(
                f"{path} is no file of `tracepaper data fetch`; name another --out."
            ) from None

    def add(self, instrument: Instrument, bars: Sequence[Bar]) -> None:
        """Add *bars*, which open at times that the file lacks."""
        self._added.writelines(lines_of(instrument, bars).values())
        self._added.flush()
        os.fsync(self._added.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._added:
            self._settle()
            self._part.unlink()


def _times(lines: Iterator[tuple[int, str]]) -> IntArray:
    return np.fromiter((time for time, _ in lines), dtype=np.int64)
