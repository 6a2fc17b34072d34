"""Recorded frames as channels: a session played back verbatim, at its own times.

A file is JSON lines, also gzipped: ``{"t": "recv", "ts": seconds, "data": "the frame"}``; lines
of other kinds and frames without a topic (acknowledgements, pongs) are the session's own and are
left out. Time starts with the recording when the first client subscribes. A client that comes
later is sent the last snapshot of a topic and all deltas since, as the exchange does.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from tracepaper.replay.exchange.channels import Channel, Due, Frame
from tracepaper.replay.exchange.instruments import recorded as recorded_instruments
from tracepaper.strategies.errors import DataInvalid

GZIP_MAGIC: Final = b"\x1f\x8b"
RECEIVED: Final = "recv"


class RecordedFrame(msgspec.Struct, frozen=True):
    """One frame as it came; its time has fractions, which keep the order of the session."""

    received_ms: float
    topic: str
    is_snapshot: bool
    body: bytes


class RecordedChannel:
    """One topic of a recording."""

    def __init__(self, topic: str, frames: list[RecordedFrame]) -> None:
        self.topic: Final = topic
        self._frames = frames

    def opening(self, now_ms: int) -> list[Frame]:
        """Return the last snapshot so far and the deltas since; of trades nothing."""
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

    def reset(self) -> None:
        """Do nothing: a recording has no state."""


class Recording:
    """A session of one category's frames."""

    def __init__(self, frames: list[RecordedFrame], category: str) -> None:
        self.category: Final = category
        self.start_ms: Final = int(frames[0].received_ms) - 1
        self.end_ms: Final = int(frames[-1].received_ms) + 1
        self._topics: dict[str, list[RecordedFrame]] = {}
        for frame in frames:
            self._topics.setdefault(frame.topic, []).append(frame)

    @property
    def symbols(self) -> list[str]:
        """The symbols of the recording, in alphabetical order."""
        return sorted({topic.rpartition(".")[2] for topic in self._topics})

    def channel(self, category: str, topic: str) -> Channel | None:
        """Return the channel of *topic*, or None where the session did not hold it."""
        frames = self._topics.get(topic) if category == self.category else None
        return None if frames is None else RecordedChannel(topic, frames)

    def instruments(self) -> list[dict[str, Any]]:
        """Return the recorded instruments of the session's symbols."""
        known = recorded_instruments() if self.category == "linear" else {}
        return [known[symbol] for symbol in self.symbols if symbol in known]

    def candles(self, symbol: str, interval: str, now_ms: int) -> list[list[str]]:
        """Return the candles that the session's frames have shown by *now_ms*, newest first."""
        rows: dict[int, list[str]] = {}
        for frame in self._topics.get(f"kline.{interval}.{symbol}", []):
            if frame.received_ms > now_ms:
                break
            for each in msgspec.json.decode(frame.body)["data"]:
                names = ("open", "high", "low", "close", "volume", "turnover")
                rows[each["start"]] = [str(each["start"]), *(each[name] for name in names)]
        return [rows[start] for start in sorted(rows, reverse=True)]


def read_recording(path: Path) -> Recording:
    """Return the recording in the file at *path*, or raise ``DataInvalid``."""
    try:
        packed = path.read_bytes()
        text = gzip.decompress(packed) if packed.startswith(GZIP_MAGIC) else packed
    except (OSError, EOFError, zlib.error) as error:
        raise DataInvalid(f"{path} cannot be read ({error}): give a recorded session.") from None
    frames: list[RecordedFrame] = []
    category = "linear"
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entry = msgspec.json.decode(line, type=dict[str, Any])
            address = entry.get("addr", "")
            category = address.rpartition("/")[2] or category
            if entry.get("t") == RECEIVED and (frame := _frame(entry)):
                frames.append(frame)
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise DataInvalid(
                f"{path}, line {number}: not a recorded frame ({error}); give JSON lines of t, "
                "ts and data."
            ) from None
    if not frames:
        raise DataInvalid(f"{path} holds no received frame with a topic: give another session.")
    frames.sort(key=lambda each: each.received_ms)
    return Recording(frames, category)


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
