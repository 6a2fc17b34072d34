"""Order book networks evaluated on spans and folds of recorded time.

Only what the exchange itself sent is judged, by networks that learnt from seven days of it; of any
other nothing is measured. Errors are those of whole calendar days drawn anew, and fewer than five
say nothing.

Folds walk over the days that hold books, before the card's untouched time. Windows and labels end
with their part, so that nothing of a later one is in what is learnt.

The rules are docs/orderbook.md, D10 to D12 and D19; docs/orderbook.md, D20.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.replay.archive.columns import instant
from tracepaper.replay.document.values import Table, Value, of_row, table
from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.estimator import Each, Say, one_by_one, recipe_of
from tracepaper.replay.learning.estimators.order_book import (
    DAYS_TOLD_BY,
    BookFitOptions,
    BookScores,
    check_fits,
    figures_of,
    fit_network,
    frequencies_of,
    is_of_books,
    joined,
    load_books,
    scores,
    sentences_of,
)
from tracepaper.replay.learning.evaluation.walk_forward import differences_table, refuse_many
from tracepaper.replay.learning.fit import threads_used, use_threads
from tracepaper.replay.learning.openings import JudgedSpan, NamedSpan, spans_table
from tracepaper.replay.learning.order_books import DAYS_LEAST, JUDGED_SOURCE, BookDataset
from tracepaper.replay.learning.splits import FIRST_SHARE, ROLLING, STOP_SHARE, Span, asked
from tracepaper.replay.learning.statistics import DayDifference, difference, less_others, verdict
from tracepaper.replay.report.honesty import LEVEL
from tracepaper.storage.checkpoints import locate
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.order_book import OrderBookConfig, OrderBookNetwork
from tracepaper.strategies.order_book import Books, Integers
from tracepaper.strategies.units import DAY_MS, iso

FEW: Final = "too few days"
_NOTE: Final = (
    f"Errors by day, p by Student's t over days, credible below {LEVEL}; fewer than {DAYS_TOLD_BY} "
    "days say nothing."
)


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


@dataclass(frozen=True)
class BookJudgement(JudgedSpan):
    """What one span says of a network, by horizon, and of others on the same books by name."""

    scores: Mapping[int, BookScores]
    beside: Mapping[str, Mapping[int, BookScores]] = field(default_factory=dict)

    @property
    def row_days(self) -> Sequence[Integers]:
        """The calendar day of each book that was judged, by horizon."""
        return [one.days for one in self.scores.values()]

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of each horizon, as a card holds them."""
        return {str(horizon): figures_of(one) for horizon, one in self.scores.items()}

    @property
    def sentences(self) -> list[str]:
        """What an honest reader must know."""
        return [*sentences_of(self.figures), *self.missing]


def judge_books(model: BookCheckpoint, material: BookDataset, span: NamedSpan) -> BookJudgement:
    """Return what *model* is worth on *span* of the time after its card's untouched time began."""
    market = model.card["market"]
    found = _scores(model, material, span)
    return BookJudgement(span, tuple(market["symbols"]), found)


def _scores(model: BookCheckpoint, material: BookDataset, span: NamedSpan) -> dict[int, BookScores]:
    """Return the scores of the books of *span*; they see those before it that are untouched too.

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
    found = scores(model.network, stretches, model.card["frequencies"])
    if span.from_ms is not None:
        found = {name: one.rows(one.seen_ms >= span.from_ms) for name, one in found.items()}
    for horizon, one in found.items():
        if not len(one.seen_ms):
            raise ConfigInvalid(
                f"The span {span.text} holds no book whose move to {horizon} books is known; give "
                "files of that time, or a longer span."
            )
    return found


def with_rival(
    every: Sequence[BookJudgement], of: BookCheckpoint, name: str, data: Sequence[str]
) -> tuple[list[BookJudgement], BookCheckpoint]:
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
    if rival.model_id == of.model_id or name in every[0].beside:
        raise ConfigInvalid(f"--compare {name} is a model that is judged already; leave it out.")
    if rival.untrained:
        raise ConfigInvalid(f"--compare {name}: {rival.untrained[0]}")
    try:
        material = rival.material(data)
        found = [_scores(rival, material, one.span) for one in every]
    except (ConfigInvalid, DataInvalid) as error:
        raise ConfigInvalid(f"--compare {name}: {str(error).rstrip('.')}.") from None
    for one, other in zip(every, found, strict=True):
        if not any(_on_same(one.scores[h], other[h]) for h in set(one.scores) & set(other)):
            raise ConfigInvalid(
                f"--compare {name}: it answers no book to a horizon of the judged network; name "
                "one of a common horizon and time."
            )
    added = [
        replace(one, beside={**one.beside, name: other})
        for one, other in zip(every, found, strict=True)
    ]
    return added, rival


# --- tables


Losses = Callable[[BookScores], Mapping[str, Array]]
MODEL: Final = "model"
LOSSES: Final[Mapping[str, tuple[str, bool, Losses]]] = {
    "log_loss": (
        "Log loss of the mid's move (less is better)",
        True,
        lambda one: {MODEL: one.loss, "frequencies": one.loss_of_frequencies},
    ),
    "accuracy": (
        "Accuracy: moves of the mid named right",
        False,
        lambda one: {
            MODEL: one.hit,
            "most frequent": one.hit_of_most_frequent,
            "last move": one.hit_of_last_move,
        },
    ),
}
"""What networks of books are compared by: words, whether less is better, and each forecaster's."""


def said_of(found: DayDifference, *, is_less_better: bool) -> str:
    """Return the verdict of a difference; none of so few days."""
    return FEW if found.days < DAYS_TOLD_BY else verdict(found, is_less_better=is_less_better)


def score_tables(
    parts: Sequence[Mapping[int, BookScores]], prefix: str, suffix: str = ""
) -> list[Table]:
    """Return log loss and accuracy, a row a forecaster, pooled over *parts*, which are disjoint."""
    made = []
    for key, (title, is_less_better, losses) in LOSSES.items():
        rows: dict[str, dict[str, Value]] = {}
        columns = [of_row("forecaster", "forecaster", "text")]
        for horizon in parts[0]:
            whole = joined([part[horizon] for part in parts])
            every = losses(whole)
            against = less_others(every, whole.days, MODEL)
            for name, of in every.items():
                row = rows.setdefault(name, {"forecaster": name})
                row[str(horizon)] = figures.mean(of, whole.days)
                if name in against:
                    row[f"{horizon}_less"] = against[name].pair
                    row[f"{horizon}_verdict"] = said_of(
                        against[name], is_less_better=is_less_better
                    )
            columns += [
                of_row(str(horizon), f"{horizon} books", "measure"),
                of_row(f"{horizon}_less", "model less it", "measure"),
                of_row(f"{horizon}_verdict", "the model is", "text"),
            ]
        whole_title = f"{title}{suffix}"
        made.append(table(f"{prefix}{key}", whole_title, columns, rows.values(), notes=[_NOTE]))
    return made


def beside_tables(one: BookJudgement) -> list[Table]:
    """Return the network less each other on the same books, Holm over the others."""
    made = []
    for key, (title, is_less_better, losses) in LOSSES.items() if one.beside else ():
        differences = {
            (str(horizon), f"{horizon} books, model less it"): {
                name: paired([other[horizon]], [own], losses) if horizon in other else None
                for name, other in one.beside.items()
            }
            for horizon, own in one.scores.items()
        }
        whole = f"{title}: the model less each other model, on the books of both"
        say = partial(said_of, is_less_better=is_less_better)
        made.append(
            differences_table(f"beside_{key}", whole, differences, say, _NOTE, "model", "verdict")
        )
    return made


def _on_same(one: BookScores, other: BookScores) -> tuple[BookScores, BookScores] | None:
    """Return both at the books of both; None where there is none."""
    _, at, place = np.intersect1d(one.seen_ms, other.seen_ms, return_indices=True)
    return (one.rows(at), other.rows(place)) if len(at) else None


def paired(
    one: Sequence[BookScores], other: Sequence[BookScores], losses: Losses
) -> DayDifference | None:
    """Return the mean of *other* less *one*, part by part, at the books of both."""
    pairs = [pair for both in zip(one, other, strict=True) if (pair := _on_same(*both))]
    if not pairs:
        return None
    first, second = (joined([pair[at] for pair in pairs]) for at in (0, 1))
    return difference(losses(second)[MODEL], losses(first)[MODEL], first.days)


def tables_of_books(one: BookJudgement) -> list[Table]:
    """Return every table of one span."""
    return [*score_tables([one.scores], ""), *beside_tables(one)]


def tables_across_books(every: Sequence[BookJudgement]) -> list[Table]:
    """Return what was judged, and how many recipes opened it."""
    return [spans_table(every, "books")]


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


@dataclass(frozen=True)
class _BookFoldFit:
    """Fits the recipe of *card* on one of *count* folds of *material*."""

    card: Mapping[str, Any]
    material: BookDataset
    count: int
    threads: int

    def __call__(self, unit: tuple[int, BookFold], say: Say) -> dict[int, BookScores]:
        """Fit the network on a numbered fold and score it on the fold's test."""
        place, fold = unit
        use_threads(self.threads)
        say(f"Fold {place} of {self.count}.")
        return fold_scores(fold, self.material, *chosen_for(self.card, self.material), say)


def refit_books(
    model: BookCheckpoint,
    card: Mapping[str, Any],
    material: BookDataset,
    text: str,
    *,
    say: Say,
    each: Each = one_by_one,
) -> BookRefits:
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


_ABLATION_NOTE: Final = (
    "The change less the recipe as it is, on the same books; fitted anew on the same folds with "
    "the same seed, errors by day, the verdict by Holm over the changes."
)


def book_fold_tables(own: BookRefits, others: Mapping[str, BookRefits]) -> list[Table]:
    """Return log loss and accuracy over all tests, and how each change of *others* differs."""
    made = score_tables(own.scores, "folds_", f", over {own.text}")
    for key, (title, is_less_better, losses) in LOSSES.items() if others else ():
        differences = {}
        for horizon in own.scores[0]:
            mine = [part[horizon] for part in own.scores]
            differences[str(horizon), f"{horizon} books"] = {
                text: paired(mine, [part[horizon] for part in other.scores], losses)
                for text, other in others.items()
            }
        whole = f"{title}: what changes are worth, {own.text}"
        say = partial(said_of, is_less_better=is_less_better)
        made.append(differences_table(f"instead_{key}", whole, differences, say, _ABLATION_NOTE))
    return made
