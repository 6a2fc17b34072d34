"""The ledger adds up to the cash at every step; ``audit verify`` says where it does not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import storage_cases as cases
from forging import rechain
from records import tamper

from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a run of sixty bars with five fills."""
    cases.write_run(tmp_path / "a.db", cases.plain_steps(60))
    return tmp_path / "a.db"


def edited(path: Path, *statements: str) -> None:
    """Edit *path* and recompute every hash of it."""
    with closing(sqlite3.connect(path)) as raw:
        for statement in statements:
            assert raw.execute(statement).rowcount > 0
        raw.commit()
    rechain(path)


def problem(path: Path) -> str:
    with Reader.open(path) as reader:
        trouble = audit(reader.connection, reader.find("last")).problem
    return "" if trouble is None else trouble.sentence


def test_the_view_names_each_movement_and_the_cash_after_it(path: Path) -> None:
    with Reader.open(path) as reader:
        views = RunViews(reader.connection, "r-1")
        rows, equity = views.rows("v_ledger"), views.rows("v_equity")
    assert [row["kind"] for row in rows[:4]] == ["opened", "fee", "realized", "fee"]
    assert rows[0]["instrument"] is None
    assert rows[0]["balance"] == 1_000_000
    assert {row["instrument"] for row in rows[1:]} == {cases.BTC.id}
    assert rows[-1]["balance_text"] == equity[-1]["cash_text"]
    assert sum(row["amount"] for row in rows) == pytest.approx(rows[-1]["balance"])
    fills = {row["order_id"] for row in rows if row["order_id"] is not None}
    assert len(fills) == 5


def test_a_step_without_a_movement_has_no_row(path: Path) -> None:
    with Reader.open(path) as reader:
        (count,) = reader.connection.execute("SELECT count(*) FROM ledger").fetchone()
    assert count == 1 + 5 + 2  # opened, a fee a fill, two round trips that realized something


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE ledger SET amount = amount + 1 WHERE sequence = 11",
            "at step 11, and the balance of its entry",
        ),
        (
            "UPDATE ledger SET amount = amount + 1, balance = balance + 1 WHERE sequence = 11",
            "at step 11, and the account's cash",
        ),
        ("UPDATE holdings SET cash = cash - 1 WHERE sequence = 31", "at step 31, and the"),
    ],
)
def test_a_changed_amount_is_found_and_its_step_named(
    path: Path, statement: str, message: str
) -> None:
    assert problem(path) == ""
    edited(path, statement)
    assert "The ledger adds up to" in problem(path)
    assert message in problem(path)


def test_a_ledger_that_was_dropped_is_missed(path: Path) -> None:
    tamper(path, "DROP TABLE ledger")
    assert problem(path) == "The table ledger is missing: restore a backup."
