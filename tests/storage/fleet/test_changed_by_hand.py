"""What somebody changed on the server is named in one sentence, and no file is half-written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from postgres_server import Cluster
from storage_cases import plain_steps, write_run

from tracepaper.daemon.cli import invoke
from tracepaper.storage.fleet.follow import ship_once
from tracepaper.storage.fleet.overview import overview
from tracepaper.storage.fleet.pull import pull
from tracepaper.strategies.errors import DataInvalid

AT_33 = "WHERE sequence = 33"
CLOSE = f"UPDATE steps SET close = close + 1 {AT_33}"


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (CLOSE, r"Steps 0 to 59 do not match the digest of their commit \(tables: steps\)"),
        ("UPDATE ledger SET amount = amount + 1", r"of their commit \(tables: ledger\)"),
        (f"DELETE FROM steps {AT_33}", r"steps \(59 rows, 60 written\)"),
        ("DELETE FROM outcomes", r"outcomes \(0 rows, \d+ written\)"),
        ("UPDATE commits SET digest = decode('00', 'hex')", "was changed"),
        ("UPDATE runs SET step_count = -5", "counts -5 steps and 60 are stored"),
        ("UPDATE runs SET run_key = 1099511627776", r"is no record \(FOREIGN KEY constraint"),
        ("UPDATE gate_sets SET threshold = 'NaN'", r"is no record \(a NaN in gate_sets\)"),
        # SQLite would store it as a null, which was there before.
        ("UPDATE steps SET measure_plausible = 'NaN'", r"is no record \(a NaN in steps\)"),
    ],
)
def test_a_change_on_the_server_is_found(
    statement: str, words: str, tmp_path: Path, postgres: Cluster, fleet_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "a.db"
    write_run(path, plain_steps(60))
    ship_once(path, fleet_url)
    postgres.sql(fleet_url, statement)
    before = sorted(tmp_path.iterdir())
    assert invoke(["audit", "verify", "--from", fleet_url]) == 1
    text = "".join(capsys.readouterr())
    assert re.search(words, text), text
    if "is no record" in words:
        with pytest.raises(DataInvalid, match=words):
            pull(fleet_url, tmp_path / "b.db")
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("table", "missing"), [("runs", "row"), ("marks", "mark")])
def test_a_run_whose_row_or_mark_is_gone_is_not_shipped_on(
    table: str, missing: str, tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path = tmp_path / "a.db"
    write_run(path, plain_steps(60))
    ship_once(path, fleet_url)
    postgres.sql(fleet_url, f"DELETE FROM {table}")
    with pytest.raises(DataInvalid, match=f"holds run 1 of .* its {missing} was removed.*--new-id"):
        ship_once(path, fleet_url)
    assert postgres.sql(fleet_url, "SELECT count(*) FROM steps") == [(60,)]


SEEN = (
    "INSERT INTO shippers SELECT database_id, 'here', 'a.db', clock_timestamp(), 0, 0, '{}' "
    "FROM databases"
)


DEEP = '{"x": ' + "[" * 2_000 + "]" * 2_000 + "}"


@pytest.mark.parametrize(
    "status", ["no JSON", "[1]", '{"not_ready": [1]}', '{"ready": "yes"}', DEEP]
)
def test_a_status_that_cannot_be_read_is_an_alarm(
    status: str, tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path = tmp_path / "a.db"
    write_run(path, plain_steps(20))
    ship_once(path, fleet_url)
    postgres.sql(fleet_url, SEEN.replace("{}", status))
    (fleet_run,) = overview(fleet_url)
    assert fleet_run.health == "not ready"
    assert "cannot be read" in fleet_run.alarms[0]


def test_a_time_that_nothing_can_hold_is_named(
    tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path = tmp_path / "a.db"
    write_run(path, plain_steps(20))
    ship_once(path, fleet_url)
    postgres.sql(fleet_url, "UPDATE steps SET open_time_ms = 9223372036854775807")
    with pytest.raises(DataInvalid, match="cannot read the fleet, for it cannot hold a value"):
        overview(fleet_url)
