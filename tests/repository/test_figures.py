"""Every figure of deploy/FIGURES.md names its command, its date and its machine."""

from __future__ import annotations

import re
import shutil

import pytest
from figures import MEASURED_ON
from programs import ROOT

from tracepaper.replay.bench.machine import machine_line

TEXT = (ROOT / "deploy" / "FIGURES.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"\| \S[^|]* \| `(?:tracepaper|make) [^`|]+` \| [^|]*\d[^|]* \| \S[^|]* "
    r"\| \d{4}-\d\d-\d\d \| [^|]+, \d+ cores \|"
)


def faults(text: str) -> list[str]:
    """Return the rows of the table that lack a command, a figure, a target, a date or a machine."""
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [row for row in rows if not ROW.fullmatch(row)]


def test_every_figure_has_its_command_date_and_machine() -> None:
    assert faults(TEXT) == []
    for there, instead in (
        ("`make peers`", "by hand"),
        ("2026-11-20", "lately"),
        (", 2 cores", ""),
    ):
        assert there in TEXT
        assert faults(TEXT.replace(there, instead))


def test_a_measurement_names_commit_processor_and_load(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MEASURED_ON.fullmatch(machine_line())
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert MEASURED_ON.fullmatch(machine_line())
    assert machine_line().startswith("version 0.")
