"""Matching at an order book: takers walk its levels, resting limits wait in queues.

A taker walks the levels of the far side. A resting limit has a place in the queue of its price.
Trades at the price fill it once the quantity ahead is gone, and so does a far side at its price or
beyond. Liquidity that a taker took is gone until a frame sets that level again. A strategy's
cancellation takes effect after the latency; until then the order can be filled.

The rules are docs/money.md, M61 to M77.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from tracepaper.daemon.broker.book_fills import (
    UNKNOWN,
    BookLevel,
    BookMoves,
    Move,
    QueuePlace,
    QueueRules,
    Queues,
    after_change,
    after_trade,
    other,
    reaches,
    walk_levels,
)
from tracepaper.daemon.broker.exit_orders import due_from_ms
from tracepaper.daemon.broker.ledger import Ledger
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.margin import MarginPolicy
from tracepaper.daemon.broker.matching import Market
from tracepaper.daemon.broker.orders import OrderEvent, is_waiting_stop, matters_from
from tracepaper.strategies.types.decisions import FillModel, Order, OrderRole, OrderStatus
from tracepaper.strategies.types.market import BookUpdate, Quote, Side

NO_QUEUE: Final = (
    "a resting limit needs recorded events (--events), and these sampled books serve orders that "
    "take at once"
)


class BookMarket(Market):
    """A market in which the updates of an order book fill orders."""

    def __init__(
        self, lines: Sequence[Line], ledger: Ledger, policy: MarginPolicy, queues: Queues
    ) -> None:
        super().__init__(lines, ledger, policy)
        self.queues = queues

    def match_book(self, update: BookUpdate, book_moves: BookMoves) -> None:
        """Match the resting orders against the moves of *update*, then the book after them.

        *book_moves* is the unpacked content of *update*.
        """
        best_bid, best_ask = book_moves.bids[0].price, book_moves.asks[0].price
        first = self._begin(update.market_ms, best_bid, best_ask)
        queues = self.queues
        for move in book_moves.moves:
            (self._traded if move.is_trade else self._changed)(move)
        queues.frame = update.frame
        if update.cause:
            for _, waiting in self._resting:
                if waiting.order_id in queues.places:  # the feed lost events: to the back
                    self._join(waiting, book_moves)
        for line, resting in self._resting:
            order = line.find(resting.order_id)  # an earlier fill may have changed it
            if order is None or update.market_ms < order.eligible_ms:
                continue
            if order.role is not OrderRole.LIQUIDATION:  # only the mark price triggers that
                self._meet(line, order, update, book_moves)
        self._trail(best_bid, best_ask)
        queues.keep({order.order_id for _, order in self._resting})
        if book_moves.is_whole:
            for side, levels in ((Side.BUY, book_moves.bids), (Side.SELL, book_moves.asks)):
                queues.forget_renewed(side, levels)
        self._end_pass(first, update.market_ms)

    def _meet(self, line: Line, order: Order, update: BookUpdate, book_moves: BookMoves) -> None:
        """Match *order* of *line* against the book after *update*."""
        levels = book_moves.asks if order.side is Side.BUY else book_moves.bids
        far = levels[0].price
        takes = is_waiting_stop(order) or reaches(order.side, order.price, far)
        if update.is_sampled and order.status is OrderStatus.NEW and not takes:
            line.end(order, NO_QUEUE, OrderEvent.REJECT)
            return
        if (admitted := self._admitted(line, order, far, far)) is None:
            return
        order, may_take = admitted
        rests = order.price is not None and not may_take
        if rests and book_moves.is_whole and order.order_id not in self.queues.places:
            self._join(order, book_moves)
        if reaches(order.side, order.price, far):
            self._take(line, order, levels, book_moves, update.market_ms, is_maker=rests)
        left = line.find(order.order_id)
        if order.price is None or rests or left is None:
            return
        if update.is_sampled:
            line.end(left, NO_QUEUE)
        else:
            self._join(left, book_moves)

    def _take(
        self,
        line: Line,
        order: Order,
        levels: Iterable[BookLevel],
        book_moves: BookMoves,
        at_ms: int,
        *,
        is_maker: bool,
    ) -> None:
        """Fill *order* from the available quantity of *levels*; a maker at its own price.

        With impact a market order that takes all of them has its rest filled beyond the last one.
        """
        middle = (book_moves.bids[0].price + book_moves.asks[0].price) // 2
        side = other(order.side)
        wanted, taken, last = order.quantity - order.filled, 0, 0
        for level, part in walk_levels(tuple(levels), self.queues, order.side, wanted, order.price):
            now = line.find(order.order_id)
            if now is None:
                return
            quantity = min(part, now.quantity - now.filled)
            if is_maker:
                fill = self._executor.fill_resting(now, quantity, FillModel.BOOK, at_ms)
            else:
                fill = self._executor.take(
                    now, quantity, level.price, middle, FillModel.BOOK, at_ms
                )
            before = len(self.ledger.fills)
            if not self._apply_fill(line, now, fill):
                return
            self.queues.take(side, level, self._filled_since(before))
            taken, last = taken + quantity, level.price
        costs, rest = self._executor.costs, wanted - taken
        if order.price is not None or costs.impact is None or not (rest and taken):
            return
        now = line.find(order.order_id)
        if now is not None and book_moves.is_whole:
            rate = costs.impact_rate(rest, taken)
            fill = self._executor.take(now, rest, last, middle, FillModel.BOOK, at_ms, rate)
            self._apply_fill(line, now, fill)

    def _filled_since(self, before: int) -> int:
        return sum(entry.fill.quantity for entry in self.ledger.fills[before:])

    # ------------------------------------------------------------ queues

    def _join(self, order: Order, book_moves: BookMoves) -> None:
        """Put *order* at the back of the queue of its price."""
        assert order.price is not None
        levels = book_moves.bids if order.side is Side.BUY else book_moves.asks
        shown = {level.price: level.size for level in levels}.get(order.price)
        if shown is None:
            # A missing level within the known depth is empty; beyond the depth it is unknown.
            is_beyond = not reaches(order.side, order.price, levels[-1].price)
            shown = UNKNOWN if is_beyond else 0
        self.queues.places[order.order_id] = QueuePlace(order.order_id, shown, max(shown, 0))

    def _changed(self, move: Move) -> None:
        """Update the places in the queue of a level that changed its size."""
        places = self.queues.places
        for _, order in self._resting:
            place = places.get(order.order_id)
            if place is not None and (order.side, order.price) == (move.side, move.price):
                places[order.order_id] = after_change(place, move.size, self.queues.rules)

    def _traded(self, move: Move) -> None:
        """Fill orders by a trade at their price or through it; its size fills only once."""
        used, places = 0, self.queues.places
        for line, resting in sorted(self._resting, key=lambda pair: _best_first(pair[1])):
            place, order = places.get(resting.order_id), line.find(resting.order_id)
            if place is None or order is None or order.side is move.side:
                continue
            if order.price is None or not reaches(order.side, order.price, move.price):
                continue
            reached = move.size
            if order.price == move.price:
                places[order.order_id], reached = after_trade(place, move.size)
            quantity = min(reached - used, order.quantity - order.filled)
            if quantity <= 0:
                continue
            fill = self._executor.fill_resting(order, quantity, FillModel.BOOK, move.at_ms)
            before = len(self.ledger.fills)
            if self._apply_fill(line, order, fill):
                used += self._filled_since(before)


def _best_first(order: Order) -> int:
    if order.price is None:
        return 0
    return -order.price if order.side is Side.BUY else order.price


def rests_as_limit(order: Order) -> bool:
    """Return whether *order* is a limit that has reached the exchange and waits in a queue."""
    arrived = order.status is not OrderStatus.NEW and order.role is not OrderRole.LIQUIDATION
    return arrived and order.price is not None and not is_waiting_stop(order)


class BookWatch:
    """Tells a feed, at every frame of an order book, whether it can change an order of an account.

    It updates copies of the queue places by the broker's rules. It is valid until the next step;
    after each event the feed gets a new one.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        """Watch for *lines*, those of the accounts in which an event can change the instrument."""
        self._lines = list(lines)
        self.rests: bool = bool(self._lines)
        """Whether anything rests."""
        self.queued: dict[tuple[Side, int], list[tuple[QueuePlace, QueueRules]]] = {}
        """The queue places of resting limits, by side and price."""
        self.has_unknown_places = False
        """Whether the queue place of a resting limit is unknown: another model accepted it."""
        self._others: list[tuple[Order, int]] = []
        arriving: list[int] = []
        for line in self._lines:
            queues = line.queues
            assert queues is not None
            for order in line.orders:
                place = queues.places.get(order.order_id)
                if place is not None and order.price is not None:
                    at = (order.side, order.price)
                    self.queued.setdefault(at, []).append((place, queues.rules))
                else:
                    self.has_unknown_places |= rests_as_limit(order)
                if order.status is OrderStatus.NEW and order.role is not OrderRole.LIQUIDATION:
                    arriving.append(order.eligible_ms)
                self._others.append((order, line.protection.trail))
        self.arrives_ms: int | None = min(arriving, default=None)
        """When the next order reaches the exchange; None if none is on its way."""

    def acts(self, quote: Quote) -> bool:
        """Return whether a book with the best levels of *quote* changes an order, without moves."""
        due_times = [due_from_ms(line, quote) for line in self._lines]
        for order, trail in self._others:
            if not rests_as_limit(order):
                due_times.append(matters_from(order, quote, trail))
            elif reaches(
                order.side, order.price, quote.ask if order.side is Side.BUY else quote.bid
            ):
                return True
            else:
                due_times.append(order.until_ms)
        return any(from_ms is not None and quote.market_ms >= from_ms for from_ms in due_times)

    def concerns(self, side: Side, price: int) -> bool:
        """Return whether a trade at *price* may fill or move forward a resting limit of *side*."""
        return any(
            queued_side is side and reaches(side, limit, price)
            for queued_side, limit in self.queued
        )

    def take(self, move: Move) -> bool:
        """Update the queue places by *move*; return whether it fills an order."""
        if not move.is_trade:
            at = (move.side, move.price)
            if waiting := self.queued.get(at):
                self.queued[at] = [
                    (after_change(place, move.size, rules), rules) for place, rules in waiting
                ]
            return False
        fills = False
        for (side, price), waiting in self.queued.items():
            if side is move.side or not reaches(side, price, move.price):
                continue
            if price != move.price:
                fills = True
                continue
            for number, (place, rules) in enumerate(waiting):
                updated, reached = after_trade(place, move.size)
                waiting[number] = updated, rules
                fills = fills or reached > 0
        return fills
