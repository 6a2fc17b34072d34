"""Margin policies of an account: none, isolated by position, or cross with one balance for all.

Isolated: each position binds its margin, and a liquidation order rests at its liquidation price.
Cross: no liquidation order rests. Each price that values the account checks whether its maintenance
ratio has reached 100 %, and the whole liquidation happens in that step: it cancels orders, reduces
positions to lower risk tiers, and if that is not enough takes over all of them.

The rules are docs/money.md, M22 to M60.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Final, NamedTuple

from msgspec.structs import replace

from tracepaper.daemon.broker.exit_orders import protect_fills
from tracepaper.daemon.broker.ledger import Ledger
from tracepaper.daemon.broker.line import Line, signed_quantity
from tracepaper.daemon.broker.orders import OrderEvent, after, touched
from tracepaper.daemon.broker.rules import MarginRules, excess_quantity, largest_multiple
from tracepaper.strategies.holding import Holding
from tracepaper.strategies.types.decisions import Fill, FillModel, Order, OrderRole
from tracepaper.strategies.types.market import Bar, Side
from tracepaper.strategies.units import divide_half_even

CALLED: Final = "the account's maintenance ratio reached 100 %"
NOT_COVERED: Final = "the available balance did not cover its margin at that price"


class CrossLine(NamedTuple):
    """A position with its resting orders, valued at one price, in an account on cross margin."""

    rules: MarginRules
    held: int  # signed
    entry: int  # entry notional, signed
    value: int  # of the position, signed
    exposed: int  # value of the largest position that resting orders lead to, signed

    @property
    def profit(self) -> int:
        """The unrealized result."""
        return self.value - self.entry

    @property
    def initial(self) -> int:
        """The initial margin of position and orders, including the fee of closing."""
        return self.rules.required(self.exposed)

    @property
    def maintenance(self) -> int:
        """The maintenance margin of position and orders, including the fee of closing."""
        return self.rules.maintenance(self.exposed)


Lines = Mapping[Line, CrossLine]
"""The values of each line with a position or resting orders."""
Reduced = Callable[[Line, CrossLine, int], tuple[CrossLine, int]]
"""Maps a line, its values and a quantity to the values after closing it, and the cash moved."""


class Reduction(NamedTuple):
    """The reduction of a position to the limit of a risk tier."""

    line: Line
    quantity: int  # unsigned
    tier: int


def balance_of(cash: int, lines: Lines) -> int:
    """Return the margin balance: *cash* plus the unrealized results."""
    return cash + sum(line.profit for line in lines.values())


def is_liquidated(cash: int, lines: Lines) -> bool:
    """Return whether the account is liquidated: its maintenance ratio is 100 % or above."""
    if not any(line.exposed or line.held for line in lines.values()):
        return False  # a balance of 0 covers the margin of nothing
    return sum(line.maintenance for line in lines.values()) >= balance_of(cash, lines)


def reductions(cash: int, lines: Lines, reduced: Reduced) -> list[Reduction]:
    """Return the reductions to lower risk tiers that end the liquidation; empty if none do.

    The position with the largest maintenance margin comes first. It is reduced to the highest tier
    that ends the liquidation. If no tier does, it is reduced to the lowest, and the next position
    follows. If all of that is not enough, nothing is reduced: fill or kill.
    """
    after, chosen = dict(lines), list[Reduction]()
    for key in sorted(lines, key=lambda key: -lines[key].maintenance):
        line, least = lines[key], None
        for tier, limit in line.rules.lower_tiers(line.value):
            quantity = excess_quantity(
                abs(line.value), abs(line.held), limit, key.item.quantity_step
            )
            smaller, cash_moved = reduced(key, line, quantity)
            least = Reduction(key, quantity, tier), smaller, cash_moved
            tried = {**after, key: smaller}
            # Closing everything also ends the liquidation, but could leave a debt.
            if (
                not is_liquidated(cash + cash_moved, tried)
                and balance_of(cash + cash_moved, tried) >= 0
            ):
                return [*chosen, least[0]]
        if least is not None:
            chosen.append(least[0])
            after[key] = least[1]
            cash += least[2]
    return []


def takeover_order(lines: Lines) -> list[Line]:
    """Return the open positions in the order in which they are taken over.

    Shorts come first, larger ones before smaller ones. A price has no upper limit, so the last
    position, a long, can absorb any loss that is left.
    """
    held = [key for key, line in lines.items() if line.held]
    return sorted(held, key=lambda key: (lines[key].held > 0, -abs(lines[key].value)))


def loss_of(key: Line, cash: int, lines: Lines) -> int:
    """Return the part of the balance that the takeover of *key* loses: in proportion to its value.

    It is negative if the balance is, in which case the exchange's insurance fund pays. The last
    position loses the whole balance.
    """
    balance = balance_of(cash, lines)
    total = sum(abs(line.value) for line in lines.values() if line.held)
    # Positions whose values round to nothing: the first of them loses all.
    return balance * abs(lines[key].value) // total if total else balance


class MarginPolicy:
    """Decides how much cash positions bind, and when they are liquidated.

    This base class is the policy of an account without margin, which does neither.
    """

    def __init__(
        self, ledger: Ledger, lines: Mapping[str, Line], marked: Mapping[str, int]
    ) -> None:
        """Judge the positions *lines* of the account with *ledger*, by instrument.

        *marked* has the instruments for which a mark price arrived since their last bar.
        """
        self._ledger, self._lines, self._marked = ledger, lines, marked

    def spendable(self, line: Line, *, is_reversal: bool) -> int:  # noqa: ARG002
        """Return the cash for an order of *line*: on margin only what no position binds."""
        return self._ledger.cash

    def refusal(self, line: Line, fill: Fill) -> str | None:  # noqa: ARG002
        """Return why the account has no margin for *fill*, or None; closing is always possible."""
        return None

    def match_mark(self, line: Line, mark: int, at_ms: int) -> None:
        """Liquidate the position of *line*, or the account, if the *mark* price requires it."""

    def is_reached(self, instrument: str, prices: Mapping[str, int]) -> bool:  # noqa: ARG002
        """Return whether the mark *prices* liquidate a position; that of *instrument* is new."""
        return False


class IsolatedMargin(MarginPolicy):
    """Each linear position has a margin of its own, and a price at which it is liquidated."""

    def spendable(self, line: Line, *, is_reversal: bool) -> int:
        """Return the cash that no position binds; a reversal frees that of its position too."""
        available = self._ledger.available
        if is_reversal:
            available += line.position.margin + line.position.unrealized_pnl
        return available

    def refusal(self, line: Line, fill: Fill) -> str | None:
        """Return why the available balance cannot pay for *fill*, or None."""
        held, sign = line.held, 1 if fill.side is Side.BUY else -1
        closed = min(abs(held), fill.quantity) if held * sign < 0 else 0
        opened = fill.quantity - closed
        if not opened:
            return None
        share = divide_half_even(fill.notional * opened, fill.quantity)
        available = self._ledger.available - fill.fee
        if closed:
            proceeds = -sign * (fill.notional - share)
            available += line.holding.margin + proceeds - line.holding.entry_notional
        assert line.isolated_rules is not None
        margin = line.isolated_rules.required(sign * share)
        if margin > available:
            return NOT_COVERED
        lost = sign * (share - line.notional(fill.reference_price, opened))
        return (
            "its price was worse than the market's by more than its margin"
            if lost > margin
            else None
        )

    def match_mark(self, line: Line, mark: int, at_ms: int) -> None:
        """Liquidate the position of *line* if *mark* has reached its liquidation price."""
        first = len(self._ledger.fills)
        if line.held and line.protective(OrderRole.LIQUIDATION) is None:
            line.set_liquidation_price(at_ms)  # from another run
        order = line.protective(OrderRole.LIQUIDATION)
        if order is not None and touched(order, mark):
            liquidate(line, order, mark, at_ms)
        protect_fills(line, first)

    def is_reached(self, instrument: str, prices: Mapping[str, int]) -> bool:
        """Return whether the price of *instrument* has reached a liquidation price."""
        return any(
            order.role is OrderRole.LIQUIDATION and touched(order, prices[instrument])
            for order in self._lines[instrument].others
        )


def liquidate(line: Line, order: Order, mark: int, at_ms: int) -> None:
    """Reduce an isolated position at *mark* to a lower risk tier, or else close all of it.

    *order* is its liquidation order.
    """
    holding, rules = line.holding, line.isolated_rules
    assert rules is not None
    reduction = rules.reduction(holding.entry_notional, holding.quantity, holding.margin, mark)
    if reduction is not None:
        quantity, tier = reduction
        reduced = replace(order, reason=f"{order.reason}: reduced to risk tier {tier}")
        fill = line.executor.taken(reduced, mark, FillModel.LIQUIDATION, at_ms)
        assert order.price is not None
        if fill.price >= order.price if order.side is Side.SELL else fill.price <= order.price:
            reduced = line.note(after(reduced, OrderEvent.TRIGGER, triggered=True))
            line.apply(
                line.executor.taken(reduced, mark, FillModel.LIQUIDATION, at_ms, quantity=quantity)
            )
            return
    take_over(line, order, mark, at_ms)


def take_over(line: Line, order: Order, mark: int, at_ms: int) -> None:
    """Close an isolated position at its bankruptcy price by *order*, its liquidation order."""
    order = line.note(after(order, OrderEvent.TRIGGER, triggered=True))
    line.apply(line.executor.liquidated(order, mark, at_ms))


class CrossMargin(MarginPolicy):
    """Cash and unrealized results of the account are the margin of all positions."""

    # ------------------------------------------------------------ values and margins

    def values(
        self, prices: Mapping[str, int] = {}, trial: tuple[Line, Holding] | None = None
    ) -> dict[Line, CrossLine] | None:
        """Return the values of each position, at *prices* or else at its mark.

        A *trial* replaces the holding of one line. Returns None if a position has no mark yet, as
        in an account taken over from another run before its first bars.
        """
        values = {}
        for line in self._lines.values():
            holding = line.holding
            if trial is not None and trial[0] is line:
                holding = trial[1]
            if not holding.quantity and not line.rests:
                continue
            price = prices.get(line.key) or line.mark
            if not price:
                if holding.quantity:
                    return None
                continue
            assert line.margin_rules is not None
            values[line] = CrossLine(
                line.margin_rules,
                holding.quantity,
                holding.entry_notional,
                line.notional(price, holding.quantity),
                line.notional(price, _exposure(line, holding.quantity)),
            )
        return values

    def spendable(self, line: Line, *, is_reversal: bool) -> int:
        """Return the margin balance that no other position or order binds.

        A reversal frees what the position of *line* binds.
        """
        values = self.values()
        if values is None:
            return 0
        bound = sum(value.initial for other, value in values.items() if other is not line)
        if (value := values.get(line)) is not None and not is_reversal:
            bound += value.rules.required(value.value)
        return balance_of(self._ledger.cash, values) - bound

    def is_liquidated_at(self, prices: Mapping[str, int] = {}) -> bool:
        """Return whether the account is liquidated at *prices*, other positions at their marks."""
        values = self.values(prices)
        return values is not None and is_liquidated(self._ledger.cash, values)

    def is_reached(self, instrument: str, prices: Mapping[str, int]) -> bool:  # noqa: ARG002
        """Return whether *prices* liquidate the account."""
        return self.is_liquidated_at(prices)

    def after_fill(self, line: Line, fill: Fill) -> tuple[int, dict[Line, CrossLine]] | None:
        """Return balance and values after *fill* of *line*, valued at the market price of the fill.

        None if a position has no mark yet.
        """
        holding = copy(line.holding)
        moved = holding.trade(signed_quantity(fill), fill.notional, None) - fill.fee
        values = self.values({line.key: fill.reference_price}, (line, holding))
        return None if values is None else (balance_of(self._ledger.cash + moved, values), values)

    def refusal(self, line: Line, fill: Fill) -> str | None:
        """Return why the balance cannot pay for *fill*, or None; closing is always possible."""
        held, left = line.held, line.held + signed_quantity(fill)
        if abs(left) <= abs(held) and held * left >= 0:
            return None
        if (outcome := self.after_fill(line, fill)) is None:
            return None
        balance, values = outcome
        filled = values[line]
        needed = filled.rules.required(filled.value)
        needed += sum(value.initial for other, value in values.items() if other is not line)
        return None if needed <= balance else NOT_COVERED

    # ------------------------------------------------------------ the path of a bar

    def is_liquidated_within(self, line: Line, bar: Bar) -> bool:
        """Return whether the low or the high of *bar*, which is *line*'s, liquidates the account.

        Never if mark prices value the positions.
        """
        return any(
            self.first_liquidation(line, price, price) is not None for price in (bar.low, bar.high)
        )

    def first_liquidation(self, line: Line, start: int, end: int) -> int | None:
        """Return the first price of *line* from *start* to *end* that liquidates the account.

        None if *end* does not. Only whole ticks from *start* on are checked. Bars liquidate only
        if no mark price arrived since the last one.
        """
        key = line.key
        if key in self._marked or not self.is_liquidated_at({key: end}):
            return None
        if self.is_liquidated_at({key: start}):
            return start
        tick = line.item.tick_size
        towards, ticks = tick if end > start else -tick, -(-abs(end - start) // tick)
        far = 1 + largest_multiple(
            ticks - 1, 1, lambda steps: not self.is_liquidated_at({key: start + steps * towards})
        )
        return end if far * tick >= abs(end - start) else start + far * towards

    def is_ruined_by(self, line: Line, fill: Fill) -> bool:
        """Return whether *fill* of *line* would leave a negative balance."""
        outcome = self.after_fill(line, fill)
        return outcome is not None and outcome[0] < 0

    # ------------------------------------------------------------ liquidation

    def match_mark(self, line: Line, mark: int, at_ms: int) -> None:
        """Liquidate the account if it must be with *line* at *mark*."""
        if self.is_liquidated_at({line.key: mark}):
            self.liquidate(line, mark, at_ms)

    def liquidate(self, marked: Line, price: int, at_ms: int, *, is_ruined: bool = False) -> None:
        """Liquidate the account, with the line *marked* at *price*, in as few steps as needed.

        With *is_ruined*, after a fill that would have cost more than the balance, all positions are
        taken over.
        """
        before = marked.mark
        marked.mark_to(price)
        for line in self._lines.values():
            _cancel(line)
        if is_ruined or self.is_liquidated_at():
            values = self.values()
            assert values is not None
            cuts = [] if is_ruined else reductions(self._ledger.cash, values, self._reduced)
            for line, quantity, tier in cuts:
                cause = f"reduced to risk tier {tier}"
                self._close(line, self._ordered(line, quantity, cause, at_ms))
            if not cuts:
                self._take_over(at_ms)
        marked.mark_to(before)

    def _take_over(self, at_ms: int) -> None:
        """Close every position at its bankruptcy price, which uses up the balance."""
        for line in takeover_order(self.values() or {}):
            values = self.values() or {}
            value = values[line]
            loss = loss_of(line, self._ledger.cash, values)
            price = value.rules.bankruptcy(abs(value.value), value.held, loss)
            order = self._ordered(line, abs(value.held), "taken over", at_ms, price=price)
            self._close(line, order)

    def _ordered(
        self, line: Line, quantity: int, cause: str, at_ms: int, price: int | None = None
    ) -> Order:
        """Return a liquidation order: at the market, or at the bankruptcy *price*."""
        return line.exit_order(
            role=OrderRole.LIQUIDATION,
            reason=f"{CALLED}: {cause}",
            at_ms=at_ms,
            quantity=quantity,
            price=price,
        )

    def _reduced(self, line: Line, value: CrossLine, quantity: int) -> tuple[CrossLine, int]:
        """Return *value* after closing *quantity* at the market, and the cash that this moves."""
        order = self._ordered(line, quantity, "", 0)
        fill, holding = line.executor.liquidated(order, line.mark, 0), copy(line.holding)
        realized = holding.trade(signed_quantity(fill), fill.notional, None)
        money = line.notional(line.mark, holding.quantity)
        smaller = value._replace(
            held=holding.quantity, entry=holding.entry_notional, value=money, exposed=money
        )
        return smaller, realized - fill.fee

    def _close(self, line: Line, order: Order) -> None:
        """Fill the liquidation *order*."""
        order = after(order, OrderEvent.ACCEPT)
        line.others += (order,)
        first = len(line.ledger.fills)
        line.apply(line.executor.liquidated(order, line.mark, order.created_ms))
        protect_fills(line, first)


def _exposure(line: Line, held: int) -> int:
    """Return the largest position (signed) to which the orders of *line* could lead *held*.

    Either all buys or all sells are assumed to fill. Reduce-only orders do not count.
    """
    most, least = held, held
    for order in line.orders:
        if not order.reduce_only:
            left = order.quantity - order.filled
            if order.side is Side.BUY:
                most += left
            else:
                least -= left
    if abs(most) == abs(least):
        return held or most
    return max(most, least, key=abs)


def _cancel(line: Line) -> None:
    """Cancel all orders that could do more than reduce the position of *line*."""
    held = line.held
    for order in line.orders:
        signed = order.quantity - order.filled
        left = held + (signed if order.side is Side.BUY else -signed)
        only_closes = order is line.order and 0 <= left * held <= held * held
        if not order.reduce_only and not (held and only_closes):
            line.end(order, CALLED)
