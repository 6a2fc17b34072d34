"""``Table``, ``Chart`` and ``Paragraph``: what a command says, as values, and as JSON.

A ``Figure`` says what a column is called, how it is written, and how it is taken from a row's
subject. Estimates are pairs (value, standard error). Signed forms write their sign always, and are
coloured as well, so that a loss is seen without its colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, Self, TypeVar

from msgspec import json, to_builtins

from tracepaper.replay.document.charts import Chart
from tracepaper.strategies.units import NOTHING, duration, iso

T = TypeVar("T")


class Link(str):
    """Words that lead *to* an address of the page, such as ``#/run/ID``; elsewhere words alone."""

    __slots__ = ("to",)
    to: str

    def __new__(cls, text: str, to: str) -> Self:
        """Make *text* lead *to* an address."""
        self = super().__new__(cls, text)
        self.to = to
        return self


Estimate = tuple[float, float | None]
Value = str | int | float | Estimate | None
Cells = Mapping[str, Value]
"""A row by the keys of its figures."""
Form = Literal[
    "text", "count", "money", "gain", "percent", "gain percent", "ratio", "gain ratio", "bp",
    "gain bp", "share", "days", "measure", "points", "minute", "second", "span", "exact", "bar",
    "signed", "gain bar", "mark", "gain tint", "step", "alarm",
]  # fmt: skip
_PATTERNS: Final = {
    "gain": ("{:+,.2f}", 1.0), "gain percent": ("{:+,.2f}", 100.0), "gain ratio": ("{:+,.2f}", 1.0),
    "gain bp": ("{:+,.1f}", 1e4), "money": ("{:,.2f}", 1.0), "percent": ("{:,.2f}", 100.0),
    "share": ("{:,.1f}", 100.0), "ratio": ("{:,.2f}", 1.0), "bp": ("{:,.1f}", 1e4),
    "days": ("{:,.1f}", 1.0), "measure": ("{:.4f}", 1.0), "count": ("{:,}", 1),
    "points": ("{:+.3f}", 1e4), "signed": ("{:+.4f}", 1.0), "gain tint": ("{:+.2f}", 100.0),
    "step": ("{:d}", 1),
}  # fmt: skip
_UNITS: Final = {"gain percent": " %", "percent": " %", "share": " %", "gain tint": " %"}
_WITHOUT_SIGN: Final[dict[Form, Form]] = {
    "gain": "money", "gain percent": "percent", "gain ratio": "ratio", "gain bp": "bp",
    "signed": "measure",
}  # fmt: skip
Look = Literal["table", "tiles", "pairs", "gauges", "stack", "columns", "balance", "timeline"]
"""How a page draws a table, by the keys of its figures.

``tiles`` show each figure of the only row large, ``pairs`` a ``name`` and its ``value``, ``gauges``
how far a ``measure`` is from its ``threshold``, a ``stack`` the parts of a whole side by side,
``columns`` shares over time, a ``balance`` what each ``feature`` has ``added``, and a ``timeline``
an ``event`` after another. A terminal writes pairs in one line, and all others as tables.
"""
_BY_PLACE: Final = ("table", "tiles")
"""Looks whose columns are drawn by their places, whatever their keys."""
PAIR: Final[Mapping[str, Form]] = {"name": "text", "value": "exact"}
"""The figures of ``pairs``."""
BAR_CELLS: Final = 28
SIGNED_BAR_CELLS: Final = 16
BARS: Final = ("bar", "gain bar")
TIMES: Final = ("minute", "second")
TEXTS: Final = ("text", "alarm", "mark", *TIMES, *BARS)
"""Forms that are written from the left."""


@dataclass(frozen=True)
class Figure(Generic[T]):
    """One figure: its key in JSON, its name for people, its form, and where it comes from.

    Shares and returns are fractions, whatever they are written in; times are UTC ms, spans ms.
    ``wide`` figures are left out where a terminal or a page has no room for them; ``meaning`` is
    what a page says of one where its title is pointed at.
    """

    key: str
    title: str
    form: Form
    of: Callable[[T], Value]
    wide: bool = False
    meaning: str = ""


def of_view(key: str, title: str, form: Form, column: str = "") -> Figure[Any]:
    """Return the figure that a view's row holds in *column*, by default in that called *key*."""
    return Figure(key, title, form, lambda row: row[column or key])


def of_row(key: str, title: str, form: Form, *, wide: bool = False) -> Figure[Any]:
    """Return the figure that a row holds under *key*; None where the row lacks it."""
    return Figure(key, title, form, lambda row: row.get(key), wide)


def of_field(
    key: str, title: str, form: Form, path: str = "", *, wide: bool = False
) -> Figure[Any]:
    """Return the figure at the end of a dotted *path* of attributes, by default that called *key*.

    It is None where a part on the way is.
    """
    names = (path or key).split(".")

    def taken(subject: object) -> Any:  # noqa: ANN401 - a value
        for name in names:
            subject = None if subject is None else getattr(subject, name)
        return subject

    return Figure(key, title, form, taken, wide)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph.

    A ``note`` qualifies what stands above it, a page folds a ``detail``, ``code`` is to be copied.
    One whose text is a ``Link`` leads there.
    """

    text: str
    style: Literal[
        "plain", "lead", "strong", "heading", "item", "detail", "note", "warning", "code"
    ] = "plain"


@dataclass(frozen=True)
class Pages:
    """Where the rows of a table stand among those of an *address* of the interface.

    That answers with the table of another page, or in another order. ``before`` and ``after`` are
    its ``after`` for the pages beside this one, None at an end; of several ``symbols`` (names by
    ids) one may be ``chosen``.
    """

    address: str
    total: int
    limit: int
    before: str | None
    after: str | None
    sort: str | None
    descending: bool
    symbols: Mapping[str, str]
    chosen: str


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
    look: Look = "table"
    aside: str = ""  # words beside the title
    best: Literal["", "most", "least"] = ""  # of a heat map: which of its numbers is
    terms: tuple[str, ...] = ()  # by which a page's filter finds each row, besides its cells
    pages: Pages | None = None  # of rows that come in pages

    def heading(self, place: int) -> str:
        """Return the title of the figure at *place*; without errors it promises none."""
        title = self.figures[place].title
        cells = (row[place] for row in self.rows)
        has_error = any(isinstance(cell, tuple) and cell[1] is not None for cell in cells)
        return title if has_error else title.replace(" ± error", "")

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


@dataclass(frozen=True)
class FoldedParts:
    """Parts that are shown on request, under a line that says what they are about."""

    summary: str
    parts: tuple[Part, ...]


Part = Table | Chart | Paragraph | FoldedParts
"""What a document is made of, in the order in which it is read."""


@dataclass(frozen=True)
class TitledParts:
    """A report, an explanation, a sweep or a judgement: its parts under a title."""

    title: str
    parts: tuple[Part, ...]


def as_document(document: TitledParts) -> dict[str, Any]:
    """Return *document* as plain values, as the page draws them."""
    return {"title": document.title, "parts": as_parts(document.parts)}


def as_parts(parts: Iterable[Part]) -> list[dict[str, Any]]:
    """Return *parts* as plain values for the page, numbers of tables as they are written.

    A cell is its text, or an object of ``text`` with what applies of ``tone``, ``sort`` (the number
    to sort by), ``time`` (whether that is UTC ms), ``bar`` (a length of 0 to 1), ``tint`` (-1 to
    1), ``step`` (of a decision) and ``to`` (an address of the page).
    """
    return [_as_part(part) for part in parts]


def _as_part(part: Part) -> dict[str, Any]:
    match part:
        case Paragraph(text, style):
            leads = {"to": text.to} if isinstance(text, Link) else {}
            return {"kind": "paragraph", "style": style, "text": str(text), **leads}
        case FoldedParts(summary, inside):
            return {"kind": "fold", "summary": summary, "parts": as_parts(inside)}
        case Table():
            return _table_part(part)
        case Chart():
            chart: dict[str, Any] = to_builtins(part, enc_hook=list)  # of a range
            return {"kind": "chart", **chart}


def _table_part(part: Table) -> dict[str, Any]:
    kept = list(enumerate(part.figures))
    if part.turned:  # without figures that no row has
        kept = [
            (place, figure)
            for place, figure in kept
            if not place or any(row[place] is not None for row in part.rows)
        ]
    tint = _tinting(part)
    content: dict[str, Any] = {
        "kind": "table",
        "key": part.key,
        "title": part.title,
        "columns": [
            {
                "title": part.heading(place),
                **({"text": True} if figure.form in TEXTS else {}),
                **({"key": figure.key} if part.pages or part.look not in _BY_PLACE else {}),
                **({"meaning": figure.meaning} if figure.meaning else {}),
                **({"wide": True} if part.pages and figure.wide else {}),
            }
            for place, figure in kept
        ],
        "rows": [[_cell(row[place], figure.form, tint) for place, figure in kept]
                 for row in part.rows],
        "notes": list(part.notes),
    }  # fmt: skip
    if part.shown is not None:
        content |= {"shown": part.shown, "newest": part.newest}
    if part.turned and part.rows:  # the figures are the rows
        titles = [column["title"] for column in content["columns"]]
        names, *values = zip(*content["rows"], strict=True)
        content["columns"] = [{"title": name} for name in ("", *names)]
        content["rows"] = [[title, *of] for title, of in zip(titles[1:], values, strict=True)]
        content["turned"] = True
    if part.look != "table":
        content["look"] = part.look
    if part.pages is not None:
        content["pages"] = to_builtins(part.pages)
    if part.aside:
        content["aside"] = part.aside
    if part.terms:
        content["terms"] = list(part.terms)
    return content


def _tinting(part: Table) -> Callable[[float, Form], float | None]:
    """Return how a number of *part* is tinted, from -1 to 1; None where it is not."""
    tinted = [
        value
        for row in part.rows
        for value, figure in zip(row, part.figures, strict=True)
        if isinstance(value, float)
        and not math.isnan(value)
        and (part.best or figure.form == "gain tint")
    ]
    if not part.best:
        most = max(map(abs, tinted), default=0.0) or 1.0
        return lambda number, form: round(number / most, 3) if form == "gain tint" else None
    low, high = min(tinted, default=0.0), max(tinted, default=0.0)
    middle, half = (low + high) / 2, (high - low) / (2 if part.best == "most" else -2)
    return lambda number, _form: round((number - middle) / half, 3) if half else None


def _cell(
    value: Value, form: Form, tint_of: Callable[[float, Form], float | None]
) -> str | dict[str, Any]:
    if isinstance(value, Link):
        return {"text": str(value), "to": value.to}
    if isinstance(value, str) and form == "alarm" and value:
        return {"text": value, "tone": "loss"}
    if isinstance(value, str) and form in ("text", "exact", "alarm"):
        return value or NOTHING
    number = value[0] if isinstance(value, tuple) else value
    if number is None or isinstance(number, str) or math.isnan(number):
        return _text(value, form)
    cell: dict[str, Any] = {"text": _text(value, form), "sort": number}
    if tone_name := tone(value, form):
        cell["tone"] = tone_name
    if form in TIMES:
        cell["time"] = True
    if form in BARS:
        cell["bar"] = max(0.0, min(abs(float(number)), 1.0))
    if form == "step":  # opens the decision
        cell["step"] = number
    if (tint := tint_of(number, form)) is not None:
        cell["tint"] = tint
    return cell


def _text(value: Value, form: Form) -> str:
    """Return *value* as the page shows it: no bar of letters, and a minus that is as wide as +."""
    if form in BARS:
        return ""
    text = written(value, form)
    return text.replace("-", "−") if form in _PATTERNS else text


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


def estimate(value: float | None, error: float | None) -> Estimate | None:
    """Return a value with its error, unknown where that is not finite; None without the value."""
    if value is None:
        return None
    return value, error if error is None or math.isfinite(error) else None


def documents(tables: Iterable[Table]) -> dict[str, Any]:
    """Return each table's rows and notes by its key."""
    return {each.key: {"rows": each.documents(), "notes": list(each.notes)} for each in tables}


def plain(value: object) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Return *value* as JSON has it: arrays are lists, and what is not finite is None."""
    return json.decode(json.encode(value, enc_hook=lambda array: array.tolist()))


def written(value: Value, form: Form) -> str:
    """Return *value* for people; a dash where there is none or NaN, and no bar."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "" if form in BARS else NOTHING
    if isinstance(value, tuple):
        number, error = value
        if error is None or math.isnan(error):
            return written(number, form)
        without_unit = written(number, form).removesuffix(_UNITS.get(form, ""))
        return f"{without_unit} ± {written(error, _WITHOUT_SIGN.get(form, form))}"
    if isinstance(value, str):
        return value
    if form in _WRITERS:
        return _WRITERS[form](value)
    pattern, times = _PATTERNS[form]
    return pattern.format(value * times) + _UNITS.get(form, "")


def plus_minus(error: float | None, pattern: str, factor: float = 1.0) -> str:
    """Return a standard *error* after its value in a sentence; one that is unknown is called so."""
    if error is None or math.isnan(error):
        return "± unknown"
    return f"± {error * factor:{pattern}}"


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
