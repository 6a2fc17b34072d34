"""The log: whole steps, one transaction, resume, and what happens when it cannot write."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import storage_cases as cases
from builders import START_MS, altered, quote
from msgspec.structs import replace
from records import tamper

from tracepaper.storage.audit import COMMIT_WITHIN_MS, SqlAuditLog
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.checkpoints import CARD_NAME, dump, kept_folder
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.writer import open_writer
from tracepaper.storage.record.interning import OUTCOMES_KEPT
from tracepaper.strategies.errors import AuditUnwritable, DataInvalid, InvariantBroken
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import (
    Bar,
    Command,
    CommandKind,
    Event,
    Funding,
    ModelChange,
    RunEnd,
)

CHANGE = ModelChange("m", "sha", "0.1", "step", "cpu", "float32", 1, (), START_MS, START_MS)


def stored(path: Path) -> list[Step]:
    with Reader.open(path) as reader:
        return list(reader.steps("r-1"))


def holds(path: Path) -> bool:
    with Reader.open(path) as reader:
        return verify_chain(reader.connection, "r-1").passes


def test_a_group_is_committed_when_it_is_full(tmp_path: Path) -> None:
    log = SqlAuditLog.open(tmp_path / "a.db", group_steps=10)
    log.begin(cases.run())
    steps = cases.plain_steps(25)
    for step in steps:
        log.append_now(step)
    assert stored(tmp_path / "a.db") == steps[:20]
    log.close()
    assert stored(tmp_path / "a.db") == steps


async def test_a_live_step_is_committed_when_append_returns(tmp_path: Path) -> None:
    log = SqlAuditLog.open(tmp_path / "a.db")
    log.begin(cases.run())
    steps = cases.plain_steps(5)
    steps[2] = replace(steps[2], price_verdict="at this bar a settlement was given up")
    for count, step in enumerate(steps, start=1):
        await log.append(step)
        assert stored(tmp_path / "a.db") == steps[:count]
    log.end(7)
    log.close()
    assert holds(tmp_path / "a.db")


async def test_warm_up_bars_are_committed_with_the_first_decision(tmp_path: Path) -> None:
    log = SqlAuditLog.open(tmp_path / "a.db")
    log.begin(cases.run())
    warming = [
        replace(step, decision=None, orders=(), fills=(), state=None)
        for step in cases.plain_steps(4)
    ]
    for step in warming:
        await log.append(step)
    with pytest.raises(DataInvalid, match="no run r-1"):
        stored(tmp_path / "a.db")
    deciding = cases.plain_steps(5)[4]
    await log.append(deciding)
    assert stored(tmp_path / "a.db") == [*warming, deciding]
    log.close()


@pytest.mark.parametrize("kind", CommandKind)
@pytest.mark.parametrize("fed", [0, 2, 5])
async def test_a_command_is_committed_before_the_operator_is_told(
    tmp_path: Path, kind: CommandKind, fed: int
) -> None:
    path = tmp_path / "a.db"
    log = SqlAuditLog.open(path)
    log.begin(cases.run())
    warming = [cases.undecided(n, s.event) for n, s in enumerate(cases.plain_steps(fed))]
    for step in warming:
        await log.append(step)
    command = cases.undecided(fed, Command(kind, "", START_MS, START_MS))
    await log.append(command)
    assert stored(path) == [*warming, command]
    later = cases.undecided(fed + 1, cases.plain_steps(fed + 1)[fed].event)
    await log.append(later)
    assert stored(path) == [*warming, command]  # while a warm-up bar waits
    log.close()


async def test_whatever_is_no_bar_is_committed_at_once_in_a_run_that_is_open(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"
    log = SqlAuditLog.open(path)
    log.begin(cases.run())
    await log.append(cases.undecided(0, CHANGE))
    events: list[Event] = [
        Funding("linear:BTCUSDT", 1, START_MS, START_MS),
        RunEnd(START_MS, START_MS, START_MS),
    ]
    for sequence, event in enumerate(events, start=1):
        await log.append(cases.undecided(sequence, event))
        assert len(stored(path)) == sequence + 1
    log.close()


async def test_the_prices_before_a_bar_are_committed_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    log = SqlAuditLog.open(path)
    log.begin(cases.run())
    await log.append(cases.undecided(0, CHANGE))
    sequence = 1
    for step in cases.plain_steps(6):
        bar = step.event
        assert isinstance(bar, Bar)
        for late_ms in (-COMMIT_WITHIN_MS, 0, 1):  # the second waits: its first is stored by then
            at_ms = bar.seen_ms + late_ms - 5
            event = quote(bar.close, bar.close + 1, at_ms=at_ms)
            await log.append(cases.undecided(sequence, event))
            sequence += 1
        await log.append(replace(step, sequence=sequence))
        sequence += 1
    with Reader.open(path) as reader:
        commits = reader.connection.execute("SELECT last_sequence FROM commits").fetchall()
    # Of each close: the price that waited for a second, with the next; the bar, with the last.
    assert [last for (last,) in commits] == [
        0, *(last for bar in range(4, sequence, 4) for last in (bar - 2, bar))
    ]  # fmt: skip
    log.close()


async def test_a_bar_that_fills_an_order_is_committed_at_once(tmp_path: Path) -> None:
    log = SqlAuditLog.open(tmp_path / "a.db")
    log.begin(cases.run())
    warm = cases.undecided(0, CHANGE)
    steps = [replace(s, decision=None) for s in cases.plain_steps(13)[1:]]
    await log.append(warm)
    for step in steps:
        await log.append(step)
        committed = len(stored(tmp_path / "a.db"))
        assert (committed == step.sequence + 1) is bool(step.orders or step.fills)
    log.close()


async def test_the_event_loop_turns_while_a_step_is_written(tmp_path: Path) -> None:
    log = SqlAuditLog.open(tmp_path / "a.db")
    log.begin(cases.run())
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    for step in cases.plain_steps(20):
        await log.append(step)
    counting.cancel()
    log.close()
    assert turns > 20


def test_the_runs_row_holds_count_and_head_of_every_commit(tmp_path: Path) -> None:
    log = SqlAuditLog.open(tmp_path / "a.db", group_steps=3)
    log.begin(cases.run())
    steps = cases.plain_steps(10)
    for step in steps[:3]:
        log.append_now(step)
    for step in steps[3:]:
        log.append_now(step)
        with Reader.open(tmp_path / "a.db") as reader:
            run = reader.stored_run("r-1")
            links = reader.connection.execute(
                "SELECT last_sequence, digest FROM commits ORDER BY first_sequence"
            ).fetchall()
        assert links[-1] == (run.step_count - 1, run.head_digest)
    log.close()


def test_a_step_out_of_order_is_refused(tmp_path: Path) -> None:
    log = SqlAuditLog.open(tmp_path / "a.db")
    log.begin(cases.run())
    with pytest.raises(InvariantBroken, match="Step 1 came where step 0 was due"):
        log.append_now(cases.plain_steps(2)[1])
    log.close()


def test_a_taken_run_id_is_refused(tmp_path: Path) -> None:
    log = SqlAuditLog.open(tmp_path / "a.db")
    log.begin(cases.run())
    log.append_now(cases.plain_steps(1)[0])
    with pytest.raises(DataInvalid, match="in the database already"):
        log.begin(cases.run())
    log.close()


# ---------------------------------------------------------------- a start that fails


def runs_of(path: Path) -> int:
    with Reader.open(path) as reader:
        return int(reader.connection.execute("SELECT count(*) FROM runs").fetchone()[0])


async def test_a_start_that_fails_before_its_start_event_leaves_no_run(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    warming = [cases.undecided(n, s.event) for n, s in enumerate(cases.plain_steps(30))]
    for fed in (0, 1, 30):
        log = SqlAuditLog.open(path, group_steps=10)
        log.begin(cases.run())
        for step in warming[:fed]:
            await log.append(step)
        await log.append(cases.undecided(fed, Funding("linear:BTCUSDT", 1, START_MS, START_MS)))
        assert runs_of(path) == 0  # nor would a kill leave one
        log.end(7)
        log.close()
        assert runs_of(path) == 0
    log = SqlAuditLog.open(path)
    log.begin(cases.run())  # the id is free
    for step in [*warming, cases.undecided(30, CHANGE)]:
        await log.append(step)
    assert len(stored(path)) == 31
    log.close()
    assert holds(path)


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("cut", [1, 9, 10, 11, 25])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path, cut: int) -> None:
    steps = [
        replace(
            step,
            account=replace(step.account, equity=step.account.equity + 1),  # as of spot
            state=b"state" if number == 5 else None,
        )
        for number, step in enumerate(cases.plain_steps(40))
    ]
    whole = cases.write_run(tmp_path / "whole.db", steps)
    cases.write_run(tmp_path / "cut.db", steps[:cut])
    log = SqlAuditLog.open(tmp_path / "cut.db")
    resumed = log.resume("r-1")
    assert resumed.next_sequence == cut
    for step in steps[cut:]:
        log.append_now(step)
    log.close()
    assert stored(tmp_path / "cut.db") == steps
    assert holds(tmp_path / "cut.db")
    assert stored(tmp_path / "whole.db") == steps
    assert len(whole) == len(log.head)


def test_resume_returns_where_the_run_stands(tmp_path: Path) -> None:
    steps = cases.rich_steps()
    head = cases.write_run(tmp_path / "a.db", steps)
    log = SqlAuditLog.open(tmp_path / "a.db")
    resumed = log.resume("r-1")
    log.close()
    assert resumed.run == cases.run()
    assert resumed.head == head
    assert resumed.next_sequence == len(steps)
    assert resumed.state == b"opened"
    assert resumed.last == steps[-1]
    bars = [step.event for step in steps if isinstance(step.event, Bar)]
    for instrument in (cases.BTC.id, cases.ETH.id):
        newest = max(bar.open_time_ms for bar in bars if bar.instrument == instrument)
        assert resumed.last_open_ms[instrument] == newest
    assert resumed.gate_sets == (cases.MODEL_GATES,)


def ended(path: Path) -> list[int | None]:
    """Return when the run ended, as the reader and as the view say it."""
    with Reader.open(path) as reader:
        (ended_at,) = reader.connection.execute("SELECT ended_ms FROM v_runs").fetchone()
        return [reader.ended_at_ms("r-1"), ended_at]


def test_a_run_has_ended_where_its_last_step_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    steps = cases.plain_steps(4)
    cases.write_run(path, steps[:3], end=True)
    assert ended(path) == [START_MS + 1, START_MS + 1]
    log = SqlAuditLog.open(path)
    log.resume("r-1")
    log.append_now(replace(steps[3], sequence=4))
    log.flush()
    assert ended(path) == [None, None]
    log.end(99)
    log.close()
    assert ended(path) == [99, 99]
    assert holds(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DELETE FROM steps WHERE sequence & 255 = 8", "audit verify"),
        (
            "UPDATE runs SET step_count = step_count + 1",
            r"counts 10 steps and 9 are stored, .* `tracepaper audit verify`",
        ),
    ],
)
def test_resume_refuses_a_run_whose_steps_are_not_those_of_its_row(
    tmp_path: Path, change: str, words: str
) -> None:
    path = tmp_path / "a.db"
    cases.write_run(path, cases.plain_steps(9))
    tamper(path, change)
    log = SqlAuditLog.open(path)
    with pytest.raises(DataInvalid, match=words):
        log.resume("r-1")
    log.close()


def test_the_row_of_a_model_is_written_once_however_many_commits_follow(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    kept = kept_folder(path, "m")
    kept.mkdir(parents=True)
    sections = ("model", "architecture", "features", "market", "calibration")
    (kept / CARD_NAME).write_text(dump({name: {"of": name} for name in sections}))
    log = SqlAuditLog.open(path, group_steps=3)
    log.begin(cases.run(model_id="m", model_sha256="ab" * 32))
    for step in cases.plain_steps(9):
        log.append_now(step)
    log.close()
    with Reader.open(path) as reader:
        assert reader.connection.execute("SELECT count(*) FROM models").fetchone() == (1,)
    assert len(stored(path)) == 9


# ---------------------------------------------------------------- failure


def log_with_room_for(path: Path, pages: int) -> SqlAuditLog:
    """Return a log whose file may grow by *pages*; then it answers as a full disk does."""
    writer = open_writer(path)
    log = SqlAuditLog(writer, group_steps=50)
    log.begin(cases.run())
    (now,) = writer.driver.execute("PRAGMA page_count").fetchone()
    writer.driver.execute(f"PRAGMA max_page_count = {now + pages}")
    return log


def append_all(log: SqlAuditLog, steps: list[Step], appended: list[Step]) -> None:
    for step in steps:
        log.append_now(step)
        appended.append(step)


def test_a_full_disk_stops_the_log_which_goes_on_from_its_last_commit(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"
    log = log_with_room_for(path, 12)
    steps = cases.plain_steps(2_000)
    appended: list[Step] = []
    with pytest.raises(AuditUnwritable, match="database or disk is full"):
        append_all(log, steps, appended)
    with pytest.raises(AuditUnwritable, match="resumes at its last committed step"):
        log.append_now(steps[len(appended)])
    log.close()
    committed = len(appended) // 50 * 50
    assert 0 < committed < 2_000
    assert stored(path) == steps[:committed]
    assert holds(path)
    again = SqlAuditLog.open(path)
    for step in steps[again.resume("r-1").next_sequence :]:
        again.append_now(step)
    again.close()
    assert stored(path) == steps
    assert holds(path)


async def test_a_failed_live_append_is_told_to_the_caller(tmp_path: Path) -> None:
    log = log_with_room_for(tmp_path / "a.db", 1)
    steps: list[Step] = []

    async def append() -> None:
        for step in cases.plain_steps(200):
            await log.append(step)
            steps.append(step)

    with pytest.raises(AuditUnwritable):
        await append()
    log.close()
    assert stored(tmp_path / "a.db") == steps


@pytest.mark.parametrize("alone", [1, 9])
def test_of_steps_that_belong_together_none_is_stored_where_one_cannot_be(
    tmp_path: Path, alone: int
) -> None:
    path = tmp_path / "a.db"
    steps = cases.plain_steps(10)
    log = SqlAuditLog.open(path)
    log.begin(cases.run())
    append_all(log, steps[:alone], [])
    last = replace(steps[9], event=replace(steps[9].event, instrument="spot:X"))
    log.append_now(*steps[alone:9], last)
    with pytest.raises(InvariantBroken, match="not an instrument of this run"):
        log.flush()
    with pytest.raises(AuditUnwritable, match=f"Step {alone} could not be stored"):
        log.append_now(steps[9])
    log.close()
    assert stored(path) == steps[:alone]
    assert holds(path)
    again = SqlAuditLog.open(path)
    assert again.resume("r-1").next_sequence == alone
    again.append_now(*steps[alone:])
    again.close()
    assert stored(path) == steps
    assert holds(path)


def test_a_number_that_only_sqlite_refuses_is_rolled_back(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    steps = cases.plain_steps(4)
    log = SqlAuditLog.open(path, group_steps=2)
    log.begin(cases.run())
    append_all(log, steps[:3], [])
    huge = replace(steps[3], event=replace(steps[3].event, volume=2**63))
    with pytest.raises(InvariantBroken, match="does not fit 64 bits"):
        log.append_now(huge)
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # which a transaction that is still open would refuse
        other.rollback()
    log.close()
    assert stored(path) == steps[:2]
    assert holds(path)


def test_nothing_is_taken_after_the_log_is_closed(tmp_path: Path) -> None:
    log = SqlAuditLog.open(tmp_path / "a.db")
    log.begin(cases.run())
    log.close()
    with pytest.raises(AuditUnwritable, match="closed"):
        log.append_now(cases.plain_steps(1)[0])


def test_reasons_without_end_are_forgotten_and_stored_anew(tmp_path: Path) -> None:
    log = SqlAuditLog.open(tmp_path / "a.db")
    log.begin(cases.run())
    reasons = [*(f"because {number}" for number in range(OUTCOMES_KEPT + 1)), "because 0"]
    steps = cases.plain_steps(len(reasons))
    for step, reason in zip(steps, reasons, strict=True):
        assert step.decision is not None
        log.append_now(replace(step, decision=altered(step.decision, reason=reason)))
    log.close()
    with Reader.open(tmp_path / "a.db") as reader:
        (count,) = reader.connection.execute("SELECT count(*) FROM outcomes").fetchone()
    assert count == len(reasons)
    assert holds(tmp_path / "a.db")
