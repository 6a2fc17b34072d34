"""The attention of an order book model at one recorded book: a map of level and time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.archive.books import RecordedDepth, read_depth
from tracepaper.replay.document.values import Form, Paragraph, Part, Table, Value, table_of
from tracepaper.replay.explain.decision_document import ATTENDED
from tracepaper.replay.report.past import ModelAnswer
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.order_book import MOVES
from tracepaper.strategies.order_book import SIDES, Books, tokens_of
from tracepaper.strategies.units import duration, iso, percent, unscaled

if TYPE_CHECKING:
    from tracepaper.strategies.networks.order_book import OrderBookAttribution


@dataclass(frozen=True)
class BookMap(ModelAnswer):
    """A model's forecast from order books, and its attention to them."""

    key: ClassVar = "books"
    instrument: str
    card: Mapping[str, Any]  # of the model
    books: Books  # oldest first
    attribution: OrderBookAttribution
    horizons: tuple[int, ...]
    every_ms: int
    decimals: tuple[int, int]  # of prices and quantities
    sentences: tuple[str, ...]  # of the card, and on what was left out of the file

    @property
    def model_id(self) -> str:
        """The id of the model."""
        return str(self.card["model"]["id"])

    @property
    def at_ms(self) -> int:
        """Time of the newest book."""
        return int(self.books.seen_ms[-1])

    @property
    def probabilities(self) -> list[list[float]]:
        """By horizon: down, flat, up."""
        rows: list[list[float]] = self.attribution.probabilities.tolist()
        return rows

    @property
    def weights(self) -> NDArray[np.float32]:
        """Attention [book, side, level]; it sums to 1."""
        shape = (len(self.books), len(SIDES), self.books.levels)
        weights: NDArray[np.float32] = self.attribution.weights.numpy().reshape(shape)
        return weights

    def parts(self) -> Iterator[Part]:
        """Yield the forecast and the map: rows are ranges of levels, the newest books first."""
        yield Paragraph(f"{self.instrument} at {iso(self.at_ms)}, model {self.model_id}", "strong")
        yield from map(Paragraph, self.sentences)
        forms: dict[str, Form] = {"books ahead": "count", **dict.fromkeys(MOVES, "exact")}
        answers: list[tuple[Value, ...]] = [
            (horizon, *(percent(share, 1) for share in shares))
            for horizon, shares in zip(self.horizons, self.probabilities, strict=True)
        ]
        yield table_of("answers", "Which way the mid moves", forms, answers)
        yield _map_table(self)

    def document(self) -> dict[str, Any]:
        """Return the map with prices and sizes as texts, the oldest book first."""
        books = self.books
        return {
            "instrument": self.instrument,
            "model": self.model_id,
            "at": iso(self.at_ms),
            "says": list(self.sentences),
            "every_ms": self.every_ms,
            "answers": [
                {"horizon": horizon, **dict(zip(MOVES, shares, strict=True))}
                for horizon, shares in zip(self.horizons, self.probabilities, strict=True)
            ],
            "seen_ms": books.seen_ms.tolist(),
            **{
                side: {
                    "price": _texts(books.price[-1, place], self.decimals[0]),
                    "size": _texts(books.size[-1, place], self.decimals[1]),
                    "weights": self.weights[:, place].tolist(),
                }
                for place, side in enumerate(SIDES)
            },
            "l1_error": self.attribution.l1_error,
        }


def book_map(folder: Path, path: Path, at_ms: int | None, *, threads: int) -> BookMap:
    """Ask the model in *folder* about the newest book of *path* at *at_ms*, by default the last.

    The model reads the books before it, back to a gap or to the start of its window. Raises
    ``DataInvalid`` for a file of other books, ``ConfigInvalid`` for a time without a book, and
    ``CheckpointMismatch`` for a model of another kind.
    """
    import torch

    from tracepaper.replay.learning.estimators.order_book import load_books
    from tracepaper.replay.learning.order_books import check_fits

    torch.set_num_threads(threads)
    network, card = load_books(folder)
    recorded = read_depth(path)
    check_fits(recorded.header, card, path)
    config = network.config
    books = _until(recorded, path, at_ms, config.window).shallower(config.levels)
    header, instrument = recorded.header, recorded.header.instrument
    sentences = card.get("honesty", {}).get("sentences", [])
    return BookMap(
        instrument.id,
        card,
        books,
        network.explain(torch.from_numpy(tokens_of(books))),
        config.horizons,
        every_ms=header.every_ms,
        decimals=(instrument.price_decimals, instrument.quantity_decimals),
        sentences=(*sentences, *([recorded.torn] if recorded.torn else [])),
    )


def _until(recorded: RecordedDepth, path: Path, at_ms: int | None, window: int) -> Books:
    """Return the books of the window that ends at *at_ms*, all after the last gap."""
    times = recorded.times
    end = len(times) if at_ms is None else int(np.searchsorted(times, at_ms, side="right"))
    within = end and (at_ms is None or at_ms - int(times[end - 1]) < recorded.header.every_ms)
    if not within:
        raise ConfigInvalid(
            f"{path} holds no book of that time; its books are of {iso(int(times[0]))} to "
            f"{iso(int(times[-1]))}, with gaps that `tracepaper data check` lists."
        )
    start = int(recorded.starts[np.searchsorted(recorded.starts, end, side="left") - 1])
    return recorded.part(max(start, end - window), end)


LEVELS_SHOWN: Final = 7
AGES_SHOWN: Final = 9


def _texts(numbers: NDArray[np.int64], decimals: int) -> list[str]:
    return [unscaled(number, decimals) for number in numbers.tolist()]


def _map_table(mapped: BookMap) -> Table:
    """Return the share of each range of levels and ages."""
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
    # In the order of a price ladder: the deepest ask on top, the best prices in the middle.
    order = [(1, row) for row in reversed(range(len(levels)))]
    order += [(0, row) for row in range(len(levels))]
    rows: list[tuple[Value, ...]] = []
    for place, row in order:
        first, last = levels[row]
        cells = shares[place, row]
        level = str(first + 1) if last == first + 1 else f"{first + 1}–{last}"
        rows.append(
            (SIDES[place], level, *(f"{100 * share:.1f}" for share in (*cells, sum(cells))))
        )
    columns = [_age(start, stop, mapped.every_ms) for start, stop in ages]
    forms: dict[str, Form] = {"side": "text", **dict.fromkeys(["level", *columns, "all"], "exact")}
    return table_of("map", f"Where it looked ({ATTENDED}), % of all", forms, rows)


def ranges(count: int, most: int) -> list[tuple[int, int]]:
    """Return *count* places as at most *most* ranges, each twice as wide as the previous.

    The last range has all remaining places.
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
