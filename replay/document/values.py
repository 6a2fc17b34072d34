"""``Table``, ``Chart`` and ``Paragraph``: what a command says, as values, and as JSON.

A ``Figure`` says what a column is called, how it is written, and how it is taken from a row's
subject. Estimates are pairs (value, standard error). Signed forms write their sign always, and are
coloured as well, so that a loss is seen without its colour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

from tracepaper.replay.archive.columns import iso
from tracepaper.strategies.units import NOTHING, duration

T = TypeVar("T")
Estimate = tuple[float, float | None]
Value = str | int | float | Estimate | None
Cells = Mapping[str, Value]
"""A row by the keys of its figures."""
Form = Literal[
    "text", "count", "money", "gain", "percent", "gain percent", "ratio", "gain ratio", "bp",
    "gain bp", "share", "days", "measure", "points", "minute", "second", "span", "exact", "bar",
    "signed", "gain bar", "mark",
]  # fmt: skip
_PATTERNS: Final = {
    "gain": ("{:+,.2f}", 1.0), "gain percent": ("{:+,.2f}", 100.0), "gain ratio": ("{:+,.2f}", 1.0),
    "gain bp": ("{:+,.1f}", 1e4), "money": ("{:,.2f}", 1.0), "percent": ("{:,.2f}", 100.0),
    "share": ("{:,.1f}", 100.0), "ratio": ("{:,.2f}", 1.0), "bp": ("{:,.1f}", 1e4),
    "days": ("{:,.1f}", 1.0), "measure": ("{:.4f}", 1.0), "count": ("{:,}", 1),
    "points": ("{:+.3f}", 1e4), "signed": ("{:+.4f}", 1.0),
}  # fmt: skip
_UNITS: Final = {"gain percent": " %", "percent": " %", "share": " %"}
_WITHOUT_SIGN: Final[dict[Form, Form]] = {
    "gain": "money", "gain percent": "percent", "gain ratio": "ratio", "gain bp": "bp",
    "signed": "measure",
}  # fmt: skip
BAR_CELLS: Final = 28
SIGNED_BAR_CELLS: Final = 16
BARS: Final = ("bar", "gain bar")
TEXTS: Final = ("text", "minute", "second", "mark", *BARS)
"""Forms that are written from the left."""


@dataclass(frozen=True)
class Figure(Generic[T]):
    """One figure: its key in JSON, its name for people, its form, and where it comes from.

    Shares and returns are fractions, whatever they are written in; times are UTC ms, spans ms.
    ``wide`` figures are left out of a terminal's table, where it has no room for them.
    """

    key: str
    title: str
    form: Form
    of: Callable[[T], Value]
    wide: bool = False


def of_view(key: str, title: str, form: Form, column: str = "") -> Figure[dict[str, Any]]:
    """Return the figure that a view's row holds in *column*, by default in that called *key*."""
    return Figure(key, title, form, lambda row: row[column or key])


def of_row(key: str, title: str, form: Form, *, wide: bool = False) -> Figure[Cells]:
    """Return the figure that a row holds under *key*; None where the row lacks it."""
    return Figure(key, title, form, lambda row: row.get(key), wide)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; a ``note`` qualifies what stands above it."""

    text: str
    style: Literal["plain", "strong", "heading", "item", "note", "warning"] = "plain"


@dataclass(frozen=True)
class Chart:
    """A Plotly document, and the sentence under it. Only a page can draw it."""

    figure: dict[str, Any]
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows of values under their figures; ``turned`` shows the figures as rows."""

    key: str
    title: str
    figures: tuple[Figure[Any], ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()
    turned: bool = False
    shown: int | None = None  # rows that people are shown; JSON has them all
    newest: bool = False  # the last rows are shown, not the first
    whole: bool = False  # a terminal shows every row

    def records(self) -> list[dict[str, Value]]:
        """Return the rows by the figures' keys."""
        keys = [figure.key for figure in self.figures]
        return [dict(zip(keys, row, strict=True)) for row in self.rows]

    def documents(self) -> list[dict[str, Any]]:
        """Return the rows as plain values by the figures' keys."""
        return [
            {
                key: {"value": value[0], "error": value[1]} if isinstance(value, tuple) else value
                for key, value in record.items()
            }
            for record in self.records()
        ]


Part = Table | Chart | Paragraph
"""What a document is made of, in the order in which it is read."""


def table(
    key: str,
    title: str,
    figures: Sequence[Figure[T]],
    subjects: Iterable[T],
    *,
    notes: Sequence[str] = (),
    turned: bool = False,
    shown: int | None = None,
    newest: bool = False,
) -> Table:
    """Return the table of *figures* of each of *subjects*."""
    rows = tuple(tuple(figure.of(subject) for figure in figures) for subject in subjects)
    return Table(key, title, tuple(figures), rows, tuple(notes), turned, shown, newest)


def table_of(
    key: str,
    title: str,
    forms: Mapping[str, Form],
    rows: Iterable[Sequence[Value]],
    notes: Sequence[str] = (),
) -> Table:
    """Return *rows* as a table whose columns bear the names and forms of *forms*."""
    figures = tuple(of_row(name, name, form) for name, form in forms.items())
    return Table(key, title, figures, tuple(map(tuple, rows)), tuple(notes), whole=True)


def table_of_rows(key: str, title: str, note: str, rows: Sequence[Cells]) -> Table:
    """Return *rows* as a table whose forms follow from the first row's values."""
    first: Cells = rows[0] if rows else {}
    forms: dict[str, Form] = {name: _form_of(value) for name, value in first.items()}
    cells = [tuple(row.values()) for row in rows]
    return table_of(key, title, forms, cells, notes=[note] if note else [])


def _form_of(value: Value) -> Form:
    match value:
        case tuple():
            return "signed"
        case float():
            return "measure"
        case int():
            return "count"
        case _:
            return "text"


def documents(tables: Iterable[Table]) -> dict[str, Any]:
    """Return each table's rows and notes by its key."""
    return {each.key: {"rows": each.documents(), "notes": list(each.notes)} for each in tables}


def written(value: Value, form: Form) -> str:
    """Return *value* for people; a dash where there is none, and no bar."""
    if value is None or value == "":
        return "" if form in BARS else NOTHING
    if isinstance(value, tuple):
        number, error = value
        if error is None:
            return written(number, form)
        without_unit = written(number, form).removesuffix(_UNITS.get(form, ""))
        return f"{without_unit} ± {written(error, _WITHOUT_SIGN.get(form, form))}"
    if isinstance(value, str):
        return value
    if form in _WRITERS:
        return _WRITERS[form](value)
    pattern, times = _PATTERNS[form]
    return pattern.format(value * times) + _UNITS.get(form, "")


def tone(value: Value, form: Form) -> Literal["", "gain", "loss"]:
    """Return the colour of *value*: only signed forms have one."""
    number = value[0] if isinstance(value, tuple) else value
    if not form.startswith("gain") or number is None or isinstance(number, str) or not number:
        return ""
    return "gain" if number > 0 else "loss"


def bar_of(share: float, width: int = BAR_CELLS) -> str:
    """Return a horizontal bar whose length is *share* (0 to 1) of *width* cells."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


_WRITERS: Final[dict[Form, Callable[[float], str]]] = {
    "text": str,
    "minute": lambda time_ms: iso(int(time_ms))[:16].replace("T", " "),
    "second": lambda time_ms: iso(int(time_ms))[:19].replace("T", " "),
    "span": duration,
    "bar": bar_of,
    "gain bar": lambda share: bar_of(abs(share), SIGNED_BAR_CELLS),
    "mark": lambda is_so: "✓" if is_so else "✗",
}
"""Forms that are no pattern of one number."""
