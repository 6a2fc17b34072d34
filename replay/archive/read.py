"""``read_candles``: a file or a data frame to ``Candles``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.config.values import symbol_name
from tracepaper.replay.archive import doubts
from tracepaper.replay.archive.candles import Candles
from tracepaper.replay.archive.columns import (
    DECIMALS_MOST,
    DIGITS,
    EPOCH,
    FLOAT_DIGITS,
    LONGEST,
    ZONELESS,
    Column,
    Decimals,
    IntArray,
    epoch_ms,
    parse,
    texts_of,
)
from tracepaper.replay.archive.doubts import Rows
from tracepaper.replay.archive.names import (
    CLOCK,
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
from tracepaper.replay.archive.tables import (
    FRAME,
    PACKED,
    SUFFIXES,
    FileTable,
    anew,
    is_row,
    read_table,
    table_of_frame,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.sessions import month_calendar
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import count_of

SYMBOLS_SHOWN: Final = 8
BLANK_CELLS: Final = np.array([b"", b"nan", b"null", b"none", b"na", b"n/a", b"-"])
"""Cells that vendors write for a minute without a trade."""
UTC_NAMES: Final = ("", "UTC", "GMT")
ZONE_NAMED: Final = re.compile(r"\d (?!(?:AM|PM|UTC|GMT)$)([A-Z][\w/]+)$")
"""A time with the name of its zone, as Interactive Brokers writes it."""
SIZES: Final = ("homenotional", "quantity", "qty", "amount", "size", "volume")
"""The names of a trade's size."""


class NamedFrame(NamedTuple):
    """A frame of polars or pandas, a dictionary of columns or a list of rows, with its symbol."""

    symbol: str | None
    frame: Any


CandleInput: TypeAlias = str | Path | Candles | NamedFrame
"""A path or ``SYMBOL=PATH``, candles, or a frame."""


def is_frame(value: object) -> bool:
    """Return whether *value* has named columns, or is a list of rows as exchanges answer."""
    if isinstance(value, Mapping):
        columns = value.values()
        has_columns = len(value) > 1 and all(hasattr(column, "__len__") for column in columns)
        return has_columns and not any(map(_is_input, columns))
    if isinstance(value, np.ndarray):
        return value.dtype.names is not None or value.ndim == 2
    if isinstance(value, list):
        return bool(value) and is_row(value[0])
    return hasattr(value, "columns") and hasattr(value, "__getitem__")


def _is_input(value: object) -> bool:
    """Return whether *value* is a file, candles or a frame, or a list of them, and no column."""
    if isinstance(value, list | tuple) and value and not is_frame(value):
        value = value[0]
        is_file = isinstance(value, str) and value.lower().endswith((*SUFFIXES, *PACKED))
    else:
        is_file = isinstance(value, str)
    return is_file or isinstance(value, (Path, Mapping, Candles)) or is_frame(value)


def each_input(value: Any, symbol: str | None = None) -> Iterator[CandleInput]:  # noqa: ANN401
    """Yield the files and frames in *value*, one, a list, or a dictionary by symbol.

    Raises ``ConfigInvalid`` for others.
    """
    if isinstance(value, (str, Path)):
        yield str(value) if symbol is None else f"{symbol}={value}"
    elif isinstance(value, Candles | NamedFrame):
        yield value
    elif is_frame(value):
        yield NamedFrame(symbol, value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from each_input(item, str(name))
    elif isinstance(value, Sequence):
        for item in value:
            yield from each_input(item, symbol)
    else:
        raise ConfigInvalid(
            f"data is {shown(value)}; give a path, a frame, a dictionary of columns, a list of "
            "rows, or several."
        )


def read_candles(
    data: Any,  # noqa: ANN401 - as ``backtest`` takes it
    *,
    category: Category | str | None = None,
    columns: Sequence[str] = (),
    unnamed: str = "",
) -> Candles:
    """Return the exact candles of one file or frame, oldest first, each open time once.

    *data* may be ``SYMBOL=PATH``, a frame, one of these by symbol, or candles, which are returned.
    The symbol comes from that, else from the file's name or its content, else it is *unnamed*; the
    category from the argument, else from the path; the interval from the times; the format from the
    name. Candles of a share have sessions (``Candles.in_sessions``). *columns* choose a field's
    column (``close=Price``) or leave it out (``turnover=``). ``Candles.notes`` tell conversions,
    sorting and dropped rows.

    Raises ``DataInvalid``, with file and line, for an implausible file, and ``ConfigInvalid`` if no
    symbol is known.
    """
    chosen = chosen_columns(columns)
    inputs = [*each_input(data)]
    if len(inputs) != 1:
        raise ConfigInvalid(f"{shown(data)} holds {len(inputs)} files or frames; give one.")
    path = inputs[0]
    if isinstance(path, Candles):
        if columns:
            raise ConfigInvalid(f"{path.path} is read already; leave columns out.")
        if category == Category.STOCK and path.category is not Category.STOCK:
            return replace(path, category=Category.STOCK).in_sessions()
        return path
    named = given = None
    if isinstance(path, NamedFrame):
        table = table_of_frame(path.frame)
        given = symbol_name(path.symbol) if path.symbol else symbol_text(table.symbol)
        category = category or Category.LINEAR
    else:
        if category is not None and category not in tuple(Category):
            raise ConfigInvalid(f"The category is {category!r}; write linear, spot or stock.")
        named, file = split_argument(path)
        table = read_table(file)
    table, symbol = of_one_symbol(table, named, given, unnamed)
    doubts.reject_contracts(table, is_named=named is not None)
    doubts.reject_scaled(table)
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
    table: FileTable, named: str | None, given: str | None = None, unnamed: str = ""
) -> tuple[FileTable, str]:
    """Return the rows of one symbol, and it: *named* before the path, or the table's own.

    A frame has the symbol *given* with it. Raises ``ConfigInvalid`` unless name and content agree
    on one symbol of a known form; only ``SYMBOL=PATH`` may rename it, which is noted, or choose
    one of several. If nothing tells a symbol it is *unnamed*.
    """
    held = {symbol_text(text) for text in table.texts("symbol")} - {""}
    own = symbol_of(table.path.name) or given or ""
    wanted = named or own
    if len(held) > 1 and wanted in held:
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
    if unnamed and not names:
        return table, unnamed
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
    columns, fields = table.columns, dict[str, str]()
    plain_of = {written: plain for plain, written in table.written.items()}
    for field, name in chosen.items():
        plain = plain_of.get(name, plain_name(name))
        if name and plain not in columns:
            raise DataInvalid(
                f"{table.path} has no column {name} (found {', '.join(table.written.values())}): "
                f"name another for {field}."
            )
        fields |= {field: plain} if name else {}
        table.notes.append(f"{field} is {plain or 'left out'}, by --columns")
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
    for field in ("volume", "turnover"):
        if field in fields and _is_blank(columns[fields[field]]).all():
            del fields[field]
    _reject_missing(table, [field for field in REQUIRED if field not in {*fields, *chosen}])
    return fields


def _reject_missing(table: FileTable, missing: Sequence[str]) -> None:
    """Raise ``DataInvalid`` if the table has no column of the fields in *missing*, or trades."""
    if not missing:
        return
    if "price" in table.columns and {*PRICES[:3]} <= {*missing}:
        raise _trades_refusal(table)
    if missing == ["volume"]:
        zero = 'columns={"volume": None}' if table.path == FRAME else "--columns volume="
        raise table.refuse(
            f"has no volume, which {zero} takes as zero",
            change="frame.rename(columns={'NAME': 'volume'})",
            choice={"volume": "NAME"},
        )
    if table.bare:
        what = f"has {len(table.columns)} columns without names, which is no known layout"
        raise table.refuse(what, choice={missing[0]: "NAME"})
    what = f"has no column {', '.join(missing)}"
    raise table.refuse(what, choice={missing[0]: "NAME"})


def _trades_refusal(table: FileTable) -> DataInvalid:
    """Return the refusal of trades, with lines of pandas that make candles of them."""
    name = table.find({TIME: (*NAMES[TIME], "transacttime")}).get(TIME)
    clock = table.clock(name) if name else "pandas.to_datetime(frame['NAME'])"
    size = next((name for name in SIZES if name in table.columns), "NAME")
    price, paid = (table.written.get(name, name) for name in ("price", size))
    made = (
        f"frame.index = {clock}; frame = frame[{price!r}].astype(float).resample('1min').ohlc()"
        f".assign(volume=frame[{paid!r}].astype(float).resample('1min').sum()).dropna()"
    )
    if table.opened != "frame":
        made = f"frame = {table.opened}; {made}"
    if table.path != FRAME:
        made += f"; frame.to_csv({anew(table.path)!r}, index_label='time')"
    return DataInvalid(f"{table.path} holds trades and no candles: make these by pandas: {made}.")


# ---------------------------------------------------------------- rows


def _rows(table: FileTable, fields: dict[str, str]) -> Rows:
    """Return the exact rows of *table*: closed candles with a price, in the file's order."""
    table = _closed(table)
    blank = np.logical_and.reduce([_is_blank(table.columns[fields[name]]) for name in PRICES])
    if blank.any() and not blank.all():
        rows = count_of(int(blank.sum()), "row")
        table.notes.append(f"{rows} without a price left out, as holes")
        table = table.select(~blank)
    times = _times(table, fields[TIME])
    # A price of more digits than a double tells comes from a random walk or an adjustment, not from
    # an exchange. At such a tick, quantities would be whole coins.
    columns = _numbers(table, fields, PRICES, limit=10**FLOAT_DIGITS, digits=10)
    columns["volume"] = Decimals(np.zeros(times.size, dtype=np.int64), 0)
    for field in ("volume", "turnover"):
        if field in fields:
            columns |= _numbers(table, fields, [field], limit=10**LONGEST.prec, digits=FLOAT_DIGITS)
    return Rows(table, fields, times, columns)


def _closed(table: FileTable) -> FileTable:
    """Return *table* without candles that were not closed."""
    name = table.find({"closed": NAMES["closed"]}).get("closed")
    if name is None:
        return table
    texts = np.char.lower(table.columns[name].astype(np.bytes_))
    is_open = np.isin(texts, [b"0", b"false"])
    if not is_open.any() or not (is_open | np.isin(texts, [b"1", b"true"])).all():
        return table
    table.notes.append(f"{count_of(int(is_open.sum()), 'candle')} not closed left out")
    return table.select(~is_open)


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
    table: FileTable, name: str, title: str, choice: Mapping[str, str] = MappingProxyType({})
) -> tuple[IntArray, tuple[str, ...]]:
    """Return the times in ms of the column *name*, and notes on how they are read.

    The refusal of other times begins with *title*; it prints lines of pandas, and the *choice* of
    :meth:`FileTable.refuse`.
    """
    return table.checked(name, title, epoch_ms, partial(_pandas, table, name), choice)


def _times(table: FileTable, name: str) -> IntArray:
    """Return the open times in ms, of the column *name*."""
    times, notes = parsed_times(table, name, "the open time", {TIME: "NAME"})
    is_local = "local" in name
    zones = [zone for zone in table.texts("timezone") if zone.upper() not in UTC_NAMES]
    zones += ["local time"] * is_local
    if zones and (ZONELESS in notes or (is_local and table.columns[name].dtype.kind == "M")):
        what = f"has times without an offset, and names a zone, {zones[0]}"
        raise doubts.of_zone(table, name, what, zones[0])
    table.notes.extend(notes)
    return times


def _pandas(table: FileTable, name: str) -> str:
    """Return what converts the times of the column *name* in pandas."""
    texts, column = texts_of(table.columns[name]), table.written.get(name, name)
    cells, how = f"frame[{column!r}]", "utc=True"
    if name == "time" and "date" in table.columns:
        cells = f"frame[{table.written['date']!r}] + ' ' + {cells}"
    elif re.fullmatch(r"[345]\d{4}(\.\d+)?", texts[0]):  # a spreadsheet counts days
        cells, how = f"{cells}.astype(float)", "unit='D', origin='1899-12-30'"
    elif DIGITS.fullmatch(texts[0]):
        how = f"format={'%Y%m%d%H%M%S'[: len(texts[0]) - 2]!r}"
    elif texts[0].endswith(("-AM", "-PM")):  # of CryptoDataDownload
        how = "format='%Y-%m-%d %I-%p', utc=True"
    elif zone := ZONE_NAMED.search(texts[0]):
        cells = f"{cells}.str.rsplit(n=1).str[0]).dt.tz_localize({zone[1]!r}"
        how = "ambiguous='infer'"
    elif EPOCH.fullmatch(texts[0]) or CLOCK.fullmatch(texts[0]):
        return ""
    elif dates := [*filter(None, [re.match(r"(\d\d?)[/.](\d\d?)[/.]\d{4}", t) for t in texts])]:
        is_first = "." in dates[0][0] or any(int(date[1]) > 12 for date in dates)
        is_second = any(int(date[2]) > 12 for date in dates)
        how = f"dayfirst={is_first if is_first or is_second else 'DAYFIRST'}, utc=True"
    return f"{table.plain_numbers}.assign(**{{{column!r}: pandas.to_datetime({cells}, {how})}})"


def _numbers(
    table: FileTable, fields: Mapping[str, str], names: Sequence[str], *, limit: int, digits: int
) -> dict[str, Decimals]:
    """Return the columns of the fields *names* as exact decimals of the same places.

    If these make a number larger than *limit*, all are rounded to *digits*, with a note.
    """
    columns = [table.checked(fields[name], name, parse, choice={name: "NAME"}) for name in names]
    places = max(column.places for column in columns)
    largest = max(float(np.abs(column.floats).max()) for column in columns)
    if any(each.is_rounded for each in columns) or largest * 10.0**places > limit:
        fewer = max(digits - 1 - math.floor(math.log10(largest)), 0)
        places = min(fewer, DECIMALS_MOST)
        what = f"{', '.join(names)}: more digits than an exchange sends"
        table.notes.append(f"{what}, rounded to {places} decimals")
    return {name: each.rescale(places) for name, each in zip(names, columns, strict=True)}
