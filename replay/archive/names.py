"""What names say: the fields of columns, the symbol, market and interval of a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tracepaper.daemon.bybit.instruments import recorded_instruments
from tracepaper.daemon.config.values import FIAT, QUOTES, symbol_name
from tracepaper.storage.paths import at_home
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import UNITS_MS

# ---------------------------------------------------------------- columns

TIME: Final = "open_time"
PRICES: Final = ("open", "high", "low", "close")
REQUIRED: Final = (TIME, *PRICES, "volume")
FIELDS: Final = (*REQUIRED, "turnover")
NAMES: Final = {
    TIME: (  # first those of numbers, which need no zone
        *("opentime", "opentimems", "start", "starttime", "unix", "timestampms", "ts", "t"),
        *("timestamp", "time", "datetime", "date", "gmttime", "timeutc", "utc", "opentimeutc"),
        *("datetimeutc", "dateutc", "timestamputc", "windowstart", "timeperiodstart", "tsevent"),
        "localtime",
        *("index", "indexlevel0", "unnamed0"),  # an index without a name
    ),
    "open": ("open", "openprice", "o", "priceopen"),
    "high": ("high", "highprice", "h", "pricehigh"),
    "low": ("low", "lowprice", "l", "pricelow"),
    "close": ("close", "closeprice", "c", "priceclose", "price", "last"),
    "volume": ("volume", "vol", "basevolume", "v", "volumebase", "volumefrom", "volumetraded"),
    "turnover": (
        *("turnover", "quotevolume", "quoteassetvolume", "assetvolume", "volumequote"),
        *("quotevol", "volquote", "volccyquote", "volumeto", "sum", "amount"),
    ),
    "symbol": ("symbol", "pair", "instrument", "ticker", "instrumentname", "instid"),
    "timezone": ("timezone", "tz", "exchangetimezone"),
    "closed": ("confirm", "isclosed", "isfinal", "complete"),
}
"""Field → the accepted names of its column, as ``plain_name`` writes them; the first is preferred.

``closed`` tells whether a candle was closed: of Bybit, OKX and OANDA.
"""


CLOCK: Final = re.compile(r"\d\d?:\d\d(:\d\d)?")
"""The time of a day."""


def plain_name(name: str) -> str:
    """Return *name* in the notation of ``NAMES``: letters and digits; ``<OPEN>`` is ``open``.

    ``Close (USDT)`` is ``close``; a volume keeps its unit, which tells coins from money.
    """
    name = re.sub(r"^\s*(open|high|low|close)\s*[(\[][^)\]]*[)\]]\s*$", r"\1", name.lower())
    return re.sub(r"[\W_]+", "", name)


def bare_names(first: Sequence[str]) -> list[str]:
    """Return the names of columns without a header, whose *first* row this is.

    They are those of candles, else numbers. MetaTrader 4 writes the clock into a column of its own,
    and counts ticks or coins in the last.
    """
    layouts: dict[int, Sequence[str]] = {
        2: ("opentime", "fundingrate"),
        6: REQUIRED,  # ccxt, freqtrade
        7: FIELDS,  # Bybit
        12: (*REQUIRED, "close_time", "quote_volume", "trades", "buy", "buy_quote", "unused"),
    }  # Binance
    if len(first) == 7 and CLOCK.fullmatch(first[1]):
        return ["date", "time", *PRICES, "ticks_or_coins"]
    return [*layouts.get(len(first), [f"column_{at}" for at in range(len(first))])]


# ---------------------------------------------------------------- files and symbols

SYMBOL: Final = re.compile(r"[^\W_]{1,20}([-./][^\W_]{1,10})?(:[^\W_]{1,10})?")
"""Any alphabet: exchanges list coins with Chinese names."""
NO_BASES: Final = (
    *("BINANCE", "BYBIT", "COINBASE", "KRAKEN", "KUCOIN", "OKX", "BITGET", "GATE", "MEXC", "HTX"),
    *("BITSTAMP", "BITFINEX", "BITMEX", "DERIBIT", "GEMINI", "FTX", "HUOBI", "YAHOO", "CRYPTO"),
    *("SPOT", "LINEAR", "FUTURES", "DATA", "PRICE", "PRICES", "HISTORY", "CANDLES", "OHLCV", "IN"),
)
"""Words before a coin in file names, such as ``Binance_BTC_1h``, which make no pair with it."""
PAIR: Final = re.compile(  # a look ahead, so that pairs may overlap
    rf"(?=(?<![^\W_a-z])(?!(?:{'|'.join(NO_BASES)})[-_/])"
    r"(?P<base>[^\W_a-z]{1,15})[-_/](?P<quote>USDT|USDC|USD|EUR|BTC|ETH|PERP)"
    r"(?P<settle>[-_:](USDT|USDC|USD|BTC))?(?=$|[^A-Z0-9]))"
)
ONE_WORD: Final = re.compile(
    rf"(?<![^\W_a-z])(?!(?:{'|'.join(NO_BASES)})(?:USD|EUR|BTC|ETH))"
    r"(?P<base>[^\W_a-z]{1,15}?)(?P<quote>USDT|USDC|FDUSD|BUSD|USD|PERP|EUR|BTC|ETH|BRL|TRY)"
    r"(?=$|[^A-Za-z]|_)"
)
INTERVAL: Final = re.compile(r"(?:^|[-_ .])(\d{1,3})(m|min|h|d|w)(?=$|[-_ .])", re.IGNORECASE)
MONTHLY: Final = re.compile(r"(?:^|[-_ .])1(M|mo)(?=$|[-_ .])")
"""Months in the notation of Binance and others; ``1m`` is a minute."""
SHARE_FILE: Final = re.compile(
    r"stock[-_](?P<symbol>[\^\w.=-]{1,20})[-_]\d{1,3}(m|min|h|d|w|mo)\.", re.IGNORECASE
)
"""Names of files of shares, such as ``stock_AAPL_1d.csv``."""
KNOWN_SYMBOL: Final = re.compile(r"[^\W_]{1,20}(\.[A-C]|-PERP)?")
"""What ``symbol_text`` makes of a symbol in a known form."""
LINEAR_WORDS: Final = frozenset({"linear", "um", "futures", "swap", "perp", "perpetual", "usdm"})


def split_argument(argument: str | Path) -> tuple[str | None, Path]:
    """Return symbol and path of ``SYMBOL=PATH``; None and the path if there is no symbol.

    If a file of the whole name exists, it is the path, even with a ``=``. Else the text before the
    first ``=`` is the symbol of the file after it. Raises ``ConfigInvalid`` if it is none, or the
    file does not exist.
    """
    text = at_home(str(argument))
    symbol, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    is_symbol = SYMBOL.fullmatch(symbol_name(symbol)) and ":" not in symbol_name(symbol)
    if not is_symbol or not path or not Path(path).exists():
        raise ConfigInvalid(
            f"Neither a file {text} exists, nor a file {path or 'after ='} for a symbol "
            f"{symbol or 'before ='}: write SYMBOL=PATH, such as BTCUSDT=prices.csv."
        )
    return symbol_name(symbol), Path(path)


def symbol_of(name: str) -> str | None:
    """Return the symbol in a file's *name*, in Bybit's notation, or None."""
    if share := SHARE_FILE.match(name):
        return symbol_text(share["symbol"])
    stem = name.split(".", 1)[0]
    for text in (stem, stem.upper()):
        if pair := _pair_in(text):
            base, quote = pair["base"], pair["quote"]
            return f"{base}-PERP" if quote == "PERP" else base + quote
        if word := ONE_WORD.search(text):
            return word["base"] + word["quote"]
    return None


def _pair_in(text: str) -> re.Match[str] | None:
    """Return the pair that *text* names, or None.

    A word before a coin (``my_btc``, ``bithumb_BTC``) makes no pair with it: only a coin that the
    exchange lists is priced in BTC or ETH.
    """
    pairs = [*PAIR.finditer(text)]
    in_money = [pair for pair in pairs if pair["quote"] not in ("BTC", "ETH")]
    listed = [pair for pair in pairs if f"{pair['base']}USDT" in recorded_instruments()]
    return next(iter((*in_money, *listed)), None)


def symbol_text(text: str) -> str:
    """Return a symbol from a file's content in the exchange's notation.

    ``BTC/USDT:USDT``, ``BTC-USD``, ``AAPL.US`` and ``EURUSD=X`` are BTCUSDT, BTCUSD, AAPL, EURUSD.
    A text of no known form does not match ``KNOWN_SYMBOL``.
    """
    plain = symbol_name(text).removeprefix("^")
    if plain.partition("-")[0] in FIAT:
        return plain  # ``KRW-BTC`` is in no known form: which coin prices the other?
    base, perpetual, _ = plain.partition("-PERP")
    return re.sub("[-_]", "", base) + perpetual


def coins_of(symbol: str) -> tuple[str, str]:
    """Return base and quote coin of *symbol*; ``BTCPERP`` and unknown quotes count in USD."""
    for quote in QUOTES:
        if symbol.endswith(quote) and len(symbol) > len(quote):
            base = symbol.removesuffix(quote).rstrip("-")
            return base, "USDC" if quote == "PERP" else quote
    return symbol, "USD"


def category_of(path: Path) -> Category:
    """Return the category in a file's name or folders; linear by default.

    ``stock_AAPL_1d.csv`` holds shares.
    A pair without a settlement coin (``BTC_USDT-5m``) is spot, as freqtrade and ccxt write it.
    """
    stem = path.name.split(".", 1)[0]
    if SHARE_FILE.match(path.name):
        return Category.STOCK
    words = {word.lower() for word in re.split(r"[-_ ]", stem)}
    for names in (words, *({parent.name.lower()} for parent in list(path.parents)[:6])):
        if "spot" in names:
            return Category.SPOT
        if names & LINEAR_WORDS:
            return Category.LINEAR
    pair = _pair_in(stem)
    if pair is None or pair["settle"] is not None or pair["quote"] == "PERP":
        return Category.LINEAR
    return Category.SPOT if stem[pair.end("base")] == "_" else Category.LINEAR


def interval_of(name: str, likely_ms: int | None = None) -> int | None:
    """Return the interval in a file's *name* (``_5m_``), in milliseconds, or None.

    Of several (``_7d_1h`` has a span and an interval), *likely_ms* wins, else the first.
    """
    if MONTHLY.search(name):
        return MONTH_MS
    lengths = [int(part[1]) * UNITS_MS[part[2].lower()] for part in INTERVAL.finditer(name)]
    return likely_ms if likely_ms in lengths else next(iter(lengths), None)
