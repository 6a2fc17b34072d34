"""``audit``: the chain's check and read-only questions, as they are typed."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
import storage_cases as cases
from command_line import Cli
from forging import rechain
from records import rows, tamper
from waiting import deadline_s

STEPS = cases.plain_steps(60)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    cases.write_run(tmp_path / "a.db", cases.rich_steps(), of=cases.run("rich"))
    cases.write_run(tmp_path / "a.db", STEPS, of=cases.run("plain"))
    return tmp_path / "a.db"


def test_verify_says_that_the_chain_holds(path: Path, cli: Cli) -> None:
    code, out, err = cli("audit", "verify", "--db", path)
    assert (code, err.count("newer steps may be missing")) == (0, 1), "it has not ended"
    assert "The chain of run plain holds: 60 steps." in out
    assert "keep a copy elsewhere" in out


def test_verify_names_what_was_changed_and_exits_with_1(path: Path, cli: Cli) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE steps SET close = close + 1 WHERE sequence = 33")
    connection.commit()
    connection.close()
    code, out, _ = cli("audit", "verify", "plain", "--db", path)
    assert code == 1
    assert "Steps 0 to 59 do not match the digest of their commit (tables: steps)." in out
    code, out, _ = cli("audit", "verify", "plain", "--db", path, "--json")
    assert code == 1
    document = json.loads(out)
    assert (document["passes"], document["steps"]) == (False, 0)
    assert document["problem"]["sequence"] == 0
    assert cli("audit", "verify", "rich", "--db", path)[0] == 0


def kept_head(path: Path, last: int) -> str:
    """Return what `audit head` printed after step *last* of the run plain."""
    query = "SELECT digest FROM v_commits WHERE run_id = 'plain' AND last_sequence = ?"
    return str(rows(path, query, last)[0][0])


@pytest.fixture
def commits(tmp_path: Path) -> Path:
    """Return a database whose run plain, of six commits, is followed by another."""
    cases.write_run(tmp_path / "c.db", STEPS, of=cases.run("plain"), group_steps=10)
    cases.write_run(tmp_path / "c.db", cases.plain_steps(5), of=cases.run("later"))
    return tmp_path / "c.db"


def test_the_head_is_run_step_time_and_digest_of_the_last_commit(commits: Path, cli: Cli) -> None:
    document = {"run_id": "plain", "steps": 60, "sequence": 59, "head": kept_head(commits, 59)}
    document |= {"market_ms": STEPS[59].event.market_ms, "market_iso": "2023-11-14T23:14:00.000Z"}
    assert cli.json("audit", "head", "plain", "--db", commits) == document
    line = f"plain 59 2023-11-14T23:14:00.000Z {document['head']}\n"
    assert cli.out("audit", "head", "plain", "--db", commits) == line


def test_a_head_that_was_kept_is_found_with_its_commit_time_and_step(
    commits: Path, cli: Cli
) -> None:
    kept, time_ms = kept_head(commits, 39), STEPS[39].event.market_ms
    out = cli.out("audit", "verify", "--head", kept, "--db", commits)
    assert out.startswith("The chain of run plain holds: 60 steps.\nThe head that was kept is the ")
    assert "from step 30 to step 39, at market time 2023-11-14T22:54:00.000Z. Even" in out
    found = cli.json("audit", "verify", f"{commits}#last", "--head", kept)["kept_head"]
    assert (found["run_id"], found["sequence"], found["last_sequence"]) == ("plain", 30, 39)
    assert (found["market_ms"], found["digest"]) == (time_ms, kept)
    code, out, err = cli("audit", "verify", "--head", "abc", "--db", commits)
    assert (code, out) == (2, "")
    assert "64 hexadecimal digits" in err


def forge(path: Path) -> None:
    tamper(path, "UPDATE steps SET volume = volume + 1 WHERE run_key = 1 AND sequence = 33")
    rechain(path)


def cut_off(path: Path) -> None:
    """Delete the run that follows, and of the run plain all steps from 30 on."""
    names = [name for (name,) in rows(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")]
    with closing(sqlite3.connect(path)) as raw, raw:
        for table in names:
            columns = {row[1] for row in raw.execute(f"PRAGMA table_info({table})")}
            at = next((each for each in ("first_sequence", "sequence") if each in columns), None)
            if "run_key" in columns:
                late = f" OR {at} >= 30" if at else ""
                raw.execute(f"DELETE FROM {table} WHERE run_key = 2{late}")
        digest = "(SELECT digest FROM commits WHERE last_sequence = 29)"
        raw.execute(f"UPDATE runs SET step_count = 30, head_digest = {digest}")


@pytest.mark.parametrize("deed", [forge, cut_off])
def test_a_head_that_does_not_stand_any_more_is_said_to(
    deed: Callable[[Path], None], commits: Path, cli: Cli
) -> None:
    before, after = kept_head(commits, 29), kept_head(commits, 39)
    deed(commits)
    assert cli("audit", "verify", "plain", "--db", commits)[0] == 0  # the chain itself holds
    code, out, _ = cli("audit", "verify", "--head", after, "--db", commits)
    last = "plain" if deed is cut_off else "later"
    sentence = (
        f"No commit of run {last} has the digest {after}: the chain was rewritten, or an older"
    )
    assert (code, sentence in out) == (1, True)
    document = json.loads(cli("audit", "verify", "--head", after, "--db", commits, "--json").out)
    assert (document["kept_head"], document["passes"]) == (None, False)
    assert cli("audit", "verify", "--head", before, "--db", commits)[0] == 0


def test_named_questions_are_about_one_run_and_begin_with_its_newest_row(
    path: Path, cli: Cli
) -> None:
    rows = cli.json("audit", "sql", "decisions", "--rows", 3, "--db", path)
    assert [row["sequence"] for row in rows] == [59, 58, 57]
    out = cli.out("audit", "sql", "decisions", "--run", "rich", "--db", path)
    assert out.splitlines()[0].split("\t")[:2] == ["sequence", "open_time_iso"]
    assert "confidence_entropy" in out
    fills = [fill for step in STEPS for fill in step.fills]
    rows = cli.json("audit", "sql", "fills", "--rows", 1000, "--db", path)
    assert [row["order_id"] for row in rows] == [fill.order_id for fill in reversed(fills)]
    assert rows[-1]["fee"] == f"{fills[0].fee / 10**8:.8f}"
    rows = cli.json("audit", "sql", "equity", "--run", f"{path}#plain", "--rows", 2)
    assert [row["sequence"] for row in rows] == [59, 58]
    assert rows[0]["equity"] == f"{Decimal(STEPS[-1].account.equity) / 10**8:.8f}"
    question = "SELECT count(*) AS steps FROM v_equity WHERE run_id = :run"
    steps = [
        cli.json("audit", "sql", question, "--run", run, "--db", path)[0]["steps"]
        for run in ("rich", "plain")
    ]
    assert steps == [len(cases.rich_steps()), 60]


def test_a_named_question_shows_twenty_rows_where_no_other_number_is_given(
    path: Path, cli: Cli
) -> None:
    code, out, err = cli("audit", "sql", "decisions", "--db", path)
    assert (code, len(out.splitlines())) == (0, 1 + 20)
    assert "there are more" in err


def test_sql_answers_in_lines_and_in_json(path: Path, cli: Cli) -> None:
    question = "SELECT run_id, step_count FROM v_runs ORDER BY 1"
    code, out, _ = cli("audit", "sql", question, "--db", path)
    steps = len(cases.rich_steps())
    assert (code, out) == (0, f"run_id\tstep_count\nplain\t60\nrich\t{steps}\n")
    assert cli.json("audit", "sql", question, "--db", path) == [
        {"run_id": "plain", "step_count": 60},
        {"run_id": "rich", "step_count": steps},
    ]


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT "


@pytest.mark.parametrize(
    "question",
    [
        ENDLESS + "count(*) FROM n",
        ENDLESS + "max(i) FROM n WHERE i < 0",
        "SELECT count(*) FROM v_bars a, v_bars b, v_bars c, v_bars d, v_bars e",
    ],
)
def test_a_question_without_end_is_given_up_in_time(question: str, path: Path, cli: Cli) -> None:
    code, out, err = cli("audit", "sql", question, "--db", path, "--seconds", "0.05")
    assert (code, out) == (1, "")
    assert "took too long" in err
    assert err.count("\n") == 1


def test_an_answer_without_end_is_cut_and_says_so(path: Path, cli: Cli) -> None:
    command = ("audit", "sql", ENDLESS + "i FROM n", "--db", path, "--rows", "5")
    code, out, err = cli(*command)
    assert (code, out.split()) == (0, ["i", "1", "2", "3", "4", "5"])
    assert "the first 5 rows; there are more" in err
    code, out, err = cli(*command, "--json")
    assert [row["i"] for row in json.loads(out)] == [1, 2, 3, 4, 5]
    assert "there are more" in err


def test_a_question_ends_with_ctrl_c(path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "tracepaper.daemon.cli",
        "audit",
        "sql",
        ENDLESS + "count(*) FROM n",
    ]
    with subprocess.Popen([*words, "--db", str(path)], stderr=subprocess.PIPE) as process:
        while len([*Path(f"/proc/{process.pid}/task").iterdir()]) == 1:
            pass
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=deadline_s())
    assert process.returncode == 130


INTERRUPTED = """
import sys, threading
from pathlib import Path
from tracepaper.storage.database.queries import ask_within

start = threading.Thread.start

def interrupted(self):
    start(self)
    raise KeyboardInterrupt

threading.Thread.start = interrupted
try:
    ask_within(Path(sys.argv[1]), sys.argv[2], {}, rows_most=5, seconds=60)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_ctrl_c_while_the_thread_of_a_question_starts_crashes_nothing(path: Path) -> None:
    """Nobody waits for such a thread, which still uses its connection."""
    words = [sys.executable, "-c", INTERRUPTED, str(path), ENDLESS + "count(*) FROM n"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=deadline_s(), check=False)
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n")


def test_a_name_that_is_not_there_is_answered_with_those_that_are(path: Path, cli: Cli) -> None:
    code, _, err = cli("audit", "sql", "SELECT d.confidense FROM v_decisions d", "--db", path)
    assert code == 2
    assert "no such column: d.confidense; v_decisions has run_id, sequence," in err
    assert "(the nearest is confidence_entropy)" in err
    code, _, err = cli("audit", "sql", "SELECT * FROM v_decision", "--db", path)
    assert code == 2
    assert "the views are " in err
    assert "(the nearest is v_decisions)" in err
    assert err.count("\n") == 1


def test_every_run_is_checked_at_once(path: Path, cli: Cli) -> None:
    code, out, _ = cli("audit", "verify", "--all", "--db", path)
    assert code == 0
    assert [line.split()[4] for line in out.splitlines() if "holds" in line] == ["rich", "plain"]
    tamper(
        path,
        "UPDATE steps SET close = close + 1 WHERE run_key = 1 AND sequence = "
        "(SELECT min(sequence) FROM steps WHERE run_key = 1 AND open > 0)",
    )
    assert cli("audit", "verify", "--db", path)[0] == 0  # the newest is whole
    code, out, _ = cli("audit", "verify", "--all", "--db", path, "--json")
    assert code == 1
    assert [run["passes"] for run in json.loads(out)] == [False, True]
    code, _, err = cli("audit", "verify", "rich", "--all", "--db", path)
    assert (code, "neither a run nor --head" in err) == (2, True)


def test_what_is_wrong_with_the_file_is_said_once_and_of_no_chain(path: Path, cli: Cli) -> None:
    tamper(path, "DROP VIEW v_gaps")
    code, out, _ = cli("audit", "verify", "--all", "--db", path)
    assert (code, out.count("\n"), "chain" in out) == (1, 1, False)
    assert out.startswith("The view v_gaps is missing: ")
