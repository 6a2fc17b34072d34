"""Answers as compressed bytes: JSON, and beside it its long columns as differences.

What a page holds within itself is gzip of JSON in UTF-8, a zero byte, and the columns. In place of
a long column JSON has an object whose one key is U+0001: ``at`` is the column's first byte after
the zero, ``count`` its length. With ``words`` each byte is a place in that list. Else ``bytes``
planes of ``count`` bytes, the lowest first, are zigzag-encoded differences from the value before,
at first from ``first``, of the values times ``10**decimals``. Where ``nulls`` stands, the bytes
from there are 1 for each value that is null.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.replay.run_columns import Floats

MARK: Final = "\u0001"
LONG: Final = 64
"""Columns from this length on are packed."""
DECIMALS_MAX: Final = 10
WHOLE_MAX: Final = 2**51
WORDS_MAX: Final = 256
LEVEL: Final = 9
_NUMBERS: Final = {int, float, type(None)}
_TEXTS: Final = {str, type(None)}


def packed(record: Mapping[str, Any]) -> str:
    """Return *record*, plain values by the paths of their requests, as base64 of such bytes.

    Raises ``ValueError`` where a number outside of a long column is not finite.
    """
    columns = _Columns()
    plain = json.dumps(columns.without(record), separators=(",", ":"), allow_nan=False).encode()
    whole = plain + b"\0" + columns.bytes if columns.bytes else plain
    return base64.b64encode(gzip.compress(whole, LEVEL, mtime=0)).decode()


class _Columns:
    """Long columns that were taken out of an answer; of equal ones the bytes are there once."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self._known: dict[bytes, int] = {}

    def without(self, value: Any) -> Any:  # noqa: ANN401 - any value of JSON
        """Return *value* with a reference in place of each long column."""
        if isinstance(value, Mapping):
            return {name: self.without(each) for name, each in value.items()}
        if not isinstance(value, list):
            return value
        if len(value) >= LONG:
            kinds = set(map(type, value))
            packed_ = None
            if kinds <= _TEXTS:
                packed_ = self._words(value)
            elif kinds <= _NUMBERS:
                packed_ = self._numbers(value)
            if packed_ is not None:
                return {MARK: packed_}
            if kinds <= _TEXTS | _NUMBERS:
                return [
                    None if isinstance(each, float) and not math.isfinite(each) else each
                    for each in value
                ]
        return [self.without(each) for each in value]

    def _words(self, values: list[str | None]) -> dict[str, Any] | None:
        words = dict.fromkeys(values)
        if len(words) > min(WORDS_MAX, len(values) // 4):
            return None
        places = {word: place for place, word in enumerate(words)}
        at = self._add(bytes(map(places.__getitem__, values)))
        return {"at": at, "count": len(values), "words": list(words)}

    def _numbers(self, values: list[float | None]) -> dict[str, Any] | None:
        column = np.array(values, dtype=np.float64)
        unknown = ~np.isfinite(column)
        if unknown.any():
            column = _carried(column, unknown)
        if (scaled := _whole(column)) is None:
            return None
        whole, decimals = scaled
        steps = np.diff(whole, prepend=whole[0])
        zigzag = ((steps << 1) ^ (steps >> 63)).astype("<u8")
        size = max(1, math.ceil(int(zigzag.max()).bit_length() / 8))
        planes = zigzag.view(np.uint8).reshape(-1, 8)[:, :size].T
        at = self._add(planes.tobytes())
        packed_ = {"at": at, "count": len(values), "first": int(whole[0]), "bytes": size}
        if decimals:
            packed_["decimals"] = decimals
        if unknown.any():
            packed_["nulls"] = self._add(unknown.astype(np.uint8).tobytes())
        return packed_

    def _add(self, column: bytes) -> int:
        if column not in self._known:
            self._known[column] = len(self.bytes)
            self.bytes += column
        return self._known[column]


def _carried(column: Floats, unknown: npt.NDArray[np.bool_]) -> Floats:
    """Return *column* with each unknown value as the one before it, 0 where there is none."""
    at = np.maximum.accumulate(np.where(unknown, -1, np.arange(column.size)))
    return np.where(at < 0, 0.0, column[np.maximum(at, 0)])


def _whole(column: Floats) -> tuple[npt.NDArray[np.int64], int] | None:
    """Return *column* as integers and their decimals; None where that would change a value."""
    for decimals in range(DECIMALS_MAX + 1):
        scaled = np.rint(column * 10.0**decimals)
        if np.abs(scaled).max() >= WHOLE_MAX:
            return None
        if np.array_equal(scaled / 10.0**decimals, column):
            return scaled.astype(np.int64), decimals
    return None
