"""``read_candles``: a file or a data frame to ``Candles``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    INT64_MAX,
    ZONELESS,
    CellInvalidError,
    CellTooLongError,
    Column,
    Decimals,
    IntArray,
    are_instants,
    epoch_ms,
    parse,
    round_to_fit,
    texts_of,
)
from tracepaper.replay.archive.doubts import Rows
from tracepaper.replay.archive.names import (
    CLOSED,
    FIELDS,
    KNOWN_SYMBOL,
    NAMES,
    PRICES,
    REQUIRED,
    SYMBOL_COLUMNS,
    TIME,
    ZONE_COLUMNS,
    category_of,
    plain_name,
    split_argument,
    symbol_of,
    symbol_text,
)
from tracepaper.replay.archive.sessions import SessionsFor, in_sessions
from tracepaper.replay.archive.tables import FRAME, FileTable, read_table, table_of_frame
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.sessions import month_calendar
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import DAY_MS, MINUTE_MS, count_of

VOLUME_DECIMALS: Final = 11  # the most that an exchange was seen to send
SYMBOLS_SHOWN: Final = 8
BLANK_CELLS: Final = np.array([b"", b"nan", b"null", b"none", b"na", b"n/a", b"-"])
"""Cells that vendors write for a minute without a trade."""
UTC_NAMES: Final = frozenset({"", "UTC", "GMT", "Z", "ETC/UTC", "ETC/GMT", "ZULU", "UTC+0"})
THOUSANDS: Final = re.compile(rb"[+-]?\d{1,3}(,\d{3})*(\.\d+)?")
DECIMAL_COMMA: Final = re.compile(rb"[^.,]*(,[^.,]*)?")
SHORTENED: Final = re.compile(rb"([+-]?\d+(?:\.\d+)?)([KMBkmb])")
FLAGS: Final = ("true", "false")
POWERS: Final = {b"K": b"e3", b"M": b"e6", b"B": b"e9"}


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
    sessions_for: SessionsFor | None = None,
) -> Candles:
    """Return the exact candles of one file or frame, oldest first, each open time once.

    *path* may be ``SYMBOL=PATH``, a frame, or candles, which are returned. The symbol comes from
    that, else from the file's name or its content. The category comes from the argument,
    else from the path; the interval from the times; the format from the name. With *sessions_for*
    the candles are aligned to an exchange's sessions (``in_sessions``). *columns* choose a field's
    column (``close=Price``) or leave it out (``turnover=``). ``Candles.notes`` tell conversions,
    sorting and dropped rows.

    Raises ``DataInvalid``, with file and line, for an implausible file, and ``ConfigInvalid`` if no
    symbol is known.
    """
    chosen = chosen_columns(columns)
    if isinstance(path, Candles):
        if columns:
            raise ConfigInvalid(f"{path.path} is read already; leave columns out.")
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
    table, own_symbol = of_one_symbol(table, named, given)
    doubts.reject_contracts(table, is_named=named is not None)
    fields, table = _fields(table, own_symbol, chosen)
    rows = _rows(table, fields, is_placed=sessions_for is not None)
    candles = _candles(
        rows, own_symbol, Category(category or category_of(table.path)), is_fixed=not sessions_for
    )
    return candles if sessions_for is None else in_sessions(candles, sessions_for)


def _candles(rows: Rows, symbol: str, category: Category, *, is_fixed: bool) -> Candles:
    """Return *rows* as candles, unless a doubt rejects them; bars of sessions are not fixed."""
    doubts.reject_impossible(rows)
    rows = doubts.in_order(rows)
    step = doubts.interval_between(rows, is_fixed=is_fixed)
    doubts.reject_units(rows)
    doubts.reject_closes(rows, step)
    doubts.reject_changed(rows, step)
    if is_fixed:
        rows.notes.extend(filter(None, [doubts.jump(rows)]))
        rows = doubts.on_grid(rows, step)
    columns = rows.columns
    turnover = columns.get("turnover")
    return Candles(
        path=str(rows.table.path),
        category=category,
        symbol=symbol,
        interval_ms=step,
        price_decimals=columns["open"].places,
        volume_decimals=columns["volume"].places,
        turnover_decimals=turnover.places if turnover else 0,
        open_time_ms=rows.times,
        open=columns["open"].mantissa,
        high=columns["high"].mantissa,
        low=columns["low"].mantissa,
        close=columns["close"].mantissa,
        volume=columns["volume"].mantissa,
        turnover=turnover.mantissa if turnover else None,
        notes=tuple(rows.notes),
        calendar=month_calendar() if step == MONTH_MS else None,
    )


# ---------------------------------------------------------------- symbols


def of_one_symbol(
    table: FileTable, named: str | None, given: str | None = None
) -> tuple[FileTable, str]:
    """Return the rows of one symbol, and it: *named* before the path, or the table's own.

    A frame has the symbol *given* with it. Raises ``ConfigInvalid`` unless name and content agree
    on one symbol of a known form; only ``SYMBOL=PATH`` may rename it, which is noted, or choose
    one of several.
    """
    _reject_two(table, (*SYMBOL_COLUMNS, *ZONE_COLUMNS, *CLOSED, "category"))
    held = {symbol_text(text) for kind, text in table.beside if kind == "symbol"}
    cells = [table.columns[name] for name in SYMBOL_COLUMNS if name in table.columns]
    texts = next((texts_of(column) for column in cells if column.dtype.kind == "S"), [])
    symbols = np.array([symbol_text(text) for text in texts])
    held = held or {*symbols.tolist()} - {""}
    own = symbol_of(table.path.name) or given or ""
    if len(held) > 1 and (named or own) in held:
        note = f"{len(held) - 1} other symbols of the file left out"
        return table.with_note(note).select(symbols == (named or own)), named or own
    renamed = sorted({*held, own} - {"", named or ""})
    if named and len(held) < 2:
        names = ", ".join(renamed)
        note = f"the file names {names}; it is read as {named} because of SYMBOL=PATH"
        return table.with_note(note) if renamed else table, named
    remedy = 'data={"BTCUSDT": frame}' if table.path == FRAME else f"SYMBOL={table.path}"
    if not renamed:
        raise ConfigInvalid(f"{table.path} does not name its symbol: write {remedy}.")
    if len(renamed) > 1 or not KNOWN_SYMBOL.fullmatch(renamed[0]):
        listed = ", ".join(renamed[:SYMBOLS_SHOWN]) + " …" * (len(renamed) > SYMBOLS_SHOWN)
        raise ConfigInvalid(
            f"{table.path} holds {listed}: choose one by {remedy}, in a form such as BTCUSDT."
        )
    return table, renamed[0]


def _reject_two(table: FileTable, names: Sequence[str]) -> None:
    """Raise ``DataInvalid`` if two columns have one of *names*, which then is neither's."""
    for name in map(plain_name, table.written.values()):
        if name in names and name not in table.columns:
            raise table.refuse(f"has two columns {name}", change="frame.drop(columns='NAME')")


# ---------------------------------------------------------------- fields


def chosen_columns(columns: Sequence[str]) -> dict[str, str]:
    """Return field → column name for ``close=Price``; ``turnover=`` leaves a field out.

    Raises ``ConfigInvalid`` for an entry in another form, another field, or a field twice.
    """
    chosen: dict[str, str] = {}
    for text in columns:
        field, equals, name = (part.strip() for part in text.partition("="))
        is_needed = field in REQUIRED[:-1] and not name
        if not equals or field not in NAMES or field in chosen or is_needed:
            raise ConfigInvalid(
                f"--columns is {text}; write FIELD=NAME, once for a FIELD of {', '.join(FIELDS)}; "
                "volume= and turnover= leave one out."
            )
        chosen[field] = name
    return chosen


def _fields(
    table: FileTable, symbol: str, chosen: Mapping[str, str]
) -> tuple[dict[str, str], FileTable]:
    """Return field → column name, and the table with a note of what was *chosen*.

    Raises ``DataInvalid``, naming the columns, if a field has none or two.
    """
    table = _with_clock(table)
    columns, fields = table.columns, dict[str, str]()
    for field, name in chosen.items():
        plain = name if name in columns else plain_name(name)
        if name and plain not in columns:
            found = ", ".join(table.written.values())
            raise DataInvalid(
                f"{table.path} has no column {name} (found {found}): name another for {field}."
            )
        fields |= {field: plain} if name else {}
    free = [name for name in columns if name not in fields.values()]
    unchosen = [name for name in NAMES if name not in chosen]
    fields |= _fields_named(table, symbol, unchosen, free)
    if missing := [field for field in REQUIRED if field not in {*fields, *chosen}]:
        raise _missing(table, missing)
    if table.bare and any(texts_of(cells[:1])[0].lower() in FLAGS for cells in columns.values()):
        raise _trades(table)  # of Binance
    told = [f"{f} is {fields[f]}" if name else f"{f} is left out" for f, name in chosen.items()]
    if told:
        table = table.with_note(f"{' and '.join(told)}, by --columns")
    clock = columns[fields[TIME]]
    for other in () if TIME in chosen or are_instants(clock) else NAMES[TIME]:
        if other in free and are_instants(columns[other]) and _is_clock(clock, columns[other]):
            note = f"times are those of {other}, as {fields[TIME]} names no zone"
            return {**fields, TIME: other}, table.with_note(note)
    return fields, table


def _is_clock(clock: Column, instants: Column) -> bool:
    """Return whether *clock* can be *instants* in another zone; else these are no open times."""
    with suppress(CellInvalidError):
        away = epoch_ms(instants, whole=False)[0] - epoch_ms(clock, whole=False)[0]
        return bool((away % MINUTE_MS == 0).all() and (np.abs(away) <= 2 * DAY_MS).all())
    return True


def _fields_named(
    table: FileTable, symbol: str, wanted: Sequence[str], free: Sequence[str]
) -> dict[str, str]:
    """Return field → column name for the *free* columns with a name of the fields *wanted*.

    The coins of *symbol* tell ``Volume BTC`` from ``Volume USDT``.
    """
    fields = dict[str, str]()
    for field in wanted:
        _reject_two(table, NAMES[field])
        names = [name for name in NAMES[field] if name in free]
        for name in free if field in ("volume", "turnover") else ():
            coin = name.removeprefix("volume_").upper()
            is_coin = symbol.startswith(coin) if field == "volume" else symbol.endswith(coin)
            names += [name] if name.startswith("volume_") and is_coin else []
        fields |= {field: names[0]} if names else {}
    return fields


def _missing(table: FileTable, missing: Sequence[str]) -> DataInvalid:
    """Return the error of a table without a column of the fields in *missing*."""
    if {*PRICES[:3]} <= {*missing} and "price" in table.columns:
        return _trades(table)
    if missing == ["volume"]:
        return table.refuse("has no column volume", volume="")
    if table.bare:
        what = f"has no header and {len(table.columns)} columns, which is no known layout"
        return table.refuse(what, change="frame", names=FIELDS)
    return table.refuse(f"has no column {', '.join(missing)}", row=None, **{missing[0]: "NAME"})


def _trades(table: FileTable) -> DataInvalid:
    return DataInvalid(
        f"{table.path} holds trades and no candles: make candles of its columns time, price and "
        "quantity, such as by pandas: frame.index = pandas.to_datetime(frame.time, unit='ms'); "
        "frame.price.resample('1min').ohlc().assign(volume=frame.quantity.resample('1min').sum())"
        ".dropna().to_csv('BTCUSDT_1m.csv')."
    )


def _with_clock(table: FileTable) -> FileTable:
    """Return *table* with a column of dates and one of clocks as one column of times."""
    date, clock = table.columns.get("date"), table.columns.get("time")
    if date is None or clock is None or not date.dtype.kind == clock.dtype.kind == "S":
        return table
    if not re.match(r"\d{1,2}:\d\d", texts_of(clock[:1])[0]):
        return table
    joined = np.strings.add(np.strings.add(date, b" "), clock)
    others = {name: cells for name, cells in table.columns.items() if name not in ("date", "time")}
    return replace(table, columns={TIME: joined, **others})


# ---------------------------------------------------------------- rows


def _rows(table: FileTable, fields: dict[str, str], *, is_placed: bool) -> Rows:
    """Return the exact rows of *table*: closed candles with a price, in the file's order.

    *is_placed*: a calendar tells the zone of the times.
    """
    if "homenotional" in table.columns:  # coins, beside volume and turnover in contracts
        raise table.refuse(
            "has the buckets of BitMEX, whose volume and turnover count contracts and whose times "
            "are those of closes",
            change="frame.assign(timestamp=pandas.to_datetime(frame.timestamp) - "
            "pandas.Timedelta('1min'), volume=frame.homeNotional, turnover=frame.foreignNotional)"
            ".drop(columns='homeNotional')",
        )
    table = _plain_numbers(_closed(table), fields)
    blank = np.logical_and.reduce([_is_blank(table.columns[fields[name]]) for name in PRICES])
    if blank.any() and not blank.all():
        note = f"{count_of(int(blank.sum()), 'row')} without a price left out, as holes"
        table = table.with_note(note).select(~blank)
    times, time_notes = _times(table, fields[TIME], is_placed=is_placed)
    columns = _prices(table, fields)
    rows = Rows(table, fields, times, columns, [*table.notes, *time_notes])
    columns["volume"] = Decimals(np.zeros(times.size, dtype=np.int64), 0)
    for field in ("volume", "turnover"):
        is_empty = field in fields and _is_blank(table.columns[fields[field]]).all()
        if is_empty and field == "volume":
            rows.notes.append("volume is empty throughout, taken as zero")
        elif field in fields and not is_empty:
            columns[field] = _volume(rows, field)
    if table.bare and fields.get("turnover") == "turnover" and doubts.is_count(rows):
        rows.notes.append("the seventh column counts trades and is no turnover, left out")
        del columns["turnover"]
    ticks = next((name for name in table.columns if "tick" in name and "vol" in name), "")
    if ticks and "volume" in fields and not columns["volume"].mantissa.any():
        raise table.refuse(f"has no volume in {fields['volume']}, but ticks", volume=ticks)
    return rows


def _prices(table: FileTable, fields: Mapping[str, str]) -> dict[str, Decimals]:
    """Return the four prices with common decimals."""
    columns = {}
    for field in PRICES:
        read = partial(parse, table.columns[fields[field]])
        columns[field] = table.checked(field, read, **{field: "NAME"})
    places = max(column.places for column in columns.values())
    return {
        field: table.checked(field, partial(column.rescale, places))
        for field, column in columns.items()
    }


def _closed(table: FileTable) -> FileTable:
    """Return *table* without candles that were not closed."""
    for name in CLOSED:
        if name not in table.columns or (name == "x" and "t" not in table.columns):
            continue
        texts = np.char.lower(table.columns[name].astype(np.bytes_))
        is_closed = np.isin(texts, [b"1", b"true"])
        is_flag = bool((is_closed | np.isin(texts, [b"0", b"false"])).all())
        if is_flag and is_closed.any() and not is_closed.all():
            note = f"{count_of(int((~is_closed).sum()), 'candle')} not closed left out"
            return table.with_note(note).select(is_closed)
    return table


def _plain_numbers(table: FileTable, fields: Mapping[str, str]) -> FileTable:
    """Return *table* with numbers in one style: decimal points, no thousands, no K, M or B.

    If commas separate cells, a comma within a number separates thousands; else it is decimal. The
    cells have to prove it, else they stay and are no numbers.
    """
    columns = {
        name: cells
        for field, name in fields.items()
        if field != TIME and (cells := table.columns[name]).dtype.kind == "S"
    }
    if any(b"," in cells.tobytes() for cells in columns.values()):
        texts = [cell.strip() for cells in columns.values() for cell in cells.tolist()]
        commas = [text for text in texts if b"," in text]
        if table.separator == ",":
            is_clear = all(map(THOUSANDS.fullmatch, commas))
            is_clear &= any(b"." in text or text.count(b",") > 1 for text in commas)
            new, note = b"", "figures have commas between thousands, left out"
        else:
            is_clear = all(map(DECIMAL_COMMA.fullmatch, texts))
            is_clear &= not all(map(THOUSANDS.fullmatch, commas))
            new, note = b".", "figures have decimal commas, read as points"
        if is_clear:
            columns = {name: np.char.replace(cells, b",", new) for name, cells in columns.items()}
            table = table.with_note(note, {**table.columns, **columns})
    for name in (fields[field] for field in ("volume", "turnover") if field in fields):
        cells = table.columns[name]
        if cells.dtype.kind == "S" and re.search(rb"[KMBkmb]", cells.tobytes()):
            texts = [SHORTENED.sub(_lengthened, cell.strip()) for cell in cells.tolist()]
            note = f"{name} is shortened by K, M or B, and so rounded"
            table = table.with_note(note, {**table.columns, name: np.array(texts)})
    return table


def _lengthened(number: re.Match[bytes]) -> bytes:
    return number[1] + POWERS[number[2].upper()]


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


def _times(table: FileTable, name: str, *, is_placed: bool) -> tuple[IntArray, tuple[str, ...]]:
    """Return the open times in ms, of the column *name*, and notes."""
    column = table.columns[name]
    try:
        times, notes = epoch_ms(column)
    except CellInvalidError as error:
        how, cells = ", utc=True", ""
        if "told apart" in error.what:
            how = ", dayfirst=DAYFIRST, utc=True"
        elif re.fullmatch(r"is [345]\d{4},.*", error.what):  # a spreadsheet counts days
            how, cells = ", unit='D', origin='1899-12-30'", ".astype(float)"
        change = table.with_times(name, how, cells)
        raise table.refuse(
            f"the open time {error.what}", row=error.row, change=change, open_time="NAME"
        ) from None
    zones = [text for kind, text in table.beside if kind == "timezone"]
    zones += ["local time"] if name == "local_time" else []
    for each in ZONE_COLUMNS:
        if each in table.columns and table.columns[each].dtype.kind == "S":
            zones += texts_of(np.unique(table.columns[each]))
    is_zoneless = ZONELESS in notes or (name == "local_time" and column.dtype.kind == "M")
    for zone in zones if is_zoneless and not is_placed else ():
        if zone.strip().upper() not in UTC_NAMES:
            raise DataInvalid(
                f"{table.path} has times of {zone} without an offset: export it in UTC (GMT), or "
                "name the calendar of its exchange."
            )
    return times, notes


def _volume(rows: Rows, field: str) -> Decimals:
    """Return volume or turnover, rounded if sums of doubles gave it digits beyond 64 bits."""
    column = rows.table.columns[rows.fields[field]]
    try:
        return parse(column)
    except CellTooLongError:
        largest = float(np.nanmax(np.abs(column.astype(np.float64))))
        places = min(VOLUME_DECIMALS, max(int(np.log10(INT64_MAX / 2 / largest)), 0))
        rounded = rows.table.checked(field, partial(round_to_fit, column, places))
        rows.notes.append(
            f"{field} has more digits than 64 bits hold, rounded to {places} decimals"
        )
        return rounded
    except CellInvalidError as error:
        what = f"{field} {error.what}"
        raise rows.table.refuse(what, row=error.row, **{field: "NAME"}) from None
