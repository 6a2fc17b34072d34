"""The rules of docs/ are numbered, what points to one finds it, and the site is built of them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Final

import documentation
import pytest
from generated import GENERATED
from programs import ROOT

import tracepaper

PAGES: Final = {page.name: page.read_text("utf-8") for page in sorted(ROOT.glob("docs/*.md"))}
RULE: Final = re.compile(r"^\*\*([A-Z])(\d+)\.\*\*", re.MULTILINE)
NAMED: Final = re.compile(r"(?<![\w`.-])([A-Z]\d{1,2})(?![\w.-]*\w)")
POINTER: Final = re.compile(r"\bdocs/(\w+\.\w+)(?:[,:]? (?:rule )?([A-Z]\d+)\b)?")
FENCED: Final = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def rules(text: str) -> list[str]:
    return [letter + number for letter, number in RULE.findall(text)]


RULES: Final = {page: rules(text) for page, text in PAGES.items()}
EVERY: Final = Counter(rule for rules in RULES.values() for rule in rules)


def sources() -> list[Path]:
    folders = ("daemon", "replay", "storage", "strategies", "tests")
    others = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")]
    return [*(path for name in folders for path in (ROOT / name).rglob("*.py")), *others]


def astray(text: str) -> list[str]:
    """Return the pointers to pages or rules of docs/ in *text* that lead nowhere."""
    lost = []
    for page, rule in POINTER.findall(text):
        if page.endswith(".ipynb") and not rule and (ROOT / "docs" / page).exists():
            continue
        if page not in PAGES or (rule and rule not in RULES[page]):
            lost.append(f"docs/{page} {rule}".strip())
    return lost


@pytest.mark.parametrize("page", [name for name, rule in RULES.items() if rule])
def test_the_rules_of_a_page_have_one_letter(page: str) -> None:
    assert len({rule[0] for rule in RULES[page]}) == 1


def test_no_two_pages_share_a_rule() -> None:
    assert [rule for rule, count in EVERY.items() if count > 1] == []


def test_a_rule_that_a_page_names_exists() -> None:
    strangers = {
        (page, rule)
        for page, text in PAGES.items()
        for rule in NAMED.findall(FENCED.sub("", text))
        if rule not in EVERY
    }
    assert strangers == set()


def test_what_points_to_a_rule_finds_it() -> None:
    planted = "see docs/" + "money.md, M999; (docs/" + "nowhere.md), docs/" + "money.md, M3"
    assert astray(planted) == ["docs/money.md M999", "docs/nowhere.md"]
    assert astray("docs/" + "nowhere.ipynb") == ["docs/nowhere.ipynb"]
    astray_in = {
        path.relative_to(ROOT).as_posix(): lost
        for path in sources()
        if path.name != Path(__file__).name
        if (lost := astray(path.read_text(encoding="utf-8")))
    }
    assert astray_in == {}


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_a_text_that_follows_from_the_code_is_what_the_code_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == GENERATED[path](), "run `make golden`"


def test_a_broken_link_or_reference_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    page = tmp_path / "sources" / "index.md"
    documentation.configured(tmp_path, [{"Start": "index.md"}])
    page.write_text("# One\n\n[here](index.md)\n", encoding="utf-8")
    assert documentation.complaints(tmp_path) == ""
    page.write_text("# One\n\n[nowhere](two.md)\n", encoding="utf-8")
    assert "page does not exist" in documentation.complaints(tmp_path)


def test_the_site_is_built_without_a_warning_and_holds_every_public_call(tmp_path: Path) -> None:
    documentation.staged(tmp_path)
    assert documentation.complaints(tmp_path) == ""
    site = tmp_path / "site"
    for name in set(tracepaper.__all__) - {"__version__", "attention"}:
        value = getattr(tracepaper, name)
        page = site / documentation.page_of(value.__module__).replace(".md", ".html")
        assert f'id="{value.__module__}.{name}"' in page.read_text(encoding="utf-8"), name
    for module in documentation.modules():
        page = site / documentation.page_of(module).replace(".md", ".html")
        assert "<p>" in page.read_text(encoding="utf-8"), module
    assert "M3." in (site / "docs" / "money.html").read_text(encoding="utf-8")
