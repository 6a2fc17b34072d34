"""The fleet's campaign in small, and its comparison: what it must find is planted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import campaign_fleet
import pytest
from campaign_fleet import RoundFailed
from postgres_server import Cluster
from storage_cases import plain_steps, rich_steps, run, write_run

from tracepaper.storage.fleet.follow import ship_once

STEP = "(SELECT min(sequence) + 5 FROM steps)"
FIRST, LAST = "(SELECT min(sequence) FROM steps)", "(SELECT max(sequence) FROM steps)"
SWAPPED = (
    f"UPDATE steps SET sequence = sequence + 1000000 WHERE sequence = {FIRST} + 5",
    f"UPDATE steps SET sequence = sequence - 1 WHERE sequence = {FIRST} + 6",
    f"UPDATE steps SET sequence = sequence - 999999 WHERE sequence = {LAST}",
)
ADDED = (
    "INSERT INTO commits SELECT database_id, run_key, 900, 999, digest, kept, contents "
    "FROM commits WHERE first_sequence = 64"
)
REPEATED = (
    f"CREATE TEMP TABLE one AS SELECT * FROM steps WHERE sequence = {LAST}",
    "UPDATE one SET sequence = sequence + 1",
    "INSERT INTO steps SELECT * FROM one",
)


@pytest.fixture
def shipped(tmp_path: Path, fleet_url: str) -> Path:
    """Return a file of two runs that is shipped."""
    path = tmp_path / "one.db"
    write_run(path, rich_steps(), end=True)
    write_run(path, plain_steps(120), of=run("r-2"), end=True)
    ship_once(path, fleet_url)
    return path


def test_what_is_whole_is_let_pass(shipped: Path, fleet_url: str, tmp_path: Path) -> None:
    assert campaign_fleet.compare(shipped, fleet_url, tmp_path) > 120


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        pytest.param((f"DELETE FROM steps WHERE sequence = {STEP}",), "steps has", id="missing"),
        pytest.param(REPEATED, "steps of the server has", id="repeated"),
        pytest.param(SWAPPED, "steps has", id="swapped"),
        pytest.param(
            ("DELETE FROM commits WHERE first_sequence = 64",), "1 of .* not on", id="no commit"
        ),
        pytest.param((ADDED,), "other commits from step 999 on", id="one commit more"),
        pytest.param(
            (f"UPDATE events SET market_ms = market_ms + 1 WHERE sequence = {STEP}",),
            "events has|is not pulled",
            id="changed cell",
        ),
        pytest.param(
            ("UPDATE runs SET strategy = 'other' WHERE run_id = 'r-2'",),
            "runs has",
            id="changed run",
        ),
    ],
)
def test_what_is_planted_on_the_server_is_found(
    statements: tuple[str, ...],
    message: str,
    shipped: Path,
    postgres: Cluster,
    fleet_url: str,
    tmp_path: Path,
) -> None:
    postgres.sql(fleet_url, *statements)
    with pytest.raises(RoundFailed, match=message):
        campaign_fleet.compare(shipped, fleet_url, tmp_path)


def test_a_file_that_was_never_shipped_is_missed_in_the_list(
    shipped: Path, fleet_url: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "two.db", plain_steps(3), end=True)
    with pytest.raises(RoundFailed, match="lists 1 of 2 databases"):
        campaign_fleet.compare_list([shipped, tmp_path / "two.db"], fleet_url)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM orders WHERE sequence = (SELECT max(sequence) FROM orders)", "orders has"),
        (
            "UPDATE orders SET ordinal = 9 WHERE sequence = (SELECT max(sequence) FROM orders)",
            "orders has",
        ),
        (
            "DELETE FROM holdings WHERE sequence = (SELECT max(sequence) FROM holdings)",
            "holdings has",
        ),
    ],
)
def test_two_files_whose_tables_differ_are_found(
    statement: str, message: str, shipped: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(shipped)) as source, closing(sqlite3.connect(other)) as target:
        source.backup(target)
        assert campaign_fleet.compare_tables(shipped, other) > 200
        target.execute("PRAGMA foreign_keys = OFF")
        target.execute(statement)
        target.commit()
    with pytest.raises(RoundFailed, match=message):
        campaign_fleet.compare_tables(shipped, other)
    with pytest.raises(RoundFailed, match="the server"):
        campaign_fleet.compare_tables(other, shipped)


@pytest.mark.long
def test_two_daemons_lose_and_repeat_nothing_when_all_is_killed(postgres: Cluster) -> None:
    fleet = campaign_fleet.play(
        1, daemons=2, symbols=5, bars=25, speed=240, kills=5, cluster=postgres
    )
    assert fleet.kills == {"daemon": 2, "shipper": 2, "server": 1}
    assert fleet.decisions >= 2 * 5, "the last bar at least, however late they came"
