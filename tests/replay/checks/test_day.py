"""A day of a run replayed from its record: identical, or what was planted is named."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import explained_runs
import pytest
import user_strategies as users
from exchange_client import FIRST_MS, walk_rows
from exchange_client import candles as made_candles
from forging import rechain
from recordings import crossing, record

from tracepaper.daemon.cli import invoke
from tracepaper.replay.archive import Candles
from tracepaper.replay.checks.parity import check_span, last_day
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.market import ParityCheck, ParityOutcome
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MINUTE_MS

QUARTER = 15 * MINUTE_MS
BARS = 96  # a day
BEGIN_MS = FIRST_MS + 8 * HOUR_MS
IDENTICAL, DIFFERENT, FAILED = ParityOutcome


def replayed(path: Path, **sections: dict[str, Any]) -> None:
    """Replay quarters of an hour: two thirds of a day, two days, and five hours."""
    rows = walk_rows(64 + 2 * BARS + 20)
    walk: Candles = made_candles(rows, interval_ms=QUARTER, first_ms=BEGIN_MS)
    config = crossing(interval="15", **sections)
    record(path, config, [walk], started_at_ms=1, group_steps=1)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("day") / "run.db"
    replayed(path)
    return path


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(kept, tmp_path / "run.db"))


def day(path: Path, number: int = 1) -> ParityCheck:
    """Replay day *number* of the newest run in *path*."""
    from_ms = FIRST_MS + number * DAY_MS
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        return check_span(reader, path, run_id, from_ms=from_ms, until_ms=from_ms + DAY_MS)


def change(path: Path, statement: str, *, forges: bool = False) -> None:
    """Change the record; who *forges* recomputes its chain."""
    with closing(sqlite3.connect(path)) as raw, raw:
        assert raw.execute(statement).rowcount > 0
    if forges:
        rechain(path)


def at(quarter: int) -> str:
    """Say in SQL that a step is of the bar that opened so many quarters after the first day."""
    opened_ms = FIRST_MS + DAY_MS + quarter * QUARTER
    return f"sequence = (SELECT sequence FROM steps WHERE open_time_ms = {opened_ms})"


# ---------------------------------------------------------------- identical


def test_a_whole_day_is_identical(run: Path) -> None:
    check = day(run)
    assert check.outcome is IDENTICAL
    assert (check.compared, check.identical, check.within_tolerance) == (96, 96, 0)
    assert (check.from_ms, check.until_ms) == (FIRST_MS + DAY_MS, FIRST_MS + 2 * DAY_MS)
    assert check.reason == "identical 96 of 96 decisions of 2025-01-02"
    assert (check.culprit, check.field, check.differs_at) == ("", "", "")


@pytest.mark.parametrize(
    ("number", "count", "part"), [(0, 64, ", from 08:00Z on"), (3, 20, ", until 05:00Z")]
)
def test_a_part_of_a_day_says_which(run: Path, number: int, count: int, part: str) -> None:
    check = day(run, number)
    assert check.outcome is IDENTICAL
    assert check.reason == f"identical {count} of {count} decisions of 2025-01-0{number + 1}{part}"


def test_without_bounds_all_that_was_decided_is_replayed(run: Path) -> None:
    with Reader.open(run) as reader:
        check = check_span(reader, run, reader.find("last"))
    assert check.reason == "identical 276 of 276 decisions"
    assert (check.from_ms, check.until_ms) == (BEGIN_MS, BEGIN_MS + 276 * QUARTER)


@pytest.mark.parametrize(
    ("quarters", "begins"),
    [(276, 2), (64 + 2 * BARS, 2), (64 + 2 * BARS - 1, 1), (64, 0), (63, None)],
)
def test_the_last_day_is_the_last_that_is_over(
    run: Path, quarters: int, begins: int | None
) -> None:
    """A run has none before its first midnight."""
    first = BEGIN_MS + quarters * QUARTER
    if quarters < 276:
        change(run, f"UPDATE steps SET outcome = NULL WHERE open_time_ms >= {first}")
    with Reader.open(run) as reader:
        begin_ms = last_day(reader, reader.find("last"))
    assert begin_ms == (None if begins is None else FIRST_MS + begins * DAY_MS)


# ---------------------------------------------------------------- planted differences


def test_a_changed_candle_is_named_on_its_day_alone(run: Path) -> None:
    """The first and the last bar of the day are of it; the bars around are of other days."""
    for quarter, wrong in ((0, 1), (BARS - 1, 1), (-1, 0), (BARS, 2)):
        copy = Path(shutil.copy(run, run.with_name(f"{quarter}.db")))
        change(copy, f"UPDATE steps SET close = close + 1 WHERE {at(quarter)}", forges=True)
        days = {number: day(copy, number) for number in range(3)}
        assert days[wrong].outcome is DIFFERENT
        assert days[wrong].culprit == "record"
        assert all(days[number].outcome is IDENTICAL for number in range(wrong))
    copy = run.with_name("0.db")
    first = day(copy)
    assert first.differs_at == "linear:BTCUSDT 2025-01-02T00:00Z"
    assert first.identical < first.compared == 96
    assert "the record is to blame" in first.reason


def test_a_changed_threshold_is_the_configurations_fault(run: Path) -> None:
    change(run, """UPDATE runs SET config = replace(config, '"fast":3', '"fast":4')""")
    check = day(run)
    assert (check.outcome, check.culprit) == (DIFFERENT, "configuration")
    assert "the configuration, or the record, is to blame" in check.reason
    assert len(check.reason) < 800


def test_a_strategy_that_reads_the_clock_is_named(tmp_path: Path) -> None:
    decide = "return by(time.time() < 2e9)"
    (tmp_path / "clocked.py").write_text(users.source(top="import time", decide=decide))
    path = tmp_path / "run.db"
    with users.importable(tmp_path):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(time, "time", lambda: 4e9)  # in another year
            replayed(path, strategy={"name": "clocked:Mine"})
        check = day(path)
    assert (check.outcome, check.culprit) == (DIFFERENT, "strategy")
    assert "`tracepaper lookahead`" in check.reason


# ---------------------------------------------------------------- what cannot be replayed


def test_a_day_without_a_decision_says_so(run: Path) -> None:
    check = day(run, 9)
    assert (check.outcome, check.compared) == (FAILED, 0)
    with Reader.open(run) as reader:
        run_id = reader.find("last")
    assert check.reason == (f"2025-01-10 could not be replayed: run {run_id} decided no bar of it")


def test_a_changed_model_is_a_reason(tmp_path: Path) -> None:
    path = explained_runs.replayed(tmp_path, mode="step")
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        assert check_span(reader, path, run_id).outcome is IDENTICAL
        (weights,) = Path(f"{path}.checkpoints").rglob("*.safetensors")
        weights.write_bytes(bytes([*weights.read_bytes()[:-1], 1]))
        check = check_span(reader, path, run_id)
    assert (check.outcome, check.compared) == (FAILED, 0)
    assert check.reason.startswith("the run could not be replayed: ")
    assert "restore" in check.reason


# ---------------------------------------------------------------- by hand


def test_the_command_says_the_line_and_its_exit_code(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["parity", "last", "--db", str(run)]) == 0
    assert capsys.readouterr().out == "identical 96 of 96 decisions of 2025-01-03.\n"
    assert invoke(["parity", f"{run}#last", "--day", "2025-01-02", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["outcome"], answer["compared"], answer["identical"]) == ("identical", 96, 96)
    assert invoke(["parity", "last", "--day", "2025-02-02", "--db", str(run)]) == 1
    assert "2025-02-02 could not be replayed" in capsys.readouterr().out
    change(run, f"UPDATE steps SET close = close + 1 WHERE {at(40)}")
    assert invoke(["parity", "last", "--day", "2025-01-02", "--db", str(run)]) == 1
    assert "the record is to blame" in capsys.readouterr().out
