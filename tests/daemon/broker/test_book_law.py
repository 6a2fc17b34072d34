"""Updates of books: what is packed comes back, and what no recording writes is refused."""

from __future__ import annotations

import random
from typing import Final

import pytest
from msgspec.structs import replace

from tracepaper.daemon.broker.book_fills import (
    BookLevel,
    BookMoves,
    Move,
    pack_moves,
    unpack_moves,
)
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import BookUpdate, Side

DRAWN: Final = 150
AT_MS: Final = 10_000
FRAME: Final = 50


class Drawn:
    """A book and its moves, whose least numbers are as small as numbers may be."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        prices = sorted(rng.sample(range(1, 13), rng.randint(2, 12)))
        best = rng.randint(1, len(prices) - 1)
        self.is_whole = rng.random() < 0.7
        depth = len(prices) if self.is_whole else 1
        self.bids = tuple(map(self._level, prices[:best][::-1][:depth]))
        self.asks = tuple(map(self._level, prices[best:][:depth]))
        times = sorted(rng.randint(1, AT_MS) for _ in range(rng.randint(0, 5)))
        self.moves = tuple(
            Move(
                at_ms, rng.choice([*Side]), rng.randint(1, 3), rng.randint(0, 3),
                rng.random() < 0.5,
            )
            for at_ms in times
        )  # fmt: skip

    def _level(self, price: int) -> BookLevel:
        return BookLevel(price, self.rng.randint(1, 3), self.rng.choice((1, FRAME)))

    @property
    def content(self) -> BookMoves:
        return BookMoves(self.moves, self.bids, self.asks, self.is_whole)

    def broken(self) -> dict[str, BookUpdate]:
        """Return updates that no recording writes, by what is wrong with them."""
        moves, bids, asks, is_whole = content = self.content
        every = {
            "an empty level": content._replace(bids=(bids[0]._replace(size=0), *bids[1:])),
            "a later frame": content._replace(
                asks=(*asks[:-1], asks[-1]._replace(frame=FRAME + 1))
            ),
            "no bids": content._replace(bids=()),
            "a crossed book": content._replace(
                bids=(bids[0]._replace(price=asks[0].price), *bids[1:])
            ),
            "neither whole nor not": content._replace(is_whole=2),  # type: ignore[arg-type]
        }
        if is_whole:
            every["a level twice"] = content._replace(bids=(*bids, bids[-1]))
        else:
            further = asks[-1]._replace(price=asks[-1].price + 1)
            every["more than the best"] = content._replace(asks=(*asks, further))
        if len(asks) > 1:
            every["levels out of order"] = content._replace(asks=asks[::-1])
        for last in moves[-1:]:
            for name, changed in {
                "a later move": last._replace(at_ms=AT_MS + 1),
                "a move of no price": last._replace(price=0),
                "a negative size": last._replace(size=-1),
                "neither a trade nor none": last._replace(is_trade=2),  # type: ignore[arg-type]
            }.items():
                every[name] = content._replace(moves=(*moves[:-1], changed))
        if len({move.at_ms for move in moves}) > 1:
            every["moves out of order"] = content._replace(moves=moves[::-1])
        updates = {name: packed(damaged) for name, damaged in every.items()}
        if moves or not is_whole:
            updates["a sample of more than a book"] = packed(content, is_sampled=True)
        return updates


def packed(content: BookMoves, *, is_sampled: bool = False) -> BookUpdate:
    return BookUpdate("linear:BTCUSDT", "", FRAME, is_sampled, pack_moves(content), AT_MS, AT_MS)


def test_an_update_comes_back_and_a_damaged_one_is_refused() -> None:
    refused = set[str]()
    for seed in range(DRAWN):
        drawn = Drawn(random.Random(seed))
        content, update = drawn.content, packed(drawn.content)
        assert unpack_moves(update) == content
        assert content.moves or not drawn.is_whole or unpack_moves(packed(content, is_sampled=True))
        torn = update.books[: drawn.rng.randrange(len(update.books))]
        with pytest.raises(DataInvalid, match="is damaged"):
            unpack_moves(replace(update, books=torn))
        for name, damaged in drawn.broken().items():
            with pytest.raises(DataInvalid, match="which no recording writes"):
                unpack_moves(damaged)
            refused.add(name)
    assert len(refused) == 14
