"""Which column is which: the usual makers' names, and rows without a header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tracepaper.replay.importers.names import symbol_text

TIME: Final = "open_time"
ZONED: Final = tuple(
    f"{name}_{zone}"
    for name in ("time", "date", "datetime")
    for zone in ("eet", "eest", "cet", "cest", "est", "edt", "cst", "pst", "bst", "jst", "msk")
)
"""Columns that name a time of another zone."""
MEANINGS: Final = {
    TIME: (
        "open_time", "opentime", "open_time_ms", "start", "start_time", "starttime", "start_at",
        "startat", "timestamp", "time", "datetime", "date_time", "date", "ts", "unix", "t",
        "candle_begin_time", "gmt_time", "time_utc", "open_time_utc", "timestamp_ms", "local_time",
        *ZONED,
    ),
    "open": ("open", "open_price", "openprice", "o"),
    "high": ("high", "high_price", "highprice", "h"),
    "low": ("low", "low_price", "lowprice", "l"),
    "close": ("close", "close_price", "closeprice", "c"),
    "volume": ("volume", "vol", "base_volume", "basevolume", "v", "volume_base", "tickvol"),
    "turnover": (
        "turnover", "quote_volume", "quotevolume", "quote_asset_volume", "quoteassetvolume",
        "asset_volume", "assetvolume", "volume_quote", "quote_vol", "amount",
    ),
}  # fmt: skip
"""Each meaning's names, normalised, in order of preference."""

FIGURES: Final = frozenset(
    name for meaning, names in MEANINGS.items() if meaning != TIME for name in names
)
"""Every name of a column of numbers."""
REQUIRED: Final = (TIME, "open", "high", "low", "close", "volume")
BINANCE_WIDTHS: Final = (11, 12)
MOMENT_OF_DAY: Final = re.compile(r"\d{1,2}:\d{2}(:\d{2})?(\.\d+)?")
DIGITS_OF_DAY: Final = re.compile(r"\d{1,6}")
"""``153000``, ``90000`` and ``0``: a moment without colons, of which noughts in front are lost."""


def normalise(name: str) -> str:
    """Return *name* as the tables above write it: ``<OPEN>`` and ``Open Price`` alike."""
    plain = name.strip().strip('"').lstrip("\ufeff").strip("<>#").strip().lower()
    return re.sub(r"[\s.\-]+", "_", re.sub(r"[()]", "", plain))


def is_header(cells: Sequence[str]) -> bool:
    """Return whether the first row names columns; a row of data starts with a time."""
    return not re.match(r"\s*[-+]?\d", cells[0]) and any(
        re.search(r"[A-Za-z]", cell) for cell in cells
    )


def names_without_header(cells: Sequence[str]) -> list[str] | None:
    """Return column names for the first row of a headerless file, or None if it is unknown.

    Known: Binance Vision (12 columns), MetaTrader 4 (date, time, OHLCV), and time, OHLCV with
    an optional turnover (ccxt, Bybit, freqtrade); two columns are funding rates.
    """
    width = len(cells)
    if width > 1 and MOMENT_OF_DAY.fullmatch(cells[1].strip()):
        names = ["date", "time", "open", "high", "low", "close", "tickvol", "vol", "spread"]
        return names[:width] if 7 <= width <= len(names) else None  # noqa: PLR2004
    names = [TIME, "open", "high", "low", "close", "volume"]
    if width in BINANCE_WIDTHS:
        return [*names, "close_time", "quote_volume", *(f"other_{i}" for i in range(width - 8))]
    if width == 2:  # noqa: PLR2004 (settlement and rate)
        return [TIME, "funding_rate"]
    if width in {6, 7}:
        return [*names, "turnover"][:width]
    return None


def meanings(names: Sequence[str], *, symbol: str | None) -> dict[str, str]:
    """Return meaning → column name for every meaning that *names* hold.

    With *symbol*, ``Volume BTC`` and ``Volume USDT`` are told apart by its coins.
    """
    normal = {normalise(name): name for name in reversed(names)}
    found = {
        meaning: normal[known]
        for meaning, candidates in MEANINGS.items()
        for known in reversed(candidates)
        if known in normal
    }
    for name, original in normal.items():
        coin = name.removeprefix("volume_").upper()
        if symbol and name.startswith("volume_") and original not in found.values():
            if symbol.startswith(coin):
                found.setdefault("volume", original)
            elif symbol.endswith(coin):
                found.setdefault("turnover", original)
    return found


def joined_headers(rows: Sequence[Sequence[str]]) -> tuple[list[str], str, int] | None:
    """Return column names, ticker and height of yfinance's header, or None where it is none.

    It has a row of fields and one of tickers, in either order, and mostly a third that names the
    time. Several tickers give names such as ``close@AAPL``.
    """
    if len(rows) < 3:  # noqa: PLR2004 (two rows of a header and one of data)
        return None
    kinds = [[normalise(cell) for cell in row] for row in rows[:2]]
    fields = [len(FIGURES.intersection(row[1:])) for row in kinds]
    if max(fields) < 4 or min(fields) > 0 or len(set(map(len, rows[:3]))) > 1:  # noqa: PLR2004
        return None
    place = fields.index(max(fields))
    if kinds[1 - place][0] not in {"ticker", "tickers", ""}:
        return None
    time = kinds[0][0]
    height = 2
    if not any(cell.strip() for cell in rows[2][1:]):
        time, height = normalise(rows[2][0]), 3
    if time not in MEANINGS[TIME]:
        return None
    tickers = [symbol_text(cell) for cell in rows[1 - place][1:]]
    if len(set(tickers)) == 1:
        return [time, *kinds[place][1:]], tickers[0], height
    names = [f"{name}@{ticker}" for name, ticker in zip(kinds[place][1:], tickers, strict=True)]
    return [time, *names], "", height
