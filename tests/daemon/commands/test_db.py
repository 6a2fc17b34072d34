"""``db``: backup and prune, as they are typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import storage_cases as cases
from command_line import Cli
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from recordings import crossing, record
from records import rows


@pytest.fixture
def path(here: Path) -> Path:
    cases.write_run(here / "a.db", cases.plain_steps(24 * 60 + 100))
    return here / "a.db"


def test_prune_says_from_where_the_chain_holds(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "long.db"
    hours = made_candles(walk_rows(200), interval_ms=3_600_000)
    run_id = record(path, crossing(interval="60"), [hours], group_steps=1)
    ((count,),) = rows(path, "SELECT step_count FROM runs")
    code, out, err = cli("db", "prune", "--keep", 1, "--db", path)
    assert (code, err) == (0, "")
    (steps,) = re.findall(rf"Run {run_id}: (\d+) steps dropped; the chain holds from step", out)
    until = int(steps) - 1
    assert 100 < until < 150
    code, out, _ = cli("audit", "verify", "--db", path)
    assert code == 0
    assert f"is pruned until step {until} and holds from there: {count - until:,} steps" in out
    code, out, _ = cli("db", "prune", "--keep", 1, "--db", path, "--json")
    assert json.loads(out)["runs"] == [{"run_id": run_id, "until_sequence": until, "steps": 0}]
    (first, last) = cli.out("db", "prune", "--keep", 1, "--db", path).splitlines()
    assert "0 steps dropped (every bar is of the 1 day kept, or looked back on" in first
    assert last == f"{path} now takes {path.stat().st_size:,} bytes."


def test_a_run_whose_strategy_cannot_be_loaded_is_not_pruned(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "long.db"
    cases.write_run(path, cases.plain_steps(2 * 24 * 60 + 300))
    code, out, err = cli("db", "prune", "--keep", 1, "--db", path)
    assert (code, out.count("\n")) == (0, 1)
    assert err.startswith("Warning: run r-1 is not pruned, since its strategy or model cannot be")
    assert rows(path, "SELECT min(sequence) FROM steps") == [(0,)]
