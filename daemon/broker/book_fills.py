"""Fills at an order book: levels that are walked, and places in the queue of a level.

The queue models are those of hftbacktest (``hftbacktest/src/backtest/models/queue.rs``) under
their names, in exact integers of 10^-quantity_decimals. All of it is pure.

The rules are docs/money.md, M61 to M77.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import BookUpdate, Side


class QueueModel(StrEnum):
    """How an order's place in the queue follows what is shown of its level."""

    RISK_ADVERSE = "RiskAdverseQueueModel"  # trades alone move it forward
    POWER_PROB = "PowerProbQueueModel"  # cancellations too, by f(behind) / (f(behind) + f(ahead))


class QueueRules(Struct, frozen=True):
    """The queue model, with the whole exponent of ``PowerProbQueueModel``: f(x) = x^exponent."""

    model: QueueModel = QueueModel.RISK_ADVERSE
    exponent: int = 3

    @classmethod
    def named(cls, model: str, exponent: int) -> QueueRules:
        """Return the rules of the *model* of that name; raise ``ValueError`` for another."""
        return cls(QueueModel(model), exponent)


UNKNOWN: Final = -1
"""What is ahead of an order whose level has not been in view since it came to rest."""


class QueuePlace(Struct, frozen=True, array_like=True, gc=False):
    """The place of a resting limit in the queue of its price."""

    order_id: str
    ahead: int
    level: int  # what its level showed last
    traded: int = 0  # at its price since then


def after_trade(place: QueuePlace, quantity: int) -> tuple[QueuePlace, int]:
    """Take in a trade of *quantity* at the price; also say how much of it reached the order."""
    if place.ahead == UNKNOWN:
        return place, 0
    left = place.ahead - quantity
    moved = replace(place, ahead=max(left, 0), traded=place.traded + quantity)
    return moved, max(-left, 0)


def after_change(place: QueuePlace, shown: int, rules: QueueRules) -> QueuePlace:
    """Take in that the level now shows *shown*, in which the trades since are contained."""
    if place.ahead == UNKNOWN:
        return replace(place, ahead=shown, level=shown, traded=0)
    ahead = place.ahead
    canceled = place.level - shown - place.traded
    if rules.model is QueueModel.POWER_PROB and canceled > 0 and ahead > 0:
        behind = max(place.level - ahead, 0)
        of_front, of_back = ahead**rules.exponent, behind**rules.exponent
        in_front = canceled * of_front // (of_front + of_back)
        in_front += max(canceled - in_front - behind, 0)  # what behind could not lose
        ahead = max(ahead - in_front, 0)
    return replace(place, ahead=min(ahead, shown), level=shown, traded=0)


class BookLevel(NamedTuple):
    """A level: its price, its size, and the number of the frame that set it last."""

    price: int
    size: int
    frame: int


def reaches(side: Side, limit: int | None, price: int) -> bool:
    """Whether an order of *side* with that *limit* may trade at *price*; all may without one."""
    if limit is None:
        return True
    return limit >= price if side is Side.BUY else limit <= price


def walked(
    levels: Sequence[BookLevel], queues: Queues, side: Side, quantity: int, limit: int | None
) -> Iterator[tuple[BookLevel, int]]:
    """Yield the levels that an order of *side* takes, and how much of each, best first.

    *levels* are those of the other side of the book. It takes at most *quantity*, and nothing
    beyond its *limit*.
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


# ---------------------------------------------------------------- what an event says


class Move(NamedTuple):
    """What happened at the price of a resting limit.

    A level of the side *side* of the book now shows ``size``, or, where ``is_trade``, a taker of
    *side* traded ``size``.
    """

    at_ms: int
    side: Side
    price: int
    size: int
    is_trade: bool = False


class BookMoves(NamedTuple):
    """What a ``BookUpdate`` holds: the moves, oldest first, and the book after them."""

    moves: tuple[Move, ...]
    bids: tuple[BookLevel, ...]  # the best first
    asks: tuple[BookLevel, ...]
    is_whole: bool = True  # whether these are all known levels, or the best alone


_SIDES: Final = (Side.BUY, Side.SELL)
_HEAD: Final = struct.Struct("<4q")
_MOVE, _LEVEL = 5, 3
NUMBERS_MAX: Final = 1 << 20


def packed_moves(moved: BookMoves) -> bytes:
    """Pack the contents of a ``BookUpdate``: little-endian int64 numbers, compressed."""
    rows, bids, asks, is_whole = moved
    numbers: list[int] = [len(rows), len(bids), len(asks), is_whole]
    for at_ms, side, price, size, is_trade in rows:
        numbers += (at_ms, side is Side.SELL, price, size, is_trade)
    for level in (*bids, *asks):
        numbers += level
    return zlib.compress(struct.pack(f"<{len(numbers)}q", *numbers), 6)


def moves_in(update: BookUpdate) -> BookMoves:
    """Unpack *update*; raise ``DataInvalid`` for what no feed writes."""
    unpacker = zlib.decompressobj()
    try:
        held = unpacker.decompress(update.books, 8 * NUMBERS_MAX)
        moves, bids, asks, is_whole = _HEAD.unpack_from(held)
    except (zlib.error, struct.error):
        raise _impossible(update, "is damaged") from None
    first, end = 4, 4 + _MOVE * moves
    total = end + _LEVEL * (bids + asks)
    if min(moves, bids, asks) < 0 or len(held) != 8 * total or not unpacker.eof:
        raise _impossible(update, "is damaged")
    numbers = struct.unpack(f"<{total}q", held)
    flags = {is_whole, *numbers[first + 1 : end : _MOVE], *numbers[first + 4 : end : _MOVE]}
    if not flags <= {0, 1}:
        raise _impossible(update, "holds a flag that says neither yes nor no")
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
        raise _impossible(update, "is a sample that knows what happened before it")
    times = [move.at_ms for move in book_moves.moves]
    if times != sorted(times) or (times and times[-1] > update.market_ms):
        raise _impossible(update, "holds moves out of their order")
    for sign, levels in ((-1, book_moves.bids), (1, book_moves.asks)):
        prices = [sign * level.price for level in levels]
        if any(near >= far for near, far in pairwise(prices)):
            raise _impossible(update, "holds levels that do not lead away from the touch")
        if any(level.size < 1 or level.price < 1 or level.frame > update.frame for level in levels):
            raise _impossible(update, "holds a level that no frame showed")
    if not book_moves.is_whole and len(book_moves.bids) + len(book_moves.asks) > len(_SIDES):
        raise _impossible(update, "holds levels beyond the best, and says that it does not")
    if not book_moves.bids or not book_moves.asks:
        raise _impossible(update, "holds a book with an empty side")
    if book_moves.bids[0].price >= book_moves.asks[0].price:
        raise _impossible(update, "holds a crossed book")


def _impossible(update: BookUpdate, what: str) -> DataInvalid:
    return DataInvalid(
        f"The book update of {update.instrument} at {update.market_ms} {what}, which no recording "
        "writes; restore the database."
    )


# ---------------------------------------------------------------- what survives a restart


class QueueState(Struct, frozen=True, array_like=True):
    """What the orders of an instrument in one account carry of the book from step to step."""

    frame: int = 0  # so many frames of its source were read
    places: tuple[QueuePlace, ...] = ()
    taken: tuple[tuple[Side, int, int, int], ...] = ()
    leaving: tuple[str, ...] = ()  # orders whose cancellation is on its way


class Queues:
    """Places, and what was taken, of one instrument in one account."""

    def __init__(self, rules: QueueRules) -> None:
        self.rules = rules
        self.frame = 0
        self.places: dict[str, QueuePlace] = {}
        # What was taken of the levels and no frame has put back yet, by side of the book and price:
        # the quantity, and the frame.
        self.taken: dict[tuple[Side, int], tuple[int, int]] = {}

    def restore(self, state: QueueState) -> None:
        """Take over what survived a restart."""
        self.frame = state.frame
        self.places = {place.order_id: place for place in state.places}
        self.taken = {(side, price): (taken, at) for side, price, taken, at in state.taken}

    def state(self, leaving: Iterable[str] = ()) -> QueueState:
        """Return the state that must survive a restart."""
        taken = tuple((*key, *of) for key, of in self.taken.items())
        return QueueState(self.frame, tuple(self.places.values()), taken, tuple(leaving))

    def keep(self, resting: Container[str]) -> None:
        """Forget the places of orders that are not among *resting* any more."""
        self.places = {key: place for key, place in self.places.items() if key in resting}

    def left(self, side: Side, level: BookLevel) -> int:
        """How much of *level* of that *side* of the book is there to take."""
        taken, frame = self.taken.get((side, level.price), (0, 0))
        return max(level.size - taken, 0) if level.frame <= frame else level.size

    def take(self, side: Side, level: BookLevel, quantity: int) -> None:
        """Take *quantity* of *level*, as the newest frame shows it."""
        before = level.size - self.left(side, level)
        self.taken[side, level.price] = (before + quantity, self.frame)

    def forget_renewed(self, side: Side, levels: Sequence[BookLevel]) -> None:
        """Drop what a later frame put back or removed; *levels* is all that is known of *side*."""
        frames = {level.price: level.frame for level in levels}
        self.taken = {
            key: (taken, frame)
            for key, (taken, frame) in self.taken.items()
            if key[0] is not side or frames.get(key[1], frame + 1) <= frame
        }
