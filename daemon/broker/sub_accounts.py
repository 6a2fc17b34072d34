"""Sub-accounts: what each of several strategies holds and earns of one account, in exact integers.

A sub-account is a ledger of parts: parts of the account's fills, parts of its funding, and what its
strategy has crossed with the others. Its protective orders are orders of the account, for its part
of the position; all else that is ordered is the account's net order.

The rules are docs/one_account.md, J12 to J20.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from tracepaper.daemon.broker.account import BrokerSettings, PaperAccount
from tracepaper.daemon.broker.cross_account import CrossAccount, CrossFunds
from tracepaper.daemon.broker.exit_orders import Protector
from tracepaper.daemon.broker.ledger import Ledger, LedgerFunds, Liquidated, MarginCalls
from tracepaper.daemon.broker.matching import Matched
from tracepaper.daemon.broker.orders import UNCHANGED, Moment, RestingOrders, Sent
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.decisions import Fill, Order, Position
from tracepaper.strategies.types.market import Bar, Instrument
from tracepaper.strategies.units import RATE_SCALE


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

    def next_id(self, sequence: int, first: int = 0) -> str:
        """Return the id of the next order, which no other strategy's has."""
        return super().next_id(sequence, self.first + first)

    def submit(
        self,
        target: int,
        reason: str,
        now: Moment,  # noqa: ARG002 - the account's order is sent at that moment
        *,
        order_id: str,  # noqa: ARG002 - and has an id of its own
        by_command: bool = False,  # noqa: ARG002
    ) -> Sent:
        """Take *target*; the account's net order leads there."""
        if target != self.target:
            self.target, self.reason = target, reason
        return UNCHANGED

    def resize(self, held: int) -> tuple[Order, ...]:
        """Return the protective orders that change because *held* is left of the part."""
        return tuple(self._resized(held)) if self.others else ()


class Ruin(NamedTuple):
    """Where a strategy's close would have cost more than the account has on cross margin."""

    instrument: str
    price: int
    at_ms: int


class _PartFunds(LedgerFunds):
    """What the fill of a protective order moves: the part, and the account by as much."""

    def __init__(self, part: Ledger, own: PaperAccount, instrument: str) -> None:
        super().__init__(part, instrument)
        self._own, self._part = own.ledger, part
        self.apply_fill = self._apply_to_both

    def _apply_to_both(self, fill: Fill) -> None:
        self._own.apply_fill(fill)
        self._part.apply_fill(fill)

    @property
    def position(self) -> Position:
        """The account's position, which limits look at."""
        return self._own.position(self._instrument)

    def refusal(self, fill: Fill) -> str | None:
        """Return why the account cannot bear *fill*, or None."""
        return self._own.refusal(fill)


class _CrossPartFunds(_PartFunds):
    """The same on cross margin: implements ``MarginCalls`` for the closes that ruin the account.

    Prices call the account before they meet any part's protection.
    """

    def __init__(self, part: Ledger, own: SharedCrossAccount, instrument: str) -> None:
        super().__init__(part, own, instrument)
        self._account = own
        self._whole = CrossFunds(own, instrument)
        self.calls: MarginCalls | None = self

    def refusal(self, fill: Fill) -> str | None:
        """Return why the account's balance cannot bear *fill*, or None."""
        return self._whole.refusal(fill)

    def at(self, start: int, end: int) -> int | None:
        """Return None: the account's own path says where it is called."""
        del start, end
        return None

    def is_called_within(self, bar: Bar) -> bool:
        """Return False, as :meth:`at` says."""
        del bar
        return False

    def liquidate(self, price: int, at_ms: int) -> Liquidated:
        """Raise: nothing calls the account here."""
        raise InvariantBroken(f"a part of {self._instrument} was called at {price}, {at_ms}")

    def ruined_by(self, fill: Fill, at_ms: int) -> Liquidated | None:
        """Leave out *fill* where it costs more than there is, and have the account taken over."""
        if not self._whole.is_ruin(fill):
            return None
        self._account.ruin = Ruin(self._instrument, fill.reference_price, at_ms)
        return (), (), ()


class SubAccount(PaperAccount):
    """The part of one strategy in an account that several share."""

    def __init__(
        self,
        instruments: Sequence[Instrument],
        settings: BrokerSettings,
        own: PaperAccount,
        *,
        place: int,
    ) -> None:
        """Open the part of the strategy in *place*; the margin is the account's alone."""
        settings = replace(settings, leverage=None, is_cross=False)
        super().__init__(instruments, settings)
        for at, item in enumerate(instruments):
            orders = self.orders[item.id] = VirtualOrders(
                item, settings.costs_for(item.id), latency=settings.latency
            )
            # Beyond those of the account itself, liquidations among them.
            orders.first = 1_000_000 * (1 + place) + 1_000 * at
            self.protectors[item.id] = Protector(orders, item, settings.exits)
            self._funds[item.id] = (
                _CrossPartFunds(self.ledger, own, item.id)
                if isinstance(own, SharedCrossAccount)
                else _PartFunds(self.ledger, own, item.id)
            )

    def open_part(self, instrument: str) -> int:
        """Return the signed quantity of the part that its target still wants."""
        return self.orders[instrument].target - self.held(instrument)

    def take(self, part: Fill, order: Order, *, sequence: int) -> tuple[Order, ...]:
        """Book *part*, of a fill of the account's *order*; return the protection that changes."""
        key = part.instrument
        self._stale.add(key)
        self.ledger.apply_fill(part)
        orders, held = self.orders[key], self.held(key)
        assert isinstance(orders, VirtualOrders)
        made = Matched()
        made.note(*orders.resize(held))
        made.note(
            *self.protectors[key].after(
                [order],
                held,
                self.ledger.entry_price(key),
                part.reference_price,
                sequence=sequence,
                at_ms=part.filled_ms,
            )
        )
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


class SharedAccount(PaperAccount):
    """The account that several strategies share."""

    def agree(self, instrument: str, target: int) -> None:
        """Want *target*, what the strategies want together."""
        self.orders[instrument].target = target
        self._stale.add(instrument)

    def give_up(self, instrument: str, reason: str) -> Iterable[Order]:
        """Yield the net order, ended for that *reason*, if one rests."""
        orders = self.orders[instrument]
        if orders.order is not None:
            self._stale.add(instrument)
            yield orders.end(orders.order, reason)


class SharedCrossAccount(SharedAccount, CrossAccount):
    """The same on cross margin."""

    ruin: Ruin | None = None  # which a close of a strategy would have been, and is in its place
