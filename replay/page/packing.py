"""Answers as compressed JSON, whose long columns of numbers are differences.

What a page holds within itself is gzip of JSON in UTF-8. In place of a long column of numbers JSON
has an object whose one key is U+0001: how many decimals the values have, and the differences
between them times ``10**decimals``, the first from nought; null stays null.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

MARK: Final = "\u0001"
LONG: Final = 64
"""Columns from this length on are written as differences."""
DECIMALS_MAX: Final = 10
WHOLE_MAX: Final = 2**51
LEVEL: Final = 9
_NUMBERS: Final = {int, float, type(None)}


def packed(record: Mapping[str, Any]) -> str:
    """Return *record*, plain values by the paths of their requests, as base64 of such bytes.

    Raises ``ValueError`` where a number outside of a long column is not finite.
    """
    plain = json.dumps(_in_differences(record), separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(plain.encode(), LEVEL, mtime=0)).decode()


def _in_differences(value: Any) -> Any:  # noqa: ANN401 - any value of JSON
    """Return *value* with differences in place of each long column of numbers."""
    if isinstance(value, Mapping):
        return {name: _in_differences(each) for name, each in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) >= LONG and set(map(type, value)) <= _NUMBERS:
        return _column(value)
    return [_in_differences(each) for each in value]


def _column(values: list[float | None]) -> list[float | None] | dict[str, list[int | None]]:
    """Return *values* as differences, as they are where that would change one."""
    column = np.array(values, dtype=np.float64)
    is_known = np.isfinite(column)
    numbers = column[is_known]
    for decimals in range(DECIMALS_MAX + 1):
        scaled = np.rint(numbers * 10.0**decimals)
        if np.abs(scaled).max(initial=0) >= WHOLE_MAX:
            break
        if np.array_equal(scaled / 10.0**decimals, numbers):
            steps = iter(np.diff(scaled.astype(np.int64), prepend=0).tolist())
            return {MARK: [decimals, *(next(steps) if each else None for each in is_known)]}
    return [each if finite else None for each, finite in zip(values, is_known, strict=True)]
