"""Candles become bars: exactly, checked, and by the fast path as by the careful one."""

from __future__ import annotations

from decimal import Decimal

import pytest
from builders import instrument
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tracepaper.daemon.bybit.candles import candle_layout, rest_bar, stream_bars
from tracepaper.daemon.bybit.messages import KlineCandle, KlineFrame
from tracepaper.strategies.errors import MessageMalformed
from tracepaper.strategies.types import Instrument, Source

MINUTE = 60_000
START = 1_786_310_760_000
CHEAP = structs.replace(
    instrument(), symbol="DOGEUSDT", price_decimals=5, quantity_decimals=0, volume_decimals=8
)


def candle(**changes: str | int | bool) -> KlineCandle:
    """Return a closed minute as the exchange sends it."""
    fields: dict[str, str | int | bool] = {
        "start": START,
        "end": START + MINUTE - 1,
        "open": "65119.9",
        "close": "65114.2",
        "high": "65119.9",
        "low": "65114.2",
        "volume": "3.712",
        "turnover": "241712.1394",
        "confirm": True,
    }
    return KlineCandle(**(fields | changes))  # type: ignore[arg-type]


def read(one: KlineCandle, of: Instrument | None = None) -> tuple[int, ...]:
    layout = candle_layout(of or instrument(), MINUTE)
    (bar,) = stream_bars(KlineFrame("kline", [one], START + MINUTE + 441), layout)
    return (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.turnover or 0)


def text(value: int, decimals: int) -> str:
    """Write a number as the exchange does: trailing zeros left out."""
    plain = f"{Decimal(value).scaleb(-decimals):f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def test_a_real_closing_candle_becomes_a_bar() -> None:
    layout = candle_layout(instrument(), MINUTE)
    (bar,) = stream_bars(KlineFrame("kline", [candle()], START + MINUTE + 441), layout)
    scale = 10 ** (instrument().price_decimals - 1)
    assert (bar.open, bar.low) == (651199 * scale, 651142 * scale)
    assert bar.volume == 3712 * 10 ** (instrument().volume_decimals - 3)
    assert (bar.open_time_ms, bar.interval_ms) == (START, MINUTE)
    assert (bar.market_ms, bar.seen_ms, bar.source) == (START + MINUTE + 441,) * 2 + (
        Source.STREAM,
    )


def test_the_open_candle_is_no_bar() -> None:
    layout = candle_layout(instrument(), MINUTE)
    frame = KlineFrame("kline", [candle(confirm=False)], START + 30_000)
    assert stream_bars(frame, layout) == []


def test_both_candles_of_the_roll_are_looked_at() -> None:
    layout = candle_layout(instrument(), MINUTE)
    new = candle(start=START + MINUTE, end=START + 2 * MINUTE - 1, confirm=False)
    frame = KlineFrame("kline", [candle(), new], START + MINUTE + 441)
    assert [bar.open_time_ms for bar in stream_bars(frame, layout)] == [START]


@pytest.mark.parametrize("of", [instrument(), CHEAP])
@given(
    numbers=st.tuples(*[st.integers(1, 10**9)] * 4),
    volume=st.integers(0, 10**9),
    turnover=st.integers(0, 10**12),
)
def test_fast_and_careful_reading_agree_with_decimal_arithmetic(
    of: Instrument, numbers: tuple[int, int, int, int], volume: int, turnover: int
) -> None:
    low, one, other, high = sorted(numbers)
    places = min(of.price_decimals + of.quantity_decimals, 8)
    sent = candle(
        open=text(one, of.price_decimals),
        close=text(other, of.price_decimals),
        high=text(high, of.price_decimals),
        low=text(low, of.price_decimals),
        volume=text(volume, of.quantity_decimals),
        turnover=text(turnover, places),
    )
    assert read(sent, of) == (
        one,
        high,
        low,
        other,
        volume * 10 ** (of.volume_decimals - of.quantity_decimals),
        turnover * 10 ** (of.turnover_decimals - places),
    )


FIELDS = ("open", "high", "low", "close", "volume", "turnover")
odd_text = st.one_of(
    st.text(alphabet="0123456789.", max_size=12),
    st.text(alphabet="0123456789.,-+eE []_\n\"'", max_size=12),
    st.sampled_from(["", "NaN", "1e3", "65119.90", "65119.95", "1,2", "6511.9.9", "-1.5", "01.5"]),
)


@given(field=st.sampled_from(FIELDS), value=odd_text)
def test_no_odd_text_is_ever_read_as_another_number(field: str, value: str) -> None:
    try:
        numbers = read(candle(**{field: value}))
    except MessageMalformed:
        return
    of = instrument()
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


def test_a_rest_row_carries_its_own_close_as_time() -> None:
    layout = candle_layout(instrument(), MINUTE)
    row = (str(START), "65119.9", "65119.9", "65114.2", "65114.2", "3.712", "241712.1394")
    bar = rest_bar(row, layout)
    assert (bar.market_ms, bar.seen_ms, bar.source) == (START + MINUTE,) * 2 + (Source.REST,)
    assert (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.turnover) == read(candle())


def test_a_rest_row_that_contradicts_itself_is_refused() -> None:
    row = (str(START), "65119.9", "65110.0", "65114.2", "65114.2", "3.712", "1")
    with pytest.raises(MessageMalformed, match="contradicts itself"):
        rest_bar(row, candle_layout(instrument(), MINUTE))
