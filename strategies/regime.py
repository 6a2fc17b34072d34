"""``Regime`` from the rollout's recent mass: a transition table with hysteresis.

The rule is docs/decisions.md, G12.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from msgspec import Struct

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types import Regime


class Zone(IntEnum):
    """Where the recent mass lies against the two thresholds and their margins."""

    LOW = 0  # at or under the lower threshold
    NEAR_LOW = 1  # above it, within the margin
    MIDDLE = 2
    NEAR_HIGH = 3  # under the upper threshold, within the margin
    HIGH = 4  # at or above the upper threshold


_M, _R, _X, _U = Regime.MOMENTUM, Regime.MEAN_REVERSION, Regime.MIXED, Regime.UNKNOWN

# A regime is entered at its threshold and left only beyond the margin, so noise at the
# threshold does not make it flicker.
NEXT: Final = {
    (_U, Zone.LOW): _R,
    (_U, Zone.NEAR_LOW): _X,
    (_U, Zone.MIDDLE): _X,
    (_U, Zone.NEAR_HIGH): _X,
    (_U, Zone.HIGH): _M,
    (_X, Zone.LOW): _R,
    (_X, Zone.NEAR_LOW): _X,
    (_X, Zone.MIDDLE): _X,
    (_X, Zone.NEAR_HIGH): _X,
    (_X, Zone.HIGH): _M,
    (_R, Zone.LOW): _R,
    (_R, Zone.NEAR_LOW): _R,
    (_R, Zone.MIDDLE): _X,
    (_R, Zone.NEAR_HIGH): _X,
    (_R, Zone.HIGH): _M,
    (_M, Zone.LOW): _R,
    (_M, Zone.NEAR_LOW): _X,
    (_M, Zone.MIDDLE): _X,
    (_M, Zone.NEAR_HIGH): _M,
    (_M, Zone.HIGH): _M,
}


class RegimeBounds(Struct, frozen=True):
    """The two thresholds of recent mass, and the margin by which a regime is left late."""

    mean_reversion: float
    momentum: float
    margin: float

    @classmethod
    def between(cls, *, mean_reversion: float, momentum: float, hysteresis: float) -> RegimeBounds:
        """Make bounds whose margin is *hysteresis* times the distance of the thresholds."""
        if not mean_reversion < momentum or not 0 <= hysteresis < 1:
            raise ConfigInvalid(
                f"regime.mean_reversion ({mean_reversion}) must lie under regime.momentum "
                f"({momentum}), with regime.hysteresis ({hysteresis}) from 0 to below 1."
            )
        return cls(mean_reversion, momentum, hysteresis * (momentum - mean_reversion))

    def zone(self, recent_mass: float) -> Zone:
        """Return the zone of *recent_mass*; a threshold belongs to its regime."""
        if recent_mass >= self.momentum:
            return Zone.HIGH
        if recent_mass <= self.mean_reversion:
            return Zone.LOW
        if recent_mass >= self.momentum - self.margin:
            return Zone.NEAR_HIGH
        if recent_mass <= self.mean_reversion + self.margin:
            return Zone.NEAR_LOW
        return Zone.MIDDLE


def next_regime(regime: Regime, recent_mass: float, bounds: RegimeBounds) -> Regime:
    """Return the regime that follows *regime* at this bar's *recent_mass*."""
    return NEXT[regime, bounds.zone(recent_mass)]
