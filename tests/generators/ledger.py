"""Prints the lines of each room beside its budget: `make ledger`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from programs import ROOT

BUDGETS: Final = {
    "daemon": 26_800,
    "daemon/broker": 5_150,
    "daemon/engine": 3_050,
    "daemon/session": 5_900,
    "replay": 41_900,
    "replay/learning": 9_820,
    "storage": 9_500,
    "strategies": 24_400,
    "strategies/attention": 5_360,
    "strategies/forecasters": 3_180,
    "strategies/networks": 4_790,
    "tests": 95_000,
}
"""Lines of Python that a room may take; a room without one has its share of the room above."""
WORDS: Final = 64_000
"""Words of Markdown that a person wrote."""
GENERATED: Final = {
    "alarms.md": "| alarm |",
    "commands.md": "# ",
    "configuration.md": "| together |",
    "decisions.md": "| gate |",
    "http.md": "\n## Addresses\n",
    "FIGURES.md": "| figure |",
    "strategies.md": "| indicator |",
    "surface.md": "# ",
    "views.md": "# ",
}
"""Where what ``generated.py`` writes begins in a page: a table, or the rest of the page."""
WORD: Final = re.compile(r"\S*\w\S*")
"""A word has a letter or a digit: the bars of a table are none."""
ANSWER: Final = re.compile(r"^```text\n.*?^```\n", re.MULTILINE | re.DOTALL)
"""What a command printed, which ``readme.py`` writes."""


def lines_by_room(root: Path) -> Counter[str]:
    """Return the lines of Python of each top-level folder and of each folder in it."""
    rooms: Counter[str] = Counter()
    for top in ("daemon", "replay", "storage", "strategies", "tests"):
        for path in (root / top).rglob("*.py"):
            count = path.read_text(encoding="utf-8").count("\n")
            parts = path.relative_to(root).parts
            rooms[top] += count
            if len(parts) > 2 and top != "tests":
                rooms["/".join(parts[:2])] += count
    return rooms


def written_by_hand(page: Path) -> str:
    """Return the text of *page* without what generators write."""
    if page.parent.name == "decisions_log" and page.name == "index.md":
        return ""
    text = ANSWER.sub("", page.read_text(encoding="utf-8"))
    mark = GENERATED.get(page.name)
    if mark is None:
        return text
    before, _, rest = text.partition(mark)
    end = "\n\n## Measured" if page.name == "FIGURES.md" else "\n\n"  # its open work follows too
    return before + (rest.partition(end)[2] if mark.startswith("|") else "")


def main() -> None:
    """Print lines, budget and room, then the words of Markdown that a person wrote."""
    for room, count in sorted(lines_by_room(ROOT).items()):
        budget = f"{BUDGETS[room]:,}" if room in BUDGETS else ""
        sys.stdout.write(f"{count:>9,} {budget:>9}  {room}\n")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").glob("*.md")]
    words = sum(len(WORD.findall(written_by_hand(page))) for page in pages)
    sys.stdout.write(f"{words:>9,} {WORDS:>9,}  words of Markdown by hand\n")


if __name__ == "__main__":
    main()
