"""The incidents of a demo: each is announced, carried out, and its outcome reported."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from tracepaper.daemon.http.client import ask, give
from tracepaper.replay.demo.stage import Demo
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.gates.declared import operator
from tracepaper.strategies.types.market import CommandKind, Gap
from tracepaper.strategies.units import DAY_MS

ANNOUNCED: Final = "▶"
DONE: Final = "✓"
WRONG: Final = "✗"
REPAIRED_WITHIN_S: Final = 60.0
CUT_AGAIN_BARS: Final = 2
"""The stream is repaired once each symbol has a bar stored this many intervals after the cut."""
HALTED_SHARE: Final = 0.05
"""Share of the race for which the operator's HALT lasts."""


async def _announce(demo: Demo, sentence: str) -> None:
    demo.screen.say(sentence, mark=ANNOUNCED)
    await demo.pause()


def _conclude(demo: Demo, sentence: str, *, passes: bool) -> None:
    demo.outcomes.append(sentence)
    demo.screen.say(sentence, mark=DONE if passes else WRONG)


async def cut_the_stream(demo: Demo) -> None:
    """Cut every connection, refuse the next, and wait until the missed bars are repaired."""
    race = demo.race
    await _announce(
        demo,
        "Incident 1 of 4: the stream is cut without a goodbye. Watch the date at the top: bars "
        "stop, and then come at once.",
    )
    count = len(race.gaps)

    def repaired() -> list[Gap]:
        return [gap for gap in race.gaps[count:] if gap.repaired_by]

    demo.is_cut = True
    refusals = 0
    while not repaired():  # in slow market time the daemon may reconnect before a bar closes
        refusals += 1
        now_ms = max(race.now_ms, demo.exchange.clock.now_ms())
        demo.exchange.arm("refuse", count=refusals)
        back_ms = now_ms + CUT_AGAIN_BARS * demo.interval_ms
        await demo.until(partial(race.has_passed, back_ms), within_s=REPAIRED_WITHIN_S)
    demo.is_cut = False
    await demo.pause()
    bars = sum((gap.until_ms - gap.from_ms) // demo.interval_ms for gap in repaired())
    lost = [gap for gap in race.gaps[count:] if not gap.repaired_by]
    _conclude(
        demo,
        f"The daemon connected again and read the {bars} bars that it had missed by REST; "
        + ("none is missing." if not lost else f"bars of {len(lost)} gaps are absent."),
        passes=not lost,
    )


async def halt_and_resume(demo: Demo) -> None:
    """Send HALT as the operator, wait, and send RESUME."""
    race = demo.race
    await _announce(
        demo,
        "Incident 2 of 4: the operator says HALT. Watch the newest fills: bars go on being "
        "decided, and no exposure is added.",
    )
    refused_before = race.refused[operator.name]
    halt_step = await _command(demo, CommandKind.HALT)
    length_ms = min(DAY_MS, round(HALTED_SHARE * (demo.until_ms - race.start_ms)))
    await demo.until(partial(race.has_passed, race.now_ms + length_ms))
    resume_step = await _command(demo, CommandKind.RESUME)
    await demo.until(lambda: race.sequence >= resume_step)
    refused = race.refused[operator.name] - refused_before
    _conclude(
        demo,
        f"RESUME: {refused} decisions between step {halt_step} and step {resume_step} were refused "
        f"by `operator`, and both words are in the record.",
        passes=refused > 0,
    )


async def _command(demo: Demo, kind: CommandKind) -> int:
    """Send the daemon a command as ``tracepaper command`` does; return the step it caused."""
    answer = await asyncio.to_thread(give, demo.files.database, kind, "the demo's operator")
    return int(str(answer["sequence"]))


async def kill_and_go_on(demo: Demo) -> None:
    """Kill the daemon's process, and start another that continues the same run."""
    first = demo.process
    assert first is not None
    await _announce(
        demo,
        f"Incident 3 of 4: process {first.pid} is killed with -9, without a goodbye. Watch the "
        "account: it stands still, and another process goes on with it.",
    )
    demo.hold()
    status = await asyncio.to_thread(ask, demo.files.database, "/status")
    os.kill(first.pid, signal.SIGKILL)
    await first.wait()
    acknowledged = int(str(status["sequence"]))
    run_id, steps, cash = _stored_run(demo.files.database, acknowledged)
    demo.screen.say(
        f"Process {first.pid} is dead, with {steps:,} steps on the disk. The market waits while "
        "the next one starts: at this speed it would miss a day."
    )
    demo.poll()
    decisions = demo.race.decisions
    await demo.start_daemon()
    assert demo.process is not None
    await demo.until(lambda: demo.race.decisions > decisions)
    demo.go_on()
    await demo.pause()
    account = status["account"]
    assert isinstance(account, dict)
    is_same_run = _stored_run(demo.files.database, acknowledged)[0] == run_id
    is_continued = is_same_run and abs(float(account["cash"]) - cash) < 0.01
    _conclude(
        demo,
        f"Process {demo.process.pid} goes on with the same run {run_id}: every step that did "
        f"anything is there, and the account holds {cash:,.2f} in cash as before."
        if is_continued
        else f"Process {demo.process.pid} did not go on where process {first.pid} was killed.",
        passes=is_continued,
    )


def _stored_run(database: Path, sequence: int) -> tuple[str, int, float]:
    """Return the newest run's stored id, number of steps, and cash at step *sequence*.

    A stored step may be unacknowledged, and a quote without effect is stored with the next bar; if
    *sequence* is not stored, the cash is that of the newest step.
    """
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        views = RunViews(reader.connection, run_id)
        (row,) = views.rows("v_equity", sequence=sequence) or views.rows("v_equity", newest=1)
        return run_id, reader.stored_run(run_id).step_count, float(row["cash"])


async def change_a_tick(demo: Demo) -> None:
    """Change one stored price by a tick in a copy; the chain check must locate the change."""
    await _announce(
        demo,
        "Incident 4 of 4: in a copy of the record somebody changes one stored price by one tick. "
        "Watch whether the check finds it.",
    )
    steps, sentence, is_located = await asyncio.to_thread(_change_and_check, demo.files.database)
    _conclude(
        demo,
        f"The record of {steps:,} steps holds; of the copy the check says: {sentence}",
        passes=is_located,
    )


def _change_and_check(database: Path) -> tuple[int, str, bool]:
    """Return the number of steps checked, the copy's problem, and whether the verdict is right.

    It is right if the original passes and the copy's problem begins at or before the changed step.
    """
    with (
        Reader.open(database) as reader,
        closing(sqlite3.connect(":memory:", isolation_level=None)) as copy,
    ):
        reader.connection.backup(copy)
        run_id = reader.find("last")
        original = verify_chain(copy, run_id)
        key = reader.stored_run(run_id).run_key
        (step,) = copy.execute(
            "SELECT max(sequence) FROM steps WHERE run_key = ? AND close IS NOT NULL", (key,)
        ).fetchone()
        copy.execute(
            "UPDATE steps SET close = close + 1 WHERE run_key = ? AND sequence = ?", (key, step)
        )
        problem = verify_chain(copy, run_id).problem
    if problem is None or problem.sequence is None:
        return original.steps, "nothing was changed.", False
    return original.steps, problem.sentence, original.passes and problem.sequence <= step


INCIDENTS: Final = (
    (0.15, cut_the_stream),
    (0.35, halt_and_resume),
    (0.6, kill_and_go_on),
    (0.85, change_a_tick),
)
"""Each with the share of the race after which it happens, or once the one before it is over."""
