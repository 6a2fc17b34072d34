from __future__ import annotations

import base64
import gzip
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import storage_cases as cases
from builders import altered
from msgspec.structs import replace
from plotly.offline import get_plotlyjs
from report_cases import build_report_of

from tracepaper.replay.document.page import Markup, element, json_in_script
from tracepaper.replay.report.heads import read_heads
from tracepaper.replay.report.page import page_of, write_page
from tracepaper.replay.report.report import Report
from tracepaper.strategies.errors import ConfigInvalid

pytestmark = pytest.mark.slow

EVIL = '</script><img src="https://evil.example/x" onerror="alert(1)">'
VOID = {"meta", "img", "br", "hr", "link", "input"}
SHAPES = {"rect", "circle", "polyline", "line", "path"}


class Page(HTMLParser):
    """Collects elements, texts and scripts, and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            name = self.elements[-1][1].get("id") or "page"
            self.scripts[name] = self.scripts.get(name, "") + data
        else:
            self.words.append(data)


def coloured(value: Any) -> Any:
    """Return a figure with a colour for every name of one."""
    if isinstance(value, str):
        return "#123456" if value.startswith("var(") else value
    if isinstance(value, list):
        return [coloured(item) for item in value]
    if isinstance(value, dict):
        return {key: coloured(item) for key, item in value.items()}
    return value


@pytest.fixture(scope="module")
def evil_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Return a run in whose record every free text is an attack."""
    path = tmp_path_factory.mktemp("evil") / "run.db"
    steps = [
        replace(
            step,
            decision=step.decision and altered(step.decision, reason=EVIL),
            fills=tuple(replace(fill, reason=EVIL) for fill in step.fills),
        )
        for step in cases.plain_steps(120)
    ]
    cases.write_run(path, steps, of=cases.run(strategy=EVIL, warnings=(EVIL,)))
    return build_report_of(path)


@pytest.fixture(scope="module")
def attention_page(attention_report: Report) -> str:
    return page_of(attention_report, read_heads(attention_report.record))


def test_the_page_is_whole_and_small(attention_page: str) -> None:
    page = Page(attention_page)
    places = [given["id"] for tag, given in page.elements if given.get("class") == "chart"]
    assert sorted(places, key=str) == sorted(json.loads(page.scripts["figures"]))
    assert len(places) >= 6
    assert len(attention_page.encode()) < 3_500_000


def test_a_reader_sees_no_tag(attention_page: str, cross_report: Report) -> None:
    for text in (attention_page, page_of(cross_report)):
        page = Page(text)
        seen = "".join(page.words)
        assert re.findall(r"</?[a-z][^>]*>", seen) == []
        assert "&lt;" not in seen
        named = [tag for tag, _ in page.elements]
        assert named.count("dt") == named.count("dd") > 3


def test_the_charts_library_unpacks_to_what_was_installed(attention_page: str) -> None:
    packed = Page(attention_page).scripts["plotly"]
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()


def test_what_to_know_first_is_folded_under_one_line_and_warnings_are_not(
    attention_page: str, evil_report: Report
) -> None:
    folded = attention_page.split('<details class="sentences">')[1].split("</details>", maxsplit=1)[
        0
    ]
    summary, rest = folded.split("</summary>")
    assert "Paper trading only" in summary
    assert "<p>" not in summary
    assert rest.count("<p>") >= 5
    assert '<p class="warning">Warning: ' in page_of(evil_report)


def test_losses_and_gains_have_a_sign_and_a_colour(cross_report: Report) -> None:
    text = page_of(cross_report)
    assert 'class="loss">-' in text
    coloured_cells = re.findall(r'class="(gain|loss)">([^<]*)<', text)
    assert coloured_cells
    for tone, shown in coloured_cells:
        assert shown.startswith("+" if tone == "gain" else "-")


def test_the_page_asks_nobody_for_anything(attention_page: str) -> None:
    page = Page(attention_page)
    for tag, given in page.elements:
        assert tag not in {"link", "iframe", "img", "object", "embed"}
        for name in ("src", "href", "action", "data"):
            assert (given.get(name) or "#").startswith("#")
    policy = next(given for tag, given in page.elements if given.get("http-equiv"))
    assert "default-src 'none'" in str(policy["content"])
    rest = attention_page.replace(page.scripts["plotly"], "")
    assert "http://" not in rest
    assert "https://" not in rest
    assert "@import" not in rest
    assert "url(" not in rest


def test_every_chart_is_one_that_plotly_takes(attention_page: str, cross_report: Report) -> None:
    for text in (attention_page, page_of(cross_report)):
        for figure in json.loads(Page(text).scripts["figures"]).values():
            made = coloured(figure)
            made["layout"]["font"].pop("family")
            assert go.Figure(made).data


def test_text_from_the_database_is_never_markup(evil_report: Report) -> None:
    text = page_of(evil_report)
    page = Page(text)
    assert "<img" not in text.replace(page.scripts["plotly"], "")
    assert not any(given.get("onerror") for _, given in page.elements)
    assert any(EVIL in words for words in page.words)  # shown, as the text that it is
    assert "Warning: " + EVIL in "".join(page.words)


def test_only_colours_of_the_page_are_named(attention_page: str) -> None:
    page = Page(attention_page)
    known = set(re.findall(r"(--[\w-]+):", attention_page))
    named = set(re.findall(r"var\((--[\w-]+)\)", page.scripts["figures"]))
    assert named
    assert named <= known


def test_an_element_escapes_what_it_is_given() -> None:
    made = element("p", '<b> & "', title='"><script>')
    assert made == ('<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt; &amp; &quot;</p>')
    assert element("p", element("b", "x")) == "<p><b>x</b></p>"


def test_what_is_put_together_stays_markup_and_escapes_the_rest() -> None:
    made = element("dt", "a") + element("dd", "<b>")
    assert element("dl", made) == "<dl><dt>a</dt><dd>&lt;b&gt;</dd></dl>"
    assert element("p", "<i>" + Markup("<b>x</b>") + "<i>") == ("<p>&lt;i&gt;<b>x</b>&lt;i&gt;</p>")


def test_json_cannot_close_its_script() -> None:
    made = json_in_script({"text": EVIL})
    assert "<" not in made
    assert json.loads(made) == {"text": EVIL}


def test_a_file_that_cannot_be_written_is_one_sentence(
    cross_report: Report, tmp_path: Path
) -> None:
    with pytest.raises(ConfigInvalid, match=r"cannot be written .*; choose another file"):
        write_page(cross_report, tmp_path / "missing" / "page.html")


def test_a_missing_plotly_names_the_extra(
    cross_report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ConfigInvalid, match=r"pip install 'tracepaper\[report\]'"):
        write_page(cross_report, tmp_path / "page.html")
