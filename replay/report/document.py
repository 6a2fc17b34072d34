"""``Table`` as a value, and its HTML; all escaping is here.

A ``Figure`` says what a column is called, how it is written, and how it is taken from a row's
subject. Estimates are pairs (value, standard error). Signed forms write their sign always, and are
coloured as well, so that a loss is seen without its colour.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final, Generic, Literal, TypeVar

from rich import table as rich_table
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from tracepaper.replay.archive.columns import iso
from tracepaper.storage.database.run_views import Row
from tracepaper.strategies.units import NOTHING, duration, visible

T = TypeVar("T")
Estimate = tuple[float, float | None]
Value = str | int | float | Estimate | None
Form = Literal[
    "text", "count", "money", "gain", "percent", "gain percent", "ratio", "gain ratio", "bp",
    "gain bp", "share", "days", "measure", "minute", "second", "span", "exact", "bar",
]  # fmt: skip
_PATTERNS: Final = {
    "gain": ("{:+,.2f}", 1.0), "gain percent": ("{:+,.2f}", 100.0), "gain ratio": ("{:+,.2f}", 1.0),
    "gain bp": ("{:+,.1f}", 1e4), "money": ("{:,.2f}", 1.0), "percent": ("{:,.2f}", 100.0),
    "share": ("{:,.1f}", 100.0), "ratio": ("{:,.2f}", 1.0), "bp": ("{:,.1f}", 1e4),
    "days": ("{:,.1f}", 1.0), "measure": ("{:.4f}", 1.0), "count": ("{:,}", 1),
}  # fmt: skip
ROWS_SHOWN: Final = 12
BESIDE_EACH_OTHER: Final = 4
"""Rows of a turned table beside each other; more go below."""
BAR_CELLS: Final = 28
STYLES: Final = {"": "", "gain": "green", "loss": "red"}
TEXTS: Final = ("text", "minute", "second", "bar")
"""Forms that are written from the left."""
_NUMBER: Final = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_LEVELS: Final = (  # sentences of the engine: what follows a number of its own is kept
    (re.compile(rf"^((?:trailing )?stop|target)(?: at| by) {_NUMBER}(?= is |$)"), r"\1"),
    (re.compile(rf"( x ATR\(1d\)) {_NUMBER}(?= is |$)"), r"\1"),
    (re.compile(rf"(?<= the close) {_NUMBER}$"), ""),
    (re.compile(rf"^(quantity|price|trigger) {_NUMBER}(?= is )"), r"\1"),
)
_UNITS: Final = {"gain percent": "%", "percent": "%", "share": "%"}


def cause(reason: str) -> str:
    """Return *reason* without the prices and quantities that the engine wrote into it.

    ``stop at 109293.4`` and ``stop at 109210.7`` are one cause; a strategy's own words stay.
    """
    for pattern, kept in _LEVELS:
        reason = pattern.sub(kept, reason)
    return reason


def by_cause(counts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return how often each cause of the reasons in *counts* stands there, most frequent first."""
    found = Counter[str]()
    for reason, count in counts:
        found[cause(reason)] += count
    return found.most_common()


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


def of_view(key: str, title: str, form: Form, column: str = "") -> Figure[Row]:
    """Return the figure that a view's row holds in *column*; by default in that called *key*."""
    name = column or key
    return Figure(key, title, form, lambda row: row[name])


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

    def documents(self) -> list[dict[str, Any]]:
        """Return the rows as plain values by the figures' keys."""
        return [
            {
                figure.key: {"value": value[0], "error": value[1]}
                if isinstance(value, tuple)
                else value
                for figure, value in zip(self.figures, row, strict=True)
            }
            for row in self.rows
        ]


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


def written(value: Value, form: Form) -> str:
    """Return *value* for people; a dash where there is none."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, tuple):
        error = "" if value[1] is None else f" ± {written(value[1], _plain(form))}"
        return f"{written(value[0], form).removesuffix(' %')}{error or _unit(form)}"
    if form == "text" or isinstance(value, str):
        return str(value)
    return _of_number(value, form)


def _of_number(value: float, form: Form) -> str:
    match form:
        case "minute" | "second":
            moment = iso(int(value))[: 16 if form == "minute" else 19]
            return moment.replace("T", " ")
        case "span":
            return duration(value)
        case "bar":
            return bar_of(value)
        case _:
            pattern, times = _PATTERNS[form]
            return pattern.format(value * times) + _unit(form)


def tone(value: Value, form: Form) -> Literal["", "gain", "loss"]:
    """Return how *value* is coloured: only signed forms are."""
    number = value[0] if isinstance(value, tuple) else value
    if not form.startswith("gain") or number is None or isinstance(number, str) or not number:
        return ""
    return "gain" if number > 0 else "loss"


def _plain(form: Form) -> Form:
    plain: dict[Form, Form] = {
        "gain": "money", "gain percent": "percent", "gain ratio": "ratio", "gain bp": "bp",
    }  # fmt: skip
    return plain.get(form, form)


def _unit(form: Form) -> str:
    return f" {_UNITS[form]}" if form in _UNITS else ""


# ---------------------------------------------------------------- for a terminal


def printed(table: Table) -> RenderableType:
    """Return *table* for a terminal, with its title and its notes."""
    parts: list[RenderableType] = [Text(table.title + _left_out(table), style="bold")]
    parts += _parts(table)
    parts += [Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in table.notes]
    return Group(*parts)


def bar_of(share: float, width: int = BAR_CELLS) -> str:
    """Return a horizontal bar whose length is *share* (0 to 1) of *width* cells."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def _parts(table: Table) -> Iterator[rich_table.Table]:
    """Yield *table* for a terminal; a turned one in parts that fit beside each other."""
    if not table.turned:
        yield _upright(table)
        return
    for start in range(0, len(table.rows), BESIDE_EACH_OTHER):
        yield _turned(table, table.rows[start : start + BESIDE_EACH_OTHER])


def _left_out(table: Table) -> str:
    """Return which rows are shown, where not all are."""
    most = _most(table)
    if table.turned or len(table.rows) <= most:
        return ""
    return f" (the {'last' if table.newest else 'first'} {most} of {len(table.rows):,})"


def _most(table: Table) -> int:
    return min(ROWS_SHOWN, table.shown or ROWS_SHOWN)


def _upright(table: Table) -> rich_table.Table:
    places = [place for place, figure in enumerate(table.figures) if not figure.wide]
    most = _most(table)
    made = rich_table.Table(box=None, pad_edge=False)
    for place in places:
        figure = table.figures[place]
        text = figure.form in TEXTS
        made.add_column(figure.title, justify="left" if text else "right", no_wrap=not text)
    for row in table.rows[-most:] if table.newest else table.rows[:most]:
        made.add_row(*(_cell(row[place], table.figures[place].form) for place in places))
    return made


def _turned(table: Table, rows: tuple[tuple[Value, ...], ...]) -> rich_table.Table:
    """Return the figures as rows, without those that no row has."""
    made = rich_table.Table(box=None, pad_edge=False)
    made.add_column("")
    for row in rows:
        made.add_column(Text(str(row[0])), justify="right")
    for place, figure in enumerate(table.figures[1:], start=1):
        if not figure.wide and any(row[place] is not None for row in table.rows):
            made.add_row(figure.title, *(_cell(row[place], figure.form) for row in rows))
    return made


def _cell(value: Value, form: Form) -> Text:
    style = "cyan" if form == "bar" else STYLES[tone(value, form)]
    return Text(visible(written(value, form)), style=style)


class Markup(str):
    """Text that is HTML already; all other text is escaped, also where it is added to this."""

    __slots__ = ()

    def __add__(self, other: str) -> Markup:
        """Return both, as HTML: a plain ``str`` would be escaped once more, tags and all."""
        return Markup(super().__add__(text(other)))

    def __radd__(self, other: str) -> Markup:
        """Return *other*, escaped, and this."""
        return Markup(str.__add__(text(other), self))


def text(value: object) -> Markup:
    """Return *value* as HTML: escaped unless it is ``Markup``."""
    return value if isinstance(value, Markup) else Markup(escape(str(value), quote=True))


def element(name: str, *content: object, **attributes: object) -> Markup:
    """Return an element; ``class_`` is its class, and what is given is escaped."""
    given = "".join(
        f' {key.rstrip("_")}="{escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value
    )
    return Markup(f"<{name}{given}>{joined(content)}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    """Return *parts* one after another."""
    return Markup("".join(text(part) for part in parts))


def html_table(
    head: Sequence[object], rows: Iterable[Sequence[object]], *, texts: Sequence[int] = ()
) -> Markup:
    """Return a table that scrolls where it is wide; columns *texts* are text, others numbers."""
    classes = ["text" if place in texts else "" for place in range(len(head))]
    names = joined(
        element("th", name, class_=kind) for name, kind in zip(head, classes, strict=True)
    )
    lines = joined(
        element(
            "tr",
            *(
                cell
                if isinstance(cell, Markup) and cell.startswith("<td")
                else element("td", cell, class_=kind)
                for cell, kind in zip(row, classes, strict=True)
            ),
        )
        for row in rows
    )
    body = element("table", element("thead", element("tr", names)), element("tbody", lines))
    return element("div", body, class_="scroll")


def figures(shown: Table) -> Markup:
    """Return a table of the report, its notes under it."""
    most = len(shown.rows) if shown.shown is None else shown.shown
    rows = shown.rows[-most:] if shown.newest else shown.rows[:most]
    kinds: list[Form] = [figure.form for figure in shown.figures]
    cells = [
        [_html_cell(value, form) for value, form in zip(row, kinds, strict=True)] for row in rows
    ]
    heads: list[object] = [figure.title for figure in shown.figures]
    if shown.turned:
        kept = [
            place for place in range(1, len(heads)) if any(row[place] is not None for row in rows)
        ]
        cells = [[element("td", heads[place]), *(row[place] for row in cells)] for place in kept]
        heads = ["", *(row[0] for row in rows)]
    texts = () if shown.turned else [at for at, form in enumerate(kinds) if form in TEXTS]
    left_out = len(shown.rows) - len(rows)
    more = element("p", f"and {left_out:,} more.", class_="note") if left_out else Markup("")
    notes = (element("p", note, class_="note") for note in shown.notes)
    return joined([html_table(heads, cells, texts=texts), more, *notes])


def _html_cell(value: Value, form: Form) -> Markup:
    """Return a value as a cell, in the colour of a gain or a loss."""
    kinds = [*(["text"] if form in TEXTS else []), tone(value, form)]
    return element("td", written(value, form), class_=" ".join(filter(None, kinds)))


def json_in_script(document: object) -> Markup:
    """Return *document* as JSON that no text in it can break out of a script element."""
    plain = json.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return Markup(plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
