"""A run's record as data frames: ``tracepaper.open_run``.

    run = open_run("last", "tracepaper.db")
    run.decisions()                          # a polars frame; frames="pandas" or "numpy"
    run.explanations(first=6_000, last=6_100)
    run.report("refusals")                   # a table of the report, its figures as numbers
    run.columns("decisions")                 # what every column means, with its unit

Frames have the columns of the stable views, except that every ISO text ``x_iso`` is a moment in
UTC, ``x_utc``, and that the exact text ``x_text`` of a number ``x`` is there with ``exact=True``
alone. Units: ``_ms`` is UTC milliseconds of market time, prices and money are quote currency,
quantities base currency, returns natural logarithms, shares and probabilities fractions.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, ValuesView
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, overload

from tracepaper.storage.database.reader import Reader, resolve
from tracepaper.storage.database.run_views import RunViews
from tracepaper.storage.database.views import VIEWS
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import missing_sentence

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from tracepaper.replay.document.values import Table
    from tracepaper.storage.database.view_columns import ViewColumn

Frame = TypeVar("Frame")
Library = Literal["polars", "pandas", "numpy"]
Kind = Literal["text", "integer", "float", "boolean", "moment"]
_KINDS: Final[dict[str, Kind]] = {"TEXT": "text", "INTEGER": "integer", "REAL": "float"}
Build = Callable[[dict[str, tuple[Kind, list[Any]]]], Frame]


class NumpyFrame(dict[str, Any]):
    """Columns of one length as numpy arrays by name: a frame without polars or pandas.

    A missing number is NaN, a missing time NaT, a missing text None.
    """

    @property
    def height(self) -> int:
        """The number of rows."""
        return len(next(iter(self.values()), ()))

    def __repr__(self) -> str:
        return f"<{self.height:,} rows of {', '.join(self)}>"


class RunFrames(Generic[Frame]):
    """One run of one database; every method reads again and leaves nothing open.

    ``first`` and ``last`` bound the sequences that are read, both included. Each bar has a dozen
    gates and 70 explanation rows, so read only a part of a long run.
    """

    def __init__(
        self, database: Path, run_id: str, build: Build[Frame], *, exact: bool = False
    ) -> None:
        self.database = database
        self.run_id = run_id
        self._build = build
        self._exact = exact

    def __repr__(self) -> str:
        return f"<run {self.run_id} of {self.database}>"

    @property
    def run(self) -> dict[str, Any]:
        """The run's row: kind, instruments, interval, model, configuration, head digest."""
        with Reader.open(self.database) as reader:
            return RunViews(reader.connection, self.run_id).run()

    def decisions(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return one row per closed bar: action, verdict, forecast at the gates' horizon."""
        return self._frame("v_decisions", first, last)

    def gates(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return one row per gate and decision: measure, threshold, passed."""
        return self._frame("v_gates", first, last)

    def explanations(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return one row per decision and 64-bar block: the block's share of attention."""
        return self._frame("v_explanations", first, last)

    def notes(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return one row for each number or text that the strategy noted at a decision."""
        return self._frame("v_notes", first, last)

    def strategy_decisions(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return one row per strategy and closed bar, if several strategies share the account."""
        return self._frame("v_strategy_decisions", first, last)

    def bars(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the bars as the engine saw them, warm-up and revisions included."""
        return self._frame("v_bars", first, last)

    def orders(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the run's orders in their last state."""
        return self._frame("v_orders", first, last)

    def fills(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the fills of the run's own account."""
        return self._frame("v_fills", first, last)

    def trades(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the closed round trips: entry, exit, gross, costs, funding, net, bars held."""
        return self._frame("v_trades", first, last)

    def positions(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the position of each instrument after each of its steps."""
        return self._frame("v_positions", first, last)

    def equity(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the run's own account after each step."""
        return self._frame("v_equity", first, last)

    def ledger(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return every movement of the account's cash, with the cash after it."""
        return self._frame("v_ledger", first, last)

    def shadow_fills(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the fills of the run's shadow accounts, by ``shadow``."""
        return self._frame("v_shadow_fills", first, last)

    def shadow_equity(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the run's shadow accounts after each step, by ``shadow``."""
        return self._frame("v_shadow_equity", first, last)

    def gaps(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the holes in the data, and what repaired them."""
        return self._frame("v_gaps", first, last)

    def commits(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the links of the run's chain, each a commit of steps."""
        return self._frame("v_commits", first, last)

    def events(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return every event that the engine consumed, its content as JSON."""
        return self._frame("v_events", first, last)

    def commands(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the operator's commands, with who gave each."""
        return self._frame("v_commands", first, last)

    def checks(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the comparisons of the run with its replay, which are not part of the chain."""
        return self._frame("v_checks", first, last)

    def shortfall(self, *, first: int | None = None, last: int | None = None) -> Frame:
        """Return the paper fills and the account's fills of each decision (``v_shortfall``)."""
        return self._frame("v_shortfall", first, last)

    def report(self, table: str = "accounts") -> Frame:
        """Return a table of the run's report, such as ``refusals``, ``drawdowns`` or ``costs``.

        Its columns have the keys of ``tracepaper report --json``; ``x_error`` is the error
        of an estimate ``x``.
        """
        from tracepaper.replay.report.figures import tables
        from tracepaper.replay.report.report import build_report

        report_tables = tables(build_report(self.database, self.run_id))
        if table not in report_tables:
            names = ", ".join(report_tables)
            raise ConfigInvalid(f"This run's report has no table {table}; choose from {names}.")
        return self._build(_report_columns(report_tables[table]))

    def importance(self, every: str = "1d", *, of: str = "bars", samples: int = 0) -> Frame:
        """Return the importance of bars or features over the run, one row per span of *every*.

        ``of="bars"`` has the stored shares of the rollout by age; ``of="features"`` runs the model
        again at *samples* decisions of each span. ``x_error`` is the standard deviation of a share
        ``x`` over the decisions.
        """
        from tracepaper.replay.explain.importance import read_importance

        importance = read_importance(self.database, self.run_id, every, samples=samples)
        return self._build(_report_columns(importance.of(of)))

    def columns(self, name: str) -> Frame:
        """Return the meaning of each column of the frame *name*, such as ``decisions``."""
        view = next((view for view in VIEWS if view.name == f"v_{name}"), None)
        if view is None or not hasattr(self, name):
            names = ", ".join(view.name.removeprefix("v_") for view in VIEWS[1:])
            raise ConfigInvalid(f"There is no frame {name}; choose from {names}.")
        shown = [(_renamed(column.name), column.doc) for column in self._columns_of(view.name)]
        return self._build(
            {
                "column": ("text", [column for column, _ in shown]),
                "meaning": (
                    "text",
                    [doc.replace(" as ISO 8601 text", " as a moment in UTC") for _, doc in shown],
                ),
            }
        )

    def _frame(self, view: str, first: int | None, last: int | None) -> Frame:
        """Return the rows of *view* between two sequences, in order."""
        columns = self._columns_of(view)
        names = [column.name for column in columns]
        series: list[list[Any]] = [[] for _ in columns]
        with Reader.open(self.database) as reader:
            views = RunViews(reader.connection, self.run_id)
            for batch in views.batches(view, names, first=first, last=last):
                for values, part in zip(series, batch, strict=True):
                    values.extend(part)
        given = {column.name: values for column, values in zip(columns, series, strict=True)}
        return self._build({_renamed(column.name): _column(column, given) for column in columns})

    def _columns_of(self, view: str) -> list[ViewColumn]:
        columns = next(table.columns for table in VIEWS if table.name == view)
        return [column for column in columns if self._exact or not column.name.endswith("_text")]


@overload
def open_run(
    run: str = ...,
    database: str | Path | None = ...,
    *,
    frames: Literal["polars"] = ...,
    exact: bool = ...,
) -> RunFrames[pl.DataFrame]: ...


@overload
def open_run(
    run: str = ...,
    database: str | Path | None = ...,
    *,
    frames: Literal["pandas"],
    exact: bool = ...,
) -> RunFrames[pd.DataFrame]: ...


@overload
def open_run(
    run: str = ...,
    database: str | Path | None = ...,
    *,
    frames: Literal["numpy"],
    exact: bool = ...,
) -> RunFrames[NumpyFrame]: ...


@overload
def open_run(
    run: str = ..., database: str | Path | None = ..., *, frames: Library, exact: bool = ...
) -> RunFrames[Any]: ...


def open_run(
    run: str = "last",
    database: str | Path | None = None,
    *,
    frames: Library = "polars",
    exact: bool = False,
) -> RunFrames[Any]:
    """Open a run, to read frames of it: an id, a unique prefix, ``last``, or ``FILE#RUN``.

    With *exact* a frame also has the exact text ``x_text`` of each number ``x``. Without *database*
    or ``FILE#`` it is a run of the configured database. Raises ``DataInvalid`` if there is no such
    run, and ``ConfigInvalid`` if the library *frames* is missing.
    """
    if frames not in _LIBRARIES:
        raise ConfigInvalid(f"There are no {frames} frames; write polars, pandas or numpy.")
    build = _LIBRARIES[frames]()
    if database is None and "#" not in run:
        from tracepaper.daemon.config.loading import load

        database = load().storage.path
    located = resolve(None if database is None else Path(database), run)
    with Reader.open(located.path) as reader:
        if damage := reader.damage(located.run_id):
            warnings.warn(damage, stacklevel=2)
    return RunFrames(located.path, located.run_id, build, exact=exact)


def _renamed(name: str) -> str:
    """Return the frame's name of a view's column: ``x_iso`` becomes ``x_utc``."""
    return f"{name.removesuffix('_iso')}_utc" if name.endswith("_iso") else name


def kind_of(column: ViewColumn) -> Kind:
    """Return the kind of a view's *column*, so that a frame's schema never depends on its rows."""
    if column.name.endswith("_iso"):
        return "moment"
    if column.is_flag:
        return "boolean"
    return _KINDS[column.kind]


def _report_columns(table: Table) -> dict[str, tuple[Kind, list[Any]]]:
    """Return the columns of a table of the report by their keys."""
    columns: dict[str, tuple[Kind, list[Any]]] = {}
    for place, figure in enumerate(table.figures):
        values = [row[place] for row in table.rows]
        kind: Kind = "integer" if figure.form in ("count", "minute", "second") else "float"
        if figure.form in ("text", "exact"):
            kind = "text"
        pairs = [value if isinstance(value, tuple) else (value, None) for value in values]
        columns[figure.key] = kind, [value for value, _ in pairs]
        if any(isinstance(value, tuple) for value in values):
            columns[f"{figure.key}_error"] = "float", [error for _, error in pairs]
    return columns


def _column(column: ViewColumn, given: dict[str, list[Any]]) -> tuple[Kind, list[Any]]:
    """Return one column; a moment is taken from the milliseconds beside its text."""
    kind, values = kind_of(column), given[column.name]
    if kind == "moment":
        return kind, given[f"{column.name.removesuffix('_iso')}_ms"]
    if kind == "boolean":
        return kind, [None if value is None else bool(value) for value in values]
    return kind, values


def _polars() -> Build[pl.DataFrame]:
    try:
        import polars as pl
    except ImportError as error:
        raise ConfigInvalid(missing_sentence("polars", 'frames="polars"')) from error
    types = {
        "text": pl.String(),
        "integer": pl.Int64(),
        "float": pl.Float64(),
        "boolean": pl.Boolean(),
        "moment": pl.Datetime("ms", "UTC"),
    }

    def build(columns: dict[str, tuple[Kind, list[Any]]]) -> pl.DataFrame:
        return pl.DataFrame(
            [
                pl.Series(name, values, dtype=pl.Int64()).cast(types[kind])
                if kind == "moment"
                else pl.Series(name, values, dtype=types[kind])
                for name, (kind, values) in columns.items()
            ]
        )

    return build


def _pandas() -> Build[pd.DataFrame]:
    try:
        import pandas as pd
    except ImportError as error:
        raise ConfigInvalid(
            "Pandas frames need pandas; install it with pip install pandas."
        ) from error
    types = {"text": "string", "integer": "Int64", "float": "float64", "boolean": "boolean"}

    def build(columns: dict[str, tuple[Kind, list[Any]]]) -> pd.DataFrame:
        return pd.DataFrame(
            {
                name: pd.to_datetime(pd.Series(values, dtype="Int64"), unit="ms", utc=True)
                if kind == "moment"
                else pd.Series(values, dtype=types[kind])
                for name, (kind, values) in columns.items()
            }
        )

    return build


def _numpy() -> Build[NumpyFrame]:
    import numpy as np

    def array(kind: Kind, values: list[Any]) -> Any:  # noqa: ANN401 - an array of any type
        if kind == "moment":
            return np.array(["NaT" if value is None else value for value in values], "M8[ms]")
        if kind == "float":
            return np.array(values, np.float64)
        if kind == "text" or (kind == "boolean" and None in values):
            return np.array(values, dtype=object)
        if kind == "boolean":
            return np.array(values, np.bool_)
        return np.array(values, np.float64 if None in values else np.int64)

    return lambda columns: NumpyFrame({name: array(*column) for name, column in columns.items()})


def frame_of(columns: dict[str, tuple[Kind, list[Any]]], frames: Library) -> Any:  # noqa: ANN401
    """Return *columns*, each with the kind of its values, as a frame of the library *frames*."""
    return _LIBRARIES[frames]()(columns)


def frames_for(data: object, wanted: Library | None) -> Library:
    """Choose a library of frames: the *wanted* one; else pandas where *data* are of pandas.

    Else polars where it is installed, and numpy. Raises ``ConfigInvalid`` where there is no such
    library.
    """
    if wanted is not None:
        if wanted not in _LIBRARIES:
            raise ConfigInvalid(f"There are no {wanted} frames; write polars, pandas or numpy.")
        return wanted
    several = data.values() if isinstance(data, Mapping) else data
    items = list(several)[:1] if isinstance(several, (list, tuple, ValuesView)) else []
    if any(type(item).__module__.partition(".")[0] == "pandas" for item in (data, *items)):
        return "pandas"
    return "polars" if importlib.util.find_spec("polars") else "numpy"


_LIBRARIES: Final[dict[str, Callable[[], Build[Any]]]] = {
    "polars": _polars,
    "pandas": _pandas,
    "numpy": _numpy,
}
