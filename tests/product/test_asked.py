"""``asked.toml`` lists what was asked for; each row names what shows it, and a test runs that.

Run as a program, it prints the table, measures what is quick and fails for a row that nothing runs
and for a number beyond its limit.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from operator import ge, le
from pathlib import Path
from typing import Any, Final

import figures
from asked_numbers import NUMBERS
from programs import ROOT
from readme import blocks, commands
from test_library import LINES

Rows = Mapping[str, str | list[str]]
ASKED: Final[Mapping[str, Rows]] = tomllib.loads(
    Path(__file__).with_name("asked.toml").read_text("utf-8")
)
NUMBERED: Final = "asked"
"""The table whose rows begin with their numbers in the list of what was asked for."""
COUNT: Final = 153
ELSEWHERE: Final = ("device", "campaign")
"""What a run of the tests lacks: such a row names the file that needs it."""
NOT_RUN: Final = re.compile(r"^pytestmark = .*pytest\.mark\.(gpu|clients|peers)", re.MULTILINE)
"""Marks of modules whose tests need a device or other programs, so that no campaign runs them."""
BOUNDS: Final[Mapping[str, Callable[[float, float], bool]]] = {"<=": le, ">=": ge}


@cache
def names_of_tests() -> frozenset[str]:
    """Return the names of the tests that are run on any machine."""
    modules = (path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return frozenset(
        name
        for text in modules
        if not NOT_RUN.search(text)
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", text, re.MULTILINE)
    )


@cache
def examples(page: str) -> tuple[str, ...]:
    """Return what a test runs of *page*: commands, programs and their files."""
    if page == "library.md":
        return tuple(text for line in LINES for text in (line.shown_by, line.names))
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    parsed = blocks(path.read_text("utf-8")) if path.is_file() else ()
    return tuple(
        text
        for block in parsed
        for text in (commands(block) if block.language == "sh" else [block.text])
        if block.language in {"sh", "python", "toml"}
    )


def number_of(part: str) -> tuple[str, Callable[[float, float], bool], float]:
    """Return the name, the comparison and the limit of ``name <= limit``."""
    name, sign, limit = part.split(" ")
    return name, BOUNDS[sign], float(limit)


def is_run(shown_by: str) -> bool:
    """Return whether a test, or a command of a landing day, runs what *shown_by* names."""
    place, mark, part = shown_by.partition(": ")
    match place:
        case "number":
            return number_of(part)[0] in NUMBERS
        case "figure":
            return any(each.name == part and each.limit is not None for each in figures.FIGURES)
    if mark:
        return any(part in text for text in examples(place))
    need, mark, file = shown_by.partition(" - ")
    return (need in ELSEWHERE and (ROOT / file).is_file()) if mark else shown_by in names_of_tests()


def pointers(asked: Mapping[str, Rows]) -> Iterator[tuple[str, str]]:
    """Yield each row's name with each thing that shows it."""
    for rows in asked.values():
        for name, shown_by in rows.items():
            for each in [shown_by] if isinstance(shown_by, str) else shown_by:
                yield name, each


def lacking(asked: Mapping[str, Rows]) -> list[str]:
    """Return the rows of *asked* that nothing runs."""
    return [f"{name}: {shown}" for name, shown in pointers(asked) if not is_run(shown)]


def numbers_of(names: Mapping[str, Any]) -> list[int]:
    """Return the numbers with which *names* begin: ``13, 64: …``."""
    return sorted(int(text) for name in names for text in name.partition(":")[0].split(","))


def too_far(asked: Mapping[str, Rows], say: Callable[[str], object] = str) -> list[str]:
    """Return the numbers of *asked* that are beyond their limits; *say* is told each."""
    found = []
    for name, shown in pointers(asked):
        place, _, part = shown.partition(": ")
        if place == "number":
            key, keeps, limit = number_of(part)
            value = NUMBERS[key]()
            say(f"{part:56}{value:g}")
            if not keeps(value, limit):
                found.append(f"{name}: {key} is {value:g}")
    return found


def test_what_was_asked_for_is_run() -> None:
    assert lacking(ASKED) == []
    assert numbers_of(ASKED[NUMBERED]) == list(range(1, COUNT + 1))


def test_a_row_that_nothing_runs_is_found() -> None:
    rows = (
        *("sweep.md: tracepaper swoop", "no_page.md: tracepaper", "test_of_nothing"),
        *("device - tests/nothing.py", "number: of_nothing <= 3", "figure: of nothing"),
    )
    assert len(lacking({"planted": {row: row for row in rows}})) == len(rows)
    half = ["library.md: --method rollout", rows[0]]
    assert lacking({"planted": {"one of two": half}}) == [f"one of two: {rows[0]}"]


def test_a_test_that_only_a_device_or_another_program_runs_shows_nothing() -> None:
    of_device, of_program = (
        re.findall(r"def (test_\w+)", (ROOT / "tests" / path).read_text("utf-8"))[0]
        for path in ("strategies/attention/test_cuda_matrix.py", "peers/test_peers.py")
    )
    assert not is_run(of_device)
    assert not is_run(of_program)


def test_a_number_beyond_its_limit_is_found() -> None:
    rows = {"1: mechanisms": ["number: mechanisms_compared >= 99", "test_of_nothing"]}
    assert too_far({NUMBERED: rows}) == ["1: mechanisms: mechanisms_compared is 7"]


def test_a_figure_beyond_its_limit_is_found_and_what_was_measured_last_has_none() -> None:
    measured = figures.documents()
    assert figures.beyond(measured) == []
    peaks = measured[figures.MEMORY]["document"][figures.PEAKS]
    next(row for row in peaks if "order book, explained MB" in row)["order book, explained MB"] = (
        101
    )
    [sentence] = figures.beyond(measured)
    assert sentence.endswith("tokens of order books: 101 MB is beyond its limit of 100 MB")


def main() -> int:
    """Print the table and what was measured; return 1 for a row or a number that fails."""
    for topic, rows in ASKED.items():
        for name, shown in pointers({topic: rows}):
            sys.stdout.write(f"{topic:13}{name:68}{shown}\n")
    sys.stdout.write("\n")
    too_much = too_far(ASKED, lambda line: sys.stdout.write(f"{line}\n"))
    too_much += figures.beyond(figures.documents())
    left = lacking(ASKED)
    count = sum(map(len, ASKED.values()))
    sys.stdout.write(
        f"{count} rows, of which nothing runs {len(left)}: {'; '.join(left)}\n"
        f"Beyond their limits {len(too_much)}: {'; '.join(too_much)}\n"
    )
    return int(bool(left or too_much))


if __name__ == "__main__":
    sys.exit(main())
