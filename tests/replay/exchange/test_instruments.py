"""Filters come from the recording, but the data's own tick wins where it is finer."""

from __future__ import annotations

from decimal import Decimal

import pytest
from exchange_client import candles, walk_rows
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.daemon.bybit.instruments import recorded_instruments
from tracepaper.replay.archive.names import coins_of
from tracepaper.replay.exchange.instruments import list_instrument, padded, parsed
from tracepaper.replay.exchange.market import SimulatedMarket
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import unscaled

# ------------------------------------------------------------ decimal text


@pytest.mark.parametrize(
    ("value", "decimals", "with_zeros", "without"),
    [
        (651_142_0, 2, "65114.20", "65114.2"),
        (5, 3, "0.005", "0.005"),
        (0, 4, "0.0000", "0"),
        (-50, 4, "-0.0050", "-0.005"),
        (1200, 0, "1200", "1200"),
        (1_000, 3, "1.000", "1"),
    ],
)
def test_text_has_the_zeros_of_its_place(
    value: int, decimals: int, with_zeros: str, without: str
) -> None:
    assert padded(value, decimals) == with_zeros
    assert unscaled(value, decimals) == without


@given(st.integers(-(10**18), 10**18), st.integers(0, 11))
def test_text_is_exact(value: int, decimals: int) -> None:
    exact = Decimal(value).scaleb(-decimals)
    assert Decimal(padded(value, decimals)) == exact
    assert Decimal(unscaled(value, decimals)) == exact
    assert parsed(padded(abs(value), decimals)) == (abs(value), decimals)


ROWS = walk_rows(50)


def test_a_known_symbol_is_listed_verbatim() -> None:
    listing = list_instrument(candles(ROWS))
    assert listing.item == recorded_instruments()["BTCUSDT"]
    assert (listing.tick, listing.price_decimals) == (10, 2)
    assert (listing.step, listing.step_decimals, listing.size_decimals) == (1, 3, 3)


def test_prices_between_two_ticks_make_a_finer_tick() -> None:
    listing = list_instrument(candles(ROWS, price_decimals=2))
    assert listing.item["priceFilter"]["tickSize"] == "0.01"
    assert (listing.tick, listing.price_decimals) == (1, 2)
    assert (
        recorded_instruments()["BTCUSDT"]["priceFilter"]["tickSize"] == "0.10"
    )  # the recording is unharmed


@pytest.mark.parametrize("volume_decimals", [0, 3, 8])
def test_an_unknown_symbol_gets_every_field_of_a_recorded_one(volume_decimals: int) -> None:
    data = candles(ROWS, symbol="NEWCOINUSDT", volume_decimals=volume_decimals)
    listing = list_instrument(data)
    real = recorded_instruments()["BTCUSDT"]
    assert list(listing.item) == list(real)
    for name, value in real.items():
        if isinstance(value, dict):
            assert sorted(listing.item[name]) == sorted(value)
        else:
            assert isinstance(listing.item[name], type(value))
    assert (listing.item["baseCoin"], listing.item["quoteCoin"]) == ("NEWCOIN", "USDT")
    assert listing.tick == 1
    assert float(listing.item["lotSizeFilter"]["qtyStep"]) > 0


@pytest.mark.parametrize(
    ("symbol", "pair"),
    [
        ("BTCUSDT", ("BTC", "USDT")),
        ("ETHBTC", ("ETH", "BTC")),
        ("BTC-PERP", ("BTC", "USDC")),
        ("BTCPERP", ("BTC", "USDC")),
        ("USDT", ("USDT", "USD")),
    ],
)
def test_coins_are_read_from_the_symbol(symbol: str, pair: tuple[str, str]) -> None:
    assert coins_of(symbol) == pair


def test_texts_are_padded_to_the_tick_on_linear_and_plain_on_spot() -> None:
    linear = SimulatedMarket(candles(ROWS), seed=0)
    spot = SimulatedMarket(candles(ROWS, category=Category.SPOT), seed=0)
    assert linear.price_text(6_511_420) == "65114.20"
    assert linear.size_text(30) == "0.030"
    assert spot.price_text(651_140) == "65114"
    assert spot.size_text(30_000) == "0.03"
