"""Candles become exact, checked bars, as an independent slow conversion makes them."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest
from builders import instrument
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs

from tracepaper.daemon.bybit.instruments import candle_reader
from tracepaper.daemon.bybit.messages import KlineCandle, closed_candle
from tracepaper.strategies.errors import FrameImpossible, MessageMalformed
from tracepaper.strategies.types.market import Bar, Instrument, Source

MINUTE = 60_000
START = 1_786_310_760_000
CHEAP = structs.replace(
    instrument(), symbol="DOGEUSDT", price_decimals=5, quantity_decimals=0, volume_decimals=8
)

WHOLE = structs.replace(CHEAP, symbol="WHOLEUSDT", price_decimals=0)


CLOSED = KlineCandle(
    start=START,
    end=START + MINUTE - 1,
    open="65119.9",
    close="65114.2",
    high="65119.9",
    low="65114.2",
    volume="3.712",
    turnover="241712.1394",
    confirm=True,
)
"""A closed minute as the exchange sends it."""


def candle(**changes: str | int) -> KlineCandle:
    return structs.replace(CLOSED, **changes)


def bar_of(
    candle: KlineCandle, of: Instrument | None = None, source: Source = Source.STREAM
) -> Bar:
    read = candle_reader(of or instrument(), MINUTE)
    return read(candle, START + MINUTE + 441, source)


def read(kline_candle: KlineCandle, of: Instrument | None = None) -> tuple[int, ...]:
    bar = bar_of(kline_candle, of, Source.REST)
    return (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.turnover or 0)


def text(value: int, decimals: int) -> str:
    """Write a number like the exchange, without trailing zeros."""
    plain = f"{Decimal(value).scaleb(-decimals):f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def sent_by(of: Instrument, prices: Sequence[int], volume: int, turnover: str) -> KlineCandle:
    """Return the candle of *prices* as open, high, low and close, in the decimals of *of*."""
    texts = (text(price, of.price_decimals) for price in prices)
    shape = dict(zip(("open", "high", "low", "close"), texts, strict=True))
    return candle(**shape, volume=text(volume, of.quantity_decimals), turnover=turnover)


def test_a_real_closing_candle_becomes_a_bar() -> None:
    bar = bar_of(candle())
    scale = 10 ** (instrument().price_decimals - 1)
    assert (bar.open, bar.low) == (651199 * scale, 651142 * scale)
    assert bar.volume == 3712 * 10 ** (instrument().volume_decimals - 3)
    assert (bar.open_time_ms, bar.interval_ms) == (START, MINUTE)
    assert (bar.market_ms, bar.seen_ms) == (START + MINUTE + 441,) * 2
    assert bar.source is Source.STREAM


@pytest.mark.parametrize("of", [instrument(), CHEAP])
@given(
    numbers=st.tuples(*[st.integers(1, 10**9)] * 4),
    volume=st.integers(0, 10**9),
    turnover=st.integers(0, 10**12),
)
def test_fast_and_careful_reading_agree_with_decimal_arithmetic(
    of: Instrument, numbers: tuple[int, int, int, int], volume: int, turnover: int
) -> None:
    low, number, other, high = sorted(numbers)
    places = min(of.price_decimals + of.quantity_decimals, 8)
    sent = sent_by(of, [number, high, low, other], volume, text(turnover, places))
    assert read(sent, of) == (
        number,
        high,
        low,
        other,
        volume * 10 ** (of.volume_decimals - of.quantity_decimals),
        turnover * 10 ** (of.turnover_decimals - places),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"volume": "0"},
        {"volume": "0", "turnover": "0"},
        {"turnover": "0"},
        {"turnover": "241712139.4"},
        {"turnover": "241400.0"},  # 0.15 % below volume times low
        {"turnover": "242100.0"},
        {"volume": "0", "turnover": "2", "open": "65114.2", "high": "65114.2"},
    ],
)
def test_what_its_volume_cannot_have_made_is_impossible_on_the_stream_alone(
    changes: dict[str, str],
) -> None:
    with pytest.raises(FrameImpossible, match="cannot have been traded") as refused:
        bar_of(candle(**changes))
    assert refused.value.kind == "untraded"
    assert bar_of(candle(**changes), source=Source.REST).open_time_ms == START


@pytest.mark.parametrize(
    "changes",
    [
        {"volume": "0", "turnover": "0", "open": "65114.2", "high": "65114.2"},
        {"volume": "0", "turnover": "0.9", "open": "65114.2", "high": "65114.2"},
        {"turnover": "241704"},  # rounded
        {"volume": "0.000001", "turnover": "0"},
    ],
)
def test_a_minute_without_trades_or_with_rounded_turnover_is_possible(
    changes: dict[str, str],
) -> None:
    assert bar_of(candle(**changes)).open_time_ms == START


@given(
    numbers=st.tuples(*[st.integers(1, 10**9)] * 4),
    volume=st.integers(0, 10**6),
    share=st.floats(0, 1),
)
@pytest.mark.parametrize("of", [instrument(), CHEAP])
def test_turnover_of_any_price_in_the_range_is_possible(
    of: Instrument, numbers: tuple[int, int, int, int], volume: int, share: float
) -> None:
    low, number, other, high = sorted(numbers) if volume else [numbers[0]] * 4
    price = low + int(share * (high - low))
    places = of.price_decimals + of.quantity_decimals
    sent = sent_by(of, [number, high, low, other], volume, text(price * volume, places))
    assert bar_of(sent, of).volume == volume * 10 ** (of.volume_decimals - of.quantity_decimals)


FIELDS = ("open", "high", "low", "close", "volume", "turnover")
odd_text = st.one_of(
    st.text(alphabet="0123456789.", max_size=12),
    st.text(alphabet="0123456789.,-+eE []_\n\"'", max_size=12),
    st.sampled_from(["", "NaN", "1e3", "65119.90", "65119.95", "1,2", "6511.9.9", "-1.5", "01.5"]),
)


@pytest.mark.parametrize("of", [instrument(), WHOLE])
@given(field=st.sampled_from(FIELDS), value=odd_text)
@example(field="volume", value=".5")
def test_no_odd_text_is_ever_read_as_another_number(of: Instrument, field: str, value: str) -> None:
    whole = dict.fromkeys(FIELDS, "65119") if of is WHOLE else {}
    try:
        numbers = read(candle(**(whole | {field: value})), of)
    except MessageMalformed:
        return
    decimals = {"volume": of.volume_decimals, "turnover": of.turnover_decimals}
    read_as = numbers[FIELDS.index(field)]
    assert Decimal(value).scaleb(decimals.get(field, of.price_decimals)) == read_as
    assert set(value.strip()) <= set("0123456789.")


@pytest.mark.parametrize(
    "changes",
    [
        {"high": "65114.1"},
        {"low": "65120.0"},
        {"open": "65113.0"},
        {"low": "0"},
        {"open": "-65119.9"},
        {"volume": "-3.712"},
        {"turnover": "1e5"},
        {"end": START + 2 * MINUTE},
        {"end": START},
        {"interval": "5"},
        {"interval": "D"},
        {"volume": "99999999999999"},
        {"open": "65119.95123"},
    ],
)
def test_a_candle_that_contradicts_itself_is_refused(changes: dict[str, str | int]) -> None:
    with pytest.raises(MessageMalformed):
        read(candle(**changes))


def test_a_rest_row_is_read_as_the_same_candle_of_the_stream() -> None:
    row = (str(START), "65119.9", "65119.9", "65114.2", "65114.2", "3.712", "241712.1394")
    assert closed_candle(row, int(row[0]), MINUTE) == candle()
