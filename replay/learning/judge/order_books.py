"""Order book networks evaluated on spans and folds of recorded time.

Only what the exchange itself sent is judged, by networks that learnt from seven days of it; of any
other nothing is measured. Errors are those of whole calendar days drawn anew, and fewer than five
say nothing.

Folds walk over the days that hold books, before the card's untouched time. Windows and labels end
with their part, so that nothing of a later one is in what is learnt.

The rules are docs/orderbook.md, D10 to D12 and D19; docs/orderbook.md, D20.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.replay.archive.columns import instant
from tracepaper.replay.document.values import Table
from tracepaper.replay.learning.estimators.order_book import (
    BOOKS,
    BookFitOptions,
    book_forecasts,
    check_fits,
    figures_of,
    fit_network,
    frequencies_of,
    is_of_books,
    load_books,
    sentences_of,
)
from tracepaper.replay.learning.fit import threads_used, use_threads
from tracepaper.replay.learning.fitted import Each, Say, one_by_one
from tracepaper.replay.learning.judge.books import score_tables, verdict_by
from tracepaper.replay.learning.judge.explained import Judgement
from tracepaper.replay.learning.judge.folds import FoldForecasts, Refits, change_tables, refuse_many
from tracepaper.replay.learning.judge.forecasts import Forecasts
from tracepaper.replay.learning.judge.judge import Rival, SpanJudgement
from tracepaper.replay.learning.openings import NamedSpan
from tracepaper.replay.learning.order_books import DAYS_LEAST, JUDGED_SOURCE, BookDataset
from tracepaper.replay.learning.recipe import recipe_of
from tracepaper.replay.learning.splits import FIRST_SHARE, ROLLING, STOP_SHARE, Span, asked
from tracepaper.storage.checkpoints import locate
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.networks.order_book import OrderBookConfig, OrderBookNetwork
from tracepaper.strategies.order_book import Books, Integers
from tracepaper.strategies.units import DAY_MS, iso


class BookCheckpoint(NamedTuple):
    """A checkpoint of order books."""

    name: str
    folder: Path
    network: OrderBookNetwork
    card: Mapping[str, Any]

    @classmethod
    def read(cls, name: str) -> BookCheckpoint:
        """Load it; raise ``CheckpointMismatch`` for another kind."""
        folder = locate(name)
        return cls(name, folder, *load_books(folder))

    @property
    def model_id(self) -> str:
        """The id of its weights and card."""
        return str(self.card["model"]["id"])

    @property
    def recipe(self) -> str:
        """The hash of what was chosen for it."""
        return recipe_of(self.card).hash

    @property
    def untrained(self) -> list[str]:
        """Why nothing may be measured of it; empty where it learnt from enough."""
        if self.card["model"].get("trained") is True:
            return []
        return list(self.card["honesty"]["sentences"])

    @property
    def untouched_ms(self) -> int:
        """When its untouched time begins."""
        return instant(self.card["split"]["untouched_from"])

    def material(self, data: Sequence[str]) -> BookDataset:
        """Read *data*, which must be what the exchange itself sent of its instrument and pace."""
        material = BookDataset.read(data)
        check_fits(material.header, self.card, Path(data[0]))
        if any(file.source != JUDGED_SOURCE for file in material.files):
            raise DataInvalid(
                "Only books that `tracepaper data record` took from the exchange are judged; give "
                "files of them alone."
            )
        return material


def judge_books(model: BookCheckpoint, material: BookDataset, span: NamedSpan) -> SpanJudgement:
    """Return what *model* is worth on *span* of the time after its card's untouched time began."""
    forecasts = _forecasts(model, material, span)
    figures = {str(at): figures_of(rows) for at, rows in forecasts.by_horizon()}
    judged = Judgement(forecasts, figures, sentences_of(figures))
    return SpanJudgement(span, tuple(model.card["market"]["symbols"]), judged, model.card)


def _forecasts(model: BookCheckpoint, material: BookDataset, span: NamedSpan) -> Forecasts:
    """Return the books of *span*; forecasts see those before it that are untouched too.

    Raises ``ConfigInvalid`` for a span that begins too early, or holds no known move.
    """
    begun = model.untouched_ms
    if span.from_ms is not None and span.from_ms < begun:
        raise ConfigInvalid(
            f"The span {span.text} begins before {iso(begun)}, until when the model had seen all; "
            "judge it on later books."
        )
    levels = model.network.config.levels
    stretches = [books.shallower(levels) for books in material.between(begun, span.until_ms)]
    if not stretches:
        raise DataInvalid(
            f"All books of --data until {span.until or 'their end'} are from before {iso(begun)}, "
            "and learnt from; give later ones."
        )
    found = book_forecasts(model.network, stretches, model.card["frequencies"])
    if span.from_ms is not None:
        found = found.where(found.open_ms >= span.from_ms)
    for horizon in model.network.config.horizons:
        if horizon not in found.horizons:
            raise ConfigInvalid(
                f"The span {span.text} holds no book whose move to {horizon} books is known; give "
                "files of that time, or a longer span."
            )
    return found


def book_rival(
    every: Sequence[SpanJudgement], of: BookCheckpoint, name: str, data: Sequence[str]
) -> tuple[list[SpanJudgement], BookCheckpoint]:
    """Return *every* judgement of *of* with what the network *name* says of the same books.

    Raises ``ConfigInvalid`` for another kind, one that is untrained or judged already, and one
    without a horizon or a book in common.
    """
    if not is_of_books(locate(name)):
        raise ConfigInvalid(
            f"--compare {name}: {of.name} forecasts the mid of an order book, which no model of "
            "bars does; name a network of order books."
        )
    rival = BookCheckpoint.read(name)
    if rival.model_id == of.model_id or name in every[0].forecasts.compared:
        raise ConfigInvalid(f"--compare {name} is a model that is judged already; leave it out.")
    if rival.untrained:
        raise ConfigInvalid(f"--compare {name}: {rival.untrained[0]}")
    try:
        material = rival.material(data)
        found = [_forecasts(rival, material, one.span) for one in every]
    except (ConfigInvalid, DataInvalid) as error:
        raise ConfigInvalid(f"--compare {name}: {str(error).rstrip('.')}.") from None
    for one, other in zip(every, found, strict=True):
        if not (one.forecasts.places(other) >= 0).any():
            raise ConfigInvalid(
                f"--compare {name}: it answers no book to a horizon of the judged network; name "
                "one of a common horizon and time."
            )
    pairs = zip(every, found, strict=True)
    return [one.compared_with(Rival(name, other)) for one, other in pairs], rival


@dataclass(frozen=True)
class BookFold:
    """Spans of time that are learnt from, that choose the step, and that are tested."""

    train: Span
    validation: Span
    test: Span


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


@dataclass(frozen=True)
class _BookFoldFit:
    """Fits the recipe of *card* on one of *count* folds of *material*."""

    card: Mapping[str, Any]
    material: BookDataset
    count: int
    threads: int

    def __call__(self, unit: tuple[int, BookFold], say: Say) -> Forecasts:
        """Fit the network on a numbered fold and forecast the fold's test."""
        place, fold = unit
        use_threads(self.threads)
        say(f"Fold {place} of {self.count}.")
        return fold_forecasts(fold, self.material, *chosen_for(self.card, self.material), say)


def refit_books(
    model: BookCheckpoint,
    card: Mapping[str, Any],
    material: BookDataset,
    text: str,
    *,
    say: Say,
    each: Each = one_by_one,
) -> Refits:
    """Fit the recipe of *card* on folds of what was recorded before *model*'s untouched time.

    *each* is where the folds are fitted. Raises ``ConfigInvalid`` where that is less than seven
    days of depth.
    """
    chosen_for(card, material)
    known = material.between(None, model.untouched_ms)
    times = np.concatenate([books.seen_ms for books in known]) if known else np.empty(0, np.int64)
    recorded = len(times) * material.header.every_ms / DAY_MS
    if recorded < DAYS_LEAST:
        raise ConfigInvalid(
            f"The books before the untouched time are {recorded:.1f} days of depth, and folds need "
            "seven: give the files that the model was trained on, or record longer."
        )
    folds = read_book_folds(text, times)
    fit = _BookFoldFit(card, material, len(folds), threads_used())
    found = each(fit, list(enumerate(folds, start=1)), say)
    return Refits(text, (), [FoldForecasts(rows, None) for rows in found], None)


def fold_forecasts(
    fold: BookFold,
    material: BookDataset,
    config: OrderBookConfig,
    options: BookFitOptions,
    say: Say,
) -> Forecasts:
    """Fit on what *fold* learns from; return its forecasts of the fold's test."""

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
    found = book_forecasts(network, part(fold.test), frequencies_of(training, config.horizons))
    for horizon in config.horizons:
        if horizon not in found.horizons:
            raise ConfigInvalid(
                f"The test of a fold holds no book whose move to {horizon} books is known; ask for "
                "fewer folds."
            )
    return found


# --- what the folds say


_ABLATION_NOTE: Final = (
    "The change less the recipe as it is, on the same books; fitted anew on the same folds with "
    "the same seed, errors by day, the verdict by Holm over the changes."
)


def book_fold_tables(own: Refits, others: Mapping[str, Refits]) -> list[Table]:
    """Return log loss and accuracy over all tests, and how each change of *others* differs."""
    made = score_tables(own.pooled, "folds_", f", over {own.text}")
    if others:
        joined = own.joined(others)
        made += change_tables(joined, others, BOOKS, "books", verdict_by, _ABLATION_NOTE)
    return made
