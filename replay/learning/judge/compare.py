"""Forecasters compared on the rows that both answer, by day, and tables of their differences.

The rules are docs/models.md, L45 and L54.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.document.values import Cells, Table, Value, of_row, table
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts, words
from tracepaper.replay.learning.judge.metrics import LOSSES, Metric, MetricView, estimate, views
from tracepaper.replay.learning.statistics import DayDifference, corrected, difference
from tracepaper.replay.report.honesty import PAIRED
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
    if model not in every:
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


def forecaster_table(  # noqa: PLR0913 - the words of a table
    key: str,
    title: str,
    forecasts: Forecasts,
    metrics: Metric | Mapping[str, Metric],
    say: Callable[[DayDifference], str],
    note: str,
    *,
    of: str = "",
    unit: str = "bars",
    model: str = MODEL,
    less: str = "",
    shows_p: bool = False,
) -> Table:
    """Return a row a forecaster: its metric at each horizon, and the verdict of *model* on it.

    Of several *metrics* a row each, by their names in the column *of*. With *less*, the title of
    the column, also what *model* has less it.
    """
    each = {"": metrics} if isinstance(metrics, Metric) else metrics
    rows: dict[tuple[str, str], dict[str, Value]] = {}
    columns = [of_row(of, of, "text")] if of else []
    columns.append(of_row("forecaster", "forecaster", "text"))
    verdicts = "the model is" if model == MODEL else f"{words(model)} is"
    for horizon, at in forecasts.by_horizon():
        for label, metric in each.items():
            against, every = compare(at, metric, model), views(metric, at)
            for name in sorted(every, key=model.__ne__):
                row = rows.setdefault((label, name), {of: label, "forecaster": words(name)})
                row[str(horizon)] = estimate(metric, every[name])
                if name in against:
                    row[f"{horizon}_less"] = against[name].pair
                    row[f"{horizon}_p"] = against[name].p
                    row[f"{horizon}_verdict"] = say(against[name])
        columns.append(of_row(str(horizon), f"{horizon} {unit}", "measure"))
        columns += [of_row(f"{horizon}_less", less, "measure")] if less else []
        columns += [of_row(f"{horizon}_p", "p", "measure", wide=True)] if shows_p else []
        columns.append(of_row(f"{horizon}_verdict", verdicts, "text"))
    ordered = sorted(rows, key=lambda row: list(each).index(row[0]))
    return table(key, title, columns, map(rows.__getitem__, ordered), notes=[note] if rows else ())


def rival_table(
    key: str,
    title: str,
    found: Mapping[str, DayDifference],
    note: str,
    say: Callable[[DayDifference], str],
) -> Table:
    """Return a row a model: what the judged one's loss or gain is less its own, and the verdict."""
    rows: list[Cells] = [
        {
            "model": name,
            "difference": less.pair,
            "p": less.p,
            "verdict": say(less),
            "days": less.days,
        }
        for name, less in found.items()
    ]
    columns = [
        of_row("model", "model", "text"),
        of_row("difference", "model less the other", "measure"),
        of_row("p", "p", "measure"),
        of_row("verdict", "verdict", "text"),
        of_row("days", "days", "count"),
    ]
    return table(key, title, columns, rows, notes=[note])


def differences_table(
    key: str,
    title: str,
    differences: Mapping[tuple[str, str], Mapping[str, DayDifference | None]],
    say: Callable[[DayDifference], str],
    note: str,
    first: str = "change",
    says: str = "the change is",
) -> Table:
    """Return a row a name in the column *first*.

    *differences* are by the key and title of their column, then by name; *says* is the title of the
    verdicts.
    """
    rows: dict[str, dict[str, Value]] = {}
    columns = [of_row(first, first, "text")]
    for (column, heading), every in differences.items():
        for name in every:
            rows.setdefault(name, {first: name})
        known = {name: one for name, one in every.items() if one is not None}
        for name, one in known.items():
            rows[name] |= {column: one.pair, f"{column}_verdict": say(one), "days": one.days}
        columns.append(of_row(column, heading, "measure"))
        columns.append(of_row(f"{column}_verdict", says, "text"))
    columns.append(of_row("days", "days", "count"))
    return table(key, title, columns, rows.values(), notes=[note])
