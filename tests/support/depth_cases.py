"""Seeded books, and books kept by a dictionary, for the tests of recorded depth."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from builders import instrument
from msgspec import structs

from tracepaper.replay.archive.order_book import DepthHeader, DepthWriter
from tracepaper.replay.learning.estimator import estimators
from tracepaper.replay.learning.estimators.order_book import BookFitOptions
from tracepaper.replay.learning.order_books import BookDataset
from tracepaper.replay.learning.recipe import Recipe
from tracepaper.replay.learning.training import train
from tracepaper.strategies.networks.order_book import OrderBookConfig
from tracepaper.strategies.order_book import KIND
from tracepaper.strategies.types.market import Depth
from tracepaper.strategies.units import DAY_MS

BTC = structs.replace(instrument(), price_decimals=1, quantity_decimals=3, tick_size=1)
FIRST_MS = 1_735_689_600_000
Side = list[tuple[int, int]]


def packed(side: Side) -> bytes:
    return b"".join(struct.pack("<qq", price, size) for price, size in side)


def depth(bids: Side, asks: Side, seen_ms: int, *, age_ms: int = 3) -> Depth:
    return Depth(BTC.id, packed(bids), packed(asks), seen_ms - age_ms, seen_ms)


def header(levels: int = 5, every_ms: int = 1_000, **keys: Any) -> DepthHeader:
    plain = DepthHeader(
        instrument=BTC.id,
        price_decimals=BTC.price_decimals,
        quantity_decimals=BTC.quantity_decimals,
        levels=levels,
        every_ms=every_ms,
        source="loopback",
    )
    return structs.replace(plain, **keys)


def walk(
    count: int, *, levels: int = 5, every_ms: int = 1_000, seed: int = 1, first_ms: int = FIRST_MS
) -> Iterator[Depth]:
    """Yield books around a seeded walk of the mid, most sizes unchanged from book to book."""
    rng = random.Random(seed)
    bid = 650_000
    sizes: dict[int, int] = {}
    for row in range(count):
        bid += rng.choice((-1, 0, 0, 1))
        spread = rng.choice((1, 1, 2))
        sides = [
            [(bid - level, 0) for level in range(levels)],
            [(bid + spread + level, 0) for level in range(levels)],
        ]
        for price in {price for side in sides for price, _ in side}:
            if price not in sizes or rng.random() < 0.1:
                sizes[price] = rng.randint(1, 50_000)
        bids, asks = ([(price, sizes[price]) for price, _ in side] for side in sides)
        yield depth(bids, asks, first_ms + row * every_ms, age_ms=rng.randint(0, 90))


def long(
    source: str, every_ms: int = 3_600_000, days: float = 8
) -> tuple[list[Depth], DepthHeader]:
    """Return books of so many days whose mid moves as the book before leans."""
    rng = np.random.default_rng(4)
    made, bid = [], 10_000
    for row in range(int(days * DAY_MS / every_ms)):
        lean = int(rng.integers(0, 2))
        sizes = (50, 5) if lean else (5, 50)
        made.append(
            depth(
                [(bid, sizes[0]), (bid - 1, 9)],
                [(bid + 1, sizes[1]), (bid + 2, 9)],
                FIRST_MS + row * every_ms,
            )
        )
        bid += 1 if lean else -1
    return made, header(levels=2, every_ms=every_ms, source=source)


def write(
    path: Path, depths: Iterable[Depth], *, cause: str = "", of: DepthHeader | None = None
) -> str:
    """Append *depths*, the first after *cause*; return what the writer found there."""
    with DepthWriter(path, header() if of is None else of) as writer:
        for number, one in enumerate(depths):
            writer.add(one, "" if number else cause)
        return writer.says


class PlainBook:
    """One topic's book as the exchange documents it, in decimals and a dictionary a side."""

    def __init__(self) -> None:
        self.sides: dict[str, dict[Decimal, Decimal]] = {"b": {}, "a": {}}

    def take(self, frame: dict[str, Any]) -> None:
        data = frame["data"]
        if frame["type"] == "snapshot":
            self.sides = {"b": {}, "a": {}}
        for name, side in self.sides.items():
            for price, size in data[name]:
                side[Decimal(price)] = Decimal(size)
            for price in [price for price, size in side.items() if not size]:
                del side[price]

    def best(self, levels: int) -> tuple[Side, Side]:
        """Return the levels of both sides in units of 0.1 and 0.001."""
        bids = sorted(self.sides["b"].items(), reverse=True)[:levels]
        asks = sorted(self.sides["a"].items())[:levels]
        as_units = [[(int(p * 10), int(q * 1000)) for p, q in side] for side in (bids, asks)]
        return as_units[0], as_units[1]


def plain_books(
    frames: Iterable[dict[str, Any]], levels: int, every_ms: int
) -> dict[int, tuple[Side, Side]]:
    """Return the book of each time of the grid: all frames dated until then, a later one known."""
    book, found = PlainBook(), {}
    heard_ms: int | None = None
    for frame in frames:
        if heard_ms is not None:
            first = -(-heard_ms // every_ms) * every_ms
            for at_ms in range(first, frame["ts"], every_ms):
                found[at_ms] = book.best(levels)
        book.take(frame)
        heard_ms = frame["ts"]
    return found


def frame(
    kind: str, bids: Any, asks: Any, *, ts: int, u: int, topic: str = "orderbook.50.BTCUSDT"
) -> bytes:
    data = {"s": "BTCUSDT", "b": bids, "a": asks, "u": u, "seq": 1}
    return json.dumps({"topic": topic, "ts": ts, "type": kind, "data": data, "cts": ts}).encode()


def trained(books: Path, network: OrderBookConfig, folder: Path) -> Path:
    """Train *network* for three steps on a file of books; return the *folder* of its checkpoint."""
    options = BookFitOptions(steps=3, windows=1, threads=1)
    recipe = Recipe(estimators()[KIND], network, options, name="tiny")
    train(recipe, BookDataset.read([books]), folder, created_ms=0)
    return folder
