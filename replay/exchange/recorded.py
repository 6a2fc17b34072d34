"""Reads recorded sessions, for ``data record --from``.

A file is JSON lines, plain or gzipped: ``{"t": "recv", "ts": seconds, "data": "the frame"}``, or
bare frames, each timed by its ``ts``. Other lines and frames without a topic (acknowledgements,
pongs) are skipped.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from tracepaper.daemon.bybit.instruments import recorded_instruments
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.tables import unpacked
from tracepaper.replay.exchange.answers import CATEGORIES
from tracepaper.replay.exchange.instruments import list_instrument, parsed
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.market import EXCHANGE_CATEGORIES, Category
from tracepaper.strategies.units import MINUTE_MS

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
    body: bytes


class Recording:
    """The frames of one category of a recorded session."""

    def __init__(self, frames: list[RecordedFrame], category: str, *, path: str) -> None:
        self.category: Final = category
        self._path = path
        self._start_ms = int(frames[0].received_ms)
        self._topics: dict[str, list[RecordedFrame]] = {}
        for frame in frames:
            self._topics.setdefault(frame.topic, []).append(frame)

    def instrument(self, symbol: str) -> dict[str, Any]:
        """Return the instrument of *symbol*: a recorded one, else derived from the frames."""
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
            open_time_ms=np.array([self._start_ms], dtype=np.int64),
            open=column,
            high=column,
            low=column,
            close=column,
            volume=np.array([size], dtype=np.int64),
            turnover=None,
        )
        return list_instrument(candles).item

    def frames(self, topic: str) -> list[RecordedFrame]:
        """Return the frames of *topic* in order."""
        return self._topics[topic]

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
            f"{self._path} holds no order book of {symbol}, only of "
            f"{', '.join(sorted({name for *_, name in named})) or 'no symbol'}."
        )


def read_recording(path: Path, category: Category | None = None) -> Recording:
    """Return the recording in the file at *path*, or raise ``DataInvalid``.

    Its category is *category*, else the one in the recorded addresses, else linear.
    """
    frames: list[RecordedFrame] = []
    categories: set[str] = set()
    for number, line in enumerate(unpacked(path)[1].splitlines(), 1):
        try:
            entry = _entry(line)
            named = str(entry.get("addr", "")).rpartition("/")[2]
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
        body=text.encode(),
    )
