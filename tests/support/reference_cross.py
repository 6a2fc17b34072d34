"""An account on cross margin kept by itself, in fractions: what a run's account is held to.

Nothing of it is the engine's: margins, calls and liquidations follow from the rules of
docs/money.md, M49 to M60, in the numbers that people write.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

UNIT = Fraction(1, 10**8)


def down(amount: Fraction) -> Fraction:
    """Return *amount* in whole units of 10⁻⁸, rounded down."""
    return math.floor(amount / UNIT) * UNIT


def up(amount: Fraction) -> Fraction:
    """Return it rounded up."""
    return math.ceil(amount / UNIT) * UNIT


def even(amount: Fraction) -> Fraction:
    """Return it rounded half to even."""
    return round(amount / UNIT) * UNIT


class Tier(NamedTuple):
    """A risk tier: the limit is None where there is none."""

    limit: Fraction | None
    rate: Fraction
    deduction: Fraction


class RestingSize(NamedTuple):
    """An order that rests: its signed rest, and whether it may only close, or is by signal."""

    symbol: str
    signed: Fraction
    reduce_only: bool
    by_signal: bool


class ReferenceFill(NamedTuple):
    """A fill of the exchange's engine: signed quantity, price."""

    symbol: str
    signed: Fraction
    price: Fraction


@dataclass
class Position:
    """What is held of one symbol."""

    quantity: Fraction = Fraction(0)
    entry: Fraction = Fraction(0)


@dataclass
class ReferenceCross:
    """Cash, positions and orders of symbols that share tiers, tick and step."""

    cash: Fraction
    leverage: Fraction
    tiers: tuple[Tier, ...]
    symbols: tuple[str, ...]
    tick: Fraction
    step: Fraction
    slippage: Fraction
    fee: Fraction = Fraction(55, 100_000)
    marks: dict[str, Fraction] = field(default_factory=dict)
    held: dict[str, Position] = field(default_factory=dict)
    orders: dict[str, RestingSize] = field(default_factory=dict)
    changed: dict[str, tuple[Tier, ...]] = field(default_factory=dict)
    """The tiers of the symbols whose tiers the exchange has changed."""

    def of(self, symbol: str) -> Position:
        """Return the position in *symbol*."""
        return self.held.setdefault(symbol, Position())

    # ------------------------------------------------------------ margins

    def _closing(self, value: Fraction) -> Fraction:
        lost = abs(value) - self._initial(value) * (1 if value > 0 else -1)
        return up(lost * self.fee)

    def _initial(self, value: Fraction) -> Fraction:
        return up(abs(value) / self.leverage)

    def initial(self, value: Fraction) -> Fraction:
        """Return the initial margin of what is worth *value*, with the fee of closing it."""
        return self._initial(value) + self._closing(value)

    def tiers_of(self, symbol: str) -> tuple[Tier, ...]:
        """Return the tiers of *symbol* as they are now."""
        return self.changed.get(symbol, self.tiers)

    def tier(self, symbol: str, value: Fraction) -> int:
        """Return the place of the tier of *value*."""
        tiers = self.tiers_of(symbol)
        fits = [n for n, tier in enumerate(tiers) if tier.limit is None or abs(value) <= tier.limit]
        return min(fits, default=len(tiers) - 1)

    def maintenance(self, symbol: str, value: Fraction) -> Fraction:
        """Return the maintenance margin, with that fee."""
        tier = self.tiers_of(symbol)[self.tier(symbol, value)]
        least = max(down(abs(value) * tier.rate) - tier.deduction, Fraction(0))
        return least + self._closing(value)

    def exposed(self, symbol: str) -> Fraction:
        """Return the largest position that orders could lead to."""
        held = self.of(symbol).quantity
        mine = [o.signed for o in self.orders.values() if o.symbol == symbol and not o.reduce_only]
        longest = held + sum((size for size in mine if size > 0), Fraction(0))
        shortest = held + sum((size for size in mine if size < 0), Fraction(0))
        if abs(longest) == abs(shortest):
            return held or longest
        return max(longest, shortest, key=abs)

    def value(self, symbol: str, quantity: Fraction) -> Fraction:
        """Return the worth of *quantity* at the mark."""
        return even(self.marks.get(symbol, Fraction(0)) * quantity)

    def balance(self) -> Fraction:
        """Return cash and all unrealized results."""
        worth = (
            self.value(name, position.quantity) - position.entry
            for name, position in self.held.items()
        )
        return self.cash + sum(worth, Fraction(0))

    def needed(self) -> Fraction:
        """Return the maintenance margin of the account."""
        exposed = ((name, self.value(name, self.exposed(name))) for name in self.symbols)
        return sum((self.maintenance(name, value) for name, value in exposed if value), Fraction(0))

    def bound(self, *, but: str) -> Fraction:
        """Return the initial margin of all, of *but* that of its position alone."""
        total = Fraction(0)
        for name in self.symbols:
            quantity = self.of(name).quantity if name == but else self.exposed(name)
            if worth := self.value(name, quantity):
                total += self.initial(worth)
        return total

    def is_called(self) -> bool:
        """Return whether the maintenance ratio is at 100 % or above."""
        return any(self.exposed(name) for name in self.symbols) and self.needed() >= self.balance()

    # ------------------------------------------------------------ what moves it

    def fill(self, symbol: str, signed: Fraction, price: Fraction, fee: Fraction) -> None:
        """Book a fill, which pays *fee*."""
        held = self.of(symbol)
        notional = even(signed * price)
        opened = signed
        if held.quantity * signed < 0:
            closed = min(abs(signed), abs(held.quantity))
            share = even(notional * closed / abs(signed))
            entry = even(held.entry * closed / abs(held.quantity))
            self.cash += -share - entry
            held.entry -= entry
            held.quantity += closed if signed > 0 else -closed
            opened = signed - (closed if signed > 0 else -closed)
            notional -= share
        if opened:
            held.quantity += opened
            held.entry += notional
        self.cash -= fee

    def funding(self, symbol: str, rate: Fraction) -> None:
        """Settle funding from the cash."""
        self.cash -= even(self.value(symbol, self.of(symbol).quantity) * rate)

    # ------------------------------------------------------------ its liquidation

    def liquidate(self, *, is_ruin: bool = False) -> tuple[set[str], list[ReferenceFill]]:
        """Take the steps, of a ruin the last alone; return canceled orders' ids and the fills."""
        canceled = set()
        for name, order in list(self.orders.items()):
            held = self.of(order.symbol).quantity
            left = held + order.signed
            closes = order.by_signal and held != 0 and left * held >= 0 and abs(left) <= abs(held)
            if not order.reduce_only and not closes:
                canceled.add(name)
                del self.orders[name]
        if is_ruin:
            return canceled, self._taken_over()
        if not self.is_called():
            return canceled, []
        if (sold := self._reduced()) is not None:
            return canceled, sold
        return canceled, self._taken_over()

    def market(self, symbol: str, quantity: Fraction) -> ReferenceFill:
        """Return the close of *quantity* (unsigned) of a position at its mark, as a taker."""
        long = self.of(symbol).quantity > 0
        worse = self.marks[symbol] * (1 - self.slippage if long else 1 + self.slippage)
        ticks = math.floor(worse / self.tick) if long else math.ceil(worse / self.tick)
        return ReferenceFill(symbol, -quantity if long else quantity, max(ticks, 1) * self.tick)

    def do(self, fill: ReferenceFill) -> None:
        """Book what the engine took."""
        self.fill(*fill, even(even(abs(fill.signed) * fill.price) * self.fee))
        for name, order in list(self.orders.items()):
            if order.symbol == fill.symbol and order.by_signal:  # it was for another position
                del self.orders[name]

    def copy(self) -> ReferenceCross:
        """Return an account to try things on."""
        other = ReferenceCross(
            self.cash, self.leverage, self.tiers, self.symbols, self.tick, self.step, self.slippage
        )
        other.marks = self.marks
        other.held = {
            name: Position(position.quantity, position.entry)
            for name, position in self.held.items()
        }
        other.orders, other.changed = dict(self.orders), self.changed
        return other

    def _reduced(self) -> list[ReferenceFill] | None:
        tried, sold = self.copy(), list[ReferenceFill]()
        worst = sorted(
            (name for name in self.symbols if self.of(name).quantity),
            key=lambda name: -self.maintenance(name, self.value(name, self.exposed(name))),
        )
        for name in worst:
            size = abs(tried.value(name, tried.of(name).quantity))
            held = abs(tried.of(name).quantity)
            lower = [self.tiers_of(name)[n].limit for n in range(self.tier(name, size))]
            for limit in reversed(lower):
                assert limit is not None
                quantity = min(
                    math.ceil((size - limit) * held / size / self.step) * self.step, held
                )
                reduction = tried.market(name, quantity)
                after = tried.copy()
                after.do(reduction)
                if not after.is_called() and after.balance() >= 0:
                    for fill in (*sold, reduction):
                        self.do(fill)
                    return [*sold, reduction]
            if lower:
                sold.append(reduction)
                tried = after
        return None

    def _taken_over(self) -> list[ReferenceFill]:
        fills = []
        while left := [name for name in self.symbols if self.of(name).quantity]:
            size = {name: abs(self.value(name, self.of(name).quantity)) for name in left}
            name = min(left, key=lambda symbol: (self.of(symbol).quantity > 0, -size[symbol]))
            balance, whole = self.balance(), sum(size.values())
            loss = balance if len(left) == 1 else down(balance * size[name] / whole)
            quantity = self.of(name).quantity
            if quantity > 0:
                price = (size[name] - loss) / (1 - self.fee) / quantity
                ticks = math.ceil(price / self.tick)
            else:
                price = (size[name] + loss) / (1 + self.fee) / -quantity
                ticks = math.floor(price / self.tick)
            fills.append(ReferenceFill(name, -quantity, max(ticks, 1) * self.tick))
            self.do(fills[-1])
        return fills
