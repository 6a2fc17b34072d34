"""The map of level and time of one answer about an order book, for a terminal and as JSON."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.text import Text

from tracepaper.replay.archive.times import iso
from tracepaper.replay.explain.terminal import LOOKED, table_of
from tracepaper.replay.training.book_map import BookMap
from tracepaper.strategies.books import SIDES
from tracepaper.strategies.market import unscaled
from tracepaper.strategies.networks.orderbook import MOVES
from tracepaper.strategies.words import duration

LEVELS_SHOWN: Final = 7
AGES_SHOWN: Final = 9
SHADES: Final = " ░▒▓█"


def map_document(found: BookMap) -> dict[str, Any]:
    """Return the whole map with prices and sizes as texts, oldest book first."""
    books = found.books
    return {
        "instrument": found.instrument,
        "model": found.model_id,
        "at": iso(found.at_ms),
        "says": list(found.says),
        "every_ms": found.every_ms,
        "answers": [
            {"horizon": horizon, **dict(zip(MOVES, shares, strict=True))}
            for horizon, shares in zip(found.horizons, found.probabilities, strict=True)
        ],
        "seen_ms": books.seen_ms.tolist(),
        **{
            side: {
                "price": _texts(books.price[-1, place], found.price_decimals),
                "size": _texts(books.size[-1, place], found.quantity_decimals),
                "weights": found.weights[:, place].tolist(),
            }
            for place, side in enumerate(SIDES)
        },
        "l1_error": found.l1_error,
    }


def _texts(numbers: NDArray[np.int64], decimals: int) -> list[str]:
    return [unscaled(number, decimals) for number in numbers.tolist()]


def show_map(found: BookMap) -> RenderableType:
    """Return the answer and the map: ranges of levels down, the newest books first."""
    head = Text()
    head.append(f"{found.instrument} at {iso(found.at_ms)}, model {found.model_id}\n", "bold")
    for sentence in found.says:
        head.append(f"{sentence}\n")
    answers = table_of(
        "Which way the mid moves", (("books ahead", True), *((move, True) for move in MOVES))
    )
    for horizon, shares in zip(found.horizons, found.probabilities, strict=True):
        answers.add_row(str(horizon), *(f"{share:.1%}" for share in shares))
    return Group(head, answers, _map_table(found))


def _map_table(found: BookMap) -> RenderableType:
    """Return the share of each range of levels and ages, with a shade by the largest of them."""
    ages = ranges(len(found.books), AGES_SHOWN)
    levels = ranges(found.books.levels, LEVELS_SHOWN)
    newest_first = found.weights[::-1]
    table = table_of(
        f"Where it looked ({LOOKED}), % of all",
        (
            ("side", False),
            ("level", True),
            *((_age(start, stop, found.every_ms), True) for start, stop in ages),
            ("all", True),
        ),
    )
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
    for place, row in order:
        first, last = levels[row]
        cells = shares[place, row]
        named = str(first + 1) if last == first + 1 else f"{first + 1}–{last}"
        shaded = [f"{100 * share:.1f}{_shade(share, largest)}" for share in cells]
        table.add_row(SIDES[place], named, *shaded, f"{100 * sum(cells):.1f}")
    return table


def _shade(share: float, largest: float) -> str:
    """Return the sign of a *share*: the darker, the nearer to the largest."""
    return SHADES[round((len(SHADES) - 1) * (share / largest) ** 0.5)] if largest else SHADES[0]


def ranges(count: int, most: int) -> list[tuple[int, int]]:
    """Return *count* places as at most *most* ranges, each about twice as wide as the one before.

    The last holds all that is left.
    """
    found: list[tuple[int, int]] = []
    start, width = 0, 1
    while start < count:
        stop = count if len(found) == most - 1 else min(start + width, count)
        found.append((start, stop))
        start, width = stop, 2 * width
    return found


def _age(start: int, stop: int, every_ms: int) -> str:
    """Return the ages of the books of a range."""
    if stop == start + 1:
        return "now" if start == 0 else duration(start * every_ms)
    return f"–{duration((stop - 1) * every_ms)}"
