"""A recipe of order books fitted anew on folds of recorded days, and what a change of it is worth.

Folds walk over the days that hold books, before the card's untouched time. Windows and labels end
with their part, so that nothing of a later one is in what is learnt.

The rule is docs/orderbook.md, D20.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from tracepaper.replay.document.values import Table, Value, of_row, table
from tracepaper.replay.judging.books import (
    LOSSES,
    BookCheckpoint,
    paired,
    said_of,
    score_tables,
)
from tracepaper.replay.judging.refits import refuse_many
from tracepaper.replay.training.estimator import recipe_of
from tracepaper.replay.training.estimators.order_book import (
    BookFitOptions,
    BookScores,
    fit_network,
    frequencies_of,
    scores,
)
from tracepaper.replay.training.folds import (
    FIRST_SHARE,
    ROLLING,
    STOP_SHARE,
    Span,
    asked,
)
from tracepaper.replay.training.order_books import (
    DAYS_LEAST,
    BookDataset,
)
from tracepaper.replay.training.paired import corrected
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.order_book import OrderBookConfig
from tracepaper.strategies.order_book import Books, Integers
from tracepaper.strategies.units import DAY_MS

Say = Callable[[str], None]


@dataclass(frozen=True)
class BookFold:
    """Spans of time that are learnt from, that choose the step, and that are tested."""

    train: Span
    validation: Span
    test: Span


@dataclass(frozen=True)
class BookRefits:
    """What the recipe was worth on each fold's test, by fold and horizon."""

    text: str
    folds: Sequence[BookFold]
    scores: Sequence[Mapping[int, BookScores]]


def asked_of_books(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the kind of folds and its numbers; raise ``ConfigInvalid`` where they do not walk."""
    kind, numbers = asked(text)
    refuse_many(kind, numbers)
    return kind, numbers


def read_book_folds(text: str, seen_ms: Integers) -> list[BookFold]:
    """Return the folds that *text* names, ``walk:2`` or ``rolling:2``, over the days of *seen_ms*.

    Tests follow one another over the second half of the recorded days, each of whole days; the last
    tenth of the books before a test chooses the step. Raises ``ConfigInvalid`` for any other.
    """
    kind, numbers = asked_of_books(text)
    days = np.unique(seen_ms // DAY_MS)
    begin = round(len(days) * FIRST_SHARE)
    cuts = np.linspace(begin, len(days), numbers[0] + 1).astype(np.int64).tolist()
    if min(np.diff([0, *cuts])) < 1:
        raise ConfigInvalid(
            f"The books before the untouched time are of {len(days)} days, too few for "
            f"{numbers[0]} folds that walk; record longer, or ask for fewer folds."
        )
    folds = []
    for start, stop in pairwise(cuts):
        first = start - begin if kind == ROLLING else 0
        known = (int(days[first]) * DAY_MS, int(days[start]) * DAY_MS)
        times = seen_ms[(seen_ms >= known[0]) & (seen_ms < known[1])]
        cut = int(times[round(len(times) * (1.0 - STOP_SHARE))])
        test = (int(days[start]) * DAY_MS, (int(days[stop - 1]) + 1) * DAY_MS)
        folds.append(BookFold((known[0], cut), (cut, known[1]), test))
    return folds


def chosen_for(
    card: Mapping[str, Any], material: BookDataset
) -> tuple[OrderBookConfig, BookFitOptions]:
    """Return the recipe of *card*; raise ``ConfigInvalid`` where *material* is too shallow."""
    recipe = recipe_of(card)
    config, options = recipe.architecture, recipe.options
    assert isinstance(config, OrderBookConfig)
    assert isinstance(options, BookFitOptions)
    if config.levels > material.header.levels:
        raise ConfigInvalid(
            f"architecture.levels is {config.levels}, and the files hold "
            f"{material.header.levels}; give as many at most."
        )
    return config, options


def refit_books(
    model: BookCheckpoint, card: Mapping[str, Any], material: BookDataset, text: str, *, say: Say
) -> BookRefits:
    """Fit the recipe of *card* on folds of what was recorded before *model*'s untouched time.

    Raises ``ConfigInvalid`` where that is less than seven days of depth.
    """
    config, options = chosen_for(card, material)
    known = material.between(None, model.untouched_ms)
    times = np.concatenate([books.seen_ms for books in known]) if known else np.empty(0, np.int64)
    recorded = len(times) * material.header.every_ms / DAY_MS
    if recorded < DAYS_LEAST:
        raise ConfigInvalid(
            f"The books before the untouched time are {recorded:.1f} days of depth, and folds need "
            "seven: give the files that the model was trained on, or record longer."
        )
    folds, found = read_book_folds(text, times), []
    for place, fold in enumerate(folds, start=1):
        say(f"Fold {place} of {len(folds)}.")
        found.append(fold_scores(fold, material, config, options, say))
    return BookRefits(text, folds, found)


def fold_scores(
    fold: BookFold,
    material: BookDataset,
    config: OrderBookConfig,
    options: BookFitOptions,
    say: Say,
) -> dict[int, BookScores]:
    """Fit on what *fold* learns from; return what that is worth on its test, by horizon."""

    def part(span: Span) -> list[Books]:
        return [books.shallower(config.levels) for books in material.between(*span)]

    training = part(fold.train)
    if max(map(len, training)) <= config.horizons[-1]:
        raise ConfigInvalid(
            f"A fold learns from at most {max(map(len, training))} books in a row, and the horizon "
            f"of {config.horizons[-1]} needs more; ask for fewer folds."
        )
    network, stopped = fit_network(training, part(fold.validation), config, options)
    if stopped:
        say(stopped)
    found = scores(network, part(fold.test), frequencies_of(training, config.horizons))
    for horizon, one in found.items():
        if not len(one.seen_ms):
            raise ConfigInvalid(
                f"The test of a fold holds no book whose move to {horizon} books is known; ask for "
                "fewer folds."
            )
    return found


# --- what the folds say


_NOTE: Final = (
    "The change less the recipe as it is, on the same books; fitted anew on the same folds with "
    "the same seed, errors by day, the verdict by Holm over the changes."
)


def book_fold_tables(own: BookRefits, others: Mapping[str, BookRefits]) -> list[Table]:
    """Return log loss and accuracy over all tests, and how each change of *others* differs."""
    made = score_tables(own.scores, "folds_", f", over {own.text}")
    return made + [_compared(own, others, key) for key in LOSSES if others]


def _compared(own: BookRefits, others: Mapping[str, BookRefits], key: str) -> Table:
    title, is_less_better, losses = LOSSES[key]
    rows: dict[str, dict[str, Value]] = {text: {"change": text} for text in others}
    columns = [of_row("change", "change", "text")]
    for horizon in own.scores[0]:
        mine = [part[horizon] for part in own.scores]
        every = {
            text: paired(mine, [part[horizon] for part in other.scores], losses)
            for text, other in others.items()
        }
        known = {text: one for text, one in every.items() if one is not None}
        for text, one in corrected(known).items():
            rows[text] |= {
                str(horizon): one.pair,
                f"{horizon}_verdict": said_of(one, is_less_better=is_less_better),
                "days": one.days,
            }
        columns += [
            of_row(str(horizon), f"{horizon} books", "measure"),
            of_row(f"{horizon}_verdict", "the change is", "text"),
        ]
    columns.append(of_row("days", "days", "count"))
    whole = f"{title}: what changes are worth, {own.text}"
    return table(f"instead_{key}", whole, columns, rows.values(), notes=[_NOTE])
