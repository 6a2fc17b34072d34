"""Public reports about commands: encodings, poor machines, media that cannot be written."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
from command_line import Cli
from programs import BIN, ProgramResult, environment, run
from public_cases import DAY, FILES, MINUTE, START, columns, play
from waiting import deadline_s

from tracepaper.replay.samples import samples

TRACEPAPER: Final = str(BIN / "tracepaper")
BARS: Final = samples("BTCUSDT", "15m")


def limited(
    arguments: list[str], folder: Path, limits: Mapping[int, int], extra: Mapping[str, str]
) -> ProgramResult:
    """Run ``tracepaper`` under *limits* of resources."""

    def limit() -> None:
        for kind, most in limits.items():
            resource.setrlimit(kind, (most, most))

    done = subprocess.run(
        [TRACEPAPER, *arguments],
        cwd=folder,
        env=environment(extra),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        preexec_fn=limit,
        timeout=deadline_s(240),
    )
    return ProgramResult(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("command", ["report", "explain"])
def test_another_encoding_is_no_damage(encoding: str, command: str, tmp_path: Path) -> None:
    """Case 10: rich#826. Characters are replaced, and the record is not called damaged."""
    database = tmp_path / "run.db"
    closes = [round(100 + 3 * math.sin(place / 7), 2) for place in range(400)]
    play("sma_cross", columns(closes), params={"fast": 3, "slow": 20}, db=database).close()
    settings = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    answer = limited([command, "last", "--db", "run.db"], tmp_path, {}, settings)
    assert "restore a backup" not in answer.err
    assert "Traceback" not in answer.err


def in_namespace(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run *words* below ``unshare``; skip the test where this machine has no namespaces."""
    unshare = ["unshare", *words]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed.")
    done = subprocess.run(
        unshare, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this user has no namespaces.")
    return done


def test_a_record_on_read_only_media_is_read(tmp_path: Path) -> None:
    """Case 12: grafana-sqlite-datasource#168, wake#501, deja-vu#2702, datasette#124."""
    database = tmp_path / "run.db"
    prices = [100.0 + place % 9 for place in range(200)]
    play("sma_cross", columns(prices), params={"fast": 3, "slow": 20}, db=database).close()
    for beside in tmp_path.glob("run.db-*"):
        beside.unlink()
    question = "SELECT count(*) AS bars FROM v_decisions"
    script = (
        f"mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path} && "
        f"exec {TRACEPAPER} audit sql '{question}' --db {database}"
    )
    done = in_namespace(["-m", "sh", "-c", script], Path("/"))
    assert "200" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "sweep BTCUSDT_1m.csv --strategy sma_cross --space fast=3,4 --objective mean_day --jobs 1",
        "data describe BTCUSDT_1m.csv --horizons 5",
    ],
    ids=["sweep", "describe"],
)
def test_a_user_without_a_home_or_a_name_gets_no_traceback(command: str, tmp_path: Path) -> None:
    """Case 13: pytorch#140765, scuba#11, hindsight#3934."""
    tmp_path.chmod(0o777)
    rows = [
        f"{START + place * MINUTE},{price},{price + 1},{price - 1},{price},5"
        for place in range(300)
        for price in (100 + place % 7,)
    ]
    text = "\n".join(["open_time,open,high,low,close,volume", *rows])
    (tmp_path / "BTCUSDT_1m.csv").write_text(text + "\n")
    nameless = ["env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME"]
    words = ["--user", "--map-user=12345", *nameless, TRACEPAPER, *command.split()]
    assert "Traceback" not in in_namespace(words, tmp_path).stderr


def test_a_closed_output_is_one_sentence(tmp_path: Path) -> None:
    """Case 34: rich#826 and its neighbours, as daemons and cron jobs close it."""
    shutil.copy(FILES / "31-plain.csv", tmp_path / "BTCUSDT.csv")
    done = subprocess.run(
        ["sh", "-c", f"exec {TRACEPAPER} data check BTCUSDT.csv >&-"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "AttributeError" not in done.stderr


def test_a_configuration_may_begin_with_a_byte_order_mark(tmp_path: Path, cli: Cli) -> None:
    """Case 36: editors of Windows save UTF-8 so."""
    path = tmp_path / "run.toml"
    path.write_bytes(b'\xef\xbb\xbf[strategy]\r\nname = "sma_cross"\r\nfast = 3\r\nslow = 20\r\n')
    assert cli("config", "show", path).code == 0


def not_json(word: str) -> NoReturn:
    raise AssertionError(word)


@pytest.mark.slow
def test_json_has_no_infinity(tmp_path: Path, cli: Cli) -> None:
    """Case 57: datasette#332, superset#4908. Infinity is null."""
    database = tmp_path / "run.db"
    prices = [100.0 + place for place in range(60)]
    play("sma_cross", columns(prices, DAY), params={"fast": 2, "slow": 5}, db=database).close()

    def document(*words: object) -> Any:
        return json.loads(cli.out(*words, "--db", database, "--json"), parse_constant=not_json)

    question = "SELECT 9e999 AS most, -9e999 AS least"
    assert document("audit", "sql", question) == [{"most": None, "least": None}]
    for command in (["report", "last"], ["explain", "last"], ["audit", "sql", "decisions"]):
        document(*command)


REPLAY: Final = ["replay", f"BTCUSDT={BARS}", "--set", "strategy.name=sma_cross", "--db", "run.db"]
NOWHERE: Final = {"TMPDIR": "/nonexistent", "SQLITE_TMPDIR": "/nonexistent"}


@pytest.mark.parametrize(
    ("limits", "extra", "codes"),
    [
        ({resource.RLIMIT_FSIZE: 300 * 512}, {}, {1}),
        ({resource.RLIMIT_NOFILE: 12}, {}, {0, 1}),
        ({resource.RLIMIT_AS: 300 << 20}, {}, {0, 1}),
        ({}, {"PYTHONWARNINGS": "error"}, {0}),
        ({}, NOWHERE, {0}),
    ],
    ids=["full disk", "few handles", "little memory", "warnings", "no temporary folder"],
)
def test_a_poor_machine_is_one_sentence_or_enough(
    limits: dict[int, int], extra: dict[str, str], codes: set[int], tmp_path: Path
) -> None:
    """Case 155: freqtrade#6353 and #5621, wpull#238, strong-pm#368, Tribler#3247."""
    answer = limited(REPLAY, tmp_path, limits, extra)
    assert answer.code in codes, answer.err
    assert "Traceback" not in answer.err
    if resource.RLIMIT_FSIZE in limits:
        assert "disk" in answer.err


def test_a_locked_database_is_named_and_later_read(tmp_path: Path, cli: Cli) -> None:
    """Case 155: gekko#1572. Another process holds the database."""
    replay = [*REPLAY[:-1], str(tmp_path / "run.db")]
    cli.out(*replay)
    with sqlite3.connect(tmp_path / "run.db", isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        answer = run([*replay, "--set", "strategy.fast=9"], tmp_path)
        assert (answer.code, "locked" in answer.err) == (1, True), answer.err
        holder.execute("ROLLBACK")
    holder.close()
    cli.out(*replay, "--set", "strategy.fast=9")


def test_a_file_name_may_be_any_bytes(tmp_path: Path) -> None:
    """Case 155: a name that is no UTF-8."""
    odd = tmp_path / os.fsdecode(b"BTCUSDT_15m_\xff.csv.gz")
    shutil.copy(BARS, odd)
    answer = limited(["data", "check", str(odd)], tmp_path, {}, {})
    assert answer.code == 0, answer.err


@pytest.mark.parametrize("command", [["audit", "verify"], ["verify"], ["report"]], ids=" ".join)
def test_a_backup_beside_an_old_log_is_told_of_the_log(
    command: list[str], tmp_path: Path, cli: Cli
) -> None:
    """Case 156: whiteout-project/bot#100. Restoring the backup again would not help."""
    database, backup = tmp_path / "run.db", tmp_path / "backup.db"
    cli.out(*REPLAY[:-1], database)
    cli.out(*REPLAY[:-1], backup, "--set", "strategy.fast=9")
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 60)"
    with sqlite3.connect(database, isolation_level=None) as writer:
        for text in (
            "PRAGMA journal_mode=WAL",
            "PRAGMA wal_autocheckpoint=0",
            "CREATE TABLE x(y)",
            f"INSERT INTO x {rows} SELECT hex(zeroblob(1500)) FROM n",
            "DROP TABLE x",
        ):
            writer.execute(text)
        old = (tmp_path / "run.db-wal").read_bytes()
    writer.close()
    shutil.copy(backup, database)
    (tmp_path / "run.db-wal").write_bytes(old)
    (tmp_path / "run.db-shm").unlink(missing_ok=True)
    answer = cli(*command, "last", "--db", database)
    assert "wal" in (answer.out + answer.err).lower()
