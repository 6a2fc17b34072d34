"""Filters become instruments with exact limits and the decimals of tick and step."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from builders import instrument
from bybit_frames import HERE
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.daemon.bybit.instruments import (
    ceiled,
    exact,
    exact_signed,
    floored,
    instrument_from,
    read_instruments,
    read_tickers,
    risk_tier,
    rounded,
)
from tracepaper.daemon.bybit.messages import InstrumentInfo, ListingInfo, RiskLimit, TickerPage
from tracepaper.daemon.config.market import UniverseRule
from tracepaper.daemon.feed.client import TradedSymbol
from tracepaper.daemon.session.universe import choose
from tracepaper.strategies.errors import MessageMalformed
from tracepaper.strategies.types.market import Category, Instrument, RiskTier
from tracepaper.strategies.units import INTERVALS, MONEY_SCALE, interval_start

# ---------------------------------------------------------------- decimals

plain = st.decimals(min_value=0, max_value=10**9, allow_nan=False, places=4)


@given(value=plain, decimals=st.integers(4, 8), zeros=st.integers(0, 3))
def test_exact_equals_the_decimal_whatever_zeros_follow(
    value: Decimal, decimals: int, zeros: int
) -> None:
    text = f"{value:f}" + "0" * zeros
    assert exact(text, decimals) == int(value.scaleb(decimals))


@given(text=st.text(max_size=45), decimals=st.integers(0, 10))
def test_exact_reads_a_plain_number_or_refuses(text: str, decimals: int) -> None:
    try:
        value = exact(text, decimals)
    except MessageMalformed:
        return
    assert set(text) <= set("0123456789.")
    assert Decimal(text).scaleb(decimals) == value


@pytest.mark.parametrize(
    "text",
    ["", ".", "1.", ".5", "-1", "+1", "1e5", "NaN", "inf", "1_0", " 1", "1 ", "1.2.3", "٣", "0x1"],
)
def test_what_is_no_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(MessageMalformed, match="not a plain decimal"):
        exact(text, 8)


def test_excess_decimals_are_refused_unless_they_are_zeros() -> None:
    assert exact("65114.20", 1) == 651142
    with pytest.raises(MessageMalformed, match="more than the 1 decimals"):
        exact("65114.21", 1)


def test_a_number_beyond_64_bits_is_refused() -> None:
    assert exact("9223372036854775807", 0) == 2**63 - 1
    with pytest.raises(MessageMalformed, match="64 bits"):
        exact("9223372036854775808", 0)


def test_a_rate_may_be_negative_but_not_twice() -> None:
    assert exact_signed("-0.0001", 10) == -1_000_000
    with pytest.raises(MessageMalformed):
        exact_signed("--0.0001", 10)


@given(value=plain, decimals=st.integers(0, 3))
def test_rounding_is_half_even_and_the_bounds_enclose(value: Decimal, decimals: int) -> None:
    text = f"{value:f}"
    unit = Decimal(1).scaleb(-decimals)
    assert rounded(text, decimals) == int(value.quantize(unit).scaleb(decimals))
    assert floored(text, decimals) <= value.scaleb(decimals) <= ceiled(text, decimals)
    assert ceiled(text, decimals) - floored(text, decimals) <= 1


# ---------------------------------------------------------------- intervals


@given(market_ms=st.integers(0, 4 * 10**12), name=st.sampled_from(sorted(INTERVALS)))
def test_the_open_candle_contains_the_moment(market_ms: int, name: str) -> None:
    open_ms = interval_start(market_ms, INTERVALS[name])
    assert open_ms <= market_ms < open_ms + INTERVALS[name]
    opened = datetime.fromtimestamp(open_ms // 1000, UTC)
    if name == "W":
        assert opened.weekday() == 0
    if name == "M":
        assert opened.day == 1
    if name in "DWM":
        assert (opened.hour, opened.minute) == (0, 0)


SPOT_BTC = {
    "symbol": "BTCUSDT",
    "baseCoin": "BTC",
    "quoteCoin": "USDT",
    "status": "Trading",
    "lotSizeFilter": {
        "basePrecision": "0.000001",
        "quotePrecision": "0.0000001",
        "minOrderQty": "0.000011",
        "maxOrderQty": "83",
        "minOrderAmt": "5",
        "maxMarketOrderQty": "41.5",
    },
    "priceFilter": {"tickSize": "0.1"},
}


def recorded_instruments() -> dict[str, Instrument]:
    body = json.loads((HERE / "instruments_linear_2026-08-09.json").read_bytes())
    read_instrument, page = read_instruments(json.dumps(body["result"]).encode(), Category.LINEAR)
    assert (page.next_page_cursor, page.category) == ("", "linear")
    assert len(read_instrument) == len(body["result"]["list"])
    return {item.symbol: item for item in read_instrument}


def test_real_linear_filters_are_read_exactly() -> None:
    bitcoin = recorded_instruments()["BTCUSDT"]
    assert (bitcoin.price_decimals, bitcoin.tick_size) == (1, 1)
    assert (bitcoin.quantity_decimals, bitcoin.quantity_step) == (3, 1)
    assert (bitcoin.min_quantity, bitcoin.min_notional) == (1, 5 * 10**8)
    assert bitcoin.max_quantity == 150_000
    assert bitcoin.funding_interval_minutes == 480
    assert (bitcoin.id, bitcoin.base_coin, bitcoin.quote_coin) == ("linear:BTCUSDT", "BTC", "USDT")


def test_decimals_follow_the_tick_and_never_the_price_scale() -> None:
    named = recorded_instruments()
    assert named["SOLUSDT"].price_decimals == 2  # its priceScale is 3, its tick 0.010
    assert (named["1000000BABYDOGEUSDT"].quantity_step, named["DOGEUSDT"].quantity_decimals) == (
        100,
        0,
    )


def test_spot_takes_its_own_names_of_the_same_limits() -> None:
    info = msgspec.convert(SPOT_BTC, InstrumentInfo)
    spot = instrument_from(info, Category.SPOT)
    assert (spot.quantity_decimals, spot.quantity_step, spot.max_quantity) == (6, 1, 41_500_000)
    assert (spot.min_quantity, spot.min_notional) == (0, 5 * 10**8)
    assert spot.funding_interval_minutes == 0


def test_one_odd_listing_does_not_hide_the_others() -> None:
    body = {"list": [{"symbol": "ODD"}, SPOT_BTC], "category": "spot"}
    read_instrument, _ = read_instruments(json.dumps(body).encode(), Category.SPOT)
    assert [item.symbol for item in read_instrument] == ["BTCUSDT"]


# ---------------------------------------------------------------- risk tiers


def limits(**changed: str) -> RiskLimit:
    given = {
        "symbol": "BTCUSDT",
        "risk_limit_value": "2000000",
        "maintenance_margin": "0.005",
        "initial_margin": "0.01",
        "max_leverage": "100.00",
        "mm_deduction": "",
    }
    return RiskLimit(**{**given, **changed})


def test_a_risk_tier_is_read_in_fractions_and_in_percent_as_the_manual_has_it() -> None:
    tier = RiskTier(2_000_000 * MONEY_SCALE, 50_000_000, 10_000, 0)
    assert risk_tier(limits()) == tier
    assert risk_tier(limits(maintenance_margin="0.5", initial_margin="1")) == tier
    low = limits(
        maintenance_margin="0.05", initial_margin="0.1", max_leverage="10.00", mm_deduction="12.5"
    )
    assert risk_tier(low) == RiskTier(tier.limit, 500_000_000, 1_000, 125 * MONEY_SCALE // 10)


@pytest.mark.parametrize(
    "changed",
    [
        {"maintenance_margin": "0"},
        {"maintenance_margin": "0.02"},
        {"max_leverage": "0"},
        {"risk_limit_value": "0"},
        {"initial_margin": "NaN"},
        {"mm_deduction": "-1"},
    ],
)
def test_a_tier_that_is_none_is_refused(changed: dict[str, str]) -> None:
    with pytest.raises(MessageMalformed):
        risk_tier(limits(**changed))


# ---------------------------------------------------------------- the tickers of a universe

DAY = {
    "symbol": "BTCUSDT",
    "lastPrice": "100",
    "turnover24h": "5000.5",
    "highPrice24h": "104",
    "lowPrice24h": "99",
}
ODD: tuple[Any, ...] = (None, 7, 1e300, True, [], {})
HUGE, TINY = "9" * 40, f"0.{'0' * 40}1"
HOSTILE: list[Any] = [
    *(DAY | {name: text}
      for name in ("lastPrice", "turnover24h", "highPrice24h", "lowPrice24h")
      for text in ("", "NaN", "sNaN", "-1", "Infinity", "1e999999", "1e30", HUGE, "one", "0x1")),
    *(DAY | {name: text} for name in ("lastPrice", "highPrice24h") for text in ("0", TINY)),
    DAY | {"lowPrice24h": "105"},
    DAY | {"lastPrice": "1e-999999", "highPrice24h": "1e17"},
    DAY | {"lastPrice": "1e-17", "highPrice24h": "1e17"},
    *({key: value for key, value in DAY.items() if key != name} for name in DAY),
    *(DAY | {"turnover24h": odd} for odd in ODD),
    DAY | {"symbol": None},
    DAY | {"symbol": "NOWHEREUSDT"},
    None, 7, "BTCUSDT", [], {},
]  # fmt: skip


@pytest.mark.parametrize("row", HOSTILE)
def test_a_ticker_that_cannot_be_read_is_left_out_and_the_others_are_chosen(row: object) -> None:
    items = [instrument("BTCUSDT"), instrument("ETHUSDT")]
    sound = DAY | {"symbol": "ETHUSDT"}
    body = {"category": "linear", "list": [row, sound, sound]}
    page = msgspec.json.decode(msgspec.json.encode(body), type=TickerPage)
    listings = {item.symbol: ListingInfo(item.symbol, "Trading", "USDT") for item in items}
    symbols = read_tickers(page, listings)
    assert [ticker.symbol for ticker in symbols] == ["ETHUSDT"]
    assert choose(UniverseRule(top=2), symbols, now_ms=1) == ("ETHUSDT",)
    assert symbols == [TradedSymbol("ETHUSDT", "USDT", Decimal("5000.5"), Decimal("0.05"), 0)]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"turnover24h": "0"},
        {"turnover24h": "9" * 18},
        {"turnover24h": f"1.{'3' * 60}"},
        {"lastPrice": "1e-17"},
        {"highPrice24h": "9" * 17},
    ],
)
def test_whatever_ticker_is_read_has_figures_that_are_ranked(changed: dict[str, str]) -> None:
    body = {"category": "linear", "list": [DAY | changed]}
    page = msgspec.json.decode(msgspec.json.encode(body), type=TickerPage)
    (traded,) = read_tickers(page, {"BTCUSDT": ListingInfo("BTCUSDT", "Trading", "USDT")})
    assert traded.symbol == "BTCUSDT"
    assert 0 <= traded.turnover < 10**18
    assert 0 <= traded.volatility < 10**18
