"""Pages as single files, with assets and data inside, that open without a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

from tracepaper.replay.document.values import TitledParts, as_document
from tracepaper.strategies.errors import ConfigInvalid

ASSETS: Final = files("tracepaper.replay.page") / "assets"
DOCUMENT_START: Final = "document/alone.js"
PAGE_START: Final = "main.js"
PACKED: Final = "application/gzip+base64"
_PLAIN: Final = " !\"$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""Characters that a ``data:`` URL keeps; ``%``, ``#`` and all but visible ASCII are quoted."""
_RELATIVE: Final = re.compile(r"""(\bfrom\s*|\bimport\s*\(?\s*)(["'])(\.{1,2}/[^"']+)\2""")


class DecisionBlock(NamedTuple):
    """Complete decisions from *first* to *last*, as :func:`packed` returns them."""

    first: int
    last: int
    text: str


def write_document_page(document: TitledParts, path: Path) -> None:
    """Write *document* as one file; raise ``ConfigInvalid`` if *path* cannot be written."""
    record = {"/api/v1/document": as_document(document)}
    styles = ("page.css", "document.css", "document/alone.css")
    write_page(one_file(document.title, DOCUMENT_START, styles, record), path)


def write_page(page: str, path: Path) -> None:
    """Write *page*; raise ``ConfigInvalid`` if *path* cannot be written."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(
            f"The page cannot be written to {path}: {error.strerror}; choose another file."
        ) from error


def one_file(
    title: str,
    start: str,
    styles: Sequence[str],
    record: Mapping[str, Any],
    blocks: Sequence[DecisionBlock] = (),
) -> str:
    """Return a page that runs the module *start* (an asset), with *styles* and *record* inside.

    The page contains every module that *start* imports. *record* maps request paths to answers;
    *blocks* add complete decisions. The policy forbids every load and lists the hash of each script
    and style, so the record's contents cannot run.
    """
    imports = {  # quoting with % is shorter than base64 and readable
        f"tracepaper/{name}": f"data:text/javascript,{quote(module, safe=_PLAIN)}"
        for name, module in modules_of(start).items()
    }
    # Escape every < of a module, so that no markup begins within the script element.
    names = json.dumps({"imports": imports}, separators=(",", ":")).replace("<", "\\u003c")
    run = f'import "tracepaper/{start}";'
    style = "\n".join(_text(name) for name in styles)
    held = "".join(
        f'<script type="{PACKED}" data-first="{block.first}" data-last="{block.last}">{block.text}'
        "</script>\n"
        for block in blocks
    )
    policy = (
        f"default-src 'none'; script-src {_hash(names)} {_hash(run)} data:; "
        f"style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · tracepaper</title>\n<style>{style}</style>\n"
        f'<script type="importmap">{names}</script>\n</head><body><div id="page"></div>\n'
        "<noscript>This page needs JavaScript.</noscript>\n"
        f'<script type="{PACKED}" id="record">{packed(record)}</script>\n{held}'
        f'<script type="module">{run}</script>\n</body></html>\n'
    )


def modules_of(start: str) -> dict[str, str]:
    """Return the module *start* and all that it imports, by name, with absolute imports.

    A module in a ``data:`` URL has no folder, so its imports cannot be relative.
    """
    modules: dict[str, str] = {}
    pending = [start]
    while pending:
        name = pending.pop()
        if name in modules:
            continue

        def absolute(relative: re.Match[str], folder: str = posixpath.dirname(name)) -> str:
            before, quote, path = relative.groups()
            place = posixpath.normpath(posixpath.join(folder, path))
            pending.append(place)
            return f"{before}{quote}tracepaper/{place}{quote}"

        modules[name] = _RELATIVE.sub(absolute, _text(name))
    return dict(sorted(modules.items()))


def packed(record: Mapping[str, Any]) -> str:
    """Return *record*, answers by request path, as base64 of compressed JSON.

    Numbers that are not finite become null.
    """
    return base64.b64encode(gzip.compress(msgspec.json.encode(record), mtime=0)).decode()


def _text(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
