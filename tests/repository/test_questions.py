"""Each question that people ask first is answered on a page by an example that runs.

``test_readme.py`` runs every block of commands and compares its output with the page.
"""

from __future__ import annotations

import re
from typing import Final

import pytest
from programs import ROOT
from readme import blocks

DOCS: Final = ROOT / "docs"
LINK: Final = re.compile(r"^- \[(.+)\]\((\w+\.md)(?:#([\w-]+))?\)$", re.MULTILINE)
QUESTIONS: Final = LINK.findall((DOCS / "questions.md").read_text("utf-8"))


def anchor(section: str) -> str:
    """Return what a link to *section* names."""
    return re.sub(r"[^\w -]", "", section.lower()).replace(" ", "-")


@pytest.mark.parametrize(("question", "page", "section"), QUESTIONS)
def test_a_question_is_answered_by_an_example_that_runs(
    question: str, page: str, section: str
) -> None:
    del question
    parsed = blocks((DOCS / page).read_text("utf-8"))
    answers = [block for block in parsed if not section or anchor(block.section) == section]
    assert any(block.language == "sh" for block in answers)
