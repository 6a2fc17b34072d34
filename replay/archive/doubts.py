"""Doubts about a file of candles: its content is impossible, or not what it seems.

A file is never reinterpreted silently. A doubt either rejects the file, in one sentence that says
what to do, or adds a note that ``tracepaper data check`` and the summary of a run show.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tracepaper.replay.archive.columns import texts_of
from tracepaper.replay.archive.layouts import SYMBOL_COLUMNS, interval_of
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.units import MINUTE_MS, WEEK_MS, count_of, duration, iso

if TYPE_CHECKING:
    from tracepaper.replay.archive.candles import Rows
    from tracepaper.replay.archive.columns import Decimals
    from tracepaper.replay.archive.layouts import RawTable

PRICES: Final = ("open", "high", "low", "close")
SCALE_MOST: Final = 2.0
"""The maximum median ratio of high to low; a volume among prices exceeds it."""
MOST_WRONG: Final = 0.01
"""Above this share of wrong rows, a column is not what its name says."""
REGULAR_STEPS: Final = 20
"""So many consecutive equal steps are an interval; holes of rare trading vary."""
OUTLIER_RANGES: Final = 30.0
"""A close so many median true ranges away, with a return at the next bar, is an error."""
JUMP_LEAST: Final = 1.45
"""The ratio of two prices in a row, or its inverse, from which a split is likely, if it also
exceeds many usual moves."""
_DATE: Final = (
    r"(?:(?:19|2[1-9]|3\d|20(?!1[0-2]))(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    r"|\d{1,2}(?:JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC)\d{2,4})(?=$|[-_. ])"
)
"""``240628`` and ``27JUN25``; but ``202401`` and ``201112`` are months in file names."""
DATED: Final = re.compile(rf"[A-Z]{{2,}}[-_]{_DATE}")
"""Contracts delivered on a date: ``BTCUSDT_240628``, ``BTC-27JUN25``."""
INVERSE: Final = re.compile(
    r"USD_PERP|USD[-_]SWAP|USD[-_]PERPETUAL|(?:BTC|ETH|XBT)-PERPETUAL|(?:^|[-_ .])(?:PI|FI)_[A-Z]"
    rf"|USD_{_DATE}|(?:^|[^A-Z0-9])([A-Z0-9]{{2,10}})[-_/]USD[-_:]\1(?![A-Z0-9])"
    r"|(?:^|[-_ .])COIN[-_ ]?M(?=$|[-_ .])"
)
"""Names of contracts that are margined and settled in the coin."""
DATED_WORDS: Final = frozenset({"delivery", "quarter", "quarterly"})
INVERSE_WORDS: Final = frozenset({"cm", "coinm", "coin-m", "inverse", "dapi"})


class Doubt(NamedTuple):
    """A doubt: *find* returns a sentence without the file's name, or an empty text."""

    find: Callable[[Rows, int], str]  # arguments: rows in time order, their interval in ms
    rejects: bool  # rejects the file; else adds a note


# ---------------------------------------------------------------- names


def reject_contracts(path: Path, *, is_named: bool) -> None:
    """Raise ``DataInvalid`` if the name of *path* tells inverse or dated contracts.

    A dated contract may be traded if the user named it (*is_named*).
    """
    folders = {part.lower() for part in path.parts[-7:-1]}
    _reject_contract(path, path.name.split(".", 1)[0], folders, is_named=is_named)


def reject_content(table: RawTable, *, is_named: bool) -> None:
    """Raise ``DataInvalid`` if a symbol or category in *table* tells such contracts."""
    _reject_contract(table.path, table.symbol, {table.kind.lower()}, is_named=is_named)
    for name in (*SYMBOL_COLUMNS, "category"):
        if name not in table.columns:
            continue
        for text in texts_of(np.unique(table.columns[name])):
            kinds = {text.lower()} if name == "category" else set()
            _reject_contract(table.path, text, kinds, is_named=is_named)


def _reject_contract(path: Path, text: str, kinds: set[str], *, is_named: bool) -> None:
    stem = text.upper()
    words = {word.lower() for word in re.split(r"[-_ ]", stem)}
    if len(words) == 1:  # CM is a share
        words = set()
    if INVERSE.search(stem) or (words | kinds) & INVERSE_WORDS:
        raise DataInvalid(
            f"{path} holds contracts that are margined and paid in coin (inverse), and only linear "
            "contracts, spot and shares can be traded: give the file of a USDT or USDC contract, "
            "or move it out of a folder of that name."
        )
    if (DATED.search(stem) or words & DATED_WORDS) and not is_named:
        raise DataInvalid(
            f"{path} holds a contract that is delivered on a date, which is no perpetual: write "
            f"NAME={path} to trade it under a name of its own."
        )


# ---------------------------------------------------------------- rows


def _float(column: Decimals) -> npt.NDArray[np.float64]:
    return column.mantissa / 10.0**column.places


def is_outside(
    turnover: Decimals, volume: Decimals, low: Decimals, high: Decimals
) -> npt.NDArray[np.bool_]:
    """Return, for rows with volume, whether turnover ÷ volume lies outside low to high.

    Half a unit of the last printed digit of either is tolerated.
    """
    paid, size = _float(turnover), _float(volume)
    half_paid, half_size = 0.5 * 10.0**-turnover.places, 0.5 * 10.0**-volume.places
    traded = (size > 0) & (paid > 0)
    least = (paid - half_paid) / (size + half_size)
    with np.errstate(divide="ignore"):
        most = np.where(size > half_size, (paid + half_paid) / (size - half_size), np.inf)
    slack = 1e-6
    outside = (most < _float(low) * (1 - slack)) | (least > _float(high) * (1 + slack))
    judged: npt.NDArray[np.bool_] = outside[traded]
    return judged


def _turnover(rows: Rows, _interval_ms: int) -> str:
    if rows.turnover is None:
        return ""
    outside = is_outside(rows.turnover, rows.volume, rows.prices["low"], rows.prices["high"])
    if outside.sum() <= MOST_WRONG * outside.size:
        return ""
    exchanged = is_outside(rows.volume, rows.turnover, rows.prices["low"], rows.prices["high"])
    if exchanged.sum() <= MOST_WRONG * exchanged.size:
        return (
            "volume and turnover are exchanged, as volume ÷ turnover lies inside low to high: name "
            f"their columns by {rows.table.choice(volume='NAME', turnover='NAME')}"
        )
    return (
        f"turnover ÷ volume lies outside low to high in {int(outside.sum()):,} of {outside.size:,} "
        "rows, so one of them counts something else (trades, contracts, or coins): leave the "
        f"column out by {rows.table.choice(turnover='')}, or give the volume in coins"
    )


def _phase(rows: Rows, interval_ms: int) -> str:
    if interval_ms < MINUTE_MS:
        return ""
    left = interval_ms - rows.times % interval_ms
    if not ((left < 1_000) | (left == 1_000)).mean() > 1 - MOST_WRONG:
        return ""
    return (
        f"its times, such as {iso(int(rows.times[0]))}, are those of closes: give the open time of "
        f"each candle, or name its column by {rows.table.choice(open_time='NAME')}"
    )


def _changed(rows: Rows, interval_ms: int) -> str:
    steps = np.diff(rows.times)
    starts = np.flatnonzero(np.diff(steps, prepend=0))
    lasting = np.diff(starts, append=steps.size) >= REGULAR_STEPS
    other = starts[lasting & (steps[starts] != interval_ms)]
    if interval_ms == MONTH_MS or not other.size:
        return ""
    is_named = interval_of(rows.table.path.name) == interval_ms
    if is_named and np.unique(steps[starts[lasting]]).size == 1:
        return ""  # a market that trades in every second interval
    first = int(other[0])
    return (
        f"candles are {duration(int(steps[first]))} apart from {rows.table.unit} "
        f"{rows.table.lines[first]} on, and {duration(interval_ms)} elsewhere: give a file of each "
        "interval"
    )


def _outlier(rows: Rows, _interval_ms: int) -> str:
    close = _float(rows.prices["close"])
    if close.size < 3:
        return ""
    before = close[:-1]
    ranges = np.maximum(_float(rows.prices["high"])[1:], before)
    ranges -= np.minimum(_float(rows.prices["low"])[1:], before)
    moved = ranges[ranges > 0]
    if moved.size < 10:
        return ""
    away, back = np.abs(np.diff(close))[:-1], np.abs(close[2:] - close[:-2])
    far = (away > OUTLIER_RANGES * np.median(moved)) & (away > 0.1 * close[:-2])
    places = np.flatnonzero(far & (back < 0.1 * away)) + 1
    if not places.size:
        return ""
    first = int(places[0])
    return (
        f"{places.size} closes lie far from both neighbours, the first at "
        f"{rows.table.place(first)}: {close[first]:g} between {close[first - 1]:g} and "
        f"{close[first + 1]:g}"
    )


def jump(rows: Rows) -> str:
    """Return a sentence about prices that jump as by a split, or "".

    Candles in sessions do without: their run names a suspected split, and knows its actions.
    """
    prices = {name: _float(rows.prices[name]) for name in PRICES}
    close = prices["close"]
    moves = np.abs(np.diff(close) / close[:-1])
    if (moves := moves[moves > 0]).size < 10:
        return ""
    # Open and close are far from both closes before, else one wrong price would be a jump.
    after, before = (prices["open"][2:], close[2:]), (close[1:-1], close[:-2])
    ratios = np.array([late / early for late in after for early in before])
    ratio = np.maximum(ratios, 1 / ratios).min(axis=0)
    far = (ratio > JUMP_LEAST) & (ratio - 1 > OUTLIER_RANGES * np.median(moves))
    places = np.flatnonzero(far & (np.diff(rows.times)[1:] <= WEEK_MS)) + 2
    if not places.size:
        return ""
    first = int(places[0])
    return (
        f"{count_of(places.size, 'jump')} of the price from candle to candle, the first at "
        f"{rows.table.place(first)}: {prices['open'][first]:g} after {close[first - 1]:g}; a split "
        "needs its action (--actions), or adjusted candles"
    )


DOUBTS: Final = (
    Doubt(_turnover, rejects=True),
    Doubt(_phase, rejects=True),
    Doubt(_changed, rejects=True),
    Doubt(_outlier, rejects=False),
)
"""Every doubt about rows, in the order of checking."""


def doubt(rows: Rows, interval_ms: int, note: Callable[[str], None]) -> None:
    """Check all doubts about *rows*: raise ``DataInvalid``, or *note* a sentence."""
    for each in DOUBTS:
        if not (sentence := each.find(rows, interval_ms)):
            continue
        if each.rejects:
            raise DataInvalid(f"{rows.table.path}: {sentence}.")
        note(sentence)


def likely_order(prices: dict[str, npt.NDArray[np.int64]]) -> tuple[str, ...] | None:
    """Return the order of four price columns if it is not open, high, low, close.

    None if half the rows are valid candles in that order, or no other order fits nearly all rows.
    """
    columns = [prices[name] for name in PRICES]
    if (usual := _breaks(columns)) <= columns[0].size // 2:
        return None
    fitting = []
    for order in permutations(range(4)):
        arranged = [columns[order.index(place)] for place in range(4)]
        names = tuple(PRICES[place] for place in order)
        # Exchanged open and close fit equally well; vendors write the open first.
        is_usual = names.index("open") < names.index("close")
        high, low = np.maximum(arranged[1], 1), np.maximum(arranged[2], 1)
        is_usual = is_usual and bool(np.median(high / low) < SCALE_MOST)
        if is_usual and (broken := _breaks(arranged)) <= usual // 4:
            fitting.append((broken, names))
    return min(fitting)[1] if fitting else None


def _breaks(columns: list[npt.NDArray[np.int64]]) -> int:
    """Return the number of rows in which the columns cannot be open, high, low and close."""
    first, high, low, last = columns
    return int(((high < np.maximum(first, last)) | (low > np.minimum(first, last))).sum())
