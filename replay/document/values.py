"""The output of a command: tables, charts and paragraphs as values and as JSON.

A ``Figure`` declares a column: its title, its form and the function that reads it from the row's
subject. Estimates are pairs (value, error). Signed forms always write the sign besides
the colour, so a loss is visible without colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, NamedTuple, Self, TypeVar

from msgspec import json, to_builtins

from tracepaper.replay.document.charts import Chart
from tracepaper.strategies.units import NOTHING, duration, iso

T = TypeVar("T")


class Link(str):
    """Text that links *to* an address of the page, such as ``#/run/ID``; elsewhere plain text."""

    __slots__ = ("to",)
    to: str

    def __new__(cls, text: str, to: str) -> Self:
        """Return *text* with a link *to* an address."""
        self = super().__new__(cls, text)
        self.to = to
        return self


Estimate = tuple[float, float | None]
TOO_FEW_DAYS: Final = "too few days"
"""Of an estimate without an error."""
Value = str | int | float | Estimate | None
Cells = Mapping[str, Value]
"""One row: each figure's value by its key."""
Form = Literal[
    "text", "count", "money", "gain", "percent", "gain percent", "ratio", "gain ratio", "bp",
    "gain bp", "share", "days", "measure", "points", "minute", "second", "span", "exact", "bar",
    "signed", "gain bar", "mark", "gain tint", "step",
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
"""How a page draws a table; most looks find their columns by the keys named here.

``tiles`` show each figure of the only row large, ``pairs`` a ``name`` and its ``value``, ``gauges``
the distance of a ``measure`` from its ``threshold``, a ``stack`` parts of a whole side by side,
``columns`` shares over time, a ``balance`` what each ``feature`` ``added``, a ``timeline`` each
``event`` in order. A terminal prints pairs on one line and the other looks as tables.
"""
_BY_POSITION: Final = ("table", "tiles")
"""Looks that draw columns by position, not by key."""
PAIR: Final[Mapping[str, Form]] = {"name": "text", "value": "exact"}
"""Columns of the look ``pairs``."""
BAR_CELLS: Final = 28
SIGNED_BAR_CELLS: Final = 16
BARS: Final = ("bar", "gain bar")
TIMES: Final = ("minute", "second")
TEXTS: Final = ("text", "mark", *TIMES, *BARS)
"""Forms that are aligned to the left."""


@dataclass(frozen=True)
class Figure(Generic[T]):
    """A column: its key in JSON, its title, its form, and the function that reads its value.

    Shares and returns are fractions in every form; times are UTC ms, spans ms. A terminal omits
    ``wide`` figures, and so does a narrow page, which shows ``meaning`` over the column's title.
    """

    key: str
    title: str
    form: Form
    read: Callable[[T], Value]
    wide: bool = False
    meaning: str = ""


def of_view(key: str, title: str, form: Form, column: str = "") -> Figure[Any]:
    """Return the figure in *column* of a view's row, by default the column *key*."""
    return Figure(key, title, form, lambda row: row[column or key])


def of_row(key: str, title: str, form: Form, *, wide: bool = False) -> Figure[Any]:
    """Return the figure under *key* of a row; its value is None if the row lacks the key."""
    return Figure(key, title, form, lambda row: row.get(key), wide)


def of_field(
    key: str, title: str, form: Form, path: str = "", *, wide: bool = False
) -> Figure[Any]:
    """Return the figure at a dotted *path* of attributes, by default *key*.

    Its value is None if an attribute on the path is None.
    """
    names = (path or key).split(".")

    def read(subject: object) -> Any:  # noqa: ANN401 - a value
        for name in names:
            subject = None if subject is None else getattr(subject, name)
        return subject

    return Figure(key, title, form, read, wide)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; a page makes it a link if its text is a ``Link``.

    A ``note`` qualifies the part above it, a page folds a ``detail``, and ``code`` is for copying.
    """

    text: str
    style: Literal[
        "plain", "lead", "strong", "heading", "item", "detail", "note", "warning", "code"
    ] = "plain"


@dataclass(frozen=True)
class Pages:
    """One page of a longer list of rows, which ``address`` of the interface serves.

    ``before`` and ``after`` are the values of the address's parameter ``after`` for the previous
    and the next page, None at an end. One of the ``symbols`` (names by ids) may be ``chosen``.
    """

    address: str
    total: int
    limit: int
    before: str | None
    after: str | None
    sort: str | None
    descending: bool
    exact: bool
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
    shown: int | None = None  # most rows shown to people; JSON has all
    newest: bool = False  # show the last rows, not the first
    whole: bool = False  # a terminal shows every row
    look: Look = "table"
    aside: str = ""  # words beside the title
    best: Literal["", "most", "least"] = ""  # of a heat map: which number is best
    terms: tuple[str, ...] = ()  # per row, extra text for a page's filter
    pages: Pages | None = None  # if rows come in pages

    def heading(self, place: int) -> str:
        """Return the title of the figure at *place*, with "± error" only if a cell has one.

        If estimates have none, the title says that their days are too few.
        """
        title = self.figures[place].title
        errors = [cell[1] for row in self.rows if isinstance(cell := row[place], tuple)]
        if " ± error" not in title or any(error is not None for error in errors):
            return title
        title = title.replace(" ± error", "")
        return f"{title} ({TOO_FEW_DAYS})" if errors else title

    def records(self) -> list[dict[str, Value]]:
        """Return each row's values by the figures' keys."""
        keys = [figure.key for figure in self.figures]
        return [dict(zip(keys, row, strict=True)) for row in self.rows]

    def documents(self) -> list[dict[str, Any]]:
        """Return each row's values by the figures' keys, estimates as objects for JSON."""
        return [
            {
                key: {"value": value[0], "error": value[1]} if isinstance(value, tuple) else value
                for key, value in record.items()
            }
            for record in self.records()
        ]


@dataclass(frozen=True)
class FoldedParts:
    """Parts that a page shows on request, under a one-line summary."""

    summary: str
    parts: tuple[Part, ...]


Part = Table | Chart | Paragraph | FoldedParts
"""One part of a document."""


@dataclass(frozen=True)
class TitledParts:
    """A report, an explanation, a sweep or a judgement: its parts under a title."""

    title: str
    parts: tuple[Part, ...]


class Found(NamedTuple):
    """What a command found: the parts it prints, its document of JSON, its tables, its page."""

    parts: Sequence[Part]
    document: Mapping[str, Any]
    tables: Sequence[Table] = ()
    page: Callable[[], TitledParts] | None = None


def as_document(document: TitledParts) -> dict[str, Any]:
    """Return *document* as JSON values for the page."""
    return {"title": document.title, "parts": as_parts(document.parts)}


def as_parts(parts: Iterable[Part]) -> list[dict[str, Any]]:
    """Return *parts* as JSON values for the page, with the numbers of tables formatted.

    A cell is its text, or an object with ``text`` and any of ``tone``, ``sort`` (the number to sort
    by), ``time`` (true if that is UTC ms), ``bar`` (length, 0 to 1), ``tint`` (-1 to 1), ``step``
    (of a decision) and ``to`` (an address of the page).
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
            return {"kind": "chart", **to_builtins(part, enc_hook=list)}  # a range as a list


def _table_part(part: Table) -> dict[str, Any]:
    kept = list(enumerate(part.figures))
    if part.turned:  # omit figures that are None in every row
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
                **({"key": figure.key} if part.pages or part.look not in _BY_POSITION else {}),
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
    if part.turned and part.rows:  # the figures become rows
        titles = [column["title"] for column in content["columns"]]
        names, *values = zip(*content["rows"], strict=True)
        content["columns"] = [{"title": name} for name in ("", *names)]
        content["rows"] = [[title, *cells] for title, cells in zip(titles[1:], values, strict=True)]
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
    """Return a function that maps a number and its form to a tint, -1 to 1, or to None."""
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
    if isinstance(value, str) and form in ("text", "exact"):
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
    """Return *value* as a page shows it: no text bar, and a minus sign as wide as the plus."""
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
    """Return a table of *figures* with one row per subject."""
    rows = tuple(tuple(figure.read(subject) for figure in figures) for subject in subjects)
    return Table(key, title, tuple(figures), rows, tuple(notes), turned, shown, newest)


def table_of(
    key: str,
    title: str,
    forms: Mapping[str, Form],
    rows: Iterable[Sequence[Value]],
    notes: Sequence[str] = (),
) -> Table:
    """Return a table of *rows*; *forms* maps each column's title to its form."""
    figures = tuple(of_row(name, name, form) for name, form in forms.items())
    return Table(key, title, figures, tuple(map(tuple, rows)), tuple(notes), whole=True)


def table_of_rows(key: str, title: str, note: str, rows: Sequence[Cells]) -> Table:
    """Return a table of *rows*; the types in the first row decide the forms."""
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
    """Return (value, error), with an error that is not finite as None; None without a value."""
    if value is None:
        return None
    return value, error if error is None or math.isfinite(error) else None


def documents(tables: Iterable[Table]) -> dict[str, Any]:
    """Return each table's rows and notes by its key."""
    return {each.key: {"rows": each.documents(), "notes": list(each.notes)} for each in tables}


def plain(value: object) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Return *value* in JSON types: arrays as lists, numbers that are not finite as None."""
    return json.decode(json.encode(value, enc_hook=lambda array: array.tolist()))


def written(value: Value, form: Form) -> str:
    """Return *value* as text; for None and NaN a dash, or nothing in the form of a bar."""
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


def plus_minus(error: float | None, pattern: str, factor: float = 1.0, unit: str = "") -> str:
    """Return ``±``, an *error* and its *unit* for a sentence, or ``too few days`` without one."""
    if error is None or math.isnan(error):
        return TOO_FEW_DAYS
    return f"± {error * factor:{pattern}}{unit}"


def signed_estimate(
    value: float, error: float | None, pattern: str, factor: float = 1.0, unit: str = ""
) -> str:
    """Return *value* with its sign and ``plus_minus`` of its *error*, for a sentence."""
    comma = "," if error is None or math.isnan(error) else ""
    return f"{value * factor:+{pattern}}{comma} {plus_minus(error, pattern, factor, unit)}"


def tone(value: Value, form: Form) -> Literal["", "gain", "loss"]:
    """Return the colour role of *value*; only the forms that begin with "gain" have one."""
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
"""Forms that need a function instead of a pattern of one number."""
