"""The spans of a sweep: the whole of the data, or windows that walk forward over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tracepaper.replay.archive import Candles
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.market import DAY_MS

_UNITS: Final = {"d": DAY_MS, "h": 3_600_000, "w": 7 * DAY_MS}


class Span(NamedTuple):
    """UTC milliseconds: points are tried from *from_ms* to *until_ms*, the best to *test_ms*.

    None stands for an end of the data; without a test *test_ms* is None.
    """

    from_ms: int | None
    until_ms: int | None
    test_ms: int | None = None


def bounds(candles: Sequence[Candles], start: int | None, end: int | None) -> tuple[int, int]:
    """Return the first open and the end of what *candles* hold between *start* and *end*."""
    first = min(int(part.open_time_ms[0]) for part in candles)
    last = max(part.until_ms for part in candles)
    first, last = max(first, first if start is None else start), min(last, end or last)
    if first >= last:
        raise ConfigInvalid("Between start and end the data have no bar; give another period.")
    return first, last


def walk(given: object, first: int, last: int) -> list[Span]:
    """Return the windows of *given* (train and test) from *first* to *last*, each after the other.

    The tests follow one another without a hole; the last may be shorter, but not under half.
    """
    train, test = _lengths(given)
    found, begin = [], first
    while begin + train + test // 2 <= last:
        until = begin + train
        found.append(Span(begin, until, min(until + test, last)))
        begin += test
    if not found:
        raise ConfigInvalid(
            f"The data have {(last - first) / DAY_MS:.1f} days, too few for one window of "
            f"{train / DAY_MS:g} days to train and {test / DAY_MS:g} to test; give shorter ones."
        )
    return found


def _lengths(given: object) -> tuple[int, int]:
    if isinstance(given, str):
        given = tuple(given.split("/"))
    if not isinstance(given, Sequence) or len(given) != 2:
        raise _wrong(given)
    train, test = (_length(part, given) for part in given)
    return train, test


def _length(part: object, given: object) -> int:
    factor = DAY_MS
    if isinstance(part, str):
        text = part.strip()
        factor = _UNITS.get(text[-1:], DAY_MS)
        try:
            part = float(text.removesuffix("d").removesuffix("h").removesuffix("w"))
        except ValueError:
            raise _wrong(given) from None
    if not isinstance(part, (int, float)) or not 0 < part < float("inf"):
        raise _wrong(given)
    return int(part * factor)


def _wrong(given: object) -> ConfigInvalid:
    return ConfigInvalid(
        f"The windows are {shown(given)}; give days to train and to test, such as 90d/30d."
    )
