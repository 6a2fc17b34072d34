"""HTML out of values: everything that comes from a run is escaped here, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from tracepaper.replay.report.tables import TEXTS, Form, Table, Value, tone, written


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


def table(
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
    cells = [[_cell(value, form) for value, form in zip(row, kinds, strict=True)] for row in rows]
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
    return joined([table(heads, cells, texts=texts), more, *notes])


def _cell(value: Value, form: Form) -> Markup:
    """Return a value as a cell, in the colour of a gain or a loss."""
    kinds = [*(["text"] if form in TEXTS else []), tone(value, form)]
    return element("td", written(value, form), class_=" ".join(filter(None, kinds)))


def json_in_script(document: object) -> Markup:
    """Return *document* as JSON that no text in it can break out of a script element."""
    plain = json.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return Markup(plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
