"""Recordings of events: every frame of a symbol's order book and trades, as received.

A block holds lines of a recorded session, ``{"t": "recv", "ts": seconds, "data": "the frame"}``,
and ``{"t": "gap", …}`` where frames are missing. ``data record --from`` reads it too.

The rules are docs/orderbook.md, D25 to D27.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from tracepaper.daemon.bybit.messages import decode_book
from tracepaper.daemon.bybit.order_book import FrameReader
from tracepaper.daemon.bybit.wire import BestQuotes, Trades
from tracepaper.replay.archive.recordings import (
    RecordingFile,
    RecordingGap,
    RecordingHeader,
    RecordingQuality,
    RecordingWriter,
)
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.order_book import SILENT_MS
from tracepaper.strategies.types.market import Depth
from tracepaper.strategies.units import iso

BLOCK_BYTES: Final = 256 * 1024
BLOCK_MS: Final = 10_000
"""A block is written at so many bytes or after so long, the most that a kill can lose."""
FRAME: Final = "recv"
GAP: Final = "gap"
NOT_RECORDED: Final = "outside"
"""The cause before the first frame of a recording, and after its last."""


class EventLine(Struct, frozen=True, omit_defaults=True):
    """One line: a frame with its receipt in UTC seconds, or the cause of a gap."""

    t: str
    ts: float
    data: str = ""
    cause: str = ""

    @property
    def received_ms(self) -> int:
        """The receipt in UTC milliseconds."""
        return round(self.ts * 1000)


class _FrameHeader(Struct):
    """The topic and the times of a frame."""

    topic: str = ""
    ts: int = 0


_encode: Final = msgspec.json.Encoder().encode
_decode_line: Final = msgspec.json.Decoder(EventLine).decode
_decode_date: Final = msgspec.json.Decoder(_FrameHeader).decode


class EventsFile(RecordingFile):
    """A file of events, read block by block."""

    is_sampled = False

    def lines(self) -> Iterator[EventLine]:
        """Yield every line in order; raise ``DataInvalid`` for what is no line."""
        end = self.begin
        for content, stop in self.members(end):
            for text in content.splitlines():
                try:
                    line = _decode_line(text)
                except (msgspec.MsgspecError, RecursionError) as error:
                    raise DataInvalid(
                        f"{self.path}, the block at byte {end:,}, holds no line of a session "
                        f"({error}); restore the file from a copy."
                    ) from None
                yield line
            end = stop

    @staticmethod
    def last_ms(block: bytes) -> float:
        """Return the receipt of the last line."""
        return _decode_line(block.splitlines()[-1]).ts * 1000

    def dates(self) -> Iterator[tuple[int, str, bool]]:
        """Yield per line: its date, the cause of a gap, and whether it is a frame of the book.

        A frame's date is the exchange's, at least that of the previous frame (M62). A gap's date is
        its receipt. Frames are not checked.
        """
        at_ms = 0
        for line in self.lines():
            if line.t == GAP:
                yield line.received_ms, line.cause, False
                continue
            try:
                dated = _decode_date(line.data)
            except (msgspec.MsgspecError, RecursionError):  # `received` rejects it
                dated = _FrameHeader()
            at_ms = max(at_ms, dated.ts)
            yield at_ms, "", dated.topic == self.header.topics[0]

    def received(self) -> Iterator[tuple[EventLine, BestQuotes | Trades | None]]:
        """Yield every line with its parsed frame, None for a gap; check each in order.

        Raises ``DataInvalid`` for a frame that a recorder rejects.
        """
        line = None

        def believed(server_ms: int) -> bool:
            assert line is not None
            return self._believes(line, server_ms)

        reader = FrameReader(self.header.instrument, self.header.topics, believed)
        for line in self.lines():
            if line.t == GAP:
                reader.forget()
                yield line, None
                continue
            yield line, self._read(reader, line)

    def _believes(self, line: EventLine, server_ms: int) -> bool:
        """Return True; raise ``DataInvalid`` if the frame of *line* cannot be from *server_ms*."""
        if server_ms > line.received_ms + self.header.ahead_ms:
            raise self._refused(
                line,
                f"it is dated {server_ms - line.received_ms:,} ms after its receipt, and at most "
                f"{self.header.ahead_ms:,} ms are believed (T13).",
            )
        return True

    def _read(self, reader: FrameReader, line: EventLine) -> BestQuotes | Trades:
        read = reader.read(line.data.encode())
        if reader.cause or not isinstance(read, BestQuotes | Trades):
            raise self._refused(line, reader.sentence or "it is of no topic of the file.")
        return read

    def _refused(self, line: EventLine, why: str) -> DataInvalid:
        return DataInvalid(
            f"{self.path} holds a frame received {iso(line.received_ms)} that no recorder keeps: "
            f"{why} Restore the file from a copy."
        )

    def standing(self, times: Iterable[int]) -> Iterator[Depth | str]:
        """Yield the current book at each of *times*, or the cause why it is unknown.

        *times* are ascending UTC milliseconds of the exchange's dates. A book is current until the
        next frame, at most ``SILENT_MS``. The cause is ``NOT_RECORDED``, that of a gap, ``silent``,
        or ``empty`` if a side has no level. Raises ``DataInvalid`` for a frame of the book that a
        recorder rejects.
        """
        topic, waiting, answers = self.header.topics[0], deque(times), list[Depth | str]()
        heard_ms, cause, line = 0, NOT_RECORDED, None

        def answer(until_ms: int) -> bool:
            """Yield the answers to the times before *until_ms*, the date of the current frame."""
            nonlocal heard_ms
            while waiting and waiting[0] < until_ms:
                at_ms = waiting.popleft()
                silent = "silent" if at_ms - heard_ms > SILENT_MS else ""
                book = None if cause or silent else reader.depth(at_ms)
                answers.append(book or cause or silent or "empty")
            heard_ms = until_ms
            return True

        def believed(server_ms: int) -> bool:
            assert line is not None
            return self._believes(line, server_ms) and answer(server_ms)

        reader = FrameReader(self.header.instrument, self.header.topics, believed)
        for line in self.lines():
            if line.t == GAP:
                if cause != NOT_RECORDED:
                    answer(heard_ms + 1)
                    cause = line.cause
                reader.forget()
            elif topic in line.data:
                self._read(reader, line)
                cause = ""
            yield from answers
            answers.clear()
            if not waiting:
                return
        if not cause:
            answer(heard_ms + 1)
        yield from answers
        yield from (NOT_RECORDED for _ in waiting)

    def quality(self) -> RecordingQuality:
        """Check every frame and summarise the file; raise ``DataInvalid``."""
        counted: Counter[str] = Counter()
        gaps: list[RecordingGap] = []
        late: list[float] = []
        first = last = None
        open_gap: tuple[int, str] | None = None
        for line, read in self.received():
            at_ms = line.received_ms
            if read is None:
                if last is not None and open_gap is None:
                    open_gap = (last, line.cause)
                continue
            first = at_ms if first is None else first
            if isinstance(read, BestQuotes):
                data = decode_book(line.data.encode()).data
                counted["changes"] += len(data.b) + len(data.a)
                if open_gap is not None:
                    gaps.append(RecordingGap(open_gap[0], at_ms, open_gap[1]))
                    open_gap = None
            else:
                counted["trades"] += len(read.trades)
            counted["frames"] += 1
            late.append(line.ts * 1000 - read.server_ms)
            last = at_ms
        missed_ms = sum(gap.until_ms - gap.from_ms for gap in gaps)
        median_ms, p99_ms = np.percentile(late, (50, 99)).tolist() if late else (None, None)
        return self._quality(
            gaps=tuple(gaps),
            first_ms=first,
            last_ms=last,
            recorded_ms=0 if first is None or last is None else last - first - missed_ms,
            items=counted["changes"] + counted["trades"],
            late_p50_ms=median_ms,
            late_p99_ms=p99_ms,
            **counted,
        )


class EventsWriter(RecordingWriter):
    """Appends lines."""

    reader = EventsFile

    def __init__(self, path: Path, header: RecordingHeader) -> None:
        self._held: Final[list[bytes]] = []
        self._bytes, self._begun_ms = 0, 0.0
        super().__init__(path, header)
        self._is_resumed = bool(self.last_ms)

    def add(self, received_ms: float, frame: bytes = b"", cause: str = "") -> None:
        """Append a *frame*, or the *cause* of a gap, received at *received_ms*.

        Raises ``DataInvalid`` if it is earlier than the last stored line.
        """
        self.reject_earlier(received_ms, again=self._is_resumed)
        if self._is_resumed:
            self._is_resumed = False
            self._hold(received_ms, EventLine(GAP, received_ms / 1000, cause="stopped"))
        kind = GAP if cause else FRAME
        self._hold(received_ms, EventLine(kind, received_ms / 1000, frame.decode(), cause))

    def _hold(self, received_ms: float, line: EventLine) -> None:
        if not self._held:
            self._begun_ms = received_ms
        self.last_ms = received_ms
        self._held.append(_encode(line) + b"\n")
        self._bytes += len(self._held[-1])
        if self._bytes >= BLOCK_BYTES or received_ms - self._begun_ms >= BLOCK_MS:
            self.flush()

    def flush(self) -> None:
        """Write the buffered lines as one block."""
        if self._held:
            self.append(b"".join(self._held))
            self._held.clear()
            self._bytes = 0
