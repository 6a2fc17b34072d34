"""The result of a sweep: cells, best, neighbours, deflated Sharpe ratio, PBO, and its document."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from tracepaper.daemon.config.loading import WithSettings
from tracepaper.daemon.config.values import merged
from tracepaper.daemon.session.user_class import known_class
from tracepaper.replay.api import run_of_spec
from tracepaper.replay.backtest.effects import sentence_on
from tracepaper.replay.backtest.make import options_without_effect
from tracepaper.replay.backtest.run_spec import flags_of
from tracepaper.replay.backtest.strategy_keys import process_warnings
from tracepaper.replay.dataframes import Kind, frame_of, frames_for
from tracepaper.replay.document.charts import Chart, ChartPanel, HeatLayer, category_axis, rounded
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
from tracepaper.replay.notebook import Picture, text_of
from tracepaper.replay.report import metrics
from tracepaper.replay.report.metrics import DAYS_TO_ANNUALISE, is_annual, mean_error
from tracepaper.replay.report.states import used_up
from tracepaper.replay.run import Run
from tracepaper.replay.sweep.space import FIGURES, Axis, Point, objective_text
from tracepaper.replay.sweep.trial import (
    TEST,
    TRAIN,
    CellResult,
    SweepRequest,
    overrides_of,
    spec_at,
)
from tracepaper.storage.paths import path_of
from tracepaper.storage.sweeps import Trials
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.extras import require
from tracepaper.strategies.units import count_of, number, percent

BINS: Final = 8
"""Bins of a continuous axis in a heat map."""
SHOWN_FIGURES: Final = (
    "return", "days", "trades", "mean_day", "mean_day_error", "sharpe", "sharpe_error",
    "max_drawdown", "below_zero_ms", "lowest_equity", "exposure", "held_return",
    "buy_and_hold_return", "random_beaten",
)  # fmt: skip
"""Figures of a cell that ``Sweep.frame`` has as columns."""
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


class Heat(NamedTuple):
    """Medians of the objective over two axes: ``values`` [rows, columns], NaN if no run has one."""

    x: str
    y: str  # empty if only one axis varies
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: Any
    best: tuple[int, int]  # (row, column) of the best cell


@dataclass(frozen=True)
class Neighbours:
    """The cells one step from the best one along a single axis."""

    values: tuple[float, ...]
    failed: int

    @property
    def median(self) -> float | None:
        """Their median value; None if all failed."""
        return float(np.median(self.values)) if self.values else None


class Overfitting(NamedTuple):
    """The probability of backtest overfitting; the points compared and those left out."""

    probability: float
    points: int
    left_out: int


@dataclass(frozen=True)
class Sweep:
    """Every cell (run) of a sweep; it prints the best and how much of it may be luck."""

    request: SweepRequest
    cells: tuple[CellResult, ...]
    trials: Trials  # of all sweeps on these data
    registry: Path
    state: Path | None
    new_runs: int  # runs of this call; the others were restored from the state file

    # ------------------------------------------------------------ cells

    @cached_property
    def tried(self) -> tuple[CellResult, ...]:
        """The cells of the search, without those of the test windows."""
        return tuple(cell for cell in self.cells if cell.part != TEST)

    @cached_property
    def best(self) -> CellResult | None:
        """The best cell, of the last window if there are several; None if no run succeeded."""
        last = max((cell.span for cell in self.tried), default=0)
        return best_of([cell for cell in self.tried if cell.span == last], maximize=self.maximize)

    @property
    def maximize(self) -> bool:
        """Whether a higher objective is better."""
        return self.request.maximize

    @property
    def objective(self) -> str:
        """The objective's name."""
        return self.request.objective_name

    @property
    def frame(self) -> Any:  # noqa: ANN401 - of the library that is installed
        """The cells as a frame of polars or pandas, else as columns of numpy."""
        cells, columns = self.cells, dict[str, tuple[Kind, list[Any]]]()
        columns["window"] = "integer", [cell.span for cell in cells]
        columns["part"] = "text", [cell.part for cell in cells]
        columns["number"] = "integer", [cell.number for cell in cells]
        for axis in self.request.axes:
            columns[axis.name] = _column([cell.point[axis.name] for cell in cells])
        columns["objective"] = "float", [cell.value for cell in cells]
        columns["error"] = "text", [cell.error or None for cell in cells]
        for name in SHOWN_FIGURES:
            kind: Kind = "integer" if name == "trades" else "float"
            key = name if name not in columns else f"figure_{name}"
            columns[key] = kind, [cell.figures.get(name) for cell in cells]
        columns["seconds"] = "float", [cell.seconds for cell in cells]
        return frame_of(columns, frames_for(None, self.request.library))

    # ------------------------------------------------------------ the best cell's run

    def best_run(self, db: str | Path | None = None) -> Run[Any]:
        """Run the best cell again over the whole period, and store its record."""
        best = self.best
        if best is None:
            raise DataInvalid(f"No run of this sweep succeeded; the first says: {self.first_error}")
        work = self.request.work
        classes = () if work.local_class is None else (work.local_class,)
        with known_class(work.local_class):
            spec = replace(
                work.spec,
                overrides=overrides_of(work, best.point),
                database=None if db is None else path_of(db),
                warnings=process_warnings(classes),
            )
            return run_of_spec(spec, classes, library=self.request.library)

    @cached_property
    def without_effect(self) -> tuple[str, ...]:
        """The options of the space, and keys of ``--set``, without effect at the best point."""
        best, work = self.best, self.request.work
        axes = [axis for axis in self.request.axes if "." in axis.name]  # all else is a strategy's
        settings = work.spec.settings
        if best is None or not (axes or settings):
            return ()
        from_ms, until_ms, *_ = self.request.spans[best.span]
        with known_class(work.local_class):
            spec = spec_at(work, best.point, from_ms, until_ms)
            others = {
                axis.name: [
                    spec_at(work, {**best.point, axis.name: value}, from_ms, until_ms)
                    for value in axis.values or (axis.low, axis.high)
                    if value != best.point[axis.name]
                ]
                for axis in axes
            }
            for text in settings:
                unset = replace(spec, settings=tuple(each for each in settings if each != text))
                others[text.partition("=")[0]] = [unset]
            return options_without_effect(spec, others)

    @property
    def command(self) -> str | None:
        """The command that stores the best cell's record; None for frames and local classes."""
        spec, work, best = self.request.spec, self.request.work, self.best
        inputs = (*spec.candles, *spec.frames)
        if (
            best is None
            or work.local_class is not None
            or not all(isinstance(source, str) for source in inputs)
        ):
            return None
        given = spec.given
        file = given.file if isinstance(given, WithSettings) else given
        config = given.settings if isinstance(given, WithSettings) else given
        tables: dict[str, dict[str, Any]] = {}
        if isinstance(config, Mapping):
            tables = {name: dict(table) for name, table in config.items()}
        for name, table in overrides_of(work, best.point).items():
            tables[name] = merged(tables.get(name, {}), table)
        words = [
            f"TRACEPAPER_{section.upper()}__{key.upper()}={shlex.quote(_environment_text(value))}"
            for section, table in tables.items()
            for key, value in table.items()
        ]
        words += ["tracepaper", "replay", *(shlex.quote(str(source)) for source in spec.candles)]
        if isinstance(file, Path):
            words += ["-c", shlex.quote(str(file))]
        for flag, value in flags_of(spec):
            words += [flag, shlex.quote(value)]
        return " ".join([*words, "--db", "best.db"])

    @property
    def first_error(self) -> str:
        """The error of the first cell that failed; empty if none did."""
        return next((cell.error for cell in self.cells if cell.error), "")

    # ------------------------------------------------------------ how much is luck

    @cached_property
    def best_by_chance(self) -> float | None:
        """The daily Sharpe ratio that the best of all trials is expected to reach without skill."""
        ratios = self.trials.sharpe_day
        if len(ratios) < 2:
            return None
        return metrics.best_by_chance(self.trials.number, float(np.var(ratios, ddof=1)))

    @cached_property
    def deflated_sharpe(self) -> float | None:
        """The probability that the best cell's Sharpe ratio is more than the luck of many trials.

        It counts all trials on these data. None under thirty days, or if fewer than two trials have
        a ratio.
        """
        best, ratios = self.best, self.trials.sharpe_day
        if best is None or len(ratios) < 2 or not metrics.is_annual(best.figures["days"] or 0):
            return None
        return metrics.deflated_sharpe(
            best.daily, trials=self.trials.number, variance=float(np.var(ratios, ddof=1))
        )

    @cached_property
    def overfitting(self) -> Overfitting | None:
        """The probability that the best of these points is overfitted, by their daily returns.

        It compares the points of the best one's window, without points of other days and points
        that lost all cash. None under thirty days, or if no point is left.
        """
        best = self.best
        if best is None:
            return None
        cells = [cell for cell in self.tried if cell.span == best.span and not cell.error]
        daily = [cell.daily for cell in cells if cell.daily and len(cell.daily) == len(best.daily)]
        probability = metrics.overfitting_probability(np.array(daily).T) if daily else None
        if probability is None:
            return None
        return Overfitting(probability, len(daily), len(cells) - len(daily))

    @cached_property
    def neighbours(self) -> Neighbours | None:
        """The cells next to the best one; None if the axes have no steps or none was tried."""
        best = self.best
        if best is None:
            return None
        adjacent = {
            cell.key: cell
            for axis in self.request.axes
            for cell in self.tried
            if cell.span == best.span and _is_neighbour(axis, best.point, cell.point)
        }
        if not adjacent:
            return None
        values = [cell.value for cell in adjacent.values() if cell.value is not None]
        return Neighbours(tuple(values), len(adjacent) - len(values))

    def heat(self) -> Heat | None:
        """Return the medians of the objective over the two axes that move it most.

        None if fewer than two points differ.
        """
        axes = sorted(
            (axis for axis in self.request.axes if len(self._places(axis)[1]) > 1),
            key=lambda axis: -self._effect(axis),
        )[:2]
        best = self.best
        if not axes or best is None:
            return None
        across = axes[-1]
        down = axes[0] if len(axes) > 1 else None
        columns, column_names = self._places(across)
        rows, row_names = self._places(down) if down else (np.zeros(len(self._valued), int), [""])
        values = np.full((len(row_names), len(column_names)), np.nan)
        objectives = np.array([cell.value for cell in self._valued])
        for row, column in {*zip(rows.tolist(), columns.tolist(), strict=True)}:
            values[row, column] = np.median(objectives[(rows == row) & (columns == column)])
        at = next(place for place, cell in enumerate(self._valued) if cell.key == best.key)
        return Heat(
            across.name,
            down.name if down else "",
            tuple(column_names),
            tuple(row_names),
            values,
            (int(rows[at]), int(columns[at])),
        )

    @cached_property
    def _valued(self) -> list[CellResult]:
        return [cell for cell in self.tried if cell.value is not None]

    def _effect(self, axis: Axis) -> float:
        """Return the range of the medians along *axis*."""
        places, names = self._places(axis)
        objectives = np.array([cell.value for cell in self._valued])
        medians = [
            np.median(objectives[places == at]) for at in range(len(names)) if (places == at).any()
        ]
        return float(np.ptp(medians)) if medians else 0.0

    def _places(self, axis: Axis) -> tuple[Any, list[str]]:
        """Return the index along *axis* of every cell with a value, and a label per index."""
        values = [cell.point[axis.name] for cell in self._valued]
        points = axis.points()
        if points and len(points) <= max(BINS, 2 * len(set(map(repr, values)))):
            texts = [repr(point) for point in points]
            used = sorted({texts.index(repr(value)) for value in values})
            place = {texts[at]: number for number, at in enumerate(used)}
            return (
                np.array([place[repr(value)] for value in values], int),
                [
                    f"{point:.6g}" if isinstance(point, float) else str(point)
                    for point in (points[at] for at in used)
                ],
            )
        scale = np.log if axis.log else np.asarray
        low, high = float(scale(axis.low)), float(scale(axis.high))
        edges = np.linspace(low, high, BINS + 1)
        places = np.clip(
            np.searchsorted(edges, scale(np.array(values, float)), "right") - 1, 0, BINS - 1
        )
        back = np.exp if axis.log else np.asarray
        return places, [f"{float(back(edge)):.3g}–" for edge in edges[:-1]]

    # ------------------------------------------------------------ as text, a page and JSON

    def __repr__(self) -> str:
        from tracepaper.replay.document.terminal import show

        parts = sweep_document(self).parts
        return text_of(lambda console: show(console, parts, blank_lines=False))

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"

    def plot(self) -> Picture:
        """Draw the heat map of the two options that move the objective most.

        A notebook shows the picture; ``save(path)`` writes it. Raises ``ConfigInvalid`` without
        matplotlib, ``DataInvalid`` if no two points have a value.
        """
        from tracepaper.replay.document.pictures import figure_of

        require("matplotlib", "plot")
        return Picture(figure_of(heat_chart(self)), f"<heat map of {self.objective}>")

    def report(self, *, html: str | Path) -> None:
        """Write the sweep as one page that works offline."""
        from tracepaper.replay.page.export import write_document_page

        write_document_page(sweep_document(self), path_of(html))

    def document(self) -> dict[str, Any]:
        """Return the sweep as plain values, as ``tracepaper sweep --json`` prints it."""
        best, neighbours, overfitting = self.best, self.neighbours, self.overfitting
        return {
            "strategy": self.request.work.strategy,
            "objective": self.objective,
            "direction": "maximize" if self.maximize else "minimize",
            "sampler": self.request.search.sampler,
            "days": self.request.days,
            "warnings": list(self.request.warnings),
            "without_effect": list(self.without_effect),
            "cells": [_document(cell) for cell in self.cells],
            "failed": sum(bool(cell.error) for cell in self.cells),
            "new_runs": self.new_runs,
            "best": None if best is None else _document(best),
            "neighbours": None if neighbours is None else {
                "values": list(neighbours.values),
                "failed": neighbours.failed,
                "median": neighbours.median,
            },
            "trials_on_these_data": self.trials.number,
            "best_by_chance_sharpe_day": self.best_by_chance,
            "deflated_sharpe": self.deflated_sharpe,
            "overfitting_probability": None if overfitting is None else overfitting.probability,
            "registry": str(self.registry),
            "state": None if self.state is None else str(self.state),
            "command": self.command,
        }  # fmt: skip


def best_of(cells: Sequence[CellResult], *, maximize: bool) -> CellResult | None:
    """Return the cell with the best value, the first of equal ones; None if none has a value."""
    sign = 1.0 if maximize else -1.0
    valued = [cell for cell in cells if cell.value is not None]
    return max(valued, key=lambda cell: (sign * (cell.value or 0.0), -cell.number), default=None)


def _is_neighbour(axis: Axis, best: Point, other: Point) -> bool:
    """Return whether *other* is one step from *best* along *axis*, and equal on other axes."""
    points = [repr(point) for point in axis.points()]
    here, there = repr(best[axis.name]), repr(other[axis.name])
    if here not in points or there not in points:
        return False
    equal = all(best[name] == other[name] for name in best if name != axis.name)
    return equal and abs(points.index(here) - points.index(there)) == 1


def _column(values: list[Any]) -> tuple[Kind, list[Any]]:
    if all(type(value) is bool for value in values):
        return "boolean", values
    if all(type(value) is int for value in values):
        return "integer", values
    if all(type(value) in {int, float} for value in values):
        return "float", values
    return "text", [value if isinstance(value, str) else json.dumps(value) for value in values]


def _document(cell: CellResult) -> dict[str, Any]:
    return {
        "window": cell.span, "part": cell.part, "number": cell.number, "point": cell.point,
        "value": cell.value, "error": cell.error or None, "figures": cell.figures,
        "seconds": cell.seconds,
    }  # fmt: skip


def _environment_text(value: object) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------- as a document


def sweep_document(sweep: Sweep) -> TitledParts:
    """Return the sweep as a document."""
    return TitledParts(f"Sweep of {sweep.request.work.strategy}", tuple(_parts(sweep)))


def _parts(sweep: Sweep) -> Iterator[Part]:
    request = sweep.request
    count, failed = len(sweep.cells), sum(bool(cell.error) for cell in sweep.cells)
    runs = count_of(count, "run") + (f", {failed:,} of them failed" if failed else "")
    new_runs = "" if sweep.new_runs == count else f" ({sweep.new_runs:,} new)"
    is_walk = request.spans[0].test_ms is not None or len(request.spans) > 1
    symbols = ", ".join(request.symbols)
    yield Paragraph(
        f"sweep of {request.work.strategy} on {symbols}: {runs}{new_runs}, by {sweep.objective}"
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
    compared = [key for key in COMPARED if key != sweep.objective]
    sign = -1.0 if sweep.maximize else 1.0

    def rank(cell: CellResult) -> tuple[int, bool, bool, float]:
        return cell.span, cell.part == TEST, cell.value is None, sign * (cell.value or 0.0)

    rows = [
        [
            *([str(cell.span + 1), cell.part] if is_walk else []),
            *_point(sweep, cell),
            objective_text(cell.value, sweep.objective),
            *(written(cell.figures.get(key), COMPARED[key]) for key in compared),
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
    return Chart(f"{sweep.request.work.strategy}: {sweep.objective}", caption, [panel])


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
        failed = f" ({near.failed} more failed)" if near.failed else ""
        yield (
            f"The {count_of(len(near.values), 'point')} next to it{failed} reach a median of "
            f"{objective_text(near.median, sweep.objective)}; if they are much worse than the "
            "best, the best is chance."
        )
    mean, error = best.figures["mean_day"], best.figures["mean_day_error"]
    if mean is not None:
        earned = signed_estimate(mean, error, ".1f", 1e4, " bp")
        yield f"It earns a day {earned}, before one counts how many were tried."
    since_ms, lowest = best.figures["below_zero_ms"], best.figures["lowest_equity"]
    if since_ms is not None and lowest is not None:
        yield used_up(int(since_ms), float(lowest))
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
    deflated = sweep.deflated_sharpe
    if sweep.best_by_chance is None or deflated is None:
        yield "No Sharpe ratio can be deflated: no two trials differ in it, or it has no error."
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
