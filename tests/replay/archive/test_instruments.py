from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.archive import Candles, read_candles
from tracepaper.replay.archive.series import FundingRates, archive_instrument, missing_settlements
from tracepaper.strategies.types.market import Category

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
    unit = 10**instrument.quantity_decimals
    assert unit % instrument.quantity_step == 0
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
def test_a_step_of_the_quantity_is_no_finer_than_its_value(decimals: int) -> None:
    part = sample("NEWUSDT", category=Category.SPOT, decimals=decimals)
    assert archive_instrument(part).quantity_decimals == min(6, 10 - decimals)


# ---------------------------------------------------------------- funding


HOUR = 3_600_000


def rates(times: list[int]) -> FundingRates:
    return FundingRates("builder", "WIFUSDT", np.array(times), np.zeros(len(times), dtype=np.int64))


def test_a_whole_file_lacks_nothing() -> None:
    times = [hour * HOUR for hour in range(4, 101, 4)]
    assert missing_settlements(rates(times), 0, 100 * HOUR) == []


@given(st.sampled_from([1, 2, 4, 8]), st.integers(12, 60), st.data())
def test_every_settlement_that_was_taken_out_is_found(
    hours: int, count: int, data: st.DataObject
) -> None:
    """One of each six may be missing, and any number at both ends."""
    whole = [place * hours * HOUR for place in range(1, count + 1)]
    groups = [whole[at : at + 6] for at in range(0, count, 6)]
    gone = {data.draw(st.sampled_from(group)) for group in groups if data.draw(st.booleans())}
    gone -= {whole[0], whole[-1]}
    late = data.draw(st.integers(0, 3)) * hours * HOUR
    kept = [time for time in whole if time not in gone]
    missing = missing_settlements(rates(kept), whole[0] - hours * HOUR - late, whole[-1] + late)
    before = [whole[0] - late + place for place in range(0, late, hours * HOUR)]
    after = [whole[-1] + hours * HOUR + place for place in range(0, late, hours * HOUR)]
    assert [due for due, _ in missing] == before + sorted(gone) + after


def test_a_changed_interval_is_no_hole() -> None:
    times = [hour * HOUR for hour in (*range(8, 81, 8), *range(84, 121, 4), *range(128, 201, 8))]
    assert missing_settlements(rates(times), 0, 200 * HOUR) == []
    times.remove(100 * HOUR)
    assert missing_settlements(rates(times), 0, 200 * HOUR) == [(100 * HOUR, 104 * HOUR)]


def test_settlements_a_few_milliseconds_late_are_those_that_were_due() -> None:
    times = [hour * HOUR + hour % 7 for hour in range(8, 101, 8)]
    assert missing_settlements(rates(times), 0, 100 * HOUR) == []


def test_of_a_single_settlement_no_interval_is_known() -> None:
    assert missing_settlements(rates([8 * HOUR]), 0, 100 * HOUR) == []
