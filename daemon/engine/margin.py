"""Isolated margin of linear positions: what a position binds, and where it is taken away.

A position binds its initial margin and the fee of closing it where that margin is lost. It is
liquidated where what is left of the margin falls to the maintenance margin, at the bankruptcy
price: there the margin is lost, and nothing else.

The rules are docs/money.md, M28 to M33; the formulas are Bybit's for isolated margin.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tracepaper.strategies.market import Notional, unscaled
from tracepaper.strategies.types import (
    LEVERAGE_DECIMALS,
    MONEY_DECIMALS,
    MONEY_SCALE,
    Instrument,
    Position,
    RiskTier,
)

_LEVERAGE_UNIT: Final = 10**LEVERAGE_DECIMALS
ASSUMED_LEVERAGE: Final = 100 * _LEVERAGE_UNIT
"""The greatest leverage of an instrument that does not say its own."""


def tiers_of(instrument: Instrument) -> tuple[RiskTier, ...]:
    """Return the risk tiers of *instrument*, or one of its greatest leverage.

    The maintenance margin of that one is half of the least initial margin, and it has no limit.
    """
    if instrument.risk_tiers:
        return instrument.risk_tiers
    greatest = instrument.max_leverage or ASSUMED_LEVERAGE
    return (RiskTier(0, MONEY_SCALE * _LEVERAGE_UNIT // greatest // 2, greatest, 0),)


class Bounds(NamedTuple):
    """Where a position is liquidated, and at which price it is then closed; whole ticks."""

    liquidation: int
    bankruptcy: int
    reason: str


class MarginUse(NamedTuple):
    """What a position on margin binds (money), at which leverage (10⁻²), and where it ends."""

    margin: int
    leverage: int
    liquidation: int  # the mark price at which it is liquidated


class MarginRules:
    """The margin of positions in one instrument at one leverage."""

    def __init__(self, instrument: Instrument, leverage: int, taker_fee: int) -> None:
        """Take the *leverage* as an integer of 10⁻², the *taker_fee* of 10⁻¹⁰."""
        self._instrument = instrument
        self._tiers = tiers_of(instrument)
        self._leverage = leverage
        self._fee = taker_fee
        self._notional = Notional.of(instrument)

    def required(self, entry: int) -> int:
        """Return what a position entered for *entry* (money, signed) binds, rounded up."""
        initial = -(-abs(entry) * _LEVERAGE_UNIT // self._leverage)
        lost_at = abs(entry) - initial if entry > 0 else abs(entry) + initial
        return initial - (-lost_at * self._fee // MONEY_SCALE)

    def refusal(self, notional: int) -> str | None:
        """Return why a position of *notional* (unsigned) may not have the leverage, or None."""
        found = self._tier(notional)
        if found is None:
            return f"position above {_money(self._tiers[-1].limit)}, the last risk tier"
        number, tier = found
        if self._leverage <= tier.max_leverage:
            return None
        return (
            f"leverage {_leverage(self._leverage)} above {_leverage(tier.max_leverage)}, the most "
            f"of risk tier {number}"
        )

    def _tier(self, notional: int) -> tuple[int, RiskTier] | None:
        for number, tier in enumerate(self._tiers, 1):
            if notional <= tier.limit or not tier.limit:
                return number, tier
        return None

    def bounds(self, entry: int, quantity: int, margin: int) -> Bounds:
        """Return where a position of *quantity* entered for *entry* is liquidated with *margin*.

        Both prices are rounded so that no more than the margin is lost.
        """
        size, is_long = abs(entry), quantity > 0
        number, tier = self._tier(size) or (len(self._tiers), self._tiers[-1])
        maintenance = max(size * tier.maintenance // MONEY_SCALE - tier.deduction, 0)
        if is_long:
            lost_at = max(-(-(size - margin) * MONEY_SCALE // (MONEY_SCALE - self._fee)), 0)
            called_at = lost_at + maintenance
        else:
            lost_at = (size + margin) * MONEY_SCALE // (MONEY_SCALE + self._fee)
            called_at = lost_at - maintenance
        share = unscaled(tier.maintenance, MONEY_DECIMALS - 2)
        reason = (
            f"the mark price reached it: maintenance margin {_money(maintenance)} of "
            f"{_money(margin)}, risk tier {number} ({share} %)"
        )
        return Bounds(
            self._price(called_at, quantity, up=is_long),
            self._price(lost_at, quantity, up=is_long),
            reason,
        )

    def use_of(self, position: Position | None) -> MarginUse | None:
        """Return what *position* binds and where it is liquidated; None where it binds nothing."""
        if position is None or not position.margin or not position.quantity:
            return None
        bounds = self.bounds(position.entry_notional, position.quantity, position.margin)
        return MarginUse(position.margin, self._leverage, bounds.liquidation)

    def _price(self, notional: int, quantity: int, *, up: bool) -> int:
        """Return the whole tick at which *quantity* is worth *notional*, at least one."""
        tick = self._instrument.tick_size
        units = abs(quantity) * self._notional.multiplier * tick
        worth = notional * self._notional.divisor
        return max(-(-worth // units) if up else worth // units, 1) * tick


def _money(amount: int) -> str:
    return unscaled(amount, MONEY_DECIMALS)


def _leverage(leverage: int) -> str:
    return unscaled(leverage, LEVERAGE_DECIMALS)
