"""What names say: those of files (symbol, category, interval), and those of their columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tracepaper.daemon.config.values import symbol_name
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.market import UNITS_MS
from tracepaper.strategies.types import Category

QUOTES: Final = ("USDT", "USDC", "FDUSD", "BUSD", "PERP", "USD", "EUR", "BTC", "ETH", "BRL", "TRY")
"""Quote coins by which a symbol is known, longest of equal endings first."""

SYMBOL: Final = re.compile(r"[A-Za-z0-9]{1,20}([-./][A-Za-z0-9]{1,10})?(:[A-Za-z0-9]{1,10})?")
PAIR: Final = re.compile(
    r"(?P<base>[A-Z0-9]{1,15})[-_/](?P<quote>USDT|USDC|USD|EUR|BTC|ETH|PERP)"
    r"(?P<settle>[-_:](USDT|USDC|USD|BTC))?(?=$|[^A-Z0-9])"
)
ONE_WORD: Final = re.compile(
    r"(?P<base>[A-Z0-9]{1,15}?)(?P<quote>USDT|USDC|FDUSD|BUSD|USD|PERP|EUR|BTC|ETH|BRL|TRY)"
    r"(?=$|[^A-Za-z]|_)"
)
INTERVAL: Final = re.compile(r"(?:^|[-_ .])(\d{1,3})(m|min|h|d|w)(?=$|[-_ .])", re.IGNORECASE)
VENUE_ENDING: Final = re.compile(r"(\.[A-Z]{1,2}|=[A-Z])$")
"""``AAPL.US`` and ``EURUSD=X``: the venue's mark behind a symbol."""
LINEAR_WORDS: Final = frozenset({"linear", "um", "futures", "swap", "perp", "perpetual", "usdm"})


def split_argument(argument: str | Path) -> tuple[str | None, Path]:
    """Return symbol and path of ``SYMBOL=PATH``, or None and the path of a plain one.

    A file that exists under the whole name is that file, also with ``=`` in it. Else what stands
    before the first ``=`` is a symbol, if it looks like one or a file stands after it. Raises
    ``ConfigInvalid`` where it is neither.
    """
    text = str(argument)
    head, equals, tail = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    if not tail:
        raise ConfigInvalid(f"{text} names no file after the =: write SYMBOL=PATH.")
    if not head:
        raise ConfigInvalid(f"{text} names no symbol before the =: write SYMBOL=PATH.")
    if SYMBOL.fullmatch(head):
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
    """Return the symbol that *name* holds, as Bybit writes it, or None."""
    stem = name.split(".", 1)[0]
    for text in (stem, stem.upper()):
        if pair := PAIR.search(text):
            base, quote = pair["base"], pair["quote"]
            return f"{base}-PERP" if quote == "PERP" else base + quote
        if word := ONE_WORD.search(text):
            return word["base"] + word["quote"]
    return None


def category_of(path: Path) -> Category:
    """Return the category that a file's name, or its folders, name; linear by default.

    A pair without a settlement coin (``BTC_USDT-5m``) is spot, as freqtrade and ccxt write it.
    """
    stem = path.name.split(".", 1)[0]
    words = {word.lower() for word in re.split(r"[-_ ]", stem)}
    for known in (words, {parent.name.lower() for parent in list(path.parents)[:6]}):
        if "spot" in known:
            return Category.SPOT
        if known & LINEAR_WORDS:
            return Category.LINEAR
    pair = PAIR.search(stem)
    if pair and "_" in pair[0] and pair["settle"] is None and pair["quote"] != "PERP":
        return Category.SPOT
    return Category.LINEAR


def interval_of(name: str) -> int | None:
    """Return the interval in milliseconds that *name* holds (``_5m_``), or None."""
    if found := INTERVAL.search(name):
        return int(found[1]) * UNITS_MS[found[2].lower()]
    return None


def coins_of(symbol: str) -> tuple[str, str]:
    """Return base and quote coin of *symbol*; ``BTCPERP`` and unknown quotes count in USD."""
    for quote in QUOTES:
        if symbol.endswith(quote) and len(symbol) > len(quote):
            base = symbol.removesuffix(quote).rstrip("-")
            return base, "USDC" if quote == "PERP" else quote
    return symbol, "USD"


def symbol_text(text: str) -> str:
    """Return a symbol of a file's own content as the exchange writes it.

    ``BTC/USDT:USDT``, ``BTC-USD``, ``AAPL.US`` and ``EURUSD=X`` are BTCUSDT, BTCUSD, AAPL, EURUSD.
    """
    plain = VENUE_ENDING.sub("", text.strip().upper().partition(":")[0])
    return plain.replace("/", "").replace("-", "").removeprefix("^")


# ---------------------------------------------------------------- columns

TIME: Final = "open_time"
ZONED: Final = tuple(
    f"{name}_{zone}"
    for name in ("time", "date", "datetime")
    for zone in ("eet", "eest", "cet", "cest", "est", "edt", "cst", "pst", "bst", "jst", "msk")
)
"""Columns that name a time of another zone."""
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
        "open_time_utc",
        "timestamp_ms",
        "local_time",
        *ZONED,
    ),
    "open": ("open", "open_price", "openprice", "o"),
    "high": ("high", "high_price", "highprice", "h"),
    "low": ("low", "low_price", "lowprice", "l"),
    "close": ("close", "close_price", "closeprice", "c"),
    "volume": ("volume", "vol", "base_volume", "basevolume", "v", "volume_base", "tickvol"),
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
        "amount",
    ),
}
"""Each meaning's names, normalised, in order of preference."""

FIGURES: Final = frozenset(
    name for meaning, names in MEANINGS.items() if meaning != TIME for name in names
)
"""Every name of a column of numbers."""
REQUIRED: Final = (TIME, "open", "high", "low", "close", "volume")


def normalise(name: str) -> str:
    """Return *name* as the tables above write it: ``<OPEN>`` and ``Open Price`` alike."""
    plain = name.strip().strip('"').lstrip("\ufeff").strip("<>#").strip().lower()
    return re.sub(r"[\s.\-]+", "_", re.sub(r"[()]", "", plain))


def is_header(cells: Sequence[str]) -> bool:
    """Return whether the first row names columns; a row of data starts with a time."""
    return not re.match(r"\s*[-+]?\d", cells[0]) and any(
        re.search(r"[A-Za-z]", cell) for cell in cells
    )


def meanings(names: Sequence[str], *, symbol: str | None) -> dict[str, str]:
    """Return meaning → column name for every meaning that *names* hold.

    With *symbol*, ``Volume BTC`` and ``Volume USDT`` are told apart by its coins.
    """
    normal = {normalise(name): name for name in reversed(names)}
    found = {
        meaning: normal[known]
        for meaning, candidates in MEANINGS.items()
        for known in reversed(candidates)
        if known in normal
    }
    for name, original in normal.items():
        coin = name.removeprefix("volume_").upper()
        if symbol and name.startswith("volume_") and original not in found.values():
            if symbol.startswith(coin):
                found.setdefault("volume", original)
            elif symbol.endswith(coin):
                found.setdefault("turnover", original)
    return found
