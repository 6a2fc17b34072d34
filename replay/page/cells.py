"""Columns of a run over time, rolled up into cells that fit a screen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.types.decisions import Action, Regime
from tracepaper.strategies.units import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = npt.NDArray[np.float64]
Block = dict[str, Floats]
"""Columns of one length by name; NaN is a value that is not known, times are exact as floats."""

TIME: Final = "open_time_ms"
WORDS: Final = tuple(dict.fromkeys([*map(str, Action), *GATES, *map(str, Regime)]))
"""What columns of words hold a place of; another version of the list makes other cells."""
_PLACES: Final = {word: float(place) for place, word in enumerate(WORDS)}
MULTIPLES: Final = (1, 2, 5, 10, 15, 30, 60, 120, 240, 720, 1440, 2880, 7200, 10080)
"""Lengths of a cell, in intervals of the run."""
_RULES: Final = {
    TIME: "cell",
    "open": "first",
    "high": "max",
    "low": "min",
    "close": "last",
    "volume": "sum",
    "exposed": "sum",
    "exposures": "sum",
    "grosses": "sum",
}
_RULE_OF: Final = {"spare": "min", "failed": "sum", "low": "min"}
"""Of columns ``prefix:name``; all others keep the last value that is known."""


def place_of(word: str | None) -> float:
    """Return the place of *word* in ``WORDS``; NaN where it is none of them."""
    return math.nan if word is None else _PLACES.get(word, math.nan)


def words_of(places: Floats) -> list[str | None]:
    """Return the words that *places* name, None where one names none."""
    return [WORDS[int(place)] if place >= 0 else None for place in places.tolist()]


def numbers_of(values: Floats) -> list[float | None]:
    """Return *values* as a list, None where one is not finite."""
    if np.isfinite(values).all():
        return list(values.tolist())
    return [value if math.isfinite(value) else None for value in values.tolist()]


def cell_length(interval_ms: int, span_ms: int, points: int) -> int:
    """Return the shortest length of a cell, in ms, by which *span_ms* makes at most *points*."""
    for step in MULTIPLES:
        if -(-span_ms // (interval_ms * step)) + 1 <= points:
            return interval_ms * step
    least = -(-span_ms // max(points - 1, 1))
    longest = max(interval_ms * MULTIPLES[-1], DAY_MS)
    return -(-least // longest) * longest


def rolled(block: Block, cell_ms: int) -> Block:
    """Return *block* in cells of *cell_ms*, which begin at whole multiples of it.

    Cells of cells are the cells of the bars: every column keeps what such a sum needs.
    """
    times = block[TIME]
    if not times.size:
        return block
    opens = np.floor(times / cell_ms) * cell_ms
    starts = np.flatnonzero(np.r_[True, np.diff(opens) > 0])
    if starts.size == times.size and np.array_equal(opens, times):
        return block
    ends = np.r_[starts[1:], times.size] - 1
    return {name: _rolled(name, column, starts, ends, opens) for name, column in block.items()}


def _rolled(
    name: str,
    column: Floats,
    starts: npt.NDArray[np.intp],
    ends: npt.NDArray[np.intp],
    opens: Floats,
) -> Floats:
    prefix, _, rest = name.partition(":")
    rule = _RULE_OF.get(prefix, "last") if rest else _RULES.get(name, "last")
    match rule:
        case "cell":
            return opens[starts]
        case "first":
            return column[starts]
        case "max":
            return np.fmax.reduceat(column, starts)
        case "min":
            return np.fmin.reduceat(column, starts)
        case "sum":
            return np.add.reduceat(np.nan_to_num(column), starts)
        case _:
            return _last_known(column, starts, ends)


def _last_known(column: Floats, starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp]) -> Floats:
    if not np.isnan(column).any():
        return column[ends]
    known = np.where(np.isnan(column), -1, np.arange(column.size))
    at = np.maximum.reduceat(known, starts)
    return np.where(at >= starts, column[np.maximum(at, 0)], np.nan)


def filled(column: Floats) -> Floats:
    """Return *column* with each unknown value as the one before it, or the first that is known."""
    known = ~np.isnan(column)
    if known.all() or not known.any():
        return column
    at = np.maximum.accumulate(np.where(known, np.arange(column.size), -1))
    return column[np.where(at < 0, int(np.argmax(known)), at)]


def joined(blocks: Sequence[Block]) -> Block:
    """Return *blocks* one after another; a column that one lacks is unknown there."""
    kept = [block for block in blocks if block[TIME].size] or list(blocks[:1])
    names = dict.fromkeys(name for block in kept for name in block)
    return {
        name: np.concatenate([block.get(name, np.full(block[TIME].size, np.nan)) for block in kept])
        for name in names
    }


def within(block: Block, from_ms: float, until_ms: float) -> Block:
    """Return the rows of *block* that open from *from_ms* on and before *until_ms*."""
    first, end = np.searchsorted(block[TIME], [from_ms, until_ms])
    return {name: column[first:end] for name, column in block.items()}


def from_rows(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> Block:
    """Return the columns *names* of *rows*, whose values are numbers or None."""
    if not rows:
        return {name: np.empty(0) for name in names}
    return {
        name: np.array(column, dtype=np.float64)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
