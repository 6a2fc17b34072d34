"""A sweep for a terminal and as a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from rich.console import Console
from rich.text import Text

from tracepaper.replay.document.charts import Chart, ChartPanel, HeatLayer, named, rounded
from tracepaper.replay.document.terminal import show
from tracepaper.replay.document.values import (
    Form,
    Paragraph,
    Part,
    Table,
    TitledParts,
    Value,
    of_row,
    written,
)
from tracepaper.replay.report.metrics import DAYS_TO_ANNUALISE, is_annual, mean_error
from tracepaper.replay.sweep.result import Heat, Sweep
from tracepaper.replay.sweep.space import in_words
from tracepaper.replay.sweep.trial import TEST, TRAIN, CellResult
from tracepaper.strategies.units import count_of, number

CELLS_SHOWN: Final = 5
HEAT_ROWS: Final = 16
HEAT_COLUMNS: Final = 10
ERRORS_SHOWN: Final = 3
COMPARED: Final[dict[str, Form]] = {
    "return": "gain percent",
    "trades": "count",
    "max_drawdown": "percent",
    "random_beaten": "share",
}
"""Figures that are shown with the objective."""
TITLES: Final = {"max_drawdown": "drawdown", "random_beaten": "beats twins"}


def show_sweep(console: Console, sweep: Sweep) -> None:
    """Print *sweep*, and the command that runs its best point again."""
    show(console, _parts(sweep), blank_lines=False)
    if sweep.command is not None:
        console.print(Text(sweep.command), soft_wrap=True)  # to be copied, so no line is broken


def _parts(sweep: Sweep) -> Iterator[Part]:
    request = sweep.request
    strategy = request.work.strategy or "several strategies"
    symbols = ", ".join(request.symbols)
    count, failed = len(sweep.cells), sum(bool(cell.error) for cell in sweep.cells)
    runs = count_of(count, "run") + (f", {failed:,} of them failed" if failed else "")
    new_runs = "" if sweep.new_runs == count else f" ({sweep.new_runs:,} new)"
    is_walk = request.spans[0].test_ms is not None or len(request.spans) > 1
    best = f", the best {CELLS_SHOWN} of them" * (count - failed > CELLS_SHOWN and not is_walk)
    yield Paragraph(
        f"sweep of {strategy} on {symbols}: {runs}{new_runs}, by {sweep.objective}{best}"
    )
    for sentence in request.warnings:
        yield Paragraph(f"Warning: {sentence}.", "warning")
    if sweep.best is None:
        yield Paragraph(f"No run succeeded; the first says: {sweep.first_error}")
        return
    yield _windows(sweep) if is_walk else _best_cells(sweep)
    if (heat := sweep.heat()) is not None and len(heat.columns) > 1:
        yield _heat(sweep, heat)
    yield Paragraph("How much of it is luck", "strong")
    for sentence in luck(sweep):
        yield Paragraph(sentence, "item")
    for sentence in _errors(sweep):
        yield Paragraph(sentence)
    if sweep.command is not None:
        yield Paragraph("The best point again, over all the data, with its whole record:")


def _best_cells(sweep: Sweep) -> Table:
    names = [axis.name for axis in sweep.request.axes]
    compared: dict[str, Form] = {
        key: form for key, form in COMPARED.items() if key != sweep.objective
    }
    sign = -1.0 if sweep.maximize else 1.0
    ranked = sorted(
        (cell for cell in sweep.tried if cell.value is not None),
        key=lambda cell: (sign * (cell.value or 0.0), cell.number),
    )
    rows = [
        [
            *_point(sweep, cell),
            in_words(cell.value, sweep.objective),
            *(written(cell.figures[key], form) for key, form in compared.items()),
        ]
        for cell in ranked[:CELLS_SHOWN]
    ]
    columns = [*names, sweep.objective, *(TITLES.get(key, key) for key in compared)]
    return _table("best", "", columns, rows)


def _point(sweep: Sweep, cell: CellResult) -> list[str]:
    return [_value(cell.point[axis.name]) for axis in sweep.request.axes]


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _windows(sweep: Sweep) -> Table:
    """Make a row a window: what it chose, and what that came to in the time after it."""
    names = [axis.name for axis in sweep.request.axes]
    rows: list[list[Value]] = []
    for span in range(len(sweep.request.spans)):
        tested = next((of for of in sweep.cells if of.key == (span, TEST, 0)), None)
        if tested is None:
            rows.append([str(span + 1), *(None for _ in names), None, None, None, None])
            continue
        train = next(
            of
            for of in sweep.tried
            if of.span == span and of.point == tested.point and of.value is not None
        )
        rows.append(
            [
                str(span + 1),
                *_point(sweep, tested),
                in_words(train.value, sweep.objective),
                in_words(tested.value, sweep.objective),
                written(tested.figures.get("return"), "gain percent"),
                written(tested.figures.get("trades"), "count"),
            ]
        )
    columns = ["window", *names, f"{sweep.objective}: train", "test", "test return", "trades"]
    return _table("windows", "", columns, rows)


def _table(
    key: str,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Value]],
    texts: Sequence[int] = (),
) -> Table:
    # An option may be called as a figure is, so columns are told apart by their place.
    figures = [
        of_row(str(place), name, "text" if place in texts else "exact")
        for place, name in enumerate(columns)
    ]
    return Table(key, title, tuple(figures), tuple(map(tuple, rows)), whole=True)


def _heat(sweep: Sweep, heat: Heat) -> Table:
    """Make the heat map a table; of a large one the part around the best."""
    rows = _around(heat.best[0], len(heat.rows), HEAT_ROWS)
    columns = _around(heat.best[1], len(heat.columns), HEAT_COLUMNS)
    cells: list[list[Value]] = []
    for row in rows:
        cells.append([heat.rows[row]])
        for column in columns:
            value = float(heat.values[row, column])
            text = "·"
            if not np.isnan(value):
                text = in_words(value, sweep.objective).removesuffix(" %").removesuffix(" bp")
            cells[-1].append(f"[{text}]" if (row, column) == heat.best else text)
    by = f"{heat.y} (down) and {heat.x} (across)" if heat.y else heat.x
    title = f"{sweep.objective} by {by}: medians over all else, the best in brackets"
    return _table("heat", title, [heat.y, *(heat.columns[column] for column in columns)], cells)


def _around(place: int, size: int, most: int) -> range:
    first = max(0, min(place - most // 2, size - most))
    return range(first, min(size, first + most))


def luck(sweep: Sweep) -> Iterator[str]:
    """Yield the sentences that say how much of the best cell may be luck."""
    best = sweep.best
    assert best is not None
    values = [
        cell.value for cell in sweep.tried if cell.value is not None and cell.span == best.span
    ]
    top, middle = (in_words(of, sweep.objective) for of in (best.value, float(np.median(values))))
    where = " of the last window" if best.part == TRAIN else ""
    yield f"Of {count_of(len(values), 'point')}{where} the best reaches {top}, the median {middle}."
    if len(values) > 1 and min(values) == max(values):
        yield "All points came to the same: nothing in this space moved it."
    elif (near := sweep.neighbours) is not None:
        if near.median is None:
            yield f"All {near.failed} points one step beside it failed."
        else:
            failed = f" ({near.failed} more failed)" if near.failed else ""
            yield (
                f"The {count_of(len(near.values), 'point')} one step beside it{failed} came to a "
                f"median of {in_words(near.median, sweep.objective)}: a peak that its neighbours "
                "do not share is chance."
            )
    mean, error = best.figures["mean_day"], best.figures["mean_day_error"]
    if mean is not None and error:
        yield (
            f"It earns {mean * 1e4:+.1f} ± {error * 1e4:.1f} bp a day, before one counts how many "
            "were tried."
        )
    beaten = best.figures["random_beaten"]
    if beaten is not None:
        count = len(values)
        yield (
            f"It beats {beaten * 100:.0f} % of its random twins; of {count:,} points without any "
            f"timing the luckiest beats {count / (count + 1) * 100:.0f} % on average."
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
            "Deflated Sharpe ratio and probability of overfitting: not said of "
            f"{days:.1f} days; they take {DAYS_TO_ANNUALISE}."
        )
        return
    if (over := sweep.overfitting) is not None:
        left = f" ({over.left_out} left out: other days)" if over.left_out else ""
        yield (
            f"Probability of backtest overfitting: {over.probability * 100:.0f} %. So often the "
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
        f"that (the deflated Sharpe ratio) is {deflated * 100:.1f} %."
    )


def _out_of_sample(sweep: Sweep) -> Iterator[str]:
    tests = [cell for cell in sweep.cells if cell.part == TEST and cell.daily]
    if not tests:
        return
    daily = np.array([value for cell in tests for value in cell.daily])
    grown = float(np.prod([1.0 + (cell.figures["return"] or 0.0) for cell in tests]) - 1.0)
    days = sum(cell.figures["days"] or 0.0 for cell in tests)
    a_bar = max(1.0, days / daily.size)  # days, where a bar is longer than one
    error = mean_error(daily, np.arange(daily.size))  # the tests follow each other
    noise = "" if error is None else f" ± {error / a_bar * 1e4:.1f}"
    yield (
        f"Out of sample, in {len(tests)} tests after their windows: {grown * 100:+.2f} % in "
        f"{days:,.0f} days, {daily.mean() / a_bar * 1e4:+.1f}{noise} bp a day. Believe this figure."
    )


def _errors(sweep: Sweep) -> Iterator[str]:
    failed = [cell for cell in sweep.cells if cell.error]
    for cell in failed[:ERRORS_SHOWN]:
        point = ", ".join(f"{name} = {_value(value)}" for name, value in cell.point.items())
        yield f"Failed: {point}: {cell.error}"
    if len(failed) > ERRORS_SHOWN:
        yield f"and {len(failed) - ERRORS_SHOWN:,} more failed."


CELL_PX: Final = 34


def sweep_document(sweep: Sweep) -> TitledParts:
    """Return the sweep as a document: its heat map, how much is luck, and every run."""
    parts: list[Part] = [
        Paragraph(f"Warning: {sentence}.", "warning") for sentence in sweep.request.warnings
    ]
    if (heat := sweep.heat()) is not None:
        parts.append(_heat_chart(sweep, heat))
    if sweep.best is not None:
        parts.append(Paragraph("How much of it is luck", "heading"))
        parts += [Paragraph(sentence, "item") for sentence in luck(sweep)]
    parts += [Paragraph("Every run", "heading"), _cells(sweep)]
    if sweep.command is not None:
        parts.append(Paragraph("The best point again, with its whole record:"))
        parts.append(Paragraph(sweep.command, "code"))
    name = sweep.request.work.strategy or "several strategies"
    return TitledParts(f"Sweep of {name}", tuple(parts))


def _cells(sweep: Sweep) -> Table:
    names = [axis.name for axis in sweep.request.axes]
    heads = ["window", "part", *names, sweep.objective, "return", "trades", "beats twins", "error"]
    rows = [
        (
            str(cell.span + 1),
            cell.part,
            *(str(cell.point[name]) for name in names),
            in_words(cell.value, sweep.objective),
            in_words(cell.figures.get("return"), "return"),
            in_words(cell.figures.get("trades"), "trades"),
            in_words(cell.figures.get("random_beaten"), "hit_rate"),
            cell.error,
        )
        for cell in sweep.cells
    ]
    return _table("runs", "", heads, rows, texts=(1, len(heads) - 1))


def _heat_chart(sweep: Sweep, heat: Heat) -> Chart:
    texts = [
        ["" if np.isnan(value) else in_words(float(value), sweep.objective) for value in row]
        for row in heat.values
    ]
    sizes = np.abs(heat.values[~np.isnan(heat.values)])
    far = float(sizes.max(initial=0.0)) or 1.0
    if not sweep.maximize:
        far = -far
    cells = HeatLayer(
        sweep.objective,
        range(len(heat.columns)),
        range(len(heat.rows)),
        -far,
        far,
        [rounded(row) for row in heat.values],
        palette="diverging",
        ends=[in_words(end, sweep.objective) for end in (-far, far)],
        texts=texts,
        is_written=True,
        chosen=heat.best,
    )
    panel = ChartPanel(
        [cells],
        named(heat.columns, heat.x),
        named(heat.rows, heat.y),
        60 + CELL_PX * len(heat.rows),
    )
    caption = f"Medians of {sweep.objective} over all other options; the ring is the best point."
    return Chart("", caption, [panel])
