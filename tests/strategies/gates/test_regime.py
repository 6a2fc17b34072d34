"""The regime's transition table."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.gates.evaluator import NEXT, RegimeBounds, Zone, next_regime
from tracepaper.strategies.types.decisions import Regime

BOUNDS = RegimeBounds.between(mean_reversion=0.5, momentum=0.6, hysteresis=0.1)


def test_the_table_covers_every_regime_and_zone() -> None:
    assert set(NEXT) == set(itertools.product(Regime, Zone))
    assert Regime.UNKNOWN not in NEXT.values()


@given(st.sampled_from(Regime), st.floats(0, 1))
def test_a_threshold_reached_always_names_its_regime(regime: Regime, mass: float) -> None:
    after = next_regime(regime, mass, BOUNDS)
    if mass >= 0.6:
        assert after is Regime.MOMENTUM
    elif mass <= 0.5:
        assert after is Regime.MEAN_REVERSION
    else:
        assert after in (regime, Regime.MIXED)


def test_noise_at_the_threshold_does_not_flicker() -> None:
    regime = Regime.UNKNOWN
    regimes = []
    for mass in (0.601, 0.595, 0.601, 0.592, 0.585, 0.599):
        regime = next_regime(regime, mass, BOUNDS)
        regimes.append(regime)
    assert regimes == [Regime.MOMENTUM] * 4 + [Regime.MIXED] * 2


@pytest.mark.parametrize(
    ("mass", "zone"),
    [
        (0.25, Zone.LOW),
        (0.375, Zone.NEAR_LOW),
        (0.5, Zone.MIDDLE),
        (0.625, Zone.NEAR_HIGH),
        (0.75, Zone.HIGH),
    ],
)
def test_a_bound_belongs_to_the_zone_beyond_it(mass: float, zone: Zone) -> None:
    bounds = RegimeBounds.between(mean_reversion=0.25, momentum=0.75, hysteresis=0.25)
    assert bounds.zone(mass) is zone


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"must lie under .* set such numbers"):
        RegimeBounds.between(mean_reversion=0.6, momentum=0.5, hysteresis=0.1)
