"""The six views in PostgreSQL give a file's rows: names, types, exact texts and every REAL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from postgres_server import Cluster
from records import rows
from storage_cases import plain_steps, prune, rich_steps, run, write_run

from tracepaper.storage.database.view_columns import View
from tracepaper.storage.fleet.follow import ship_once
from tracepaper.storage.fleet.views import FLEET_VIEWS, translate

KEYS = ("run_id", "sequence", "ordinal", "order_id")


def of_file(path: Path, view: View) -> list[tuple[Any, ...]]:
    names = ", ".join(f'"{column.name}"' for column in view.columns)
    order = ", ".join(name for name in KEYS if name in {column.name for column in view.columns})
    return rows(path, f"SELECT {names} FROM {view.name} ORDER BY {order}")


def of_server(postgres: Cluster, url: str, view: View) -> list[tuple[Any, ...]]:
    names = ", ".join(f'"{column.name}"' for column in view.columns)
    order = ", ".join(name for name in KEYS if name in {column.name for column in view.columns})
    return postgres.sql(url, f"SELECT {names} FROM {view.name} ORDER BY {order}")


def assert_same_answers(postgres: Cluster, url: str, path: Path) -> dict[str, int]:
    """Compare every row of the six views; return how many rows each has."""
    counts = {}
    for view in FLEET_VIEWS:
        mine, theirs = of_file(path, view), of_server(postgres, url, view)
        assert len(mine) == len(theirs), view.name
        for row, other in zip(mine, theirs, strict=True):
            typed = [(type(value), value) for value in row]
            assert typed == [(type(value), value) for value in other], view.name
        counts[view.name] = len(mine)
    return counts


def test_every_row_of_every_view_is_the_same(
    tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path = tmp_path / "a.db"
    write_run(path, plain_steps(400), end=True)
    write_run(path, rich_steps(), of=run("r-2"))
    write_run(path, plain_steps(3000, seed=5), of=run("r-3"), end=True)
    prune(path, keep_days=1, pruned_at_ms=7)
    ship_once(path, fleet_url)
    counts = assert_same_answers(postgres, fleet_url, path)
    assert counts["v_runs"] == 3
    assert min(counts.values()) > 2


def test_two_databases_do_not_mix(tmp_path: Path, postgres: Cluster, fleet_url: str) -> None:
    for name, seed in (("a", 1), ("b", 9)):
        write_run(tmp_path / f"{name}.db", plain_steps(150, seed=seed), end=bool(seed == 1))
        ship_once(tmp_path / f"{name}.db", fleet_url)
    ids = postgres.sql(fleet_url, "SELECT DISTINCT database_id FROM v_equity")
    assert len(ids) == 2
    for view in FLEET_VIEWS:
        shipped = of_server(postgres, fleet_url, view)
        both = of_file(tmp_path / "a.db", view) + of_file(tmp_path / "b.db", view)
        assert sorted(shipped, key=repr) == sorted(both, key=repr), view.name


def test_every_table_that_a_view_joins_is_held_to_the_database_of_the_run() -> None:
    joined = "FROM runs r JOIN steps s ON s.run_key = r.run_key"
    assert "s.database_id = r.database_id AND s.run_key = r.run_key" in translate(joined)
