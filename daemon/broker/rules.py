"""Exchange rules: order filters, the margin of a position and its risk tiers.

An isolated position binds its initial margin, and the fee of closing it at the bankruptcy price. It
is liquidated at the mark price at which the margin less the loss falls to the maintenance margin.
Then it is reduced to a lower risk tier, or closed at the bankruptcy price, at which exactly the
margin is lost. On cross margin the initial margin follows the mark price too, and the account's
balance is the margin of all positions (``margin``).

The rules are docs/money.md, M8 and M28 to M33, and docs/orders.md, B1; the formulas of margin are
Bybit's.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Final, NamedTuple

from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.strategies.api.context import OrderRequest
from tracepaper.strategies.types.decisions import Order, OrderKind, Position
from tracepaper.strategies.types.market import (
    LEVERAGE_DECIMALS,
    Category,
    Instrument,
    RiskTier,
    Side,
)
from tracepaper.strategies.units import (
    MONEY_DECIMALS,
    MONEY_LIMIT,
    MONEY_SCALE,
    RATE_DECIMALS,
    RATE_SCALE,
    Notional,
    divide_half_even,
    unscaled,
)

_LEVERAGE_UNIT: Final = 10**LEVERAGE_DECIMALS
ASSUMED_LEVERAGE: Final = 100 * _LEVERAGE_UNIT
"""The greatest leverage of an instrument whose own is unknown."""


def tiers_of(instrument: Instrument) -> tuple[RiskTier, ...]:
    """Return the risk tiers of *instrument*, or one tier of its greatest leverage if unknown.

    The maintenance margin of that tier is half of the least initial margin, and it has no limit.
    """
    if instrument.risk_tiers:
        return instrument.risk_tiers
    greatest = instrument.max_leverage or ASSUMED_LEVERAGE
    return (RiskTier(0, RATE_SCALE * _LEVERAGE_UNIT // greatest // 2, greatest, 0),)


class Bounds(NamedTuple):
    """The liquidation and bankruptcy prices of a position, in whole ticks, and their reason."""

    liquidation: int
    bankruptcy: int
    reason: str


class MarginUse(NamedTuple):
    """The margin (money), leverage (10⁻²) and liquidation price of a position."""

    margin: int
    leverage: int
    liquidation: int  # the mark price at which it is liquidated


def excess_quantity(value: int, held: int, limit: int, step: int) -> int:
    """Return the quantity, in whole steps, by which *held*, worth *value*, exceeds *limit*.

    At most all of it.
    """
    return min(-(-(value - limit) * held // (value * step)) * step, held)


class MarginRules:
    """The margin of positions in one instrument at one leverage."""

    def __init__(
        self, instrument: Instrument, leverage: int, taker_fee: int, *, is_cross: bool = False
    ) -> None:
        """Take *leverage* as an integer of 10⁻² and *taker_fee* as one of 10⁻¹⁰."""
        self.is_cross = is_cross
        self._instrument = instrument
        self._tiers = tiers_of(instrument)
        self._leverage = leverage
        self._fee = taker_fee
        self._notional = Notional.of(instrument)

    def required(self, entry: int) -> int:
        """Return the margin of a position entered for *entry* (money, signed), rounded up.

        On cross margin *entry* is its value at the mark.
        """
        initial = self._initial(entry)
        return initial + self._closing_fee(entry, initial)

    def _initial(self, entry: int) -> int:
        return -(-abs(entry) * _LEVERAGE_UNIT // self._leverage)

    def _closing_fee(self, entry: int, initial: int) -> int:
        """Return the fee of closing at the price that loses the *initial* margin, rounded up."""
        lost_at = abs(entry) - initial if entry > 0 else abs(entry) + initial
        return -(-lost_at * self._fee // RATE_SCALE)

    def maintenance(self, value: int) -> int:
        """Return the maintenance margin of a position worth *value* (money, signed) at the mark.

        It includes the fee of closing, as on cross margin.
        """
        size = abs(value)
        _, tier = self._tier_or_last(size)
        return self._maintenance(tier, size) + self._closing_fee(value, self._initial(value))

    @staticmethod
    def _maintenance(tier: RiskTier, size: int) -> int:
        return max(size * tier.maintenance // RATE_SCALE - tier.deduction, 0)

    def lower_tiers(self, value: int) -> tuple[tuple[int, int], ...]:
        """Return number and limit (money) of the tiers below that of *value*, highest first."""
        number, _ = self._tier_or_last(abs(value))
        below = ((place, tier.limit) for place, tier in enumerate(self._tiers[: number - 1], 1))
        return tuple(sorted(below, reverse=True))

    def bankruptcy(self, value: int, quantity: int, loss: int) -> int:
        """Return the price at which closing *quantity* loses *loss* of its *value*, with the fee.

        *value* is unsigned money at the mark; *loss* may be negative. The price is at least one
        tick, and rounded so that no more is lost.
        """
        is_long = quantity > 0
        return self._price(self._lost_at(value, loss, is_long=is_long), quantity, up=is_long)

    def _lost_at(self, size: int, margin: int, *, is_long: bool) -> int:
        """Return the notional at which closing a position entered for *size* loses *margin*."""
        if is_long:
            return max(-(-(size - margin) * RATE_SCALE // (RATE_SCALE - self._fee)), 0)
        return (size + margin) * RATE_SCALE // (RATE_SCALE + self._fee)

    def _tier_or_last(self, notional: int) -> tuple[int, RiskTier]:
        return self._tier(notional) or (len(self._tiers), self._tiers[-1])

    def refusal(self, notional: int) -> str | None:
        """Return why a position of *notional* (unsigned) is too large for the leverage, or None."""
        numbered_tier = self._tier(notional)
        if numbered_tier is None:
            most = unscaled(self._tiers[-1].limit, MONEY_DECIMALS)
            return f"position above {most}, the last risk tier"
        number, tier = numbered_tier
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
        """Return the liquidation and bankruptcy prices of a position with *margin*.

        *quantity* and its *entry* notional are signed. Both prices are rounded so that no more than
        the margin is lost.
        """
        size, is_long = abs(entry), quantity > 0
        lost_at = self._lost_at(size, margin, is_long=is_long)
        number, liquidation_value = self._liquidation_value(lost_at, is_long=is_long)
        tier = self._tiers[number - 1]
        maintenance = self._maintenance(tier, liquidation_value)
        share = unscaled(tier.maintenance, RATE_DECIMALS - 2)
        reason = (
            f"the margin of {_short_money(margin)} less the loss had fallen to the maintenance "
            f"margin of {_short_money(maintenance)} of risk tier {number} ({share} %)"
        )
        return Bounds(
            self._price(liquidation_value, quantity, up=is_long),
            self._price(lost_at, quantity, up=is_long),
            reason,
        )

    def _liquidation_value(self, lost_at: int, *, is_long: bool) -> tuple[int, int]:
        """Return tier and value at which the rest of the margin equals the maintenance margin.

        *lost_at* is the value at which the margin is lost. With the rate r and the deduction d of
        the tier of the value, a long is liquidated at (lost_at - d) / (1 - r), a short at
        (lost_at + d) / (1 + r). Of several solutions the one nearest to the entry counts.
        """
        solution = len(self._tiers), lost_at
        above = 0
        for number, tier in enumerate(self._tiers, 1):
            below, above = above, tier.limit
            is_last = number == len(self._tiers) or not tier.limit
            if is_long:
                kept = max(RATE_SCALE - tier.maintenance, 1)
                value = -(-(lost_at - tier.deduction) * RATE_SCALE // kept)
                value = max(value, lost_at)  # a maintenance margin is never negative
                if value > below or number == 1:
                    solution = number, value if is_last else min(value, above)
            else:
                value = (lost_at + tier.deduction) * RATE_SCALE // (RATE_SCALE + tier.maintenance)
                value = max(min(value, lost_at), below)
                if value <= above or is_last:
                    return number, value
            if is_last:
                break
        return solution

    def reduction(
        self, entry: int, quantity: int, margin: int, mark: int
    ) -> tuple[int, int] | None:
        """Return by how much a position liquidated at *mark* is reduced, and to which risk tier.

        It is the highest lower tier in which the position is not liquidated. None if there is no
        such tier: all of the position is taken over.
        """
        held, is_long = abs(quantity), quantity > 0
        value = self._notional(mark, held)
        for tier, limit in self.lower_tiers(value):
            left = held - excess_quantity(value, held, limit, self._instrument.quantity_step)
            if left:
                bounds = self.bounds(
                    divide_half_even(entry * left, held),
                    left if is_long else -left,
                    margin * left // held,
                )
                if mark > bounds.liquidation if is_long else mark < bounds.liquidation:
                    return held - left, tier
        return None

    def used_by(self, position: Position) -> int:
        """Return the margin of *position*, on cross margin at its mark."""
        if not self.is_cross:
            return position.margin
        return self.required(position.entry_notional + position.unrealized_pnl)

    def needed_by(self, position: Position) -> int:
        """Return the maintenance margin of *position* at its mark, on cross margin."""
        value = position.entry_notional + position.unrealized_pnl
        return self.maintenance(value) if value else 0

    def use_of(self, position: Position | None) -> MarginUse | None:
        """Return the margin and liquidation price of *position*; None if it binds no margin."""
        if position is None or not position.margin or not position.quantity:
            return None
        bounds = self.bounds(position.entry_notional, position.quantity, position.margin)
        return MarginUse(position.margin, self._leverage, bounds.liquidation)

    def _price(self, notional: int, quantity: int, *, up: bool) -> int:
        """Return the price, at least one tick, at which *quantity* is worth *notional*."""
        tick = self._instrument.tick_size
        units = abs(quantity) * self._notional.multiplier * tick
        worth = notional * self._notional.divisor
        return max(-(-worth // units) if up else worth // units, 1) * tick


def _short_money(amount: int) -> str:
    """Return *amount* with four decimals, rounded up."""
    return unscaled(-(-amount // 10 ** (MONEY_DECIMALS - 4)), 4)


def _leverage(leverage: int) -> str:
    return unscaled(leverage, LEVERAGE_DECIMALS)


NOTIONAL_MOST: Final = MONEY_LIMIT // 4 // MONEY_SCALE * MONEY_SCALE
"""The largest notional of an order: money has 64 bits, and prices may still rise."""
NO_CASH: Final = "cash does not cover it"
NO_MARGIN: Final = "the available balance does not cover its margin"
_DIGITS_MOST: Final = 18  # of an integer of 64 bits
_NEAR: Final = Decimal("1e-6")
"""The tolerated rounding error in ticks or steps: 0.1 + 0.2 counts as 0.3, 0.31 does not."""


def number_fault(number: float, close: float, *, is_distance: bool = False) -> str | None:
    """Return why *number* cannot be meant as a price, or as a distance of one, beside *close*.

    Nearly always it is a share, such as .02 for 2 %.
    """
    if number <= 0:
        return "not above zero"
    if is_distance:
        return "a distance of more than half of the close" if 2 * number > close else None
    if 10 * number < close:
        return "a price of less than a tenth of the close"
    return "a price of more than ten times the close" if number > 10 * close else None


def below_step(item: Instrument) -> str:
    """Return the reason of a target that is less than a step and so has no order."""
    return f"size below the step {unscaled(item.quantity_step, item.quantity_decimals)}"


def below_quantity(item: Instrument) -> str:
    """Return the reason of an order below the exchange's least quantity."""
    return f"quantity below {unscaled(item.min_quantity, item.quantity_decimals)}"


def below_notional(item: Instrument) -> str:
    """Return the reason of an order below the exchange's least notional."""
    return f"notional below {unscaled(item.min_notional, MONEY_DECIMALS)}"


def largest_multiple(quantity: int, step: int, is_affordable: Callable[[int], bool]) -> int:
    """Return the largest part of *quantity*, in whole steps, that *is_affordable*.

    Bisects: whatever is less than an affordable quantity has to be affordable too.
    """
    fewest, most = 0, quantity // step
    while fewest < most:
        middle = (fewest + most + 1) // 2
        if is_affordable(middle * step):
            fewest = middle
        else:
            most = middle - 1
    return fewest * step


class RequestTerms(NamedTuple):
    """An order request in exact integers, or why it has none."""

    quantity: int = 0
    price: int | None = None
    trigger: int | None = None
    refusal: str | None = None


class Filters:
    """The exchange's order filters for one instrument, and the cash that an order needs."""

    def __init__(
        self, instrument: Instrument, costs: ExecutionCosts, margin: MarginRules | None = None
    ) -> None:
        self.instrument, self._is_cash = instrument, instrument.category.is_cash
        self._margin = margin
        self.notional = Notional.of(instrument)
        self._costs = costs

    def terms(self, request: OrderRequest) -> RequestTerms:
        """Return *request* in exact integers, or why it is invalid."""
        item = self.instrument
        if request.post_only and request.kind is not OrderKind.LIMIT:
            return RequestTerms(refusal="only a LIMIT order can be post-only")
        scale = item.quantity_decimals, item.quantity_step
        quantity, refusal = _units(request.quantity, *scale, "quantity", "step")
        prices: list[int | None] = []
        for name, value in (("price", request.price), ("trigger", request.trigger)):
            if value is None or refusal is not None:
                prices.append(None)
                continue
            units, refusal = _units(value, item.price_decimals, item.tick_size, name, "tick")
            prices.append(units or None)
        price, trigger = prices
        return RequestTerms(quantity, price, trigger, refusal)

    def refusal(self, order: Order, price: int, *, reduces: bool) -> str | None:
        """Return why the exchange refuses *order* at *price* regardless of the balance, or None.

        An order that *reduces* a position has no least notional.
        """
        item, quantity = self.instrument, order.quantity
        if quantity == 0:
            return f"the difference is less than the step {self._text(item.quantity_step)}"
        if quantity < item.min_quantity:
            return below_quantity(item)
        if item.max_quantity and quantity > item.max_quantity:
            return f"quantity above {self._text(item.max_quantity)}"
        notional = self.notional(price, quantity)
        return None if reduces else self._notional_refusal(notional)

    @property
    def no_funds(self) -> str:
        """The reason of an order that the account cannot pay for.

        It holds no numbers, since a reason that changes at each bar would be stored at each bar.
        """
        return NO_CASH if self._margin is None else NO_MARGIN

    def bound(self, quantity: int, price: int, side: Side) -> int:
        """Return the cash that opening *quantity* at *price* binds: its margin or its notional."""
        notional = self.notional(price, quantity)
        if self._margin is None:
            return notional if self._is_cash else 0
        return self._margin.required(notional if side is Side.BUY else -notional)

    def tier_refusal(self, held: int, target: int, price: int) -> str | None:
        """Return why a position of *target* is too large for the leverage at *price*, or None."""
        if self._margin is None or (abs(target) <= abs(held) and target * held >= 0):
            return None
        return self._margin.refusal(self.notional(price, abs(target)))

    def covers(self, side: Side, quantity: int, held: int, price: int, funds: int) -> bool:
        """Return whether *funds* pay for an order of *quantity* at *price* with its fee.

        *funds* is cash, on margin only what no position binds; *held* is the position, signed.
        """
        if self._margin is None:
            pays = side is Side.BUY and self._is_cash
            return not pays or self._cost(quantity, self.notional(price, quantity)) <= funds
        closes = min(max(-held if side is Side.BUY else held, 0), quantity)
        if quantity == closes:
            return True
        fee = self._costs.fee(
            quantity,
            self.instrument.quantity_decimals,
            self.notional(price, quantity),
            is_first=True,
        )
        return self.bound(quantity - closes, price, side) + fee <= funds

    def affordable(self, side: Side, quantity: int, held: int, price: int, funds: int) -> int:
        """Return the largest part of *quantity*, in whole steps, that *funds* cover.

        *price* is the market's, which spread and slippage worsen; for the rest see :meth:`covers`.
        """
        rate = self._costs.half_spread + self._costs.slippage
        factor = RATE_SCALE + (rate if side is Side.BUY else -rate)
        tick = self.instrument.tick_size
        price = -(-price * factor // (RATE_SCALE * tick)) * tick
        if self.covers(side, quantity, held, price, funds):
            return quantity
        step = self.instrument.quantity_step
        return largest_multiple(
            quantity, step, lambda part: self.covers(side, part, held, price, funds)
        )

    def _cost(self, quantity: int, notional: int) -> int:
        """Return the cash that a buy needs, with its fee unless that is paid in base."""
        item = self.instrument
        if item.category is Category.SPOT:
            return notional
        return notional + self._costs.fee(quantity, item.quantity_decimals, notional, is_first=True)

    def price_refusal(self, order: Order, price: int) -> str | None:
        """Return why no order has such prices with the market at *price*, or None.

        A stop would trigger at once, or a price is far from all that are traded.
        """
        for name, named in (("limit", order.price), ("trigger", order.trigger)):
            if named is not None and (fault := number_fault(named, price)):
                return f"{name} is {fault}; write one such as 0.98 * context.close"
        if order.trigger is None:
            return None
        if order.side is Side.BUY and order.trigger <= price:
            return "a buy stop must be above the market"
        if order.side is Side.SELL and order.trigger >= price:
            return "a sell stop must be below the market"
        return None

    def _text(self, quantity: int) -> str:
        return unscaled(quantity, self.instrument.quantity_decimals)

    def _notional_refusal(self, notional: int) -> str | None:
        least = self.instrument.min_notional
        if notional < least:
            return below_notional(self.instrument)
        if notional > NOTIONAL_MOST:
            return f"notional above {unscaled(NOTIONAL_MOST, MONEY_DECIMALS)}"
        return None


def _units(
    value: float | Decimal, decimals: int, step: int, name: str, step_name: str
) -> tuple[int, str | None]:
    """Return *value* in 10^-*decimals* as a multiple of *step*; or 0 and why that is impossible."""
    exact = Decimal(str(value))
    if not exact.is_finite() or exact <= 0:
        return 0, f"{name} {_short(exact)} is not a positive number"
    if exact.adjusted() + decimals >= _DIGITS_MOST:
        return 0, f"{name} {_short(exact)} is beyond what an account can hold"
    scaled = exact.scaleb(decimals)
    units = int((scaled / step).to_integral_value()) * step
    if units and abs(scaled - units) <= _NEAR * step:
        return units, None
    grid = f"{step_name} {unscaled(step, decimals)}"
    return 0, f"{name} is no multiple of the {grid}; to_{step_name} rounds it"


def _short(value: Decimal) -> str:
    """Return *value* as it was written, or in twelve digits if that is longer than a price."""
    text = str(value)
    return text if len(text) <= 20 else f"{value:.12g}"
