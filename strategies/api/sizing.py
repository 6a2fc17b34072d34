"""Position sizing: from a signal to a quantity in whole steps; volatility estimates.

Modes by a share of equity, and portfolio caps, depend on the account and so on fills. All others
depend only on bars and forecasts, so two runs of the same bars agree whatever their fills were.

The rules are docs/decisions.md, G19, G20 and G27 to G30.

Infinite smoothing would depend on bars that a restarted process no longer has. So both volatility
estimators use a fixed number of recent bars and integer arithmetic: equal bars give bit-identical
results.

Sources: J.P. Morgan/Reuters, RiskMetrics, 1996 (exponential weights); F. Corsi, A simple
approximate long-memory model of realized volatility, 2009 (three horizons).
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from enum import StrEnum
from operator import mul
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.gates.gate import size_factor
from tracepaper.strategies.types.calibration import FittedConfidence, MeasuredTails
from tracepaper.strategies.types.decisions import Action, Forecast
from tracepaper.strategies.types.market import Bar, Instrument
from tracepaper.strategies.units import Notional, unscaled

_RETURN_SCALE: Final = 10**9
"""Returns are integers of 10⁻⁹, their squares of 10⁻¹⁸."""
_HALF_LIVES: Final = 5
"""Half-lives of the EWMA per window: the cut-off tail would have had 3 % of the weight."""
_HAR_DIVISORS: Final = (22, 22 / 5, 1)
"""The window ÷ each of HAR's three horizons, in the ratio of a trading day, week and month."""
_WEIGHT_BITS: Final = 24
REBALANCE: Final = 0.25
"""``sizing.rebalance`` if it is not set and the signal has no band."""


class NoTradeBand(NamedTuple):
    """The band around a target within which trading costs more than it gains.

    Target and band are shares of the invested capital.

    Source: J. Kallsen, J. Muhle-Karbe, The general structure of optimal investment and consumption
    with small transaction costs, 2013 (arXiv 1303.3148).
    """

    cost: float  # of a trade, as a fraction of the traded notional
    risk_aversion: float  # constant and relative

    def half_width(self, sensitivity: float) -> float:
        """Return (3 c s² ÷ 2 γ)^⅓, at most a quarter, since the formula is for small costs.

        *sensitivity* s is the standard deviation of the target's changes ÷ that of the returns over
        the same time.
        """
        return min(math.cbrt(1.5 * self.cost * sensitivity**2 / self.risk_aversion), REBALANCE)


class VolatilityKind(StrEnum):
    """How the variance of one bar's return is estimated."""

    EWMA = "ewma"  # exponentially weighted squared returns, within the window
    HAR = "har"  # mean of the mean squared returns over 1/22, 5/22 and all of the window


class WindowedVolatility:
    """The standard deviation of one bar's simple return, from the last *window* returns."""

    def __init__(self, kind: VolatilityKind, window: int) -> None:
        self.bars = window + 1
        """Bars that the estimate depends on."""
        self._window = window
        self._last: int | None = None
        self._closes: deque[int] = deque(maxlen=self.bars)
        self._squares: deque[int] = deque(maxlen=window)
        self._spans = tuple(max(round(window / part), 1) for part in _HAR_DIVISORS)
        self._sums = [0] * len(self._spans)
        self._is_har = kind is VolatilityKind.HAR
        half_life = window / _HALF_LIVES
        # Newest first, as integers: their sum of products is exact in any order.
        ages = range(window if kind is VolatilityKind.EWMA else 0)
        self._weights = [round(2 ** (_WEIGHT_BITS - age / half_life)) for age in ages]
        self._total_weight = sum(self._weights)

    def add(self, close: int) -> None:
        """Add the close of the next bar, an integer of any fixed scale."""
        last, self._last = self._last, close
        self._closes.append(close)
        if last is None:
            return
        change = (close - last) * _RETURN_SCALE // last
        square = change * change
        squares = self._squares
        if self._is_har:
            for at, span in enumerate(self._spans):
                if len(squares) >= span:
                    self._sums[at] -= squares[-span]
                self._sums[at] += square
        squares.append(square)

    def of_bars(self, bars: int) -> float | None:
        """Return the standard deviation of the return over *bars* bars; None until full."""
        if len(self._squares) < self._window:
            return None
        if self._is_har:
            means = [total / span for total, span in zip(self._sums, self._spans, strict=True)]
            variance = math.fsum(means) / len(means)
        else:
            weighted = map(mul, self._weights, reversed(self._squares))
            variance = sum(weighted) / self._total_weight
        return math.sqrt(variance * bars) / _RETURN_SCALE


_PARTS: Final = 1_000_000_000  # float shares are converted to integers of 10⁻⁹


class SizingMode(StrEnum):
    """How a signal becomes a quantity; a full position is ``notional`` or a share of equity."""

    FIXED = "fixed"  # a quantity
    NOTIONAL = "notional"  # a quantity worth `notional` at the close
    EQUITY = "equity"  # a quantity worth `fraction` of equity
    ALLOCATION = "allocation"  # the symbol's weight of `fraction` of equity
    TANH = "tanh"  # full x tanh(scale x calibrated return / its deviation)
    VOLATILITY = "volatility"  # full x min(target volatility / expected volatility, 1)
    RISK = "risk"  # a quantity that loses `risk` of equity between the close and the stop
    EXPECTED_SHORTFALL = "expected_shortfall"
    """A quantity that loses ``shortfall`` of equity in the mean of the worst 2.5 % of cases."""
    NETWORK_ALLOCATION = "network_allocation"
    """``fraction`` of equity × the network's position, if that is on the signal's side."""
    KELLY = "kelly"  # equity x `kelly` x calibrated return / variance, at most `fraction` of it


class Sizing(Struct, frozen=True):
    """The configured size; ``quantity`` in 10^-quantity_decimals, ``notional`` in money."""

    mode: SizingMode
    quantity: int = 0
    notional: int = 0
    scale: float = 1.0
    target_volatility: float = 0.01
    rebalance: float | None = None  # ``sizing.rebalance``; None: use the signal's band
    of_equity: bool = False  # tanh and volatility: a full position is ``fraction`` of equity
    fraction: float = 1.0
    weight: float = 1.0  # of the symbol, for allocation
    kelly: float = 0.25
    risk: float = 0.01  # share of equity between the close and the stop
    shortfall: float = 0.01  # share of equity, the mean of the worst 2.5 % of cases
    slope: float = 1.0  # the card's calibration slope for the model's mean return
    tails: MeasuredTails | None = None  # of the card, for a network without a head of tails
    estimate: VolatilityKind | None = None  # None: use the model's forecast
    lookback: int = 660  # bars of the estimate
    horizon: int = 30  # bars that ``target_volatility`` refers to
    max_position: int = 0  # money, for this symbol; 0 without a cap
    max_gross: float = 0.0  # for all symbols, in multiples of equity; 0 without a cap
    confidence: FittedConfidence | None = None  # multiplies sizes by ``size_factor``


class SizingAccount(NamedTuple):
    """The account data that sizing uses, in money."""

    equity: int
    others: int  # absolute notional of all other symbols' positions or targets
    stop: int = 0  # distance from the close to the nearest stop, in price units; 0 without one


NO_ACCOUNT: Final = SizingAccount(0, 0)
_OF_EQUITY: Final = frozenset(
    {
        SizingMode.EQUITY,
        SizingMode.ALLOCATION,
        SizingMode.KELLY,
        SizingMode.RISK,
        SizingMode.EXPECTED_SHORTFALL,
        SizingMode.NETWORK_ALLOCATION,
    }
)
NO_STOP: Final = (
    "sizing.mode 'risk' needs a stop to size by, and this signal gives none; add stop= or "
    "trailing= to it, or choose another mode"
)


WITHIN_BAND: Final = "the target is within the no-trade band around zero"


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
        self._sizing = sizing
        self._step = step
        self._notional = Notional.of(instrument)
        self._index = horizon_index
        self.of_equity = sizing.mode in _OF_EQUITY or sizing.of_equity
        """Whether a full position is a share of equity."""
        self._estimate: WindowedVolatility | None = None
        if sizing.mode is SizingMode.VOLATILITY and sizing.estimate is not None:
            self._estimate = WindowedVolatility(sizing.estimate, sizing.lookback)
        self._is_capped = sizing.max_position > 0 or sizing.max_gross > 0
        self.sees_account = self.of_equity or sizing.max_gross > 0
        """Whether targets depend on the account, and so on fills."""
        self.follows_signal = (
            sizing.mode is SizingMode.FIXED and not self._is_capped and sizing.confidence is None
        )
        """Whether the target depends only on the signal."""
        self.by_stop = sizing.mode is SizingMode.RISK
        """Whether the distance to the stop determines the size."""

    @property
    def settings(self) -> tuple[Sizing, int]:
        """The configured size, and the index of the horizon whose forecast it uses."""
        return self._sizing, self._index

    @property
    def bars(self) -> int:
        """Bars that a size depends on; 0 if only the newest."""
        return 0 if self._estimate is None else self._estimate.bars

    def falls_with_price(self, signal: Signal) -> bool:
        """Return whether the target of *signal* never grows when the price rises, all else equal.

        Then the prices at which a standing target stays form an interval. Not with a band, whose
        two edges are rounded separately.
        """
        sizing = self._sizing
        is_banded = sizing.rebalance is None and signal.band is not None
        return self._estimate is None and (not is_banded or sizing.mode is SizingMode.FIXED)

    def change(self, instrument: Instrument) -> None:
        """Use a new quantity step; a fixed quantity is rounded down to it."""
        self._step = instrument.quantity_step

    def observe(self, bar: Bar) -> None:
        """Add a closed bar to the volatility estimate."""
        if self._estimate is not None:
            self._estimate.add(bar.close)

    def target(
        self,
        signal: Signal,
        bar: Bar,
        forecast: Forecast | None,
        *,
        standing: int = 0,
        account: SizingAccount = NO_ACCOUNT,
        is_full: bool = False,
    ) -> int:
        """Return the signed quantity that *signal* (LONG, SHORT or FLAT) asks to hold.

        To avoid trading every price move, the previous target *standing* stays while it is within
        the signal's band around the new target, else the target moves to the band's nearer edge.
        Without a band, or with ``rebalance`` set, a target of the same side stays unless the new
        one differs by more than that. *account* is needed if :attr:`sees_account`. *is_full*
        requests a full position whatever the mode.
        """
        action, sizing = signal.action, self._sizing
        if action is Action.FLAT:
            return 0
        if (factor := self.factor(forecast)) is not None:
            signal = replace(signal, strength=signal.strength * factor)
        if self.by_stop:
            return self._by_stop(signal, bar, standing, account)
        if sizing.mode is SizingMode.FIXED:
            size = sizing.quantity
            if signal.strength != 1.0:
                size = size * int(signal.strength * _PARTS) // _PARTS
            size = self._whole_steps(size)
        else:
            is_short = action is Action.SHORT
            share = 1.0 if is_full else self._share(forecast, is_short=is_short)
            share *= signal.strength
            money = self._full(account.equity) * int(share * _PARTS) // _PARTS
            size = self._whole_steps(self._notional.quantity(money, bar.close))
        side = 1 if action is Action.LONG else -1
        cap = self._cap(bar.close, account) if self._is_capped else None
        if sizing.rebalance is None and signal.band is not None:
            full = sizing.quantity
            if sizing.mode is not SizingMode.FIXED:
                full = self._notional.quantity(self._full(account.equity), bar.close)
            band = full * int(signal.band * _PARTS) // _PARTS
            size = self._within(size, band, standing * side)
            return side * (size if cap is None else min(size, cap))
        if cap is not None:
            size = min(size, cap)
        return self._kept(side * size, standing)

    def _within(self, size: int, band: int, standing: int) -> int:
        """Return *standing* if it is within *band* of *size*, else the band's nearer edge.

        A negative *standing* is a position of the other side, which is at least closed.
        """
        if abs(size - standing) <= band and standing >= 0 and standing % self._step == 0:
            return standing
        return self._whole_steps(max(size - band, 0) if standing < size else size + band)

    def factor(self, forecast: Forecast | None) -> float | None:
        """Return the multiplier of a size, in (0, 1]; None unless sizes depend on confidence."""
        if (fitted := self._sizing.confidence) is None:
            return None
        return size_factor(fitted, forecast, self._index)

    def refusal(self, signal: Signal, target: int, standing: int) -> str | None:
        """Return why an entry by *signal* has no size; None if it has one or is not an entry."""
        if self.by_stop:
            return NO_STOP if signal.stop is None and signal.trailing is None else None
        if target == standing == 0 and self._sizing.rebalance is None and signal.band:
            return WITHIN_BAND
        return None

    def _by_stop(self, signal: Signal, bar: Bar, standing: int, account: SizingAccount) -> int:
        """Return the quantity that loses the configured share of equity at the stop.

        The size is fixed at the entry; resized at every bar, a position would grow as the price
        approaches its stop. Without a stop *standing* stays, and :meth:`refusal` explains it.
        """
        side = 1 if signal.action is Action.LONG else -1
        if standing * side > 0 or account.stop <= 0:
            return standing
        share = int(self._sizing.risk * signal.strength * _PARTS)
        money = max(account.equity, 0) * share // _PARTS
        size = self._whole_steps(self._notional.quantity(money, account.stop))
        if self._is_capped:
            size = min(size, self._cap(bar.close, account))
        return side * size

    def held(self, price: int, cash: int, exposure: float, *, standing: int) -> int:
        """Return the quantity that *exposure*, a multiple of *cash*, buys at *price*.

        It is below zero, and sold short, if *exposure* is.
        """
        money = cash * int(abs(exposure) * _PARTS) // _PARTS
        size = self._whole_steps(self._notional.quantity(money, price))
        return self._kept(size if exposure > 0 else -size, standing)

    def _kept(self, target: int, standing: int) -> int:
        """Return *standing* if *target* has the same side and is close to it, else *target*."""
        if target * standing > 0:
            share = REBALANCE if self._sizing.rebalance is None else self._sizing.rebalance
            band = abs(standing) * int(share * _PARTS) // _PARTS
            if abs(target - standing) <= band and standing % self._step == 0:
                return standing
        return target

    def notional(self, price: int, quantity: int) -> int:
        """Return the money of *quantity* at *price*."""
        return self._notional(price, quantity)

    def _whole_steps(self, quantity: int) -> int:
        return quantity - quantity % self._step

    def _full(self, equity: int) -> int:
        sizing = self._sizing
        if not self.of_equity:
            return sizing.notional
        share = sizing.fraction
        if sizing.mode is SizingMode.ALLOCATION:
            share *= sizing.weight
        return max(equity, 0) * int(share * _PARTS) // _PARTS

    def _cap(self, price: int, account: SizingAccount) -> int:
        sizing = self._sizing
        money = sizing.max_position
        if sizing.max_gross > 0:
            gross = max(account.equity, 0) * int(sizing.max_gross * _PARTS) // _PARTS
            left = max(gross - account.others, 0)
            money = min(money, left) if money else left
        return self._whole_steps(self._notional.quantity(money, price))

    def _share(self, forecast: Forecast | None, *, is_short: bool) -> float:
        """Return the share of a full position, in [0, 1]; 0 if it cannot be computed."""
        sizing = self._sizing
        mode = sizing.mode
        if mode in {SizingMode.NOTIONAL, SizingMode.EQUITY, SizingMode.ALLOCATION}:
            return 1.0
        share = 0.0
        if mode is SizingMode.VOLATILITY:
            if self._estimate is not None:
                expected = self._estimate.of_bars(sizing.horizon)
            else:
                expected = None if forecast is None else forecast.volatility[self._index]
            if expected:
                share = sizing.target_volatility / expected
        elif forecast is not None and mode is SizingMode.EXPECTED_SHORTFALL:
            loss = forecast.expected_shortfall(
                self._index, is_short=is_short, measured=sizing.tails
            )
            share = sizing.shortfall / (loss * sizing.fraction) if loss else 0.0
        elif forecast is not None and mode is SizingMode.NETWORK_ALLOCATION:
            allocation = forecast.allocation(self._index) or 0.0
            share = -allocation if is_short else allocation
        elif forecast is not None:
            mean = abs(forecast.mean_return[self._index]) * sizing.slope
            deviation = forecast.stdev_return[self._index]
            if mode is SizingMode.TANH:
                share = math.tanh(sizing.scale * mean / deviation)
            elif sizing.fraction > 0:
                # The square of a finite deviation may overflow or be 0.
                with suppress(OverflowError, ZeroDivisionError):
                    share = sizing.kelly * mean / deviation**2 / sizing.fraction
        return min(share, 1.0) if math.isfinite(share) and share > 0 else 0.0
