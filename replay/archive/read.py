"""``read_candles``: a file or a data frame to ``Candles``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.config.values import symbol_name
from tracepaper.replay.archive.candles import (
    Candles,
    Rows,
)
from tracepaper.replay.archive.columns import (
    DATE_WIDTH,
    INT64_MAX,
    OFFSET,
    ZONELESS,
    CellInvalidError,
    CellTooLongError,
    Column,
    Decimals,
    IntArray,
    are_instants,
    column_of,
    epoch_ms,
    parse,
    round_to_fit,
    texts_of,
)
from tracepaper.replay.archive.doubts import (
    MOST_WRONG,
    doubt,
    is_outside,
    jump,
    likely_order,
    reject_content,
    reject_contracts,
)
from tracepaper.replay.archive.formats import read_table
from tracepaper.replay.archive.layouts import (
    FRAME,
    INDEXES,
    MEANINGS,
    REQUIRED,
    TIME,
    ZONED,
    RawTable,
    SymbolUnknown,
    category_of,
    chosen_columns,
    distinct,
    holds_trades,
    interval_of,
    is_most,
    meanings,
    normalise,
    plain_table,
    reject_unclear,
    split_argument,
    symbol_of_table,
)
from tracepaper.replay.archive.sessions import SessionsFor, in_sessions
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.sessions import month_calendar
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MINUTE_MS, count_of, duration, iso

PRICES: Final = ("open", "high", "low", "close")
VOLUME_DECIMALS: Final = 11  # the most that an exchange was seen to send


class NamedFrame(NamedTuple):
    """A frame of polars or pandas, or a dictionary of columns, with its symbol."""

    symbol: str | None
    frame: Any


CandleInput: TypeAlias = str | Path | Candles | NamedFrame
"""A path or ``SYMBOL=PATH``, candles, or a frame."""


def read_candles(
    path: CandleInput,
    *,
    symbol: str | None = None,
    category: Category | str | None = None,
    columns: Sequence[str] = (),
    sessions_for: SessionsFor | None = None,
) -> Candles:
    """Return the exact candles of one file, oldest first, each open time once.

    *path* may be ``SYMBOL=PATH``, a frame, or candles, which are returned. The symbol comes from
    that, else from the file's name, its content, or *symbol*. The category comes from the argument,
    else from the path; the interval from the times; the format from the name. With *sessions_for*
    the candles are aligned to an exchange's sessions (``in_sessions``). *columns* choose a field's
    column (``close=Price``) or leave it out (``turnover=``). ``Candles.notes`` tell conversions,
    sorting and dropped rows.

    Raises ``DataInvalid``, with file and line, for an implausible file, and ``ConfigInvalid`` if no
    symbol is known.
    """
    chosen_columns(columns)
    if isinstance(path, Candles):
        if columns:
            raise ConfigInvalid(f"{path.path} is read already; leave columns out.")
        return path
    if is_frame(path):
        path = NamedFrame(None, path)
    if isinstance(path, NamedFrame):
        return candles_of_frame(
            path.frame,
            symbol=path.symbol or symbol,
            category=Category(category or Category.LINEAR),
            columns=columns,
            sessions_for=sessions_for,
        )
    if not isinstance(path, (str, Path)):
        raise ConfigInvalid(f"{shown(path)} is neither a path nor a frame; give candles as one.")
    if category is not None and category not in tuple(Category):
        raise ConfigInvalid(f"The category is {category!r}; write linear, spot or stock.")
    named, file = split_argument(path)
    given = symbol_name(symbol) if symbol else None
    if given and named and given != named:
        raise ConfigInvalid(f"--symbol is {given}, and {path} says {named}: leave one of them out.")
    table = read_table(file, columns=columns)
    reject_contracts(file, is_named=named is not None)
    table_symbol, notes = symbol_of_table(table, named, given)
    market = category_of(file) if category is None else Category(category)
    return _candles(
        plain_table(table, table_symbol, columns),
        table_symbol,
        market,
        [*notes],
        sessions_for=sessions_for,
        is_named=named is not None,
    )


def _candles(
    table: RawTable,
    symbol: str | None,
    category: Category,
    notes: list[str],
    *,
    sessions_for: SessionsFor | None = None,
    is_named: bool = False,
) -> Candles:
    """Return the candles of a plain *table*; append to *notes* about conversions."""
    reject_content(table, is_named=is_named)
    notes += table.notes
    symbol = symbol or ""
    fields = _fields(table, symbol)
    table = _without_blank(table, fields, notes)
    times = _times(table, fields, notes)
    if sessions_for is None and ZONELESS in notes:
        reject_zone(table)
    prices = _ordered(table, fields, _prices(table, fields), notes)
    volume = _volume(table, fields["volume"], notes)
    turnover = None
    paid = fields.get("turnover")
    if paid is not None and not _is_empty(table.columns[paid]):
        turnover = _volume(table, paid, notes, "turnover")
        if table.bare and _counts_trades(turnover, volume, prices):
            notes.append("the seventh column counts trades and is no turnover, left out")
            turnover = None
    rows = Rows(table, times, prices, volume, turnover)
    reject_impossible(rows)
    rows = in_order(rows, notes.append, is_zoneless=ZONELESS in notes)
    stated = interval_of(table.path.name)
    # Session bars differ in length, so the interval in the file's name comes first.
    step = stated if sessions_for is not None and stated else interval_between(rows, stated)
    if are_months(rows, step):
        step = MONTH_MS
    elif (by_name := interval_of(table.path.name, step)) and sessions_for is None:
        step = interval_believed(rows, step, by_name)
    doubt(rows, step, notes.append)
    if sessions_for is None:
        if sentence := jump(rows):
            notes.append(sentence)
        rows = on_grid(rows, step, notes.append)
    candles = Candles(
        path=str(table.path),
        category=category,
        symbol=symbol,
        interval_ms=step,
        price_decimals=prices["open"].places,
        volume_decimals=volume.places,
        turnover_decimals=turnover.places if turnover else 0,
        open_time_ms=rows.times,
        open=rows.prices["open"].mantissa,
        high=rows.prices["high"].mantissa,
        low=rows.prices["low"].mantissa,
        close=rows.prices["close"].mantissa,
        volume=rows.volume.mantissa,
        turnover=rows.turnover.mantissa if rows.turnover else None,
        notes=tuple(notes),
        calendar=month_calendar() if step == MONTH_MS else None,
    )
    return candles if sessions_for is None else in_sessions(candles, sessions_for)


def _fields(table: RawTable, symbol: str) -> dict[str, str]:
    """Return meaning → column name; raise ``DataInvalid`` naming missing columns."""
    fields = meanings(list(table.columns), symbol=symbol)
    if (
        (name := fields.get(TIME)) in INDEXES
        and texts_of(table.columns[name][:1])[0].isdigit()
        and not are_instants(table.columns[name])
    ):
        del fields[TIME]  # it counts the rows
    missing = [name for name in REQUIRED if name not in fields]
    if {"open", "high", "low"} <= {*missing} and "price" in table.columns:
        raise holds_trades(table.path)
    if missing:
        remedies = [f"name its columns, such as by {table.choice(**{missing[0]: 'NAME'})}"]
        if missing == ["volume"]:
            remedies.append(f"read candles without a volume by {table.choice(volume='')}")
        if table.path == FRAME and TIME in missing:
            remedies.append("let its index be the times")
        remedies.append("give candles")
        raise DataInvalid(
            f"{table.path} has no column {', '.join(missing)} (found "
            f"{', '.join(table.columns)}): {', or '.join(remedies)}."
        )
    return fields


def _times(table: RawTable, fields: dict[str, str], notes: list[str]) -> IntArray:
    """Return the open times in ms, preferably of a column of instants."""
    name = fields[TIME]
    if not are_instants(table.columns[name]):
        for other in MEANINGS[TIME]:
            if other in table.columns and _is_clock(table.columns[name], table.columns[other]):
                notes.append(f"times are those of {other}, as {name} names no zone")
                name = other
                break
    column = table.columns[name]
    zone = name if name in (*ZONED, "local_time") else ""
    if zone and not OFFSET.search(bytes(column[0])[DATE_WIDTH:]):
        raise DataInvalid(
            f"{table.path} has its times in {zone.rpartition('_')[2].upper()}, which says no "
            "offset: export it in UTC (GMT)."
            if zone != "local_time"
            else f"{table.path} has local times without an offset: export it in UTC (GMT)."
        )
    times, doubts = table.checked("the open time", epoch_ms, column)
    notes += doubts
    return times


def _is_clock(clock: Column, instants: Column) -> bool:
    """Return whether *clock* can be *instants* in another zone; else it is a counter."""
    if not are_instants(instants):
        return False
    with suppress(CellInvalidError):
        away = epoch_ms(instants, whole=False)[0] - epoch_ms(clock, whole=False)[0]
        return bool((away % MINUTE_MS == 0).all() and (np.abs(away) <= 2 * DAY_MS).all())
    return True


def reject_zone(table: RawTable) -> None:
    """Raise ``DataInvalid`` if a header or column names a zone other than UTC."""
    zones = [table.zone.strip()]
    for name in ZONE_COLUMNS:
        cells = table.columns.get(name)
        if cells is not None and cells.dtype.kind == "S":
            zones += texts_of(np.unique(cells))
    for zone in zones:
        if zone.upper() not in UTC_NAMES:
            raise DataInvalid(
                f"{table.path} has times of {zone} without an offset: export it in UTC "
                "(GMT), or name the calendar of its exchange."
            )


ZONE_COLUMNS: Final = ("timezone", "time_zone", "tz", "exchange_timezone")
UTC_NAMES: Final = frozenset({"", "UTC", "GMT", "Z", "ETC/UTC", "ETC/GMT", "ZULU", "UTC+0"})


def _prices(table: RawTable, fields: dict[str, str]) -> dict[str, Decimals]:
    """Return the four price columns at one scale, with the fewest decimals that hold all."""
    prices = {name: table.checked(name, parse, table.columns[fields[name]]) for name in PRICES}
    places = max(column.places for column in prices.values())
    return {name: table.checked(name, column.rescale, places) for name, column in prices.items()}


def _is_empty(column: Column) -> bool:
    if column.dtype.kind == "f":
        return bool(np.isnan(column.astype(np.float64)).all())
    return column.dtype.kind == "S" and bool((column == b"").all())


def _without_blank(table: RawTable, fields: dict[str, str], notes: list[str]) -> RawTable:
    """Return *table* without rows without a price, which are minutes without a trade."""
    blank = np.logical_and.reduce([_is_blank(table.columns[fields[name]]) for name in PRICES])
    if not blank.any() or blank.all():
        return table
    notes.append(f"{count_of(int(blank.sum()), 'row')} without a price left out, as holes")
    return table.select(~blank)


def _is_blank(column: Column) -> npt.NDArray[np.bool_]:
    if column.dtype.kind == "f":
        return np.isnan(column)
    if column.dtype.kind != "S":
        return np.zeros(column.size, dtype=np.bool_)
    first = column.view(np.uint8).reshape(column.size, -1)[:, 0]
    blank = (first < ord("0")) | (first > ord("9"))
    cells = np.char.lower(np.char.strip(column[blank].astype(np.bytes_)))
    blank[blank] = np.isin(cells, BLANK_CELLS)
    return blank


BLANK_CELLS: Final = np.array([b"", b"nan", b"null", b"none", b"na", b"n/a", b"-"])
"""Cells that vendors write for a minute without a trade."""


def _ordered(
    table: RawTable, fields: dict[str, str], prices: dict[str, Decimals], notes: list[str]
) -> dict[str, Decimals]:
    """Return *prices* in the order of their contents if a file without header has another one.

    Raises ``DataInvalid`` if most rows contradict the names of a header.
    """
    order = likely_order({name: column.mantissa for name, column in prices.items()})
    if order is None:
        return prices
    if not table.bare:
        choice = {
            held: fields[name] for held, name in zip(order, PRICES, strict=True) if held != name
        }
        raise DataInvalid(
            f"{table.path} has columns that hold {', '.join(order)} where it names them open, "
            f"high, low, close: correct the names, or add {table.choice(**choice)}."
        )
    notes.append(f"rows are {', '.join(order)}, in that order")
    held = dict(zip(order, prices.values(), strict=True))
    return {name: held[name] for name in PRICES}


def _counts_trades(turnover: Decimals, volume: Decimals, prices: dict[str, Decimals]) -> bool:
    """Return whether a nameless column holds whole numbers that cannot be turnover."""
    outside = is_outside(turnover, volume, prices["low"], prices["high"])
    return turnover.places == 0 and bool(outside.sum() > MOST_WRONG * outside.size)


def _volume(table: RawTable, name: str, notes: list[str], meaning: str = "volume") -> Decimals:
    """Return the volume; an entirely empty column (mark prices) counts as zero."""
    column = table.columns[name]
    if _is_empty(column):
        notes.append(f"{meaning} is empty throughout, taken as zero")
        return Decimals(np.zeros(column.size, dtype=np.int64), 0)
    try:
        return parse(column)
    except CellTooLongError:
        return _rounded(table, column, notes, meaning)
    except CellInvalidError:
        return table.checked(meaning, parse, column)


def _rounded(table: RawTable, column: Column, notes: list[str], meaning: str) -> Decimals:
    """Round a volume whose digits, from sums of doubles, do not fit in 64 bits."""
    largest = float(np.nanmax(np.abs(column.astype(np.float64))))
    places = VOLUME_DECIMALS
    while places and largest * 10.0**places > INT64_MAX / 2:
        places -= 1
    rounded = table.checked(meaning, round_to_fit, column, places)
    notes.append(f"{meaning} has more digits than 64 bits hold, rounded to {places} decimals")
    return rounded


# ---------------------------------------------------------------- what candles must be

Note = Callable[[str], None]
OFF_GRID_SHARE_MAX: Final = 0.01
"""Above this share of open times off the grid, the interval itself is doubtful."""


def reject_impossible(rows: Rows) -> None:
    """Raise ``DataInvalid`` at the first impossible candle."""
    price = {name: column.mantissa for name, column in rows.prices.items()}
    for name, values in price.items():
        _reject(rows, values <= 0, f"{name} is not above zero")
    _reject(rows, price["high"] < price["low"], "high is below low")
    for name in ("open", "close"):
        outside = (price[name] > price["high"]) | (price[name] < price["low"])
        _reject(rows, outside, f"{name} is outside the range from low to high")
    _reject(rows, rows.volume.mantissa < 0, "volume is negative")
    if rows.turnover:
        _reject(rows, rows.turnover.mantissa < 0, "turnover is negative")


def _reject(rows: Rows, bad: npt.NDArray[np.bool_], what: str) -> None:
    for row in np.flatnonzero(bad).tolist():
        if not is_most(bad):
            raise DataInvalid(f"{rows.table.place(row)}: {what}; correct or remove the row.")
        raise DataInvalid(
            f"{rows.table.place(row)}: {what}, and so in most rows, so the columns have another "
            "order: name them by --columns or in the first line, such as "
            "time,volume,close,high,low,open of Gate."
        )


def in_order(rows: Rows, note: Note, *, is_zoneless: bool = False) -> Rows:
    """Return *rows* oldest first, each time once.

    A file that is newest first is reversed; equal repetitions are dropped. Raises ``DataInvalid``
    for other orders, and if two rows of one time differ. If its times are texts without a zone
    (*is_zoneless*), an hour of a Sunday morning that comes twice is that of a local clock.
    """
    steps = np.diff(rows.times)
    if steps.size and (steps <= 0).all() and (steps < 0).any():
        rows = rows.select(np.arange(rows.times.size)[::-1])
        steps = np.diff(rows.times)
        note("rows are newest first, turned")
    back = np.flatnonzero(steps < 0)
    if back.size:
        row = int(back[0]) + 1
        if is_zoneless:
            reject_local(rows, row)
        raise DataInvalid(
            f"{rows.table.place(row)}: the time goes back from {iso(int(rows.times[row - 1]))} to "
            f"{iso(int(rows.times[row]))}; sort the file."
        )
    again = np.flatnonzero(steps == 0) + 1
    if not again.size:
        return rows
    columns = [*(column.mantissa for column in rows.prices.values()), rows.volume.mantissa]
    if rows.turnover:
        columns.append(rows.turnover.mantissa)
    for row in again.tolist():
        if any(column[row] != column[row - 1] for column in columns):
            if is_zoneless:
                reject_local(rows, row)
            raise DataInvalid(
                f"{rows.table.place(row)}: contradicts {rows.table.unit} "
                f"{rows.table.lines[row - 1]}, which has the same open time "
                f"{iso(int(rows.times[row]))}; remove one of them."
            )
    note(f"{again.size} equal repetitions dropped")
    return rows.select(np.delete(np.arange(rows.times.size), again))


def reject_local(rows: Rows, row: int) -> None:
    """Raise ``DataInvalid`` if the time of *row* repeats an hour in a night of changing clocks."""
    before, again = rows.times[row - 1 : row + 1].tolist()
    moment = datetime.fromtimestamp(again / 1000, UTC)
    if before - again > HOUR_MS or f"{moment:%w %H}" not in NIGHT:
        return
    raise DataInvalid(
        f"{rows.table.place(row)}: {iso(again)} comes twice, as on local clocks in the night when "
        "summer time ends: export it in UTC, or convert it, such as by pandas: frame[column] = "
        "pandas.to_datetime(frame[column]).dt.tz_localize('America/New_York', ambiguous='infer')."
    )


NIGHT: Final = ("0 00", "0 01", "0 02", "0 03")
"""The hours of a Sunday in which clocks are turned."""


def interval_between(rows: Rows, stated: int | None) -> int:
    """Return the interval in ms: the most common step, or *stated* for a single candle."""
    if rows.times.size > 1:
        steps, counts = np.unique(np.diff(rows.times), return_counts=True)
        return int(steps[np.argmax(counts)])
    if stated is None:
        raise DataInvalid(
            f"{rows.table.path} holds one candle, so its interval is not known: name the file "
            "with it, such as BTCUSDT_5m.csv, or give a longer one."
        )
    return stated


def interval_believed(rows: Rows, step: int, stated: int) -> int:
    """Return *stated*, the interval in the file's name, if the usual *step* is compatible with it.

    A market that seldom trades has no candle in most intervals. Raises ``DataInvalid`` if the steps
    contradict the name.
    """
    steps = np.diff(rows.times)
    if step == stated or not steps.size:
        return step
    is_sparse = step % stated == 0 and bool((steps % step).any())
    if is_sparse and (steps % stated == 0).mean() >= 1 - OFF_GRID_SHARE_MAX:
        return stated
    raise DataInvalid(
        f"{rows.table.path} has candles {duration(step)} apart and names an interval of "
        f"{duration(stated)}: rename it by the interval that its candles have."
    )


def are_months(rows: Rows, step: int) -> bool:
    """Return whether *rows*, usually *step* apart, are months: no two in one month.

    Holes may be as frequent as adjacent months, so the shortest step decides.
    """
    months = rows.times.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
    if step == MONTH_MS and rows.times.size == 1:
        return True
    shortest = int(np.diff(rows.times).min(initial=step))
    return (
        shortest >= MONTH_LEAST_MS
        and bool((np.diff(months) > 0).all())
        and (shortest <= MONTH_MOST_MS)
    )


def on_grid(rows: Rows, interval_ms: int, note: Note) -> Rows:
    """Return the rows that open on the file's grid.

    A candle off the grid (after a restart of the venue) covers a different span than its
    neighbours. It is dropped with a note and leaves a hole. Raises ``DataInvalid`` if so many are
    off the grid that the interval is doubtful.
    """
    if interval_ms == MONTH_MS:
        calendar = month_calendar()
        off = np.flatnonzero(calendar.opens[calendar.places(rows.times)] != rows.times)
    else:
        phases = rows.times % interval_ms
        values, counts = np.unique(phases, return_counts=True)
        off = np.flatnonzero(phases != values[np.argmax(counts)])
    if not off.size:
        return rows
    row = int(off[0])
    grid = "months (UTC)" if interval_ms == MONTH_MS else f"{interval_ms // 1000} s"
    what = f"opens at {iso(int(rows.times[row]))}, off the file's grid of {grid}"
    if off.size > OFF_GRID_SHARE_MAX * rows.times.size:
        raise DataInvalid(
            f"{rows.table.place(row)}: {what}, like {off.size} of {rows.times.size} rows; give a "
            "file of one fixed interval, or name the calendar of its exchange."
        )
    note(
        f"{count_of(off.size, 'candle')} off the grid dropped, the first at {rows.table.place(row)}"
    )
    return rows.select(np.delete(np.arange(rows.times.size), off))


MONTH_LEAST_MS: Final = 26 * DAY_MS
MONTH_MOST_MS: Final = 35 * DAY_MS
"""The distance of two monthly candles, dated by their first session if they have one."""


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
    columns: Sequence[str] = (),
    sessions_for: SessionsFor | None = None,
) -> Candles:
    """Return *frame* as candles, by the names, *columns* and rules of files.

    Times are instants (UTC if they have no zone), numbers since 1970, or ISO text; in pandas they
    may be the index. The symbol is that in the frame, else *symbol*. With *sessions_for* the
    candles are aligned to an exchange's sessions. Raises ``DataInvalid`` or ``ConfigInvalid``.
    """
    named = _named(frame)
    held = {
        plain: column_of(FRAME, str(name), values)
        for plain, (name, values) in zip(
            distinct(FRAME, [str(name) for name in named]), named.items(), strict=True
        )
    }
    sizes = {name: column.size for name, column in held.items()}
    if not sizes or not min(sizes.values()):
        raise DataInvalid(f"{FRAME} is empty: give one with candles.")
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise DataInvalid(f"{FRAME} has columns of different lengths ({shown}): give rows alone.")
    rows = np.arange(1, next(iter(sizes.values())) + 1)
    table = reject_unclear(RawTable(FRAME, held, rows, "row"), columns)
    try:
        symbol, notes = symbol_of_table(table, None, symbol_name(symbol) if symbol else None)
    except SymbolUnknown:
        raise ConfigInvalid(
            'The frame does not name its symbol; write data={"BTCUSDT": frame}.'
        ) from None
    table = plain_table(table, symbol, columns)
    return _candles(table, symbol, category, [*notes], sessions_for=sessions_for)


def _named(frame: Any) -> dict[Any, Any]:  # noqa: ANN401 - of any library
    """Return the columns of *frame* by name, with a pandas index of times as a column.

    An index of any type is tried if no column has a name of times. Columns of several levels, as in
    downloads of many symbols, are rejected.
    """
    if isinstance(frame, Mapping):
        return dict(frame)
    names = list(frame.columns)
    if any(isinstance(name, tuple) for name in names):
        raise DataInvalid(
            f"{FRAME} has columns of several levels: give one symbol's, frame[symbol]."
        )
    columns = {name: frame[name] for name in names}
    index = getattr(frame, "index", None)
    kind = getattr(getattr(index, "dtype", None), "kind", "")
    if kind == "M":
        return {"time": index, **columns}
    if kind and not any(normalise(str(name)) in MEANINGS[TIME] for name in names):
        return {getattr(index, "name", None) or INDEXES[0]: index, **columns}
    return columns
