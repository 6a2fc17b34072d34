"""One checkpoint of order books asked about one recorded book: a map of level and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.archive.books import RecordedDepth, read_depth
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.order_book import SIDES, Books, tokens_of
from tracepaper.strategies.units import iso

if TYPE_CHECKING:
    from tracepaper.strategies.networks.order_book import OrderBookAttribution


@dataclass(frozen=True)
class BookMap:
    """What a model said of books, and where it looked in them."""

    instrument: str
    card: Mapping[str, Any]  # of the model
    books: Books  # oldest first
    look: OrderBookAttribution
    horizons: tuple[int, ...]
    every_ms: int
    decimals: tuple[int, int]  # of prices and quantities
    says: tuple[str, ...]  # what the card says of itself, and what was left out of the file

    @property
    def model_id(self) -> str:
        """The id of the model."""
        return str(self.card["model"]["id"])

    @property
    def at_ms(self) -> int:
        """When the newest book was seen."""
        return int(self.books.seen_ms[-1])

    @property
    def probabilities(self) -> list[list[float]]:
        """Of each horizon: down, flat, up."""
        rows: list[list[float]] = self.look.probabilities.tolist()
        return rows

    @property
    def weights(self) -> NDArray[np.float32]:
        """Where it looked: [book, side, level], which sum to 1."""
        shape = (len(self.books), len(SIDES), self.books.levels)
        weights: NDArray[np.float32] = self.look.weights.numpy().reshape(shape)
        return weights


def book_map(folder: Path, path: Path, at_ms: int | None, *, threads: int) -> BookMap:
    """Ask the model in *folder* about the newest book of *path* until *at_ms*, the last by default.

    It sees the books before it back to the gap, at most its window. Raises ``DataInvalid`` for a
    file of other books and a time that it does not hold, ``CheckpointMismatch`` for a model of
    another kind.
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
    header, of = recorded.header, recorded.header.instrument
    sentences = card.get("honesty", {}).get("sentences", [])
    return BookMap(
        of.id,
        card,
        books,
        network.explain(torch.from_numpy(tokens_of(books))),
        config.horizons,
        every_ms=header.every_ms,
        decimals=(of.price_decimals, of.quantity_decimals),
        says=(*sentences, *([recorded.torn] if recorded.torn else [])),
    )


def _until(recorded: RecordedDepth, path: Path, at_ms: int | None, window: int) -> Books:
    """Return the books of the window that ends at *at_ms*, none from before a gap."""
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
