"""``fleet``, ``db ship``, ``db pull`` and a prune of a file that is shipped, as they are typed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import storage_cases as cases
from command_line import Cli
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from fleet_cases import assert_same, grown
from forging import rechain
from postgres_server import Cluster
from recordings import crossing, record
from records import tamper
from waiting import deadline_s, until

from tracepaper.storage.fleet.server import shown as shown_address


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    cases.write_run(tmp_path / "a.db", cases.plain_steps(200))
    return tmp_path / "a.db"


def test_what_is_refused_names_the_address_and_what_to_do(
    postgres: Cluster, fleet_url: str, cli: Cli, path: Path
) -> None:
    assert shown_address("postgresql:///fleet?service=x") == "postgresql:///fleet"
    assert shown_address("postgresql://me@h:1/fleet") == "h:1/fleet"
    postgres.sql(fleet_url, "DROP ROLE IF EXISTS nothing", "CREATE ROLE nothing LOGIN PASSWORD 'n'")
    user = fleet_url.replace("owner@", "nothing@")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", "n")
        upgrading = cli("db", "create", "--to", user)
        shipping = cli("db", "ship", "--once", "--to", user, "--db", path)
    postgres.sql(fleet_url, "DROP ROLE nothing")
    assert (upgrading[0], shipping[0]) == (1, 1)
    assert "or a role that may create a schema" in upgrading[2]
    assert "grant it what docs/fleet.md shows" in shipping[2]
    assert cli("db", "ship", "--once", "--to", fleet_url, "--db", path)[0] == 0
    code, _, err = cli(*("db", "pull", "--from", fleet_url, "--db", "b.db", "--database", "zz"))
    assert code == 1
    assert "no database zz; `tracepaper fleet URL --json` lists" in err


def hours_recorded(path: Path, **sections: Any) -> None:
    """Replay 200 hours into *path*."""
    hours = made_candles(walk_rows(200), interval_ms=3_600_000)
    record(path, crossing(interval="60", **sections), [hours], group_steps=1)


def test_a_file_that_is_shipped_is_pruned_after_all_has_arrived(
    tmp_path: Path, postgres: Cluster, fleet_url: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, back = tmp_path / "a.db", tmp_path / "back.db"
    hours_recorded(path, storage={"ship_to": fleet_url})
    tamper(path, "UPDATE runs SET kind = 'live'")
    rechain(path)
    prune = ("db", "prune", "--keep", 1, "--db", path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("TRACEPAPER_STORAGE__SHIP_TO", postgres.url("fleet", port=port))
    before = path.read_bytes()
    code, out, err = cli(*prune)
    assert (code, out) == (1, "")
    assert "Nothing was pruned, since not all is shipped" in err
    assert "--hole" in err
    assert path.read_bytes() == before
    monkeypatch.delenv("TRACEPAPER_STORAGE__SHIP_TO")  # as where the configuration is not named
    code, out, err = cli(*prune)
    assert (code, out) == (2, "")
    assert (
        f"a.db is shipped to {shown_address(fleet_url)} by the configuration of its last daemon"
        in err
    )
    assert path.read_bytes() == before
    monkeypatch.setenv("TRACEPAPER_STORAGE__SHIP_TO", fleet_url)
    assert cli(*prune)[0] == 0
    assert postgres.sql(fleet_url, "SELECT count(*) FROM holes") == [(0,)]
    cli("db", "pull", "--from", fleet_url, "--db", back)
    assert_same(path, back)


def test_a_prune_with_a_hole_is_named_by_the_fleet(
    tmp_path: Path, fleet_url: str, cli: Cli
) -> None:
    path = tmp_path / "a.db"
    hours_recorded(path)
    assert cli("db", "prune", "--keep", 1, "--hole", "--db", path)[0] == 0
    code, _, err = cli("db", "ship", "--to", fleet_url, "--db", path, "--once")
    assert code == 0
    assert "were pruned before they were shipped" in err
    code, out, _ = cli("fleet", fleet_url, "--json")
    assert code == 1
    assert json.loads(out)[0]["alarms"] == ["1 spans pruned before they were shipped"]


async def test_ship_follows_beside_a_writer_until_ctrl_c(
    path: Path, postgres: Cluster, fleet_url: str
) -> None:
    command = (sys.executable, "-m", "tracepaper.daemon.cli", "db", "ship", "--to", fleet_url)
    count = "SELECT count(*) FROM steps"
    process = subprocess.Popen(  # noqa: ASYNC220
        [*command, "--db", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        await until(lambda: postgres.sql(fleet_url, count) == [(200,)], poll_s=0.05)
        grown(path, 230, seed=1, since=200)
        await until(lambda: postgres.sql(fleet_url, count) == [(230,)], poll_s=0.05)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=deadline_s())
        assert (process.returncode, out) == (0, f"Shipped 230 steps of {path}.\n")
        assert err.startswith(f"Shipping {path} to ")
    finally:
        process.kill()
        process.communicate()
