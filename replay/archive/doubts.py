"""Doubts about a file of candles: its content is impossible, or not what it seems.

A file is never reinterpreted silently. A doubt either rejects the file, in one sentence that says
what to do, or adds a note that ``tracepaper data check`` and the summary of a run show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from tracepaper.replay.archive.columns import ZONELESS, Decimals, IntArray, texts_of
from tracepaper.replay.archive.names import PRICES, TIME, interval_of
from tracepaper.replay.archive.tables import INVERSE_HELD, FileTable
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.sessions import month_calendar
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MINUTE_MS, WEEK_MS, count_of, duration, iso

SCALE_WRONG: Final = 10.0
"""A larger median ratio of high to low is that of a volume in the place of a price."""
MOST_WRONG: Final = 0.01
"""Above this share of wrong rows, a column is not what its name says."""
IN_MOST: Final = 0.5
"""From this share of impossible rows, the file is wrong and not its rows."""
REGULAR_STEPS: Final = 20
"""So many consecutive equal steps are an interval; holes of rare trading vary."""
JUMP_LEAST: Final = 1.45
JUMP_MOVES: Final = 30.0
"""The ratio of two prices in a row, or its inverse, and its usual moves, from which a split is
likely."""
OF_SHARES: Final = "for shares set market.asset, in a training features.asset, to stock"
"""What to do about a file of shares that is read as one of a market that never closes."""
MONTH_STEPS: Final = (26 * DAY_MS, 35 * DAY_MS)
"""The distance of two monthly candles, dated by their first session if they have one."""
NIGHT: Final = ("0 00", "0 01", "0 02", "0 03")
"""The hours of a Sunday in which clocks are turned."""
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


@dataclass(frozen=True, eq=False)
class Rows:
    """The exact columns of a *table*."""

    table: FileTable
    fields: Mapping[str, str]  # field → its column in the table
    times: IntArray
    columns: dict[str, Decimals]  # prices, volume and, if the file has it, turnover

    def select(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Rows:
        """Return the given rows, in the given order."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return replace(self, table=self.table.select(rows), times=self.times[rows], columns=columns)


# ---------------------------------------------------------------- names


def reject_contracts(table: FileTable, *, is_named: bool) -> None:
    """Raise ``DataInvalid`` if the path or content of *table* tells inverse or dated contracts.

    A dated contract may be traded if the user named it (*is_named*). BitMEX counts in contracts:
    its turnover ÷ volume is a price all the same.
    """
    if {"homenotional", *PRICES} <= {*table.columns}:
        raise table.refuse(
            "has the buckets of BitMEX, whose volume and turnover count contracts and whose times "
            "are those of closes",
            change="frame.assign(timestamp=pandas.to_datetime(frame.timestamp) - "
            "pandas.Timedelta('1min'), volume=frame.homeNotional, turnover=frame.foreignNotional)"
            ".drop(columns='homeNotional')",
        )
    path = table.path
    symbols = [path.name.split(".", 1)[0], *table.texts("symbol")]
    kinds = {text.lower() for text in path.parts[-7:-1]}
    for symbol in symbols:
        words = re.split(r"[-_ ]", symbol.lower())
        kinds |= {*words} if len(words) > 1 else set()  # CM is a share
    names = [symbol.upper() for symbol in symbols]
    if kinds & INVERSE_WORDS or any(map(INVERSE.search, names)):
        raise DataInvalid(f"{path} {INVERSE_HELD}.")
    if (kinds & DATED_WORDS or any(map(DATED.search, names))) and not is_named:
        raise DataInvalid(
            f"{path} holds a contract that is delivered on a date, which is no perpetual: write "
            f"NAME={path} to trade it under a name of its own."
        )


def reject_scaled(table: FileTable) -> None:
    """Raise ``DataInvalid`` if the prices are whole numbers of 10⁻⁹, as Databento writes them."""
    if not {"publisherid", *PRICES} <= {*table.columns}:
        return
    texts = [text for name in PRICES for text in texts_of(table.columns[name])]
    if all(map(str.isdecimal, texts)):
        prices = f"{{name: frame[name].astype(float) / 1e9 for name in {[*PRICES]}}}"
        raise table.refuse(
            "has the prices of Databento, which are whole numbers of a billionth",
            change=f"frame.assign(**{prices})",
        )


def of_zone(table: FileTable, name: str, what: str, zone: str) -> DataInvalid:
    """Return the refusal of local times in the column *name*: *what* they are, and their *zone*.

    The lines of pandas take New York's where none is known by its name.
    """
    if "/" not in zone:
        zone = "America/New_York"
        what += f" (write your zone for {zone})"
    column = table.written.get(name, name)
    times = f"pandas.to_datetime(frame[{column!r}])"
    zoned = f"{times}.dt.tz_localize({zone!r}, ambiguous='infer')"
    return table.refuse(what, change=f"frame.assign(**{{{column!r}: {zoned}}})")


# ---------------------------------------------------------------- rows


def reject_impossible(rows: Rows) -> None:
    """Raise ``DataInvalid`` at the first impossible candle."""
    price = {name: rows.columns[name].mantissa for name in PRICES}
    high, low = price["high"], price["low"]
    wrong = {f"{name} is not above zero": values <= 0 for name, values in price.items()}
    wrong["high is below low"] = high < low
    for name in ("open", "close"):
        outside = (price[name] > high) | (price[name] < low)
        wrong[f"{name} is outside the range from low to high"] = outside
    with np.errstate(divide="ignore", invalid="ignore"):
        is_volume = bool(np.median(high / low) > SCALE_WRONG)  # an outlier is none
    wrong["low is far below high, as in most rows"] = np.full(high.size, is_volume)
    remedies = {what: (rows.table.set_names, {"close": "NAME"}) for what in wrong}
    for name in [each for each in ("volume", "turnover") if each in rows.fields]:
        what = f"{name} is negative"  # -1 where there is none
        wrong[what] = rows.columns[name].mantissa < 0
        zero = ".assign(volume=0)" * (name == "volume")
        without = f"frame.drop(columns={rows.table.written[rows.fields[name]]!r}){zero}"
        remedies[what] = without, {name: ""}
    for what, bad in wrong.items():
        if bad.any():
            row, is_row = int(bad.argmax()), bool(bad.mean() < IN_MOST)
            change, choice = ("", {}) if is_row else remedies[what]
            raise rows.table.refuse(what, row=row, is_row=is_row, change=change, choice=choice)


def in_order(rows: Rows) -> Rows:
    """Return *rows* oldest first, each time once.

    A file that is newest first is reversed; equal repetitions are dropped. Raises ``DataInvalid``
    for other orders, and if two rows of one time differ.
    """
    steps = np.diff(rows.times)
    if steps.size and (steps <= 0).all() and (steps < 0).any():
        rows = rows.select(np.arange(rows.times.size)[::-1])
        steps = np.diff(rows.times)
        rows.table.notes.append("rows are newest first, turned")
    again, clock = np.flatnonzero(steps == 0) + 1, rows.table.written[rows.fields[TIME]]
    differs = np.zeros(steps.size, dtype=np.bool_)
    for column in rows.columns.values():
        differs |= np.diff(column.mantissa) != 0
    for row in (np.flatnonzero((steps < 0) | ((steps == 0) & differs)) + 1).tolist():
        before, now = rows.times[row - 1 : row + 1].tolist()
        night = f"{datetime.fromtimestamp(now / 1000, UTC):%w %H}" in NIGHT
        if ZONELESS in rows.table.notes and night and before - now <= HOUR_MS:
            twice = (
                f"has {iso(now)}, which comes twice, as on local clocks in the night when summer "
                "time ends"
            )
            raise of_zone(rows.table, rows.fields[TIME], twice, "")
        if before == now:
            raise DataInvalid(
                f"{rows.table.place(row)}: contradicts {rows.table.unit} "
                f"{rows.table.lines[row - 1]}, which has the same open time {iso(now)}; remove one "
                "of them."
            )
        raise rows.table.refuse(
            f"the time goes back from {iso(before)} to {iso(now)}, so sort the rows",
            row=row,
            change=f"frame.sort_values({clock!r})",
        )
    if not again.size:
        return rows
    rows.table.notes.append(f"{again.size} equal repetitions dropped")
    return rows.select(np.delete(np.arange(rows.times.size), again))


# ---------------------------------------------------------------- the interval


def interval_between(rows: Rows, *, is_fixed: bool = True) -> int:
    """Return the interval in ms: the most common step, or that in the file's name.

    The name's is used for a single candle, for months, and if the market seldom trades, so that
    most intervals have no candle. Bars of sessions differ in length: unless *is_fixed* the name
    comes first. Raises ``DataInvalid`` if the steps contradict the name.
    """
    name, steps = rows.table.path.name, np.diff(rows.times)
    values, counts = np.unique(steps, return_counts=True)
    stated = interval_of(name)
    if not steps.size and stated is None:
        raise DataInvalid(
            f"{rows.table.path} holds one candle, so its interval is not known: name the file "
            "with it, such as BTCUSDT_5m.csv, or give a longer one."
        )
    step = stated if stated and not (steps.size and is_fixed) else int(values[counts.argmax()])
    # Holes may be as frequent as adjacent months, so the shortest step decides.
    months = rows.times.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
    is_month = MONTH_STEPS[0] <= min([step, *values[:1]]) <= MONTH_STEPS[1]
    if (step == MONTH_MS and not steps.size) or (is_month and (np.diff(months) > 0).all()):
        return MONTH_MS
    stated = interval_of(name, step)
    if not is_fixed or stated in (None, step) or not steps.size:
        return step
    is_sparse = step % stated == 0 and bool((steps % step).any())
    if is_sparse and (steps % stated == 0).mean() >= 1 - MOST_WRONG:
        return stated
    raise DataInvalid(
        f"{rows.table.path} has candles {duration(step)} apart and names an interval of "
        f"{duration(stated)}: rename it by the interval that its candles have."
    )


def on_grid(rows: Rows, interval_ms: int) -> Rows:
    """Return the rows that open on the file's grid.

    A candle off the grid (after a restart of the venue) covers a different span than its
    neighbours. It is dropped with a note and leaves a hole. Raises ``DataInvalid`` if so many are
    off the grid that the interval is doubtful.
    """
    phases, usual = rows.times % interval_ms, 0
    if interval_ms == MONTH_MS:
        calendar = month_calendar()
        phases = rows.times - calendar.opens[calendar.places(rows.times)]
    else:
        values, counts = np.unique(phases, return_counts=True)
        usual = values[counts.argmax()]
    off = np.flatnonzero(phases != usual)
    if not off.size:
        return rows
    first = rows.table.place(int(off[0]))
    if off.size > MOST_WRONG * rows.times.size:
        grid = "months (UTC)" if interval_ms == MONTH_MS else f"{interval_ms // 1000} s"
        raise DataInvalid(
            f"{first}: opens at {iso(int(rows.times[off[0]]))}, off the file's grid of {grid}, "
            f"like {off.size} of {rows.times.size} rows; give a file of one fixed interval, or "
            f"{OF_SHARES}."
        )
    rows.table.notes.append(
        f"{count_of(off.size, 'candle')} off the grid dropped, the first at {first}"
    )
    return rows.select(np.delete(np.arange(rows.times.size), off))


# ---------------------------------------------------------------- what columns hold


def outside(rows: Rows, turnover: Decimals) -> npt.NDArray[np.bool_]:
    """Return for each row with volume whether *turnover* ÷ volume lies outside low to high.

    Half a unit of the last printed digit of either is tolerated.
    """
    volume = rows.columns["volume"]
    paid, size = turnover.floats, volume.floats
    half_paid, half_size = 0.5 * 10.0**-turnover.places, 0.5 * 10.0**-volume.places
    least = (paid - half_paid) / (size + half_size)
    with np.errstate(divide="ignore"):
        most = np.where(size > half_size, (paid + half_paid) / (size - half_size), np.inf)
    low, high = (rows.columns[name].floats for name in ("low", "high"))
    wrong: npt.NDArray[np.bool_] = (most < low * (1 - 1e-6)) | (least > high * (1 + 1e-6))
    return wrong[(size > 0) & (paid > 0)]


def reject_units(rows: Rows) -> None:
    """Raise ``DataInvalid`` unless turnover ÷ volume is a price, in coins and their quote coin."""
    table, turnover = rows.table, rows.columns.get("turnover")
    if turnover is None:
        return
    wrong = outside(rows, turnover)
    if wrong.sum() <= MOST_WRONG * wrong.size:
        return
    volume, paid = (table.written[rows.fields[name]] for name in ("volume", "turnover"))
    change = f"frame.assign(**{{{volume!r}: frame['NAME']}}).drop(columns={paid!r})"
    raise table.refuse(
        f"turnover ÷ volume lies outside low to high in {int(wrong.sum()):,} of {wrong.size:,} "
        "rows, so one of them counts something else (trades, contracts, coins)",
        change="" if table.bare else change,
        choice={"volume": "NAME", "turnover": ""},
    )


def reject_closes(rows: Rows, interval_ms: int) -> None:
    """Raise ``DataInvalid`` if the times are those of closes."""
    left = interval_ms - rows.times % interval_ms
    if interval_ms >= MINUTE_MS and (left <= 1_000).mean() > 1 - MOST_WRONG:
        column = rows.table.written[rows.fields[TIME]]
        opens = f"{rows.table.clock(rows.fields[TIME])}.dt.floor('{interval_ms}ms')"
        raise rows.table.refuse(
            f"its times, such as {iso(int(rows.times[0]))}, are those of closes",
            change=f"frame.assign(**{{{column!r}: {opens}}})",
            choice={TIME: "NAME"},
        )


def reject_changed(rows: Rows, interval_ms: int) -> None:
    """Raise ``DataInvalid`` if the interval changes within the file."""
    steps = np.diff(rows.times)
    starts = np.flatnonzero(np.diff(steps, prepend=0))
    starts = starts[np.diff(starts, append=steps.size) >= REGULAR_STEPS]  # of lasting steps
    lasting = {interval_ms, *steps[starts].tolist()}
    # A market may trade in every second of the intervals that the name gives.
    is_named = interval_of(rows.table.path.name) == interval_ms and interval_ms not in steps[starts]
    if interval_ms == MONTH_MS or len(lasting) <= 1 + is_named:
        return
    first = int(next(start for start in starts if steps[start] != interval_ms))
    raise DataInvalid(
        f"{rows.table.path}: candles are {duration(int(steps[first]))} apart from "
        f"{rows.table.unit} {rows.table.lines[first]} on, and {duration(interval_ms)} elsewhere: "
        "give a file of each interval."
    )


def lacks_weekends(rows: Rows, interval_ms: int) -> str:
    """Return a sentence about weeks of candles without one on a weekend, or ""."""
    if interval_ms > DAY_MS or rows.times[-1] - rows.times[0] < 2 * WEEK_MS:
        return ""
    weekdays = (rows.times // DAY_MS + 3) % 7  # 0 is Monday
    return "" if (weekdays >= 5).any() else f"no candle is of a weekend; {OF_SHARES}"


def jump(rows: Rows) -> str:
    """Return a sentence about prices that jump as by a split, or ""."""
    prices = {name: rows.columns[name].floats for name in PRICES}
    close = prices["close"]
    moves = np.abs(np.diff(close) / close[:-1])
    if (moves := moves[moves > 0]).size < 10:
        return ""
    # Open and close are far from both closes before, else one wrong price would be a jump.
    after, before = (prices["open"][2:], close[2:]), (close[1:-1], close[:-2])
    ratios = np.array([late / early for late in after for early in before])
    ratio = np.maximum(ratios, 1 / ratios).min(axis=0)
    far = (ratio > JUMP_LEAST) & (ratio - 1 > JUMP_MOVES * np.median(moves))
    places = np.flatnonzero(far & (np.diff(rows.times)[1:] <= WEEK_MS)) + 2
    if not places.size:
        return ""
    first = int(places[0])
    return (
        f"{count_of(places.size, 'jump')} of the price from candle to candle, the first at "
        f"{rows.table.place(first)}: {prices['open'][first]:g} after {close[first - 1]:g}; a split "
        "needs adjusted candles"
    )
