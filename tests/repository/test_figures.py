"""Every figure of deploy/FIGURES.md says on which commit, processor and load it was measured."""

from __future__ import annotations

import re
import shutil

import pytest
from figures import MEASURED_ON
from programs import ROOT

from tracepaper.replay.bench.machine import machine_line

TEXT = (ROOT / "deploy" / "FIGURES.md").read_text(encoding="utf-8")
LINE = re.compile(r"^- \*\*([A-Z]+)\*\*: (.+)$", re.MULTILINE)
LAST_INCOMPLETE = "AC"
"""The last of the lines that were written before load and processor were: as much as is known."""
INCOMPLETE = re.compile(
    r"commit [0-9a-f]{9} or shortly before, 2026-11-2[01], AMD EPYC, 2 cores, load not written down"
)


def faults(text: str) -> list[str]:
    """Return what does not say on what it was measured, and lines that say too little."""
    lines = dict(LINE.findall(text))
    letters = list(lines)
    late = letters[letters.index(LAST_INCOMPLETE) + 1 :]
    found = [name for name in late if not MEASURED_ON.fullmatch(lines[name])]
    found += [
        name for name in letters if name not in late and not INCOMPLETE.fullmatch(lines[name])
    ]
    before, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    rows = [row for row in before.splitlines() if row.startswith("| ")]
    marks = [(row[:60], row.strip("| ").rpartition("|")[2]) for row in rows]
    titles = [section.partition("\n")[0] for section in sections[:-1]]
    marks += [(title, title.partition(" (on ")[2].rstrip(")")) for title in titles]
    for of, letters_of in marks:
        named = [letter.strip() for letter in letters_of.split(",")]
        if named != ["on"] and not set(named) <= lines.keys():
            found.append(of)
    return found


def test_every_figure_names_a_line_that_says_commit_processor_and_load() -> None:
    assert faults(TEXT) == []


@pytest.mark.parametrize(
    ("there", "instead", "fault"),
    [
        ("| the same, frames of open candles | 1.43 M | | | H |", "| the same | 1 | | |", "| the"),
        ("## Risk heads (on S, V, AO)", "## Risk heads", "## Risk heads"),
        ("## Risk heads (on S, V, AO)", "## Risk heads (on QQ)", "## Risk heads (on QQ)"),
    ],
)
def test_a_figure_that_does_not_say_it_is_found(there: str, instead: str, fault: str) -> None:
    assert there in TEXT
    (found,) = faults(TEXT.replace(there, instead))
    assert found.startswith(fault)


def test_a_new_line_is_what_bench_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    said = machine_line()
    assert MEASURED_ON.fullmatch(said)
    assert faults(f"{TEXT}- **AAA**: {said}\n") == []
    assert faults(f"{TEXT}- **AAA**: {said.partition(', load')[0]}\n") == ["AAA"]
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert MEASURED_ON.fullmatch(machine_line())
    assert machine_line().startswith("version 0.")
