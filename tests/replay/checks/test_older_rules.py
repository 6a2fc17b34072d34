"""Runs of an older version: what no rule has moved since is held, and the record is not blamed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
from forging import rechain
from recorded_runs import NAMES, unpacked, verified

from tracepaper.daemon.engine import versions
from tracepaper.daemon.engine.versions import ACCOUNT, CHANGES, RuleChange
from tracepaper.replay.checks import verify
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.chain.walk import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.writer import open_writer
from tracepaper.storage.record.columns import TABLES
from tracepaper.strategies.types.market import Category

LAST_FILL = "step = (SELECT max(step) FROM fills)"
PLANTED = (*CHANGES, RuleChange("E99", "Stops are filled elsewhere"))


def forge(path: Path, statement: str) -> None:
    """Change the record and compute its whole chain anew, as a forger would."""
    open_writer(path).close()  # adds the columns that an older version did not make
    with closing(sqlite3.connect(path)) as database:
        changed = database.execute(statement).rowcount
        database.commit()
    assert changed > 0
    rechain(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_from_before_the_rules_were_counted_is_verified(name: str, tmp_path: Path) -> None:
    with unpacked(name, tmp_path) as path:
        with Reader.open(path) as reader:
            run_id = reader.find("last")
            assert reader.run(run_id).rules == 0
            assert verify_chain(reader.connection, run_id).holds
            assert audit(reader.connection, run_id).holds
        found = verified(path)
    assert [one.sentence() for one in found.differences] == []
    # None is of shares, none discards or has auxiliary heads, and one looks at order books.
    of_all = tuple(
        one
        for one in CHANGES
        if one.category is None
        and not (one.discards or one.of_heads)
        and (name == "books" or not one.of_books)
    )
    assert (found.changes, found.exact or bool(found.elsewhere)) == (of_all, True)
    movable = {name for change in of_all for name in change.moves} | (
        versions.DECIDED_BY_ACCOUNT if CHANGES else set()
    )
    assert {one for one in found.moved_columns if one.partition(".")[0] not in movable} <= movable


def test_a_change_moves_no_column_that_does_not_exist() -> None:
    known = {*TABLES, *(f"{table}.{one.name}" for table in TABLES for one in TABLES[table])}
    named = set(versions.DECIDED_BY_ACCOUNT | versions.NOTED_BY_ACCOUNT | ACCOUNT)
    named |= {column for change in CHANGES for column in change.moves} - {"gate_sets"}
    assert named <= known
    assert len({change.sentence for change in CHANGES}) == len(CHANGES)


@pytest.mark.parametrize("said", [*product((True, False), repeat=3)])
def test_changes_of_discarding_books_and_heads_concern_only_runs_that_have_them(
    said: tuple[bool, bool, bool],
) -> None:
    named = dict(zip(("discards", "sees_books", "has_heads"), said, strict=True))
    found = versions.changes_since(0, set(Category), **named)
    lacking = {one.rule for one in CHANGES} - {one.rule for one in found}
    rules = ("A21", "D14", "L59")
    assert lacking == {rule for rule, has in zip(rules, said, strict=True) if not has}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "CHANGES", PLANTED)
    monkeypatch.setattr(verify, "CHANGES", PLANTED)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("statement", "column"),
    [
        (f"UPDATE fills SET price = price + 1 WHERE {LAST_FILL}", "fills.price"),
        (f"UPDATE ledger SET amount = amount + 1 WHERE {LAST_FILL}", "ledger.amount"),
        (f"DELETE FROM fills WHERE {LAST_FILL}", "fills"),
    ],
)
def test_what_a_change_can_have_moved_is_counted_and_named(
    statement: str, column: str, tmp_path: Path
) -> None:
    with unpacked("protected", tmp_path) as path:
        forge(path, statement)
        found = verified(path)
    assert (found.holds, found.changes[-1].rule) == (True, "E99")
    assert column in found.moved_columns
    assert found.moved_from is not None
    assert found.culprit is None


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE steps SET close = close + 1 WHERE open IS NOT NULL AND step % 97 = 0",
        "UPDATE steps SET window_sha256 = zeroblob(32) WHERE window_sha256 NOT NULL",
        "UPDATE outcomes SET reason = 'as the turn said' WHERE reason LIKE 'as the turn%'",
        "UPDATE outcomes SET action = 'SHORT' WHERE action = 'LONG'",
        "UPDATE gate_sets SET threshold = threshold + 1",
        "UPDATE runs SET sees_account = 1",
        "UPDATE runs SET rules = 1000",
        "UPDATE runs SET rules = -1",
    ],
)
def test_what_no_change_can_have_moved_is_held(statement: str, tmp_path: Path) -> None:
    with unpacked("protected", tmp_path) as path:
        forge(path, statement)
        assert not verified(path).holds


def test_with_the_rules_of_today_a_fill_is_held(tmp_path: Path) -> None:
    with unpacked("protected", tmp_path) as path:
        forge(path, f"UPDATE runs SET rules = {len(CHANGES) or 'NULL'}")
        forge(path, f"UPDATE fills SET price = price + 1 WHERE {LAST_FILL}")
        assert not verified(path).holds
