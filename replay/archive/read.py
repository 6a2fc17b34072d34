"""``read_candles``: a file or a data frame to ``Candles``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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
    SPREADSHEET,
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
    INDEXES,
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
MOMENT_OF_DAY: Final = re.compile(r"\d{1,2}:\d{2}(:\d{2})?(\.\d+)?( ?[AaPp][Mm])?")
THOUSANDS: Final = re.compile(rb"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
THOUSAND: Final = re.compile(rb"[+-]?[1-9]\d{0,2},\d{3}")
DECIMAL_COMMA: Final = re.compile(rb"[^.,]*(,[^.,]*)?|[+-]?[1-9]\d{0,2}(\.\d{3})+,\d+")
SHORTENED: Final = re.compile(rb"[+-]?\d+(?:\.\d+)?[KMBkmb]")


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
        doubts.reject_contracts(file, is_named=named is not None)
        table = read_table(file)
    table, own_symbol = of_one_symbol(table, named, given)
    doubts.reject_content(table, is_named=named is not None)
    fields, table = _fields(table, own_symbol, chosen)
    rows = _rows(table, fields, is_placed=sessions_for is not None)
    candles = _candles(
        rows, own_symbol, Category(category or category_of(table.path)), is_fixed=not sessions_for
    )
    return candles if sessions_for is None else in_sessions(candles, sessions_for)


def _candles(rows: Rows, symbol: str, category: Category, *, is_fixed: bool) -> Candles:
    """Return *rows* as candles, unless a doubt rejects them; bars of sessions are not fixed."""
    doubts.reject_impossible(rows)
    rows = doubts.in_order(rows, is_zoneless=ZONELESS in rows.notes)
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


class SymbolUnknown(ConfigInvalid):
    """Neither the name nor the content of a file names its symbol."""


def _own_symbols(table: FileTable) -> tuple[tuple[str, ...], str]:
    """Return the symbols in the content of *table*, sorted, and the column that holds them."""
    for name in (*SYMBOL_COLUMNS, *ZONE_COLUMNS, *CLOSED, "category"):
        if name in table.repeated:
            raise DataInvalid(f"{table.path} has two columns {name}: remove one of them.")
    if beside := [text for kind, text in table.beside if kind == "symbol"]:
        return (symbol_text(beside[0]),), ""
    for name in SYMBOL_COLUMNS:
        cells = table.columns.get(name)
        if cells is not None and cells.dtype.kind == "S":
            symbols = {symbol_text(text) for text in texts_of(np.unique(cells))} - {""}
            if symbols:
                return tuple(sorted(symbols)), name
    return (), ""


def of_one_symbol(
    table: FileTable, named: str | None, given: str | None = None
) -> tuple[FileTable, str]:
    """Return the rows of one symbol, and it: *named* before the path, or the table's own.

    A frame has the symbol *given* with it. Raises ``ConfigInvalid`` if nothing names a symbol, if
    name and content differ (only ``SYMBOL=PATH`` may rename it, which is noted), or if several
    symbols have rows and none of them is chosen.
    """
    path, (held, column) = table.path, _own_symbols(table)
    by_name = symbol_of(path.name)
    if len(held) > 1:
        symbol = named or given or by_name
        if symbol not in held:
            known = [name for name in held if KNOWN_SYMBOL.fullmatch(name)]
            shown = ", ".join(held[:SYMBOLS_SHOWN]) + (" and more" * (len(held) > SYMBOLS_SHOWN))
            remedy = f"choose one by SYMBOL={path}, such as {[*known, ''][0]}={path}"
            if not known:
                remedy = "their forms are not known: write them as BTCUSDT or AAPL"
            raise ConfigInvalid(f"{path} holds {shown}: {remedy}.")
        mine = [symbol_text(text) == symbol for text in texts_of(table.columns[column])]
        note = f"{len(held) - 1} other symbols of the file left out"
        return table.with_note(note).select(np.array(mine, dtype=np.bool_)), symbol
    if held and not named and not KNOWN_SYMBOL.fullmatch(held[0]):
        raise SymbolUnknown(
            f"{path} names its symbol {held[0][:40]}, which is no known form: write SYMBOL={path}."
        )
    own = by_name or (held[0] if held else None)
    if named:
        note = f"the file names {own}; it is read as {named} because of SYMBOL=PATH"
        return table.with_note(note) if own not in (None, named) else table, named
    if by_name and held and by_name != held[0]:
        raise ConfigInvalid(
            f"{path} says {by_name} by its name and {held[0]} by its content: write "
            f"SYMBOL={path} to say which it is."
        )
    if given and own and given != own:
        raise ConfigInvalid(f"{path} is given as {given}, and holds {own}: give it as {own}.")
    if (symbol := own or given) is None:
        if path == FRAME:
            raise SymbolUnknown(
                'The frame does not name its symbol; write data={"BTCUSDT": frame}.'
            )
        raise SymbolUnknown(f"{path} does not name its symbol: write SYMBOL={path}.")
    return table, symbol


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
    first = [text.lower() for cells in table.columns.values() for text in texts_of(cells[:1])]
    if table.bare and {"true", "false"} & {*first}:
        raise _trades(table)  # of Binance, with flags
    fields = _chosen_fields(table, chosen)
    free = [name for name in table.columns if name not in fields.values()]
    fields |= _fields_named(table, free, symbol, chosen)
    if (name := fields.get(TIME)) in INDEXES and name in free:
        cells = table.columns[name][:1]
        if texts_of(cells)[0].isdigit() and not are_instants(cells):
            del fields[TIME]  # it counts the rows
    if missing := [field for field in REQUIRED if field not in {*fields, *chosen}]:
        raise _missing(table, missing)
    clock = fields[TIME]
    if TIME not in chosen and not are_instants(table.columns[clock]):
        for other in NAMES[TIME]:
            if other in free and _is_clock(table.columns[clock], table.columns[other]):
                fields[TIME] = other
                table = table.with_note(f"times are those of {other}, as {clock} names no zone")
                break
    told = [f"{f} is {fields[f]}" if name else f"{f} is left out" for f, name in chosen.items()]
    return fields, table.with_note(f"{' and '.join(told)}, by --columns") if told else table


def _chosen_fields(table: FileTable, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return field → column name for the *chosen* names, as written or plain."""
    fields = {}
    for field, name in chosen.items():
        if name and name not in table.columns and plain_name(name) not in table.columns:
            raise DataInvalid(
                f"{table.path} has no column {name} (found {table.found}): name another for "
                f"{field}."
            )
        if name:
            fields[field] = name if name in table.columns else plain_name(name)
    return fields


def _fields_named(
    table: FileTable, free: Sequence[str], symbol: str, chosen: Mapping[str, str]
) -> dict[str, str]:
    """Return field → column name for the *free* columns that ``NAMES`` has.

    The coins of *symbol* tell ``Volume BTC`` from ``Volume USDT``.
    """
    fields = {}
    for field in (field for field in NAMES if field not in chosen):
        if name := next((name for name in NAMES[field] if name in free), ""):
            fields[field] = name
        if twice := next((name for name in NAMES[field] if name in table.repeated), ""):
            written = next((name for name in free if plain_name(name) == twice), "NAME")
            raise DataInvalid(
                f"{table.path} has two columns {twice}: choose one, such as by "
                f"{table.choice(**{field: written})}, or remove one."
            )
    for name in free:
        coin = name.removeprefix("volume_").upper()
        if name.startswith("volume_") and name not in fields.values():
            if symbol.startswith(coin) and "volume" not in chosen:
                fields.setdefault("volume", name)
            elif symbol.endswith(coin) and "turnover" not in chosen:
                fields.setdefault("turnover", name)
    return fields


def _with_clock(table: FileTable) -> FileTable:
    """Return *table* with a column of dates and one of clocks as one column of times."""
    date, clock = table.columns.get("date"), table.columns.get("time")
    if date is None or clock is None or not date.dtype.kind == clock.dtype.kind == "S":
        return table
    if not MOMENT_OF_DAY.fullmatch(texts_of(clock[:1])[0]):
        return table
    joined = np.char.add(np.char.add(date.astype(np.bytes_), b" "), clock.astype(np.bytes_))
    others = {name: cells for name, cells in table.columns.items() if name not in ("date", "time")}
    return replace(table, columns={TIME: joined, **others})


def _missing(table: FileTable, missing: Sequence[str]) -> DataInvalid:
    """Return the error of a table without a column of the fields in *missing*."""
    if {*PRICES[:3]} <= {*missing} and "price" in table.columns:
        return _trades(table)
    if table.bare and "volume" not in table.columns and len(missing) > 1:
        names = [*REQUIRED[:6], "turnover", *table.columns][: len(table.columns)]
        return DataInvalid(
            f"{table.path} has no header and {len(table.columns)} columns, which is no known "
            f"layout: name them by pandas, such as: {table.by_pandas('frame', names)}."
        )
    remedies = [f"name its columns, such as by {table.choice(**{missing[0]: 'NAME'})}"]
    if missing == ["volume"]:
        remedies.append(f"read candles without a volume by {table.choice(volume='')}")
    if table.path == FRAME and TIME in missing:
        remedies.append("let its index be the times")
    change = f"frame.rename(columns={{'NAME': '{missing[0]}'}})"
    remedies.append(f"rename them by pandas: {table.by_pandas(change)}")
    return DataInvalid(
        f"{table.path} has no column {', '.join(missing)} (found {table.found}): "
        f"{', or '.join(remedies)}."
    )


def _trades(table: FileTable) -> DataInvalid:
    return DataInvalid(
        f"{table.path} holds trades and no candles: make candles of its columns time, price and "
        "quantity, such as by pandas: frame.index = pandas.to_datetime(frame.time, unit='ms'); "
        "frame.price.resample('1min').ohlc().assign(volume=frame.quantity.resample('1min').sum())"
        ".dropna().to_csv('BTCUSDT_1m.csv')."
    )


# ---------------------------------------------------------------- rows


def _rows(table: FileTable, fields: dict[str, str], *, is_placed: bool) -> Rows:
    """Return the exact rows of *table*: closed candles with a price, in the file's order.

    *is_placed*: a calendar tells the zone of the times.
    """
    if "homenotional" in table.columns:  # coins, beside volume and turnover in contracts
        raise _buckets(table)
    table = _without_blank(_plain_numbers(_closed(table), fields), fields)
    times, time_notes = _times(table, fields[TIME], is_placed=is_placed)
    cells = {field: table.columns[name] for field, name in fields.items()}
    columns = {field: table.checked(field, partial(parse, cells[field])) for field in PRICES}
    places = max(column.places for column in columns.values())
    for field, column in columns.items():
        columns[field] = table.checked(field, partial(column.rescale, places))
    rows = Rows(table, fields, times, columns, [*table.notes, *time_notes])
    columns["volume"] = Decimals(np.zeros(times.size, dtype=np.int64), 0)
    if "volume" in fields:
        columns["volume"] = _volume(rows, "volume")
    if "turnover" in fields and not _is_blank(cells["turnover"]).all():
        columns["turnover"] = _volume(rows, "turnover")
        judged = [columns[name] for name in ("turnover", "volume", "low", "high")]
        is_count = fields["turnover"] == "turnover" and not columns["turnover"].places
        if table.bare and is_count and doubts.is_outside(*judged):
            rows.notes.append("the seventh column counts trades and is no turnover, left out")
            del columns["turnover"]
    ticks = next((name for name in table.columns if "tick" in name and "vol" in name), "")
    if ticks and "volume" in fields and not columns["volume"].mantissa.any():
        raise DataInvalid(
            f"{table.path} has no volume in {fields['volume']}: count ticks instead by "
            f"{table.choice(volume=ticks)}, or leave it out by {table.choice(volume='')}."
        )
    return rows


def _buckets(table: FileTable) -> DataInvalid:
    change = (
        "frame.assign(timestamp=pandas.to_datetime(frame.timestamp) - pandas.Timedelta('1min'), "
        "volume=frame.homeNotional, turnover=frame.foreignNotional).drop(columns='homeNotional')"
    )
    return DataInvalid(
        f"{table.path} has the buckets of BitMEX, whose volume and turnover count contracts and "
        "whose times are those of closes: convert them, such as by pandas for minutes: "
        f"{table.by_pandas(change)}."
    )


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

    If commas separate cells, a comma within a number separates thousands; some cell has to prove it
    by a point or a second comma. Otherwise commas are decimal. Raises ``DataInvalid`` for ambiguous
    numbers.
    """
    texts = {
        name: cells.astype(np.bytes_)
        for field, name in fields.items()
        if field != TIME and (cells := table.columns[name]).dtype.kind == "S"
    }
    with_comma = [
        cell.strip()
        for cells in texts.values()
        if b"," in cells.tobytes()
        for cell in cells.tolist()
        if b"," in cell
    ]
    if with_comma and table.separator == ",":
        is_clear = any(b"." in cell or cell.count(b",") > 1 for cell in with_comma)
        if is_clear and all(map(THOUSANDS.fullmatch, with_comma)):
            texts = {name: np.char.replace(cells, b",", b"") for name, cells in texts.items()}
            table = table.with_note("figures have commas between thousands, left out")
    elif with_comma:
        if all(map(THOUSAND.fullmatch, with_comma)):
            raise DataInvalid(
                f"{table.path} has figures such as {with_comma[0].decode()}, whose comma may be a "
                "decimal one or one of thousands: write them without the comma."
            )
        for name, cells in texts.items():
            for row, cell in enumerate(cells.tolist()):
                if not DECIMAL_COMMA.fullmatch(cell.strip()):
                    what = (
                        f"is {cell.decode('utf-8', 'replace')[:40]!r} in a file of decimal commas"
                    )
                    raise table.reject(CellInvalidError(row, what), name)
            texts[name] = np.char.replace(np.char.replace(cells, b".", b""), b",", b".")
        table = table.with_note("figures have decimal commas, read as points")
    return _lengthened(replace(table, columns={**table.columns, **texts}), fields)


def _lengthened(table: FileTable, fields: Mapping[str, str]) -> FileTable:
    """Return *table* with ``1.5K`` and the like in volume and turnover as ``1.5e3``."""
    for name in (fields[field] for field in ("volume", "turnover") if field in fields):
        column = table.columns[name]
        if column.dtype.kind == "S" and re.search(rb"[KMBkmb]", column.tobytes()):
            cells = [cell.strip() for cell in column.tolist()]
            powers = {b"K": b"e3", b"M": b"e6", b"B": b"e9"}
            written = [
                cell[:-1] + powers[cell[-1:].upper()] if SHORTENED.fullmatch(cell) else cell
                for cell in cells
            ]
            if written != cells:
                table = table.with_note(
                    f"{name} is shortened by K, M or B, and so rounded",
                    {**table.columns, name: np.array(written, dtype=np.bytes_)},
                )
    return table


def _without_blank(table: FileTable, fields: Mapping[str, str]) -> FileTable:
    """Return *table* without rows without a price, which are minutes without a trade."""
    blank = np.logical_and.reduce([_is_blank(table.columns[fields[name]]) for name in PRICES])
    if not blank.any() or blank.all():
        return table
    note = f"{count_of(int(blank.sum()), 'row')} without a price left out, as holes"
    return table.with_note(note).select(~blank)


def _is_blank(column: Column) -> npt.NDArray[np.bool_]:
    """Return which cells hold no value."""
    if column.dtype.kind == "f":
        return np.isnan(column)
    if column.dtype.kind != "S":
        return np.zeros(column.size, dtype=np.bool_)
    first = column.view(np.uint8).reshape(column.size, -1)[:, 0]
    blank = (first < ord("0")) | (first > ord("9"))
    blank[blank] = np.isin(
        np.char.lower(np.char.strip(column[blank].astype(np.bytes_))), BLANK_CELLS
    )
    return blank


def _times(table: FileTable, name: str, *, is_placed: bool) -> tuple[IntArray, Iterable[str]]:
    """Return the open times in ms, of the column *name*, and notes."""
    column = table.columns[name]
    try:
        times, notes = epoch_ms(column)
    except CellInvalidError as error:
        raise _no_time(table, name, error) from None
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


def _is_clock(clock: Column, instants: Column) -> bool:
    """Return whether *clock* can be *instants* in another zone; else it is a counter."""
    if not are_instants(instants):
        return False
    with suppress(CellInvalidError):
        away = epoch_ms(instants, whole=False)[0] - epoch_ms(clock, whole=False)[0]
        return bool((away % MINUTE_MS == 0).all() and (np.abs(away) <= 2 * DAY_MS).all())
    return True


def _no_time(table: FileTable, name: str, error: CellInvalidError) -> DataInvalid:
    """Return the error of a cell that is no time, with lines of pandas that read usual ones."""
    lines = table.with_times(name, ", utc=True")
    if error.what.endswith(SPREADSHEET):
        lines = table.with_times(name, ", unit='D', origin='1899-12-30'", ".astype(float)")
    elif "told apart" in error.what:
        lines = table.with_times(name, ", dayfirst=DAYFIRST, utc=True")
    return DataInvalid(
        f"{table.place(error.row)}: the open time {error.what}: correct or remove the row; if most "
        f"rows are so, choose another column by {table.choice(open_time='NAME')}, or write times "
        f"as 2025-01-31T12:00, such as by pandas: {lines}."
    )


def _volume(rows: Rows, field: str) -> Decimals:
    """Return volume or turnover; an entirely empty column (mark prices) counts as zero.

    Digits that do not fit in 64 bits come from sums of doubles and are rounded.
    """
    column = rows.table.columns[rows.fields[field]]
    if _is_blank(column).all():
        rows.notes.append(f"{field} is empty throughout, taken as zero")
        return Decimals(np.zeros(column.size, dtype=np.int64), 0)
    try:
        return parse(column)
    except CellTooLongError:
        largest = float(np.nanmax(np.abs(column.astype(np.float64))))
        places = VOLUME_DECIMALS
        while places and largest * 10.0**places > INT64_MAX / 2:
            places -= 1
        rounded = rows.table.checked(field, partial(round_to_fit, column, places))
        rows.notes.append(
            f"{field} has more digits than 64 bits hold, rounded to {places} decimals"
        )
        return rounded
    except CellInvalidError as error:
        raise rows.table.reject(error, field, field) from None
