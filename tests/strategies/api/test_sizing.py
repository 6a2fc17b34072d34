"""From a signal to a quantity in whole steps."""

from decimal import Decimal

import numpy as np
import pytest
from builders import bar, forecast, instrument
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.api.sizing import (
    NoTradeBand,
    Sizer,
    Sizing,
    SizingAccount,
    SizingMode,
    VolatilityKind,
    WindowedVolatility,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.units import MONEY_SCALE, Notional

LONG, SHORT, FLAT = (Signal(action, "x") for action in (Action.LONG, Action.SHORT, Action.FLAT))
ITEM = instrument(quantity_step=5)


def test_fixed_quantity_is_signed_by_the_action() -> None:
    sizer = Sizer(Sizing(SizingMode.FIXED, quantity=1_000), ITEM)
    assert [sizer.target(signal, bar(), None) for signal in (LONG, SHORT, FLAT)] == [
        1_000,
        -1_000,
        0,
    ]


@given(st.integers(1, 10**8), st.integers(10**8, 10**14))
def test_notional_is_never_exceeded_and_misses_less_than_a_step(close: int, money: int) -> None:
    sizer = Sizer(Sizing(SizingMode.NOTIONAL, notional=money), ITEM)
    quantity = sizer.target(LONG, bar(close), None)
    price = Decimal(close).scaleb(-2)
    assert quantity % 5 == 0
    assert Decimal(quantity).scaleb(-3) * price <= Decimal(money).scaleb(-8)
    assert Decimal(quantity + 5).scaleb(-3) * price > Decimal(money).scaleb(-8)


def test_tanh_and_volatility_need_a_forecast_and_stay_within_the_notional() -> None:
    whole = Sizer(Sizing(SizingMode.NOTIONAL, notional=10**13), ITEM).target(LONG, bar(), None)
    for mode in (SizingMode.TANH, SizingMode.VOLATILITY):
        sizer = Sizer(Sizing(mode, notional=10**13, target_volatility=0.001), ITEM)
        assert sizer.target(LONG, bar(), None) == 0
        assert 0 < sizer.target(LONG, bar(), forecast()) < whole
        bold = Sizer(Sizing(mode, notional=10**13, scale=1e9, target_volatility=1.0), ITEM)
        assert bold.target(LONG, bar(), forecast()) == whole


def test_a_quantity_off_the_step_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"0\.003 is no positive multiple of the step 0\.005"):
        Sizer(Sizing(SizingMode.FIXED, quantity=3), ITEM)


def test_a_standing_target_off_the_new_step_is_left_even_within_the_band() -> None:
    sizer = Sizer(Sizing(SizingMode.NOTIONAL, notional=10**12, rebalance=0.25), ITEM)
    standing = sizer.target(LONG, bar(10_100), None)
    assert standing % 100
    sizer.change(instrument(quantity_step=100))
    assert sizer.target(LONG, bar(10_100), None, standing=standing) == standing // 100 * 100
    for signal, sign in ((LONG, 1), (SHORT, -1)):
        whole = sign * (standing // 100 * 100)
        assert sizer.target(signal, bar(10_100), None, standing=sign * standing) == whole
        assert sizer.target(signal, bar(10_300), None, standing=whole) == whole


def test_the_band_holds_at_its_edge_and_not_beyond() -> None:
    sizer = Sizer(Sizing(SizingMode.NOTIONAL, notional=10**12, rebalance=0.25), ITEM)
    wished = sizer.target(LONG, bar(10_000), None)  # 100 pieces of a thousandth
    assert wished == 100_000
    assert sizer.target(LONG, bar(10_000), None, standing=80_000) == 80_000
    assert sizer.target(LONG, bar(10_000), None, standing=79_995) == wished
    assert sizer.target(SHORT, bar(10_000), None, standing=80_000) == -wished
    assert sizer.target(LONG, bar(10_000), None, standing=0) == wished


@given(
    st.integers(-120_000, 120_000),
    st.floats(0, 1),
    st.floats(0, 0.5),
    st.sampled_from([Action.LONG, Action.SHORT]),
)
def test_within_the_signals_band_nothing_moves_and_outside_it_the_nearer_edge_is_the_target(
    steps: int, strength: float, band: float, action: Action
) -> None:
    sizer, side = Sizer(Sizing(SizingMode.NOTIONAL, notional=10**12), ITEM), Signal(action, "x")
    full = abs(sizer.target(side, bar(10_000), None))
    assert full == 100_000
    standing, sign = steps - steps % 5, 1 if action is Action.LONG else -1
    signal = Signal(action, "x", strength, band=band)
    target = sign * sizer.target(signal, bar(10_000), None, standing=standing)
    held, wished, width = sign * standing, strength * full, band * full
    assert target >= 0
    if held >= 0 and abs(held - wished) <= width - 5:
        assert target == held
    elif abs(held - wished) > width + 5:
        edge = max(wished - width, 0) if held < wished else wished + width
        assert target == pytest.approx(edge, abs=11)


def test_a_band_is_of_the_full_position_of_each_mode_and_yields_to_rebalance() -> None:
    signal = Signal(Action.LONG, "x", 0.5, band=0.1)
    fixed = Sizer(Sizing(SizingMode.FIXED, quantity=1_000), ITEM)
    assert fixed.target(signal, bar(10_000), None) == 400
    equity = Sizer(Sizing(SizingMode.EQUITY, fraction=0.5), ITEM)
    assert equity.target(signal, bar(10_000), None, account=rich(1_000)) == 2_000
    written = Sizer(Sizing(SizingMode.FIXED, quantity=1_000, rebalance=0.25), ITEM)
    assert written.target(signal, bar(10_000), None) == 500
    assert written.target(signal, bar(10_000), None, standing=400) == 400
    assert fixed.target(FLAT, bar(10_000), None, standing=90) == 0
    capped = Sizer(Sizing(SizingMode.FIXED, quantity=1_000, max_position=2 * 10**9), ITEM)
    assert capped.target(signal, bar(10_000), None, standing=1_000) == 200


def test_the_half_width_of_the_band_is_the_papers() -> None:
    band = NoTradeBand(cost=0.001, risk_aversion=5.0)
    # One stock held at the share π: its target moves by π(1 - π)σ, and Janeček and Shreve (2004)
    # have (3 π² (1 - π)² λ ÷ 2 γ)^⅓.
    share = 0.6
    assert band.half_width(share * (1 - share)) == pytest.approx(
        (1.5 / 5.0 * (share * (1 - share)) ** 2 * 0.001) ** (1 / 3)
    )
    assert band.half_width(0.0) == 0.0
    assert band.half_width(1e6) == 0.25  # where costs are not small


# ---------------------------------------------------------------- what sees the account


def rich(equity: int, others: int = 0) -> SizingAccount:
    return SizingAccount(equity * MONEY_SCALE, others * MONEY_SCALE)


def test_a_fraction_of_equity_follows_equity() -> None:
    sizer = Sizer(Sizing(SizingMode.EQUITY, fraction=0.5), ITEM)
    assert sizer.sees_account
    sizes = [sizer.target(LONG, bar(10_000), None, account=rich(equity)) for equity in (1_000, 400)]
    assert sizes == [5_000, 2_000]  # 500 and 200 of a price of 100, in thousandths
    assert sizer.target(LONG, bar(10_000), None, account=rich(-5)) == 0


def test_an_allocation_takes_its_weight_of_the_fraction() -> None:
    sizer = Sizer(Sizing(SizingMode.ALLOCATION, fraction=2.0, weight=0.25), ITEM)
    assert sizer.target(SHORT, bar(10_000), None, account=rich(1_000)) == -5_000


def test_kelly_is_the_calibrated_mean_over_the_variance_and_capped() -> None:
    answer = forecast()
    edge = abs(answer.mean_return[0]) / answer.stdev_return[0] ** 2
    for share, fraction in ((0.8, 3.0), (0.8, 0.1), (9.0, 3.0)):
        sizing = Sizing(SizingMode.KELLY, kelly=share / edge, slope=0.5, fraction=fraction)
        size = Sizer(sizing, ITEM).target(LONG, bar(10_000), answer, account=rich(1_000))
        assert size == pytest.approx(min(0.5 * share, fraction) * 10_000, abs=5)
    bold = Sizer(Sizing(SizingMode.KELLY, kelly=1.0, fraction=0.01), ITEM)
    assert bold.target(LONG, bar(10_000), answer, account=rich(1_000)) <= 100
    assert bold.target(LONG, bar(10_000), None, account=rich(1_000)) == 0


@pytest.mark.parametrize("deviation", [1e-200, 1e200])
def test_kelly_of_a_variance_that_is_no_number_holds_nothing(deviation: float) -> None:
    """A forecast of finite numbers may have any: its gate passes what is finite and above 0."""
    answer = replace(forecast(), stdev_return=(deviation,) * len(forecast().horizons))
    sizer = Sizer(Sizing(SizingMode.KELLY, kelly=0.1, fraction=3.0), ITEM)
    assert sizer.target(LONG, bar(10_000), answer, account=rich(1_000)) == 0


def test_the_calibrated_slope_shrinks_tanh() -> None:
    sizes = [
        Sizer(Sizing(SizingMode.TANH, notional=10**13, slope=slope), ITEM).target(
            LONG, bar(), forecast()
        )
        for slope in (1.0, 0.5)
    ]
    assert 0 < sizes[1] < sizes[0]


def test_caps_cut_every_mode() -> None:
    sizing = Sizing(SizingMode.FIXED, quantity=50_000, max_position=200 * MONEY_SCALE)
    sizer = Sizer(sizing, ITEM)
    assert not sizer.follows_signal
    assert not sizer.sees_account
    assert sizer.target(SHORT, bar(10_000), None) == -2_000
    gross = Sizer(Sizing(SizingMode.NOTIONAL, notional=10**13, max_gross=1.5), ITEM)
    assert gross.sees_account
    assert gross.target(LONG, bar(10_000), None, account=rich(1_000, 1_400)) == 1_000
    assert gross.target(LONG, bar(10_000), None, account=rich(1_000, 1_600)) == 0


# ---------------------------------------------------------------- volatility from closed bars


@given(
    st.sampled_from(list(VolatilityKind)),
    st.integers(22, 90),
    st.lists(st.integers(900, 1_100), min_size=92, max_size=140),
)
def test_an_estimate_depends_on_its_window_alone(
    kind: VolatilityKind, window: int, closes: list[int]
) -> None:
    long, short = WindowedVolatility(kind, window), WindowedVolatility(kind, window)
    for close in closes:
        long.add(close)
    for close in closes[-short.bars :]:
        short.add(close)
    assert long.of_bars(30) == short.of_bars(30), "to the last bit"


def test_both_estimates_are_what_their_sources_say() -> None:
    rng = np.random.default_rng(7)
    closes = np.rint(1e6 * np.exp(np.cumsum(rng.normal(0, 0.001, 300)))).astype(int)
    returns = np.diff(closes) / closes[:-1]
    window = 110
    estimates = {kind: WindowedVolatility(kind, window) for kind in VolatilityKind}
    for close in closes.tolist():
        for estimate in estimates.values():
            estimate.add(close)
    weights = 0.5 ** (np.arange(window) * 5 / window)
    newest_first = returns[::-1][:window] ** 2
    ewma = np.sqrt(np.average(newest_first, weights=weights) * 30)
    har = np.sqrt(np.mean([np.mean(newest_first[:span]) for span in (5, 25, 110)]) * 30)
    assert estimates[VolatilityKind.EWMA].of_bars(30) == pytest.approx(ewma, rel=1e-6)
    assert estimates[VolatilityKind.HAR].of_bars(30) == pytest.approx(har, rel=1e-6)


def test_a_target_volatility_works_without_a_model_once_its_window_is_full() -> None:
    sizing = Sizing(
        SizingMode.VOLATILITY,
        notional=10**13,
        target_volatility=0.001,
        estimate=VolatilityKind.EWMA,
        lookback=22,
    )
    sizer = Sizer(sizing, ITEM)
    sizes = []
    for index in range(sizer.bars + 1):
        sizer.observe(bar(10_000 + 50 * (index % 2)))
        sizes.append(sizer.target(LONG, bar(10_000), None))
    assert sizes[: sizer.bars - 1] == [0] * (sizer.bars - 1)
    assert sizes[-1] > 0
    calm = Sizer(sizing, ITEM)
    for index in range(calm.bars):
        calm.observe(bar(10_000 + 5 * (index % 2)))
    assert calm.target(LONG, bar(10_000), None) > sizes[-1]


# ---------------------------------------------------------------- by the stop


def risking(share: float = 0.01, **more: float) -> Sizer:
    return Sizer(Sizing(SizingMode.RISK, risk=share, **more), ITEM)  # type: ignore[arg-type]


@given(
    equity=st.integers(1, 10**6),
    stop=st.integers(1, 10**6),
    share=st.floats(0.001, 1.0),
    strength=st.floats(0.0, 1.0),
)
def test_the_stop_loses_the_share_of_equity_and_misses_less_than_a_step(
    equity: int, stop: int, share: float, strength: float
) -> None:
    account = rich(equity)._replace(stop=stop)
    signal = Signal(Action.LONG, "up", strength=strength, stop=1.0)
    size = risking(share).target(signal, bar(), None, account=account)
    lost, wanted = Notional.of(ITEM)(stop, size), account.equity * share * strength
    assert lost <= wanted * (1 + 1e-9)
    missed = Notional.of(ITEM)(stop, ITEM.quantity_step) + account.equity * 2e-9
    assert wanted - lost <= missed * (1 + 1e-9)


def test_a_short_is_the_other_side_and_the_entry_decides() -> None:
    account = rich(10_000)._replace(stop=500)
    short = Signal(Action.SHORT, "down", stop=1.0)
    size = risking().target(short, bar(), None, account=account)
    assert size < 0
    nearer = account._replace(stop=50)
    assert risking().target(short, bar(), None, standing=size, account=nearer) == size
    turned = risking().target(LONG, bar(), None, standing=size, account=nearer)
    assert turned == pytest.approx(-10 * size, rel=0.01)


def test_a_signal_without_a_stop_keeps_what_stands_and_is_refused() -> None:
    assert risking().target(LONG, bar(), None, standing=3, account=rich(10_000)) == 3
    assert "this signal gives none" in str(risking().refusal(LONG, 0, 0))
    for given_one in ({"stop": 1.0}, {"trailing": 1.0}):
        assert risking().refusal(Signal(Action.LONG, "up", **given_one), 0, 0) is None  # type: ignore[arg-type]
    assert Sizer(Sizing(SizingMode.FIXED, quantity=1_000), ITEM).refusal(LONG, 0, 0) is None
