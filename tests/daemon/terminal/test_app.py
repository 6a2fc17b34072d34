"""The live view's application, driven by keys on a screen of a given size."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from builders import MINUTE, START_MS, bars, decision, fill, forecast, instrument, run, step
from builders import account as account_of
from fakes import ManualClock
from operated import serving
from textual.pilot import Pilot
from waiting import until

from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.terminal.app import LiveView
from tracepaper.daemon.terminal.screen import STOP, RunView
from tracepaper.strategies.types.decisions import Position, ShadowStep
from tracepaper.strategies.types.market import CommandKind

pytestmark = pytest.mark.sockets

CELL = 12.2
"""Width of a character in the exported picture."""


def lines_of(view: LiveView) -> list[str]:
    """Return the text on the screen, line by line."""
    lines: dict[int, str] = {}
    picture = view.export_screenshot(simplify=True)
    for x, place, text in re.findall(r'x="([\d.]+)"[^>]*-line-(\d+)\)">([^<]*)</text>', picture):
        before = lines.get(int(place), "").ljust(round(float(x) / CELL))
        lines[int(place)] = before + html.unescape(text).replace("\xa0", " ")
    return [lines.get(place, "").rstrip() for place in range(view.size.height)]


def screen(symbols: int = 1, count: int = 120) -> RunView:
    """Return the state of a run whose last decision a gate refused, as its daemon keeps it."""
    named = [instrument(symbol) for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT")[:symbols]]
    view = RunView(run(instruments=tuple(named)), ManualClock())
    held = Position(1_500, 1_500 * 990_000 * 10**3, 0, 25 * 10**7)
    measures = (
        ("operator", 1.0, 1.0, True),
        ("confidence_entropy", 0.19, 0.18, True),
        ("shifted", 0.0125, 0.01, False),
        ("edge", 1.4, 1.0, True),
    )
    for item in named:
        for number, of in enumerate(bars(count, instrument_id=item.id)):
            view.observe(
                step(
                    of,
                    sequence=number,
                    decided=decision(measures=measures),
                    prediction=forecast(),
                    position=held,
                    fills=(fill(),) if number == 7 and item is named[0] else (),
                    of=account_of(100_000 + number % 30),
                    shadows=(ShadowStep("ungated", Position(), account_of(99_930), ()),),
                )
            )
    return view


@asynccontextmanager
async def running_app(
    state: RunView, width: int = 100, height: int = 30, database: Path = Path("none.db")
) -> AsyncIterator[tuple[LiveView, Pilot[None], Connection]]:
    """Show *state* on a screen of *width* x *height*, told over a pipe as by a daemon."""
    daemon, theirs = Pipe()
    view = LiveView(theirs, database)
    async with view.run_test(size=(width, height), notifications=True) as pilot:
        await tell(pilot, daemon, state)
        yield view, pilot, daemon
    daemon.close()
    theirs.close()


async def tell(pilot: Pilot[None], daemon: Connection, state: RunView) -> None:
    for change in state.changes():
        daemon.send(change)
    await until(lambda: any("equity" in line for line in lines_of_pilot(pilot)), poll_s=0.01)
    await pilot.pause()


def lines_of_pilot(pilot: Pilot[None]) -> list[str]:
    assert isinstance(pilot.app, LiveView)
    return lines_of(pilot.app)


HALT = """\
╭────────────────────────────────────────────────────────────╮
│ HALT holds everything: no new exposure until RESUME.       │
│ enter: give the command    esc: do not                     │
│                                                            │
│   news                                                     │
╰────────────────────────────────────────────────────────────╯"""


async def test_tab_turns_to_the_next_symbol_and_back() -> None:
    async with running_app(screen(3)) as (view, pilot, _):

        async def symbol(*keys: str) -> str:
            await pilot.press(*keys)
            await pilot.pause()
            return next(line for line in lines_of(view) if "closed" in line).split()[0]

        assert await symbol() == "BTCUSDT"
        assert await symbol("tab") == "ETHUSDT"
        assert await symbol("tab", "tab") == "BTCUSDT"
        assert await symbol("shift+tab") == "SOLUSDT"
        await pilot.press("h", "tab", "escape")
        assert await symbol() == "SOLUSDT"  # a dialog has the keys


async def test_the_operators_word_is_given_once_it_is_confirmed(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    monitor = Monitor(run=run(), clock=ManualClock(START_MS + MINUTE))
    async with (
        serving(database, monitor) as daemon,
        running_app(screen(), 80, 24, database) as (view, pilot, _),
    ):
        await pilot.press("h", "x", "escape")
        await view.workers.wait_for_complete()
        await pilot.pause()
        assert not any("▌" in line for line in lines_of(view)[-6:])  # nothing was asked or answered
        await pilot.press("h", *"news")
        await pilot.pause()
        assert daemon.commands == []
        assert any("HALT holds everything" in line for line in lines_of(view))
        await pilot.press("enter")
        await until(lambda: "HALT is event 17 of the run." in "".join(lines_of(view)), poll_s=0.01)
        await pilot.press("r", "enter")
        await until(lambda: len(daemon.commands) == 2, poll_s=0.01)
        await pilot.press("f", "enter")
        await until(lambda: len(daemon.commands) == 3, poll_s=0.01)
        assert daemon.commands == [
            (CommandKind.HALT, "news"),
            (CommandKind.RESUME, ""),
            (CommandKind.FLATTEN, ""),
        ]


async def test_a_word_that_reaches_no_daemon_says_so(tmp_path: Path) -> None:
    async with running_app(screen(), 100, 30, tmp_path / "[b]no.db") as (view, pilot, _):
        await pilot.press("h", "enter")
        await until(lambda: "No daemon runs on" in "".join(lines_of(view)), poll_s=0.01)
        assert "[b]no.db" in "".join(line.strip(" │▌▐") for line in lines_of(view))
        assert view.is_running


async def test_quitting_asks_whether_the_daemon_is_to_stop() -> None:
    async with running_app(screen()) as (view, pilot, daemon):
        await pilot.press("q")
        await pilot.pause()
        assert any("l    leave the view: the daemon goes on" in line for line in lines_of(view))
        await pilot.press("escape", "q", "q", "escape")
        assert not daemon.poll()
        await pilot.press("q", "s")
        await pilot.pause()
        assert daemon.recv() == STOP
        assert view.is_running  # until the daemon has ended
    async with running_app(screen()) as (view, pilot, daemon):
        await pilot.press("q", "l")
        await until(lambda: not view.is_running, poll_s=0.01)
        assert not daemon.poll()


async def test_the_view_ends_with_its_daemon() -> None:
    async with running_app(screen()) as (view, _, daemon):
        daemon.close()
        await until(lambda: not view.is_running, poll_s=0.01)
        assert view.return_code == 0
