"""What a live run may do, by the quotes, marks and commands of its record.

The rules are docs/money.md, M11 and M31, docs/orders.md, B3, docs/protection.md, E12, and
docs/decisions.md, G4 and G17. Like ``checker`` it imports nothing of the product.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

OF_STRATEGY: Final = frozenset({"SIGNAL", "LIST"})
"""The roles of orders that a decision sends."""


class Order(NamedTuple):
    """The state of an order after a step."""

    order_id: str
    key: str
    is_buy: bool
    quantity: Decimal
    filled: Decimal
    status: str
    reason: str
    created_ms: int
    kind: str
    role: str
    price: Decimal | None
    trigger: Decimal | None
    until_ms: int | None
    eligible_ms: int
    is_triggered: bool
    reduces: bool

    @property
    def rests(self) -> bool:
        """Whether it may still be filled."""
        return self.status in {"NEW", "ACCEPTED", "PARTIALLY_FILLED"}

    @property
    def waits(self) -> bool:
        """Whether it is a stop that has not triggered."""
        return self.trigger is not None and not self.is_triggered

    def is_met(self, low: Decimal, high: Decimal) -> bool:
        """Return whether prices from *low* to *high* touch its trigger or go through its price."""
        if self.waits:
            assert self.trigger is not None
            return high >= self.trigger if self.is_buy else low <= self.trigger
        if self.price is None:
            return False
        return low < self.price if self.is_buy else high > self.price


class Quote(NamedTuple):
    """The best prices of an instrument, and what is shown there."""

    at_ms: int
    bid: Decimal
    bid_size: Decimal
    ask: Decimal
    ask_size: Decimal

    def far(self, order: Order) -> tuple[Decimal, Decimal]:
        """Return price and size of the side that fills *order*."""
        return (self.ask, self.ask_size) if order.is_buy else (self.bid, self.bid_size)


class Scale(NamedTuple):
    """The units of an instrument's stored prices and quantities."""

    tick: Decimal
    step: Decimal

    def quote(self, event: sqlite3.Row) -> Quote:
        """Return the quote that *event* holds."""
        fields = json.loads(event["content"])
        price, size = (Decimal(1).scaleb(each.as_tuple().exponent) for each in self)  # type: ignore[arg-type]
        return Quote(
            event["market_ms"],
            fields["bid"] * price, fields["bid_size"] * size,
            fields["ask"] * price, fields["ask_size"] * size,
        )  # fmt: skip


class Before(NamedTuple):
    """The account before a step."""

    orders: Mapping[str, Order]
    held: Mapping[str, Decimal]
    ruin: Mapping[str, Decimal]
    """Price at which each isolated position is liquidated."""


def _passes(order: Order, price: Decimal, level: Decimal) -> bool:
    """Return whether *price* is strictly better for the maker *order* than *level*."""
    return price < level if order.is_buy else price > level


class LiveLaws:
    """The laws of one live run; each breach is told by its law's name and a sentence."""

    def __init__(
        self,
        breach: Callable[[str, str], None],
        law_of: Callable[[Order], str],
        worse: Callable[[Order, Decimal], Decimal],
        late_ms: int,
    ) -> None:
        self.breach, self.law_of, self.worse, self.late_ms = breach, law_of, worse, late_ms
        self.halted = ""
        self.sent: frozenset[str] = frozenset()
        """Orders by signal that were on their way when trading was halted; they may be filled."""
        self.doubted: dict[str, Quote] = {}

    def take_over(self, before: LiveLaws) -> None:
        """Go on where the run *before* ended: a halt survives (G17)."""
        self.halted, self.sent = before.halted, frozenset(f"0-{name}" for name in before.sent)

    def step(
        self,
        events: Sequence[sqlite3.Row],
        fills: Sequence[sqlite3.Row],
        before: Before,
        orders: Mapping[str, Order],
        scales: Mapping[str, Scale],
    ) -> None:
        """Check a step from the account *before* it to the *orders* after it."""
        met: dict[str, Quote] = dict(self.doubted)
        was_halted = self.halted
        for event in events:
            key = event["instrument"]
            if event["kind"] == "quote":
                met[key] = scales[key].quote(event)
                if event["price_verdict"] is None:
                    self._check_unfilled(met[key], key, fills, before, orders)
                else:  # another source may confirm it in a later step
                    self.doubted[key] = met[key]
            elif event["kind"] == "mark" and event["price_verdict"] is None:
                price = json.loads(event["content"])["price"]
                unit = Decimal(1).scaleb(scales[key].tick.as_tuple().exponent)  # type: ignore[arg-type]
                self._check_ruin(key, price * unit, fills, before)
            elif event["kind"] == "command":
                self._command(event, before, orders)
        for fill in fills:
            if fill["model"] == "quote":
                self._check_fill(fill, fills, met.get(fill["instrument"]), before, orders)
        self._check_sizes(fills, met)
        if was_halted:
            self._check_halted(fills, before, orders, was_halted)

    def decided(
        self,
        decision: sqlite3.Row,
        bar: sqlite3.Row,
        interval_ms: int,
        new: Sequence[Order],
        held: Decimal,
    ) -> None:
        """Check that a *decision* on a bar that came late opened nothing (G4)."""
        late_ms = bar["seen_ms"] - bar["open_time_ms"] - interval_ms
        if late_ms <= self.late_ms:
            return
        for order in new:
            is_own = order.role in OF_STRATEGY and order.key == decision["instrument"]
            if is_own and _enlarges(order, held):
                place = f"{order.order_id} of {bar['open_time_ms']}"
                self.breach("late", f"{place} was ordered {late_ms} ms after the close")

    # ------------------------------------------------------------ commands

    def _command(self, event: sqlite3.Row, before: Before, orders: Mapping[str, Order]) -> None:
        kind = json.loads(event["content"])["kind"]
        if not self.halted:
            signals = (each for each in before.orders.values() if each.role == "SIGNAL")
            self.sent = frozenset(each.order_id for each in signals if each.rests)
        self.halted = "" if kind == "RESUME" else kind
        if kind != "FLATTEN":
            return
        for key, quantity in before.held.items():
            closing = sum(
                (each.quantity - each.filled if each.is_buy else each.filled - each.quantity)
                for each in orders.values()
                if each.key == key and each.rests and each.role in {*OF_STRATEGY, "COMMAND"}
            )
            if quantity and closing != -quantity:
                place = f"at {event['sequence']} FLATTEN of {quantity} {key}"
                self.breach("halt", f"{place} ordered {closing}")

    def _check_halted(
        self,
        fills: Sequence[sqlite3.Row],
        before: Before,
        orders: Mapping[str, Order],
        command: str,
    ) -> None:
        for fill in fills:
            held = before.held.get(fill["instrument"], Decimal(0))
            moved = Decimal(fill["quantity_text"]) * (1 if fill["side"] == "BUY" else -1)
            is_sent = fill["order_id"] in self.sent or fill["while_down"]
            if not is_sent and abs(held + moved) > abs(held):
                place = f"at {fill['sequence']} {fill['order_id']}"
                self.breach("halt", f"{place} was filled after {command}")
        for name, order in orders.items():
            is_new = name not in before.orders and order.rests and order.role in OF_STRATEGY
            if is_new and _enlarges(order, before.held.get(order.key, Decimal(0))):
                self.breach("halt", f"{name} was ordered after {command}")

    # ------------------------------------------------------------ quotes and marks

    def _check_fill(
        self,
        fill: sqlite3.Row,
        fills: Sequence[sqlite3.Row],
        quote: Quote | None,
        before: Before,
        orders: Mapping[str, Order],
    ) -> None:
        after = orders[fill["order_id"]]
        order = before.orders.get(fill["order_id"], after)
        law, price = self.law_of(order), Decimal(fill["price_text"])
        place = f"at {fill['sequence']} {fill['order_id']} at {price}"
        if quote is None:
            self.breach(law, f"{place} was filled by no quote")
            return
        far, _ = quote.far(order)
        if quote.at_ms < order.eligible_ms:
            self.breach(law, f"{place} met {quote.at_ms}, and arrives at {order.eligible_ms}")
        # An entry that the same quote fills moves the target, after its fill.
        sides = {other["side"] for other in fills if other["instrument"] == after.key}
        if after.role == "TARGET" and len(sides) > 1:
            after = after._replace(price=None if order is after else order.price)
        if fill["liquidity"] == "MAKER":
            if price != after.price or not _passes(order, far, price):
                self.breach(law, f"{place} was a maker's against {far}")
        elif price != self.worse(after, far):
            self.breach(law, f"{place} was taken, and the far side was {far}")
        elif order.waits and not self._is_triggered(after, far):
            self.breach(law, f"{place} was not triggered by {far}")

    @staticmethod
    def _is_triggered(order: Order, far: Decimal) -> bool:
        assert order.trigger is not None
        return far >= order.trigger if order.is_buy else far <= order.trigger

    def _check_sizes(self, fills: Sequence[sqlite3.Row], met: Mapping[str, Quote]) -> None:
        taken: dict[tuple[str, str], Decimal] = {}
        for fill in fills:
            if fill["model"] == "quote":
                side = fill["instrument"], fill["side"]
                taken[side] = taken.get(side, Decimal(0)) + Decimal(fill["quantity_text"])
        for (key, of_side), quantity in taken.items():
            shown = met[key].ask_size if of_side == "BUY" else met[key].bid_size
            if quantity > shown:
                place = f"at {fills[0]['sequence']} {key}"
                self.breach("fills", f"{place}: {quantity} was filled, and {shown} was shown")

    def _check_unfilled(
        self,
        quote: Quote,
        key: str,
        fills: Sequence[sqlite3.Row],
        before: Before,
        orders: Mapping[str, Order],
    ) -> None:
        """Check that *quote* filled what it met, as far as its size reaches."""
        for name, order in before.orders.items():
            after = orders[name]
            if order.key != key or not order.rests or not after.rests:
                continue
            far, shown = quote.far(order)
            side = "BUY" if order.is_buy else "SELL"
            taken = sum(
                Decimal(fill["quantity_text"])
                for fill in fills
                if fill["instrument"] == key and fill["side"] == side
            )
            is_over = order.until_ms is not None and order.until_ms <= quote.at_ms
            if after.filled > order.filled or taken >= shown or is_over:
                continue
            if quote.at_ms >= order.eligible_ms and self._is_met(order, far):
                self.breach(self.law_of(order), f"{name} met {far} at {quote.at_ms} and rests")

    def _is_met(self, order: Order, far: Decimal) -> bool:
        """Return whether the far side's price *far* has to fill or trigger *order*."""
        if order.role == "LIQUIDATION":  # by a mark
            return False
        if order.waits:
            return self._is_triggered(order, far)
        if order.price is None:
            return True
        arrives = order.status == "NEW" and far == order.price
        return arrives or _passes(order, far, order.price)

    def _check_ruin(
        self, key: str, mark: Decimal, fills: Sequence[sqlite3.Row], before: Before
    ) -> None:
        limit, held = before.ruin.get(key), before.held.get(key, Decimal(0))
        if limit is None or not held or (mark > limit if held > 0 else mark < limit):
            return
        if not any(f["instrument"] == key and f["model"] == "liquidation" for f in fills):
            self.breach("liquidations", f"{held} {key} stands at {mark}, beyond {limit}")


def _enlarges(order: Order, held: Decimal) -> bool:
    """Return whether *order* may make the position *held* larger or turn it."""
    if order.reduces or order.role == "LIQUIDATION":
        return False
    left = (order.quantity - order.filled) * (1 if order.is_buy else -1)
    return abs(held + left) > abs(held) or held * left > 0
