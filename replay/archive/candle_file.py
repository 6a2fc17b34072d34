"""A growing CSV file of one symbol's candles, written by ``data fetch``.

Every command reads it like any file of candles. Numbers are exact decimals.
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


def file_name(instrument: Instrument, interval_ms: int) -> str:
    """Return a name of category, symbol and interval: ``linear_BTCUSDT_1m.csv``."""
    return f"{instrument.category}_{instrument.symbol}_{interval_text(interval_ms)}.csv"


def lines_of(instrument: Instrument, bars: Iterable[Bar]) -> Iterator[str]:
    """Yield the lines of *bars*, whose integers have the decimals of *instrument*."""
    price, volume = instrument.price_decimals, instrument.volume_decimals
    for bar in bars:
        paid = bar.turnover
        cells = (
            str(bar.open_time_ms),
            *(unscaled(each, price) for each in (bar.open, bar.high, bar.low, bar.close)),
            unscaled(bar.volume, volume),
            "" if paid is None else unscaled(paid, instrument.turnover_decimals),
        )
        yield ",".join(cells) + "\n"


class CandleFile:
    """A file to which a single process adds candles.

    Added candles are synced at once to ``PATH.part``, and merged into the file when it is closed,
    or opened after a kill. Raises ``ConfigInvalid`` if another process adds to it, or the file has
    other content.
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
        """Lock the file for this process; return whether that worked."""
        opened = self._added.fileno()
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # Between opening and locking the file, its holder may have ended and removed it.
        return self._part.exists() and os.path.samestat(os.fstat(opened), self._part.stat())

    def _settle(self) -> IntArray:
        """Merge the added lines into the file; return the open times of all its lines.

        Lines are merged while they are read, so years of minutes need little memory.
        """
        held, added = (_times(self._lines(path)) for path in (self._path, self._part))
        if added.size:
            lines = self._lines(self._part)
            if (np.diff(added) <= 0).any():  # the pages of several gaps
                lines = iter(sorted(dict(lines).items()))
            merged = merge(self._lines(self._path), lines, key=itemgetter(0))
            by_time = groupby(merged, key=itemgetter(0))  # a kill may have left a line in both
            kept = (next(same)[1] for _, same in by_time)
            write_whole((line.encode() for line in chain((HEADER,), kept)), self._path)
        os.truncate(self._added.fileno(), 0)
        return np.union1d(held, added)

    def _lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """Yield the lines of *path* with their open times, except one that a kill left torn."""
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
        """Append *bars* that the file lacks."""
        self._added.writelines(lines_of(instrument, bars))
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
