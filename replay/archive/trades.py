"""Public trades to candles: Bybit's daily trade files, and any file of time, side, price, size."""

from __future__ import annotations

from typing import Final

import numpy as np

from tracepaper.replay.archive.candles import Candles
from tracepaper.replay.archive.decimals import (
    INT64_MAX,
    CellInvalidError,
    Decimals,
    IntArray,
    parse,
)
from tracepaper.replay.archive.names import MEANINGS, TIME
from tracepaper.replay.archive.tables import RawTable
from tracepaper.replay.archive.times import epoch_ms
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import Category

DEFAULT_INTERVAL_MS: Final = 60_000
SIZES: Final = ("size", "volume", "qty", "quantity", "amount")


def are_trades(table: RawTable) -> bool:
    """Return whether *table* holds trades: a price, a size, and no candle."""
    names = table.columns
    return "price" in names and "close" not in names and any(name in names for name in SIZES)


def to_candles(table: RawTable, symbol: str, category: Category, interval_ms: int) -> Candles:
    """Return the candles that the trades of *table* make.

    An interval without a trade becomes a flat candle of no volume at the last price, as the
    exchange writes it. The open is the first trade's price, where the exchange's own candles
    repeat the previous close: said in the notes. Raises ``DataInvalid``.
    """
    times, price, size = _oldest_first(table, *_columns(table))
    bucket = times // interval_ms
    first = np.flatnonzero(np.diff(bucket, prepend=bucket[0] - 1))
    last = np.append(first[1:], times.size) - 1
    open_time_ms = np.arange(bucket[0], bucket[-1] + 1, dtype=np.int64) * interval_ms
    rows = bucket[first] - bucket[0]
    turnover, turnover_decimals = _turnover(price, size, first)
    traded = np.zeros(open_time_ms.size, dtype=np.bool_)
    traded[rows] = True
    held = np.maximum.accumulate(np.where(traded, np.arange(traded.size), 0))
    close = _spread(rows, price.mantissa[last], traded.size)[held]

    def filled(values: IntArray) -> IntArray:
        return np.where(traded, _spread(rows, values, traded.size), close)

    notes = ["candles made of trades, each opens at its first trade"]
    if not traded.all():
        notes.append(f"{int((~traded).sum())} intervals without a trade are flat")
    return Candles(
        path=str(table.path),
        category=category,
        symbol=symbol,
        interval_ms=interval_ms,
        price_decimals=price.places,
        volume_decimals=size.places,
        turnover_decimals=turnover_decimals,
        open_time_ms=open_time_ms,
        open=filled(price.mantissa[first]),
        high=filled(np.maximum.reduceat(price.mantissa, first)),
        low=filled(np.minimum.reduceat(price.mantissa, first)),
        close=close,
        volume=_spread(rows, np.add.reduceat(size.mantissa, first), traded.size),
        turnover=None if turnover is None else _spread(rows, turnover, traded.size),
        notes=tuple(notes),
    )


def _columns(table: RawTable) -> tuple[IntArray, Decimals, Decimals]:
    """Return times in ms, prices and sizes, all checked."""
    time_name = next((name for name in MEANINGS[TIME] if name in table.columns), None)
    if time_name is None:
        raise DataInvalid(f"{table.path} has no column of times: name one of them timestamp.")
    size_name = next(name for name in SIZES if name in table.columns)
    name = "the time"
    try:
        times, _ = epoch_ms(table.columns[time_name], whole=False)
        name = "price"
        price = parse(table.columns["price"])
        name = "size"
        size = parse(table.columns[size_name])
    except CellInvalidError as error:
        raise table.refuse(error, name) from None
    for name, column in (("price", price), ("size", size)):
        bad = np.flatnonzero(column.mantissa <= 0)
        if bad.size:
            raise table.refuse(CellInvalidError(int(bad[0]), "is not above zero"), name)
    return times, price, size


def _oldest_first(
    table: RawTable, times: IntArray, price: Decimals, size: Decimals
) -> tuple[IntArray, Decimals, Decimals]:
    """Turn a file that is newest first (Bybit's older ones); refuse one in no order."""
    steps = np.diff(times)
    if (steps >= 0).all():
        return times, price, size
    if (steps > 0).any():
        row = int(np.flatnonzero(steps < 0)[0]) + 1
        raise DataInvalid(f"{table.place(row)}: the time goes back; sort the file.")
    return (
        times[::-1],
        Decimals(price.mantissa[::-1], price.places),
        Decimals(size.mantissa[::-1], size.places),
    )


def _turnover(price: Decimals, size: Decimals, first: IntArray) -> tuple[IntArray | None, int]:
    """Return exact price x size summed by candle, or None where 64 bits do not hold it."""
    largest = int(price.mantissa.max()) * int(size.mantissa.sum())
    if largest > INT64_MAX:
        return None, 0
    return np.add.reduceat(price.mantissa * size.mantissa, first), price.places + size.places


def _spread(rows: IntArray, values: IntArray, count: int) -> IntArray:
    """Return *values* at *rows* of an array of *count* zeros."""
    spread = np.zeros(count, dtype=np.int64)
    spread[rows] = values
    return spread
