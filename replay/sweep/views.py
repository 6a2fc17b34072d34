"""A sweep as a document: its points, its heat map, how much is luck, and its command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

import numpy as np

from tracepaper.replay.backtest.effects import sentence_on
from tracepaper.replay.document.charts import (
    Chart,
    ChartPanel,
    HeatLayer,
    category_axis,
    rounded,
)
from tracepaper.replay.document.values import (
    FoldedParts,
    Form,
    Paragraph,
    Part,
    Table,
    TitledParts,
    Value,
    of_row,
    signed_estimate,
    written,
)
from tracepaper.replay.report.metrics import DAYS_TO_ANNUALISE, is_annual, mean_error
from tracepaper.replay.report.states import below_zero
from tracepaper.replay.sweep.result import Heat, Sweep
from tracepaper.replay.sweep.space import FIGURES, objective_text
from tracepaper.replay.sweep.trial import TEST, TRAIN, CellResult
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.units import count_of, number, percent

CELLS_SHOWN: Final = 5
HEAT_COLUMNS: Final = 10
HEAT_ROWS: Final = 60
ERRORS_SHOWN: Final = 3
COMPARED: Final[dict[str, Form]] = {
    "return": "gain percent",
    "trades": "count",
    "max_drawdown": "percent",
    "random_beaten": "share",
}
"""Figures shown beside the objective."""
SCALES: Final = {"percent": (100.0, " %", 2), "share": (100.0, " %", 1), "bp": (1e4, " bp", 1)}
PLAIN: Final = (1.0, "", None)
"""Factor, unit and decimals of the heat map's scale, by the form of the objective."""
TITLES: Final = {"max_drawdown": "drawdown", "random_beaten": "beats timings"}


def sweep_document(sweep: Sweep) -> TitledParts:
    """Return the sweep as a document."""
    return TitledParts(f"Sweep of {_strategy(sweep)}", tuple(_parts(sweep)))


def _strategy(sweep: Sweep) -> str:
    return sweep.request.work.strategy or "several strategies"


def _parts(sweep: Sweep) -> Iterator[Part]:
    request = sweep.request
    count, failed = len(sweep.cells), sum(bool(cell.error) for cell in sweep.cells)
    runs = count_of(count, "run") + (f", {failed:,} of them failed" if failed else "")
    new_runs = "" if sweep.new_runs == count else f" ({sweep.new_runs:,} new)"
    is_walk = request.spans[0].test_ms is not None or len(request.spans) > 1
    symbols = ", ".join(request.symbols)
    yield Paragraph(
        f"sweep of {_strategy(sweep)} on {symbols}: {runs}{new_runs}, by {sweep.objective}"
    )
    for sentence in request.warnings:
        yield Paragraph(f"Warning: {sentence}.", "warning")
    if sweep.without_effect:
        sentence = sentence_on(sweep.without_effect, "at the best point")
        yield Paragraph(f"Warning: {sentence}.", "warning")
    if sweep.best is None:
        yield Paragraph(f"No run succeeded; the first says: {sweep.first_error}")
    else:
        yield _windows(sweep) if is_walk else _every_run(sweep, is_walk=False)
        if (heat := sweep.heat()) is not None and len(heat.columns) > 1:
            yield _heat(sweep, heat)
        yield Paragraph("How much of it is luck", "heading")
        for sentence in luck(sweep):
            yield Paragraph(sentence, "item")
    for sentence in _errors(sweep) if sweep.best is not None else ():
        yield Paragraph(sentence)
    if idle := [cell for cell in sweep.cells if cell.without_fills]:
        runs = f"{len(idle):,} of {count_of(count, 'run')} filled nothing"
        yield Paragraph(f"{runs}, first {_named_point(idle[0])}: {idle[0].without_fills}")
    if is_walk or sweep.best is None:
        yield FoldedParts("Every run", (_every_run(sweep, is_walk=is_walk),))
    if sweep.command is not None:
        yield Paragraph("Run the best point again, over all the data, with its whole record:")
        yield Paragraph(sweep.command, "code")


def _every_run(sweep: Sweep, *, is_walk: bool) -> Table:
    """Return one row per run, by window; in each the best comes first, failed runs last."""
    compared = {key: form for key, form in COMPARED.items() if key != sweep.objective}
    sign = -1.0 if sweep.maximize else 1.0

    def rank(cell: CellResult) -> tuple[int, bool, bool, float]:
        return cell.span, cell.part == TEST, cell.value is None, sign * (cell.value or 0.0)

    rows = [
        [
            *([str(cell.span + 1), cell.part] if is_walk else []),
            *_point(sweep, cell),
            objective_text(cell.value, sweep.objective),
            *(written(cell.figures.get(key), form) for key, form in compared.items()),
            cell.error,
        ]
        for cell in sorted(sweep.cells, key=rank)
    ]
    columns = [*(["window", "part"] if is_walk else []), *_names(sweep), sweep.objective]
    columns += [*(TITLES.get(key, key) for key in compared), "error"]
    return _table("runs", "Every run, the best first", columns, rows, shown=CELLS_SHOWN)


def _names(sweep: Sweep) -> list[str]:
    return [axis.name for axis in sweep.request.axes]


def _point(sweep: Sweep, cell: CellResult) -> list[str]:
    return [_value(cell.point[name]) for name in _names(sweep)]


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _windows(sweep: Sweep) -> Table:
    """Return one row per window: the chosen point, and its result in the test that follows."""
    names = _names(sweep)
    rows: list[list[Value]] = []
    for span in range(len(sweep.request.spans)):
        test = next((cell for cell in sweep.cells if cell.key == (span, TEST, 0)), None)
        if test is None:
            rows.append([str(span + 1), *(None for _ in names), None, None, None, None])
            continue
        train = next(
            cell
            for cell in sweep.tried
            if cell.span == span and cell.point == test.point and cell.value is not None
        )
        rows.append(
            [
                str(span + 1),
                *_point(sweep, test),
                objective_text(train.value, sweep.objective),
                objective_text(test.value, sweep.objective),
                written(test.figures.get("return"), "gain percent"),
                written(test.figures.get("trades"), "count"),
            ]
        )
    columns = ["window", *names, f"{sweep.objective}: train", "test", "test return", "trades"]
    return _table("windows", "", columns, rows)


def _table(
    key: str,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Value]],
    *,
    shown: int | None = None,
) -> Table:
    # An option may have the name of a figure, so the key of a column is its index.
    figures = [
        of_row(str(place), name, "text" if name in ("part", "error") else "exact",
               wide=name == "error")
        for place, name in enumerate(columns)
    ]  # fmt: skip
    cells = tuple(map(tuple, rows))
    return Table(key, title, tuple(figures), cells, shown=shown, whole=shown is None)


def _heat(sweep: Sweep, heat: Heat) -> Table:
    """Return the heat map as a table; a terminal shows the columns around the best."""
    first = max(0, min(heat.best[1] - HEAT_COLUMNS // 2, len(heat.columns) - HEAT_COLUMNS))
    form = FIGURES.get(sweep.objective, "measure")
    figures = [of_row("y", heat.y, "exact")]
    figures += [
        of_row(f"x{place}", name, form, wide=not first <= place < first + HEAT_COLUMNS)
        for place, name in enumerate(heat.columns)
    ]
    rows = tuple(
        (name or "median", *row.tolist()) for name, row in zip(heat.rows, heat.values, strict=True)
    )
    by = f"{heat.y} (down) and {heat.x} (across)" if heat.y else heat.x
    title = f"{sweep.objective}{', bp,' * ('bp' in form)} by {by}: medians over all else"
    best: Literal["most", "least"] = "most" if sweep.maximize else "least"
    whole = len(rows) <= HEAT_ROWS
    return Table("heat", title, tuple(figures), rows, best=best, whole=whole)


def heat_chart(sweep: Sweep) -> Chart:
    """Draw the heat map: medians of the objective over the two options that move it most.

    Raises ``DataInvalid`` if the objective has no two values to compare.
    """
    heat = sweep.heat()
    if heat is None or len(heat.columns) < 2:
        raise DataInvalid(
            "No two points of this sweep have a value, so there is no heat map; give more values."
        )
    texts = [
        [objective_text(value, sweep.objective) for value in row] for row in heat.values.tolist()
    ]
    row, column = heat.best
    texts[row][column] = f"best: {texts[row][column]}"
    ends = float(np.nanmin(heat.values)), float(np.nanmax(heat.values))
    low, high = ends if sweep.maximize else ends[::-1]
    form = FIGURES.get(sweep.objective, "measure")
    times, unit, digits = next((scale for name, scale in SCALES.items() if name in form), PLAIN)
    cells = HeatLayer(
        sweep.objective,
        range(len(heat.columns)),
        range(len(heat.rows)),
        low,
        high,
        [rounded(values) for values in heat.values],
        times=times,
        unit=unit,
        digits=digits,
        texts=texts,
        is_written=True,
    )
    across, down = category_axis(heat.columns, heat.x), category_axis(heat.rows, heat.y)
    panel = ChartPanel([cells], across, down, 60 + min(44 * len(heat.rows), 560))
    caption = f"The median {sweep.objective} of all runs at a point; the best run is in its cell."
    return Chart(f"{_strategy(sweep)}: {sweep.objective}", caption, [panel])


def luck(sweep: Sweep) -> Iterator[str]:
    """Yield sentences that estimate how much of the best result may be luck."""
    best = sweep.best
    assert best is not None
    values = [
        cell.value for cell in sweep.tried if cell.value is not None and cell.span == best.span
    ]
    top = objective_text(best.value, sweep.objective)
    middle = objective_text(float(np.median(values)), sweep.objective)
    where = " of the last window" if best.part == TRAIN else ""
    yield f"Of {count_of(len(values), 'point')}{where} the best reaches {top}, the median {middle}."
    if len(values) > 1 and min(values) == max(values):
        yield "All points have the same value: no option of this space changes it."
    elif (near := sweep.neighbours) is not None:
        if near.median is None:
            yield f"All {near.failed} points next to it failed."
        else:
            failed = f" ({near.failed} more failed)" if near.failed else ""
            median = objective_text(near.median, sweep.objective)
            if len(near.values) == 1:
                yield (
                    f"The 1 point next to it{failed} reaches {median}; if it is much worse than "
                    "the best, the best is chance."
                )
            else:
                yield (
                    f"The {len(near.values):,} points next to it{failed} reach a median of "
                    f"{median}; if they are much worse than the best, the best is chance."
                )
    mean, error = best.figures["mean_day"], best.figures["mean_day_error"]
    if mean is not None:
        earned = signed_estimate(mean, error, ".1f", 1e4, " bp")
        yield f"It earns a day {earned}, before one counts how many were tried."
    since_ms, lowest = best.figures["below_zero_ms"], best.figures["lowest_equity"]
    if since_ms is not None and lowest is not None:
        yield below_zero(np.array([since_ms]), np.array([lowest]))
    beaten = best.figures["random_beaten"]
    if beaten is not None:
        count = len(values)
        yield (
            f"It beats {percent(beaten, 1)} of its random timings; the luckiest of {count:,} "
            f"points without skill would beat {percent(count / (count + 1), 0)} on average."
        )
    yield from _deflated(sweep, best)
    yield from _out_of_sample(sweep)


def _deflated(sweep: Sweep, best: CellResult) -> Iterator[str]:
    trials = sweep.trials.number
    yield (
        f"Over all sweeps {trials:,} configurations were tried on these data (counted in "
        f"{sweep.registry})."
    )
    days = best.figures["days"] or 0.0
    if not is_annual(days):
        yield (
            "Deflated Sharpe ratio and probability of overfitting: not computed for "
            f"{days:.1f} days; they need {DAYS_TO_ANNUALISE}."
        )
        return
    if (over := sweep.overfitting) is not None:
        left = f" ({over.left_out} left out: other days)" if over.left_out else ""
        yield (
            f"Probability of backtest overfitting: {percent(over.probability, 0)}. So often the "
            "point with the best Sharpe ratio on one half of the days is among the worse half of "
            f"the {over.points} points{left} on the other; drawing a point by chance gives 50 %."
        )
    if sweep.best_by_chance is None:
        yield "No two trials have a Sharpe ratio that differs, so nothing can be deflated."
        return
    deflated = sweep.deflated_sharpe
    if deflated is None:
        yield "Its Sharpe ratio has no error, so it cannot be deflated."
        return
    yield (
        f"The best of so many without skill is expected to reach a Sharpe ratio of "
        f"{sweep.best_by_chance:.3f} a day; the probability that this one's true ratio is above "
        f"that (the deflated Sharpe ratio) is {percent(deflated, 1)}."
    )


def _out_of_sample(sweep: Sweep) -> Iterator[str]:
    tests = [cell for cell in sweep.cells if cell.part == TEST and cell.daily]
    if not tests:
        return
    daily = np.array([value for cell in tests for value in cell.daily])
    grown = float(np.prod([1.0 + (cell.figures["return"] or 0.0) for cell in tests]) - 1.0)
    days = sum(cell.figures["days"] or 0.0 for cell in tests)
    bar_days = max(1.0, days / daily.size)  # more than 1 if a bar is longer than a day
    error = mean_error(daily, np.arange(daily.size))  # the tests follow each other
    earned = signed_estimate(float(daily.mean()), error, ".1f", 1e4 / bar_days, " bp")
    yield (
        f"Out of sample, in {len(tests)} tests after their windows: {percent(grown, signed=True)} "
        f"in {days:,.0f} days, a day {earned}. Believe this figure."
    )


def _named_point(cell: CellResult) -> str:
    return ", ".join(f"{name} = {_value(value)}" for name, value in cell.point.items())


def _errors(sweep: Sweep) -> Iterator[str]:
    failed = [cell for cell in sweep.cells if cell.error]
    for cell in failed[:ERRORS_SHOWN]:
        yield f"Failed: {_named_point(cell)}: {cell.error}"
    if len(failed) > ERRORS_SHOWN:
        yield f"and {len(failed) - ERRORS_SHOWN:,} more failed."
