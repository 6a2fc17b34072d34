from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from tracepaper.replay.archive import Candles, read_candles
from tracepaper.replay.archive.series import archive_instrument
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import MONEY_DECIMALS

SAMPLES = Path(__file__).parents[2] / "data" / "candles"


def sample(symbol: str, *, category: Category = Category.LINEAR, decimals: int = 1) -> Candles:
    part = read_candles(SAMPLES / "bybit_linear_BTCUSDT_1m_2022-12-13.csv.gz")
    return replace(part, symbol=symbol, category=category, price_decimals=decimals)


def test_a_recorded_symbol_takes_the_finer_tick_of_record_and_data() -> None:
    coarse, fine = (
        archive_instrument(sample("WIFUSDT")),
        archive_instrument(sample("BTCUSDT", decimals=3)),
    )
    assert (coarse.price_decimals, coarse.tick_size) == (5, 1)  # recorded 0.00001
    assert (fine.price_decimals, fine.tick_size) == (3, 1)  # recorded 0.10
    assert (fine.base_coin, fine.quote_coin, fine.funding_interval_minutes) == ("BTC", "USDT", 480)


@pytest.mark.parametrize(
    "symbol", ["BTCUSDT", "WIFUSDT", "1000PEPEUSDT", "SHIB1000USDT", "NEWUSDT"]
)
@pytest.mark.parametrize("category", list(Category))
def test_a_quantity_of_one_can_always_be_traded(symbol: str, category: Category) -> None:
    instrument = archive_instrument(sample(symbol, category=category))
    one = 10**instrument.quantity_decimals
    assert one % instrument.quantity_step == 0
    limits = (instrument.min_quantity, instrument.max_quantity, instrument.min_notional)
    assert limits == (0, 0, 0)


def test_spot_has_no_funding_and_its_own_step() -> None:
    instrument = archive_instrument(sample("BTCUSDT", category=Category.SPOT, decimals=2))
    assert instrument.id == "spot:BTCUSDT"
    assert instrument.funding_interval_minutes == 0
    assert Decimal(instrument.quantity_step).scaleb(-instrument.quantity_decimals) == Decimal(
        "0.000001"
    )


@pytest.mark.parametrize("decimals", [4, 6, 9])
def test_a_notional_is_exact_in_money_where_strategies_share_it_and_steps_are_fine_elsewhere(
    decimals: int,
) -> None:
    part = sample("NEWUSDT", category=Category.SPOT, decimals=decimals)
    alone, shared = archive_instrument(part), archive_instrument(part, shared=True)
    assert alone.quantity_decimals == min(6, 10 - decimals)
    assert shared.quantity_decimals == max(MONEY_DECIMALS - decimals, 0)
