"""Fills at an order book: walking the levels, and places in the queue of a level.

The queue models are those of hftbacktest (``hftbacktest/src/backtest/models/queue.rs``) under
their names, in exact integers of 10^-quantity_decimals. All of it is pure.

The rules are docs/money.md, M61 to M77.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Container, Iterator, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.orders import taken_over_id
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import BookUpdate, Side


class QueueModel(StrEnum):
    """How an order's place in the queue changes with the events at its level."""

    RISK_ADVERSE = "RiskAdverseQueueModel"  # trades alone move it forward
    POWER_PROB = "PowerProbQueueModel"  # cancellations too, by f(behind) / (f(behind) + f(ahead))


class QueueRules(Struct, frozen=True):
    """The queue model, and the integer exponent of ``PowerProbQueueModel``: f(x) = x^exponent."""

    model: QueueModel = QueueModel.RISK_ADVERSE
    exponent: int = 3

    @classmethod
    def named(cls, model: str, exponent: int) -> QueueRules:
        """Return the rules of the named *model*; raise ``ValueError`` for an unknown name."""
        kind = QueueModel(model)
        return cls(kind, exponent) if kind is QueueModel.POWER_PROB else cls(kind)


UNKNOWN: Final = -1
"""The quantity ahead of an order whose level no book update has shown since it began to rest."""


class QueuePlace(Struct, frozen=True, array_like=True, gc=False):
    """The place of a resting limit in the queue of its price; all numbers are quantities."""

    order_id: str
    ahead: int
    level: int  # the size of its level when it last changed
    traded: int = 0  # at its price since then


def after_trade(place: QueuePlace, quantity: int) -> tuple[QueuePlace, int]:
    """Return the place after a trade of *quantity* at its price, and how much reached the order."""
    if place.ahead == UNKNOWN:
        return place, 0
    left = place.ahead - quantity
    updated = replace(place, ahead=max(left, 0), traded=place.traded + quantity)
    return updated, max(-left, 0)


def after_change(place: QueuePlace, size: int, rules: QueueRules) -> QueuePlace:
    """Return the place after its level changed to the size *size*.

    *size* already accounts for the trades since the last change.
    """
    if place.ahead == UNKNOWN:
        return replace(place, ahead=size, level=size, traded=0)
    ahead = place.ahead
    canceled = place.level - size - place.traded
    if rules.model is QueueModel.POWER_PROB and canceled > 0 and ahead > 0:
        behind = max(place.level - ahead, 0)
        of_front, of_back = ahead**rules.exponent, behind**rules.exponent
        in_front = canceled * of_front // (of_front + of_back)
        in_front += max(canceled - in_front - behind, 0)  # more than what was behind
        ahead = max(ahead - in_front, 0)
    return replace(place, ahead=min(ahead, size), level=size, traded=0)


class BookLevel(NamedTuple):
    """A level: its price, its size, and the number of the frame that set it last."""

    price: int
    size: int
    frame: int


def reaches(side: Side, limit: int | None, price: int) -> bool:
    """Return whether an order of *side* with *limit* may trade at *price*; always without one."""
    if limit is None:
        return True
    return limit >= price if side is Side.BUY else limit <= price


def walk_levels(
    levels: Sequence[BookLevel], queues: Queues, side: Side, quantity: int, limit: int | None
) -> Iterator[tuple[BookLevel, int]]:
    """Yield the levels that an order of *side* takes, and how much of each, best first.

    *levels* are those of the other side of the book. The order takes at most *quantity*, and
    nothing beyond its *limit*.
    """
    for level in levels:
        if quantity <= 0 or not reaches(side, limit, level.price):
            return
        if part := min(quantity, queues.left(other(side), level)):
            quantity -= part
            yield level, part


def other(side: Side) -> Side:
    """Return the other side."""
    return Side.SELL if side is Side.BUY else Side.BUY


# ---------------------------------------------------------------- packed updates


class Move(NamedTuple):
    """An event at the price of a resting limit.

    Either the level on ``side`` of the book changed to ``size`` or, if ``is_trade``, a taker of
    ``side`` traded ``size``.
    """

    at_ms: int
    side: Side
    price: int
    size: int
    is_trade: bool = False


class BookMoves(NamedTuple):
    """The content of a ``BookUpdate``: the moves, oldest first, and the book after them."""

    moves: tuple[Move, ...]
    bids: tuple[BookLevel, ...]  # best first
    asks: tuple[BookLevel, ...]
    is_whole: bool = True  # whether these are all known levels, or only the best of each side


_SIDES: Final = (Side.BUY, Side.SELL)
_HEAD: Final = struct.Struct("<4q")
_MOVE, _LEVEL = 5, 3
NUMBERS_MAX: Final = 1 << 20


def pack_moves(book_moves: BookMoves) -> bytes:
    """Pack the contents of a ``BookUpdate``: little-endian int64 numbers, compressed."""
    rows, bids, asks, is_whole = book_moves
    numbers: list[int] = [len(rows), len(bids), len(asks), is_whole]
    for at_ms, side, price, size, is_trade in rows:
        numbers += (at_ms, side is Side.SELL, price, size, is_trade)
    for level in (*bids, *asks):
        numbers += level
    return zlib.compress(struct.pack(f"<{len(numbers)}q", *numbers), 6)


def unpack_moves(update: BookUpdate) -> BookMoves:
    """Unpack *update*; raise ``DataInvalid`` if no feed can have written it."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(update.books, 8 * NUMBERS_MAX)
        moves, bids, asks, is_whole = _HEAD.unpack_from(content)
    except (zlib.error, struct.error):
        raise _impossible(update, "is damaged") from None
    first, end = 4, 4 + _MOVE * moves
    total = end + _LEVEL * (bids + asks)
    if min(moves, bids, asks) < 0 or len(content) != 8 * total or not unpacker.eof:
        raise _impossible(update, "is damaged")
    numbers = struct.unpack(f"<{total}q", content)
    flags = {is_whole, *numbers[first + 1 : end : _MOVE], *numbers[first + 4 : end : _MOVE]}
    if not flags <= {0, 1}:
        raise _impossible(update, "holds a flag that is neither 0 nor 1")
    cut = (numbers[at : at + _MOVE] for at in range(first, end, _MOVE))
    rows = tuple(
        Move(at_ms, _SIDES[is_sell], price, size, bool(is_trade))
        for at_ms, is_sell, price, size, is_trade in cut
    )
    levels = [BookLevel(*numbers[at : at + _LEVEL]) for at in range(end, total, _LEVEL)]
    book_moves = BookMoves(rows, tuple(levels[:bids]), tuple(levels[bids:]), bool(is_whole))
    _check(update, book_moves)
    return book_moves


def _check(update: BookUpdate, book_moves: BookMoves) -> None:
    if any(move.size < 0 or move.price < 1 for move in book_moves.moves):
        raise _impossible(update, "holds a negative price or size")
    if update.is_sampled and (book_moves.moves or not book_moves.is_whole):
        raise _impossible(update, "is a sample with moves or without levels")
    times = [move.at_ms for move in book_moves.moves]
    if times != sorted(times) or (times and times[-1] > update.market_ms):
        raise _impossible(update, "holds moves that are not in order of time")
    for sign, levels in ((-1, book_moves.bids), (1, book_moves.asks)):
        prices = [sign * level.price for level in levels]
        if any(near >= far for near, far in pairwise(prices)):
            raise _impossible(update, "holds levels that are not in order of price")
        if any(level.size < 1 or level.price < 1 or level.frame > update.frame for level in levels):
            raise _impossible(update, "holds an empty level or one of a later frame")
    if not book_moves.is_whole and len(book_moves.bids) + len(book_moves.asks) > len(_SIDES):
        raise _impossible(update, "holds more than the best levels, and is marked as only these")
    if not book_moves.bids or not book_moves.asks:
        raise _impossible(update, "holds a book with an empty side")
    if book_moves.bids[0].price >= book_moves.asks[0].price:
        raise _impossible(update, "holds a crossed book")


def _impossible(update: BookUpdate, defect: str) -> DataInvalid:
    return DataInvalid(
        f"The book update of {update.instrument} at {update.market_ms} {defect}, which no "
        "recording writes; restore the database."
    )


# ---------------------------------------------------------------- state


class QueueState(Struct, frozen=True, array_like=True):
    """The stored queue places of an account's orders in one instrument."""

    frame: int = 0  # the number of frames that were read from its source
    places: tuple[QueuePlace, ...] = ()
    taken: tuple[tuple[Side, int, int, int], ...] = ()

    def taken_over(self) -> QueueState:
        """Return the places for a run that continues another one."""
        return replace(
            self,
            places=tuple(
                replace(place, order_id=taken_over_id(place.order_id)) for place in self.places
            ),
        )


class Queues:
    """The queue places and the taken liquidity of one instrument in one account."""

    def __init__(self, rules: QueueRules) -> None:
        self.rules = rules
        self.frame = 0
        self.places: dict[str, QueuePlace] = {}
        # By side of the book and price: the quantity that was taken of a level and that no frame
        # has renewed yet, and the frame at which it was taken.
        self.taken: dict[tuple[Side, int], tuple[int, int]] = {}

    def restore(self, state: QueueState) -> None:
        """Restore the stored *state*."""
        self.frame = state.frame
        self.places = {place.order_id: place for place in state.places}
        self.taken = {(side, price): (taken, at) for side, price, taken, at in state.taken}

    def state(self) -> QueueState:
        """Return the state to store."""
        taken = tuple((*key, *quantity_frame) for key, quantity_frame in self.taken.items())
        return QueueState(self.frame, tuple(self.places.values()), taken)

    def keep(self, resting: Container[str]) -> None:
        """Forget the places of orders that are not among the ids *resting*."""
        self.places = {key: place for key, place in self.places.items() if key in resting}

    def left(self, side: Side, level: BookLevel) -> int:
        """Return how much of *level* on *side* of the book is left to take."""
        taken, frame = self.taken.get((side, level.price), (0, 0))
        return max(level.size - taken, 0) if level.frame <= frame else level.size

    def take(self, side: Side, level: BookLevel, quantity: int) -> None:
        """Record that *quantity* of *level* was taken, as of the newest frame."""
        before = level.size - self.left(side, level)
        self.taken[side, level.price] = (before + quantity, self.frame)

    def forget_renewed(self, side: Side, levels: Sequence[BookLevel]) -> None:
        """Forget what was taken of levels that a later frame set or removed.

        *levels* are all known levels of *side*.
        """
        frames = {level.price: level.frame for level in levels}
        self.taken = {
            key: (taken, frame)
            for key, (taken, frame) in self.taken.items()
            if key[0] is not side or frames.get(key[1], frame + 1) <= frame
        }
