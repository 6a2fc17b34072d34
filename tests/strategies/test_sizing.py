"""From a signal to a quantity in whole steps."""

from decimal import Decimal

import pytest
from builders import bar, forecast, instrument
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.sizing import Sizer, Sizing, SizingMode
from tracepaper.strategies.types import Action, Signal

LONG, SHORT, FLAT = (Signal(action, "x") for action in (Action.LONG, Action.SHORT, Action.FLAT))
ITEM = instrument(quantity_step=5)


def test_fixed_quantity_is_signed_by_the_action() -> None:
    sizer = Sizer(Sizing(SizingMode.FIXED, quantity=1_000), ITEM)
    assert [sizer.target(signal, bar(), None) for signal in (LONG, SHORT, FLAT)] == [
        1_000,
        -1_000,
        0,
    ]


@given(st.integers(1, 10**8), st.integers(10**10, 10**16))
def test_notional_is_never_exceeded_and_misses_less_than_a_step(close: int, money: int) -> None:
    sizer = Sizer(Sizing(SizingMode.NOTIONAL, notional=money), ITEM)
    quantity = sizer.target(LONG, bar(close), None)
    price = Decimal(close).scaleb(-2)
    assert quantity % 5 == 0
    assert Decimal(quantity).scaleb(-3) * price <= Decimal(money).scaleb(-10)
    assert Decimal(quantity + 5).scaleb(-3) * price > Decimal(money).scaleb(-10)


def test_tanh_and_volatility_need_a_forecast_and_stay_within_the_notional() -> None:
    whole = Sizer(Sizing(SizingMode.NOTIONAL, notional=10**15), ITEM).target(LONG, bar(), None)
    for mode in (SizingMode.TANH, SizingMode.VOLATILITY):
        sizer = Sizer(Sizing(mode, notional=10**15, target_volatility=0.001), ITEM)
        assert sizer.target(LONG, bar(), None) == 0
        assert 0 < sizer.target(LONG, bar(), forecast()) < whole


def test_a_quantity_off_the_step_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"0\.003 is no positive multiple of the step 0\.005"):
        Sizer(Sizing(SizingMode.FIXED, quantity=3), ITEM)


def test_a_standing_target_of_the_same_side_moves_only_beyond_the_band() -> None:
    sizer = Sizer(Sizing(SizingMode.NOTIONAL, notional=10**14, rebalance=0.25), ITEM)
    standing = sizer.target(LONG, bar(10_000), None)
    assert sizer.target(LONG, bar(11_000), None, standing=standing) == standing
    assert sizer.target(LONG, bar(14_000), None, standing=standing) < standing
    assert sizer.target(SHORT, bar(11_000), None, standing=standing) < 0
    assert sizer.target(FLAT, bar(11_000), None, standing=standing) == 0


def test_a_standing_target_off_the_new_step_is_left_even_within_the_band() -> None:
    sizer = Sizer(Sizing(SizingMode.NOTIONAL, notional=10**14, rebalance=0.25), ITEM)
    standing = sizer.target(LONG, bar(10_100), None)
    assert standing % 100
    sizer.change(instrument(quantity_step=100))
    assert sizer.target(LONG, bar(10_100), None, standing=standing) == standing // 100 * 100
    for signal, sign in ((LONG, 1), (SHORT, -1)):
        whole = sign * (standing // 100 * 100)
        assert sizer.target(signal, bar(10_100), None, standing=sign * standing) == whole
        assert sizer.target(signal, bar(10_300), None, standing=whole) == whole


def test_the_band_holds_at_its_edge_and_not_beyond() -> None:
    sizer = Sizer(Sizing(SizingMode.NOTIONAL, notional=10**14, rebalance=0.25), ITEM)
    wished = sizer.target(LONG, bar(10_000), None)  # 100 pieces of a thousandth
    assert wished == 100_000
    assert sizer.target(LONG, bar(10_000), None, standing=80_000) == 80_000
    assert sizer.target(LONG, bar(10_000), None, standing=79_995) == wished
    assert sizer.target(SHORT, bar(10_000), None, standing=80_000) == -wished
    assert sizer.target(LONG, bar(10_000), None, standing=0) == wished


def test_no_forecast_asks_for_more_than_the_whole_notional() -> None:
    whole = Sizer(Sizing(SizingMode.NOTIONAL, notional=10**15), ITEM).target(LONG, bar(), None)
    for mode in (SizingMode.TANH, SizingMode.VOLATILITY):
        sizer = Sizer(Sizing(mode, notional=10**15, scale=1e9, target_volatility=1.0), ITEM)
        assert sizer.target(LONG, bar(), forecast()) == whole
