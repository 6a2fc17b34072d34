"""The migrations give the very schema that a new database is made with."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import storage_cases as cases
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import StaticPool, create_engine

from tracepaper.storage import migrations
from tracepaper.storage.database.writer import open_writer
from tracepaper.storage.maintenance import migrate, upgrade
from tracepaper.storage.record.columns import ADDED_TABLES, SCHEMA_REVISION, UPGRADABLE
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid


def schema(path: Path) -> dict[str, str]:
    """Return the statement that made each table and view, its white space apart."""
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name"
    ).fetchall()
    connection.close()
    return {name: " ".join(sql.split()) for name, sql in rows}


def test_migrations_make_the_schema_of_a_new_database(tmp_path: Path) -> None:
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(tmp_path / "migrated.db", isolation_level=None),
        poolclass=StaticPool,
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        migrate(connection)
    engine.dispose()
    open_writer(tmp_path / "new.db").close()
    migrated, new = schema(tmp_path / "migrated.db"), schema(tmp_path / "new.db")
    assert set(migrated) == set(new)
    for name in new:
        if name != "alembic_version":
            assert migrated[name] == new[name]
    made = sqlite3.connect(tmp_path / "migrated.db")
    revisions = made.execute("SELECT version_num FROM alembic_version").fetchall()
    made.close()
    assert revisions == [(SCHEMA_REVISION,)]


def test_an_upgrade_of_the_newest_schema_makes_the_views_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    cases.write_run(path, cases.plain_steps(20))
    before = schema(path)
    connection = sqlite3.connect(path)
    connection.execute("DROP VIEW v_fills")
    connection.commit()
    connection.close()
    assert upgrade(path) == (SCHEMA_REVISION, SCHEMA_REVISION)
    assert schema(path) == before


def test_a_schema_without_a_way_up_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    cases.write_run(path, cases.plain_steps(20))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(DataInvalid, match="install the tracepaper that made it"):
        upgrade(path)
    assert path.read_bytes() == before


def test_a_database_in_use_is_not_upgraded(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "a.db")
    with pytest.raises(ConfigInvalid, match="in use"):
        upgrade(tmp_path / "a.db")
    writer.close()


def test_a_missing_database_is_not_made_by_an_upgrade(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="no database"):
        upgrade(tmp_path / "a.db")
    assert list(tmp_path.iterdir()) == []


def test_the_revisions_that_can_be_upgraded_are_those_with_a_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    assert known == {SCHEMA_REVISION, *UPGRADABLE}


FIRST = Path(__file__).parent.parent / "data" / "schema_0003.json"
"""The first schema: for each table its columns with their types, and every other statement."""


def columns_of(path: Path) -> dict[str, dict[str, list[object]]]:
    """Return type, whether it may be null, and place in the key, of every column of each table."""
    connection = sqlite3.connect(path)
    names = [name for (name,) in connection.execute(TABLE_NAMES)]
    found = {
        name: {row[1]: [row[2], not row[3], row[5]] for row in connection.execute(COLUMNS % name)}
        for name in names
    }
    connection.close()
    return found


TABLE_NAMES = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
COLUMNS = "PRAGMA table_info(%s)"


def test_only_a_column_that_may_be_null_comes_without_a_new_revision(tmp_path: Path) -> None:
    """A database of the first schema is opened by this version: what is added, and nothing else."""
    open_writer(tmp_path / "new.db").close()
    known = json.loads(FIRST.read_text(encoding="utf-8"))
    tables = columns_of(tmp_path / "new.db")
    assert set(tables) == set(known["tables"]) | ADDED_TABLES
    for name, columns in tables.items():
        if name in ADDED_TABLES:
            continue
        assert known["tables"][name].items() <= columns.items(), name
        for column in columns.keys() - known["tables"][name].keys():
            assert columns[column][1:] == [True, 0], f"{name}.{column} must be null in older rows"
    connection = sqlite3.connect(tmp_path / "new.db")
    indexes = connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY name"
    ).fetchall()
    connection.close()
    first = [(name, sql) for name, sql in indexes if name.split("_")[0] not in ADDED_TABLES]
    assert {name: " ".join(sql.split()) for name, sql in first} == known["indexes"]
    assert FIRST.stem.removeprefix("schema_") == SCHEMA_REVISION
