"""One decision as a picture: price, rollout, order book map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from tracepaper.replay.document.charts import (
    Chart,
    ChartPanel,
    MarkLayer,
    close_panel,
    held_steps,
    percent_axis,
    rounded,
    time_axis,
)
from tracepaper.replay.document.values import Form, Paragraph, Part, Table, Value, table_of
from tracepaper.replay.explain.decision import StoredDecision
from tracepaper.replay.explain.order_book import BookMap
from tracepaper.replay.explain.tables import ADDED, LOOKED
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.networks.order_book import MOVES
from tracepaper.strategies.order_book import SIDES
from tracepaper.strategies.types.decisions import BLOCK_BARS
from tracepaper.strategies.units import duration, iso, unscaled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def blocks_chart(database: Path, stored: StoredDecision) -> Chart:
    """Draw the close, and under it the stored share of each block of bars.

    Raises ``DataInvalid`` where the decision has no attribution.
    """
    if stored.no_attribution is not None:
        raise DataInvalid(
            f"{stored.no_attribution} There is no attribution to draw; choose another."
        )
    rows = [row for row in stored.buckets if row["bucket"] != "older"]
    rows.sort(key=lambda row: row["from_open_time_ms"])
    decision, run_id = stored.decision, stored.run["run_id"]
    name, sequence = decision["instrument"], decision["sequence"]
    with Reader.open(database) as reader:
        (item,) = (each for each in reader.run(run_id).instruments if each.id == name)
        bars = reader.bars(run_id, name, BLOCK_BARS * len(rows), until=sequence)
    starts = [row["from_open_time_ms"] for row in rows]
    bars = [bar for bar in bars if bar.closed_ms > starts[0]]
    times = [bar.closed_ms for bar in bars]
    closes = np.array([bar.close for bar in bars]) / 10**item.price_decimals
    shares = rounded([100 * row["weight"] for row in rows])
    what, words = ("relevance", ADDED) if stored.is_relevance else ("attention", LOOKED)
    line = held_steps(what, starts, rows[-1]["until_open_time_ms"], shares)
    up = percent_axis(f"{what} in 64 bars, %")
    panels = [decided_panel(times, closes.tolist(), 190), ChartPanel([line], time_axis(), up, 150)]
    return Chart(
        "",
        f"Price and {what if stored.is_relevance else 'rollout'}: {words}.",
        panels,
        is_aligned=True,
    )


def decided_panel(times: Sequence[int], closes: Sequence[float], height: int) -> ChartPanel:
    """Return a panel of the price with a mark at the decided bar, the last."""
    panel = close_panel(times, closes, height)
    mark = MarkLayer("decided bar", times[-1:], rounded(closes[-1:], 8))
    title = "The dot is the decided bar."
    return structs.replace(panel, layers=[*panel.layers, mark], title=title)


LEVELS_SHOWN: Final = 7
AGES_SHOWN: Final = 9
SHADES: Final = " ░▒▓█"


def map_document(mapped: BookMap) -> dict[str, Any]:
    """Return the whole map with prices and sizes as texts, oldest book first."""
    books = mapped.books
    return {
        "instrument": mapped.instrument,
        "model": mapped.model_id,
        "at": iso(mapped.at_ms),
        "says": list(mapped.says),
        "every_ms": mapped.every_ms,
        "answers": [
            {"horizon": horizon, **dict(zip(MOVES, shares, strict=True))}
            for horizon, shares in zip(mapped.horizons, mapped.probabilities, strict=True)
        ],
        "seen_ms": books.seen_ms.tolist(),
        **{
            side: {
                "price": _texts(books.price[-1, place], mapped.decimals[0]),
                "size": _texts(books.size[-1, place], mapped.decimals[1]),
                "weights": mapped.weights[:, place].tolist(),
            }
            for place, side in enumerate(SIDES)
        },
        "l1_error": mapped.look.l1_error,
    }


def _texts(numbers: NDArray[np.int64], decimals: int) -> list[str]:
    return [unscaled(number, decimals) for number in numbers.tolist()]


def map_parts(mapped: BookMap) -> Iterator[Part]:
    """Yield the answer and the map: ranges of levels down, the newest books first."""
    yield Paragraph(
        f"{mapped.instrument} at {iso(mapped.at_ms)}, model {mapped.model_id}", "strong"
    )
    yield from map(Paragraph, mapped.says)
    forms: dict[str, Form] = {"books ahead": "count", **dict.fromkeys(MOVES, "exact")}
    answers: list[tuple[Value, ...]] = [
        (horizon, *(f"{share:.1%}" for share in shares))
        for horizon, shares in zip(mapped.horizons, mapped.probabilities, strict=True)
    ]
    yield table_of("answers", "Which way the mid moves", forms, answers)
    yield _map_table(mapped)


def _map_table(mapped: BookMap) -> Table:
    """Return the share of each range of levels and ages, with a shade by the largest of them."""
    ages = ranges(len(mapped.books), AGES_SHOWN)
    levels = ranges(mapped.books.levels, LEVELS_SHOWN)
    newest_first = mapped.weights[::-1]
    shares = {
        (place, row): [
            float(newest_first[start:stop, place, first:last].sum()) for start, stop in ages
        ]
        for place in range(len(SIDES))
        for row, (first, last) in enumerate(levels)
    }
    largest = max(map(max, shares.values()))
    # As a ladder stands: the deepest ask on top, the touch in the middle.
    order = [(1, row) for row in reversed(range(len(levels)))]
    order += [(0, row) for row in range(len(levels))]
    rows: list[tuple[Value, ...]] = []
    for place, row in order:
        first, last = levels[row]
        cells = shares[place, row]
        named = str(first + 1) if last == first + 1 else f"{first + 1}–{last}"
        shaded = [f"{100 * share:.1f}{_shade(share, largest)}" for share in cells]
        rows.append((SIDES[place], named, *shaded, f"{100 * sum(cells):.1f}"))
    columns = [_age(start, stop, mapped.every_ms) for start, stop in ages]
    forms: dict[str, Form] = {"side": "text", **dict.fromkeys(["level", *columns, "all"], "exact")}
    return table_of("map", f"Where it looked ({LOOKED}), % of all", forms, rows)


def _shade(share: float, largest: float) -> str:
    """Return the sign of a *share*: the darker, the nearer to the largest."""
    return SHADES[round((len(SHADES) - 1) * (share / largest) ** 0.5)] if largest else SHADES[0]


def ranges(count: int, most: int) -> list[tuple[int, int]]:
    """Return *count* places as at most *most* ranges, each about twice as wide as the one before.

    The last holds all that is left.
    """
    spans: list[tuple[int, int]] = []
    start, width = 0, 1
    while start < count:
        stop = count if len(spans) == most - 1 else min(start + width, count)
        spans.append((start, stop))
        start, width = stop, 2 * width
    return spans


def _age(start: int, stop: int, every_ms: int) -> str:
    if stop == start + 1:
        return "now" if start == 0 else duration(start * every_ms)
    return f"–{duration((stop - 1) * every_ms)}"
