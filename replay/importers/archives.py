"""Candles from an archive that ``tracepaper data import`` or ``data fetch`` filled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tracepaper.replay.importers.candles import Candles, candles_of
from tracepaper.storage.history import History, Series
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types import Category

LISTED_MAX: Final = 8


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
    with History.open(path) as history:
        chosen = _chosen(path, history.series(), symbol, category, interval_ms)
        bars = history.read(chosen.instrument.id, chosen.interval_ms)
        return candles_of(list(bars), chosen.instrument, path=str(path))


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
