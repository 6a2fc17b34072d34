"""Sub-accounts: what each of several strategies holds and earns of one account, in exact integers.

A sub-account is a ledger of parts: parts of the account's fills, parts of its funding, and what its
strategy has crossed with the others. Its protective orders are orders of the account, for its part
of the position; all else that is ordered is the account's net order. An event meets all of them
together, in the account.

The rules are docs/one_account.md, J12 to J20.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from msgspec.structs import replace

from broker_before.account import PaperAccount
from broker_before.cross_account import CrossAccount
from broker_before.exit_orders import Protector
from broker_before.ledger import LedgerFunds, TrialFunds
from broker_before.matching import Matched
from broker_before.orders import (
    UNCHANGED,
    Moment,
    RestingOrders,
    Sent,
    urgency,
)
from tracepaper.daemon.broker.account import BrokerSettings
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.decisions import Fill, Order
from tracepaper.strategies.types.market import Bar, Instrument, Side
from tracepaper.strategies.units import RATE_SCALE, Notional


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split *total* by *weights* (0 or more, not all 0) into integers that sum to it.

    Each gets the whole part of its share, and the units that are left go to the largest
    remainders, of equal ones to the first. No part of a total up to the sum of the weights is
    larger than its weight. A negative total is split as a positive one.
    """
    whole, size = sum(weights), abs(total)
    parts = [size * weight // whole for weight in weights]
    _give(parts, size - sum(parts), [size * weight % whole for weight in weights])
    return parts if total >= 0 else [-part for part in parts]


def _give(parts: list[int], units: int, remainders: Sequence[int]) -> None:
    """Add one to as many of *parts* as there are *units*, by the largest of *remainders*."""
    for at in sorted(range(len(parts)), key=lambda at: -remainders[at])[:units]:
        parts[at] += 1


def crossed(wanted: Sequence[int]) -> list[int]:
    """Return the part of each signed quantity *wanted* that the others meet: the parts sum to 0.

    The smaller side is met whole, the larger one by its quantities and the largest remainder.
    """
    buys = [max(one, 0) for one in wanted]
    sells = [max(-one, 0) for one in wanted]
    met = min(sum(buys), sum(sells))
    if not met:
        return [0] * len(wanted)
    bought, sold = apportion(met, buys), apportion(met, sells)
    return [one - other for one, other in zip(bought, sold, strict=True)]


def funding_parts(paid: int, due: Sequence[int]) -> list[int]:
    """Split *paid* by what is *due* of each position: signed, in 10⁻¹⁰ of a unit of money.

    Each part is rounded down, and what is left goes to the largest remainders. Where the account
    paid less than is due, since its margin did not cover it, what it did not pay is shared by the
    absolute amounts.
    """
    parts = [one // RATE_SCALE for one in due]
    left = paid - sum(parts)
    if 0 <= left <= len(parts):
        _give(parts, left, [one % RATE_SCALE for one in due])
        return parts
    spared = apportion(left, [abs(one) for one in due])
    return [one + other for one, other in zip(parts, spared, strict=True)]


class VirtualOrders(RestingOrders):
    """What rests for one strategy: its target, which the net order reaches, and its protection."""

    first = 0  # the first ordinal of its orders: in one step several strategies bear some
    net: NetOrders

    def next_id(self, sequence: int, first: int = 0) -> str:
        """Return the id of the next order, which no other strategy's has."""
        return super().next_id(sequence, self.first + first)

    def submit(
        self,
        target: int,
        reason: str,
        now: Moment,
        *,
        order_id: str,
        by_command: bool = False,
    ) -> Sent:
        """Take *target*; the account's net order leads there."""
        if target != self.target:
            self.target, self.reason = target, reason
        return UNCHANGED

    def is_awaited(self, held: int) -> bool:
        """Return whether a net order rests that leads the part on from *held*."""
        if (rest := self.net.order) is None:
            return False
        return self.target > held if rest.side is Side.BUY else self.target < held

    def resize(self, held: int) -> tuple[Order, ...]:
        """Return the protective orders that change because *held* is left of the part."""
        return tuple(self._resized(held)) if self.others else ()


class SubAccount(PaperAccount):
    """The part of one strategy in an account that several share."""

    def __init__(
        self, instruments: Sequence[Instrument], settings: BrokerSettings, name: str, *, place: int
    ) -> None:
        """Open the part of the strategy *name* in *place*; the margin is the account's alone."""
        settings = replace(settings, leverage=None, is_cross=False)
        super().__init__(instruments, settings)
        for at, item in enumerate(instruments):
            orders = self.orders[item.id] = VirtualOrders(
                item, settings.costs_for(item.id), latency=settings.latency
            )
            # Beyond those of the account itself, liquidations among them.
            orders.first = 1_000_000 * (1 + place) + 1_000 * at
            orders.tag = name
            self.protectors[item.id] = Protector(orders, item, settings.exits)

    def open_part(self, instrument: str) -> int:
        """Return the signed quantity of the part that its target still wants."""
        return self.orders[instrument].target - self.held(instrument)

    def take(self, part: Fill, order: Order, *, sequence: int) -> tuple[Order, ...]:
        """Book *part*, which filled *order* at once; return the protection that this changes."""
        key = part.instrument
        self._stale.add(key)
        self.ledger.apply_fill(part)
        orders = self.orders[key]
        assert isinstance(orders, VirtualOrders)
        made = Matched()
        made.note(*orders.resize(self.held(key)))
        made.note(*self.arm(key, [part], [order], sequence))
        return made.orders

    def want(self, instrument: str, target: int, reason: str) -> None:
        """Have *target* wanted of *instrument*, for that *reason*."""
        orders = self.orders[instrument]
        orders.target, orders.reason = target, reason
        self._stale.add(instrument)

    def book_funding(self, instrument: str, paid: int) -> None:
        """Book *paid*, a part of the account's funding."""
        self.ledger.book_funding(instrument, paid)
        self._stale.add(instrument)

    def open_with(self, instrument: str, quantity: int, entry: int, cash: int) -> None:
        """Begin with *quantity*, entered for *entry*, and *cash* more: another run's account."""
        holding = self.ledger.holding(instrument)
        holding.quantity, holding.entry_notional = quantity, entry
        self.ledger.cash = cash
        self._stale.add(instrument)


class PartFill(NamedTuple):
    """What the fill of an *order* moved for one strategy."""

    name: str
    fill: Fill
    order: Order  # as the fill left it


class _Part:
    """What one strategy has of one instrument, while events meet it."""

    def __init__(self, name: str, account: SubAccount, instrument: str) -> None:
        orders = account.orders[instrument]
        assert isinstance(orders, VirtualOrders)
        self.name, self.orders = name, orders
        self.booked = LedgerFunds(account.ledger, instrument)
        self.funds: LedgerFunds | TrialFunds = self.booked

    def open(self, sign: int) -> int:
        """Return how much of that *sign* its target still wants, unsigned."""
        return max(sign * (self.orders.target - self.funds.held), 0)


class NetOrders(RestingOrders):
    """The net order of one instrument, and the protection of each part, as one event meets them.

    The fill of one is one of the account's, and moves the parts that it is for at once.
    """

    parts: tuple[_Part, ...] = ()
    filled: list[PartFill]  # in no step yet, of all instruments of the account

    def join(self, accounts: Mapping[str, SubAccount], filled: list[PartFill]) -> None:
        """Meet events together with the parts of *accounts*, and add to *filled* what they get."""
        key = self._filters.instrument.id
        self.parts = tuple(_Part(name, one, key) for name, one in accounts.items())
        self.filled = filled
        for part in self.parts:
            part.orders.net = self

    @property
    def lines(self) -> tuple[RestingOrders, ...]:
        """The net order's own line, and that of each part."""
        return (self, *(part.orders for part in self.parts))

    @property
    def orders(self) -> tuple[Order, ...]:
        """Every order of the account that rests, in the order in which they meet the market."""
        every = [order for line in self.lines for order in line.others]
        return tuple(sorted(every if self.order is None else [self.order, *every], key=urgency))

    def find(self, order_id: str) -> Order | None:
        """Return the resting order with that id, if there is one."""
        line = self._part_of(order_id)
        return super().find(order_id) if line is None else line.orders.find(order_id)

    def note(self, order: Order) -> Order:
        """Take *order* as it now stands, resting or ended, and return it."""
        part = self._part_of(order.order_id)
        return super().note(order) if part is None else part.orders.note(order)

    def move(self, order: Order, moved: Order) -> Order:
        """Take *order* as a quote *moved* or triggered it."""
        part = self._part_of(order.order_id)
        return super().move(order, moved) if part is None else part.orders.move(order, moved)

    def _part_of(self, order_id: str) -> _Part | None:
        """Return the part that the resting order with that id protects; None of the net order."""
        for part in self.parts:
            for order in part.orders.others:
                if order.order_id == order_id:
                    return part
        return None

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Let all that rests, and every part, stand afterwards as it stands now."""
        before, count = [line.state() for line in self.lines], len(self.filled)
        for part in self.parts:
            part.funds = part.booked.trial()
        yield
        for part in self.parts:
            part.funds = part.booked
        for line, state in zip(self.lines, before, strict=True):
            line.restore(state)
        del self.filled[count:]

    def agree(self) -> None:
        """Want what the parts want together."""
        self.target = sum(part.orders.target for part in self.parts)

    def apply_fill(self, fill: Fill, held: int) -> tuple[Order, ...]:
        """Book *fill*, which left *held* in all; return every order that it changed, it first."""
        part = self._part_of(fill.order_id)
        if part is None:
            changed = super().apply_fill(fill, held)
            return changed + self._shared(fill, changed[0])
        part.funds.apply_fill(fill)
        changed = part.orders.apply_fill(fill, part.funds.held)
        self.filled.append(PartFill(part.name, fill, changed[0]))
        self.agree()
        return (*changed, *self._resized(held), *self._served(held))

    def _shared(self, fill: Fill, order: Order) -> tuple[Order, ...]:
        """Give each part its share of *fill* of the account's own *order*.

        Where that closed the position, by liquidation say, nobody wants more than is left.
        """
        sign = 1 if fill.side is Side.BUY else -1
        weights = [part.open(sign) for part in self.parts]
        if order.reduce_only or not any(weights):
            weights = [max(-sign * part.funds.held, 0) for part in self.parts]
        if not any(weights):  # on spot the fee of a buy may leave a step more than was wanted
            weights = [max(sign * part.funds.held, 0) for part in self.parts]
        if not any(weights):
            raise InvariantBroken(f"a fill of {fill.instrument} that no strategy asked for")
        notional = Notional.of(self._filters.instrument)
        quantities = apportion(fill.quantity, weights)
        fees = apportion(fill.fee, quantities)
        of_base = apportion(fill.fee_base, quantities)
        changed: tuple[Order, ...] = ()
        for part, quantity, fee, fee_base in zip(
            self.parts, quantities, fees, of_base, strict=True
        ):
            if quantity:
                share = replace(
                    fill, quantity=quantity, notional=notional(fill.price, quantity),
                    fee=fee, fee_base=fee_base,
                )  # fmt: skip
                part.funds.apply_fill(share)
                changed += part.orders.resize(part.funds.held)
                self.filled.append(PartFill(part.name, share, order))
            if order.reduce_only:
                part.orders.target, part.orders.reason = part.funds.held, "liquidated"
        return changed

    def _served(self, held: int) -> tuple[Order, ...]:
        """Shrink the net order to what the parts still want, now that all of them are *held*."""
        if self.order is None:
            return ()
        sign = 1 if self.order.side is Side.BUY else -1
        return self._shrunk(self._quantity_of(sign * max(sign * (self.target - held), 0)))


class SharedAccount(PaperAccount):
    """The account that several strategies share."""

    resting_type = NetOrders
    parts: Mapping[str, SubAccount] = {}

    def join(self, parts: Mapping[str, SubAccount]) -> None:
        """Let events meet the *parts* of the strategies, by their names, in this account."""
        self.parts = parts
        self._part_fills: list[PartFill] = []
        self._is_margined = True  # a fill of the net order may change what protects a part
        for key in self.orders:
            self._net(key).join(parts, self._part_fills)

    def _net(self, instrument: str) -> NetOrders:
        orders = self.orders[instrument]
        assert isinstance(orders, NetOrders)
        return orders

    def agree(self, instrument: str) -> None:
        """Want what the strategies want together."""
        self._net(instrument).agree()
        self._stale.add(instrument)

    def take_filled(self) -> dict[str, list[Fill]]:
        """Return what each strategy got since the last call, by its name."""
        by_name: dict[str, list[Fill]] = {}
        for one in self._part_fills:
            by_name.setdefault(one.name, []).append(one.fill)
        self._part_fills.clear()
        return by_name

    def waits(self, instrument: str) -> bool:
        """Return whether any order of *instrument* rests, or a time at which a part is closed."""
        return super().waits(instrument) or any(
            part.waits(instrument) for part in self.parts.values()
        )

    def _passes(self, bar: Bar) -> bool:
        return super()._passes(bar) and all(part._passes(bar) for part in self.parts.values())  # noqa: SLF001

    def _due(
        self,
        instrument: str,
        trades: Matched,
        market_ms: int,
        market: tuple[int, int],
        sequence: int,
    ) -> None:
        for part in self.parts.values():
            part._due(instrument, trades, market_ms, market, sequence)  # noqa: SLF001
        self._net(instrument).agree()

    def _protected(self, instrument: str, trades: Matched, matched: Matched, sequence: int) -> None:
        trades.add(matched)
        ids = {fill.order_id for fill in matched.fills}
        for name, part in self.parts.items():
            of_part = [
                one for one in self._part_fills if one.name == name and one.order.order_id in ids
            ]
            if of_part:
                orders = {one.order.order_id: one.order for one in of_part}
                fills = [one.fill for one in of_part]
                trades.note(*part.arm(instrument, fills, list(orders.values()), sequence))


class SharedCrossAccount(SharedAccount, CrossAccount):
    """The same on cross margin."""
