"""What is shipped into a real PostgreSQL is what a pull gives back, table by table."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from fleet_cases import OF_RUNS, assert_same, contents, grown
from postgres_server import Cluster
from storage_cases import CROSS_GATES, plain_steps, prune, rich_steps, run, write_run

from tracepaper.storage import maintenance
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.integrity import audit_runs
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.fleet.follow import ship_once
from tracepaper.storage.fleet.pull import pull
from tracepaper.storage.fleet.ship import Shipper, ShipResult, database_id, new_id
from tracepaper.storage.fleet.tables import columns_of
from tracepaper.storage.record.columns import TABLES
from tracepaper.strategies.errors import DataInvalid, ServerLost


def audited(path: Path) -> list[str]:
    """Return the problems of every run of *path*."""
    with Reader.open(path) as reader:
        audits = audit_runs(reader.connection, reader.run_ids())
    return [audit.problem.sentence for audit in audits if audit.problem is not None]


def written(path: Path) -> Path:
    """Write three runs in which every event, answer and table occurs."""
    write_run(path, plain_steps(120), end=True)
    write_run(path, rich_steps(), of=run("r-2"))
    write_run(path, plain_steps(30, seed=2), of=run("r-3"))
    return path


def test_a_pulled_database_equals_the_original_table_by_table(
    tmp_path: Path, fleet_url: str
) -> None:
    path, back = written(tmp_path / "a.db"), tmp_path / "b.db"
    with Reader.open(path) as reader:
        count = sum(reader.stored_run(name).step_count for name in reader.run_ids())
    assert ship_once(path, fleet_url).steps == count
    assert ship_once(path, fleet_url) == ShipResult()
    pulled = pull(fleet_url, back)
    assert pulled.run_ids == ("r-1", "r-2", "r-3")
    empty = {"models", "prunes", "checks", "shortfalls"}
    assert all(contents(path)[table] for table in TABLES if table not in empty)
    assert_same(path, back)
    assert audited(back) == audited(path) == []


@pytest.mark.parametrize("group_steps", [1, 7, 1000])
def test_groups_of_any_size_make_the_same_record(
    tmp_path: Path, fleet_url: str, group_steps: int
) -> None:
    path, back = written(tmp_path / "a.db"), tmp_path / "b.db"
    shipper = Shipper(path, fleet_url, group_steps=group_steps)
    shipper.open()
    shipper.ship()
    shipper.close()
    pull(fleet_url, back)
    assert_same(path, back)


def test_steps_that_come_later_are_shipped_behind_the_mark(tmp_path: Path, fleet_url: str) -> None:
    path, back = tmp_path / "a.db", tmp_path / "b.db"
    steps = plain_steps(100)
    log = SqlAuditLog.open(path)
    log.begin(run(), (CROSS_GATES,))
    shipper = None
    for until in (10, 11, 60, 100):
        for step in steps[log._due : until]:  # noqa: SLF001 - the next step to take
            log.append_now(step)
        log.flush()
        if shipper is None:
            shipper = Shipper(path, fleet_url)
            shipper.open()
        before = shipper.behind()
        assert shipper.ship().steps == before > 0
        assert shipper.behind() == 0
    assert shipper is not None
    shipper.close()
    log.close()
    pull(fleet_url, back)
    assert_same(path, back)


# ---------------------------------------------------------------- one run alone


def test_a_run_alone_names_the_one_before_it_as_absent(tmp_path: Path, fleet_url: str) -> None:
    path, back = written(tmp_path / "a.db"), tmp_path / "b.db"
    ship_once(path, fleet_url)
    pulled = pull(fleet_url, back, run="r-2")
    assert (pulled.run_ids, pulled.absent) == (("r-2",), "r-1")
    with Reader.open(back) as reader:
        (audit,) = audit_runs(reader.connection, ["r-2"])
    assert audit.passes
    assert "this file lacks run r-1, opened before it" in audit.warnings[0]
    mine, whole = contents(back), contents(path)
    for table in ("steps", "fills", "events", "answers", "gate_sets"):
        assert mine[table] == [row for row in whole[table] if row[0][1] == 2], table


def test_a_file_whose_older_run_was_removed_is_still_found(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    write_run(path, plain_steps(60))
    write_run(path, plain_steps(30, seed=2), of=run("r-2"))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        for table in OF_RUNS:
            db.execute(f"DELETE FROM {table} WHERE run_key = 1")
    assert any("a run was removed" in sentence for sentence in audited(path))


# ---------------------------------------------------------------- the id of a file


def test_a_file_has_one_id_and_its_copy_has_the_same(tmp_path: Path) -> None:
    path, copy = written(tmp_path / "a.db"), tmp_path / "copy.db"
    name = database_id(path)
    assert len(name) == 32
    maintenance.backup(path, copy)
    assert database_id(copy) == name == database_id(path)
    assert new_id(copy) == database_id(copy) != name


# ---------------------------------------------------------------- another history


def test_a_copy_that_went_on_by_itself_is_refused_and_named(tmp_path: Path, fleet_url: str) -> None:
    path, copy = tmp_path / "a.db", tmp_path / "copy.db"
    write_run(path, plain_steps(40))
    maintenance.backup(path, copy)
    grown(path, 60, seed=1, since=40)
    ship_once(path, fleet_url)
    with pytest.raises(DataInvalid, match=r"run r-1 ends at step 39, and step 59 of it .* holds"):
        ship_once(copy, fleet_url)
    grown(copy, 60, seed=3, since=40)
    with pytest.raises(DataInvalid, match=r"step 59 of run r-1 has another digest .* --new-id"):
        ship_once(copy, fleet_url)
    new_id(copy)
    assert ship_once(copy, fleet_url).steps == 60
    for file in (path, copy):
        back = tmp_path / f"back-{file.name}"
        pull(fleet_url, back, database=database_id(file))
        assert_same(file, back)
    with pytest.raises(
        DataInvalid, match=r"holds 2 databases, such as .* name one with --database"
    ):
        pull(fleet_url, tmp_path / "c.db")


def test_another_run_under_the_same_key_is_refused(tmp_path: Path, fleet_url: str) -> None:
    path, other = tmp_path / "a.db", tmp_path / "b.db"
    write_run(path, plain_steps(20))
    ship_once(path, fleet_url)
    write_run(other, plain_steps(30), of=run("r-9"))
    with closing(sqlite3.connect(other, isolation_level=None)) as db:
        db.execute("UPDATE databases SET database_id = ?", (database_id(path),))
    with pytest.raises(DataInvalid, match="its run r-9 was opened otherwise"):
        ship_once(other, fleet_url)
    empty = tmp_path / "c.db"
    SqlAuditLog.open(empty).close()
    with closing(sqlite3.connect(empty, isolation_level=None)) as db:
        db.execute("UPDATE databases SET database_id = ?", (database_id(path),))
    with pytest.raises(DataInvalid, match="it lacks run r-1"):
        ship_once(empty, fleet_url)


def test_a_step_that_was_changed_in_the_file_is_not_shipped(
    tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path = tmp_path / "a.db"
    write_run(path, plain_steps(60), group_steps=10)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE steps SET close = close + 1 WHERE sequence = 33")
    shipper = Shipper(path, fleet_url, group_steps=20)
    shipper.open()
    with pytest.raises(DataInvalid, match=r"Run r-1 of .* is not shipped further: Steps 30 to 39"):
        shipper.ship()
    assert postgres.sql(fleet_url, "SELECT sequence FROM marks") == [(19,)]
    assert postgres.sql(fleet_url, "SELECT count(*), max(sequence) FROM steps") == [(20, 19)]
    assert postgres.sql(fleet_url, "SELECT step_count FROM runs") == [(20,)]


# ---------------------------------------------------------------- prunes


def test_a_prune_follows(tmp_path: Path, postgres: Cluster, fleet_url: str) -> None:
    path, back = tmp_path / "a.db", tmp_path / "b.db"
    write_run(path, plain_steps(5000))
    ship_once(path, fleet_url)
    assert prune(path, keep_days=1, pruned_at_ms=7)[0].steps > 1000
    assert ship_once(path, fleet_url).steps == 1
    pull(fleet_url, back)
    assert_same(path, back)
    assert audited(back) == []
    assert postgres.sql(fleet_url, "SELECT count(*) FROM holes") == [(0,)]
    assert prune(path, keep_days=1, pruned_at_ms=8)[0].steps == 0


def test_a_prune_before_its_steps_were_shipped_is_a_named_hole(
    tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path, back = tmp_path / "a.db", tmp_path / "b.db"
    write_run(path, plain_steps(100))
    ship_once(path, fleet_url)
    grown(path, 5000, seed=1, since=100)
    until = prune(path, keep_days=1, pruned_at_ms=7)[0].until_sequence
    shipped = ship_once(path, fleet_url)
    steps, holes = shipped.steps, shipped.holes
    assert steps == 5001 - until - 1
    (hole,) = holes
    assert hole.startswith(f"Steps 100 to {until} of run r-1 were pruned before they were shipped:")
    stored = postgres.sql(fleet_url, "SELECT from_sequence, until_sequence FROM holes")
    assert stored == [(100, until)]
    pull(fleet_url, back)
    assert_same(path, back)
    assert audited(back) == []


def test_the_server_holds_a_whole_record_after_every_transaction_of_a_prune(
    tmp_path: Path, fleet_url: str
) -> None:
    path = tmp_path / "a.db"
    write_run(path, plain_steps(2000))
    ship_once(path, fleet_url)
    grown(path, 4200, seed=1, since=2000)
    assert prune(path, keep_days=1, pruned_at_ms=7)[0].until_sequence < 3000
    problems: list[list[str]] = []

    def at(point: str) -> None:
        if point == "after commit":
            back = tmp_path / f"back-{len(problems)}.db"
            pull(fleet_url, back)
            problems.append(audited(back))

    shipper = Shipper(path, fleet_url, group_steps=700, at=at)
    shipper.open()
    shipper.ship()
    shipper.close()
    assert problems
    assert not any(problems)


def test_a_prune_is_taken_over_as_it_was_seen(tmp_path: Path, fleet_url: str) -> None:
    path, back = tmp_path / "a.db", tmp_path / "b.db"
    write_run(path, plain_steps(2500))
    ship_once(path, fleet_url)
    prune(path, keep_days=1, pruned_at_ms=7)
    pruned: list[maintenance.Pruning] = []

    def at(point: str) -> None:
        if point == "before drop" and not pruned:
            grown(path, 5000, seed=1, since=2501)
            pruned.extend(prune(path, keep_days=1, pruned_at_ms=8))

    shipper = Shipper(path, fleet_url, at=at)
    shipper.open()
    shipper.ship()
    shipper.close()
    assert pruned[0].until_sequence > 2501
    pull(fleet_url, tmp_path / "between.db")
    assert audited(tmp_path / "between.db") == []
    assert len(ship_once(path, fleet_url).holes) == 1
    pull(fleet_url, back)
    assert_same(path, back)
    assert audited(back) == []


# ---------------------------------------------------------------- the server


def test_the_columns_on_the_server_are_those_of_a_file(postgres: Cluster, fleet_url: str) -> None:
    types = {"INTEGER": "bigint", "REAL": "double precision", "TEXT": "text", "BLOB": "bytea"}
    rows = postgres.sql(
        fleet_url,
        "SELECT table_name, column_name, data_type, is_nullable, collation_name "
        "FROM information_schema.columns WHERE table_schema = 'tracepaper' "
        "ORDER BY table_name, ordinal_position",
    )
    for table, columns in TABLES.items():
        their = [row[1:] for row in rows if row[0] == table]
        assert [row[0] for row in their] == list(columns_of(table))
        for column, (_, kind, null, collation) in zip(columns, their[-len(columns) :], strict=True):
            assert kind == types[column.kind]
            assert null == ("YES" if column.null and not column.is_key else "NO")
            assert collation == ("C" if column.kind == "TEXT" else None)
        (leading,) = postgres.sql(
            fleet_url,
            "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid "
            f"AND a.attnum = i.indkey[0] WHERE i.indrelid = '{table}'::regclass AND i.indisprimary",
        )
        assert leading == ("database_id",)


def test_views_that_are_made_anew_keep_their_readers(postgres: Cluster, fleet_url: str) -> None:
    from tracepaper.storage.fleet.tables import make_schema

    postgres.sql(
        fleet_url,
        "DROP VIEW v_fills",
        'DROP ROLE IF EXISTS "A reader"',
        'CREATE ROLE "A reader"',
        'GRANT SELECT ON v_runs, fills TO "A reader"',
        "GRANT SELECT ON v_equity TO PUBLIC",
    )
    assert not make_schema(fleet_url)
    may = "SELECT has_table_privilege('A reader', 'v_runs', 'SELECT'), "
    may += "has_table_privilege('A reader', 'v_equity', 'SELECT'), "
    may += "has_table_privilege('A reader', 'v_orders', 'SELECT')"
    assert postgres.sql(fleet_url, may) == [(True, True, False)]
    postgres.sql(fleet_url, 'DROP OWNED BY "A reader"', 'DROP ROLE "A reader"')
    assert postgres.sql(fleet_url, "SELECT while_down FROM v_fills") == []


def test_two_shippers_of_one_file_are_one_too_many(
    tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path, other = tmp_path / "a.db", tmp_path / "b.db"
    write_run(path, plain_steps(20))
    write_run(other, plain_steps(20))
    first, second, third = (Shipper(file, fleet_url) for file in (path, path, other))
    first.open()
    with pytest.raises(ServerLost, match=r"Another process ships this file to .* already \(trace"):
        second.open()
    third.open()
    assert (first.ship().steps, third.ship().steps) == (20, 20)
    # The server ends a session that waits in a transaction, and with it the lock.
    waiting = "SELECT DISTINCT state FROM pg_stat_activity WHERE application_name LIKE 'tracep%'"
    assert postgres.sql(fleet_url, waiting) == [("idle",)]
    first.close()
    second.open()
    assert second.ship().steps == 0
    # One that believes it has the lock, and has lost it, is stopped by the mark.
    grown(path, 40, seed=1, since=20)
    with second.server.begin():
        second.server.exec_driver_sql("SELECT pg_advisory_unlock_all()")
    first.open()
    assert first.ship().steps == 20
    grown(path, 60, seed=1, since=40)
    with pytest.raises(ServerLost, match=r"Another process shipped to .* meanwhile"):
        second.ship()
    for shipper in (first, second, third):
        shipper.close()
    assert postgres.sql(fleet_url, "SELECT max(step_count) FROM runs") == [(40,)]


def test_text_that_postgresql_cannot_hold_is_named(tmp_path: Path, fleet_url: str) -> None:
    path = tmp_path / "a.db"
    write_run(path, plain_steps(20), of=run(warnings=(), strategy="nul\0"))
    with pytest.raises(DataInvalid, match=r"cannot hold a value \(PostgreSQL text fields cannot"):
        ship_once(path, fleet_url)


def test_what_a_pull_is_asked_for_must_be_there(tmp_path: Path, fleet_url: str) -> None:
    back = tmp_path / "b.db"
    with pytest.raises(DataInvalid, match="holds no run yet"):
        pull(fleet_url, back)
    ship_once(written(tmp_path / "a.db"), fleet_url)
    with pytest.raises(DataInvalid, match="holds no run r-7"):
        pull(fleet_url, back, run="r-7")
    with pytest.raises(DataInvalid, match="could be r-1 or r-2"):
        pull(fleet_url, back, run="r-")
    with pytest.raises(DataInvalid, match="exists already"):
        pull(fleet_url, tmp_path / "a.db")
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("b.db")] == []
