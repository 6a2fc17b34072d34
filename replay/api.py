"""``tracepaper.backtest``: a backtest from Python.

    import tracepaper

    run = tracepaper.backtest("sma_cross", "BTCUSDT-1m.csv", params={"fast": 20, "slow": 100})
    print(run)
    run.trades                     # a frame of polars or pandas, else columns of numpy
    run.stats                      # its figures as a pandas Series
    run.plot()                     # a picture, in a notebook
    run.show()                     # its page, in a notebook
    run.report(html="run.html")

It makes the run that ``tracepaper replay`` makes, by the same function. Report, explanations and
checks are imported when they are called: ``import tracepaper`` does not wait for them.

The rules are docs/python.md, Y1 to Y9.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import date
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tracepaper.daemon.config.loading import Sections
from tracepaper.daemon.session.user_class import known_class
from tracepaper.daemon.session.user_code import has_source
from tracepaper.replay import notebook
from tracepaper.replay.backtest.make import make_run
from tracepaper.replay.backtest.run import Watch
from tracepaper.replay.backtest.run_spec import Consumer, RunSpec, moment, spec_of
from tracepaper.replay.backtest.strategy_keys import (
    NO_SOURCE,
    named_strategies,
    process_warnings,
    strategy_keys,
    strategy_name,
)
from tracepaper.replay.dataframes import Library, RunFrames, frames_for, open_run
from tracepaper.replay.document.values import TOO_FEW_DAYS, Form, estimate, written
from tracepaper.replay.notebook import Picture, RunPage, Text, text_of
from tracepaper.replay.report import BARS_DRAWN
from tracepaper.replay.report.figures import Headline, headline
from tracepaper.replay.report.record import RunRecord, read_record
from tracepaper.replay.report.report import stretches
from tracepaper.replay.report.trades import ClosedTrade, closed_trades, largest_causes
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.extras import require
from tracepaper.strategies.units import count_of, iso

if TYPE_CHECKING:
    import pandas as pd

    from tracepaper.replay.checks.verify import Verification

CALLER: Final = "the call of backtest"
Frame = Any
"""A DataFrame of polars or pandas, else a ``NumpyFrame`` of arrays: see ``frames_for``."""


def backtest(  # noqa: PLR0913 - the options of a replay
    strategy: str | type | None,
    data: Any,  # noqa: ANN401 - a path, candles, a frame, or several
    *,
    params: Mapping[str, Any] | None = None,
    strategies: Mapping[str, Mapping[str, Any]] | None = None,
    config: str | Path | Sections | None = None,
    db: str | Path | None = None,
    start: str | float | date | None = None,
    end: str | float | date | None = None,
    funding: str | Path | Sequence[str | Path] = (),
    actions: str | Path | Sequence[str | Path] = (),
    frame_data: Any = None,  # noqa: ANN401 - as data
    columns: Mapping[str, str | None] | None = None,
    depth: str | Path | Sequence[str | Path] = (),
    events: str | Path | Sequence[str | Path] = (),
    frames: Library | None = None,
    progress: bool | None = None,
) -> Backtest:
    """Run *strategy* over *data* with the daemon's engine; return the run.

    *strategy* is a built-in name, ``module:Class``, a class, or None for the configuration's.
    *data* is a path or ``SYMBOL=PATH``, a frame of polars or pandas or a dictionary of columns, a
    dictionary of any of these by symbol, or a list of them. *params* are keys of ``[strategy]`` for
    a built-in name, and the options of a class. *strategies* are several on one account: by name,
    the keys of each ``[strategies.NAME]``; its ``name`` may be a class, and *strategy* is None.
    *config* is a TOML file or a dictionary of sections, ``{"sizing": {"mode": "fixed", "quantity":
    "0.1"}}``; without it ``tracepaper.toml`` of the working folder is used, as on the command line.
    *db* is the database that stores the run; with None the run is removed with the result. *start*
    (included) and *end* (excluded) bound the period: ISO text, UTC milliseconds, or a date.
    *funding* are files of settled rates, *actions* of splits and dividends, *frame_data* candles of
    higher timeframes that begin before the data. *columns* name a field's column, ``{"close":
    "Price"}``, or leave it out, ``{"turnover": None}``, in *data* and *frame_data*. *depth* are
    files of order books that ``tracepaper data record`` wrote, *events* its files of order-book
    events. *frames* is ``polars``, ``pandas`` or ``numpy``: the library of the run's frames; by
    default that of *data*, else polars if it is installed. A notebook shows a progress bar unless
    *progress* is False.

    Raises ``ConfigInvalid``, ``DataInvalid`` or ``StrategyFailed``, each in one sentence.
    """
    spec = spec_of(Consumer.BACKTEST, locals())
    library = frames_for(data, frames)
    with ExitStack() as stack:
        classes: tuple[type, ...] = ()
        if isinstance(strategy, type):
            classes = (strategy,)
            strategy = stack.enter_context(known_class(strategy))
        chosen = strategy_name(strategy)
        overrides = (
            {} if chosen is None else {"strategy": strategy_keys(chosen, params, spec.given)}
        )
        if strategies is not None:
            if chosen is not None:
                raise ConfigInvalid("Give one strategy, or several as strategies; leave one out.")
            overrides["strategies"], classes = named_strategies(strategies, stack)
        if chosen is None and params:
            raise ConfigInvalid("params are options of a strategy; name it as the first argument.")
        with notebook.progress("bars", wanted=progress) as advance:
            watch = Watch(
                lambda replay: nullcontext(lambda bars: advance(bars, replay.feed.bar_count))
            )
            called = replace(
                spec, overrides=overrides, caller=CALLER, warnings=process_warnings(classes)
            )
            return Backtest.of_spec(called, classes, watch, library)


class Backtest:
    """A finished run: its figures, frames, report, explanations and checks.

    Frames are read on first use, and kept. A run without a database is removed by :meth:`close`, at
    the end of ``with``, or when nothing refers to it any more.
    """

    def __init__(
        self,
        database: Path,
        run_id: str,
        classes: tuple[type, ...] = (),
        *,
        folder: Path | None = None,
        frames: Library | None = None,
    ) -> None:
        self.database = database
        self.run_id = run_id
        self._library: Library = frames_for(None, frames)
        self._classes = classes
        self._remove = (
            None
            if folder is None
            else weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        )

    @classmethod
    def of_spec(
        cls,
        spec: RunSpec,
        classes: tuple[type, ...],
        watch: Watch | None = None,
        library: Library | None = None,
    ) -> Backtest:
        """Make the run of *spec* in its database, or in a file that lives with the result."""
        folder = None if spec.database else Path(tempfile.mkdtemp(prefix="tracepaper-"))
        path = spec.database or Path(f"{folder}") / "run.db"
        try:
            run = make_run(replace(spec, database=path), watch)
            for strategy_class in classes:
                if not has_source(strategy_class):
                    warnings.warn(f"{NO_SOURCE.format(strategy_class.__name__)}.", stacklevel=3)
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(run.database, run.run_id, classes, folder=folder, frames=library)

    # ------------------------------------------------------------ frames

    @property
    def frames(self) -> RunFrames[Any]:
        """Every frame of the record (gates, explanations, bars, shadows, ...)."""
        self._require_open()
        return open_run(self.run_id, self.database, frames=self._library)

    @cached_property
    def equity(self) -> Frame:
        """The account after each step."""
        return self.frames.equity()

    @cached_property
    def decisions(self) -> Frame:
        """One row per closed bar: action, verdict, reason, forecast."""
        return self.frames.decisions()

    @cached_property
    def fills(self) -> Frame:
        """The fills of the run's own account."""
        return self.frames.fills()

    @cached_property
    def orders(self) -> Frame:
        """The orders in their last state."""
        return self.frames.orders()

    @cached_property
    def trades(self) -> Frame:
        """The closed trades: entry, exit, profit after costs, reasons.

        Trades over an unadjusted split are left out, because their profit is wrong.
        """
        return self.frames.trades()

    # ------------------------------------------------------------ figures

    @cached_property
    def summary(self) -> Headline:
        """The figures of the run's account in one dictionary (docs/python.md, Y7)."""
        return headline(self._record, self._closed)

    @cached_property
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
        return pd.Series(dict(self.summary), name=self._record.run["strategy"], dtype=object)

    @cached_property
    def _record(self) -> RunRecord:
        self._require_open()
        with Reader.open(self.database) as reader:
            return read_record(reader, self.database, self.run_id)

    @cached_property
    def _closed(self) -> list[ClosedTrade]:
        return closed_trades(self._record.account)

    def report(
        self,
        *,
        html: str | Path | None = None,
        chart: str | Path | None = None,
        last: int = BARS_DRAWN,
    ) -> Text:
        """Return the report as text; its ``document`` is that of ``tracepaper report --json``.

        *html* also writes the page to that file; *chart*, a .png or .svg, draws the price of the
        newest *last* bars with the trades. Raises ``ConfigInvalid`` if a file cannot be written,
        ``DataInvalid`` without two bars to draw.
        """
        from tracepaper.replay.document.pictures import write_picture
        from tracepaper.replay.report.charts import check, picture_chart
        from tracepaper.replay.report.report import build_report
        from tracepaper.replay.report.terminal import as_document, show_report

        self._require_open()
        if chart is not None:
            check(Path(chart), last, "chart")
        built = build_report(self.database, self.run_id)
        if html is not None:
            from tracepaper.replay.page.export import run_page, write_page
            from tracepaper.replay.report.document import report_document

            document = report_document(built)
            write_page(run_page(self.database, self.run_id, document=document), Path(html))
        if chart is not None:
            write_picture(picture_chart(built, last=last), Path(chart))
        return Text(text_of(lambda console: show_report(console, built)), as_document(built))

    def plot(self, *, last: int = BARS_DRAWN) -> Picture:
        """Draw the price of the newest *last* bars with the trades and the strategy's notes.

        A notebook shows the picture; ``figure`` is the matplotlib figure, and ``save(path)`` writes
        it. Raises ``ConfigInvalid`` without matplotlib, ``DataInvalid`` without two bars to draw.
        """
        from tracepaper.replay.document.pictures import figure_of
        from tracepaper.replay.report.charts import check_bars, picture_chart
        from tracepaper.replay.report.report import build_report

        self._require_open()
        check_bars(last)
        require("matplotlib", "plot")
        built = build_report(self.database, self.run_id)
        return Picture(
            figure_of(picture_chart(built, last=last)), f"<picture of run {self.run_id}>"
        )

    def show(self, *, full: bool = False) -> RunPage:
        """Show the run's page, that of ``tracepaper ui``, in a notebook.

        ``write(path)`` writes it, as ``tracepaper report --html`` does. *full* includes every
        decision in full.
        """
        from tracepaper.replay.page.export import run_page, write_page

        self._require_open()
        html = run_page(self.database, self.run_id, full=full)
        how = "a notebook shows it; elsewhere .write('run.html') and open that file"
        return RunPage(html, f"<page of run {self.run_id}: {how}>", write_page)

    def explain(self, sequence: int = -1) -> Text:
        """Explain one decision; *sequence* is its column in ``decisions``.

        A negative one counts back from the end: -1 is the last decision. Raises ``DataInvalid`` if
        there is no such decision.
        """
        from tracepaper.replay.document.terminal import show
        from tracepaper.replay.explain.decision_document import read_decision
        from tracepaper.replay.explain.document import document, stored_parts

        self._require_open()
        stored, titled = read_decision(self.database, self.run_id, self._sequence_of(sequence))
        parts = tuple(stored_parts(stored, titled))
        return Text(
            text_of(lambda console: show(console, parts)),
            document(stored, titled.title, (), None),
        )

    def _sequence_of(self, index: int) -> int:
        if type(index) is not int:
            raise ConfigInvalid(f"{shown(index)} is no decision; give its sequence, or -1.")
        if index >= 0:
            return index
        sequences = self._record.decisions.sequence
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

        self._require_open()
        with self._custom_classes(), Reader.open(self.database) as reader:
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
        from tracepaper.replay.document.terminal import show_document

        self._require_open()
        from_ms = RunSpec(start=moment(start, "start")).from_ms
        with self._custom_classes(), Reader.open(self.database) as reader:
            changed = changed_run(
                reader,
                self.database,
                self.run_id,
                changes=changes or {},
                drop_gates=drop_gates,
                from_ms=from_ms,
            )
            result = what_if(changed)
        document = what_if_document(result)
        return Text(text_of(lambda console: show_document(console, document)), as_json(result))

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
        if self._is_gone:
            return f"<run {self.run_id}, closed>"
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        """Yield the run in a few lines: strategy, period, figures and benchmarks."""
        self._require_open()
        record, figures = self._record, self.summary
        yield from record.cautions
        yield (
            f"{record.run['strategy']} on {record.run['instruments']}, "
            f"{iso(int(record.decisions.open_time_ms.min()))} to {iso(int(record.times_ms[-1]))}"
        )
        yield (
            f"{count_of(int(figures['bars'] or 0), 'bar')}, {written(figures['days'], 'days')} "
            f"days, {count_of(int(figures['trades'] or 0), 'closed trade')}"
        )
        yield (
            f"return {written(figures['return'], 'gain percent')}, a day "
            f"{_daily(figures['mean_day'], figures['mean_day_error'])}, worst drawdown "
            f"{written(figures['max_drawdown'], 'percent')}"
        )
        if figures["sharpe"] is not None:
            yield f"Sharpe ratio a year {_estimate(figures, 'sharpe', 'gain ratio')}"
        for part in stretches(record, self._closed):
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
        if figures["random_beaten"] is not None:
            beaten = written(figures["random_beaten"], "share")
            yield f"beats {beaten} of {figures['random_timings']} random timings"
        decided = record.decisions
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
            ),
        )
        yield from (f"Warning: {text}." for text in json.loads(record.run["warnings"] or "[]"))

    def _repr_html_(self) -> str:
        if self._is_gone:
            return f"<p>{escape(repr(self))}</p>"
        first, *rest = map(escape, self._lines())
        rows = "".join(f"<li>{line}</li>" for line in rest)
        return f"<p><b>{first}</b></p><ul>{rows}</ul>"


def _daily(value: float | None, error: float | None) -> str:
    """Return the mean of a day with its error; says so if the days are too few for one."""
    written_day = f"{written(estimate(value, error), 'gain bp')} bp"
    return written_day if value is None or error is not None else f"{written_day} ({TOO_FEW_DAYS})"


def _estimate(figures: Headline, key: str, form: Form) -> str:
    return written(estimate(figures[key], figures[f"{key}_error"]), form)
