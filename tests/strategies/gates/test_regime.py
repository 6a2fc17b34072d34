"""Which regime follows which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.gates.evaluator import RegimeBounds
from tracepaper.strategies.types.decisions import Regime

BOUNDS = RegimeBounds.between(mean_reversion=0.5, momentum=0.6, hysteresis=0.1)


@given(st.sampled_from(Regime), st.floats(0, 1))
def test_a_threshold_reached_always_names_its_regime(regime: Regime, mass: float) -> None:
    after = BOUNDS.next_regime(regime, mass)
    if mass >= 0.6:
        assert after is Regime.MOMENTUM
    elif mass <= 0.5:
        assert after is Regime.MEAN_REVERSION
    else:
        assert after in (regime, Regime.MIXED)


@pytest.mark.parametrize(
    ("mass", "kept"),
    [(0.375, Regime.MEAN_REVERSION), (0.5, None), (0.625, Regime.MOMENTUM)],
)
def test_a_margin_belongs_to_the_regime_beside_it(mass: float, kept: Regime | None) -> None:
    bounds = RegimeBounds.between(mean_reversion=0.25, momentum=0.75, hysteresis=0.25)
    for regime in Regime:
        expected = kept if regime is kept else Regime.MIXED
        assert bounds.next_regime(regime, mass) is expected


def test_attention_on_an_event_is_distant_until_it_falls_by_the_margin() -> None:
    bounds = RegimeBounds.between(
        mean_reversion=0.25, momentum=0.75, hysteresis=0.25, event_focus=0.4
    )
    regime, regimes = Regime.UNKNOWN, []
    for focus in (0.39, 0.4, 0.31, 0.29, 0.39):
        regime = bounds.next_regime(regime, 0.9, focus)
        regimes.append(regime)
    momentum, reversion = Regime.MOMENTUM, Regime.MEAN_REVERSION
    assert regimes == [momentum, reversion, reversion, momentum, momentum]


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"must lie under .* set such numbers"):
        RegimeBounds.between(mean_reversion=0.6, momentum=0.5, hysteresis=0.1)
