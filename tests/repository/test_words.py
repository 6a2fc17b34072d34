"""Words that gave way to the field's own do not come back: in options, help, errors and docs.

Help is in docs/commands.md, which is generated from it; errors are strings of the sources. Of the
pages, prose keeps further words away, which names, commands and their output may still hold.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import pytest
from programs import ROOT
from wheels import PARTS, known


class Word(NamedTuple):
    """A pattern that is gone, what is written in its place, why, and a sentence that had it."""

    pattern: str
    now: str
    reason: str
    planted: str


GONE: Final = (
    Word("--beside", "--compare", "models are compared", "give no span nor --beside."),
    Word("--instead", "--ablate", "a change of a recipe is an ablation", "--instead=mask=full"),
    Word("--spans", "--holdout", "untouched time is a holdout", "evaluate --spans A=…"),
    Word("--vectors", "--covariates", "as Darts and Chronos name them", "`--vectors` FILE"),
    Word(
        r"\[model\] vectors|(?<!\w)model\.vectors|MODEL__VECTORS",
        "[model] covariates",
        "the option and the key have one name",
        'set [model] vectors = "FILE"',
    ),
    Word(
        r"(file|files|rows|row|lines) of vectors|trained with(out| the) vectors|ectors of your own",
        "covariates",
        "a vector is any row of numbers; a covariate is what a forecast is conditioned on",
        "it was trained without vectors",
    ),
    Word("[Tt]ime frames?", "timeframe", "the field writes one word", "a higher time frame"),
    Word("sways whom", "influence", "it is a share of attention", "says who sways whom."),
    Word("Unfold what to know", "Show caveats", "it was a riddle", "Unfold what to know before"),
)
PROSE: Final = (
    Word(r"[Tt]wins?", "shadow account", "a fund has shadow accounts", "the ungated twin"),
    Word(
        r"random twins",
        "randomized benchmark",
        "it is a randomization test",
        "beats 34 % of its random twins",
    ),
    Word(
        r"[Hh]alves(?= of an? ensemble)|[Bb]oth halves|[Ee]ach half(?! hour)|(?<=ensemble's )half",
        "member",
        "an ensemble has members",
        "better than both halves",
    ),
    Word(r"row models?", "tabular model", "its input is a table", "a network and a row model"),
    Word(r"[Hh]igher frames?", "higher timeframe", "the field's word", "a bar of a higher frame"),
    Word(r"[Hh]eads? of risk", "risk heads", "two nouns, as in the field", "its heads of risk"),
    Word(
        r"(?:[Ss]ets?|[Ss]tands?) (?:\w+ )?beside",
        "compare with",
        "figures are compared",
        "the card sets it beside EWMA",
    ),
    Word(
        r"[Hh](?:eld|olds?) (?:\w+ ){0,2}to what (?:came|comes)",
        "compare with the outcome",
        "a forecast is compared with its outcome",
        "tails held to what came",
    ),
    Word(
        r"what (?:came|comes|became|becomes) of",
        "outcome",
        "it is a noun",
        "what became of each order",
    ),
    Word(
        r"what (?:was|is) (?:asked|decided|drawn|held|said|told|typed)(?! by)",
        "the noun",
        "a relative clause is no name",
        "closes what is held",
    ),
    Word(
        r"(?:is|are|was|were) (?:not )?heard",
        "received",
        "programs receive",
        "whose end was not heard",
    ),
    Word(r"taken as told", "trusted", "it is shorter", "a column is taken as told"),
    Word(r"of one's own", "your own", "readers are addressed", "a class of one's own"),
    Word(
        r"where (?:it|one|a network|a symbol|each head) looked",
        "its attention",
        "it is the field's noun",
        "the map says where it looked",
    ),
)
"""Words that pages use no more in their prose: names, code and its output may."""
PAGES: Final = ("docs", "deploy", "README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")
CODE: Final = re.compile(r"^```.*?^```|`[^`]*`", re.MULTILINE | re.DOTALL)
MADE: Final = ("docs/commands.md", "docs/surface.md", "docs/views.md")
"""Pages that follow from help and docstrings."""
TRANSLATORS: Final = {"daemon/cli.py", "replay/report/honesty.py"}
"""Modules that must know an older name: they refuse it, or show an older card by the new one."""


def gone_from(text: str, words: Iterable[Word] = GONE) -> Iterator[str]:
    """Yield what to write in place of each of *words* in *text* that is gone."""
    for word in words:
        if re.search(rf"(?<![\w-])(?:{word.pattern})(?![\w-])", text):
            yield f"{word.pattern} is gone, for {word.reason}: write {word.now}"


def prose() -> Iterator[tuple[str, str]]:
    """Yield the prose of each page: no code, and no row of a module, which is its docstring."""
    for name in sorted(known(*PAGES)):
        if name.endswith(".md") and name not in MADE:
            yield name, prose_of((ROOT / name).read_text(encoding="utf-8"))


def prose_of(text: str) -> str:
    """Return *text* without code, and without the tables of modules in ARCHITECTURE.md."""
    if text.startswith("# Architecture\n"):
        text = re.sub(r"^\| .*", "", text, flags=re.MULTILINE)
    return " ".join(CODE.sub("`", text).split())


def spoken() -> Iterator[tuple[str, str]]:
    """Yield each text that a user reads, and where it stands."""
    for name in sorted({*known(*PARTS, *PAGES)} - TRANSLATORS):
        path = ROOT / name
        if path.suffix == ".md" or name == "deploy/config.example.toml":
            yield name, path.read_text(encoding="utf-8")
        elif path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{name}:{node.lineno}", node.value


def test_no_word_that_is_gone_has_come_back() -> None:
    places = {place.partition(":")[0] for place, _ in spoken()}
    assert {"README.md", "docs/commands.md", "daemon/config/sections.py"} <= places
    assert {place: found for place, text in spoken() if (found := [*gone_from(text)])} == {}


@pytest.mark.parametrize("word", GONE, ids=lambda word: word.now)
def test_a_word_that_comes_back_is_found_with_the_one_to_write(word: Word) -> None:
    (found,) = gone_from(word.planted)
    assert found.endswith(f"write {word.now}")
    assert not [*gone_from(word.now)]


def test_no_page_has_a_word_that_its_prose_gave_up() -> None:
    pages = dict(prose())
    assert {"README.md", "docs/models.md", "deploy/FIGURES.md", "ARCHITECTURE.md"} <= pages.keys()
    assert {
        name: found for name, text in pages.items() if (found := [*gone_from(text, PROSE)])
    } == {}


@pytest.mark.parametrize("word", PROSE, ids=lambda word: word.now)
def test_a_word_that_comes_back_to_prose_is_found_but_not_in_code(word: Word) -> None:
    assert f"{word.pattern} is gone, for {word.reason}: write {word.now}" in {
        *gone_from(prose_of(f"And {word.planted}."), PROSE)
    }
    assert not [*gone_from(word.now, PROSE)]
    assert not [
        *gone_from(prose_of(f"See `{word.planted}`.\n\n```text\n{word.planted}\n```\n"), PROSE)
    ]
