"""A page as one file: everything is inside, nothing loads, and no text of a record runs."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import pytest
from pages import document_in, record_in

from tracepaper.replay import page as package
from tracepaper.replay.document.charts import Chart, ChartAxis, ChartPanel, LineLayer
from tracepaper.replay.document.values import Paragraph, TitledParts, as_parts, table_of
from tracepaper.replay.page.export import (
    DOCUMENT_START,
    PAGE_START,
    modules_of,
    one_file,
    write_document_page,
)
from tracepaper.strategies.errors import ConfigInvalid

ASSETS: Final = Path(package.__file__).parent / "assets"
EVIL = '</script><img src="https://evil.example/x" onerror="alert(1)">'
DOCUMENT = TitledParts(
    EVIL,
    (
        Paragraph(EVIL),
        table_of("t", EVIL, {EVIL: "text"}, [[EVIL]]),
        Chart(EVIL, EVIL, [ChartPanel([LineLayer(EVIL, [0, 1], [1.0, 2.0])], ChartAxis(EVIL))]),
    ),
)


class Page(HTMLParser):
    """Collects elements, with the text inside each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.insides: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] and self.elements[-1][0] in ("script", "style") and data.strip():
            self.insides.append((*self.elements[-1], data))


@pytest.fixture
def page(tmp_path: Path) -> str:
    write_document_page(DOCUMENT, tmp_path / "page.html")
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_record_is_the_document_as_the_interface_answers_it(tmp_path: Path) -> None:
    write_document_page(DOCUMENT, tmp_path / "page.html")
    document = document_in(tmp_path / "page.html")
    assert document == {"title": EVIL, "parts": as_parts(DOCUMENT.parts)}


def test_nothing_is_loaded_and_each_script_and_style_is_named_by_its_hash(page: str) -> None:
    read = Page(page)
    for _, given in read.elements:
        assert not {"src", "href", "action"} & given.keys()
    assert "@import" not in page
    assert "url(" not in page
    policy = str(next(given for tag, given in read.elements if given.get("http-equiv"))["content"])
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    named = set(re.findall(r"sha256-[\w+/=]+", policy))
    run = [text for tag, given, text in read.insides if "gzip" not in str(given.get("type"))]
    hashed = {
        f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
        for text in run
    }
    assert len(run) == 3  # the style, the names of the modules, the start
    assert named == hashed


def modules_in(page: str) -> dict[str, str]:
    [names] = [text for _, given, text in Page(page).insides if given.get("type") == "importmap"]
    prefix = "data:text/javascript,"
    imports = json.loads(names)["imports"]
    assert all(url.startswith(prefix) for url in imports.values())
    assert not any(re.search(r"[\x00-\x1f#]", url) for url in imports.values())
    return {name: unquote(url.removeprefix(prefix)) for name, url in imports.items()}


@pytest.mark.parametrize("start", [DOCUMENT_START, PAGE_START])
def test_every_module_that_is_imported_is_inside_as_it_is_served(start: str) -> None:
    modules = modules_in(one_file("t", start, [], {}))
    assert modules.keys() == {f"tracepaper/{name}" for name in modules_of(start)}
    for name, text in modules.items():
        served = (ASSETS / name.removeprefix("tracepaper/")).read_text(encoding="utf-8")
        relative = re.findall(r"""(?:from|import)\s*["'](\.[^"']+)""", served)
        imported = re.findall(r"""(?:from|import)\s*["'](tracepaper/[^"']+)""", text)
        assert len(relative) == len(imported)
        assert modules.keys() >= set(imported)
        assert not re.search(r"""(?:from|import)\s*\(?\s*["']\.""", text)
        assert len(text) == len(served) + sum(map(len, imported)) - sum(map(len, relative))


def test_the_page_in_a_file_is_all_of_the_served_one() -> None:
    """A module that only the server could load would be missing in a file."""
    served = {str(path.relative_to(ASSETS)) for path in ASSETS.rglob("*.js")}
    assert served == set(modules_of(PAGE_START)) | set(modules_of(DOCUMENT_START))


def test_a_record_may_hold_any_answers_and_nan_is_null() -> None:
    record = {"/api/v1/runs/a": {"equity": [1.5, None]}, "/api/v1/health": {"state": "é\u2028"}}
    held = record | {"/": [math.nan, 1 / 3]}
    page = one_file("t", DOCUMENT_START, ["document.css"], held)
    assert record_in(page) == record | {"/": [None, 1 / 3]}


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"cannot be written .*; choose another file"):
        write_document_page(DOCUMENT, tmp_path / "missing" / "page.html")
