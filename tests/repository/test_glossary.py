"""The glossary explains what the code still has, and one thing has one word."""

from __future__ import annotations

import re
from typing import Final

import pytest
from programs import ROOT

GLOSSARY: Final = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
TEXTS: Final = "\n".join(
    (ROOT / name).read_text(encoding="utf-8") for name in ("docs/glossary.md", "docs/views.md")
)
SYNONYMS: Final = {
    r"\w+_at": "a time ends in `_ms` or `_iso`",
    r"commissions?": "fee",
    r"drawn ?down": "drawdown",
    r"(missing|lost|unrepaired) bars?": "absent",
    r"(backfilled|recovered) bars?": "repaired",
    r"delayed": "late",
    r"holes?": "gap",
    r"missed closes?": "absent",
    r"buy-and-hold|buy & hold|hodl": "buy and hold",
    r"buy_and_hold": "held, or buy and hold",
    r"round trips": "trades",
    r"executions?": "fill",
    r"rejected decisions?|vetoed": "refused",
    r"burn-in|warmup period|start-up candles": "warm-up",
    r"p&l|pnl of": "profit",
    r"liquidation at": "liquidated at",
    r"unix|epoch": "UTC ms",
}
"""A pattern of names and meanings that must not occur, and the word in its place."""


def test_what_is_explained_is_still_declared() -> None:
    sources = [path for name in ("daemon", "replay") for path in (ROOT / name).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    keys = re.findall(r"^\| `(\w+)` \|", GLOSSARY, re.MULTILINE)
    assert keys
    assert [key for key in keys if not re.search(rf"\b{key}\b", code)] == []


@pytest.mark.parametrize("pattern", SYNONYMS)
def test_one_thing_has_one_word(pattern: str) -> None:
    used = re.findall(rf"(?<![\w.-])(?:{pattern})(?![\w-])", TEXTS, re.IGNORECASE)
    assert used == [], f"write instead: {SYNONYMS[pattern]}"
