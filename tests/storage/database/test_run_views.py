"""A run's views read by name: rows, columns in batches, counts; never another run's rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import storage_cases as cases

from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.database.run_views import BATCH_ROWS, RunViews
from tracepaper.storage.database.views import VIEWS
from tracepaper.strategies.errors import DataInvalid, InvariantBroken

STEPS = 2 * BATCH_ROWS + 7


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path: Path = tmp_path_factory.mktemp("run_views") / "a.db"
    cases.write_run(path, cases.rich_steps(), of=cases.run("rich"))
    cases.write_run(path, cases.plain_steps(STEPS), of=cases.run("plain"))
    opened = open_reader(path)
    yield opened
    opened.close()


@pytest.mark.parametrize("view", [view.name for view in VIEWS])
@pytest.mark.parametrize("run_id", ["rich", "plain"])
def test_rows_and_batches_are_those_of_the_run_in_its_order(
    connection: sqlite3.Connection, run_id: str, view: str
) -> None:
    views = RunViews(connection, run_id)
    cursor = connection.execute(f"SELECT * FROM {view} WHERE run_id = ?", (run_id,))
    expected = cursor.fetchall()
    rows = views.rows(view)
    assert sorted(map(repr, (tuple(row.values()) for row in rows))) == sorted(map(repr, expected))
    assert views.count(view) == len(expected)
    if "sequence" in (column[0] for column in cursor.description):
        sequences = [row["sequence"] for row in rows]
        assert sequences == sorted(sequences)
        batched = [row for batch in views.batches(view, ["sequence"]) for row in batch[0]]
        assert batched == sequences


def test_a_batch_holds_the_named_columns_between_two_sequences(
    connection: sqlite3.Connection,
) -> None:
    views = RunViews(connection, "plain")
    batches = list(views.batches("v_bars", ("close", "sequence"), first=3, last=STEPS - 3))
    assert len(batches) > 1
    assert all(len(batch) == 2 and len(batch[0]) <= BATCH_ROWS for batch in batches)
    expected = [
        (row["close"], row["sequence"])
        for row in views.rows("v_bars")
        if 3 <= row["sequence"] <= STEPS - 3
    ]
    assert [pair for batch in batches for pair in zip(*batch, strict=True)] == expected


def test_conditions_are_equal_or_any_of_several(connection: sqlite3.Connection) -> None:
    views = RunViews(connection, "rich")
    every = views.rows("v_decisions")
    for name in ("action", "refused_by"):
        values = sorted({row[name] for row in every if row[name] is not None})
        for wanted in (values[:1], values[:2]):
            equal: Any = {name: wanted}
            expected = [row for row in every if row[name] in wanted]
            assert views.rows("v_decisions", **equal) == expected
            assert views.count("v_decisions", **equal) == len(expected)
            sequences = [row["sequence"] for row in expected]
            assert views.last("v_decisions", **equal) == max(sequences, default=None)
    explained = [row["sequence"] for row in every if row["confidence_entropy"] is not None]
    assert views.last("v_decisions", not_null=("confidence_entropy",)) == max(explained)


def test_the_newest_rows_are_oldest_first(connection: sqlite3.Connection) -> None:
    views = RunViews(connection, "rich")
    assert views.rows("v_fills", newest=2) == views.rows("v_fills")[-2:]


def test_counts_and_bounds_leave_nulls_out(connection: sqlite3.Connection) -> None:
    views = RunViews(connection, "rich")
    refused = [row["refused_by"] for row in views.rows("v_decisions") if row["refused_by"]]
    expected = sorted({(name, refused.count(name)) for name in refused}, key=lambda of: -of[1])
    assert sorted(views.counts("v_decisions", "refused_by")) == sorted(expected)
    opened = [row["open_time_ms"] for row in views.rows("v_decisions")]
    assert views.bounds("v_decisions", "open_time_ms") == (min(opened), max(opened))


def test_the_nearest_decision_is_found(connection: sqlite3.Connection) -> None:
    views = RunViews(connection, "plain")
    sequences = [row["sequence"] for row in views.rows("v_decisions")]
    assert views.nearest("v_decisions", 10**9) == sequences[-1]
    assert RunViews(connection, "nowhere").nearest("v_decisions", 0) is None


def test_a_run_that_is_not_there_and_a_column_that_no_view_has_are_refused(
    connection: sqlite3.Connection,
) -> None:
    with pytest.raises(DataInvalid, match="no run nowhere"):
        RunViews(connection, "nowhere").run()
    with pytest.raises(InvariantBroken, match="nonsense"):
        RunViews(connection, "rich").rows("v_bars", nonsense=1)
