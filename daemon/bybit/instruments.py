"""Converts Bybit's instruments and candles from decimal text to exact integers."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from tracepaper.daemon.bybit.messages import (
    InstrumentInfo,
    KlineCandle,
    ListingInfo,
    RiskLimit,
    TickerInfo,
    TickerPage,
)
from tracepaper.daemon.feed.client import TradedSymbol
from tracepaper.strategies.errors import ConfigInvalid, FrameImpossible, MessageMalformed
from tracepaper.strategies.months import interval_end
from tracepaper.strategies.types.market import (
    LEVERAGE_DECIMALS,
    Bar,
    Category,
    Instrument,
    RiskTier,
    Source,
)
from tracepaper.strategies.units import (
    INTERVAL_NAMES,
    INTERVALS,
    MONEY_DECIMALS,
    MONEY_LIMIT,
    MONEY_MAX,
    RATE_DECIMALS,
    RATE_SCALE,
    divide_half_even,
    interval_start,
)

RECORDED_INSTRUMENTS: Final = Path(__file__).with_name("instruments_linear.json.gz")
"""Each symbol's element of GET /v5/market/instruments-info, recorded on 2026-08-09."""


@cache
def recorded_instruments() -> Mapping[str, dict[str, Any]]:
    """Return the content of ``RECORDED_INSTRUMENTS``."""
    packed = RECORDED_INSTRUMENTS.read_bytes()
    return msgspec.json.decode(gzip.decompress(packed), type=dict[str, dict[str, Any]])


# ---------------------------------------------------------------- decimals

DIGITS_MAX: Final = 40
"""Longest text of a number; the exchange's longest has about twenty digits."""
POWERS: Final[tuple[int, ...]] = tuple(10**exponent for exponent in range(DIGITS_MAX + 1))


def exact(text: str, decimals: int) -> int:
    """Return the non-negative decimal *text* as an integer of 10^-*decimals*.

    A number consists of ASCII digits with at most one inner dot. Raises ``MessageMalformed`` for
    signs, exponents, blanks, ``NaN`` and an empty text, for non-zero digits beyond *decimals*, and
    for values that do not fit 64 bits.
    """
    whole, dot, fraction = text.partition(".")
    digits = whole + fraction
    if not (
        digits.isascii()
        and digits.isdigit()
        and len(text) <= DIGITS_MAX
        and whole
        and bool(dot) == bool(fraction)
    ):
        raise MessageMalformed(
            f"{text[:DIGITS_MAX]!r} is not a plain decimal number; the message was dropped, "
            "compare it with the exchange's documentation if this repeats."
        )
    missing = decimals - len(fraction)
    if missing >= 0:
        value = int(digits) * POWERS[missing]
    else:
        value, rest = divmod(int(digits), POWERS[-missing])
        if rest:
            raise MessageMalformed(
                f"{text} has more than the {decimals} decimals that are kept; the message was "
                "dropped, re-read the instrument's filters if this repeats."
            )
    if value > MONEY_LIMIT:
        raise MessageMalformed(
            f"{text} with {decimals} decimals does not fit 64 bits; the message was dropped, "
            "keep fewer decimals of this instrument."
        )
    return value


def exact_signed(text: str, decimals: int) -> int:
    """Return *text* as ``exact`` does, but allow a leading minus."""
    if text.startswith("-"):
        return -exact(text[1:], decimals)
    return exact(text, decimals)


def _finer(text: str, decimals: int) -> tuple[int, int]:
    """Return the number of decimals of *text*, at least *decimals*, and 10^-*decimals* in them."""
    finer = max(decimals, min(len(text.partition(".")[2]), DIGITS_MAX))
    return finer, POWERS[finer - decimals]


def rounded(text: str, decimals: int) -> int:
    """Return *text* rounded half-even to 10^-*decimals*.

    Only for mark and index prices: they are averages, often finer than the tick, and nobody trades
    at them. Raises ``MessageMalformed`` as ``exact`` does.
    """
    finer, unit = _finer(text, decimals)
    return divide_half_even(exact(text, finer), unit)


def floored(text: str, decimals: int) -> int:
    """Return *text*, an upper limit, rounded down to 10^-*decimals*; raise as ``exact`` does."""
    finer, unit = _finer(text, decimals)
    return exact(text, finer) // unit


def ceiled(text: str, decimals: int) -> int:
    """Return *text*, a lower limit, rounded up to 10^-*decimals*; raise as ``exact`` does."""
    finer, unit = _finer(text, decimals)
    return -(-exact(text, finer) // unit)


def decimals_needed(text: str) -> int:
    """Return how many decimals *text* needs: 1 for ``0.10``, 0 for ``5``, 6 for ``0.000001``.

    Raises ``MessageMalformed`` if *text* is no number.
    """
    fraction = text.partition(".")[2]
    exact(text, len(fraction))
    return len(fraction.rstrip("0"))


# ---------------------------------------------------------------- intervals


def interval_name(interval_ms: int) -> str:
    """Return the exchange's name of *interval_ms*; raise ``ConfigInvalid`` if it has none."""
    if (name := INTERVAL_NAMES.get(interval_ms)) is None:
        raise ConfigInvalid(
            f"Bybit has no candles of {interval_ms} ms; set market.interval to one of "
            f"{', '.join(INTERVALS)}."
        )
    return name


T = TypeVar("T")
VOLUME_DECIMALS: Final = 8
"""Stored decimals of a candle's volume, which is finer than the quantity step on some pairs."""
TURNOVER_DECIMALS: Final = 8
"""Stored decimals of a candle's turnover."""

FUNDING_MINUTES_MAX: Final = 43_200
"""A month; the exchange's longest interval is eight hours."""


class InstrumentsPage(msgspec.Struct, rename="camel"):
    """One page of instruments, each still raw."""

    rows: list[msgspec.Raw] = msgspec.field(name="list")
    category: str = ""
    next_page_cursor: str = ""


def instrument_from(info: InstrumentInfo, category: Category) -> Instrument:
    """Return the instrument that *info* describes.

    Its decimals are those that tick and quantity step need (``0.10`` needs one), not the exchange's
    ``priceScale``, which is finer on some symbols. The quantity limits are those of market orders;
    a maximum is rounded down and a minimum up. Raises ``MessageMalformed`` if a filter is missing
    or no number.
    """
    lot = info.lot_size_filter
    if category is Category.SPOT:
        step, notional, largest = lot.base_precision, lot.min_order_amt, lot.max_market_order_qty
        smallest = ""  # deprecated on spot, where the minimum amount applies
    else:
        step, notional, largest = lot.qty_step, lot.min_notional_value, lot.max_mkt_order_qty
        smallest = lot.min_order_qty
    leverage = info.leverage_filter and info.leverage_filter.max_leverage
    price_decimals = decimals_needed(info.price_filter.tick_size)
    quantity_decimals = decimals_needed(step)
    instrument = Instrument(
        category=category,
        symbol=info.symbol,
        base_coin=info.base_coin,
        quote_coin=info.quote_coin,
        price_decimals=price_decimals,
        quantity_decimals=quantity_decimals,
        volume_decimals=max(VOLUME_DECIMALS, quantity_decimals),
        turnover_decimals=TURNOVER_DECIMALS,
        tick_size=exact(info.price_filter.tick_size, price_decimals),
        quantity_step=exact(step, quantity_decimals),
        min_quantity=ceiled(smallest or "0", quantity_decimals),
        max_quantity=floored(largest or "0", quantity_decimals),
        min_notional=exact(notional or "0", MONEY_DECIMALS),
        funding_interval_minutes=info.funding_interval,
        status=info.status,
        max_leverage=floored(leverage or "0", LEVERAGE_DECIMALS),
    )
    if instrument.tick_size < 1 or instrument.quantity_step < 1:
        raise MessageMalformed(
            f"{instrument.id} has a tick or quantity step of zero; it was left out, ask for "
            "another symbol."
        )
    if not 0 <= instrument.funding_interval_minutes <= FUNDING_MINUTES_MAX:
        raise MessageMalformed(
            f"{instrument.id} has a funding interval of {instrument.funding_interval_minutes} "
            "minutes; it was left out, ask for another symbol."
        )
    return instrument


def _bounded(text: str) -> int:
    """Return *text* as money, at most ``MONEY_LIMIT``, which no position here can reach."""
    whole = text.partition(".")[0]
    return MONEY_LIMIT if len(whole) > len(str(MONEY_MAX)) - 1 else exact(text, MONEY_DECIMALS)


def risk_tier(row: RiskLimit) -> RiskTier:
    """Return the tier of a risk-limit *row*; raise ``MessageMalformed`` if it is invalid.

    Margins are fractions, or percent as in the exchange's manual. The initial margin times the
    greatest leverage tells which: it is 1 or 100.
    """
    leverage = floored(row.max_leverage, LEVERAGE_DECIMALS)
    initial = floored(row.initial_margin, RATE_DECIMALS)
    maintenance = floored(row.maintenance_margin, RATE_DECIMALS)
    if initial * leverage > 10 * RATE_SCALE * 10**LEVERAGE_DECIMALS:
        initial, maintenance = initial // 100, maintenance // 100
    tier = RiskTier(
        _bounded(row.risk_limit_value),
        maintenance,
        leverage,
        _bounded(row.mm_deduction or "0"),
    )
    if not (tier.limit and leverage and 0 < maintenance <= initial):
        raise MessageMalformed(
            f"Bybit answered with an invalid risk tier of {row.symbol} (maintenance margin "
            f"{row.maintenance_margin} of {row.initial_margin}); the answer was dropped."
        )
    return tier


def _readable(rows: Iterable[msgspec.Raw], kind: type[T]) -> Iterator[T]:
    """Yield the *rows* that can be decoded as *kind*; skip the others."""
    for raw in rows:
        with suppress(msgspec.DecodeError):
            yield msgspec.json.decode(raw, type=kind)


def _page_of(result: bytes) -> InstrumentsPage:
    try:
        return msgspec.json.decode(result, type=InstrumentsPage)
    except msgspec.DecodeError as error:
        raise MessageMalformed(
            f"The list of instruments is not what Bybit documents ({error}); check "
            "exchange.rest_url if this repeats."
        ) from error


def read_instruments(result: bytes, category: Category) -> tuple[list[Instrument], InstrumentsPage]:
    """Return the valid instruments of an instruments-info *result*, and its page.

    Malformed entries are skipped: one invalid listing must not hide eight hundred others. Raises
    ``MessageMalformed`` if the body itself is not what the exchange documents.
    """
    page = _page_of(result)
    instruments = []
    for info in _readable(page.rows, InstrumentInfo):
        with suppress(MessageMalformed):
            instruments.append(instrument_from(info, category))
    return instruments, page


def read_listings(result: bytes) -> tuple[list[ListingInfo], InstrumentsPage]:
    """Return the listings of an instruments-info *result* for a choice of symbols, and its page.

    Malformed entries, dated futures and symbols that do not trade are skipped. Raises
    ``MessageMalformed`` if the body itself is not what the exchange documents.
    """
    page = _page_of(result)
    listings = [
        listing
        for listing in _readable(page.rows, ListingInfo)
        if listing.status == "Trading" and listing.contract_type in {"", "LinearPerpetual"}
    ]
    return listings, page


_MOST: Final = Decimal(10**18)
"""Upper bound of turnovers, prices and their ratios; real values are far lower."""


def read_tickers(page: TickerPage, listings: Mapping[str, ListingInfo]) -> list[TradedSymbol]:
    """Return the symbols of *listings* that have a valid ticker, each once."""
    symbols: dict[str, TradedSymbol] = {}
    for ticker in _readable(page.rows, TickerInfo):
        listing = listings.get(ticker.symbol)
        if listing is not None and (symbol := traded_symbol(ticker, listing)) is not None:
            symbols[symbol.symbol] = symbol
    return [*symbols.values()]


def traded_symbol(ticker: TickerInfo, listing: ListingInfo) -> TradedSymbol | None:
    """Return the symbol of *listing* with its last day; None if a number of *ticker* is invalid."""
    try:
        turnover, high, low, last = map(
            Decimal, (ticker.turnover, ticker.high, ticker.low, ticker.last_price)
        )
        listed_ms = int(listing.launch_time or 0)
    except (InvalidOperation, ValueError):
        return None
    if not (turnover.is_finite() and high.is_finite() and low.is_finite() and last.is_finite()):
        return None
    if not 0 <= turnover < _MOST or not 0 < low <= high < _MOST or listed_ms < 0:
        return None
    if not 1 / _MOST < last < _MOST or (volatility := (high - low) / last) >= _MOST:
        return None
    return TradedSymbol(listing.symbol, listing.quote_coin, turnover, volatility, listed_ms)


_STREAM: Final = Source.STREAM
TURNOVER_SLACK: Final = 1
"""Tolerance of the turnover, which is rounded: a thousandth and this many quote units."""
_SHOWN: Final = 40  # characters of a number that an error repeats


ReadCandle = Callable[[KlineCandle, int, Source], Bar]
"""Converts a candle, the market time at which it was seen, and its source into a bar."""


def candle_reader(instrument: Instrument, interval_ms: int) -> ReadCandle:
    """Return the function that converts candles of *instrument* and *interval_ms*.

    It raises ``MessageMalformed`` if a text is no exact number. It raises ``FrameImpossible`` if
    the candle contradicts itself or is off its interval's grid, and for one of the stream also if
    its volume cannot have caused its range or turnover.
    """
    name, interval = instrument.id, interval_name(interval_ms)
    price_decimals = instrument.price_decimals
    volume_decimals, turnover_decimals = instrument.volume_decimals, instrument.turnover_decimals
    # Factors that bring turnover and volume to common decimals, and the tolerance in these.
    product_decimals = price_decimals + volume_decimals
    unit = 10 ** max(product_decimals - turnover_decimals, 0)
    over = 10 ** max(turnover_decimals - product_decimals, 0)
    slack = 1_000 * TURNOVER_SLACK * 10 ** max(product_decimals, turnover_decimals)

    def read(candle: KlineCandle, market_ms: int, source: Source) -> Bar:
        texts = candle.open, candle.high, candle.low, candle.close
        open_, high, low, close = (exact(text, price_decimals) for text in texts)
        volume = exact(candle.volume, volume_decimals)
        turnover = exact(candle.turnover, turnover_decimals)
        start, end = candle.start, candle.end
        is_on_grid = interval_start(start, interval_ms) == start
        if not (
            0 < low <= open_ <= high
            and low <= close <= high
            and is_on_grid
            and end == interval_end(start, interval_ms) - 1
            and (candle.interval == interval or not candle.interval)
        ):
            raise _impossible(candle, name, is_on_grid=is_on_grid)
        if source is _STREAM:  # for an answer of REST there is no second source to ask
            traded, paid = volume * over, 1_000 * turnover * unit
            if not (999 * low * traded - slack <= paid <= 1_001 * high * traded + slack) or (
                not volume and high != low
            ):
                raise _untraded(candle, name)
        return Bar(
            name,
            start,
            interval_ms,
            open_,
            high,
            low,
            close,
            volume,
            turnover,
            market_ms,
            market_ms,
            source,
        )

    return read


def _impossible(candle: KlineCandle, name: str, *, is_on_grid: bool) -> FrameImpossible:
    """Return the error of *candle*, which is off its grid or contradicts itself."""
    if not is_on_grid:
        return FrameImpossible(
            "off_grid",
            f"A candle of {name} at {candle.start} does not start on the grid of its interval; it "
            "was dropped and leaves a hole.",
        )
    return FrameImpossible(
        "contradictory",
        f"The candle of {name} at {candle.start} contradicts itself (high {candle.high[:_SHOWN]}, "
        f"low {candle.low[:_SHOWN]}, open {candle.open[:_SHOWN]}, close {candle.close[:_SHOWN]}, "
        f"end {candle.end}, interval {candle.interval[:8]!r}); it was dropped and leaves a hole.",
    )


def _untraded(candle: KlineCandle, name: str) -> FrameImpossible:
    """Return the error of *candle*, whose volume cannot have caused its range and turnover."""
    return FrameImpossible(
        "untraded",
        f"The candle of {name} at {candle.start} cannot have been traded (volume "
        f"{candle.volume[:_SHOWN]}, turnover {candle.turnover[:_SHOWN]}, high "
        f"{candle.high[:_SHOWN]}, low {candle.low[:_SHOWN]}); it was dropped and leaves a hole.",
    )
