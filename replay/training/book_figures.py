"""What a network of order books is worth on untouched books, beside what needs no network.

Asked of seven days of the exchange's own depth alone; errors are by calendar day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from tracepaper.replay.training.book_data import UNKNOWN, labels_of
from tracepaper.replay.training.card import NOTICE
from tracepaper.strategies.books import Books, Integers, tokens_of
from tracepaper.strategies.market import DAY_MS
from tracepaper.strategies.networks.orderbook import MOVES, OrderBookNetwork

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


def judged(
    network: OrderBookNetwork,
    untouched: Sequence[Books],
    frequencies: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """Return the figures of *network* on *untouched* stretches, by horizon."""
    logs = [answers(network, books) for books in untouched]
    found: dict[str, Any] = {}
    for column, horizon in enumerate(network.config.horizons):
        log_frequencies = np.log(np.array(frequencies[str(horizon)]))
        rows = [
            _scored(books, log[:, column], horizon, log_frequencies)
            for books, log in zip(untouched, logs, strict=True)
        ]
        found[str(horizon)] = _figures(np.concatenate(rows))
    return found


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


def _scored(books: Books, log: Floats, horizon: int, log_frequencies: Floats) -> Floats:
    """Return rows of day, losses and hits of those *books* whose move is known."""
    labels = labels_of(books, (horizon,))[:, 0]
    past = np.ones_like(labels)  # flat, where no move before is known
    if horizon < len(books):
        past[horizon:] = labels[:-horizon]
    known = labels != UNKNOWN
    wanted = labels[known]
    return np.stack(
        (
            books.seen_ms[known] // DAY_MS,
            -log[known, wanted],
            -log_frequencies[wanted],
            log[known].argmax(axis=1) == wanted,
            log_frequencies.argmax() == wanted,
            past[known] == wanted,
        ),
        axis=1,
    ).astype(np.float64)


def _figures(rows: Floats) -> dict[str, Any]:
    """Return the means over all books, and the difference of the losses with its error by day."""
    day: Integers = rows[:, 0].astype(np.int64)
    difference = rows[:, 1] - rows[:, 2]
    days = np.unique(day)
    means = np.array([difference[day == each].mean() for each in days])
    error = float(means.std(ddof=1) / len(days) ** 0.5) if len(days) > 1 else 0.0
    mean = float(difference.mean())
    return {
        "books": len(rows),
        "days": len(days),
        "log_loss": float(rows[:, 1].mean()),
        "log_loss_of_frequencies": float(rows[:, 2].mean()),
        "accuracy": float(rows[:, 3].mean()),
        "accuracy_of_most_frequent": float(rows[:, 4].mean()),
        "accuracy_of_last_move": float(rows[:, 5].mean()),
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
