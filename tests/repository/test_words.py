"""Words that gave way to the field's own do not come back: in options, help, errors and docs.

Help is in docs/commands.md, which is generated from it; errors are strings of the sources.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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
TRANSLATORS: Final = {"daemon/cli.py", "replay/training/honesty.py"}
"""Modules that must know an older name: they refuse it, or show an older card by the new one."""


def gone_from(text: str) -> Iterator[str]:
    """Yield what to write in place of each word in *text* that is gone."""
    for word in GONE:
        if re.search(rf"(?:{word.pattern})(?![\w-])", text):
            yield f"{word.pattern} is gone, for {word.reason}: write {word.now}"


def spoken() -> Iterator[tuple[str, str]]:
    """Yield each text that a user reads, and where it stands."""
    pages = ("docs", "deploy", "README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")
    for name in sorted({*known(*PARTS, *pages)} - TRANSLATORS):
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
