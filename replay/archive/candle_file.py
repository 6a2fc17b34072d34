"""Candles of one symbol as a CSV file that grows: what ``data fetch`` and a retraining write.

Every command reads it as it reads any file of candles. Numbers are exact decimals.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
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


def write_lines(path: Path, lines: Lines) -> None:
    """Write the file *path* of *lines*, oldest first, whole or not at all."""
    content = HEADER + "".join(lines[time] for time in sorted(lines))
    write_whole(content.encode(), path)


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
            fcntl.flock(self._added, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.times: IntArray = np.array(sorted(self._settle()), dtype=np.int64)
        except BlockingIOError:
            self._added.close()
            raise ConfigInvalid(
                f"{path} is being fetched by another process; wait for its end, or name another "
                "--out."
            ) from None
        except BaseException:
            self._added.close()
            raise

    def _settle(self) -> Lines:
        """Bring what was added into the file; return all its lines."""
        held = self._lines(self._path)
        if added := self._lines(self._part):
            held |= added
            write_lines(self._path, held)
        os.truncate(self._added.fileno(), 0)
        return held

    def _lines(self, path: Path) -> Lines:
        text = path.read_text("utf-8") if path.exists() else ""
        if path == self._path and text and not text.startswith(HEADER):
            raise ConfigInvalid(
                f"{path} is no file of `tracepaper data fetch`; name another --out."
            )
        lines = text.removeprefix(HEADER).splitlines(keepends=True)
        # A kill may have left the last one torn.
        return {int(line.partition(",")[0]): line for line in lines if line.endswith("\n")}

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
