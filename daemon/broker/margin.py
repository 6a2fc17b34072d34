"""Margin policies of an account: none, isolated by position, or cross: one balance for all.

Isolated: each position binds its margin, and the exchange's own order rests where it is liquidated.
Cross: no order of the exchange rests. The account is asked at each price that values it whether its
maintenance ratio has reached 100 %, and the orders of its liquidation begin and end in that step:
it cancels orders, reduces positions to lower risk tiers, and else takes all of them over.

The rules are docs/money.md, M22 to M60.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from tracepaper.daemon.broker.line import Line, signed_quantity
from tracepaper.daemon.broker.matching import touched
from tracepaper.daemon.broker.orders import OrderEvent, RestingOrders, after
from tracepaper.daemon.broker.rules import MarginRules, beyond, most_of
from tracepaper.strategies.holding import Holding
from tracepaper.strategies.types.decisions import Fill, Order, OrderRole
from tracepaper.strategies.types.market import Bar, Category, Instrument, Side
from tracepaper.strategies.units import divide_half_even

if TYPE_CHECKING:
    from tracepaper.daemon.broker.account import PaperAccount
    from tracepaper.daemon.broker.positions import Positions

CALLED: Final = "the account's maintenance ratio reached 100 %"
NOT_COVERED: Final = "the available balance did not cover its margin at that price"


class CrossLine(NamedTuple):
    """What an account holds of one instrument and may come to hold, valued at one price."""

    rules: MarginRules
    held: int  # signed
    entry: int  # entry notional, signed
    value: int  # of what is held, signed
    exposed: int  # value of the largest position that resting orders lead to, signed

    @property
    def profit(self) -> int:
        """The unrealized result."""
        return self.value - self.entry

    @property
    def initial(self) -> int:
        """The initial margin of position and orders, with the fee of closing."""
        return self.rules.required(self.exposed)

    @property
    def maintenance(self) -> int:
        """The maintenance margin of position and orders, with the fee of closing."""
        return self.rules.maintenance(self.exposed)


Lines = Mapping[Line, CrossLine]
"""Of each position in which anything is held or rests."""
Reduced = Callable[[Line, CrossLine, int], tuple[CrossLine, int]]
"""From position, values and quantity to the values after a close at the market, and its cash."""


class Reduction(NamedTuple):
    """What a position is reduced by, to the limit of which tier."""

    line: Line
    quantity: int  # unsigned
    tier: int


def balance_of(cash: int, lines: Lines) -> int:
    """Return the margin balance: *cash* and the unrealized results."""
    return cash + sum(line.profit for line in lines.values())


def is_called(cash: int, lines: Lines) -> bool:
    """Return whether the maintenance ratio is at 100 % or above: the account is liquidated."""
    if not any(line.exposed or line.held for line in lines.values()):
        return False
    return sum(line.maintenance for line in lines.values()) >= balance_of(cash, lines)


def reductions(cash: int, lines: Lines, reduced: Reduced) -> list[Reduction]:
    """Return the reductions to lower risk tiers that end the liquidation, or none.

    The position with the largest maintenance margin comes first. It goes to the highest tier that
    ends the liquidation; where none does, to the lowest, and the next position follows. Where all
    of that would not do, nothing is sold: fill or kill.
    """
    after, done = dict(lines), list[Reduction]()
    for key in sorted(lines, key=lambda key: -lines[key].maintenance):
        line, least = lines[key], None
        for tier, limit in line.rules.lower_tiers(line.value):
            quantity = beyond(abs(line.value), abs(line.held), limit, key.item.quantity_step)
            smaller, moved = reduced(key, line, quantity)
            least = Reduction(key, quantity, tier), smaller, moved
            tried = {**after, key: smaller}
            # Without any position nothing is called, and a debt would remain.
            if not is_called(cash + moved, tried) and balance_of(cash + moved, tried) >= 0:
                return [*done, least[0]]
        if least is not None:
            done.append(least[0])
            after[key] = least[1]
            cash += least[2]
    return []


def takeover_order(lines: Lines) -> list[Line]:
    """Return the held positions in which order the engine takes them over.

    Shorts first, the largest first: a price has no limit above, so a long can bear what is left.
    """
    held = [key for key, line in lines.items() if line.held]
    return sorted(held, key=lambda key: (lines[key].held > 0, -abs(lines[key].value)))


def loss_of(key: Line, cash: int, lines: Lines) -> int:
    """Return the part of the balance that the takeover of *key* loses: its share of the value.

    Below 0 where the balance is: the exchange's fund bears that. The last one loses all of it.
    """
    whole = sum(abs(line.value) for line in lines.values() if line.held)
    balance, others = balance_of(cash, lines), sum(line.held != 0 for line in lines.values()) - 1
    if not others or not whole:
        return balance
    return balance * abs(lines[key].value) // whole


class MarginPolicy:
    """What the positions of an account bind, and when the exchange takes them away.

    By itself it is that of an account without margin: nothing is bound or taken away.
    """

    is_isolated = False

    def __init__(self, account: PaperAccount) -> None:
        self._account = account

    def rules(self, item: Instrument) -> MarginRules | None:
        """Return the margin rules of *item*; None where it is traded without margin."""
        settings = self._account.settings
        if settings.leverage is None or item.category is not Category.LINEAR:
            return None
        fee = settings.costs_for(item.id).taker_fee
        return MarginRules(item, settings.leverage, fee, is_cross=settings.is_cross)

    def spendable(self, line: Line, *, is_reversal: bool) -> int:  # noqa: ARG002
        """Return the cash for an order of the position *line*."""
        return self._account.cash

    def refusal(self, line: Line, fill: Fill) -> str | None:  # noqa: ARG002
        """Return why the account cannot bear *fill*, or None: what only closes is always borne."""
        return None

    def match_mark(self, positions: Positions, mark: int, at_ms: int) -> None:
        """Liquidate what the *mark* price of *positions* takes away."""

    def is_reached(self, instrument: str, prices: Mapping[str, int]) -> bool:  # noqa: ARG002
        """Return whether the newest of *prices*, that of *instrument*, takes a position away."""
        return False


class IsolatedMargin(MarginPolicy):
    """Each linear position has a margin of its own, and a price at which it is liquidated."""

    is_isolated = True

    def spendable(self, line: Line, *, is_reversal: bool) -> int:
        """Return the cash that no position binds; a reversal frees what its own one does."""
        if line.binds is None:
            return self._account.cash
        available = self._account.available
        if is_reversal and line.book.side is None:  # a side never turns
            available += line.position.margin + line.position.unrealized_pnl
        return available

    def refusal(self, line: Line, fill: Fill) -> str | None:
        """Return why the available balance cannot bear *fill*, or None."""
        if line.binds is None:
            return None
        held, sign = line.held, 1 if fill.side is Side.BUY else -1
        closed = min(abs(held), fill.quantity) if held * sign < 0 else 0
        opened = fill.quantity - closed
        if not opened:
            return None
        share = divide_half_even(fill.notional * opened, fill.quantity)
        available = self._account.available - fill.fee
        if closed:
            proceeds = -sign * (fill.notional - share)
            available += line.holding.margin + proceeds - line.holding.entry_notional
        margin = line.binds.required(sign * share)
        if margin > available:
            return NOT_COVERED
        lost = sign * (share - line.notional(fill.reference_price, opened))
        return (
            "its price was worse than the market's by more than its margin"
            if lost > margin
            else None
        )

    def match_mark(self, positions: Positions, mark: int, at_ms: int) -> None:
        """Liquidate each of *positions* where *mark* has reached that price."""
        held = [line for line in positions.lines if line.held]
        for line in held:
            if line.orders.protective(OrderRole.LIQUIDATION) is None:  # taken over
                line.protector.set_liquidation_price(at_ms)
        if held:
            positions.match_mark(mark, at_ms)

    def is_reached(self, instrument: str, prices: Mapping[str, int]) -> bool:
        """Return whether the price of *instrument* reaches the liquidation price of a position."""
        return any(
            order.role is OrderRole.LIQUIDATION and touched(order, prices[instrument])
            for line in self._account.lines_of(instrument)
            for order in line.orders.others
        )


class CrossMargin(MarginPolicy):
    """Cash and unrealized results of the account are the margin of all positions."""

    # ------------------------------------------------------------ what it is worth and needs

    @property
    def _positions(self) -> list[Line]:
        return [line for book in self._account.books for line in book.lines.values()]

    def values(
        self, prices: Mapping[str, int] = {}, trial: tuple[Line, Holding] | None = None
    ) -> dict[Line, CrossLine] | None:
        """Return the quantity held or ordered in each position, at *prices* where they say one.

        A *trial* holds something else of one. None where something is held that no price has
        valued yet: so the account of another run, before its first bars.
        """
        values = {}
        for line in self._positions:
            holding = line.holding
            if trial is not None and trial[0] is line:
                holding = trial[1]
            parts = [part.orders for part in (line, *line.shares)]
            if not holding.quantity and not any(part.rests for part in parts):
                continue
            price = prices.get(line.key) or line.mark
            if not price:
                if holding.quantity:
                    return None
                continue
            assert line.margin is not None
            values[line] = CrossLine(
                line.margin,
                holding.quantity,
                holding.entry_notional,
                line.notional(price, holding.quantity),
                line.notional(price, _exposure(parts, holding.quantity)),
            )
        return values

    def spendable(self, line: Line, *, is_reversal: bool) -> int:
        """Return the margin balance that no other position and no order of one binds.

        A reversal frees what the position of *line* binds.
        """
        values = self.values()
        if values is None:
            return 0
        bound = sum(value.initial for other, value in values.items() if other is not line)
        if (of_line := values.get(line)) is not None and not is_reversal:
            bound += of_line.rules.required(of_line.value)
        return balance_of(self._account.cash, values) - bound

    def is_called_at(self, prices: Mapping[str, int] = {}) -> bool:
        """Return whether the account is liquidated at *prices*, and the newest of the others."""
        values = self.values(prices)
        return values is not None and is_called(self._account.cash, values)

    def is_reached(self, instrument: str, prices: Mapping[str, int]) -> bool:  # noqa: ARG002
        """Return whether *prices* call the account."""
        return self.is_called_at(prices)

    def after_fill(self, line: Line, fill: Fill) -> tuple[int, dict[Line, CrossLine]] | None:
        """Return balance and values after *fill* of *line*, at the price that it met."""
        holding = copy(line.holding)
        moved = holding.trade(signed_quantity(fill), fill.notional, None) - fill.fee
        values = self.values({line.key: fill.reference_price}, (line, holding))
        return None if values is None else (balance_of(self._account.cash + moved, values), values)

    def refusal(self, line: Line, fill: Fill) -> str | None:
        """Return why the balance cannot bear *fill*, or None: what only closes is always borne."""
        held, left = line.held, line.held + signed_quantity(fill)
        if abs(left) <= abs(held) and held * left >= 0:
            return None
        if (outcome := self.after_fill(line, fill)) is None:
            return None
        balance, values = outcome
        of_line = values[line]
        needed = of_line.rules.required(of_line.value)
        needed += sum(value.initial for other, value in values.items() if other is not line)
        return None if needed <= balance else NOT_COVERED

    # ------------------------------------------------------------ the path of a bar

    def is_called_within(self, positions: Positions, bar: Bar) -> bool:
        """Return whether one end of *bar*, which no mark price has valued, calls the account."""
        is_at = partial(self._is_at, positions)
        return self._follows_path(positions) and (is_at(bar.low) or is_at(bar.high))

    def called_at(self, positions: Positions, start: int, end: int) -> int | None:
        """Return the first price on the way from *start* to *end* that calls the account.

        None where *end* does not: between whole ticks the margin is not looked at.
        """
        if not self._follows_path(positions) or not self._is_at(positions, end):
            return None
        if self._is_at(positions, start):
            return start
        tick = positions.lines[0].item.tick_size
        towards, ticks = tick if end > start else -tick, -(-abs(end - start) // tick)
        far = 1 + most_of(
            ticks - 1, 1, lambda steps: not self._is_at(positions, start + steps * towards)
        )
        return end if far * tick >= abs(end - start) else start + far * towards

    def _follows_path(self, positions: Positions) -> bool:
        """Whether bars call the account: no mark price came since the last one."""
        return positions.lines[0].key not in self._account.marked

    def _is_at(self, positions: Positions, price: int) -> bool:
        """Return whether the account is called with *positions* at *price*."""
        if positions.tried is not None and positions.tried.is_over:
            return False
        return self.is_called_at({positions.lines[0].key: price})

    def ruins(self, line: Line, fill: Fill) -> bool:
        """Liquidate in place of *fill* of *line* where that is a close that costs too much."""
        if line.positions.tried is not None:
            return False
        outcome = self.after_fill(line, fill)
        if outcome is None or outcome[0] >= 0:
            return False
        price, at_ms = fill.reference_price, fill.filled_ms
        self.liquidate(line.positions, price, at_ms, is_ruin=True)
        return True

    # ------------------------------------------------------------ liquidation

    def match_mark(self, positions: Positions, mark: int, at_ms: int) -> None:
        """Liquidate the account where it is called with *positions* at *mark*."""
        if self.is_called_at({positions.lines[0].key: mark}):
            self.liquidate(positions, mark, at_ms)

    def liquidate(
        self, marked: Positions, price: int, at_ms: int, *, is_ruin: bool = False
    ) -> None:
        """Take the steps of a liquidation with what is *marked* at *price*, and as few as do.

        A *is_ruin* is one by a close that would cost more than there is: all is taken over. While
        fills are tried, a call ends the trial: no path leaves less.
        """
        if marked.tried is not None:
            marked.tried.is_over = True
            return
        before = marked.lines[0].mark
        for line in marked.lines:
            line.mark_to(price)
        for position in self._positions:
            for part in (position, *position.shares):
                _cancel(part.orders, part.held)
        if is_ruin or self.is_called_at():
            values = self.values()
            assert values is not None
            cuts = [] if is_ruin else reductions(self._account.cash, values, self._reduced)
            for line, quantity, tier in cuts:
                what = f"reduced to risk tier {tier}"
                self._close(line, self._ordered(line, quantity, what, at_ms))
            if not cuts:
                self._take_over(at_ms)
        for line in marked.lines:
            line.mark_to(before)

    def _take_over(self, at_ms: int) -> None:
        """Let the exchange's engine take every position over, where the balance is used up."""
        for line in takeover_order(self.values() or {}):
            values = self.values() or {}
            value = values[line]
            loss = loss_of(line, self._account.cash, values)
            price = value.rules.bankruptcy(abs(value.value), value.held, loss)
            order = self._ordered(line, abs(value.held), "taken over", at_ms, price=price)
            self._close(line, order)

    def _ordered(
        self, line: Line, quantity: int, what: str, at_ms: int, price: int | None = None
    ) -> Order:
        """Return the exchange's own order: at the market, or at the bankruptcy *price*."""
        return line.orders.exit_order(
            line.held,
            role=OrderRole.LIQUIDATION,
            reason=f"{CALLED}: {what}",
            at_ms=at_ms,
            quantity=quantity,
            price=price,
        )

    def _reduced(self, line: Line, value: CrossLine, quantity: int) -> tuple[CrossLine, int]:
        """Return *value* after *quantity* of it was closed at the market, and the cash it moves."""
        order = self._ordered(line, quantity, "", 0)
        fill, holding = line.executor.liquidated(order, line.mark, 0), copy(line.holding)
        realized = holding.trade(signed_quantity(fill), fill.notional, None)
        money = line.notional(line.mark, holding.quantity)
        smaller = value._replace(
            held=holding.quantity, entry=holding.entry_notional, value=money, exposed=money
        )
        return smaller, realized - fill.fee

    def _close(self, line: Line, order: Order) -> None:
        """Fill the exchange's own *order*; exit orders follow."""
        order = after(order, OrderEvent.ACCEPT)
        line.orders.others += (order,)
        line.positions.close(line.executor.liquidated(order, line.mark, order.created_ms))


def _exposure(parts: Iterable[RestingOrders], held: int) -> int:
    """Return the largest position, signed, that *held* and what rests in *parts* could lead to.

    All buys are filled, or all sells; what may only reduce counts for none.
    """
    most, least = held, held
    for order in (order for part in parts for order in part.orders):
        if not order.reduce_only:
            left = order.quantity - order.filled
            if order.side is Side.BUY:
                most += left
            else:
                least -= left
    if abs(most) == abs(least):
        return held or most
    return max(most, least, key=abs)


def _cancel(resting: RestingOrders, held: int) -> None:
    """Cancel all that may do more than reduce the position *held*."""
    for order in resting.orders:
        signed = order.quantity - order.filled
        left = held + (signed if order.side is Side.BUY else -signed)
        only_closes = order is resting.order and 0 <= left * held <= held * held
        if not order.reduce_only and not (held and only_closes):
            resting.end(order, CALLED)
