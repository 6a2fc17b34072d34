"""A table of the report as a value: its figures are declared once, terminal, page and JSON follow.

A ``Figure`` says what a column is called, how it is written, and how it is taken from a row's
subject. Estimates are pairs (value, standard error). Signed forms write their sign always, and are
coloured as well, so that a loss is seen without its colour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

from tracepaper.replay.archive.times import iso
from tracepaper.strategies.words import duration

T = TypeVar("T")
Estimate = tuple[float, float | None]
Value = str | int | float | Estimate | None
Form = Literal[
    "text", "count", "money", "gain", "percent", "gain percent", "ratio", "gain ratio", "bp",
    "gain bp", "share", "days", "measure", "minute", "span",
]  # fmt: skip
NONE: Final = "–"
_PATTERNS: Final = {
    "gain": ("{:+,.2f}", 1.0), "gain percent": ("{:+,.2f}", 100.0), "gain ratio": ("{:+,.2f}", 1.0),
    "gain bp": ("{:+,.1f}", 1e4), "money": ("{:,.2f}", 1.0), "percent": ("{:,.2f}", 100.0),
    "share": ("{:,.1f}", 100.0), "ratio": ("{:,.2f}", 1.0), "bp": ("{:,.1f}", 1e4),
    "days": ("{:,.1f}", 1.0), "measure": ("{:.4f}", 1.0), "count": ("{:,}", 1),
}  # fmt: skip
_UNITS: Final = {"gain percent": "%", "percent": "%", "share": "%"}


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
        return NONE
    if isinstance(value, tuple):
        error = "" if value[1] is None else f" ± {written(value[1], _plain(form))}"
        return f"{written(value[0], form).removesuffix(' %')}{error or _unit(form)}"
    if form == "text" or isinstance(value, str):
        return str(value)
    if form == "minute":
        return iso(int(value))[:16].replace("T", " ")
    if form == "span":
        return duration(float(value))
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
