"""``asked.toml`` lists what was asked for; each row names what shows it, and a test runs that.

Run as a program, it prints the table and fails for a row that nothing runs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from programs import ROOT
from readme import blocks, commands
from test_library import LINES

ASKED: Final[Mapping[str, Mapping[str, str]]] = tomllib.loads(
    Path(__file__).with_name("asked.toml").read_text("utf-8")
)
ELSEWHERE: Final = ("device", "campaign")
"""What a run of the tests lacks: such a row names the file that needs it."""


@cache
def names_of_tests() -> frozenset[str]:
    """Return the names of the tests."""
    found = (
        re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
        for path in (ROOT / "tests").rglob("test_*.py")
    )
    return frozenset(name for names in found for name in names)


@cache
def examples(page: str) -> tuple[str, ...]:
    """Return what a test runs of *page*: commands, programs and their files."""
    if page == "library.md":
        return tuple(text for line in LINES for text in (line.shown_by, line.names))
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    parsed = blocks(path.read_text("utf-8"))
    return tuple(
        text
        for block in parsed
        for text in (commands(block) if block.language == "sh" else [block.text])
        if block.language in {"sh", "python", "toml"}
    )


def is_run(shown_by: str) -> bool:
    """Return whether a test runs what *shown_by* names."""
    place, mark, part = shown_by.partition(": ")
    if mark:
        return any(part in text for text in examples(place))
    need, mark, file = shown_by.partition(" - ")
    return (need in ELSEWHERE and (ROOT / file).is_file()) if mark else shown_by in names_of_tests()


def lacking(asked: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the rows of *asked* that nothing runs."""
    return [
        f"{name}: {shown_by}"
        for rows in asked.values()
        for name, shown_by in rows.items()
        if not is_run(shown_by)
    ]


def test_what_was_asked_for_is_run() -> None:
    assert lacking(ASKED) == []


def test_a_row_that_nothing_runs_is_found() -> None:
    rows = ("sweep.md: tracepaper swoop", "test_of_nothing", "device - tests/nothing.py")
    assert len(lacking({"planted": {row: row for row in rows}})) == len(rows)


def main() -> int:
    """Print the table; return 1 if nothing runs a row."""
    for topic, rows in ASKED.items():
        sys.stdout.writelines(f"{topic:13}{name:52}{shown}\n" for name, shown in rows.items())
    left = lacking(ASKED)
    count = sum(map(len, ASKED.values()))
    sys.stdout.write(f"{count} rows, of which nothing runs {len(left)}: {'; '.join(left)}\n")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
