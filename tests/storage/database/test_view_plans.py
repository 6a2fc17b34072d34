"""The newest rows of every view are found by seeks: nothing run-sized is scanned or sorted."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

import pytest
import storage_cases as cases

from tracepaper.storage.database.views import VIEWS

OF_RUN = "WHERE run_id = 'plain'"
NEWEST = "ORDER BY sequence DESC LIMIT 100"
SEQUENCED = [view.name for view in VIEWS if view.name != "v_runs"]

FEW = re.compile(
    r"SCAN (n VIRTUAL TABLE.*|answers( .*)?|shadow_steps|z( .*)?|CONSTANT ROW)$"
    r"|.* RIGHT PART OF ORDER BY$|SEARCH instruments USING PRIMARY KEY \(run_key=\?\)$"
)
"""The buckets of a decision, a look for any row at all, no row, the fills of a step, and the
instruments of a run."""
WHOLE_RUN = re.compile(
    r"SEARCH (\w+) USING (?:(?:COVERING )?INDEX \w+|PRIMARY KEY) "
    r"\(run_key=\?(?: AND sequence>\?)?\)"
)
"""A walk over all of a run, which only the rows in their order may take: LIMIT ends it."""
COSTLY = re.compile(r"SCAN|TEMP B-TREE|MATERIALIZE|CO-ROUTINE|AUTOMATIC")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """Return a database of two runs, that can be changed and rolled back."""
    path = tmp_path_factory.mktemp("plans") / "a.db"
    cases.write_run(path, cases.rich_steps(), of=cases.run("rich"))
    cases.write_run(path, cases.plain_steps(120), of=cases.run("plain"))
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=0)
    yield connection
    connection.close()


def costly(database: sqlite3.Connection, question: str) -> list[str]:
    """Return the steps of the plan of *question* whose cost grows with a run."""
    plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {question}")]
    assert plan
    (view,) = (view for view in VIEWS if f" {view.name} " in question)
    walked = re.findall(r"FROM runs r JOIN \w+ (\w)", view.sql)
    costs = []
    for line in plan:
        of = WHOLE_RUN.match(line)
        is_walk = of is not None and of[1] not in walked
        if (COSTLY.search(line) or is_walk) and not FEW.match(line):
            costs.append(line)
    return costs


@pytest.mark.parametrize("view", SEQUENCED)
def test_the_newest_rows_of_a_run_are_found_by_seeks(
    view: str, database: sqlite3.Connection
) -> None:
    assert costly(database, f"SELECT * FROM {view} {OF_RUN} {NEWEST}") == []


@pytest.mark.parametrize("view", SEQUENCED)
def test_a_step_of_a_run_is_found_by_seeks(view: str, database: sqlite3.Connection) -> None:
    question = f"SELECT * FROM {view} {OF_RUN} AND sequence = 7"
    assert [line for line in costly(database, question) if "CO-ROUTINE" not in line] == []
