"""Vendors' layouts: the meaning of each column of a ``RawTable``.

A layout is an entry of ``HEADS``, which reads the first rows, or of ``LAYOUTS``, which converts
columns.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.config.values import QUOTES, symbol_name
from tracepaper.replay.archive.columns import (
    CellInvalidError,
    Column,
    join_digits,
    parse,
    texts_of,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import UNITS_MS, count_of

SYMBOL: Final = re.compile(r"[^\W_]{1,20}([-./][^\W_]{1,10})?(:[^\W_]{1,10})?")
"""Any alphabet: exchanges list coins with Chinese names."""
NO_BASES: Final = (
    *("BINANCE", "BYBIT", "COINBASE", "KRAKEN", "KUCOIN", "OKX", "BITGET", "GATE", "MEXC", "HTX"),
    *("BITSTAMP", "BITFINEX", "BITMEX", "DERIBIT", "GEMINI", "FTX", "HUOBI", "YAHOO", "CRYPTO"),
    *("SPOT", "LINEAR", "FUTURES", "DATA", "PRICE", "PRICES", "HISTORY", "CANDLES", "OHLCV", "IN"),
)
"""Words before a coin in file names, such as ``Binance_BTC_1h``, which make no pair with it."""
PAIR: Final = re.compile(
    rf"(?<![^\W_a-z])(?!(?:{'|'.join(NO_BASES)})[-_/])"
    r"(?P<base>[^\W_a-z]{1,15})[-_/](?P<quote>USDT|USDC|USD|EUR|BTC|ETH|PERP)"
    r"(?P<settle>[-_:](USDT|USDC|USD|BTC))?(?=$|[^A-Z0-9])"
)
ONE_WORD: Final = re.compile(
    r"(?P<base>[^\W_a-z]{1,15}?)(?P<quote>USDT|USDC|FDUSD|BUSD|USD|PERP|EUR|BTC|ETH|BRL|TRY)"
    r"(?=$|[^A-Za-z]|_)"
)
INTERVAL: Final = re.compile(r"(?:^|[-_ .])(\d{1,3})(m|min|h|d|w)(?=$|[-_ .])", re.IGNORECASE)
MONTHLY: Final = re.compile(r"(?:^|[-_ .])1(M|mo)(?=$|[-_ .])")
"""Months in the notation of Binance and others; ``1m`` is a minute."""
VENUE_ENDING: Final = re.compile(r"(\.([D-Z]|[A-Z]{2})|=[A-Z]|[-_](SWAP|SPOT))$")
"""The suffix of a venue or market after a symbol, as in ``AAPL.US``, ``EURUSD=X`` and
``BTC-USDT-SWAP``; ``.A`` to ``.C`` are classes of shares."""
KNOWN_SYMBOL: Final = re.compile(r"[^\W_]{1,20}(\.[A-C]|-PERP)?")
"""What ``symbol_text`` makes of a symbol in a known form."""
LINEAR_WORDS: Final = frozenset({"linear", "um", "futures", "swap", "perp", "perpetual", "usdm"})


def split_argument(argument: str | Path) -> tuple[str | None, Path]:
    """Return symbol and path of ``SYMBOL=PATH``; None and the path if there is no symbol.

    If a file of the whole name exists, it is the path, even with a ``=``. Else the text before the
    first ``=`` is the symbol, if it looks like one or the rest is a file. Raises ``ConfigInvalid``
    if neither holds.
    """
    text = str(argument)
    head, equals, tail = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    if not tail:
        raise ConfigInvalid(f"{text} names no file after the =: write SYMBOL=PATH.")
    if not head:
        raise ConfigInvalid(f"{text} names no symbol before the =: write SYMBOL=PATH.")
    if SYMBOL.fullmatch(head) and ":" not in symbol_name(head):
        if not Path(tail).exists():
            raise ConfigInvalid(
                f"Neither a file {text} exists, nor a file {tail} for {symbol_name(head)}: check "
                "the path."
            )
        return symbol_name(head), Path(tail)
    if Path(tail).exists():
        raise ConfigInvalid(f"{head!r} before the = is no symbol: write it as BTCUSDT={tail}.")
    return None, Path(text)


def symbol_of(name: str) -> str | None:
    """Return the symbol in *name*, in Bybit's notation, or None."""
    stem = name.split(".", 1)[0]
    for text in (stem, stem.upper()):
        if pair := PAIR.search(text):
            base, quote = pair["base"], pair["quote"]
            return f"{base}-PERP" if quote == "PERP" else base + quote
        if word := ONE_WORD.search(text):
            return word["base"] + word["quote"]
    return None


def category_of(path: Path) -> Category:
    """Return the category in a file's name or folders; linear by default.

    A pair without a settlement coin (``BTC_USDT-5m``) is spot, as freqtrade and ccxt write it.
    """
    stem = path.name.split(".", 1)[0]
    words = {word.lower() for word in re.split(r"[-_ ]", stem)}
    for names in (words, *({parent.name.lower()} for parent in list(path.parents)[:6])):
        if "spot" in names:
            return Category.SPOT
        if names & LINEAR_WORDS:
            return Category.LINEAR
    pair = PAIR.search(stem)
    if pair and "_" in pair[0] and pair["settle"] is None and pair["quote"] != "PERP":
        return Category.SPOT
    return Category.LINEAR


def interval_of(name: str, likely_ms: int | None = None) -> int | None:
    """Return the interval in *name* (``_5m_``), in milliseconds, or None.

    Of several (``_7d_1h`` has a span and an interval), *likely_ms* wins, else the first.
    """
    if MONTHLY.search(name):
        return MONTH_MS
    lengths = [int(part[1]) * UNITS_MS[part[2].lower()] for part in INTERVAL.finditer(name)]
    return likely_ms if likely_ms in lengths else next(iter(lengths), None)


def coins_of(symbol: str) -> tuple[str, str]:
    """Return base and quote coin of *symbol*; ``BTCPERP`` and unknown quotes count in USD."""
    for quote in QUOTES:
        if symbol.endswith(quote) and len(symbol) > len(quote):
            base = symbol.removesuffix(quote).rstrip("-")
            return base, "USDC" if quote == "PERP" else quote
    return symbol, "USD"


def symbol_text(text: str) -> str:
    """Return a symbol from a file's content in the exchange's notation.

    ``BTC/USDT:USDT``, ``BTC-USD``, ``AAPL.US`` and ``EURUSD=X`` are BTCUSDT, BTCUSD, AAPL, EURUSD.
    A text of no known form does not match ``KNOWN_SYMBOL``.
    """
    plain = VENUE_ENDING.sub("", symbol_name(text)).removeprefix("^")
    base, perpetual, _ = plain.partition("-PERP")
    return re.sub("[-_]", "", base) + perpetual


# ---------------------------------------------------------------- columns

TIME: Final = "open_time"
ZONED: Final = tuple(
    f"{name}_{zone}"
    for name in ("time", "date", "datetime")
    for zone in ("eet", "eest", "cet", "cest", "est", "edt", "cst", "pst", "bst", "jst", "msk")
)
"""Columns of times in another zone."""
INDEXES: Final = ("index", "__index_level_0__", "column_0")
"""Names that pandas gives to an index without a name."""
TICKS: Final = ("tickvol", "tick_volume")
"""MetaTrader's columns for the number of prices in a candle."""
MEANINGS: Final = {
    TIME: (
        "open_time",
        "opentime",
        "open_time_ms",
        "start",
        "start_time",
        "starttime",
        "start_at",
        "startat",
        "timestamp",
        "time",
        "datetime",
        "date_time",
        "date",
        "ts",
        "unix",
        "t",
        "candle_begin_time",
        "gmt_time",
        "time_utc",
        "utc",
        "open_time_utc",
        "datetime_utc",
        "date_utc",
        "timestamp_utc",
        "timestamp_ms",
        "local_time",
        *ZONED,
        "window_start",
        "mts",
        *INDEXES,
    ),
    "open": ("open", "open_price", "openprice", "o"),
    "high": ("high", "high_price", "highprice", "h"),
    "low": ("low", "low_price", "lowprice", "l"),
    "close": ("close", "close_price", "closeprice", "c", "price", "last"),
    "volume": (
        "volume",
        "vol",
        "base_volume",
        "basevolume",
        "v",
        "volume_base",
        "vol_",
        "volumefrom",
        "real_volume",
        *TICKS,
    ),
    "turnover": (
        "turnover",
        "quote_volume",
        "quotevolume",
        "quote_asset_volume",
        "quoteassetvolume",
        "asset_volume",
        "assetvolume",
        "volume_quote",
        "quote_vol",
        "vol_quote",
        "volccyquote",
        "vol_ccy_quote",
        "volumeto",
        "sum",
        "amount",
    ),
}
"""Each meaning's names, normalised, in order of preference."""

FIGURES: Final = frozenset(
    name for meaning, names in MEANINGS.items() if meaning != TIME for name in names
)
"""Every name of a column of numbers."""
SYMBOL_COLUMNS: Final = ("symbol", "pair", "instrument", "ticker", "instrument_name", "instid")
KNOWN: Final = FIGURES | {*MEANINGS[TIME], *SYMBOL_COLUMNS}
"""Every name with a meaning."""
REQUIRED: Final = (TIME, "open", "high", "low", "close", "volume")
SAME: Final = "\x1f"
"""Separates the meaning from the written name where several columns have one meaning."""


def normalise(name: str) -> str:
    """Return *name* in the notation of the tables above; ``<OPEN>`` becomes ``open``."""
    plain = name.strip().strip('"').lstrip("\ufeff").strip("<>#").strip().lower()
    return re.sub(r"[\s.\-]+", "_", re.sub(r"[()\[\]]", "", plain))


def is_header(cells: Sequence[str]) -> bool:
    """Return whether the first row is a header; a row of data starts with a time."""
    return not re.match(r"\s*[-+]?\d", cells[0]) and any(
        re.search(r"[A-Za-z]", cell) for cell in cells
    )


def meanings(names: Sequence[str], *, symbol: str | None) -> dict[str, str]:
    """Return meaning → column name for every meaning among *names*.

    The coins of *symbol* distinguish ``Volume BTC`` from ``Volume USDT``.
    """
    normal = {normalise(name): name for name in reversed(names)}
    columns = {
        meaning: normal[candidate]
        for meaning, candidates in MEANINGS.items()
        for candidate in reversed(candidates)
        if candidate in normal
    }
    for name, original in normal.items():
        coin = name.removeprefix("volume_").upper()
        if symbol and name.startswith("volume_") and original not in columns.values():
            if symbol.startswith(coin):
                columns.setdefault("volume", original)
            elif symbol.endswith(coin):
                columns.setdefault("turnover", original)
    return columns


Given = ParamSpec("Given")
Result = TypeVar("Result")
HEADER_LINES: Final = 3
"""The maximum number of header rows."""
GROUPED: Final = re.compile(rb"[+-]?[1-9]\d{0,2}(\.\d{3})+,\d+")
THOUSANDS: Final = re.compile(rb"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
THOUSAND: Final = re.compile(rb"[+-]?[1-9]\d{0,2},\d{3}")
SHORTENED: Final = re.compile(rb"([+-]?\d+(?:\.\d+)?)([KMBkmb])")
SHORT_POWERS: Final = {b"K": 3, b"M": 6, b"B": 9}
CLOSED: Final = ("confirm", "is_closed", "isclosed", "is_final", "isfinal", "complete", "x")
"""Whether a candle was closed: columns of Bybit, OKX, OANDA and Binance (``x`` beside ``t``)."""
MOMENT_OF_DAY: Final = re.compile(r"\d{1,2}:\d{2}(:\d{2})?(\.\d+)?( ?[AaPp][Mm])?")
DIGITS_OF_DAY: Final = re.compile(r"\d{1,6}")
"""A time of day without colons and leading zeros: ``153000``, ``90000``, ``0``."""
SYMBOLS_SHOWN: Final = 8
FRAME: Final = Path("the frame")
"""The path of a table that is a frame."""


@dataclass(frozen=True, eq=False)
class RawTable:
    """Rows of one file: *columns* of one length, by their names in the file.

    ``lines`` has the number of each row in the file, from 1, in ``unit``: lines of text, or rows.
    ``bare``: the file has no header. ``symbol``: the symbol in a header. ``separator``: between
    cells of text. ``zone``: the time zone, if the file names one beside the times. ``kind``: the
    category of contracts. ``notes``: sentences about conversions.
    """

    path: Path
    columns: Mapping[str, Column]
    lines: npt.NDArray[np.int64]
    unit: str = "line"
    bare: bool = False
    symbol: str = ""
    separator: str = ","
    zone: str = ""
    kind: str = ""
    notes: tuple[str, ...] = ()

    def choice(self, **columns: str) -> str:
        """Return what chooses *columns*, field → name: an argument for a frame, else options.

        An empty name leaves a field out.
        """
        if self.path == FRAME:
            given = {field: name or None for field, name in columns.items()}
            return f"columns={given}".replace("'", '"')
        return " ".join(
            f"--columns {field}={shlex.quote(name) if name else ''}"
            for field, name in columns.items()
        )

    def place(self, row: int) -> str:
        """Return the place of row *row* for a message: ``prices.csv: line 17``."""
        return f"{self.path}: {self.unit} {self.lines[row]}"

    def reject(self, error: CellInvalidError, name: str, *, is_usual: bool = False) -> DataInvalid:
        """Return *error* in column *name*, in most rows if *is_usual*, with file and line."""
        what = f"{self.place(error.row)}: {name} {error.what}"
        if error.remedy:
            return DataInvalid(f"{what}: {error.remedy}.")
        if not is_usual:
            return DataInvalid(f"{what}; correct or remove the row.")
        field = TIME if name == "the open time" else name
        remedy = ""
        if field in MEANINGS:
            remedy = f"name another column by {self.choice(**{field: 'NAME'})}, or "
        form = "numbers"
        if field == TIME:
            form = "2025-01-31T12:00, by pandas: frame[column] = pandas.to_datetime(frame[column])"
        return DataInvalid(f"{what}, and so in most rows: {remedy}write it as {form}.")

    def checked(
        self, name: str, read: Callable[Given, Result], *given: Given.args, **keys: Given.kwargs
    ) -> Result:
        """Apply *read* to column *name*; a ``CellInvalidError`` becomes a ``DataInvalid``."""
        try:
            return read(*given, **keys)
        except CellInvalidError as error:
            is_usual = _fails_mostly(partial(read, **keys), given)
            raise self.reject(error, name, is_usual=is_usual) from None

    def select(self, rows: npt.NDArray[Any]) -> RawTable:
        """Return the rows at these indices, or of this mask."""
        columns = {name: cells[rows] for name, cells in self.columns.items()}
        return replace(self, columns=columns, lines=self.lines[rows])


class TableHead(NamedTuple):
    """The header of a table: names of the columns, number of header rows, and a symbol."""

    names: Sequence[str]
    height: int = 0  # 0: no header
    symbol: str = ""


ROWS_TRIED: Final = 20
ROWS_LEAST: Final = 3  # of fewer, a wrong one is no sign


def is_most(wrong: npt.NDArray[np.bool_]) -> bool:
    """Return whether most rows are *wrong*, so that the file is, and not a row."""
    return wrong.size >= ROWS_LEAST and bool(wrong.mean() > 0.5)


def _fails_mostly(read: Callable[..., object], given: Sequence[object]) -> bool:
    """Return whether *read* fails for most single rows of the columns in *given*."""
    size = next((value.size for value in given if isinstance(value, np.ndarray)), 1)
    wrong = []
    for row in np.unique(np.linspace(0, size - 1, ROWS_TRIED).astype(np.int64)):
        try:
            read(*(value[[row]] if isinstance(value, np.ndarray) else value for value in given))
            wrong.append(False)
        except CellInvalidError:
            wrong.append(True)
    return is_most(np.array(wrong))


Rows = Sequence[Sequence[str]]
"""The cells of a file's first rows, at most ``HEADER_LINES``."""


def head_of(path: Path, rows: Rows) -> TableHead:
    """Return the head of a table by its first *rows*; raise ``DataInvalid`` for unknown layouts."""
    for layout in HEADS:
        if (head := layout(rows)) is not None:
            return head._replace(names=distinct(path, head.names, head.names))
    if is_header(rows[0]):
        return TableHead(distinct(path, rows[0]), 1)
    if {"true", "false"} & {*map(str.lower, rows[0])}:
        raise holds_trades(path)
    raise DataInvalid(
        f"{path} has no header and {len(rows[0])} columns, which is no layout of a known maker: "
        "add a first row such as open_time,open,high,low,close,volume."
    )


def holds_trades(path: Path) -> DataInvalid:
    """Return the error for a file of trades in the place of candles."""
    return DataInvalid(
        f"{path} holds trades and no candles: make candles of its columns time, price and "
        "quantity, such as by pandas: frame.index = pandas.to_datetime(frame.time, unit='ms'); "
        "frame.price.resample('1min').ohlc().assign(volume=frame.quantity.resample('1min').sum())"
        ".dropna().to_csv('BTCUSDT_1m.csv')."
    )


def distinct(path: Path, names: Sequence[str], plain: Sequence[str] = ()) -> list[str]:
    """Return distinct names, *plain* or normalised; a nameless column is named by its position.

    Of names that differ only in case (``t`` and ``T``, open and close time of some exchanges), the
    one written as in ``MEANINGS`` keeps its name. Columns without a meaning may repeat a name. The
    others of one meaning get their written name after ``SAME`` (``reject_unclear``). Raises
    ``DataInvalid`` if two are written alike.
    """
    plain = plain or [normalise(name) for name in names]
    result: list[str] = []
    for place, (name, normal) in enumerate(zip(names, plain, strict=True)):
        if not normal:
            result.append(f"column_{place}")
            continue
        same = [
            other
            for other, other_normal in zip(names, plain, strict=True)
            if other_normal == normal
        ]
        exact = [other for other in same if other.strip() == normal]
        if len(same) == 1 or (len(exact) == 1 and name.strip() == normal):
            result.append(normal)
        elif len(exact) == 1 or normal not in KNOWN:
            result.append(f"{normal}_{place}")
        elif [other.strip() for other in same].count(name.strip()) == 1:
            result.append(f"{normal}{SAME}{name.strip()}")
        else:
            raise DataInvalid(f"{path} has two columns {normal}: remove one of them.")
    return result


def plain_table(table: RawTable, symbol: str | None, columns: Sequence[str] = ()) -> RawTable:
    """Return the rows of *symbol*, with the columns of ``MEANINGS``.

    *columns* are choices in the notation of ``chosen_columns``. Raises ``DataInvalid`` or
    ``ConfigInvalid`` for ambiguous columns.
    """
    if "homenotional" in table.columns:  # coins, beside volume and turnover in contracts
        raise DataInvalid(
            f"{table.path} has the buckets of BitMEX, whose volume and turnover count contracts "
            "and whose times are those of closes: convert them, such as by pandas for minutes: "
            "frame.index = pandas.to_datetime(frame.timestamp) - pandas.Timedelta('1min'); "
            "frame[['open', 'high', 'low', 'close']].assign(volume=frame.homeNotional, "
            "turnover=frame.foreignNotional).to_csv('BTCUSDT_1m.csv')."
        )
    table = _with_chosen(of_one_symbol(table, symbol), symbol, chosen_columns(columns))
    for layout in LAYOUTS:
        table = layout(table) or table
    return table


# ---------------------------------------------------------------- columns that users choose


def chosen_columns(columns: Sequence[str]) -> dict[str, str]:
    """Return field → column name for ``close=Price``; ``turnover=`` leaves a field out.

    Raises ``ConfigInvalid`` for an entry of *columns* in another form.
    """
    chosen: dict[str, str] = {}
    for text in columns:
        field, equals, name = (part.strip() for part in text.partition("="))
        if not equals:
            raise ConfigInvalid(
                f"--columns is {text}; write {field}=COLUMN, or {field}= to leave it out."
            )
        if field not in MEANINGS:
            raise ConfigInvalid(
                f"--columns is {text}, and candles have no field {field}; write one of "
                f"{', '.join(MEANINGS)}."
            )
        if field in chosen:
            raise ConfigInvalid(f"--columns names {field} twice; leave one of them out.")
        if not name and field in REQUIRED[:-1]:
            raise ConfigInvalid(
                f"--columns is {text}, and {field} cannot be left out; write {field}=COLUMN."
            )
        chosen[field] = name
    return chosen


def reject_unclear(table: RawTable, columns: Sequence[str] = ()) -> RawTable:
    """Return *table*; raise ``DataInvalid`` if columns share a meaning and none is chosen."""
    chosen = chosen_columns(columns)
    for column in table.columns:
        normal, mark, written = column.partition(SAME)
        if not mark or written in chosen.values():
            continue
        field = next((meaning for meaning, names in MEANINGS.items() if normal in names), "")
        if not field:
            raise DataInvalid(f"{table.path} has two columns {normal}: remove one of them.")
        if field not in chosen:
            raise DataInvalid(
                f"{table.path} has two columns {normal}: choose one, such as by "
                f"{table.choice(**{field: written})}."
            )
    return table


def _with_chosen(table: RawTable, symbol: str | None, chosen: Mapping[str, str]) -> RawTable:
    """Return *table* with the *chosen* columns renamed to their fields.

    Other columns with the meaning of a chosen field are dropped. Raises ``DataInvalid`` if a column
    is missing, or the table has no header.
    """
    if not chosen:
        return table
    places = {field: _named(table, field, name) for field, name in chosen.items() if name}
    others = {
        name: cells
        for name, cells in table.columns.items()
        if SAME not in name and name not in places.values()
    }
    for field in chosen:
        while (other := meanings(list(others), symbol=symbol).get(field)) is not None:
            del others[other]
    picked = {field: table.columns[name] for field, name in places.items()}
    words = [
        f"{field} is {places[field].rpartition(SAME)[2]}" if name else f"{field} is left out"
        for field, name in chosen.items()
    ]
    if chosen.get("volume") == "":
        picked["volume"] = np.zeros(table.lines.size, dtype=np.int64)
    note = f"{' and '.join(words)}, by --columns"
    return replace(table, columns={**others, **picked}, notes=(*table.notes, note))


def _named(table: RawTable, field: str, name: str) -> str:
    """Return the column of *table* with the written name *name*."""
    if table.bare:
        raise DataInvalid(
            f"{table.path} has no names of columns, so none is {name}: name none for {field}, or "
            f"add a first line such as {','.join(REQUIRED)}."
        )
    by_name = {column.rpartition(SAME)[2]: column for column in table.columns}
    meant = by_name.get(name) or by_name.get(normalise(name))
    if meant is None:
        raise DataInvalid(
            f"{table.path} has no column {name} (found {', '.join(by_name)}): name another for "
            f"{field}."
        )
    return meant


# ---------------------------------------------------------------- symbols


def own_symbols(table: RawTable) -> tuple[str, ...]:
    """Return the symbols in the content of *table*, sorted."""
    if table.symbol:
        return (symbol_text(table.symbol),)
    symbols = {name.partition("@")[2] for name in table.columns if "@" in name}
    for name in SYMBOL_COLUMNS:
        cells = table.columns.get(name)
        if not symbols and cells is not None and cells.dtype.kind == "S":
            symbols = {symbol_text(text) for text in texts_of(np.unique(cells))}
    return tuple(sorted(symbols - {""}))


class SymbolUnknown(ConfigInvalid):
    """Neither the name nor the content of a file names its symbol."""


def symbol_of_table(
    table: RawTable, named: str | None, given: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """Return the symbol and notes: *named* before the path, else the file's own, else *given*.

    Raises ``ConfigInvalid`` if nothing names a symbol, if name and content differ, or if *given*
    differs from the file's own: only ``SYMBOL=PATH`` may rename it, which is noted.
    """
    by_name = symbol_of(table.path.name)
    held = own_symbols(table)
    if len(held) > 1:
        return named or given or by_name, ()
    if held and not named and not KNOWN_SYMBOL.fullmatch(held[0]):
        raise SymbolUnknown(
            f"{table.path} names its symbol {held[0][:40]}, which is no known form: write "
            f"SYMBOL={table.path}."
        )
    symbol = by_name or (held[0] if held else None)
    if named:
        if symbol and named != symbol:
            return named, (f"what is {symbol}'s is named {named}, as SYMBOL=PATH says",)
        return named, ()
    if by_name and held and by_name != held[0]:
        raise ConfigInvalid(
            f"{table.path} says {by_name} by its name and {held[0]} by its content: write "
            f"SYMBOL={table.path} to say which it is."
        )
    if given and symbol and given != symbol:
        where = "by its name" if by_name else "by its content"
        raise ConfigInvalid(
            f"--symbol is {given}, and {table.path} holds {symbol} {where}: leave --symbol out, or "
            f"write {given}={table.path} to call it so."
        )
    if not (symbol or given):
        raise SymbolUnknown(f"{table.path} does not name its symbol: write SYMBOL={table.path}.")
    return symbol or given, ()


def of_one_symbol(table: RawTable, symbol: str | None) -> RawTable:
    """Return the rows of *symbol* if *table* has several symbols, else the whole table.

    Raises ``ConfigInvalid`` if *symbol* is not among several.
    """
    held = own_symbols(table)
    if len(held) < 2:  # one, or none that is named
        return table
    if symbol not in held:
        choices = [name for name in held if KNOWN_SYMBOL.fullmatch(name)]
        shown = ", ".join(held[:SYMBOLS_SHOWN]) + (" and more" if len(held) > SYMBOLS_SHOWN else "")
        if not choices:
            raise ConfigInvalid(
                f"{table.path} holds {shown}, which are no known form of symbols: write them as "
                "BTCUSDT or AAPL."
            )
        raise ConfigInvalid(
            f"{table.path} holds {shown}: choose one by SYMBOL={table.path}, such as "
            f"{choices[0]}={table.path}."
        )
    note = f"{len(held) - 1} other symbols of the file left out"
    if any("@" in name for name in table.columns):
        columns = {
            name.partition("@")[0]: cells
            for name, cells in table.columns.items()
            if "@" not in name or name.partition("@")[2] == symbol
        }
        return _without_empty(replace(table, columns=columns, notes=(*table.notes, note)))
    named = next(name for name in SYMBOL_COLUMNS if name in table.columns)
    texts = texts_of(table.columns[named])
    mine = np.array([symbol_text(text) == symbol for text in texts], dtype=np.bool_)
    return replace(table, notes=(*table.notes, note)).select(mine)


def _without_empty(table: RawTable) -> RawTable:
    """Return *table* without rows whose figures are all empty: the symbol did not trade."""
    empty = [
        cells == b""
        for name, cells in table.columns.items()
        if name in FIGURES and cells.dtype.kind == "S"
    ]
    return table.select(~np.logical_and.reduce(empty)) if empty else table


# ---------------------------------------------------------------- layouts


def _without_header(
    names: Sequence[str], fits: Callable[[Sequence[str]], bool]
) -> Callable[[Rows], TableHead | None]:
    """Return the head of a table without header, if *fits* accepts the cells of its first row."""

    def head(rows: Rows) -> TableHead | None:
        cells = rows[0]
        return None if is_header(cells) or not fits(cells) else TableHead(names[: len(cells)])

    return head


def _is_metatrader(cells: Sequence[str]) -> bool:
    return len(cells) in range(7, 10) and MOMENT_OF_DAY.fullmatch(cells[1].strip()) is not None


def _yfinance_head(rows: Rows) -> TableHead | None:
    """Return the head of yfinance's table of one ticker or several.

    It has a row of fields and a row of tickers, in either order, and usually a third row that names
    the time. With several tickers a name is ``close@AAPL``.
    """
    if len(rows) < 3:  # two rows of a header and one of data
        return None
    kinds = [[normalise(cell) for cell in row] for row in rows[:2]]
    fields = [len(FIGURES.intersection(row[1:])) for row in kinds]
    if max(fields) < 4 or min(fields) > 0 or len(set(map(len, rows[:3]))) > 1:
        return None
    place = fields.index(max(fields))
    if kinds[1 - place][0] not in {"ticker", "tickers", ""}:
        return None
    time = kinds[0][0]
    height = 2
    if not any(cell.strip() for cell in rows[2][1:]):
        time, height = normalise(rows[2][0]), 3
    if time not in MEANINGS[TIME]:
        return None
    tickers = [symbol_text(cell) for cell in rows[1 - place][1:]]
    if len(set(tickers)) == 1:
        return TableHead([time, *kinds[place][1:]], height, rows[1 - place][1].strip())
    names = [f"{name}@{ticker}" for name, ticker in zip(kinds[place][1:], tickers, strict=True)]
    return TableHead([time, *names], height)


def _plain_figures(table: RawTable) -> RawTable | None:
    """Return *table* with plain figures: decimal points, no thousands separators, no K, M, B.

    If commas separate cells, a comma within a figure separates thousands. It is removed only if
    some cell proves that by a point or a second comma. Otherwise commas are decimal. Raises
    ``DataInvalid`` for ambiguous figures.
    """
    texts = {
        name: cells.astype(np.bytes_)
        for name, cells in table.columns.items()
        if cells.dtype.kind == "S" and (name in FIGURES or name.startswith("volume"))
    }
    commas = [name for name, cells in texts.items() if np.char.count(cells, b",").any()]
    shown = [cell.strip() for name in commas for cell in texts[name].tolist() if b"," in cell]
    columns: dict[str, Column] = {}
    notes = []
    if shown and table.separator == ",":
        is_clear = any(b"." in cell or cell.count(b",") > 1 for cell in shown)
        if is_clear and all(map(THOUSANDS.fullmatch, shown)):
            columns = {name: np.char.replace(texts[name], b",", b"") for name in commas}
            notes.append("figures have commas between thousands, left out")
    elif shown:
        if all(map(THOUSAND.fullmatch, shown)):
            raise DataInvalid(
                f"{table.path} has figures such as {shown[0].decode()}, whose comma may be a "
                "decimal one or one of thousands: write them without the comma."
            )
        columns = {name: _decimal_points(table, name, cells) for name, cells in texts.items()}
        notes.append("figures have decimal commas, read as points")
    for name in sorted(texts.keys() & {*MEANINGS["volume"], *MEANINGS["turnover"]}):
        cells = columns.get(name, texts[name])
        if not re.search(rb"[KMBkmb]", cells.tobytes()):
            continue  # as most files, without a look at each cell
        matches = [SHORTENED.fullmatch(cell.strip()) for cell in cells.tolist()]
        if any(matches):
            written = [
                cell if part is None else part[1] + b"e%d" % SHORT_POWERS[part[2].upper()]
                for part, cell in zip(matches, cells.tolist(), strict=True)
            ]
            columns[name] = np.array(written, dtype=np.bytes_)
            notes.append(f"{name} is shortened by K, M or B, and so rounded")
    if not notes:
        return None
    return replace(table, columns={**table.columns, **columns}, notes=(*table.notes, *notes))


def _decimal_points(table: RawTable, name: str, cells: npt.NDArray[np.bytes_]) -> Column:
    """Replace decimal commas in *cells* by points; reject a cell with commas and points mixed."""
    odd = (np.char.count(cells, b".") > 0) | (np.char.count(cells, b",") > 1)
    for row in np.flatnonzero(odd).tolist():
        cell = bytes(cells[row])
        if not GROUPED.fullmatch(cell):
            what = f"is {cell.decode('utf-8', 'replace')[:40]!r} in a file of decimal commas"
            raise table.reject(CellInvalidError(row, what), name, is_usual=is_most(odd))
    return np.char.replace(np.char.replace(cells, b".", b""), b",", b".")


def _volume_of_coins(table: RawTable) -> RawTable | None:
    """Return a table of OKX with its volume in coins; swaps also have a volume in contracts."""
    names = table.columns
    coins = next((name for name in ("volccy", "vol_ccy") if name in names), None)
    quote = next((name for name in MEANINGS["turnover"] if name in names), None)
    if coins is None or quote is None or "vol" not in names:
        return None
    if np.array_equal(names[coins], names[quote]):  # spot: both columns are in quote coin
        return replace(
            table, columns={name: cells for name, cells in names.items() if name != coins}
        )
    columns = {name: cells for name, cells in names.items() if name not in {"vol", coins}}
    note = f"volume is {coins}, in coins, as vol counts contracts"
    return replace(table, columns={**columns, "vol": names[coins]}, notes=(*table.notes, note))


def _closed(table: RawTable) -> RawTable | None:
    """Return *table* without candles that were not closed."""
    for name in CLOSED:
        if name not in table.columns or (name == "x" and "t" not in table.columns):
            continue
        cells = table.columns[name]
        texts = np.char.lower(cells.astype(np.bytes_))
        is_closed = np.isin(texts, [b"1", b"true"])
        is_flag = bool((is_closed | np.isin(texts, [b"0", b"false"])).all())
        if is_flag and is_closed.any() and not is_closed.all():
            note = f"{count_of(int((~is_closed).sum()), 'candle')} not closed left out"
            return replace(table, notes=(*table.notes, note)).select(is_closed)
    return None


def _date_and_time(table: RawTable) -> RawTable | None:
    """Return *table* with the date and time columns of MetaTrader and Stooq joined.

    Raises ``DataInvalid`` for a pair that is no time.
    """
    date, clock = table.columns.get("date"), table.columns.get("time")
    if date is None or clock is None or not date.dtype.kind == clock.dtype.kind == "S":
        return None
    first = texts_of(clock[:1])[0]
    dates, clocks = date.astype(np.bytes_), clock.astype(np.bytes_)
    if MOMENT_OF_DAY.fullmatch(first):
        joined = np.char.add(np.char.add(dates, b" "), clocks)
    elif DIGITS_OF_DAY.fullmatch(first):
        joined = table.checked("the open time", join_digits, dates, clocks)
    else:
        return None
    others = {name: cells for name, cells in table.columns.items() if name not in {"date", "time"}}
    return replace(table, columns={TIME: joined, **others})


def _tick_volume(table: RawTable) -> RawTable | None:
    """Return *table* without its volume column if that is zero and ticks were counted."""
    volume = meanings(list(table.columns), symbol=None).get("volume", TICKS[0])
    if volume in TICKS or not any(name in table.columns for name in TICKS):
        return None
    if table.checked("volume", parse, table.columns[volume]).mantissa.any():
        return None
    columns = {name: cells for name, cells in table.columns.items() if name != volume}
    note = "volume is the number of ticks, as the file's own volume is zero throughout"
    return replace(table, columns=columns, notes=(*table.notes, note))


HEADS: Final[tuple[Callable[[Rows], TableHead | None], ...]] = (
    _without_header(  # MetaTrader 4
        ("date", "time", "open", "high", "low", "close", "tickvol", "vol", "spread"),
        _is_metatrader,
    ),
    _without_header(  # Binance Vision
        (*REQUIRED, "close_time", "quote_volume", *(f"other_{place}" for place in range(4))),
        lambda cells: len(cells) in {11, 12},
    ),
    _without_header(  # OKX
        (*REQUIRED[:5], "vol", "volccy", "volccyquote", "confirm"),
        lambda cells: len(cells) == 9 and cells[8] in {"0", "1"},
    ),
    _without_header(  # ccxt, Bybit and freqtrade
        (*REQUIRED, "turnover"),
        # Trades of Binance have flags.
        lambda cells: len(cells) in {6, 7} and not {"true", "false"} & {*map(str.lower, cells)},
    ),
    _without_header(REQUIRED[:5], lambda cells: len(cells) == 5),
    _without_header((TIME, "funding_rate"), lambda cells: len(cells) == 2),
    _yfinance_head,
)
"""Readers of first rows without known column names; each returns None for other layouts."""

LAYOUTS: Final[tuple[Callable[[RawTable], RawTable | None], ...]] = (
    _plain_figures,
    _volume_of_coins,
    _closed,
    _date_and_time,
    _tick_volume,
)
"""Conversions to the columns of ``MEANINGS``; every one that fits is applied, in order."""
