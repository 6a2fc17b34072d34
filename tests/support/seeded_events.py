"""Minutes of a seeded book with its trades, and the candles of those trades, as files."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from depth_cases import BTC, FIRST_MS
from msgspec import structs

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive.events import EventsWriter
from tracepaper.replay.archive.recordings import RecordingHeader
from tracepaper.strategies.types.market import Instrument

MINUTE_MS = 60_000
LEVELS = 12
ITEM: Instrument = structs.replace(BTC, volume_decimals=3)


class SeededMarket(NamedTuple):
    """Candles, and the events of the book that they were traded at."""

    candles: Path
    events: Path


def by_book(
    strategy: str = "recorded_strategies:Quoter",
    options: Mapping[str, object] = MappingProxyType({}),
    **execution: Any,
) -> Config:
    """Return the configuration of a run whose orders the recorded book fills."""
    given: dict[str, Any] = {
        "market": {"symbols": ["BTCUSDT"], "interval": "1"},
        "strategy": {"name": strategy, "options": dict(options)},
        "account": {"cash": "100000000"},
        "execution": {"model": "book", **execution},
    }
    return load(None, given)


def seeded_market(
    folder: Path,
    *,
    minutes: int = 30,
    every_ms: int = 500,
    seed: int = 1,
    gap: tuple[int, int] = (0, 0),
    is_silent: bool = False,
    item: Instrument = ITEM,
) -> SeededMarket:
    """Write so many *minutes* of a walk; between the minutes of *gap* nothing was recorded.

    Where it *is_silent*, no frame of the book is missing there: the exchange sent trades alone.
    """
    rng, bid, number = random.Random(seed), 650_000, 0
    rows: list[list[object]] = []
    header = RecordingHeader(
        instrument=item,
        topics=(f"orderbook.50.{item.symbol}", f"publicTrade.{item.symbol}"),
        source="frames",
        ahead_ms=600_000,
    )
    sides: list[dict[int, int]] = [{}, {}]
    levels: list[dict[int, int]] = [{}, {}]
    sent, missed = levels, range(*gap)
    path = folder / "seeded.events"
    with EventsWriter(path, header) as writer:
        is_known = False
        for minute in range(minutes):
            prices, volume = [], 0
            for at_ms in range(
                FIRST_MS + minute * MINUTE_MS, FIRST_MS + (minute + 1) * MINUTE_MS, every_ms
            ):
                bid += rng.choice((-1, 0, 0, 0, 1))
                for place, side in enumerate(sides):
                    wanted = [
                        bid - level if place == 0 else bid + 1 + level for level in range(LEVELS)
                    ]
                    _move(side, wanted, rng)
                levels = [dict(side) for side in sides]
                taker = rng.choice(("Buy", "Sell"))
                price = bid + 1 if taker == "Buy" else bid
                size = rng.randint(1, 900)
                hit = sides[1 if taker == "Buy" else 0]
                hit[price] = max(hit[price] - size, 1)  # the next frame shows it
                prices.append(price)
                volume += size
                is_missed = minute in missed
                if is_missed and not is_silent:
                    if is_known:
                        writer.add(at_ms, cause="disconnected")
                    is_known = False
                    continue
                if not is_missed:
                    number += 1
                    frame = _frame(item, number, at_ms, levels, sent if is_known else None)
                    writer.add(at_ms, json.dumps(frame).encode())
                    is_known, sent = True, levels
                trade = {
                    "T": at_ms + 1, "s": item.symbol, "S": taker, "v": _size(size),
                    "p": _price(price), "i": str(number), "BT": False, "RPI": False,
                }  # fmt: skip
                batch = {"topic": header.topics[1], "type": "snapshot", "ts": at_ms + 1}
                writer.add(at_ms + 1, json.dumps({**batch, "data": [trade]}).encode())
            opened = FIRST_MS + minute * MINUTE_MS
            of_minute = (prices[0], max(prices), min(prices), prices[-1])
            rows.append([opened, *map(_price, of_minute), _size(volume)])
    candles = folder / f"{item.symbol}_1m.csv.gz"
    with gzip.open(candles, "wt", newline="") as file:
        out = csv.writer(file)
        out.writerow(["open_time", "open", "high", "low", "close", "volume"])
        out.writerows(rows)
    return SeededMarket(candles, path)


def _move(side: dict[int, int], wanted: list[int], rng: random.Random) -> None:
    """Let *side* of the book hold the prices that are *wanted*."""
    for price in set(side) - set(wanted):
        del side[price]
    for price in wanted:
        if price not in side:
            side[price] = rng.randint(1, 4_000)
        elif rng.random() < 0.3:  # somebody joins or cancels
            side[price] = max(side[price] + rng.randint(-600, 600), 1)


def _frame(
    item: Instrument,
    number: int,
    at_ms: int,
    sides: list[dict[int, int]],
    before: list[dict[int, int]] | None,
) -> dict[str, object]:
    changes = []
    for side, old in zip(sides, before or [{}, {}], strict=True):
        changed = {price: size for price, size in side.items() if old.get(price) != size}
        changed |= dict.fromkeys(set(old) - set(side), 0)
        changes.append([[_price(price), _size(size)] for price, size in sorted(changed.items())])
    data = {"s": item.symbol, "b": changes[0], "a": changes[1], "u": number, "seq": number}
    kind = "snapshot" if before is None else "delta"
    topic = f"orderbook.50.{item.symbol}"
    return {"topic": topic, "type": kind, "ts": at_ms, "cts": at_ms, "data": data}


def _price(units: int) -> str:
    return f"{units // 10}.{units % 10}"


def _size(units: int) -> str:
    return f"{units // 1_000}.{units % 1_000:03d}"
