"""What somebody changed on the server is named in one sentence, and no file is half-written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from postgres_server import Cluster
from storage_cases import plain_steps, write_run

from tracepaper.daemon.cli import invoke
from tracepaper.storage.fleet.follow import ship_once
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
