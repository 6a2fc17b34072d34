"""A question about one run reads that run alone: no plan of a view spans the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
from fleet_cases import OF_RUNS
from postgres_server import Cluster
from storage_cases import plain_steps, rich_steps, run, write_run

from tracepaper.storage.database.view_columns import View
from tracepaper.storage.database.views import V_DECISIONS, V_EQUITY, V_POSITIONS
from tracepaper.storage.fleet.follow import ship_once
from tracepaper.storage.fleet.tables import columns_of
from tracepaper.storage.fleet.views import FLEET_VIEWS, select_step
from tracepaper.storage.record.rows import RUN_TABLES

COPIES: Final = (
    500,
    pytest.param(4_500, marks=pytest.mark.slow),  # a million steps
    pytest.param(45_000, marks=pytest.mark.long),  # ten million
)
LARGE: Final = 1_500
"""Rows from which on a table is large: of a smaller one PostgreSQL rightly reads all pages."""
_OF_THE_RUN: Final = re.compile(r"\brun_key = ")
NAMED: Final = ("run_id = '{1}'", "database_id = '{0}' AND run_id = '{1}'")


@pytest.fixture(scope="module", params=COPIES)
def fleet(
    request: pytest.FixtureRequest, postgres: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Yield the address of a server with many runs: two that were shipped, and copies of both."""
    url, path = postgres.fresh(), tmp_path_factory.mktemp("fleet") / "many.db"
    write_run(path, rich_steps(), of=run("rich"), end=True)
    write_run(path, plain_steps(200), of=run("plain"), end=True)
    ship_once(path, url)
    for table in OF_RUNS:
        columns = ", ".join(columns_of(table))
        copied = re.sub(r"\brun_key\b", "run_key + 2 * copy", columns)
        copied = re.sub(r"(?<!_)\brun_id\b", "run_id || '-' || copy", copied)
        postgres.sql(
            url,
            f"INSERT INTO {table} ({columns}) "
            f"SELECT {copied} FROM {table}, generate_series(1, {request.param}) AS copy",
        )
    postgres.sql(url, "ANALYZE")
    yield url
    name = url.rpartition("/")[2]
    postgres.sql(postgres.url("postgres"), f"DROP DATABASE {name} WITH (FORCE)")


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield table, kind of scan and condition of the index of each scan of a *plan*."""
    if "Relation Name" in plan and plan["Node Type"] != "Bitmap Heap Scan":
        yield plan["Relation Name"], plan["Node Type"], plan.get("Index Cond", "")
    for part in plan.get("Plans", ()):
        if plan["Node Type"] == "Bitmap Heap Scan" and part["Node Type"] == "Bitmap Index Scan":
            yield plan["Relation Name"], part["Node Type"], part.get("Index Cond", "")
        yield from scans(part)


def beyond(postgres: Cluster, url: str, question: str) -> list[tuple[str, str, str]]:
    """Return the scans by which the plan of *question* reads other runs in large tables."""
    ((plan,),) = postgres.sql(url, f"EXPLAIN (FORMAT JSON) {question}")
    counts = counts_of(postgres, url)
    return [
        (table, kind, condition)
        for table, kind, condition in scans(plan[0]["Plan"])
        if counts.get(table, 0) >= LARGE and not ("Index" in kind and _OF_THE_RUN.search(condition))
    ]


def counts_of(postgres: Cluster, url: str) -> dict[str, int]:
    listed = (f"SELECT '{table}', count(*) FROM {table}" for table in RUN_TABLES)
    return dict(postgres.sql(url, " UNION ALL ".join(listed)))


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("view", [view.name for view in FLEET_VIEWS])
def test_a_view_asked_for_one_run_reads_that_run_alone(
    view: str, named: str, postgres: Cluster, fleet: str
) -> None:
    (name,) = postgres.sql(fleet, "SELECT database_id FROM databases")[0]
    for run_id in ("rich-77", "plain-77"):
        question = f"SELECT * FROM {view} WHERE {named.format(name, run_id)}"
        assert beyond(postgres, fleet, question) == []
        assert postgres.sql(fleet, "SET jit = off", question)


@pytest.mark.parametrize("view", [V_DECISIONS, V_EQUITY, V_POSITIONS], ids=lambda view: view.name)
def test_the_row_of_one_step_is_read_alone(view: View, postgres: Cluster, fleet: str) -> None:
    """As ``tracepaper fleet`` reads it, of a run that may have millions."""
    ((name, run_key),) = postgres.sql(
        fleet, "SELECT database_id, run_key FROM runs WHERE run_id = 'plain-77'"
    )
    question = select_step(view) % (f"'{name}'", run_key, 150)
    ((plan,),) = postgres.sql(fleet, f"EXPLAIN (FORMAT JSON) {question}")
    keyed = [scan for scan in scans(plan[0]["Plan"]) if scan[0] == "steps"]
    assert keyed
    assert all(
        "sequence = 150" in condition or "sequence = s." in condition for *_, condition in keyed
    )


def test_the_server_has_the_indexes_of_a_file(postgres: Cluster, fleet_url: str) -> None:
    names = "SELECT indexname FROM pg_indexes WHERE schemaname = 'tracepaper' ORDER BY 1"
    whole = postgres.sql(fleet_url, names)
    indexes = {"orders_order", "fills_order"}
    assert indexes <= {name for (name,) in whole}
