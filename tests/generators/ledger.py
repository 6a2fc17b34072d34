"""Prints the lines of each room beside its budget: `make ledger`."""

from __future__ import annotations

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


def main() -> None:
    """Print lines, budget and room, then the words of Markdown."""
    for room, count in sorted(lines_by_room(ROOT).items()):
        budget = f"{BUDGETS[room]:,}" if room in BUDGETS else ""
        sys.stdout.write(f"{count:>9,} {budget:>9}  {room}\n")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").glob("*.md")]
    words = sum(len(page.read_text(encoding="utf-8").split()) for page in pages)
    sys.stdout.write(f"{words:>9,} {WORDS:>9,}  words of Markdown\n")


if __name__ == "__main__":
    main()
