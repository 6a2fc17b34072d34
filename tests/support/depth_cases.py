"""Seeded books, and books kept by a dictionary, for the tests of recorded depth."""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from builders import instrument
from bybit_server import SteppedClock, exchange_section
from exchange_client import candles, serving, walk_rows
from msgspec import structs
from programs import BIN, ROOT, Program
from waiting import until

from tracepaper.daemon.bybit.order_book import DepthRequest
from tracepaper.replay.archive.books import RecordedDepth, units_of
from tracepaper.replay.archive.download import record_live
from tracepaper.replay.archive.recordings import DepthWriter, RecordingHeader
from tracepaper.replay.exchange.server import EmbeddedExchange
from tracepaper.replay.learning.estimators.order_book import BookFitOptions
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.order_books import read_books
from tracepaper.replay.learning.recipe import Recipe, kinds
from tracepaper.replay.learning.training import train
from tracepaper.strategies.networks.order_book import OrderBookConfig
from tracepaper.strategies.order_book import BLOCK_BOOKS, KIND, SILENT_MS, Books, packed_books
from tracepaper.strategies.types.market import Category, Depth
from tracepaper.strategies.units import DAY_MS

BTC = structs.replace(instrument(), price_decimals=1, quantity_decimals=3, tick_size=1)
FIRST_MS = 1_735_689_600_000
Side = list[tuple[int, int]]


def packed(side: Side) -> bytes:
    return b"".join(struct.pack("<qq", price, size) for price, size in side)


def depth(bids: Side, asks: Side, seen_ms: int, *, age_ms: int = 3) -> Depth:
    return Depth(BTC.id, packed(bids), packed(asks), seen_ms - age_ms, seen_ms)


def header(
    levels: int = 5,
    every_ms: int = 1_000,
    source: str = "loopback",
    *,
    of: str = BTC.id,
    price_decimals: int = BTC.price_decimals,
) -> RecordingHeader:
    category, _, symbol = of.partition(":")
    item = instrument(symbol, Category(category), price_decimals=price_decimals, tick_size=1)
    return RecordingHeader(instrument=item, source=source, levels=levels, every_ms=every_ms)


def in_memory(of: RecordingHeader, books: Books) -> RecordedDepth:
    """Return *books* as a file of them would be read; a new stretch begins where times jump."""
    jumps = np.flatnonzero(np.diff(books.seen_ms) != of.every_ms) + 1
    blocks = []
    for begin, end in pairwise([0, *jumps.tolist(), len(books)]):
        for first in range(begin, end, BLOCK_BOOKS):
            part = books.part(first, min(first + BLOCK_BOOKS, end))
            cause = "" if first > begin else "stopped"
            blocks.append(
                packed_books(of.instrument.id, part, every_ms=of.every_ms, cause=cause, seen_ms=0)
            )
    return RecordedDepth(of, blocks, units_of(books), "")


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
) -> tuple[list[Depth], RecordingHeader]:
    """Return books of so many days whose mid moves as the book before leans."""
    rng = np.random.default_rng(4)
    books, bid = [], 10_000
    for row in range(int(days * DAY_MS / every_ms)):
        lean = int(rng.integers(0, 2))
        sizes = (50, 5) if lean else (5, 50)
        books.append(
            depth(
                [(bid, sizes[0]), (bid - 1, 9)],
                [(bid + 1, sizes[1]), (bid + 2, 9)],
                FIRST_MS + row * every_ms,
            )
        )
        bid += 1 if lean else -1
    return books, header(levels=2, every_ms=every_ms, source=source)


def write(
    path: Path, depths: Iterable[Depth], *, cause: str = "", of: RecordingHeader | None = None
) -> str:
    """Append *depths*, the first after *cause*; return what the writer found there."""
    with DepthWriter(path, header() if of is None else of) as writer:
        for number, book in enumerate(depths):
            writer.add(book, "" if number else cause)
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
    book, books = PlainBook(), {}
    heard_ms: int | None = None
    for frame in frames:
        if heard_ms is not None:
            first = -(-heard_ms // every_ms) * every_ms
            for at_ms in range(first, frame["ts"], every_ms):
                books[at_ms] = book.best(levels)
        book.take(frame)
        heard_ms = frame["ts"]
    return books


def frame(
    kind: str, bids: Any, asks: Any, *, ts: int, u: int, topic: str = "orderbook.50.BTCUSDT"
) -> bytes:
    data = {"s": "BTCUSDT", "b": bids, "a": asks, "u": u, "seq": 1}
    return json.dumps({"topic": topic, "ts": ts, "type": kind, "data": data, "cts": ts}).encode()


def trained(books: Path, network: OrderBookConfig, folder: Path) -> Path:
    """Train *network* for three steps on a file of books; return the *folder* of its checkpoint."""
    options = BookFitOptions(steps=3, windows=1, threads=1)
    recipe = Recipe(kinds()[KIND], network, options, name="tiny")
    train(recipe, read_books([books], network.horizons), FitRun(folder))
    return folder


# ---------------------------------------------------------------- recorders

SESSION = ROOT / "replay" / "samples" / "linear_session_2026-08-09_short.jsonl.gz"
BOOK = ([["100.0", "1"], ["99.9", "2"]], [["100.1", "3"], ["100.2", "4"]])


def snapshot(ts: int, u: int, sides: Any = BOOK) -> bytes:
    return frame("snapshot", *sides, ts=FIRST_MS + ts, u=u)


def delta(ts: int, u: int, bids: Any = (), asks: Any = ()) -> bytes:
    return frame("delta", bids, asks, ts=FIRST_MS + ts, u=u)


AGAIN = [snapshot(420, 20), delta(700, 21)]
GAPS = {
    "a missing frame": ([delta(250, 9), *AGAIN], "sequence"),
    "a frame twice": ([delta(250, 7), *AGAIN], "sequence"),
    "a snapshot of later": ([snapshot(250, 99), delta(700, 100)], "sequence"),
    "a restart of the service": ([snapshot(250, 1), delta(700, 2)], "sequence"),
    "a crossed book": ([delta(250, 8, [["100.1", "1"]]), *AGAIN], "refused"),
    "no number": ([delta(250, 8, [["NaN", "1"]]), *AGAIN], "refused"),
    "an infinite size": ([delta(250, 8, [["99.0", "1e999"]]), *AGAIN], "refused"),
    "another symbol": (
        [delta(250, 8).replace(b'"s": "BTC', b'"s": "ETH'), *AGAIN],
        "refused",
    ),
    "an empty side": (
        [delta(250, 8, [["100.0", "0"], ["99.9", "0"]]), delta(320, 9),
         delta(420, 10, [["98.0", "1"]]), delta(700, 11)],
        "empty",
    ),
    "time that goes back": ([delta(50, 8), delta(700, 9)], "clock"),
    "long silence": ([delta(SILENT_MS + 300, 8), delta(SILENT_MS + 700, 9)], "silent"),
}  # fmt: skip


class Live:
    """A recorder of the embedded exchange, whose time the test moves."""

    def __init__(self, exchange: EmbeddedExchange, out: Path, request: DepthRequest) -> None:
        self.exchange, self.out = exchange, out
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        section = exchange_section(
            rest_url=exchange.rest_url, stream_url=exchange.stream_url, ahead_ms=10**9
        )
        self.clock = SteppedClock(exchange.clock.now_ms())
        self._task = asyncio.create_task(
            record_live(section, request, out, clock=self.clock, done=self._done)
        )

    async def listening(self, *, again: bool = False) -> None:
        def listens() -> bool:
            assert not self._task.done(), self._task.result()
            if again:
                self.clock.advance(network_s=0.001)  # it waits before it connects again
            return any(
                "orderbook" in topic
                for connection in self.exchange.hub.connections
                for topic in connection.topics
            )

        await until(listens)

    async def end(self) -> str:
        self._done.set_result(None)
        return await self._task


REQUEST = DepthRequest(Category.LINEAR, "BTCUSDT", 50, 100)


async def recording(
    out: Path, work: Callable[[Live], Awaitable[None]], *, request: DepthRequest = REQUEST
) -> list[dict[str, Any]]:
    """Record while *work* is done; return the frames that another client was sent."""
    async with serving(candles(walk_rows(40)), start=3) as (exchange, client):
        live = Live(exchange, out, request)
        await live.listening()
        async with client.stream() as stream:
            await stream.subscribe("orderbook.50.BTCUSDT")
            await work(live)
            frames = [frame for frame in await stream.drain() if "topic" in frame]
        await live.end()
    return frames


FAULTS = {
    "delivery drop": "sequence",
    "wrong_frame crossed": "refused",
    "malformed": "refused",
    "delivery reorder": "sequence",
}
"""Kind and form of a fault of the exchange, and the cause of the gap that follows."""


def recorder(exchange: EmbeddedExchange, out: Path) -> Program:
    """Return the program that records *exchange* to *out* until it is told to stop."""
    command = [
        str(BIN / "tracepaper"), "data", "record", "BTCUSDT", "--url", exchange.rest_url,
        "--every", "100", "--depth", "20", "--out", str(out),
    ]  # fmt: skip
    patient = {"TRACEPAPER_EXCHANGE__AHEAD_MS": "600000"}
    return Program(command, out.parent, name="recorder", extra=patient)
