"""Incidents of the demo: announced, carried out, accounted for."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from tracepaper.daemon.http.client import ask
from tracepaper.replay.demo.playback import OWN, GapMessage, ShowFiles
from tracepaper.replay.demo.processes import Cast
from tracepaper.storage.chain.walk import verify_chain
from tracepaper.storage.database.chunks import run_span
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.storage.maintenance import backup
from tracepaper.strategies.gates.declared import operator
from tracepaper.strategies.types.market import CommandKind
from tracepaper.strategies.units import DAY_MS, INTERVALS

ABOUT: Final = "▶"
DONE: Final = "✓"
WRONG: Final = "✗"
REPAIRED_WITHIN_S: Final = 60.0
CUT_AGAIN_BARS: Final = 2
"""A daemon that stores so many bars after a cut, and no gap, was back before it missed one."""
HALTED_SHARE: Final = 0.05
"""Of the race: as long as the operator's HALT lasts."""
BACK: Final = 100
"""Bars before the newest: the one that is changed."""


@dataclass(frozen=True)
class Incident:
    """One incident, and the shares of the race between which it happens.

    Market time waits at *until* where it takes longer.
    """

    at: float
    until: float
    happen: Callable[[Cast], Awaitable[None]]


def _concluded(cast: Cast, sentence: str, *, is_well: bool) -> None:
    cast.outcomes.append(sentence)
    cast.say(sentence, mark=DONE if is_well else WRONG)


async def cut_the_stream(cast: Cast) -> None:
    """Cut every connection, refuse the next one, and wait until nothing is missing."""
    race = cast.race
    cast.say(
        "Incident 1 of 4: the stream is cut without a goodbye. Watch the date at the top: bars "
        "stop, and then come at once.",
        mark=ABOUT,
    )
    await cast.look()
    known = len(race.gaps)
    interval_ms = INTERVALS[cast.served["interval"]]
    symbols = len(cast.served["symbols"])

    def repaired() -> list[GapMessage]:
        return [gap for gap in race.gaps[known:] if gap.repaired_by]

    def is_repaired() -> bool:
        return len({gap.instrument for gap in repaired()}) == symbols

    cast.pacer.expects_silence = True
    refusals = 0
    while not is_repaired():
        refusals += 1
        await _cut(cast, refusals, is_repaired)
    cast.pacer.expects_silence = False
    await cast.look()
    bars = sum((gap.until_ms - gap.from_ms) // interval_ms for gap in repaired())
    lost = [gap for gap in race.gaps[known:] if not gap.repaired_by]
    _concluded(
        cast,
        f"The daemon connected again and read the {bars} bars that it had missed by REST; "
        + ("none is missing." if not lost else f"{len(lost)} holes stayed."),
        is_well=not lost,
    )


async def _cut(cast: Cast, refusals: int, is_repaired: Callable[[], bool]) -> None:
    """Cut and refuse, until *is_repaired*, or the daemon is seen to have missed nothing.

    Where market time is slow it may be back before a bar closes.
    """
    back_ms = max(cast.race.now_ms, cast.market_ms)
    back_ms += CUT_AGAIN_BARS * INTERVALS[cast.served["interval"]]
    await cast.control("fault", {"kind": "refuse", "count": refusals})
    await cast.until(
        lambda: is_repaired() or cast.race.now_ms >= back_ms, within_s=REPAIRED_WITHIN_S
    )


async def halt_and_resume(cast: Cast) -> None:
    """Let the operator say HALT, wait, and say RESUME."""
    race = cast.race
    cast.say(
        "Incident 2 of 4: the operator says HALT. Watch the newest fills: bars go on being "
        "decided, and no order follows.",
        mark=ABOUT,
    )
    await cast.look()
    before, fills = race.refused[operator.name], race.fill_counts[OWN]
    halted = await _command(cast, CommandKind.HALT)
    halted_ms = race.now_ms
    for_ms = min(DAY_MS, round(HALTED_SHARE * (cast.until_ms - race.start_ms)))
    await cast.until(lambda: race.now_ms >= halted_ms + for_ms)
    resumed = await _command(cast, CommandKind.RESUME)
    await cast.until(lambda: any(one.sequence == resumed for one in race.commands))
    refused, filled = race.refused[operator.name] - before, race.fill_counts[OWN] - fills
    _concluded(
        cast,
        f"RESUME: {refused} decisions between step {halted} and step {resumed} were refused by "
        f"`operator`, and both words are in the record.",
        is_well=refused > 0 and filled <= len(cast.served["symbols"]),
    )


async def _command(cast: Cast, kind: CommandKind) -> int:
    """Give the daemon a command as ``tracepaper command`` does; return the step it caused."""
    body: dict[str, object] = {"kind": kind.value, "note": "the demo's operator"}
    answer = await asyncio.to_thread(ask, cast.files.database, "/command", body)
    return int(str(answer["sequence"]))


async def kill_and_go_on(cast: Cast) -> None:
    """Kill the daemon's process, and start another that goes on with the same run."""
    race, first = cast.race, cast.race.begun
    assert first is not None
    assert cast.process is not None
    assert cast.reading is not None
    cast.say(
        f"Incident 3 of 4: process {first.pid} is killed with -9, without a goodbye. Watch the "
        "account: it stands still, and another process goes on with it.",
        mark=ABOUT,
    )
    await cast.look()
    await cast.hold()
    os.kill(first.pid, signal.SIGKILL)
    await cast.reading
    told, equity = race.sequence, race.curves[OWN][-1]
    run_id, stored, kept = await asyncio.to_thread(_as_stored, cast.files, told)
    cast.say(
        f"Process {first.pid} is dead, with {stored:,} steps on the disk. The market waits while "
        "the next one starts: at this speed it would miss a day."
    )
    decisions = race.decisions
    await cast.start_daemon()
    await cast.until(lambda: race.starts > 1 and race.decisions > decisions)
    await cast.follow()
    second = race.begun
    assert second is not None
    await cast.look()
    is_whole = second.run_id == run_id and stored > told and abs(kept - equity) < 0.01
    _concluded(
        cast,
        f"Process {second.pid} goes on with the same run {run_id}: every step that was "
        f"acknowledged is there, and the account stood at {kept:,.2f} as before."
        if is_whole
        else f"Process {second.pid} did not go on where process {first.pid} was killed.",
        is_well=is_whole,
    )


def _as_stored(files: ShowFiles, sequence: int) -> tuple[str, int, float]:
    """Return the run's id, its number of steps, and its equity at *sequence*, as on the disk.

    A step may lie there that was not told any more.
    """
    with Reader.open(files.database) as reader:
        run_id = reader.find("last")
        (row,) = RunViews(reader.connection, run_id).rows("v_equity", sequence=sequence)
        return run_id, reader.stored_run(run_id).step_count, float(row["equity"])


async def change_a_tick(cast: Cast) -> None:
    """Change one stored price by a tick in a copy, and let the check name it."""
    cast.say(
        "Incident 4 of 4: in a copy of the record somebody changes one stored price by one tick. "
        "Watch whether the check finds it.",
        mark=ABOUT,
    )
    await cast.look()
    changed, steps, sentence, holds = await asyncio.to_thread(_changed_and_checked, cast.files)
    _concluded(
        cast,
        f"The record of {steps:,} steps holds; of the copy the check says: {sentence}",
        is_well=holds and f"Step {changed} " in sentence,
    )


def _changed_and_checked(files: ShowFiles) -> tuple[int, int, str, bool]:
    """Return the changed step, how many were checked, what is said of the copy, and of ours."""
    backup(files.database, files.changed)
    with Reader.open(files.changed) as reader:
        run_id = reader.find("last")
        ours = verify_chain(reader.connection, run_id)
        first, last = run_span(reader.stored_run(run_id).run_key)
    with closing(sqlite3.connect(files.changed)) as copy, copy:
        decided = (
            "FROM steps WHERE step BETWEEN ? AND ? AND outcome IS NOT NULL AND close IS NOT NULL"
        )
        (count,) = copy.execute(f"SELECT count(*) {decided}", (first, last)).fetchone()
        (step,) = copy.execute(
            f"SELECT step {decided} ORDER BY step DESC LIMIT 1 OFFSET ?",
            (first, last, min(BACK, count // 2)),
        ).fetchone()
        copy.execute("UPDATE steps SET close = close + 1 WHERE step = ?", (step,))
    with Reader.open(files.changed) as reader:
        problem = verify_chain(reader.connection, run_id).problem
    files.drop_changed()
    sentence = "nothing was changed." if problem is None else problem.sentence
    return step - first, ours.steps, sentence, ours.holds


INCIDENTS: Final = (
    Incident(0.15, 0.35, cut_the_stream),
    Incident(0.35, 0.6, halt_and_resume),
    Incident(0.6, 0.85, kill_and_go_on),
    Incident(0.85, 0.95, change_a_tick),
)
"""In the order in which they happen; none reaches into the next, nor to the end."""
