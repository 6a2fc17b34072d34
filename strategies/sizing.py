"""How much: a signal becomes a target quantity in whole steps (fixed, notional, tanh, volatility).

No mode looks at the account, so that a target depends on bars and forecasts alone and two runs
of the same bars agree on it whatever their fills were.

The rules are docs/decisions.md, G19 and G20.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

from msgspec import Struct

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.market import Notional, unscaled
from tracepaper.strategies.types import Action, Bar, Forecast, Instrument, Signal

_PARTS: Final = 1_000_000_000  # a float share becomes an integer of billionths, once


class SizingMode(StrEnum):
    """How a signal becomes a quantity."""

    FIXED = "fixed"  # a quantity
    NOTIONAL = "notional"  # a quantity worth `notional` at the close
    TANH = "tanh"  # notional x tanh(scale x expected return / its deviation)
    VOLATILITY = "volatility"  # notional x target volatility / forecast volatility, at most whole


class Sizing(Struct, frozen=True):
    """The configured size; ``quantity`` in 10^-quantity_decimals, ``notional`` in money."""

    mode: SizingMode
    quantity: int = 0
    notional: int = 0
    scale: float = 1.0
    target_volatility: float = 0.01
    rebalance: float = 0.25  # a standing target of the same side moves only by more than this share


class Sizer:
    """Sizes the signals of one instrument."""

    def __init__(self, sizing: Sizing, instrument: Instrument, *, horizon_index: int = 0) -> None:
        step = instrument.quantity_step
        if sizing.mode is SizingMode.FIXED and (sizing.quantity <= 0 or sizing.quantity % step):
            decimals = instrument.quantity_decimals
            raise ConfigInvalid(
                f"sizing.quantity {unscaled(sizing.quantity, decimals)} is no positive multiple of "
                f"the step {unscaled(step, decimals)} of {instrument.id}; change it."
            )
        if sizing.mode is not SizingMode.FIXED and sizing.notional <= 0:
            raise ConfigInvalid("sizing.notional must be above 0.")
        self._sizing = sizing
        self._step = step
        self._notional = Notional.of(instrument)
        self._index = horizon_index
        self.is_fixed = sizing.mode is SizingMode.FIXED  # the target follows from the signal alone

    def change(self, instrument: Instrument) -> None:
        """Take a new quantity step; a fixed quantity is rounded down to it from now on."""
        self._step = instrument.quantity_step

    def target(
        self, signal: Signal, bar: Bar, forecast: Forecast | None, *, standing: int = 0
    ) -> int:
        """Return the signed quantity that *signal* (LONG, SHORT or FLAT) asks to hold.

        *standing* is the target last decided: one of the same side stays unless the new one
        differs by more than ``rebalance``, or every move of the price would be traded after.
        """
        action = signal.action
        if action is Action.FLAT:
            return 0
        if self.is_fixed:
            size = self._sizing.quantity
            if signal.strength != 1.0:
                size = size * int(signal.strength * _PARTS) // _PARTS
            size = self._whole_steps(size)
        else:
            share = signal.strength * self._share(forecast)
            money = self._sizing.notional * int(share * _PARTS) // _PARTS
            size = self._whole_steps(self._notional.quantity(money, bar.close))
        target = size if action is Action.LONG else -size
        if target * standing > 0:
            band = abs(standing) * int(self._sizing.rebalance * _PARTS) // _PARTS
            if abs(target - standing) <= band and standing % self._step == 0:
                return standing
        return target

    def notional(self, price: int, quantity: int) -> int:
        """Return the money of *quantity* at *price*."""
        return self._notional(price, quantity)

    def _whole_steps(self, quantity: int) -> int:
        return quantity - quantity % self._step

    def _share(self, forecast: Forecast | None) -> float:
        """Return the share of the whole notional, in [0, 1]; 0 where nothing can be computed."""
        mode = self._sizing.mode
        if mode is SizingMode.NOTIONAL:
            return 1.0
        if forecast is None:
            return 0.0
        if mode is SizingMode.TANH:
            strength = abs(forecast.mean_return[self._index]) / forecast.stdev_return[self._index]
            share = math.tanh(self._sizing.scale * strength)
        else:
            share = self._sizing.target_volatility / forecast.volatility[self._index]
        return min(share, 1.0) if math.isfinite(share) and share > 0 else 0.0
