"""Filters become instruments: decimals by tick and step, limits exact, scales for good."""

from __future__ import annotations

import json

import msgspec
import pytest
from builders import instrument
from bybit_frames import HERE
from msgspec import structs

from tracepaper.daemon.bybit.instruments import (
    instrument_from,
    read_instruments,
    rescaled,
)
from tracepaper.daemon.bybit.messages import InstrumentInfo
from tracepaper.strategies.errors import ConfigInvalid, MessageMalformed
from tracepaper.strategies.types import Category, Instrument

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
    found, page = read_instruments(json.dumps(body["result"]).encode(), Category.LINEAR)
    assert (page.next_page_cursor, page.category) == ("", "linear")
    assert len(found) == len(body["result"]["list"])
    return {one.symbol: one for one in found}


def test_real_linear_filters_are_read_exactly() -> None:
    bitcoin = recorded_instruments()["BTCUSDT"]
    assert (bitcoin.price_decimals, bitcoin.tick_size) == (1, 1)
    assert (bitcoin.quantity_decimals, bitcoin.quantity_step) == (3, 1)
    assert (bitcoin.min_quantity, bitcoin.min_notional) == (1, 5 * 10**10)
    assert bitcoin.max_quantity == 150_000
    assert bitcoin.funding_interval_minutes == 480
    assert bitcoin.id == "linear:BTCUSDT"


def test_decimals_follow_the_tick_and_never_the_price_scale() -> None:
    found = recorded_instruments()
    assert found["SOLUSDT"].price_decimals == 2  # its priceScale is 3, its tick 0.010
    assert (found["1000000BABYDOGEUSDT"].quantity_step, found["DOGEUSDT"].quantity_decimals) == (
        100,
        0,
    )


def test_dated_futures_have_no_funding() -> None:
    found = recorded_instruments()
    assert found["BTCUSDT-25DEC26"].funding_interval_minutes == 0


def test_spot_takes_its_own_names_of_the_same_limits() -> None:
    info = msgspec.convert(SPOT_BTC, InstrumentInfo)
    spot = instrument_from(info, Category.SPOT)
    assert (spot.quantity_decimals, spot.quantity_step, spot.max_quantity) == (6, 1, 41_500_000)
    assert (spot.min_quantity, spot.min_notional) == (0, 5 * 10**10)
    assert spot.funding_interval_minutes == 0


@pytest.mark.parametrize(("path", "value"), [("tickSize", ""), ("tickSize", "0"), ("step", "x")])
def test_a_filter_that_is_no_number_is_refused(path: str, value: str) -> None:
    raw = json.loads(json.dumps(SPOT_BTC))
    if path == "step":
        raw["lotSizeFilter"]["basePrecision"] = value
    else:
        raw["priceFilter"]["tickSize"] = value
    with pytest.raises(MessageMalformed):
        instrument_from(msgspec.convert(raw, InstrumentInfo), Category.SPOT)


def test_one_odd_listing_does_not_hide_the_others() -> None:
    body = {"list": [{"symbol": "ODD"}, SPOT_BTC], "category": "spot"}
    found, _ = read_instruments(json.dumps(body).encode(), Category.SPOT)
    assert [one.symbol for one in found] == ["BTCUSDT"]


def test_a_list_that_is_none_is_refused() -> None:
    with pytest.raises(MessageMalformed, match="not what Bybit documents"):
        read_instruments(b'{"list":7}', Category.SPOT)


def test_a_coarser_tick_keeps_the_scales_of_the_run() -> None:
    kept = instrument(price_decimals=2, quantity_decimals=3)
    fresh = structs.replace(
        kept, price_decimals=1, tick_size=5, quantity_decimals=1, max_quantity=7, min_quantity=1
    )
    changed = rescaled(fresh, kept)
    assert (changed.price_decimals, changed.tick_size) == (2, 50)
    assert (changed.quantity_decimals, changed.max_quantity, changed.min_quantity) == (3, 700, 100)


def test_filters_that_did_not_change_are_equal_after_rescaling() -> None:
    one = instrument()
    assert rescaled(one, one) == one


def test_a_finer_tick_than_the_run_keeps_ends_it() -> None:
    kept = instrument(price_decimals=1)
    with pytest.raises(ConfigInvalid, match="finer steps"):
        rescaled(structs.replace(kept, price_decimals=2), kept)
