"""``BookAccount``: an account whose orders a book fills; ``BookWatch``: what can change them.

A cancellation of a limit by list takes the latency on its way: until then it can be filled.

The rules are docs/money.md, M61 to M77.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tracepaper.daemon.broker.account import (
    AccountState,
    BookState,
    BrokerSettings,
    PaperAccount,
)
from tracepaper.daemon.broker.book_fills import (
    BookMoves,
    Move,
    QueuePlace,
    QueueRules,
    Queues,
    after_change,
    after_trade,
    reaches,
)
from tracepaper.daemon.broker.book_matching import acts, match_update, rests_as_limit
from tracepaper.daemon.broker.execution import TrueRange
from tracepaper.daemon.broker.matching import Matched
from tracepaper.daemon.broker.orders import Moment, OrderEvent, RestingOrders, after
from tracepaper.strategies.api.context import Cancel, OrderRequest
from tracepaper.strategies.types.decisions import Order, OrderRole, OrderStatus
from tracepaper.strategies.types.market import BookUpdate, Instrument, Quote, Side


class _LateCancels(RestingOrders):
    """Resting orders whose cancellation by a strategy arrives at the exchange later."""

    leaving: frozenset[str] = frozenset()  # ids of orders whose cancellation is on its way
    _sent: Moment | None = None

    def send(
        self, requests: Iterable[OrderRequest | Cancel], reason: str, now: Moment
    ) -> tuple[Order, ...]:
        """Do what a list asks for; what it cancels goes on resting for the latency."""
        self._sent = now
        try:
            return super().send(requests, reason, now)
        finally:
            self._sent = None

    def withdraw(self, tag: str, reason: str, *, opening_only: bool = False) -> tuple[Order, ...]:
        """Cancel by list: at once by the operator's command, else after the latency."""
        now = self._sent
        if now is None or not self._latency.fixed_ms:
            return super().withdraw(tag, reason, opening_only=opening_only)
        changed = []
        for order in self._listed():
            if not tag or order.tag == tag:
                arrives_ms = now.at_ms + self._latency.fixed_ms
                until_ms = min(arrives_ms, order.until_ms or arrives_ms)
                self.leaving |= {order.order_id}
                changed.append(
                    self.note(after(order, OrderEvent.REPLACE, until_ms=until_ms, reason=reason))
                )
        return tuple(changed)

    def note(self, order: Order) -> Order:
        """Take *order* as it now stands, resting or ended, and return it."""
        noted = super().note(order)
        if self.leaving:
            self.leaving &= {one.order_id for one in self.orders}
        return noted

    def end(self, order: Order, reason: str, event: OrderEvent = OrderEvent.CANCEL) -> Order:
        """Return *order* as it ends by *event*, for that *reason* or that of its cancellation."""
        if event is OrderEvent.EXPIRE and order.order_id in self.leaving:
            reason = order.reason
        return super().end(order, reason, event)

    def _listed(self) -> list[Order]:
        return [one for one in super()._listed() if one.order_id not in self.leaving]


class BookAccount(PaperAccount):
    """An account whose orders an order book fills."""

    resting_type = _LateCancels

    def __init__(
        self,
        instruments: Iterable[Instrument],
        settings: BrokerSettings,
        *,
        ranges: Mapping[str, TrueRange] | None = None,
        keeps_ledger: bool = False,
    ) -> None:
        """Open an account: see ``PaperAccount``."""
        super().__init__(instruments, settings, ranges=ranges, keeps_ledger=keeps_ledger)
        self.queues = {key: Queues(settings.queue) for key in self._instruments}

    def match_book(self, update: BookUpdate, moved: BookMoves, sequence: int) -> Matched:
        """Let what rests meet *update*, which holds *moved*, as step *sequence*."""
        key, at_ms = update.instrument, update.market_ms
        queues, trades = self.queues[key], Matched()
        self._stale.add(key)
        trades.note(*self.expire(key, at_ms))
        self._due(key, trades, at_ms, (moved.bids[0].price, moved.asks[0].price), sequence)
        matched = match_update(
            self.orders[key], self._executors[key], self._funds[key], queues, update, moved,
            self._instruments[key],
        )  # fmt: skip
        self._add(key, trades, matched, sequence, at_ms)
        return trades

    def _state_of(self, key: str) -> BookState:
        state, resting = super()._state_of(key), self.orders[key]
        assert isinstance(resting, _LateCancels)
        queues = self.queues[key].state(sorted(resting.leaving))
        return BookState(state.holding, state.orders, state.protection, queues)

    def restore(self, state: AccountState, *, taken_over: bool = False) -> None:
        """Take over what survived a restart, or what another run left (*taken_over*)."""
        super().restore(state, taken_over=taken_over)
        for key, book in state.books.items():
            resting = self.orders[key]
            if book.queues is not None and isinstance(resting, _LateCancels):
                self.queues[key].restore(book.queues)
                resting.leaving = frozenset(book.queues.leaving)


class _Queued(NamedTuple):
    """A limit that rests in a queue."""

    side: Side
    price: int
    place: QueuePlace
    rules: QueueRules


class BookWatch:
    """What of an order book can change an order of some account: a feed asks it at every frame.

    It follows the places of resting limits by itself, by the rules by which the broker will. It
    holds until the next step: whoever hands on an event asks for another.
    """

    def __init__(self, accounts: Sequence[BookAccount], instrument: str) -> None:
        self._instrument = instrument
        self._accounts = [one for one in accounts if one.waits(instrument)]
        self.rests: bool = bool(self._accounts)
        """Whether anything rests."""
        self.queued: dict[tuple[Side, int], list[_Queued]] = {}
        """The limits that rest in a queue, by side and price."""
        self.has_strangers = False
        """Whether a limit rests whose place in the queue is not known: another model took it in."""
        self._others: list[tuple[Order, int]] = []
        arriving: list[int] = []
        for account in self._accounts:
            resting, queues = account.orders[instrument], account.queues[instrument]
            for order in resting.orders:
                place = queues.places.get(order.order_id)
                if place is not None and order.price is not None:
                    at = (order.side, order.price)
                    self.queued.setdefault(at, []).append(_Queued(*at, place, queues.rules))
                else:
                    self.has_strangers |= rests_as_limit(order)
                if order.status is OrderStatus.NEW and order.role is not OrderRole.LIQUIDATION:
                    arriving.append(order.eligible_ms)
                self._others.append((order, resting.trail))
        self.arrives_ms: int | None = min(arriving, default=None)
        """When the next order reaches the exchange; None where none is on its way."""

    def acts(self, quote: Quote) -> bool:
        """Whether a book whose best levels are *quote* changes an order by itself."""
        if any(acts(order, quote, trail) for order, trail in self._others):
            return True
        due = (one.matters_from(quote) for one in self._accounts)
        return any(from_ms is not None and quote.market_ms >= from_ms for from_ms in due)

    def concerns(self, side: Side, price: int) -> bool:
        """Whether a limit of *side* rests that a trade at *price* may fill or move forward."""
        return any(of is side and reaches(side, at, price) for of, at in self.queued)

    def take(self, move: Move) -> bool:
        """Follow *move*; return whether it fills an order."""
        if not move.is_trade:
            at = (move.side, move.price)
            if waiting := self.queued.get(at):
                self.queued[at] = [
                    one._replace(place=after_change(one.place, move.size, one.rules))
                    for one in waiting
                ]
            return False
        fills = False
        for (side, price), waiting in self.queued.items():
            if side is move.side or not reaches(side, price, move.price):
                continue
            if price != move.price:
                fills = True
                continue
            for number, one in enumerate(waiting):
                place, reached = after_trade(one.place, move.size)
                waiting[number] = one._replace(place=place)
                fills = fills or reached > 0
        return fills
