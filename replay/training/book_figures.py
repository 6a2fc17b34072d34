"""What a network of order books is worth on untouched books, beside what needs no network.

Asked of seven days of the exchange's own depth alone; errors are by calendar day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tracepaper.replay.training.book_data import UNKNOWN, labels_of
from tracepaper.replay.training.card import NOTICE
from tracepaper.strategies.networks.order_book import MOVES, OrderBookNetwork
from tracepaper.strategies.order_book import Books, Integers, tokens_of
from tracepaper.strategies.units import DAY_MS

CREDIBLE: Final = 1.96
"""Standard errors by day that a difference must exceed."""
DAYS_TOLD_BY: Final = 5
"""Untouched days below which an error by day is too rough to call anything better."""
SMOOTHED: Final = 1.0
"""Added to the count of each move in the training part."""

Floats = NDArray[np.float64]


def frequencies_of(training: Sequence[Books], horizons: Sequence[int]) -> dict[str, list[float]]:
    """Return how often the mid went down, nowhere and up in *training*, by horizon."""
    found: dict[str, list[float]] = {}
    for horizon in horizons:
        counts = np.full(len(MOVES), SMOOTHED)
        for books in training:
            labels = labels_of(books, (horizon,))[:, 0]
            counts += np.bincount(labels[labels != UNKNOWN], minlength=len(MOVES))
        found[str(horizon)] = (counts / counts.sum()).tolist()
    return found


class BookScores(NamedTuple):
    """What the move of each book's mid cost and who named it, at one horizon: [book]."""

    seen_ms: Integers
    loss: Floats  # log loss of the network
    loss_of_frequencies: Floats
    hit: Floats  # 1 where its most probable move came
    hit_of_most_frequent: Floats
    hit_of_last_move: Floats

    @property
    def days(self) -> Integers:
        """The calendar day of each book."""
        found: Integers = self.seen_ms // DAY_MS
        return found

    def rows(self, chosen: NDArray[np.bool_] | Integers) -> BookScores:
        """Return those of *chosen* books."""
        return BookScores._make(column[chosen] for column in self)


def judged(
    network: OrderBookNetwork,
    untouched: Sequence[Books],
    frequencies: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """Return the figures of *network* on *untouched* stretches, by horizon."""
    every = scores(network, untouched, frequencies)
    return {str(horizon): figures_of(one) for horizon, one in every.items()}


def scores(
    network: OrderBookNetwork,
    stretches: Sequence[Books],
    frequencies: Mapping[str, Sequence[float]],
) -> dict[int, BookScores]:
    """Return by horizon what *network* is worth at the books of *stretches* whose move is known."""
    logs = [answers(network, books) for books in stretches]
    found = {}
    for column, horizon in enumerate(network.config.horizons):
        log_frequencies = np.log(np.array(frequencies[str(horizon)]))
        parts = [
            _scored(books, log[:, column], horizon, log_frequencies)
            for books, log in zip(stretches, logs, strict=True)
        ]
        found[horizon] = joined(parts)
    return found


def joined(parts: Sequence[BookScores]) -> BookScores:
    """Return *parts* one after another."""
    return BookScores(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@torch.no_grad()
def answers(network: OrderBookNetwork, books: Books) -> Floats:
    """Return log probabilities [book, horizon, move]; each from half a window or more, if it can.

    Windows overlap by half; a book is answered by the first that shows so much before it.
    """
    window = network.config.window
    half = max(1, window // 2)
    found: list[Floats] = []
    for start in range(0, max(1, len(books) - half), half):
        logits = network(torch.from_numpy(tokens_of(books.part(start, start + window)))[None])[0]
        log = logits.log_softmax(dim=-1).numpy().astype(np.float64)
        found.append(log if start == 0 else log[window - half :])
    return np.concatenate(found)


def _scored(books: Books, log: Floats, horizon: int, log_frequencies: Floats) -> BookScores:
    """Return the losses and hits of those *books* whose move is known."""
    labels = labels_of(books, (horizon,))[:, 0]
    past = np.ones_like(labels)  # flat, where no move before is known
    if horizon < len(books):
        past[horizon:] = labels[:-horizon]
    known = labels != UNKNOWN
    wanted = labels[known]
    return BookScores(
        books.seen_ms[known],
        -log[known, wanted],
        -log_frequencies[wanted],
        (log[known].argmax(axis=1) == wanted).astype(np.float64),
        (log_frequencies.argmax() == wanted).astype(np.float64),
        (past[known] == wanted).astype(np.float64),
    )


def figures_of(found: BookScores) -> dict[str, Any]:
    """Return the means over all books, and the difference of the losses with its error by day."""
    day = found.days
    difference = found.loss - found.loss_of_frequencies
    days = np.unique(day)
    means = np.array([difference[day == each].mean() for each in days])
    error = float(means.std(ddof=1) / len(days) ** 0.5) if len(days) > 1 else 0.0
    mean = float(difference.mean())
    return {
        "books": len(day),
        "days": len(days),
        "log_loss": float(found.loss.mean()),
        "log_loss_of_frequencies": float(found.loss_of_frequencies.mean()),
        "accuracy": float(found.hit.mean()),
        "accuracy_of_most_frequent": float(found.hit_of_most_frequent.mean()),
        "accuracy_of_last_move": float(found.hit_of_last_move.mean()),
        "difference": mean,
        "error": error,
        "is_better": bool(len(days) >= DAYS_TOLD_BY and mean < -CREDIBLE * error < 0.0),
    }


def sentences_of(figures: Mapping[str, Any]) -> list[str]:
    """Return what an honest reader must know, in words that follow from the figures."""
    lines = [NOTICE]
    for horizon, one in figures.items():
        verdict = "better" if one["is_better"] else "not credibly better"
        few = "; so few days tell nothing" if one["days"] < DAYS_TOLD_BY else ""
        lines.append(
            f"At {horizon} books its log loss on {one['days']} untouched days is {verdict} than "
            f"that of the moves' frequencies ({one['log_loss']:.4f} against "
            f"{one['log_loss_of_frequencies']:.4f}, ± {one['error']:.4f} by days{few})."
        )
    if not any(one["is_better"] for one in figures.values()):
        lines.append("experimental: it has beaten nothing at any horizon.")
    return lines
