"""Tables and charts as one HTML page that needs no network; all escaping is here."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from tracepaper.replay.document.values import (
    TEXTS,
    Chart,
    Form,
    Paragraph,
    Part,
    Table,
    Value,
    tone,
    written,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import missing_sentence

POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
"""The browser itself refuses every request that the page could make."""


class Markup(str):
    """Paragraph that is HTML already; all other text is escaped, also where it is added to this."""

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
    """Return the rows of a table, its notes under them."""
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
    return joined([html_table(heads, cells, texts=texts), more, _notes(shown)])


def _notes(table: Table) -> Markup:
    return joined(element("p", note, class_="note") for note in table.notes)


def _html_cell(value: Value, form: Form) -> Markup:
    kinds = [*(["text"] if form in TEXTS else []), tone(value, form)]
    return element("td", written(value, form), class_=" ".join(filter(None, kinds)))


def json_in_script(document: object) -> Markup:
    """Return *document* as JSON that no text in it can break out of a script element."""
    plain = json.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return Markup(plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


class Charts:
    """The charts of a page, by the id of the element that each is drawn in."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, Any]] = {}

    def put(self, figure: dict[str, Any] | None, caption: str) -> Markup:
        """Take in a chart; return the place where the page draws it."""
        if figure is None:
            return Markup("")
        name = f"chart-{len(self.figures) + 1}"
        self.figures[name] = figure
        height = f"height: {figure['layout']['height']}px"
        return element(
            "figure",
            element("div", id=name, class_="chart", style=height),
            element("figcaption", caption),
        )

    def parts(self, parts: Iterable[Part]) -> Markup:
        """Return *parts*, a table under its title; one without rows is its notes."""
        made: list[Markup] = []
        for part in parts:
            match part:
                case Table():
                    made.append(element("h3", part.title))
                    made.append(figures(part) if part.rows else _notes(part))
                case Chart():
                    made.append(self.put(part.figure, part.caption))
                case Paragraph(style="heading"):
                    made.append(element("h2", part.text))
                case Paragraph():
                    kind = "" if part.style == "plain" else part.style
                    made.append(element("p", part.text, class_=kind))
        return joined(made)


def whole_page(title: str, heading: Markup, content: Iterable[object], charts: Charts) -> str:
    """Return a page of *content* under *heading*, with *charts* drawn in their places.

    Raises ``ConfigInvalid`` where plotly is missing.
    """
    library = _plotly()
    own = files("tracepaper.replay.document")
    button = element("button", "light / dark", class_="theme", type="button")
    body = element("main", element("header", heading, button), *content)
    head = joined(
        [
            Markup('<meta charset="utf-8">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", f"tracepaper · {title}"),
            element("style", Markup(own.joinpath("page.css").read_text(encoding="utf-8"))),
        ]
    )
    drawn = element("script", json_in_script(charts.figures), id="figures", type="application/json")
    script, edges = (
        element("script", Markup(own.joinpath(name).read_text(encoding="utf-8")))
        for name in ("page.js", "edges.js")
    )
    parts = (
        body,
        drawn,
        element("script", Markup(library), id="plotly", type="text/plain"),
        script,
        *([edges] if 'class="edges"' in body else ()),
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{joined(parts)}</body></html>\n'
    )


def _plotly() -> str:
    """Return plotly's script compressed, as base64: plain it would be 5 MB of every page."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigInvalid(missing_sentence("plotly", "A page")) from error
    packed = gzip.compress(str(get_plotlyjs()).encode(), compresslevel=6, mtime=0)
    return base64.b64encode(packed).decode()


def write_text(page: str, path: Path) -> None:
    """Write *page*; raise ``ConfigInvalid`` where *path* cannot be written."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(
            f"The page cannot be written to {path}: {error.strerror}; choose another file."
        ) from error
