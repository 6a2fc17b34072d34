"""What a REST body says, and whether it speaks of what was asked. Pure.

An answer is believed when it names the category and symbol of the question, its times lie inside
the asked range and its server time in our century. All else is ``MessageMalformed``: asked again.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, TypeVar

import msgspec

from tracepaper.daemon.bybit import messages
from tracepaper.daemon.bybit.candles import candle_layout, rest_bar
from tracepaper.daemon.bybit.decimals import exact, exact_signed
from tracepaper.daemon.bybit.instruments import read_instruments
from tracepaper.daemon.bybit.intervals import floor_open_ms
from tracepaper.strategies.errors import ConfigInvalid, FeedLost, MessageMalformed
from tracepaper.strategies.types import MONEY_DECIMALS, Bar, Category, Funding, Instrument

REGION_CODES: Final = frozenset({10009, 10024})
REFUSED_CODES: Final = frozenset({10001, 10017, 10029})
SERVER_MS_MIN: Final = 1_262_304_000_000
"""2010-01-01: no server of this exchange tells an earlier time,"""
SERVER_MS_MAX: Final = 4_102_444_800_000
"""and none that is right one after 2100-01-01."""
RATE_LIMIT: Final = 10**MONEY_DECIMALS
"""A funding rate of 100 %: none was ever near."""

T = TypeVar("T")


def decode_result(body: bytes, path: str, result: type[T]) -> tuple[T, int]:
    """Return the typed result of a REST *body* and the server's time, UTC milliseconds.

    Raises ``FeedLost`` for codes that pass, ``ConfigInvalid`` for those that a wrong configuration
    earns, and ``MessageMalformed`` for what is not documented.
    """
    try:
        answer = messages.decode_answer(body)
        code = answer.ret_code
        if code == 0 and SERVER_MS_MIN <= answer.time < SERVER_MS_MAX:
            return msgspec.json.decode(answer.result, type=result), answer.time
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageMalformed(
            f"The answer of {path} is not what Bybit documents ({error}); trying again, check "
            "exchange.rest_url if this lasts."
        ) from error
    if code == 0:
        raise MessageMalformed(
            f"The answer of {path} says that its server's time is {answer.time}, which is none "
            "between 2010 and 2100; trying again."
        )
    what = f"Bybit answered {path} with retCode {code} ({answer.ret_msg[:120]})"
    if code in REGION_CODES:
        raise ConfigInvalid(
            f"{what}: it does not serve this region; set exchange.rest_url and "
            "exchange.stream_url to your regional host."
        )
    if code in REFUSED_CODES:
        raise ConfigInvalid(f"{what}; correct market.symbols, market.category or market.interval.")
    # Codes that pass, and codes unknown to us: a daemon that runs for months waits and asks again.
    raise FeedLost(f"{what}; trying again.")


def read_klines(
    page: messages.Klines, instrument: Instrument, interval_ms: int, *, first_ms: int, last_ms: int
) -> tuple[list[Bar], int]:
    """Return the bars of *page* that open in [*first_ms*, *last_ms*], and the rows left unread.

    The candle that contains *first_ms* may come as well and is left out. Raises
    ``MessageMalformed`` for a page of another category, symbol, grid, time or order.
    """
    _speaks_of("candles", instrument, page.category, page.symbol)
    opens = [exact(row[0], 0) for row in page.rows]
    for open_ms in opens:
        if open_ms != floor_open_ms(open_ms, interval_ms):
            raise _stranger(f"a candle that opens at {open_ms}, off the grid of its interval")
        if not first_ms - interval_ms < open_ms <= last_ms:
            raise _stranger(f"a candle at {open_ms}, where {first_ms} to {last_ms} was asked")
    if any(newer <= older for newer, older in pairwise(opens)):
        raise _stranger(f"candles of {instrument.id} that are not newest first")
    layout = candle_layout(instrument, interval_ms)
    bars = []
    unread = 0
    for row, open_ms in zip(page.rows, opens, strict=True):
        if open_ms < first_ms:
            continue
        try:
            bars.append(rest_bar(row, layout))
        except MessageMalformed:
            unread += 1
    return bars, unread


def read_instruments_page(
    raw: msgspec.Raw, category: Category, symbol: str
) -> tuple[list[Instrument], str]:
    """Return the instruments of one page and the next page's cursor; all, or those of *symbol*."""
    found, page = read_instruments(bytes(raw), category)
    if page.category != category.value:
        raise _stranger(f"instruments of {page.category!r}, where {category.value} was asked")
    if symbol:
        if any(one.symbol != symbol for one in found):
            raise _stranger(f"{found[0].id}, where {category.value}:{symbol} was asked")
        if page.rows and not found:
            raise _stranger(f"filters of {symbol} that cannot be read")
    return found, page.next_page_cursor


def read_settlements(
    page: messages.FundingHistory, instrument: Instrument, *, start_ms: int, end_ms: int
) -> list[Funding]:
    """Return the settlements of *page*, in its order.

    Raises ``MessageMalformed`` for another category, symbol or time, or a rate that is none: a
    row that was left out would be a payment that nobody misses.
    """
    found = []
    for row in page.rows:
        _speaks_of("settlements", instrument, page.category, row.symbol)
        settled_ms = exact(row.funding_rate_timestamp, 0)
        rate = exact_signed(row.funding_rate, MONEY_DECIMALS)
        if not start_ms <= settled_ms <= end_ms:
            raise _stranger(f"a settlement at {settled_ms}, where {start_ms} to {end_ms} was asked")
        if abs(rate) > RATE_LIMIT:
            raise _stranger(f"a funding rate of {row.funding_rate}")
        found.append(Funding(instrument.id, rate, settled_ms, settled_ms))
    return found


def _speaks_of(what: str, instrument: Instrument, category: str, symbol: str) -> None:
    """Refuse an answer about another category or symbol."""
    if (category, symbol) != (instrument.category.value, instrument.symbol):
        raise _stranger(f"{what} of {category}:{symbol}, where {instrument.id} was asked")


def _stranger(what: str) -> MessageMalformed:
    """Return the error of an answer that does not speak of what was asked."""
    return MessageMalformed(f"Bybit answered with {what}; the answer was dropped, trying again.")
