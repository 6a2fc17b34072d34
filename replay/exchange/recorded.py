"""Recorded sessions played back; the registry of routes and topics.

A file is JSON lines, plain or gzipped: ``{"t": "recv", "ts": seconds, "data": "the frame"}``, or
bare frames, each timed by its ``ts``. Other lines and frames without a topic (acknowledgements,
pongs) are skipped. Time starts when the first client subscribes. A later client gets the last
snapshot of a topic and all deltas since, as on the exchange.

A new route or topic is a function decorated by ``route`` or ``topic`` in one of ``MODULES``; the
server, the command's listing and its page find it here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from tracepaper.daemon.bybit.instruments import recorded_instruments
from tracepaper.daemon.bybit.messages import ExchangeError
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.events import EventsFile
from tracepaper.replay.archive.recordings import recording_header
from tracepaper.replay.archive.tables import unpacked
from tracepaper.replay.exchange import answers, channels, quotes, reference
from tracepaper.replay.exchange.answers import CATEGORIES, Answer, Query, Route
from tracepaper.replay.exchange.channels import Channel, Due, Frame, Topic, TopicRequest
from tracepaper.replay.exchange.fault_kinds import FAULTS
from tracepaper.replay.exchange.instruments import list_instrument, parsed
from tracepaper.replay.exchange.market import Venue
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.market import EXCHANGE_CATEGORIES, Category
from tracepaper.strategies.units import MINUTE_MS

ROUTE_NOT_FOUND: Final = 10017
MODULES: Final = (answers, channels, quotes, reference)
_DECLARED: Final = [value for module in MODULES for value in vars(module).values()]
ROUTES: Final = {route.path: route for route in _DECLARED if isinstance(route, Route)}
"""Every route by its path."""
TOPICS: Final = {topic.name: topic for topic in _DECLARED if isinstance(topic, Topic)}
"""Every kind of topic by its name."""


def answer(venue: Venue, path: str, query: Query, now_ms: int) -> Answer:
    """Return the answer to *query* at *now_ms*, or an error, also for an unknown *path*."""
    route = ROUTES.get(path)
    if route is None:
        return ExchangeError(ROUTE_NOT_FOUND, "Route not found.")
    return route(venue, query, now_ms)


def find_channel(request: TopicRequest) -> Channel | None:
    """Return a new channel for *request*, or None for an unknown topic."""
    topic = TOPICS.get(request.name)
    return None if topic is None else topic.function(request)


def listing() -> dict[str, dict[str, str]]:
    """Return the meaning of every route with its parameters, every form of topic and every fault.

    Optional parameters are in brackets.
    """
    calls = {}
    for route in ROUTES.values():
        optional = (f"[{name}]" for name in route.optional)
        calls[" ".join((route.path, *route.required, *optional))] = route.meaning
    return {
        "routes": calls,
        "topics": {entry.form: entry.meaning for entry in TOPICS.values()},
        "faults": {
            f"{name} {form}".strip(): each.meaning
            for name, kind in FAULTS.items()
            for form, each in kind.forms.items()
        },
    }


RECEIVED: Final = "recv"
NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
FRAMES_READ: Final = 200
"""Frames of each topic that are read to find the decimals of its prices."""
PRICE_FIELDS: Final = ("p", "open", "high", "low", "close", "lastPrice", "bid1Price", "ask1Price")
SIZE_FIELDS: Final = ("v", "volume", "bid1Size", "ask1Size")


class RecordedFrame(msgspec.Struct, frozen=True):
    """One frame as received; fractions of its milliseconds keep the order of the session."""

    received_ms: float
    topic: str
    is_snapshot: bool
    body: bytes


class RecordedChannel(Channel):
    """One topic of a recording."""

    def __init__(self, topic: str, frames: list[RecordedFrame]) -> None:
        self.topic: Final = topic
        self._frames = frames

    def opening(self, now_ms: int) -> list[Frame]:
        """Return the last snapshot so far and the deltas since; nothing for trades."""
        past = [each for each in self._frames if each.received_ms <= now_ms]
        places = [place for place, each in enumerate(past) if each.is_snapshot]
        if not places or self.topic.startswith("publicTrade."):
            return []
        return [Frame(self.topic, each.body, each.received_ms) for each in past[places[-1] :]]

    def steps(self, from_ms: int) -> Iterator[Due]:
        """Yield the frames after *from_ms* at their own times."""
        for each in self._frames:
            if each.received_ms > from_ms:
                frame = Frame(self.topic, each.body, each.received_ms)
                yield each.received_ms, partial(list, [frame])


class Recording:
    """The frames of one category of a recorded session."""

    def __init__(self, frames: list[RecordedFrame], category: str, *, path: str) -> None:
        self.category: Final = category
        self._path = path
        self.start_ms: Final = int(frames[0].received_ms) - 1
        self.end_ms: Final = int(frames[-1].received_ms) + 1
        self._frames = frames
        self._topics: dict[str, list[RecordedFrame]] = {}
        for frame in frames:
            self._topics.setdefault(frame.topic, []).append(frame)

    @property
    def symbols(self) -> list[str]:
        """The symbols of the recording, in alphabetical order."""
        named = [topic for topic in self._topics if topic.partition(".")[0] in TOPICS]
        return sorted({topic.rpartition(".")[2] for topic in named})

    def channel(self, category: str, topic: str) -> Channel | None:
        """Return the channel of *topic*, or None where the session lacks it."""
        frames = self._topics.get(topic) if category == self.category else None
        return None if frames is None else RecordedChannel(topic, frames)

    def instruments(self) -> list[dict[str, Any]]:
        """Return the instruments of the symbols: recorded ones, else derived from the frames."""
        return [self._instrument(symbol) for symbol in self.symbols]

    def _instrument(self, symbol: str) -> dict[str, Any]:
        recorded = recorded_instruments() if self.category == "linear" else {}
        if symbol in recorded:
            return recorded[symbol]
        prices: list[str] = []
        sizes: list[str] = []
        for topic, frames in self._topics.items():
            if topic.rpartition(".")[2] == symbol:
                for frame in frames[:FRAMES_READ]:
                    _figures(msgspec.json.decode(frame.body).get("data"), prices, sizes)
        price, decimals = _finest(prices)
        size, size_decimals = _finest(sizes)
        column = np.array([price], dtype=np.int64)
        candles = Candles(
            path=self._path,
            category=Category(self.category),
            symbol=symbol,
            interval_ms=MINUTE_MS,
            price_decimals=decimals,
            volume_decimals=size_decimals,
            turnover_decimals=0,
            open_time_ms=np.array([self.start_ms], dtype=np.int64),
            open=column,
            high=column,
            low=column,
            close=column,
            volume=np.array([size], dtype=np.int64),
            turnover=None,
        )
        return list_instrument(candles).item

    def frames(self, *topics: str) -> list[RecordedFrame]:
        """Return the frames of *topics* in order; none where the session lacks them."""
        return [frame for frame in self._frames if frame.topic in topics]

    def book_topic(self, symbol: str, levels: int) -> str:
        """Return the shallowest book topic of *symbol* with at least *levels* levels a side.

        Raises ``ConfigInvalid`` where no book is that deep, ``DataInvalid`` where there is no book.
        """
        named = [topic.split(".") for topic in self._topics if topic.startswith("orderbook.")]
        depths = sorted(
            int(depth) for _, depth, name in named if name == symbol and depth.isdecimal()
        )
        if deep_enough := [depth for depth in depths if depth >= levels]:
            return f"orderbook.{deep_enough[0]}.{symbol}"
        if depths:
            raise ConfigInvalid(
                f"{self._path} holds {depths[-1]} levels of {symbol}; give --depth {depths[-1]} or "
                "less."
            )
        raise DataInvalid(
            f"{self._path} holds no order book of {symbol}; its symbols are "
            f"{', '.join(self.symbols) or 'none'}."
        )

    def candles(self, symbol: str, interval: str, now_ms: int) -> list[list[str]]:
        """Return the candles in the session's frames up to *now_ms*, newest first."""
        rows: dict[int, list[str]] = {}
        for frame in self._topics.get(f"kline.{interval}.{symbol}", []):
            if frame.received_ms > now_ms:
                break
            for each in msgspec.json.decode(frame.body)["data"]:
                names = ("open", "high", "low", "close", "volume", "turnover")
                rows[each["start"]] = [str(each["start"]), *(each[name] for name in names)]
        return [rows[start] for start in sorted(rows, reverse=True)]


def read_recording(path: Path, category: Category | None = None) -> Recording:
    """Return the recording in the file at *path*, or raise ``DataInvalid``.

    Its category is *category*, else the one in the recorded addresses, else linear.
    """
    frames: list[RecordedFrame] = []
    categories: set[str] = set()
    for number, line in enumerate(_text_of(path).splitlines(), 1):
        try:
            entry = _entry(line)
            named = str(entry.get("addr", "")).rpartition("/")[2]
            if entry.get("t") == "recording":
                named = entry["instrument"]["category"]
            if named in CATEGORIES:
                categories.add(named)
            if entry.get("t") == RECEIVED and (frame := _frame(entry)):
                frames.append(frame)
        except (msgspec.DecodeError, RecursionError, KeyError, TypeError, ValueError) as error:
            raise DataInvalid(
                f"{path}, line {number}: not a recorded frame ({error}); give JSON lines of t, "
                "ts and data."
            ) from None
    if len(categories) > 1:
        raise DataInvalid(
            f"{path} holds frames of {' and '.join(sorted(categories))}: record each alone."
        )
    if category is not None:
        categories = {category.value}
    if not categories <= set(EXCHANGE_CATEGORIES):
        raise DataInvalid(f"{path} holds frames of {categories.pop()}: give linear or spot ones.")
    if not frames:
        raise DataInvalid(f"{path} holds no received frame with a topic: give another session.")
    frames.sort(key=lambda each: each.received_ms)
    return Recording(
        frames, categories.pop() if categories else Category.LINEAR.value, path=str(path)
    )


def _text_of(path: Path) -> bytes:
    """Return the text of the file at *path*; of a recording, only the complete members."""
    if recording_header(path):
        return b"".join(content for content, _ in EventsFile(path).members())
    return unpacked(path)[1]


def _entry(line: bytes) -> dict[str, Any]:
    """Return one line as an entry of t, ts, addr and data."""
    if not line.strip():
        return {}
    entry = msgspec.json.decode(line, type=dict[str, Any])
    if "topic" in entry and isinstance(entry.get("ts"), int):  # a bare frame
        return {"t": RECEIVED, "ts": entry["ts"] / 1000, "data": line.decode()}
    return entry


def _figures(data: object, prices: list[str], sizes: list[str]) -> None:
    """Append the prices and sizes in a frame's *data*, found by the names of their fields."""
    for element in data if isinstance(data, list) else [data]:
        if not isinstance(element, dict):
            continue
        levels = [level for side in ("b", "a") for level in element.get(side, ())]
        pairs = [level[:2] for level in levels if isinstance(level, list) and len(level) > 1]
        texts = [price for price, _ in pairs] + [element.get(name) for name in PRICE_FIELDS]
        prices += [text for text in texts if isinstance(text, str) and NUMBER.fullmatch(text)]
        texts = [size for _, size in pairs] + [element.get(name) for name in SIZE_FIELDS]
        sizes += [text for text in texts if isinstance(text, str) and NUMBER.fullmatch(text)]


def _finest(texts: list[str]) -> tuple[int, int]:
    """Return the first positive number of *texts*, else 1, scaled to the finest decimals of all."""
    pairs = [parsed(text) for text in texts or ["1"]]
    decimals = max(places for _, places in pairs)
    value, places = next((pair for pair in pairs if pair[0] > 0), (1, 0))
    return value * 10 ** (decimals - places), decimals


def _frame(entry: dict[str, Any]) -> RecordedFrame | None:
    """Return the frame of one received line, or None where it has no topic."""
    text: str = entry["data"]
    content = msgspec.json.decode(text, type=dict[str, Any])
    if "topic" not in content:
        return None
    return RecordedFrame(
        received_ms=float(entry["ts"]) * 1000,
        topic=str(content["topic"]),
        is_snapshot=content.get("type") == "snapshot",
        body=text.encode(),
    )
