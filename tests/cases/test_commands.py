"""Public reports about commands: encodings, poor machines, media that cannot be written."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
from command_line import Cli
from programs import BIN, Program, ProgramResult, environment, run
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


def test_writers_of_one_file_at_once_are_whole_or_told(tmp_path: Path, cli: Cli) -> None:
    """Public reports: yape#21, freqtrade#6353, BookHeaven.Server#11, Krypto-trading-bot#658."""
    database = tmp_path / "run.db"
    cli.out(*REPLAY[:-1], database)
    writers = [Program([TRACEPAPER, *REPLAY], tmp_path, name=f"writer_{at}") for at in range(2)]
    reader = cli("report", "last", "--db", database)
    ends = [writer.end() for writer in writers]
    assert reader.code == 0, reader.err
    assert all(end.code == 0 or "in use" in end.err for end in ends), ends
    whole = 1 + sum(end.code == 0 for end in ends)
    assert whole > 1
    with closing(sqlite3.connect(database)) as db:
        counted = db.execute("SELECT count(*), count(ended_ms) FROM v_runs").fetchone()
    assert counted == (whole, whole)
    cli.out("audit", "verify", "--all", "--db", database)


@pytest.fixture
def of_another(tmp_path: Path) -> Path:
    """Return a folder of another user with records of theirs, beside a record of this user."""
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("this user cannot give rights away.")
    folder = tmp_path / "another"
    folder.mkdir()
    play("sma_cross", columns([9.0] * 60), db=tmp_path / "own.db").close()
    for name in ("run.db", "closed.db"):
        shutil.copy(tmp_path / "own.db", folder / name)
    (folder / "closed.db").chmod(0o600)
    for path in (folder, *folder.iterdir()):
        os.chown(path, 65_534, 65_534)
    return folder


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("report last --db another/run.db", "run.db cannot be read, since SQLite cannot write in"),
        ("report last --db another/closed.db", "closed.db' is not readable"),
        (
            "report last --db own.db --html another/page.html",
            "cannot be written to another/page.html",
        ),
        ("run --db another/new.db", "another/new.db"),
        ("data samples another/samples", "another/samples"),
    ],
)
def test_a_place_of_another_user_is_named_with_the_right_that_lacks(
    command: str, sentence: str, of_another: Path
) -> None:
    """Public reports: 2FAuth#210 and #240, moby#13122, matrix-dimension#265, Trilium#3987."""
    taken = "-dac_override,-dac_read_search,-fowner,-chown"
    done = subprocess.run(
        ["setpriv", "--bounding-set", taken, TRACEPAPER, *command.split()],
        cwd=of_another.parent,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline_s(),
    )
    (told,) = done.stderr.strip().splitlines()
    assert (sentence in told, done.returncode in {1, 2}) == (True, True), told
    assert "restore a backup" not in told


SCRIPT: Final = """
import math
import tracepaper as tp

closes = [round(100 + 3 * math.sin(place / 7), 2) for place in range(200)]
times = [1_704_067_200_000 + place * 60_000 for place in range(200)]
prices = dict.fromkeys(("open", "high", "low", "close"), closes)
data = {"BTCUSDT": {"open_time": times, **prices, "volume": [1.0] * 200}}


class Mine(tp.Strategy):
    def __init__(self, bars=5):
        self.bars, self.warmup = bars, bars + 1

    def decide(self, context):
        is_up = context.close > context.history.close[-self.bars :].mean()
        return tp.Signal(tp.Action.LONG if is_up else tp.Action.FLAT, "x")


for strategy, space in (("sma_cross", {"fast": [2, 3], "slow": [9]}), (Mine, {"bars": [3, 5]})):
    print(len(tp.sweep(strategy, data, space, "return", jobs=2, progress=False).trials))
"""


def test_a_script_without_a_guard_sweeps_what_it_holds(tmp_path: Path) -> None:
    """Public reports: backtesting.py#1242, #1260 and #5, pandas-ta#206, nautilus_trader#532."""
    (tmp_path / "script.py").write_text(SCRIPT)
    trials = {"TRACEPAPER_TRIALS": str(tmp_path / "trials.db")}
    done = Program([sys.executable, "script.py"], tmp_path, name="script", extra=trials).end()
    assert (done.code, done.out.split()) == (0, ["2", "2"]), done.err
    assert "Traceback" not in done.err


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
