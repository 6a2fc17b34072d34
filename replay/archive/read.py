"""``read_candles``: a file or a data frame to ``Candles``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.config.values import symbol_name
from tracepaper.replay.archive import doubts
from tracepaper.replay.archive.candles import Candles
from tracepaper.replay.archive.columns import (
    DIGITS,
    FLOAT_LIMIT,
    INT64_MAX,
    ZONELESS,
    CellInvalidError,
    CellTooLongError,
    Column,
    Decimals,
    IntArray,
    are_instants,
    epoch_ms,
    fitting,
    floats_of,
    rounded,
    texts_of,
)
from tracepaper.replay.archive.doubts import Rows
from tracepaper.replay.archive.names import (
    FIELDS,
    KNOWN_SYMBOL,
    NAMES,
    PRICES,
    REQUIRED,
    TIME,
    category_of,
    coins_of,
    plain_name,
    split_argument,
    symbol_of,
    symbol_text,
)
from tracepaper.replay.archive.tables import FRAME, FileTable, Result, read_table, table_of_frame
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.sessions import month_calendar
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import DAY_MS, MINUTE_MS, count_of

SYMBOLS_SHOWN: Final = 8
BLANK_CELLS: Final = np.array([b"", b"nan", b"null", b"none", b"na", b"n/a", b"-"])
"""Cells that vendors write for a minute without a trade."""
UTC_NAMES: Final = ("", "UTC", "GMT")
THOUSANDS: Final = re.compile(rb"[+-]?\d{1,3}(,\d{3})*")
TRADES: Final = (
    "holds trades and no candles: make candles of its columns time, price and quantity, such as by "
    "pandas: frame.index = pandas.to_datetime(frame.time, unit='ms'); "
    "frame.price.resample('1min').ohlc().assign(volume=frame.quantity.resample('1min').sum())"
    ".dropna().to_csv('BTCUSDT_1m.csv')."
)


class NamedFrame(NamedTuple):
    """A frame of polars or pandas, or a dictionary of columns, with its symbol."""

    symbol: str | None
    frame: Any


CandleInput: TypeAlias = str | Path | Candles | NamedFrame
"""A path or ``SYMBOL=PATH``, candles, or a frame."""


def is_frame(value: object) -> bool:
    """Return whether *value* has named columns, as frames and dictionaries of columns have."""
    if isinstance(value, Mapping):
        return bool(value) and not any(
            isinstance(column, (str, Path, Mapping, Candles)) or hasattr(column, "columns")
            for column in value.values()
        )
    return hasattr(value, "columns") and hasattr(value, "__getitem__")


def read_candles(
    path: CandleInput,
    *,
    category: Category | str | None = None,
    columns: Sequence[str] = (),
) -> Candles:
    """Return the exact candles of one file or frame, oldest first, each open time once.

    *path* may be ``SYMBOL=PATH``, a frame, or candles, which are returned (in sessions if they are
    of a share). The symbol comes from
    that, else from the file's name or its content. The category comes from the argument,
    else from the path; the interval from the times; the format from the name. The candles of a
    share have sessions (``Candles.in_sessions``). *columns* choose a field's column
    (``close=Price``) or leave it out (``turnover=``). ``Candles.notes`` tell conversions, sorting
    and dropped rows.

    Raises ``DataInvalid``, with file and line, for an implausible file, and ``ConfigInvalid`` if no
    symbol is known.
    """
    chosen = chosen_columns(columns)
    if isinstance(path, Candles):
        if columns:
            raise ConfigInvalid(f"{path.path} is read already; leave columns out.")
        if category == Category.STOCK and path.category is not Category.STOCK:
            return replace(path, category=Category.STOCK).in_sessions()
        return path
    named = given = None
    if isinstance(path, NamedFrame) or is_frame(path):
        frame = path if isinstance(path, NamedFrame) else NamedFrame(None, path)
        table = table_of_frame(frame.frame)
        given = symbol_name(frame.symbol) if frame.symbol else None
        category = category or Category.LINEAR
    elif not isinstance(path, (str, Path)):
        raise ConfigInvalid(f"{shown(path)} is neither a path nor a frame; give candles as one.")
    else:
        if category is not None and category not in tuple(Category):
            raise ConfigInvalid(f"The category is {category!r}; write linear, spot or stock.")
        named, file = split_argument(path)
        table = read_table(file)
    table, symbol = of_one_symbol(table, named, given)
    doubts.reject_contracts(table, is_named=named is not None)
    fields = _fields(table, symbol, chosen)
    held = Category(category or category_of(table.path))
    candles = _candles(_rows(table, fields), symbol, held)
    return candles.in_sessions() if held is Category.STOCK else candles


def _candles(rows: Rows, symbol: str, category: Category) -> Candles:
    """Return *rows* as candles, unless a doubt rejects them."""
    is_fixed = category is not Category.STOCK  # a night is no multiple of a bar
    doubts.reject_impossible(rows)
    rows = doubts.in_order(rows)
    step = doubts.interval_between(rows, is_fixed=is_fixed)
    doubts.reject_units(rows)
    doubts.reject_closes(rows, step)
    doubts.reject_changed(rows, step)
    rows.table.notes.extend(filter(None, [doubts.jump(rows)]))
    if is_fixed:
        rows.table.notes.extend(filter(None, [doubts.lacks_weekends(rows, step)]))
        rows = doubts.on_grid(rows, step)
    turnover = rows.columns.get("turnover")
    return Candles(
        path=f"{FRAME} of {symbol}" if rows.table.path == FRAME else str(rows.table.path),
        category=category,
        symbol=symbol,
        interval_ms=step,
        price_decimals=rows.columns["open"].places,
        volume_decimals=rows.columns["volume"].places,
        turnover_decimals=turnover.places if turnover else 0,
        open_time_ms=rows.times,
        **{name: rows.columns[name].mantissa for name in (*PRICES, "volume")},
        turnover=turnover.mantissa if turnover else None,
        notes=tuple(rows.table.notes),
        calendar=month_calendar() if step == MONTH_MS else None,
    )


def of_one_symbol(
    table: FileTable, named: str | None, given: str | None = None
) -> tuple[FileTable, str]:
    """Return the rows of one symbol, and it: *named* before the path, or the table's own.

    A frame has the symbol *given* with it. Raises ``ConfigInvalid`` unless name and content agree
    on one symbol of a known form; only ``SYMBOL=PATH`` may rename it, which is noted, or choose
    one of several.
    """
    held = {symbol_text(text) for text in table.texts("symbol")} - {""}
    own = symbol_of(table.path.name) or given or ""
    if len(held) > 1 and (wanted := named or own) in held:
        column = table.columns[table.find({"symbol": NAMES["symbol"]})["symbol"]]
        is_wanted = np.array([symbol_text(text) == wanted for text in texts_of(column)])
        table.notes.append(f"{len(held) - 1} other symbols of the file left out")
        return table.select(is_wanted), wanted
    names = sorted({*held, own} - {"", named or ""})
    listed = ", ".join(names[:SYMBOLS_SHOWN]) + " …" * (len(names) > SYMBOLS_SHOWN)
    if named and len(held) < 2:
        if names:
            renamed = f"the file names {listed}; it is read as {named} because of SYMBOL=PATH"
            table.notes.append(renamed)
        return table, named
    remedy = 'data={"BTCUSDT": frame}' if table.path == FRAME else f"SYMBOL={table.path}"
    if not names:
        raise ConfigInvalid(f"{table.path} does not name its symbol: write {remedy}.")
    if len(names) > 1 or not KNOWN_SYMBOL.fullmatch(names[0]):
        raise ConfigInvalid(
            f"{table.path} holds {listed}: choose one by {remedy}, in a form such as BTCUSDT."
        )
    return table, names[0]


# ---------------------------------------------------------------- fields


def chosen_columns(columns: Sequence[str]) -> dict[str, str]:
    """Return field → column name for ``close=Price``; ``turnover=`` leaves a field out.

    Raises ``ConfigInvalid`` for an entry in another form, another field, or a field twice.
    """
    chosen: dict[str, str] = {}
    for text in columns:
        field, equals, name = (part.strip() for part in text.partition("="))
        is_needed = field in REQUIRED[:-1] and not name
        if not equals or field not in FIELDS or field in chosen or is_needed:
            raise ConfigInvalid(
                f"--columns is {text}; write FIELD=NAME, once for a FIELD of {', '.join(FIELDS)}; "
                "volume= and turnover= leave one out."
            )
        chosen[field] = name
    return chosen


def _fields(table: FileTable, symbol: str, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return field → column name, and note what was chosen.

    Raises ``DataInvalid``, naming the columns, if a field has none or two.
    """
    columns, fields, changes = table.columns, dict[str, str](), []
    for field, name in chosen.items():
        plain = name if name in columns else plain_name(name)
        if name and plain not in columns:
            raise DataInvalid(
                f"{table.path} has no column {name} (found {', '.join(table.written.values())}): "
                f"name another for {field}."
            )
        fields |= {field: plain} if name else {}
        changes.append(f"{field} is {plain}" if name else f"{field} is left out")
    if changes:
        table.notes.append(f"{' and '.join(changes)}, by --columns")
    free = replace(table, columns={n: c for n, c in columns.items() if n not in fields.values()})
    coins = zip(("volume", "turnover"), coins_of(symbol), strict=True)
    of_coin = {field: f"volume{coin.lower()}" for field, coin in coins}  # Volume BTC
    fields |= free.find(
        {
            field: (*NAMES[field], of_coin.get(field, field))
            for field in FIELDS
            if field not in chosen
        }
    )
    _reject_missing(table, [field for field in REQUIRED if field not in {*fields, *chosen}])
    clock = columns[fields[TIME]]
    for other in () if TIME in chosen or are_instants(clock) else NAMES[TIME]:
        if other in free.columns and _is_clock(clock, columns[other]):
            note = f"times are those of {other}, as {fields[TIME]} names no zone"
            table.notes.append(note)
            return {**fields, TIME: other}
    return fields


def _is_clock(clock: Column, instants: Column) -> bool:
    """Return whether *clock* can be *instants* in another zone; else these are no open times."""
    if not are_instants(instants):
        return False
    with suppress(CellInvalidError):
        away = epoch_ms(instants, whole=False)[0] - epoch_ms(clock, whole=False)[0]
        return bool((away % MINUTE_MS == 0).all() and (np.abs(away) <= 2 * DAY_MS).all())
    return True


def _reject_missing(table: FileTable, missing: Sequence[str]) -> None:
    """Raise ``DataInvalid`` if the table has no column of the fields in *missing*, or trades."""
    firsts = {texts_of(cells[:1])[0].lower() for cells in table.columns.values()}
    is_of_trades = "price" in table.columns and {*PRICES[:3]} <= {*missing}
    if is_of_trades or (table.bare and firsts & {"true", "false"}):  # flags of Binance's trades
        raise DataInvalid(f"{table.path} {TRADES}")
    if missing == ["volume"]:
        raise table.refuse("has no column volume", volume="")
    if missing and table.bare:
        what = f"has no header and {len(table.columns)} columns, which is no known layout"
        names = [*FIELDS, *[*table.columns][len(FIELDS) :]][: len(table.columns)]
        raise table.refuse(what, change=f"frame.set_axis({names}, axis=1)")
    if missing:
        what = f"has no column {', '.join(missing)}"
        raise table.refuse(what, row=None, **{missing[0]: "NAME"})


# ---------------------------------------------------------------- rows


def _rows(table: FileTable, fields: dict[str, str]) -> Rows:
    """Return the exact rows of *table*: closed candles with a price, in the file's order."""
    doubts.reject_contract_units(table, fields)
    table = _with_points(_closed(table), fields)
    blank = np.logical_and.reduce([_is_blank(table.columns[fields[name]]) for name in PRICES])
    if blank.any() and not blank.all():
        rows = count_of(int(blank.sum()), "row")
        table.notes.append(f"{rows} without a price left out, as holes")
        table = table.select(~blank)
    times = _times(table, fields[TIME])
    # A price of more digits than a double tells comes from a random walk or an adjustment, not from
    # an exchange. At such a tick, quantities would be whole coins.
    columns = _numbers(table, fields, PRICES, limit=FLOAT_LIMIT, digits=10)
    columns["volume"] = Decimals(np.zeros(times.size, dtype=np.int64), 0)
    for field in ("volume", "turnover"):
        is_empty = field in fields and _is_blank(table.columns[fields[field]]).all()
        if is_empty and field == "volume":
            table.notes.append("volume is empty throughout, taken as zero")
        elif field in fields and not is_empty:
            columns |= _numbers(table, fields, [field], limit=INT64_MAX, digits=15)
    return Rows(table, fields, times, columns)


def _closed(table: FileTable) -> FileTable:
    """Return *table* without candles that were not closed."""
    name = table.find({"closed": NAMES["closed"]}).get("closed")
    if name is None or (name == "x" and "t" not in table.columns):
        return table
    texts = np.char.lower(table.columns[name].astype(np.bytes_))
    is_closed = np.isin(texts, [b"1", b"true"])
    is_flag = bool((is_closed | np.isin(texts, [b"0", b"false"])).all())
    if not is_flag or is_closed.all() or not is_closed.any():
        return table
    candles = count_of(int((~is_closed).sum()), "candle")
    table.notes.append(f"{candles} not closed left out")
    return table.select(is_closed)


def _with_points(table: FileTable, fields: Mapping[str, str]) -> FileTable:
    """Return *table* with points for decimal commas, if its numbers prove that they are these."""
    if table.separator == ",":
        return table
    columns = {name: table.columns[name] for field, name in fields.items() if field != TIME}
    cells = [cell.strip() for column in columns.values() for cell in column.tolist()]
    commas = [cell for cell in cells if b"," in cell]
    if all(map(THOUSANDS.fullmatch, commas)) or any(b"." in cell for cell in cells):
        return table
    points = {name: np.char.replace(column, b",", b".") for name, column in columns.items()}
    table.notes.append("figures have decimal commas, read as points")
    return replace(table, columns={**table.columns, **points})


def _is_blank(column: Column) -> npt.NDArray[np.bool_]:
    """Return which cells hold no value."""
    if column.dtype.kind == "f":
        return np.isnan(column)
    if column.dtype.kind != "S":
        return np.zeros(column.size, dtype=np.bool_)
    first = column.view(np.uint8).reshape(column.size, -1)[:, 0]
    blank = (first < ord("0")) | (first > ord("9"))
    blank[blank] = np.isin(np.char.lower(np.char.strip(column[blank])), BLANK_CELLS)
    return blank


def parsed_times(
    table: FileTable, name: str, title: str, **choice: str
) -> tuple[IntArray, tuple[str, ...]]:
    """Return the times in ms of the column *name*, and notes on how they are read.

    The refusal of other times begins with *title*; it prints lines of pandas, and the *choice* of
    :meth:`FileTable.refuse`.
    """
    try:
        return epoch_ms(table.columns[name])
    except CellInvalidError as error:
        change = _pandas(table, name)
        what = f"{title} {error.what}"
        raise table.refuse(what, row=error.row, change=change, **choice) from None


def _times(table: FileTable, name: str) -> IntArray:
    """Return the open times in ms, of the column *name*."""
    times, notes = parsed_times(table, name, "the open time", open_time="NAME")
    is_local = "local" in name
    zones = [zone for zone in table.texts("timezone") if zone.upper() not in UTC_NAMES]
    zones = [*zones, "local time"] if is_local else zones
    is_zoneless = ZONELESS in notes or (is_local and table.columns[name].dtype.kind == "M")
    if zones and is_zoneless:
        raise table.refuse(
            f"has times without an offset, and names a zone ({zones[0]})",
            change=doubts.with_zone(table, name),
        )
    table.notes.extend(notes)
    return times


def _pandas(table: FileTable, name: str) -> str:
    """Return what converts the times of the column *name* in pandas."""
    texts, column = texts_of(table.columns[name]), table.written.get(name, name)
    cells, how = f"frame[{column!r}]", "utc=True"
    if re.fullmatch(r"[345]\d{4}(\.\d+)?", texts[0]):  # a spreadsheet counts days
        cells, how = f"{cells}.astype(float)", "unit='D', origin='1899-12-30'"
    elif DIGITS.fullmatch(texts[0]):
        how = f"format={'%Y%m%d%H%M%S'[: len(texts[0]) - 2]!r}"
    elif dates := [*filter(None, [re.match(r"(\d\d?)[/.](\d\d?)[/.]\d{4}", t) for t in texts])]:
        is_first = "." in dates[0][0] or any(int(date[1]) > 12 for date in dates)
        is_second = any(int(date[2]) > 12 for date in dates)
        how = f"dayfirst={is_first if is_first or is_second else 'DAYFIRST'}, utc=True"
    elif re.match(r"\d\d?:\d\d", texts[0]) and "date" in table.columns:
        cells = f"frame[{table.written['date']!r}] + ' ' + {cells}"
    return f"{table.plain_numbers}.assign(**{{{column!r}: pandas.to_datetime({cells}, {how})}})"


def _numbers(
    table: FileTable, fields: Mapping[str, str], names: Sequence[str], *, limit: int, digits: int
) -> dict[str, Decimals]:
    """Return the columns of the fields *names* as exact decimals of the same places.

    If these make a number larger than *limit*, all are rounded to *digits*, with a note.
    """

    def read(convert: Callable[[Column], Result]) -> list[Result]:
        return [
            table.checked(name, partial(convert, table.columns[fields[name]]), **{name: "NAME"})
            for name in names
        ]

    exact = [column for column in read(fitting) if column is not None]
    with suppress(CellTooLongError):
        same = [column.rescale(max(other.places for other in exact)) for column in exact]
        if len(same) == len(names) and max(np.abs(each.mantissa).max() for each in same) <= limit:
            return dict(zip(names, same, strict=True))
    values = rounded(read(floats_of), digits)
    what = f"{', '.join(names)}: more digits than an exchange sends"
    table.notes.append(f"{what}, rounded to {values[0].places} decimals")
    return dict(zip(names, values, strict=True))
