"""Measures frames per CPU second, from bytes to typed bars.

    python tests/benchmarks/ingest.py

Every frame carries one closed candle, the most expensive kind: a minute of the bundled candles in
the exchange's format (numbers as text, without trailing zeros). Frames at the roll, with two
candles, and frames of an open candle, the majority of a live stream, are measured too. Routes are
interleaved; each figure is the median process CPU time of the rounds. Decoding alone is measured
for a ratio that hardly depends on the machine.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

from tracepaper.daemon.bybit.messages import decode_kline
from tracepaper.daemon.bybit.wire import Wire
from tracepaper.replay.bench.machine import Route, interleaved, machine_line
from tracepaper.replay.samples import DEMO_CANDLES
from tracepaper.strategies.types.market import Category, Instrument
from tracepaper.strategies.units import MINUTE_MS, without_zeros

BITCOIN: Final = Instrument(
    Category.LINEAR, "BTCUSDT", "BTC", "USDT", 1, 3, 8, 8, 1, 1, 1, 150_000, 5 * 10**10, 480
)


def measure_ingest() -> dict[str, Any]:
    """Return the frames per CPU second of each route, and the machine.

    ``ratio_msgspec`` is tracepaper's cost as a multiple of decoding alone.
    """
    closing = closing_frames()
    wire = Wire(category=Category.LINEAR, instruments=[BITCOIN], interval_ms=MINUTE_MS)

    def over(read: Callable[[bytes], object], frames: Sequence[bytes]) -> Route:
        def route() -> None:
            for frame in frames:
                read(frame)

        return route

    seconds = interleaved(
        {
            "tracepaper": over(wire.receive, closing),
            "msgspec": over(decode_kline, closing),
            "roll": over(wire.receive, roll_frames(closing)),
            "open": over(wire.receive, open_frames(closing)),
        }
    )
    return {
        "frames": len(closing),
        "frames_per_cpu_s": {name: len(closing) / spent for name, spent in seconds.items()},
        "ratio_msgspec": seconds["tracepaper"] / seconds["msgspec"],
        "machine": machine_line(),
    }


def closing_frames() -> list[bytes]:
    """Return the frame that the exchange sends at the close of each bundled minute."""
    with gzip.open(DEMO_CANDLES, "rt", encoding="utf-8", newline="") as lines:
        return [_frame(row) for row in csv.DictReader(lines)]


def _frame(row: dict[str, str]) -> bytes:
    """Return the closing frame of one row; its turnover is volume times close."""
    start = int(row["open_time"])
    sent_ms = start + MINUTE_MS + 441
    texts = {name: without_zeros(row[name]) for name in ("open", "close", "high", "low", "volume")}
    texts["turnover"] = without_zeros(str(Decimal(row["volume"]) * Decimal(row["close"])))
    numbers = ",".join(f'"{name}":"{text}"' for name, text in texts.items())
    return (
        f'{{"topic":"kline.1.BTCUSDT","data":[{{"start":{start},"end":{start + MINUTE_MS - 1},'
        f'"interval":"1",{numbers},"confirm":true,"timestamp":{sent_ms}}}],'
        f'"ts":{sent_ms},"type":"snapshot"}}'
    ).encode()


def open_frames(closing: Sequence[bytes]) -> list[bytes]:
    """Return the same frames with their candles still open."""
    return [frame.replace(b'"confirm":true', b'"confirm":false') for frame in closing]


def roll_frames(closing: Sequence[bytes]) -> list[bytes]:
    """Return frames with the closed and the new candle, as the category linear sends them."""
    frames = []
    for frame in closing:
        parts = json.loads(frame)
        (closed,) = parts["data"]
        new = dict.fromkeys(("open", "close", "high", "low"), closed["close"])
        start = closed["start"] + MINUTE_MS
        times = {"start": start, "end": start + MINUTE_MS - 1, "interval": "1"}
        rest = {"volume": "0", "turnover": "0", "confirm": False, "timestamp": parts["ts"]}
        parts["data"].append(times | new | rest)
        frames.append(json.dumps(parts, separators=(",", ":")).encode())
    return frames


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure_ingest(), indent=1) + "\n")
