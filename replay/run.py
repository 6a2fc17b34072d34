"""A run of a database: what ``tracepaper.backtest`` and ``tracepaper.open_run`` return.

    run = tracepaper.open_run("last", "tracepaper.db")
    print(run)                                            # its figures in a few lines
    run.trades                                            # a frame of polars, pandas or numpy
    run.rows("explanations", first=6_000, last=6_100)     # a part of a long frame
    run.table("refusals")                                 # a table of the report, as numbers
    run.columns("decisions")                              # what every column means, with its unit

Report, explanations and checks are imported when they are called. The rules are docs/python.md, Y5
to Y9.
"""

from __future__ import annotations

import json
import shutil
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from decimal import Decimal
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar, overload

from tracepaper.daemon.config.loading import Sections
from tracepaper.daemon.session.account_chain import AccountRun, account_chain
from tracepaper.daemon.session.user_class import known_class
from tracepaper.replay.backtest.run_spec import RunSpec, moment
from tracepaper.replay.dataframes import (
    Columns,
    Frame,
    Library,
    columns_of_table,
    columns_of_view,
    frame_of,
    frames_for,
    name_in_frame,
)
from tracepaper.replay.document.values import TOO_FEW_DAYS, Form, estimate, signed_estimate, written
from tracepaper.replay.notebook import Picture, RunPage, Text
from tracepaper.replay.report import BARS_DRAWN
from tracepaper.replay.report.account import read_account
from tracepaper.replay.report.figures import Headline, headline
from tracepaper.replay.report.judgement import judgement
from tracepaper.replay.report.record import RunRecord, read_record
from tracepaper.replay.report.report import ruined_benchmark, stretches
from tracepaper.replay.report.trades import ClosedTrade, closed_trades, largest_causes
from tracepaper.storage.database.reader import Reader, resolve
from tracepaper.storage.database.run_views import RunViews
from tracepaper.storage.database.views import VIEWS
from tracepaper.storage.paths import at_home, path_of
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.extras import require
from tracepaper.strategies.units import NOTHING, count_of, iso

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from tracepaper.replay.checks.verify import Verification
    from tracepaper.replay.dataframes import NumpyFrame
    from tracepaper.replay.report.report import Report
    from tracepaper.storage.database.view_columns import ViewColumn

Kept = TypeVar("Kept")
_VIEWS: Final = {view.name.removeprefix("v_"): view for view in VIEWS[1:]}  # without the runs


class RecordFigures:
    """The record of a run up to one step, and figures of it."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record

    @cached_property
    def closed(self) -> list[ClosedTrade]:
        """The closed trades of the run's account."""
        return closed_trades(self.record.account)

    @cached_property
    def summary(self) -> Headline:
        """The figures of the run's account."""
        return headline(self.record, self.closed)


class Run(Generic[Frame]):
    """One run of one database: its figures, frames, report, explanations and checks.

    A frame is read on first use, and kept until the run has a further step; nothing stays open. A
    run that ``backtest`` made without a database is removed by :meth:`close`, at the end of
    ``with``, or when nothing refers to it any more.
    """

    def __init__(
        self,
        database: Path,
        run_id: str,
        classes: tuple[type, ...] = (),
        *,
        folder: Path | None = None,
        frames: Library | None = None,
        exact: bool = False,
    ) -> None:
        self.database = database
        self.run_id = run_id
        self._library: Library = frames_for(None, frames)
        self._exact = exact
        self._classes = classes
        self._head = b""
        self._results: dict[str, Any] = {}  # read at that head
        self._remove = (
            None
            if folder is None
            else weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        )

    def _kept(self, name: str, read: Callable[[], Kept]) -> Kept:
        """Return the result *name* of *read*, kept while the run has no further step."""
        with self._reader() as reader:
            head = reader.stored_run(self.run_id).head_digest
        if head != self._head:
            self._head, self._results = head, {}
        if name not in self._results:
            self._results[name] = read()
        kept: Kept = self._results[name]
        return kept

    @property
    def _places(self) -> list[tuple[Path, str]]:
        """The runs whose rows are its frames, each with its database."""
        return [(self.database, self.run_id)]

    def _report(self) -> Report:
        from tracepaper.replay.report.report import build_report

        self._require_open()
        return build_report(self.database, self.run_id)

    def _reader(self) -> Reader:
        self._require_open()
        return Reader.open(self.database)

    # ------------------------------------------------------------ frames

    @property
    def decisions(self) -> Frame:
        """One row per closed bar: action, verdict, forecast at the gates' horizon."""
        return self._kept("decisions", lambda: self.rows("decisions"))

    @property
    def gates(self) -> Frame:
        """One row per gate and decision: measure, threshold, passed."""
        return self._kept("gates", lambda: self.rows("gates"))

    @property
    def explanations(self) -> Frame:
        """One row per decision and 64-bar block: the block's share of attention."""
        return self._kept("explanations", lambda: self.rows("explanations"))

    @property
    def notes(self) -> Frame:
        """One row for each number or text that the strategy noted at a decision."""
        return self._kept("notes", lambda: self.rows("notes"))

    @property
    def bars(self) -> Frame:
        """The bars as the engine saw them, warm-up and revisions included."""
        return self._kept("bars", lambda: self.rows("bars"))

    @property
    def orders(self) -> Frame:
        """The run's orders in their last state."""
        return self._kept("orders", lambda: self.rows("orders"))

    @property
    def fills(self) -> Frame:
        """The fills of the run's own account."""
        return self._kept("fills", lambda: self.rows("fills"))

    @property
    def trades(self) -> Frame:
        """The closed trades: entry, exit, gross, costs, funding, net, reasons, bars held."""
        return self._kept("trades", lambda: self.rows("trades"))

    @property
    def positions(self) -> Frame:
        """The position of each instrument after each of its steps."""
        return self._kept("positions", lambda: self.rows("positions"))

    @property
    def equity(self) -> Frame:
        """The run's own account after each step."""
        return self._kept("equity", lambda: self.rows("equity"))

    @property
    def ledger(self) -> Frame:
        """Every movement of the account's cash, with the cash after it."""
        return self._kept("ledger", lambda: self.rows("ledger"))

    @property
    def shadow_fills(self) -> Frame:
        """The fills of the run's shadow accounts, by ``shadow``."""
        return self._kept("shadow_fills", lambda: self.rows("shadow_fills"))

    @property
    def shadow_equity(self) -> Frame:
        """The run's shadow accounts after each step, by ``shadow``."""
        return self._kept("shadow_equity", lambda: self.rows("shadow_equity"))

    @property
    def gaps(self) -> Frame:
        """The gaps: which bars stay absent, and which were repaired late or in time."""
        return self._kept("gaps", lambda: self.rows("gaps"))

    @property
    def commits(self) -> Frame:
        """The links of the run's chain, each a commit of steps."""
        return self._kept("commits", lambda: self.rows("commits"))

    @property
    def events(self) -> Frame:
        """Every event that the engine consumed, its content as JSON."""
        return self._kept("events", lambda: self.rows("events"))

    @property
    def commands(self) -> Frame:
        """The operator's commands, with who gave each."""
        return self._kept("commands", lambda: self.rows("commands"))

    @property
    def checks(self) -> Frame:
        """The comparisons of the run with its replay, which are not part of the chain."""
        return self.rows("checks")  # grows without a step

    def rows(self, name: str, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the rows of the frame *name* from sequence *first* to *last*, both included.

        Each bar has a dozen gates and 70 explanation rows, so read only a part of a long run.
        Raises ``ConfigInvalid`` if there is no such frame.
        """
        columns = self._columns_of(name)
        names = [column.name for column in columns]
        series: list[list[Any]] = [[] for _ in columns]
        for path, run_id in self._places:
            self._require_open()
            with Reader.open(path) as reader:
                views = RunViews(reader.connection, run_id)
                for batch in views.batches(_VIEWS[name].name, names, first=first, last=last):
                    for values, part in zip(series, batch, strict=True):
                        values.extend(part)
        return self._frame_of(columns_of_view(columns, series))

    def columns(self, name: str) -> Frame:
        """Return the meaning of each column of the frame *name*, such as ``decisions``."""
        shown_columns = self._columns_of(name)
        docs = [
            column.doc.replace(" as ISO 8601 text", " as a moment in UTC")
            for column in shown_columns
        ]
        names = [name_in_frame(column.name) for column in shown_columns]
        return self._frame_of({"column": ("text", names), "meaning": ("text", docs)})

    def table(self, name: str = "accounts") -> Frame:
        """Return a table of the run's report, such as ``refusals`` or ``drawdowns``.

        Its columns have the keys of ``tracepaper report --json``; ``x_error`` is the error
        of an estimate ``x``. Raises ``ConfigInvalid`` if the report has no such table.
        """
        from tracepaper.replay.report.figures import tables

        report_tables = tables(self._report())
        if name not in report_tables:
            names = ", ".join(report_tables)
            raise ConfigInvalid(f"This run's report has no table {name}; choose from {names}.")
        return self._frame_of(columns_of_table(report_tables[name]))

    def importance(self, every: str = "1d", *, of: str = "bars", samples: int = 0) -> Frame:
        """Return the importance of bars or features over the run, one row per span of *every*.

        ``of="bars"`` has the stored shares of the rollout by age; ``of="features"`` runs the model
        again at *samples* decisions of each span. ``x_error`` is the standard deviation of a share
        ``x`` over the decisions.
        """
        from tracepaper.replay.explain.importance import read_importance

        self._require_open()
        importance = read_importance(self.database, self.run_id, every, samples=samples)
        return self._frame_of(columns_of_table(importance.of(of)))

    def _columns_of(self, name: str) -> list[ViewColumn]:
        if name not in _VIEWS:
            raise ConfigInvalid(f"There is no frame {name}; choose from {', '.join(_VIEWS)}.")
        columns = _VIEWS[name].columns
        return [column for column in columns if self._exact or not column.name.endswith("_text")]

    def _frame_of(self, columns: Columns) -> Frame:
        frame: Frame = frame_of(columns, self._library)
        return frame

    # ------------------------------------------------------------ figures

    @property
    def row(self) -> dict[str, Any]:
        """The run's row of ``v_runs``: kind, instruments, interval, model, configuration, head."""
        with self._reader() as reader:
            return RunViews(reader.connection, self.run_id).run()

    @property
    def summary(self) -> Headline:
        """The figures of the run's account in one dictionary (docs/python.md, Y7)."""
        return self._figures.summary

    @property
    def stats(self) -> pd.Series:
        """``summary`` as a pandas Series, named after the run's strategy.

        Raises ``ConfigInvalid`` if pandas is missing.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ConfigInvalid(
                "stats is a pandas Series; install pandas, or read summary."
            ) from error
        figures = self._figures
        strategy = figures.record.run["strategy"]
        return pd.Series(dict(figures.summary), name=strategy, dtype=object)

    @property
    def _figures(self) -> RecordFigures:
        return self._kept("figures", self._read_figures)

    def _read_figures(self) -> RecordFigures:
        with self._reader() as reader:
            return RecordFigures(read_record(reader, self.database, self.run_id))

    def save(self, path: str | Path) -> None:
        """Write the report as a self-contained page to *path*, which ends in ``.html``.

        Raises ``ConfigInvalid`` for another file: ``backtest(db=…)`` keeps the record.
        """
        if path_of(path).suffix != ".html":
            raise ConfigInvalid(
                f"{path} is no page: name one that ends in .html; backtest(…, db='run.db') keeps "
                "the record."
            )
        self.report(html=path)

    def report(
        self,
        *,
        html: str | Path | None = None,
        chart: str | Path | None = None,
        picture: str = "price",
        last: int = BARS_DRAWN,
    ) -> Text:
        """Return the report as text; its ``document`` is that of ``tracepaper report --json``.

        *html* also writes the page to that file; *chart*, a .png or .svg, draws a *picture* of
        :meth:`plot`. Raises ``ConfigInvalid`` if a file cannot be written, ``DataInvalid`` if the
        run has nothing to draw.
        """
        from tracepaper.replay.document.pictures import write_picture
        from tracepaper.replay.report.charts import check
        from tracepaper.replay.report.run_charts import chart_named, picture_named
        from tracepaper.replay.report.terminal import as_document, show_report

        self._require_open()
        name = picture_named(picture)
        if chart is not None:
            check(path_of(chart), last, "chart")
        built = self._report()
        if html is not None:
            from tracepaper.replay.page.contents import run_page
            from tracepaper.replay.page.export import write_page
            from tracepaper.replay.report.document import report_document

            document = report_document(built)
            write_page(run_page(self.database, self.run_id, document=document), path_of(html))
        if chart is not None:
            write_picture(chart_named(built, name, last=last), path_of(chart))
        return Text(lambda console: show_report(console, built), as_document(built))

    def risk(self, *, period: Literal["day", "hour"] = "day") -> Text:
        """Say what the open positions could lose; ``document`` is that of ``risk --json``.

        *period* is that of the returns over which the positions are held.
        """
        from tracepaper.replay.report.book_risk import read_book_risk, risk_document, risk_json
        from tracepaper.replay.run_columns import RunColumns

        with self._reader() as reader:
            book = read_book_risk(RunColumns(reader, self.run_id), period)
        return Text.of(risk_document(self.run_id, book), risk_json(self.run_id, book))

    def plot(self, picture: str = "price", *, last: int = BARS_DRAWN) -> Picture:
        """Draw a picture of the run.

        ``price`` is the newest *last* bars with the trades, the refusals and the strategy's notes;
        ``equity`` the return of every account with drawdown and position; ``trades`` the profit of
        each closed trade over time and as a histogram; ``events`` the times of what would send a
        notice. A notebook shows the picture; ``figure`` is the matplotlib figure, and
        ``save(path)`` writes it. Raises ``ConfigInvalid`` without matplotlib, ``DataInvalid`` if
        the run has nothing to draw.
        """
        from tracepaper.replay.document.pictures import figure_of
        from tracepaper.replay.report.charts import check_bars
        from tracepaper.replay.report.run_charts import chart_named, picture_named

        self._require_open()
        name = picture_named(picture)
        check_bars(last)
        require("matplotlib", "plot")
        built = self._report()
        chart = chart_named(built, name, last=last)
        how = "a notebook shows it; elsewhere .save('run.png')"
        return Picture(figure_of(chart), f"<picture of run {self.run_id}: {how}>")

    def show(self, *, full: bool = False) -> RunPage:
        """Show the run's page, that of ``tracepaper ui``, in a notebook.

        ``save(path)`` writes it, as ``tracepaper report --html`` does. *full* includes every
        decision in full.
        """
        from tracepaper.replay.page.contents import run_page
        from tracepaper.replay.page.export import write_page

        self._require_open()
        html = run_page(self.database, self.run_id, full=full)
        how = "a notebook shows it; elsewhere .save('run.html') and open that file"
        return RunPage(html, f"<page of run {self.run_id}: {how}>", write_page)

    def explain(self, sequence: int = -1) -> Text:
        """Explain one decision; *sequence* is its column in ``decisions``.

        A negative one counts back from the end: -1 is the last decision. Raises ``DataInvalid`` if
        there is no such decision.
        """
        from tracepaper.replay.checks.nearest_change import nearest_changes
        from tracepaper.replay.document.terminal import show
        from tracepaper.replay.explain.decision_document import read_decision, stored_parts
        from tracepaper.replay.explain.document import document

        self._require_open()
        place = self.database, self.run_id, self._sequence_of(sequence)
        stored, titled = read_decision(*place)
        with self._custom_classes():
            nearest = nearest_changes(*place)
        parts = tuple(stored_parts(stored, titled, nearest))
        return Text(
            lambda console: show(console, parts),
            document(stored, titled.title, (), None, nearest),
        )

    def _sequence_of(self, index: int) -> int:
        if type(index) is not int:
            raise ConfigInvalid(f"{shown(index)} is no decision; give its sequence, or -1.")
        if index >= 0:
            return index
        sequences = self._figures.record.decisions.sequence
        count = sequences.size
        if -index > count:
            raise DataInvalid(f"The run has {count:,} decisions; {index} is before the first.")
        return int(sequences[index])

    def verify(self, *, sample: int | None = None) -> Verification:
        """Derive the run again from its record and compare every value: ``tracepaper verify``.

        ``Verification.passes`` says whether all agree; with *sample* only so many last steps are
        compared.
        """
        from tracepaper.replay.checks.verify import verify_run

        with self._custom_classes(), self._reader() as reader:
            return verify_run(reader, self.database, self.run_id, sample=sample)

    def what_if(
        self,
        changes: Sections | None = None,
        *,
        drop_gates: Sequence[str] = (),
        start: str | float | date | None = None,
    ) -> Text:
        """Run it again from its record with the keys of *changes*; compare every decision.

        *changes* are sections as in ``backtest``'s *config*, *drop_gates* gates to leave out; with
        *start* it begins there with a new account. Forecasts are the stored ones. ``document`` is
        that of ``tracepaper whatif --json``. Raises ``ConfigInvalid`` for keys that determine the
        input of the run, ``DataInvalid`` if the record lacks what a change needs.
        """
        from tracepaper.replay.checks.changed_run import changed_run
        from tracepaper.replay.checks.what_if import as_json, what_if, what_if_document

        from_ms = RunSpec(start=moment(start, "start")).from_ms
        with self._custom_classes(), self._reader() as reader:
            changed = changed_run(
                reader,
                self.database,
                self.run_id,
                changes=changes or {},
                drop_gates=drop_gates,
                from_ms=from_ms,
            )
            result = what_if(changed)
        return Text.of(what_if_document(result), as_json(result))

    def stress(self) -> Text:
        """Return what the result rests on: ``tracepaper report --stress``.

        It removes the best trades and the best day, and runs it again from its record a bar late,
        at twice the costs and beside each parameter. ``document`` is that of ``--json``; its
        ``word`` is stands, rests on few trades, or gone.
        """
        from tracepaper.replay.checks.fragility import as_json, fragility, fragility_document

        self._require_open()
        with self._custom_classes():
            result = fragility(self.database, self.run_id)
        return Text.of(fragility_document(result), as_json(result))

    def capacity(self, impact_bp: float | None = None) -> Text:
        """Return at what size its edge is gone: ``tracepaper report --capacity``.

        It is run again from its record at multiples of its money, with impact by the square root of
        each fill's share of its candle's volume: *impact_bp* basis points for all of the volume, by
        default the volatility of a bar. ``document`` is that of ``--json``; its ``half_gone`` is
        the multiple at which half of the edge is gone. Raises ``DataInvalid`` for candles without
        volume, ``ConfigInvalid`` for an impact that is not above 0 and at most 1000.
        """
        from tracepaper.replay.checks.capacity import as_json, capacity, capacity_document

        self._require_open()
        exact = None if impact_bp is None else Decimal(str(impact_bp))
        with self._custom_classes():
            result = capacity(self.database, self.run_id, impact_bp=exact)
        return Text.of(capacity_document(result), as_json(result))

    @contextmanager
    def _custom_classes(self) -> Iterator[None]:
        """Let the classes that this process alone knows be found by their names."""
        with ExitStack() as stack:
            for strategy_class in self._classes:
                stack.enter_context(known_class(strategy_class))
            yield

    # ------------------------------------------------------------ its life

    def close(self) -> None:
        """Remove the run if it has no database; nothing can be read afterwards."""
        if self._remove is not None:
            self._remove()

    @property
    def _is_gone(self) -> bool:
        return not self.database.exists()

    def _require_open(self) -> None:
        if self._is_gone:
            raise DataInvalid(
                f"Run {self.run_id} is closed and its file removed; give backtest a db=FILE to "
                "keep one."
            )

    def __enter__(self) -> Self:
        """Return the run itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the run."""
        self.close()

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        """Yield the run in a few lines: strategy, period, figures and benchmarks."""
        if self._is_gone:
            yield f"<run {self.run_id}, closed>"
            return
        try:
            read = self._figures
        except DataInvalid as error:  # it has decided no bar yet
            yield f"<run {self.run_id} of {self.database}: {error}>"
            return
        record, figures = read.record, read.summary
        yield from record.cautions
        words = record.config.chosen
        yield (
            f"{record.run['strategy']} on {record.run['instruments']}, "
            f"{iso(int(record.decisions.open_time_ms.min()))} to {iso(int(record.times_ms[-1]))}"
            + f"; {words}"
            * bool(words)
        )
        yield (
            f"{count_of(int(figures['bars'] or 0), 'bar')}, {written(figures['days'], 'days')} "
            f"days, {count_of(int(figures['trades'] or 0), 'closed trade')}"
        )
        if record.open_positions:
            yield record.open_positions
        yield (
            f"return {written(figures['return'], 'gain percent')}, a day "
            f"{_daily(figures['mean_day'], figures['mean_day_error'])}, worst drawdown "
            f"{written(figures['max_drawdown'], 'percent')}"
        )
        if figures["sharpe"] is not None:
            yield f"Sharpe ratio a year {_estimate(figures, 'sharpe', 'gain ratio')}"
        for part in stretches(record, read.closed):
            performance = part.performance
            line = (
                f"{part.name}: {written(performance.days, 'days')} days, a day "
                f"{_daily(performance.mean_day, performance.error_day)}, in the market "
                f"{written(part.exposure, 'share')} of the time"
            )
            if performance.sharpe is not None:
                ratio = estimate(performance.sharpe, performance.sharpe_error)
                line += f", Sharpe ratio a year {written(ratio, 'gain ratio')}"
            yield line
        at_exposure = ""
        if figures["held_return"] is not None:
            at_exposure = f", at its own exposure {written(figures['held_return'], 'gain percent')}"
        yield f"buy and hold {written(figures['buy_and_hold_return'], 'gain percent')}{at_exposure}"
        if ruined := ruined_benchmark(record):
            yield ruined
        if figures["random_beaten"] is not None:
            beaten = written(figures["random_beaten"], "share")
            yield f"beats {beaten} of {figures['random_timings']} random timings"
        yield judgement(record, read.closed)
        decided, noted = record.decisions, json.loads(record.run["warnings"] or "[]")
        refused, unfilled = (
            [pair for pair in Counter(column.tolist()).items() if pair[0]]
            for column in (decided.refused_by, decided.unfilled)
        )
        yield from map(
            str,
            largest_causes(
                decided.sequence.size,
                refused,
                unfilled,
                record.instruments.values(),
                lambda reason: decided.instrument[decided.unfilled == reason].tolist(),
                noted,
                lambda reason: int(decided.open_time_ms[decided.unfilled == reason][0]),
            ),
        )
        yield from (f"Warning: {text}." for text in noted)

    def _repr_html_(self) -> str:
        first, *rest = map(escape, self._lines())
        rows = "".join(f"<li>{line}</li>" for line in rest)
        return f"<p><b>{first}</b></p><ul>{rows}</ul>"


class AccountHistory(Run[Frame]):
    """An account over its runs, of one file or several: ``tracepaper.account``.

    Frames, figures, report, ``equity`` and ``trades`` pictures are the account's; explanations,
    checks and what-if are the newest run's.
    """

    def __init__(self, runs: Sequence[AccountRun], frames: Library, *, exact: bool) -> None:
        self._runs = [each for each in runs if each.run is not None]
        newest = self._runs[-1]
        assert newest.run is not None
        super().__init__(newest.path, newest.run.run_id, frames=frames, exact=exact)

    @property
    def _places(self) -> list[tuple[Path, str]]:
        return [(each.path, each.run.run_id) for each in self._runs if each.run is not None]

    def _report(self) -> Report:
        from tracepaper.replay.report.report import build_report

        return build_report(self.database, self.run_id, account=self._runs)

    def _read_figures(self) -> RecordFigures:
        return RecordFigures(read_account(self._runs))


def account(
    files: str | Path | Sequence[str | Path],
    *,
    frames: Library | None = None,
    exact: bool = False,
) -> AccountHistory[Any]:
    """Open the account in *files*, in any order: each joint must fit, as in ``report FILE…``.

    *frames* and *exact* are those of ``open_run``. Raises ``DataInvalid`` where a file is missing,
    given twice or of another account.
    """
    given = [files] if isinstance(files, str | Path) else [*files]
    runs = account_chain([path_of(file) for file in given])
    return AccountHistory(runs, frames_for(None, frames), exact=exact)


@overload
def open_run(
    run: str | Path = ...,
    database: str | Path | None = ...,
    *,
    frames: Literal["polars"],
    exact: bool = ...,
) -> Run[pl.DataFrame]: ...


@overload
def open_run(
    run: str | Path = ...,
    database: str | Path | None = ...,
    *,
    frames: Literal["pandas"],
    exact: bool = ...,
) -> Run[pd.DataFrame]: ...


@overload
def open_run(
    run: str | Path = ...,
    database: str | Path | None = ...,
    *,
    frames: Literal["numpy"],
    exact: bool = ...,
) -> Run[NumpyFrame]: ...


@overload
def open_run(
    run: str | Path = ...,
    database: str | Path | None = ...,
    *,
    frames: Library | None = ...,
    exact: bool = ...,
) -> Run[Any]: ...


def open_run(
    run: str | Path = "last",
    database: str | Path | None = None,
    *,
    frames: Library | None = None,
    exact: bool = False,
) -> Run[Any]:
    """Open a run, even while a daemon writes it: an id, a unique prefix, ``last``, or ``FILE#RUN``.

    ``FILE.db`` alone is the last run of that file. Without *database* or ``FILE`` it is a run of
    the configured database. *frames* is ``polars``,
    ``pandas`` or ``numpy``: the library of the run's frames; by default polars if it is installed.
    With *exact* a frame also has the exact text ``x_text`` of each number ``x``. Raises
    ``DataInvalid`` if there is no such run, and ``ConfigInvalid`` if the library is missing.
    """
    library = frames_for(None, frames)
    run = at_home(str(run))
    if database is None and run.endswith(".db"):
        run = f"{run}#last"
    if database is None and "#" not in run:
        from tracepaper.daemon.config.loading import load

        database = load().storage.path
    located = resolve(None if database is None else path_of(database), run)
    with Reader.open(located.path) as reader:
        if damage := reader.damage(located.run_id):
            warnings.warn(damage, stacklevel=2)
    return Run(located.path, located.run_id, frames=library, exact=exact)


def _daily(value: float | None, error: float | None) -> str:
    """Return the mean of a day with its error; says so if the days are too few for one."""
    if value is None:
        return NOTHING
    if error is None:
        return f"{100 * value:+,.3f} % ({TOO_FEW_DAYS})"
    return f"{signed_estimate(value, error, ',.3f', 100)} %"


def _estimate(figures: Headline, key: str, form: Form) -> str:
    return written(estimate(figures[key], figures[f"{key}_error"]), form)
