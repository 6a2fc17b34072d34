"""Stored words on a terminal: read as they are, never obeyed."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import storage_cases as cases
import structlog
from command_line import Cli
from rich.table import Table
from rich.text import Text

from tracepaper.daemon.terminal import console as log
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.replay.document.terminal import show, show_document
from tracepaper.replay.explain.decision_document import read_decision, stored_parts
from tracepaper.replay.report.report import build_report
from tracepaper.replay.report.terminal import show_report, summary_document
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.units import visible

EVIL = "[red]up[/] \x1b[2J\x9b31m\u202e"
SEEN = "[red]up[/] \\x1b[2J\\x9b31m\\u202e"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a run in every reason of which somebody wrote what a terminal would obey."""
    path = tmp_path / "a.db"
    cases.write_run(path, cases.plain_steps(60))
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("UPDATE outcomes SET reason = ?", (EVIL,))
        raw.execute("UPDATE fills SET reason = ?", (EVIL,))
        raw.execute("UPDATE runs SET warnings = json_array(?)", (EVIL,))
        raw.commit()
    return path


def terminal() -> tuple[Terminal, io.StringIO]:
    written = io.StringIO()
    return Terminal(file=written, force_terminal=True, width=300, no_color=True), written


def harmless(text: str) -> bool:
    """Return whether *text* shows what was stored, and holds only the console's own sequences."""
    plain = text.replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[2m", "")
    plain = plain.replace("\x1b[1;2m", "").replace("\x1b[3m", "").replace("\x1b[2;3m", "")
    return SEEN in plain and not any(sign in plain for sign in "\x1b\x9b\u202e")


def test_control_characters_are_written_out_and_lines_stay() -> None:
    assert visible(EVIL) == SEEN
    assert visible("a\tb\nc é\u2009") == "a\tb\nc é\u2009"
    assert visible("\r\x00\x7f") == "\\x0d\\x00\\x7f"


def test_a_table_on_the_terminal_obeys_none_of_its_cells() -> None:
    console, written = terminal()
    table = Table("what")
    table.add_row(Text(EVIL), Text("so that the cells are wide enough"))
    console.print(table)
    console.print(Text(EVIL))
    assert harmless(written.getvalue())


def test_a_summary_an_explanation_and_a_report_show_a_reason_as_it_is(path: Path) -> None:
    console, written = terminal()
    show_document(console, summary_document(path, "r-1"), blank_lines=False)
    assert harmless(written.getvalue())
    console, written = terminal()
    with Reader.open(path) as reader:
        (sequence,) = reader.connection.execute("SELECT max(sequence) FROM v_decisions").fetchone()
    show(console, stored_parts(*read_decision(path, "r-1", sequence)))
    assert harmless(written.getvalue())
    console, written = terminal()
    show_report(console, build_report(path, "r-1"), notes=True)
    assert harmless(written.getvalue())


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "sql", "decisions"],
        ["audit", "sql", "fills"],
        ["audit", "sql", "SELECT reason FROM v_decisions"],
    ],
)
def test_lines_for_a_pipe_obey_nothing_either(path: Path, words: list[str], cli: Cli) -> None:
    assert harmless(cli.out(*words, "--db", path))


def test_a_note_in_a_log_line_is_shown_as_it_is() -> None:
    written = io.StringIO()
    log.configure(output="console", stream=written)
    structlog.get_logger("a").warning("command", note=EVIL)
    log.configure()
    assert "\x1b[2J" not in written.getvalue()
    assert "x1b[2J" in written.getvalue()
