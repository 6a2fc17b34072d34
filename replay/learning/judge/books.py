"""Tables of networks of order books: log loss and accuracy of the mid's move.

Errors are those of whole calendar days drawn anew, and fewer than ten say nothing.

The rules are docs/orderbook.md, D10 to D12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from tracepaper.replay.document.values import Table
from tracepaper.replay.learning.estimators.order_book import BOOKS, DAYS_TOLD_BY
from tracepaper.replay.learning.judge.compare import compare, differences_table, forecaster_table
from tracepaper.replay.learning.judge.forecasts import Forecasts
from tracepaper.replay.learning.judge.judge import SpanJudgement
from tracepaper.replay.learning.judge.metrics import Metric
from tracepaper.replay.learning.statistics import DayDifference, verdict
from tracepaper.replay.report.honesty import LEVEL

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
