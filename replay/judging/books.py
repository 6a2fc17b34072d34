"""Networks of order books judged on spans of recorded time, alone and beside one another.

Only what the exchange itself sent is judged, by networks that learnt from seven days of it; of any
other nothing is measured. Errors are those of whole calendar days drawn anew, and fewer than five
say nothing.

The rules are docs/orderbook.md, D10 to D12 and D19.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.replay.archive.columns import instant, iso
from tracepaper.replay.document.values import Figure, Table, Value, of_row, table
from tracepaper.replay.training import figures
from tracepaper.replay.training.book_map import (
    check_fits,
    is_of_books,
    load_books,
)
from tracepaper.replay.training.estimator import recipe_of
from tracepaper.replay.training.estimators.order_book import (
    DAYS_TOLD_BY,
    BookScores,
    figures_of,
    joined,
    scores,
    sentences_of,
)
from tracepaper.replay.training.honesty import LEVEL
from tracepaper.replay.training.openings import (
    NamedSpan,
)
from tracepaper.replay.training.order_books import (
    JUDGED_SOURCE,
    BookDataset,
)
from tracepaper.replay.training.paired import (
    DayDifference,
    corrected,
    difference,
    verdict,
)
from tracepaper.storage.checkpoints import locate
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.order_book import OrderBookNetwork
from tracepaper.strategies.units import DAY_MS

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
class BookJudgement:
    """What one span says of a network, by horizon, and of others on the same books by name."""

    span: NamedSpan
    symbols: tuple[str, ...]
    scores: Mapping[int, BookScores]
    beside: Mapping[str, Mapping[int, BookScores]] = field(default_factory=dict)
    openings: int = 1
    missing: tuple[str, ...] = ()

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of each horizon, as a card holds them."""
        return {str(horizon): figures_of(one) for horizon, one in self.scores.items()}

    @property
    def sentences(self) -> list[str]:
        """What an honest reader must know."""
        return [*sentences_of(self.figures), *self.missing]

    @property
    def days(self) -> int:
        """How many calendar days were judged."""
        return len(np.unique(np.concatenate([one.days for one in self.scores.values()])))

    @property
    def from_ms(self) -> int:
        """The midnight of the first day judged."""
        return int(min(one.days.min() for one in self.scores.values())) * DAY_MS

    @property
    def until_ms(self) -> int:
        """The midnight after the last day judged."""
        return (int(max(one.days.max() for one in self.scores.values())) + 1) * DAY_MS


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
            against = corrected(
                {
                    n: difference(every[MODEL], of, whole.days)
                    for n, of in every.items()
                    if n != MODEL
                }
            )
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
        rows: dict[str, dict[str, Value]] = {name: {"model": name} for name in one.beside}
        columns = [of_row("model", "model", "text")]
        for horizon in one.scores:
            for name, found in _compared(one, horizon, losses).items():
                rows[name] |= {
                    str(horizon): found.pair,
                    f"{horizon}_verdict": said_of(found, is_less_better=is_less_better),
                    "days": found.days,
                }
            columns += [
                of_row(str(horizon), f"{horizon} books, model less it", "measure"),
                of_row(f"{horizon}_verdict", "verdict", "text"),
            ]
        columns.append(of_row("days", "days", "count"))
        whole = f"{title}: the model less each other model, on the books of both"
        made.append(table(f"beside_{key}", whole, columns, rows.values(), notes=[_NOTE]))
    return made


def _compared(one: BookJudgement, horizon: int, losses: Losses) -> dict[str, DayDifference]:
    found = {}
    for name, other in one.beside.items():
        pair = _on_same(one.scores[horizon], other[horizon]) if horizon in other else None
        if pair is not None:
            first, second = (losses(scored)[MODEL] for scored in pair)
            found[name] = difference(first, second, pair[0].days)
    return corrected(found)


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
    columns: list[Figure[BookJudgement]] = [
        Figure("span", "span", "text", lambda one: one.span.name),
        Figure("from", "from", "text", lambda one: iso(one.from_ms)[:10]),
        Figure("until", "until", "text", lambda one: iso(one.until_ms)[:10]),
        Figure("days", "days", "count", lambda one: one.days),
        Figure("books", "books", "count", lambda one: len(next(iter(one.scores.values())).seen_ms)),
        Figure("openings", "opened by", "count", lambda one: one.openings),
    ]
    note = "Opened by: how many recipes were judged on the span."
    return [table("spans", "What was judged", columns, every, notes=[note])]
