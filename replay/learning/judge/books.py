"""Networks of order books: their judgement on spans, and tables of the mid's move.

Only what the exchange itself sent is judged. Errors are those of whole calendar days drawn anew,
and fewer than ten say nothing.

The rules are docs/orderbook.md, D10 to D12 and D19; docs/orderbook.md, D20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from tracepaper.replay.archive.columns import instant
from tracepaper.replay.document.values import Table
from tracepaper.replay.learning.estimators.order_book import (
    BOOKS,
    DAYS_TOLD_BY,
    book_forecasts,
    check_fits,
    figures_of,
    network_of,
    sentences_of,
)
from tracepaper.replay.learning.judge.compare import compare, differences_table, forecaster_table
from tracepaper.replay.learning.judge.explained import Judgement
from tracepaper.replay.learning.judge.forecasts import Forecasts
from tracepaper.replay.learning.judge.judge import Rival, SpanJudgement, compare_error
from tracepaper.replay.learning.judge.metrics import Metric
from tracepaper.replay.learning.openings import NamedSpan
from tracepaper.replay.learning.order_books import JUDGED_SOURCE, BookDataset
from tracepaper.replay.learning.statistics import DayDifference, verdict
from tracepaper.replay.report.honesty import LEVEL
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.units import iso

FEW: Final = "too few days"
_NOTE: Final = (
    f"Errors by day, p by Student's t over days, credible below {LEVEL}; fewer than {DAYS_TOLD_BY} "
    "days say nothing."
)


def said_of(found: DayDifference, *, is_less_better: bool) -> str:
    """Return the verdict of a difference; none of so few days."""
    return FEW if found.days < DAYS_TOLD_BY else verdict(found, is_less_better=is_less_better)


def score_tables(forecasts: Forecasts, prefix: str, suffix: str = "") -> list[Table]:
    """Return log loss and accuracy, a row a forecaster."""
    return [
        forecaster_table(
            f"{prefix}{key}", f"{metric.title}{suffix}", forecasts, metric, verdict_by(metric),
            _NOTE, unit="books", less="model less it",
        )
        for key, metric in BOOKS.items()
    ]  # fmt: skip


def verdict_by(metric: Metric) -> Callable[[DayDifference], str]:
    """Return the verdict of differences of *metric*; none of so few days."""
    return partial(said_of, is_less_better=metric.less_is_better)


def beside_tables(one: SpanJudgement) -> list[Table]:
    """Return the network less each other on the same books, Holm over the others."""
    made = []
    names = one.forecasts.compared
    for key, metric in BOOKS.items() if names else ():
        differences = {
            (str(horizon), f"{horizon} books, model less it"): dict.fromkeys(names)
            | compare(rows, metric, others=names)
            for horizon, rows in one.forecasts.by_horizon()
        }
        whole = f"{metric.title}: the model less each other model, on the books of both"
        say = verdict_by(metric)
        made.append(
            differences_table(f"beside_{key}", whole, differences, say, _NOTE, "model", "verdict")
        )
    return made


def book_tables(one: SpanJudgement) -> Iterable[Table]:
    """Return every table of a span of books; none of bars."""
    if one.unit == "books":
        yield from (*score_tables(one.forecasts, ""), *beside_tables(one))


# --- judgement


def read_books_of(card: Mapping[str, Any], paths: Sequence[str]) -> BookDataset:
    """Read *paths*, which must be what the exchange itself sent of its instrument and pace."""
    data = BookDataset.read(paths)
    check_fits(data.header, card, Path(paths[0]))
    if any(file.source != JUDGED_SOURCE for file in data.files):
        raise DataInvalid(
            "Only books that `tracepaper data record` took from the exchange are judged; give "
            "files of them alone."
        )
    return data


def untouched_ms(card: Mapping[str, Any]) -> int:
    """Return when the untouched time of a card begins."""
    return instant(card["split"]["untouched_from"])


def judge_books(
    card: Mapping[str, Any], tensors: Mapping[str, Any], data: BookDataset, span: NamedSpan
) -> SpanJudgement:
    """Return what a network is worth on *span* of the time after its untouched time began."""
    forecasts = _forecasts(card, tensors, data, span)
    figures = {str(at): figures_of(rows) for at, rows in forecasts.by_horizon()}
    judged = Judgement(forecasts, figures, sentences_of(figures))
    return SpanJudgement(span, tuple(card["market"]["symbols"]), judged, card)


def _forecasts(
    card: Mapping[str, Any], tensors: Mapping[str, Any], data: BookDataset, span: NamedSpan
) -> Forecasts:
    """Return the books of *span*; forecasts see those before it that are untouched too.

    Raises ``ConfigInvalid`` for a span that begins too early, or holds no known move.
    """
    begun, network = untouched_ms(card), network_of(card, tensors)
    if span.from_ms is not None and span.from_ms < begun:
        raise ConfigInvalid(
            f"The span {span.text} begins before {iso(begun)}, until when the model had seen all; "
            "judge it on later books."
        )
    levels = network.config.levels
    stretches = [books.shallower(levels) for books in data.between(begun, span.until_ms)]
    if not stretches:
        raise DataInvalid(
            f"All books of --data until {span.until or 'their end'} are from before {iso(begun)}, "
            "and learnt from; give later ones."
        )
    found = book_forecasts(network, stretches, card["frequencies"])
    if span.from_ms is not None:
        found = found.where(found.open_ms >= span.from_ms)
    for horizon in network.config.horizons:
        if horizon not in found.horizons:
            raise ConfigInvalid(
                f"The span {span.text} holds no book whose move to {horizon} books is known; give "
                "files of that time, or a longer span."
            )
    return found


def rival_books(
    name: str,
    card: Mapping[str, Any],
    tensors: Mapping[str, Any],
    data: BookDataset,
    judgement: SpanJudgement,
) -> Rival:
    """Return the forecasts of another network for the books of *judgement*.

    Raises ``ConfigInvalid`` where it has no horizon or book in common.
    """
    try:
        found = _forecasts(card, tensors, data, judgement.span)
    except (ConfigInvalid, DataInvalid) as error:
        raise compare_error(name, error) from None
    if not (judgement.forecasts.places(found) >= 0).any():
        raise ConfigInvalid(
            f"--compare {name}: it answers no book to a horizon of the judged network; name one of "
            "a common horizon and time."
        )
    return Rival(name, found)
