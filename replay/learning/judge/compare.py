"""Forecasters compared on the rows that both answer, by day, and tables of their differences.

The rules are docs/models.md, L45 and L54.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.document.values import Cells, Figure, Table, Value, of_row, table
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts, words
from tracepaper.replay.learning.judge.metrics import (
    BOOK_DAYS,
    LOSSES,
    Metric,
    MetricView,
    estimate,
    views,
)
from tracepaper.replay.learning.statistics import DayDifference, corrected, difference, verdict
from tracepaper.replay.report.honesty import FEW_DAYS, LEVEL, PAIRED
from tracepaper.strategies.features.rolling import Array


def compare(
    rows: Forecasts,
    metric: Metric,
    model: str = MODEL,
    others: tuple[str, ...] | None = None,
    leave: tuple[str, ...] = (),
) -> dict[str, DayDifference]:
    """Return the *metric* of *model* less that of each other, by name, Holm over the others.

    Of each pair on the rows that both answer. Without *others* they are the baselines and the
    references; *leave* are names that are none. One that does not give what it needs is left out.
    """
    every = views(metric, rows, None if others is None else (model, *others))
    if model not in every or metric.less_is_better is None:
        return {}
    found = {}
    for name, view in every.items():
        if name in (model, *leave):
            continue
        pair = _shared(metric, every[model], view)
        if pair is not None:
            found[name] = difference(*pair)
    return corrected(found)


def _shared(
    metric: Metric, first: MetricView, second: MetricView
) -> tuple[Array, Array, NDArray[Any]] | None:
    """Return both terms and the days, of the rows that both answer; None where there is none."""
    known = answered(metric, first) & answered(metric, second)
    if not known.any():
        return None
    if not known.all():
        first, second = (MetricView(of.rows.where(known), of.name) for of in (first, second))
    one, other = metric.terms(first), metric.terms(second)
    counts = np.isfinite(one) & np.isfinite(other)
    return (one[counts], other[counts], first.rows.day[counts]) if counts.any() else None


def answered(metric: Metric, view: MetricView) -> NDArray[np.bool_]:
    """Return the rows at which the fields that *metric* needs are known."""
    known = np.ones(len(view.rows), dtype=np.bool_)
    for field in metric.needs:
        values = view[field]
        known &= np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    return known


def paired_figures(table: Forecasts, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    """Compare the model with every other forecaster, by horizon and loss, as a card keeps it.

    *leave* are names that are no others. Each entry is [difference, error, p], p by Holm over the
    others; less is better.
    """
    return {
        PAIRED: {
            str(horizon): {
                name: {other: less.rounded() for other, less in found.items()}
                for name in ("sign", "qlike")
                if (found := compare(rows, LOSSES[name], leave=leave))
            }
            for horizon, rows in table.by_horizon()
        }
    }


# --- tables

FEW: Final = "too few days"
NOTE: Final = (
    f"Errors by day; p by Student's t over days, Holm over the others, credible below {LEVEL}. "
    f"Fewer than {FEW_DAYS} days of weights, or {BOOK_DAYS} of books, say nothing."
)


def verdict_of(metric: Metric, found: DayDifference) -> str:
    """Return the verdict of a difference of *metric*; none of too few days."""
    if found.days < metric.least_days:
        return FEW
    return verdict(found, is_less_better=metric.less_is_better is not False)


def forecaster_table(
    key: str,
    title: str,
    forecasts: Forecasts,
    metrics: Metric | Mapping[str, Metric],
    *,
    of: str = "",
    model: str = MODEL,
    notes: Sequence[str] = (NOTE,),
) -> Table:
    """Return a row a forecaster: its metric at each horizon, what *model* has less it, the verdict.

    Of several *metrics* a row each, by their names in the column *of*.
    """
    each = {"": metrics} if isinstance(metrics, Metric) else metrics
    rows: dict[tuple[str, str], dict[str, Value]] = {}
    columns = [of_row(of, of, "text")] if of else []
    columns.append(of_row("forecaster", "forecaster", "text"))
    for horizon, at in forecasts.by_horizon():
        for label, metric in each.items():
            against, every = compare(at, metric, model), views(metric, at)
            for name in sorted(every, key=model.__ne__):
                row = rows.setdefault((label, name), {of: label, "forecaster": words(name)})
                row[str(horizon)] = estimate(metric, every[name])
                if name in against:
                    row |= _cells(horizon, "_less", metric, against[name])
        columns.append(of_row(str(horizon), f"{horizon} {forecasts.unit}", "measure"))
        columns += _columns(horizon, "_less", f"{words(model)} less it", model)
    ordered = sorted(rows, key=lambda row: list(each).index(row[0]))
    return table(key, title, columns, map(rows.__getitem__, ordered), notes=notes if rows else ())


def compared_table(
    key: str,
    title: str,
    forecasts: Forecasts,
    metric: Metric,
    others: tuple[str, ...] | None = None,
    *,
    first: str = "model",
    turned: bool = False,
) -> Table:
    """Return a row a name of *others* in the column *first*: the judged model less it by horizon.

    Without *others* they are the baselines and the references. If *turned*, each less the model.
    """
    rows: dict[str, dict[str, Value]] = {}
    columns = [of_row(first, first, "text")]
    for horizon, at in forecasts.by_horizon():
        for name, less in compare(at, metric, others=others).items():
            given = less._replace(value=0.0 - less.value) if turned else less
            row = rows.setdefault(name, {first: words(name) if others is None else name})
            row |= {**_cells(horizon, "", metric, given), "days": less.days}
        judged, title_of = first if turned else MODEL, f"{horizon} {forecasts.unit}"
        columns += _columns(horizon, "", title_of, judged)
    columns.append(of_row("days", "days", "count", wide=True))
    return table(key, title, columns, rows.values(), notes=[NOTE] if rows else ())


def _cells(horizon: int, suffix: str, metric: Metric, less: DayDifference) -> dict[str, Value]:
    said = verdict_of(metric, less)
    return {f"{horizon}{suffix}": less.pair, f"{horizon}_p": less.p, f"{horizon}_verdict": said}


def _columns(horizon: int, suffix: str, title: str, judged: str) -> list[Figure[Cells]]:
    return [
        of_row(f"{horizon}{suffix}", title, "measure"),
        of_row(f"{horizon}_p", "p", "measure", wide=True),
        of_row(f"{horizon}_verdict", f"the {words(judged)} is", "text"),
    ]
