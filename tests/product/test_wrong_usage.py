"""Clumsy and hostile command lines: one sentence that says what to do, and nothing left behind."""

from __future__ import annotations

import re
import shlex
import shutil
import sqlite3
from pathlib import Path

import pytest
from command_line import Cli
from exchange_client import candles, walk_rows

from tracepaper.daemon.cli import invoke

SMA = """
[market]
symbols = ["BTCUSDT"]
interval = "1"
[strategy]
name = "sma_cross"
fast = 3
slow = 7
[execution]
model = "next_open"
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with candles, a configuration, one finished run and files that are none."""
    folder = tmp_path_factory.mktemp("clumsy")
    rows = candles(walk_rows(60))
    lines = ["open_time,open,high,low,close,volume"]
    for at in range(len(rows)):
        bar = (rows.open, rows.high, rows.low, rows.close)
        cells = (str(int(part[at])) for part in bar)
        lines.append(f"{int(rows.open_time_ms[at])},{','.join(cells)},1")
    (folder / "BTCUSDT.csv").write_text("\n".join(lines) + "\n")
    (folder / "sma.toml").write_text(SMA)
    (folder / "far.toml").write_text(SMA.replace("slow = 7", "slow = 500"))
    (folder / "text.db").write_text("these are words and no database at all\n")
    (folder / "empty.db").touch()
    (folder / "folder.db").mkdir()
    stranger = sqlite3.connect(folder / "foreign.db")
    stranger.execute("CREATE TABLE runs (run_id VARCHAR(32))")
    stranger.commit()
    stranger.close()
    command = ["replay", "-c", "sma.toml", "--data", "BTCUSDT.csv", "--db", "run.db", "--json"]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert invoke(command) == 0
    return folder


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a copy of the prepared folder."""
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


def error(cli: Cli, line: str) -> tuple[int, list[str]]:
    """Return the exit code of *line* and what it said on stderr."""
    answer = cli(*shlex.split(line))
    return answer.code, answer.err.strip().splitlines()


CASES = [
    ("frob", 2, "No such command"),
    ("replay", 2, "--data"),
    ("explain last", 1, "--db"),
    ("db backup copy.db --db nothing.db", 1, "nothing.db"),
    ("verify last --db empty.db", 1, "not a tracepaper database; name another"),
    ("verify last --db foreign.db", 1, "not a tracepaper database; name another"),
    ("explain last:first --db run.db", 2, "write RUN:WHERE"),
    ("explain last:² --db run.db", 2, "write RUN:WHERE"),
    ("explain last:99999999999999999999999 --db run.db", 2, "write RUN:WHERE"),
    ("whatif last:first --db run.db --drop-gate edge", 2, "write RUN:WHERE"),
    ("parity last:first --db run.db", 2, "write RUN:WHERE"),
    ("explain last:5 --time 14:05 --db run.db", 2, "leave --time or that out"),
    ("explain last:0 --db run.db", 1, "has no decision 0"),
    ("audit sql decisions --db run.db --rows 0", 2, "--rows"),
    ('audit sql decisions --run "last\' or 1=1 --" --db run.db', 1, "There is no run"),
    ("audit sql 'SELECT 1; DELETE FROM steps' --db run.db", 2, "one statement"),
    ("audit sql \"ATTACH 'evil.db' AS evil\" --db run.db", 2, "only one SELECT"),
    ("audit sql \"VACUUM INTO 'evil.db'\" --db run.db", 2, "cannot be asked"),
    ("status --db run.db", 1, "No daemon runs on run.db; start it"),
    ("command STOP --db run.db", 2, "write HALT, RESUME, FLATTEN"),
    ("config check -c nothing.toml", 2, "config init nothing.toml"),
    ("config check -c text.db", 2, "is not TOML"),
    ("config init none/here.toml", 2, "cannot be written .*; name another place"),
    ("replay --data nothing.csv --db new.db", 1, "does not exist: check the path"),
    ("replay --data run.db#last --config sma.toml", 2, "leave --config out"),
    ("replay --data BTCUSDT.csv --resume last --db run.db --set a.b=1", 2, "leave --set out"),
    ("evaluate --data BTCUSDT.csv --set strategy.fast=2", 2, "leave it out, or name a class"),
    ("replay --data run.db#last --from 2025-01-01", 2, "leave --from out"),
    ("replay --data BTCUSDT.csv --category futures", 2, "'linear', 'spot' or 'stock'"),
    ("replay --data BTCUSDT.csv --from 2030-01-01", 1, "choose a period inside it"),
    ("replay --data BTCUSDT.csv --resume last", 2, "name the database that holds it"),
    ("replay --data BTCUSDT.csv --resume last --db new.db", 2, "leave --resume out to begin it"),
    ("replay sma.toml", 2, "is a configuration; give it by --config"),
    ("run sma.toml", 2, "give a configuration by --config; see"),
    ("replay --data BTCUSDT.csv --resume last --db run.db", 2, "is finished; start a new replay"),
    (
        "replay -c sma.toml --data BTCUSDT.csv --db folder.db",
        2,
        "name a file with storage.url or --db",
    ),
    (
        "lookahead -c far.toml --data BTCUSDT.csv",
        2,
        "warm after 500 bars, and only 60 .* give more",
    ),
    ("exchange --data BTCUSDT.csv --speed nan", 2, "give a number above 0"),
    ("exchange --data BTCUSDT.csv --start -1", 2, "give 0 to 59"),
    ("report --samples 3 --db run.db", 2, "add --importance EVERY, or leave --samples out"),
    ("report --full --db run.db", 2, "add --html FILE"),
    ("report --picture trades --db run.db", 2, "add --chart FILE"),
    ("report --last 1000 --db run.db", 2, "add --chart FILE"),
    ("report --impact-bp 5 --stress --db run.db", 2, "add --capacity"),
    ("report --jobs 2 --db run.db", 2, "add --stress or --capacity"),
    ("explain last --depth b.depth --checkpoint b", 2, "RUN has no effect here; explain a"),
    ("explain --depth b.depth --checkpoint b --discard 0", 2, "--discard has no effect here"),
    ("data record A --from a.jsonl --url http://b --out c", 2, "--url has no effect here; leave"),
    ("data record A --from a.jsonl --for 3s --out c", 2, "--for has no effect here; leave"),
    ("run --bars 0", 2, "--bars"),
    ("demo --model nowhere", 2, "nowhere"),
]


@pytest.mark.parametrize(("line", "code", "words"), CASES, ids=[line for line, _, _ in CASES])
def test_it_is_refused_in_one_sentence_and_leaves_nothing(
    place: Path, cli: Cli, line: str, code: int, words: str
) -> None:
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    ended, (sentence,) = error(cli, line)
    assert ended == code, sentence
    assert re.search(words, sentence), sentence
    assert sentence.endswith(".")
    after = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    passing = {name for name in after if name.endswith(("-shm", "-wal", ".lock"))}
    assert {name: after[name] for name in after.keys() - passing} == {
        name: before[name] for name in before.keys() - passing
    }


@pytest.mark.parametrize("table", ["steps", "runs"])
def test_a_damaged_page_is_said_by_every_question(place: Path, cli: Cli, table: str) -> None:
    with sqlite3.connect(place / "run.db") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        [(page,)] = db.execute(query, (table,))
        [(size,)] = db.execute("PRAGMA page_size")
    content = bytearray((place / "run.db").read_bytes())
    content[(page - 1) * size : page * size] = b"\xa5" * size
    (place / "hurt.db").write_bytes(content)
    for question in (
        "audit verify last",
        "verify last",
        "audit sql decisions",
        "explain last:30",
        "parity last run.db#last",
        "db backup copy.db",
        "replay --data hurt.db#last --json",
    ):
        database = "new" if "--data" in question else "hurt"
        answer = cli(*shlex.split(question), "--db", f"{database}.db")
        lines = (answer.err or answer.out).splitlines()  # a verdict of damage is an answer
        assert (answer.code, len(lines)) == (1, 1), (question, lines)


FAILS_AT_ONCE = """
from tracepaper.strategies.api.strategy import Strategy

class Fails(Strategy):
    warmup = 3
    def __init__(self, options):
        pass
    def observe(self, bar):
        raise RuntimeError("no")
    def decide(self, now):
        raise AssertionError
"""


@pytest.mark.parametrize("database", ["run.db", "new.db"])
def test_a_replay_whose_start_fails_leaves_no_run(place: Path, cli: Cli, database: str) -> None:
    (place / "at_once.py").write_text(FAILS_AT_ONCE)
    text = (place / "sma.toml").read_text().replace('"sma_cross"', '"at_once:Fails"')
    (place / "fails.toml").write_text(text.replace("fast = 3\nslow = 7\n", ""))
    code, lines = error(cli, f"replay -c fails.toml --data BTCUSDT.csv --db {database}")
    assert (code, lines[-1][:29]) == (1, "Fails failed in observe with ")
    if database == "new.db":
        assert not list(place.glob("new.db*"))
        return
    with sqlite3.connect(place / database) as db:
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (1,)
