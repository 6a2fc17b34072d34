"""Candles from an archive that ``tracepaper data import`` or ``data fetch`` filled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tracepaper.replay.importers.candles import Candles
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types import Bar, Category, Instrument

if TYPE_CHECKING:
    from tracepaper.storage.history import Series

SQLITE_MAGIC: Final = b"SQLite format 3\0"
LISTED_MAX: Final = 8


def is_archive(path: Path) -> bool:
    """Return whether *path* is an SQLite file."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except OSError:
        return False


def read_archive(
    path: Path,
    *,
    symbol: str | None = None,
    category: Category | str | None = None,
    interval_ms: int | None = None,
) -> Candles:
    """Return the one series of the archive *path* that the arguments mean.

    Raises ``ConfigInvalid`` where they mean several, ``DataInvalid`` where they mean none.
    """
    from tracepaper.storage.history import History

    with History.open(path) as history:
        chosen = _chosen(path, history.series(), symbol, category, interval_ms)
        bars = history.read(chosen.instrument.id, chosen.interval_ms)
        return candles_of(list(bars), chosen.instrument, path=str(path))


def candles_of(bars: Sequence[Bar], instrument: Instrument, *, path: str) -> Candles:
    """Return *bars* of *instrument*, at least one, as candles; *path* names their source.

    A turnover that any bar lacks is a turnover that the candles lack.
    """
    values = np.array(
        [(b.open_time_ms, b.open, b.high, b.low, b.close, b.volume) for b in bars], dtype=np.int64
    ).T
    turnovers = [bar.turnover for bar in bars]
    return Candles(
        path=path,
        category=instrument.category,
        symbol=instrument.symbol,
        interval_ms=bars[0].interval_ms,
        price_decimals=instrument.price_decimals,
        volume_decimals=instrument.volume_decimals,
        turnover_decimals=instrument.turnover_decimals,
        open_time_ms=values[0],
        open=values[1],
        high=values[2],
        low=values[3],
        close=values[4],
        volume=values[5],
        turnover=None if None in turnovers else np.array(turnovers, dtype=np.int64),
    )


def _chosen(
    path: Path,
    held: Sequence[Series],
    symbol: str | None,
    category: Category | str | None,
    interval_ms: int | None,
) -> Series:
    """Return the one series that is meant."""
    found = [
        one
        for one in held
        if symbol in (None, one.instrument.symbol)
        and category in (None, one.instrument.category)
        and interval_ms in (None, one.interval_ms)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        names = [f"{one.instrument.id} of {one.interval_ms // 1000} s" for one in found]
        raise ConfigInvalid(
            f"{path} holds {', '.join(names[:LISTED_MAX])}: choose one with SYMBOL={path} or "
            "--category, and keep other intervals in another file."
        )
    wanted = symbol or "candles"
    raise DataInvalid(
        f"{path} holds no {wanted} such as is asked for: see `tracepaper data list --db {path}`."
    )
