"""docs/fleet.md as it stands there, against a real PostgreSQL."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from postgres_server import Cluster
from readme import DOCS, SAMPLE, blocks, commands
from storage_cases import prune

from tracepaper.daemon.cli import invoke
from tracepaper.storage.fleet.follow import ship_once
from tracepaper.storage.fleet.server import connect
from tracepaper.strategies.errors import ServerLost

psycopg = pytest.importorskip("psycopg")

PAGE = (DOCS / "fleet.md").read_text(encoding="utf-8")
PASSWORDS = {"tracepaper_writer": "choose one", "tracepaper_reader": "choose another"}


@pytest.fixture
def server(postgres: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Make an empty database, with the passwords of the page's roles in a file; return its name."""
    passfile = tmp_path / "pgpass"
    lines = [f"127.0.0.1:*:*:{role}:{words}\n" for role, words in PASSWORDS.items()]
    passfile.write_text("".join(lines))
    passfile.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples").symlink_to(SAMPLE.parent)
    return postgres.empty().rpartition("/")[2]


def test_the_page_does_what_it_says(
    postgres: Cluster, server: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    document = {}
    for role in PASSWORDS:
        postgres.sql(postgres.url("postgres"), f"DROP ROLE IF EXISTS {role}")
    for block in blocks(PAGE):
        if block.language == "sql":
            postgres.sql(postgres.url(server), *filter(str.strip, block.text.split(";")))
        for line in commands(block) if block.language == "bash" else ():
            words = line.replace("db.lan/fleet", f"127.0.0.1:{postgres.port}/{server}")
            code = invoke(shlex.split(words)[1:])
            out, err = capsys.readouterr()
            assert (code, err if "fleet postgres" in words else "") == (0, ""), f"{line}\n{err}"
            document[" ".join(line.split()[1:3])] = out
    assert document["db ship"].startswith("Shipped ")
    assert "The chain of run" in document["audit verify"]
    assert "decisions follow from the record" in document["verify last"]
    original = tmp_path / "one.db"
    for command in (["report", "last"], ["explain", "last"], ["audit", "sql", "fills"]):
        answers = []
        for path in (original, tmp_path / "back.db"):
            assert invoke([*command, "--db", str(path)]) == 0
            answers.append(capsys.readouterr().out.replace("back.db", "one.db"))
        assert answers[0] == answers[1]
    reader = postgres.url(server, user="tracepaper_reader")
    with pytest.raises(ServerLost, match="may not"):
        ship_once(original, reader)
    # The writer's rights suffice for a prune as well.
    assert prune(original, keep_days=2, pruned_at_ms=7)[0].steps > 1000
    assert ship_once(original, postgres.url(server, user="tracepaper_writer")).holes == ()
    writer = connect(postgres.url(server, user="tracepaper_writer"))
    for forbidden in ("DELETE FROM fills", "UPDATE steps SET close = 1", "DROP TABLE steps"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), writer.begin():
            writer.exec_driver_sql(forbidden)
    writer.close()
    for role in PASSWORDS:
        postgres.sql(postgres.url(server), f"DROP OWNED BY {role}", f"DROP ROLE {role}")
