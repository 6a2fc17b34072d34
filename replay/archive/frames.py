"""A frame of polars or pandas, or columns by name, to ``Candles``: what a notebook has at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from tracepaper.replay.archive.candles import Candles
from tracepaper.replay.archive.decimals import Column
from tracepaper.replay.archive.names import normalise
from tracepaper.replay.archive.read import candles_of_table
from tracepaper.replay.archive.sessions import SessionsFor
from tracepaper.replay.archive.tables import RawTable
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types import Category

NAME: Final = Path("the frame")
"""What stands for the file in messages."""


def is_frame(value: object) -> bool:
    """Return whether *value* has named columns, as frames and dictionaries of columns have."""
    if isinstance(value, Mapping):
        return bool(value) and not any(
            isinstance(column, (str, Path, Mapping, Candles)) or hasattr(column, "columns")
            for column in value.values()
        )
    return hasattr(value, "columns") and hasattr(value, "__getitem__")


def candles_of_frame(
    frame: Any,  # noqa: ANN401 - of any library
    *,
    symbol: str | None = None,
    category: Category = Category.LINEAR,
    sessions_for: SessionsFor | None = None,
) -> Candles:
    """Return *frame* as candles, by the same names and rules as a file's columns.

    Times are instants (of UTC where they name no zone), numbers since 1970, or ISO text; a pandas
    frame may have them as its index. The symbol is the frame's own, else *symbol*. With
    *sessions_for* they are laid upon an exchange's sessions. Raises ``DataInvalid`` or
    ``ConfigInvalid`` with one sentence.
    """
    columns: dict[str, Column] = {}
    for name, values in _named(frame).items():
        if (plain := normalise(str(name))) in columns:
            raise DataInvalid(f"{NAME} has two columns {plain}: remove one of them.")
        columns[plain] = _column(str(name), values)
    sizes = {name: column.size for name, column in columns.items()}
    if not sizes or not min(sizes.values()):
        raise DataInvalid(f"{NAME} is empty: give one with candles.")
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise DataInvalid(f"{NAME} has columns of different lengths ({shown}): give rows alone.")
    rows = np.arange(1, next(iter(sizes.values())) + 1)
    try:
        return candles_of_table(
            RawTable(NAME, columns, rows, "row"),
            symbol=symbol,
            category=category,
            sessions_for=sessions_for,
        )
    except ConfigInvalid as error:
        if symbol is None and "does not name its symbol" in str(error):
            raise ConfigInvalid(
                'The frame does not name its symbol; write data={"BTCUSDT": frame}.'
            ) from None
        raise


def _named(frame: Any) -> dict[Any, Any]:  # noqa: ANN401 - of any library
    """Return the columns of *frame* by their names; the index of pandas is one where it has times.

    Columns of several levels, as downloads of many symbols have, are refused.
    """
    if isinstance(frame, Mapping):
        return dict(frame)
    names = list(frame.columns)
    if any(isinstance(name, tuple) for name in names):
        raise DataInvalid(
            f"{NAME} has columns of several levels: give one symbol's, frame[symbol]."
        )
    found = {name: frame[name] for name in names}
    index = getattr(frame, "index", None)
    if index is not None and getattr(getattr(index, "dtype", None), "kind", "") == "M":
        found = {"time": index, **found}
    return found


def _column(name: str, values: Any) -> Column:  # noqa: ANN401 - of any library
    """Return *values* as floats, integers (instants as microseconds) or text."""
    if getattr(getattr(values, "dtype", None), "tz", None) is not None:  # pandas with a zone
        values = getattr(values, "dt", values).tz_convert("UTC")
        values = getattr(values, "dt", values).tz_localize(None)
    array = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
    if array.ndim != 1:
        raise DataInvalid(f"{NAME}: {name} is no column of single values: give one value a row.")
    if array.dtype.kind == "M":
        if np.isnat(array).any():
            row = int(np.flatnonzero(np.isnat(array))[0]) + 1
            raise DataInvalid(f"{NAME}: row {row}: {name} is no time; correct or remove the row.")
        return array.astype("datetime64[us]").astype(np.int64)
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        # The shortest text of a single-precision number is what its maker meant.
        if array.dtype.itemsize < np.dtype(np.float64).itemsize:
            return np.array([str(value) for value in array], dtype=np.bytes_)
        return array.astype(np.float64)
    texts = [b"" if value is None else str(value).encode() for value in array.tolist()]
    return np.array(texts, dtype=np.bytes_)
