"""Columns of a view or of a table of the report as a frame of polars, pandas or numpy.

Frames have the columns of the stable views, except that every ISO text ``x_iso`` is a moment in
UTC, ``x_utc``, and that the exact text ``x_text`` of a number ``x`` is there with ``exact=True``
alone. Units: ``_ms`` is UTC milliseconds of market time, prices and money are quote currency,
quantities base currency, returns natural logarithms, shares and probabilities fractions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence, ValuesView
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

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
Columns = dict[str, tuple[Kind, list[Any]]]
"""The columns of a frame by their names, each with the kind of its values."""
Build = Callable[[Columns], Frame]


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


def name_in_frame(name: str) -> str:
    """Return the frame's name of a view's column: ``x_iso`` becomes ``x_utc``."""
    return f"{name.removesuffix('_iso')}_utc" if name.endswith("_iso") else name


def kind_of(column: ViewColumn) -> Kind:
    """Return the kind of a view's *column*, so that a frame's schema never depends on its rows."""
    if column.name.endswith("_iso"):
        return "moment"
    if column.is_flag:
        return "boolean"
    return _KINDS[column.kind]


def columns_of_table(table: Table) -> Columns:
    """Return the columns of a table of the report by their keys."""
    columns: Columns = {}
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


def columns_of_view(columns: Sequence[ViewColumn], series: Sequence[list[Any]]) -> Columns:
    """Return the *series* of the *columns* of a view by their names in a frame."""
    given = {column.name: values for column, values in zip(columns, series, strict=True)}
    return {name_in_frame(column.name): _column(column, given) for column in columns}


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

    def build(columns: Columns) -> pl.DataFrame:
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

    def build(columns: Columns) -> pd.DataFrame:
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


def frame_of(columns: Columns, frames: Library) -> Any:  # noqa: ANN401 - of any library
    """Return *columns* as a frame of the library *frames*."""
    return _LIBRARIES[frames]()(columns)


def frames_for(data: object, wanted: Library | None) -> Library:
    """Choose a library of frames: the *wanted* one; else pandas where *data* are of pandas.

    Else polars where it is installed, and numpy. Raises ``ConfigInvalid`` if the *wanted* library
    is unknown or not installed.
    """
    if wanted is not None:
        if wanted not in _LIBRARIES:
            raise ConfigInvalid(f"There are no {wanted} frames; write polars, pandas or numpy.")
        _LIBRARIES[wanted]()
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
