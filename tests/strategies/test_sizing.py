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
