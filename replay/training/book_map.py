"""One checkpoint of order books asked about one recorded book: a map of level and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tracepaper.replay.archive.columns import iso
from tracepaper.replay.archive.order_book import DepthHeader, RecordedDepth, read_depth
from tracepaper.storage.checkpoints import load, read_card
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.networks.order_book import OrderBookConfig, OrderBookNetwork
from tracepaper.strategies.order_book import KIND, SIDES, Books, tokens_of


@dataclass(frozen=True)
class BookMap:
    """Where one answer looked: ``weights`` [book, side, level] sum to 1, oldest book first."""

    instrument: str
    model_id: str
    at_ms: int
    every_ms: int
    horizons: tuple[int, ...]
    probabilities: tuple[tuple[float, ...], ...]  # of each horizon: down, flat, up
    books: Books
    price_decimals: int
    quantity_decimals: int
    weights: NDArray[np.float32]
    l1_error: float
    says: tuple[str, ...]  # what the card says of itself, and what was left out of the file


def is_of_books(folder: Path) -> bool:
    """Return whether *folder* holds a checkpoint of order books."""
    try:
        return bool(read_card(folder)["model"].get("kind") == KIND)
    except CheckpointMismatch:
        return False


def load_books(folder: Path) -> tuple[OrderBookNetwork, dict[str, Any]]:
    """Return the network in *folder* and its card; raise ``CheckpointMismatch`` for others."""
    checkpoint = load(folder)
    card = checkpoint.card
    if (kind := card["model"].get("kind")) != KIND:
        raise CheckpointMismatch(
            f"{folder} holds a model of the kind {shown(kind)}, not {KIND}; name one that "
            f"`tracepaper train --set model.kind={KIND}` wrote."
        )
    network = OrderBookNetwork(OrderBookConfig.read(card["architecture"]))
    try:
        network.load_state_dict(checkpoint.tensors)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise CheckpointMismatch(
            f"The weights in {folder} do not fit its architecture ({said:.200}); restore it."
        ) from None
    return network.eval(), card


def check_fits(header: DepthHeader, card: Mapping[str, Any], path: Path) -> None:
    """Raise ``DataInvalid`` unless the books of *path* are such as *card*'s model has learnt."""
    market, levels = card["market"], card["architecture"]["levels"]
    wanted = f"{market['category']}:{market['symbols'][0]}"
    if header.instrument != wanted:
        raise DataInvalid(
            f"{path} holds books of {header.instrument}, and the model was fitted on {wanted}; "
            "name a file of that."
        )
    if header.every_ms != market["every_ms"] or header.levels < levels:
        raise DataInvalid(
            f"{path} holds {header.levels} levels each {header.every_ms:,} ms, and the model reads "
            f"{levels} each {market['every_ms']:,} ms; record so, or train on this file."
        )


def book_map(folder: Path, path: Path, at_ms: int | None, *, threads: int) -> BookMap:
    """Ask the model in *folder* about the newest book of *path* until *at_ms*, the last by default.

    It sees the books before it back to the gap, at most its window. Raises ``DataInvalid`` for a
    file of other books and a time that it does not hold, ``CheckpointMismatch`` for a model of
    another kind.
    """
    torch.set_num_threads(threads)
    network, card = load_books(folder)
    recorded = read_depth(path)
    check_fits(recorded.header, card, path)
    config = network.config
    books = _until(recorded, path, at_ms, config.window).shallower(config.levels)
    seen = network.look(torch.from_numpy(tokens_of(books)))
    header = recorded.header
    sentences = card.get("honesty", {}).get("sentences", [])
    return BookMap(
        instrument=header.instrument,
        model_id=str(card["model"]["id"]),
        at_ms=int(books.seen_ms[-1]),
        every_ms=header.every_ms,
        horizons=config.horizons,
        probabilities=tuple(tuple(row) for row in seen.probabilities.tolist()),
        books=books,
        price_decimals=header.price_decimals,
        quantity_decimals=header.quantity_decimals,
        weights=seen.weights.numpy().reshape(len(books), len(SIDES), config.levels),
        l1_error=seen.l1_error,
        says=(*sentences, *([recorded.torn] if recorded.torn else [])),
    )


def _until(recorded: RecordedDepth, path: Path, at_ms: int | None, window: int) -> Books:
    """Return the books of the window that ends at *at_ms*, none from before a gap."""
    times = recorded.books.seen_ms
    end = len(times) if at_ms is None else int(np.searchsorted(times, at_ms, side="right"))
    within = end and (at_ms is None or at_ms - int(times[end - 1]) < recorded.header.every_ms)
    if not within:
        raise ConfigInvalid(
            f"{path} holds no book of that time; its books are of {iso(int(times[0]))} to "
            f"{iso(int(times[-1]))}, with gaps that `tracepaper data check` lists."
        )
    start = int(recorded.starts[np.searchsorted(recorded.starts, end, side="left") - 1])
    return recorded.books.part(max(start, end - window), end)
