"""A hand-made book: scripts of frames, trades and orders, played through a file of events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from builders import bar, instrument, present
from msgspec import structs

from tracepaper.daemon.broker.book_fills import QueueModel, QueuePlace, QueueRules
from tracepaper.daemon.broker.broker import NO_OWNER_INTENTS, Broker
from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.ledger import FilledEvent
from tracepaper.daemon.broker.settings import BrokerSettings, Latency
from tracepaper.replay.archive.events import EventsWriter
from tracepaper.replay.archive.recordings import RecordingHeader
from tracepaper.replay.backtest.book_feed import BookFeed, EventsSource, FillSource
from tracepaper.strategies.api.context import Cancel, OrderRequest, Orders
from tracepaper.strategies.types.decisions import Fill, FillModel, Order
from tracepaper.strategies.types.market import Bar, BookUpdate, Event, Instrument
from tracepaper.strategies.units import MONEY_SCALE

BTC = structs.replace(
    instrument(), price_decimals=0, quantity_decimals=0, volume_decimals=0, tick_size=1
)
KEY = BTC.id
T0 = 1_735_689_600_000
BOOK = f"orderbook.50.{BTC.symbol}"
TRADES = f"publicTrade.{BTC.symbol}"
Sizes = dict[int, int]


class Say(NamedTuple):
    """One line of a script, at so many milliseconds after ``T0``."""

    at: int
    what: str  # book, set, trade, gap or send
    content: Any


def book(at: int, bids: Sizes, asks: Sizes) -> Say:
    """Show a whole book."""
    return Say(at, "book", (bids, asks))


def shows(at: int, bids: Sizes | None = None, asks: Sizes | None = None) -> Say:
    """Set single levels; a size of 0 removes one."""
    return Say(at, "set", (bids or {}, asks or {}))


def trade(at: int, taker: str, price: int, size: int, **flags: bool) -> Say:
    """Let a taker trade; *flags* are ``BT`` and ``RPI``."""
    return Say(at, "trade", [(taker, price, size, flags)])


def gap(at: int, cause: str = "disconnected") -> Say:
    """Miss what happens until the next whole book."""
    return Say(at, "gap", cause)


def send(at: int, *requests: OrderRequest | Cancel) -> Say:
    """Decide at a close, and send *requests*."""
    return Say(at, "send", requests)


def events_file(path: Path, script: Sequence[Say], item: Instrument = BTC) -> Path:
    """Write the frames and gaps of *script* as `data record --events` would."""
    path.unlink(missing_ok=True)
    header = RecordingHeader(
        instrument=item, topics=(BOOK, TRADES), source="loopback", ahead_ms=600_000
    )
    number = 0
    with EventsWriter(path, header) as writer:
        for line in script:
            at_ms = T0 + line.at
            if line.what == "gap":
                writer.add(at_ms, cause=line.content)
            elif line.what in {"book", "set"}:
                number += 1
                bids, asks = (
                    [[str(price), str(size)] for price, size in side.items()]
                    for side in line.content
                )
                data = {"s": item.symbol, "b": bids, "a": asks, "u": number, "seq": number}
                kind = "snapshot" if line.what == "book" else "delta"
                frame = {"topic": BOOK, "type": kind, "ts": at_ms, "cts": at_ms, "data": data}
                writer.add(at_ms, json.dumps(frame).encode())
            elif line.what == "trade":
                rows = [
                    {
                        "T": at_ms, "s": item.symbol, "S": taker, "v": str(size), "p": str(price),
                        "i": str(number), "BT": False, "RPI": False, **flags,
                    }
                    for taker, price, size, flags in line.content
                ]  # fmt: skip
                frame = {"topic": TRADES, "type": "snapshot", "ts": at_ms, "data": rows}
                writer.add(at_ms, json.dumps(frame).encode())
    return path


def settings(**keys: Any) -> BrokerSettings:
    """Return settings of an account that an order book fills, without fees."""
    plain = BrokerSettings(
        FillModel.BOOK,
        ExecutionCosts(taker_fee=0),
        10**6 * MONEY_SCALE,
        Latency(keys.pop("latency_ms", 0)),
        queue=QueueRules(keys.pop("model", QueueModel.RISK_ADVERSE), keys.pop("exponent", 1)),
    )
    return structs.replace(plain, **keys)


class ScriptResult:
    """What became of a script: its fills, its orders, and the updates that were events."""

    def __init__(
        self,
        source: FillSource,
        script: Sequence[Say],
        *,
        item: Instrument = BTC,
        response_ms: int = 0,
        feed: Callable[[BookFeed, Iterator[Event], Broker], Iterator[Event]] | None = None,
        **keys: Any,
    ) -> None:
        self.broker = Broker([item], settings(**keys), {})
        self.fills: list[Fill] = []
        self.orders: dict[str, Order] = {}
        self.updates: list[BookUpdate] = []
        sent = {T0 + line.at: line.content for line in script if line.what == "send"}
        last_ms = T0 + max(line.at for line in script) + response_ms
        closes = sorted({*sent, last_ms})
        books = BookFeed([source], [item], response_ms)
        for sequence, event in enumerate(
            books.between(map(_bar_closing, closes), self.broker.watch)
        ):
            self.broker.step.number = sequence
            if isinstance(event, BookUpdate):
                self.updates.append(event)
                self.broker.on_book(event)
                self._note(self.broker.take())
                continue
            assert isinstance(event, Bar)
            self._note(self.broker.on_bar(event))
            if requests := sent.get(event.market_ms):
                self.broker.route(
                    Orders(tuple(requests), "asked"), NO_OWNER_INTENTS, event, event.market_ms
                )
                self._note(self.broker.take())

    def _note(self, filled: FilledEvent) -> None:
        self.fills += filled.fills
        self.orders |= {order.order_id: order for order in filled.orders}

    @property
    def places(self) -> list[QueuePlace]:
        """Return the places of the account's limits, as they are in the end."""
        queues = present(self.broker.account.line(KEY).queues)
        return [*queues.places.values()]

    @property
    def rows(self) -> list[tuple[int, str, int, int, str]]:
        """Return each fill: milliseconds, side, price, quantity, and M or T."""
        return [
            (
                fill.filled_ms - T0,
                fill.side.value.lower(),
                fill.price,
                fill.quantity,
                fill.liquidity[0],
            )
            for fill in self.fills
        ]

    @property
    def ends(self) -> list[tuple[str, int]]:
        """Return of each order its status and what of it was filled, in order of birth."""
        return [(order.status.value, order.filled) for order in self.orders.values()]


def _bar_closing(at_ms: int) -> Bar:
    template = bar(100, index=0)
    return structs.replace(
        template,
        instrument=KEY,
        open_time_ms=at_ms - template.interval_ms,
        market_ms=at_ms,
        seen_ms=at_ms,
    )


def played(path: Path, script: Sequence[Say], **keys: Any) -> ScriptResult:
    """Play *script* through a file of events at *path*."""
    return ScriptResult(EventsSource(events_file(path, script)), script, **keys)
