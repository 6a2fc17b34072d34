"""A verified replay shows its parity until it continues; a locked file stores none."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import explained_runs
import pytest
from builders import present
from command_line import Cli
from page_cases import shown_of
from records import rows, tamper

from tracepaper.daemon.cli import invoke
from tracepaper.replay.document.values import as_parts
from tracepaper.replay.page import derivations
from tracepaper.replay.page.runs import newest_parity


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explained_runs.replayed(tmp_path_factory.mktemp("parity"), strategy="sma_cross", bars=60)


@pytest.fixture
def database(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(source, tmp_path / "run.db"))


def checks(database: Path) -> list[tuple[str, str, int, int, int]]:
    return rows(database, "SELECT kind, result, compared, identical, is_current FROM v_checks")


@pytest.mark.parametrize("command", ["verify", "parity"])
def test_the_page_shows_what_was_compared_until_a_step_comes_after(
    database: Path, command: str, cli: Cli
) -> None:
    assert newest_parity(shown_of(database)) is None
    assert cli(command, "last", "--db", database).code == 0
    ((kind, result, compared, identical, is_current),) = checks(database)
    assert (kind, result, is_current) == (command, "identical", 1)
    assert compared == identical > 0
    parity = present(newest_parity(shown_of(database)))
    assert (parity.identical, parity.decisions, parity.error) == (compared, compared, "")
    assert cli("audit", "verify", "last", "--db", database).code == 0

    tamper(database, "UPDATE runs SET head_digest = zeroblob(32)")
    assert newest_parity(shown_of(database)) is None
    assert [row[-1] for row in checks(database)] == [0]


def test_a_difference_is_shown_with_its_place(database: Path, cli: Cli) -> None:
    tamper(database, "UPDATE steps SET target_quantity = target_quantity + 1 WHERE sequence = 40")
    assert cli("verify", "last", "--db", database).code == 1
    parity = present(newest_parity(shown_of(database)))
    assert parity.identical < parity.decisions
    assert parity.first_difference
    differs = derivations.verify_decision(shown_of(database), 40, lambda *_: None)
    (said,) = as_parts(differs.parts)
    assert (differs.title, said["style"]) == ("✗ Differs", "warning")
    assert said["text"].startswith("first at target_quantity (step 40): stored ")
    assert said["text"].endswith("; the culprit is the record.")


def test_a_part_of_the_run_is_no_parity_of_it(database: Path, cli: Cli) -> None:
    assert cli("verify", "last", "--sample", "5", "--db", database).code == 0
    assert checks(database) == []


def test_a_file_that_cannot_be_written_is_verified_and_one_line_says_that_no_row_is_stored(
    database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN IMMEDIATE")  # as another program that has the file locked
        assert invoke(["verify", "last", "--db", str(database), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["passes"] is True
    assert err.startswith("The result is not stored: ")
    assert err.count("\n") == 1
    assert checks(database) == []
