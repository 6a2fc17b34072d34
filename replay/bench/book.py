"""``bench book``: events of an order book a CPU second, with a limit that rests all the time.

An event is a changed level or a trade, as ``data check`` counts them. A broker alone, without
candles, strategy or record: a limit on each side is put to the touch once a minute and waits there
in its queue. Beside it stand the same frames with nothing at rest, and frames decoded alone.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from tracepaper.daemon.broker.account import BrokerSettings
from tracepaper.daemon.broker.book_fills import QueueModel, QueueRules
from tracepaper.daemon.broker.broker import Broker
from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.orders import Latency
from tracepaper.replay.archive.book_events import EventsHeader, EventsWriter, events_quality
from tracepaper.replay.backtest.book_feed import BookFeed, EventsSource
from tracepaper.replay.bench.ingest import BITCOIN
from tracepaper.replay.bench.machine import machine_line
from tracepaper.strategies.api.context import Orders, buy, sell
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Bar, BookUpdate, Instrument, Source
from tracepaper.strategies.units import MINUTE_MS, MONEY_SCALE

FIRST_MS: Final = 1_735_689_600_000
LEVELS: Final = 50
FRAME_MS: Final = 20
CHANGES: Final = 12
"""Levels that a generated frame sets: those of the exchange's own 42 s had 17."""


def measure_book(
    events: Path | None, *, frames: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Return events a CPU second over the file *events*, or over so many generated *frames*."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "generated.events" if events is None else events
        if events is None:
            tell(f"Generating {frames:,} frames.")
            generate(path, frames)
        quality = events_quality(path)
        count = quality.changes + quality.trades
        source = EventsSource(path)
        decoding, _ = _timed(lambda: sum(1 for _ in source.frames(source.header.instrument)))
        figures: dict[str, Any] = {"events": count, "frames": quality.frames}
        figures["decoded_per_cpu_s"] = count / decoding
        for name, model in (("nothing_rests", None), *((one.value, one) for one in QueueModel)):
            tell(f"{name}.")
            seconds, (updates, fills) = _timed(partial(_played, source, model))
            figures[f"{name}_per_cpu_s"] = count / seconds
            figures[f"{name}_steps_and_fills"] = f"{updates:,} and {fills:,}"
    return {**figures, "machine": machine_line()}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def _played(source: EventsSource, model: QueueModel | None) -> tuple[int, int]:
    """Let a limit on each side wait at the touch; return how many updates and fills there were."""
    item = source.header.instrument
    settings = BrokerSettings(
        FillModel.BOOK,
        ExecutionCosts(taker_fee=0),
        10**8 * MONEY_SCALE,
        Latency(0),
        queue=QueueRules(model or QueueModel.RISK_ADVERSE),
    )
    broker = Broker([item], settings, {})
    closes = range(source.first_ms + 1_000, source.last_ms + MINUTE_MS, MINUTE_MS)
    touch: tuple[int, int] | None = None
    updates = fills = 0
    books = BookFeed([source], [item], 0)
    for sequence, event in enumerate(
        books.between((_bar(item, at_ms) for at_ms in closes), broker.watch)
    ):
        if isinstance(event, BookUpdate):
            updates += 1
            fills += len(broker.on_book(event, sequence).fills)
            continue
        assert isinstance(event, Bar)
        touch = books.best(item.id)
        if model is None or touch is None:
            continue
        scale = 10.0**item.price_decimals
        quotes = (
            buy(1.0, limit=touch[0] / scale, tag="bid"),
            sell(1.0, limit=touch[1] / scale, tag="ask"),
        )
        priced = replace(event, close=touch[0])
        broker.submit(Orders(quotes, "bench"), priced, sequence=sequence, at_ms=event.market_ms)
    return updates, fills


def _bar(item: Instrument, at_ms: int) -> Bar:
    return Bar(
        item.id, at_ms - MINUTE_MS, MINUTE_MS, 1, 1, 1, 1, 0, 0, at_ms, at_ms, Source.ARCHIVE
    )


def generate(path: Path, frames: int) -> None:
    """Write so many seeded frames of a book of ``LEVELS`` a side, and a trade for every fourth."""
    topics = (f"orderbook.{LEVELS}.BTCUSDT", "publicTrade.BTCUSDT")
    rng, bid = random.Random(1), 650_000  # noqa: S311 - the same frames each time
    with EventsWriter(
        path, EventsHeader(instrument=BITCOIN, topics=topics, source="frames")
    ) as out:
        shown: list[dict[int, int]] = [{}, {}]
        for number in range(1, frames + 1):
            at_ms = FIRST_MS + number * FRAME_MS
            bid += rng.choice((-1, 0, 0, 0, 0, 0, 0, 1))
            changes = [
                _changed(rng, side, bid, is_ask=bool(place)) for place, side in enumerate(shown)
            ]
            data = {"s": "BTCUSDT", "b": changes[0], "a": changes[1], "u": number, "seq": number}
            kind = "snapshot" if number == 1 else "delta"
            frame = {"topic": topics[0], "type": kind, "ts": at_ms, "data": data, "cts": at_ms}
            out.add(at_ms, json.dumps(frame).encode())
            if number % 4 == 0:
                side, price = rng.choice((("Buy", bid + 1), ("Sell", bid)))
                trade = {
                    "T": at_ms, "s": "BTCUSDT", "S": side, "v": _size(rng.randint(1, 900)),
                    "p": _price(price), "i": str(number), "BT": False, "RPI": False,
                }  # fmt: skip
                batch = {"topic": topics[1], "type": "snapshot", "ts": at_ms, "data": [trade]}
                out.add(at_ms, json.dumps(batch).encode())


def _changed(
    rng: random.Random, side: dict[int, int], bid: int, *, is_ask: bool
) -> list[list[str]]:
    wanted = range(bid + 1, bid + 1 + LEVELS) if is_ask else range(bid, bid - LEVELS, -1)
    gone = [price for price in side if price not in wanted]
    for price in gone:
        del side[price]
    new = [price for price in wanted if price not in side]
    moved = [wanted[min(int(rng.expovariate(0.2)), LEVELS - 1)] for _ in range(CHANGES // 2)]
    for price in (*new, *moved):
        side[price] = rng.randint(1, 4_000)
    set_now = dict.fromkeys((*new, *moved))
    return [[_price(price), "0"] for price in gone] + [
        [_price(price), _size(side[price])] for price in set_now
    ]


def _price(units: int) -> str:
    return f"{units // 10}.{units % 10}"


def _size(units: int) -> str:
    return f"{units // 1_000}.{units % 1_000:03d}"
