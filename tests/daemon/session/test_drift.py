"""A run is compared with its backtest once a day, in a process beside the daemon.

In the first tests the daemon and the process are real; in the others what stands for the process
gives an answer that the test chose.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, cast

import builders
import msgspec
import pytest
from bybit_server import MINUTE, START_MS, ScriptedServer
from daemon_under_test import daemon
from fakes import ManualClock
from prometheus_client import generate_latest
from retrain_cases import decide
from scenarios import SCENARIOS
from waiting import deadline, until

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.http.client import ask
from tracepaper.daemon.http.metrics import registry_of
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.session.child import ChildFailed, TimeLimits
from tracepaper.daemon.session.drift import DailyDrift, DriftState, reference_of
from tracepaper.daemon.session.messenger import Message, Messenger
from tracepaper.daemon.terminal.status import status_text
from tracepaper.replay.checks.drift import drift_of, read_days
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.units import DAY_MS

BOOK = SCENARIOS["a limit of the whole book"]
MIDNIGHT_MS = START_MS // DAY_MS * DAY_MS + DAY_MS
INSIDE = DriftState("Inside what the backtest allows: 5 measures over 45 days.", {}, MIDNIGHT_MS)
OUTSIDE = DriftState(
    "Outside what the backtest allows: return since 2023-11-15.",
    {"return": MIDNIGHT_MS},
    MIDNIGHT_MS,
)


# ---------------------------------------------------------------- the real process


async def told_of(database: Path, key: str, told: str) -> dict[str, Any]:
    """Return the daemon's status once *key* of its comparison tells what is awaited."""
    async with deadline():
        while True:
            status = await asyncio.to_thread(ask, database, "/status")
            if told in cast("dict[str, Any]", status["drift"])[key]:
                return cast("dict[str, Any]", status)
            await asyncio.sleep(0.05)


@pytest.mark.sockets
async def test_a_daemon_compares_its_run_and_trades_on_if_it_cannot(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    async with ScriptedServer() as server:
        async with daemon(server, path) as running:
            await running.close_bars(3)
            assert (await asyncio.to_thread(ask, path, "/status"))["drift"] is None
        itself, other = f"{path}#last", f"{BOOK.recorded()}#last"
        for start, (against, key, told) in enumerate(
            (
                (
                    itself,
                    "sentence",
                    "Too few days: 0 whole days of the run and 0 of the reference",
                ),
                (
                    other,
                    "error",
                    "differs in symbols (linear:AAAUSDT, linear:BBBUSDT, not linear:BTC",
                ),
            ),
            start=3,
        ):
            async with daemon(server, path, drift={"against": against}) as running:
                await decide(running, start, 1)
                status = await told_of(path, key, told)
                assert f"drift: {status['drift'][key]}" in status_text(status).plain


@pytest.mark.sockets
async def test_the_process_answers_as_the_command_does_and_ends_with_the_daemon() -> None:
    path = BOOK.recorded()
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        run, days = reader.run(run_id), read_days(RunColumns(reader, run_id))
    config = load(None, {"drift": {"against": f"{path}#{run_id}", "level": "0.1"}})
    drift = DailyDrift(config, reference_of(config), path, run, ManualClock(START_MS))
    async with drift.in_background(lambda: None):
        for _ in range(2):
            drift.state = DriftState()
            drift.due_ms = 0
            drift.observe(closed(0))
            await until(lambda: drift.state.sentence)
            assert drift.state == drift_of((run_id, days), (run_id, days), 0.1).state
    assert drift.state.error == ""


# ---------------------------------------------------------------- once a day


class Comparisons:
    """Stands for the process that compares, and counts how often it is asked."""

    def __init__(self, *answers: DriftState | ChildFailed) -> None:
        self.answers, self.asked, self.command = list(answers), 0, ""

    def __call__(self, _name: str, command: Sequence[str], _limits: TimeLimits) -> Comparisons:
        self.command = " ".join(command)
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None: ...

    async def ask(self, _kind: type[DriftState], _message: object) -> DriftState:
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, ChildFailed):
            raise answer
        return answer


def closed(minute: int) -> Any:
    """Return the step of the bar that opened this many minutes after midnight."""
    return builders.step(builders.bar(open_time_ms=MIDNIGHT_MS + minute * MINUTE))


class Compared:
    """A run that is compared by a stand-in."""

    def __init__(self, *answers: DriftState | ChildFailed) -> None:
        self.comparisons, self.clock = Comparisons(*answers), ManualClock(MIDNIGHT_MS)
        config = load(None, {"drift": {"against": "b.db#last", "level": "0.01"}})
        start: Any = self.comparisons
        self.drift = DailyDrift(
            config, "/b.db#b", Path("run.db"), builders.run(), self.clock, start_process=start
        )

    async def close(self, minute: int) -> None:
        """Close the bar that opened so many minutes after midnight, and await what it begins."""
        step = closed(minute)
        self.clock.synchronise(step.event.market_ms)
        self.drift.observe(step)
        for _ in range(5):
            await asyncio.sleep(0)


@asynccontextmanager
async def compared(*answers: DriftState | ChildFailed) -> AsyncIterator[Compared]:
    case = Compared(*answers)
    async with case.drift.in_background(pytest.fail):
        yield case


async def test_a_run_is_compared_at_its_start_and_once_each_day_is_over() -> None:
    async with compared(INSIDE, OUTSIDE, ChildFailed("it ended")) as case:
        await case.close(-5)
        assert (case.comparisons.asked, case.drift.state) == (1, INSIDE)
        await case.close(-2)
        await case.close(-1)  # closes at midnight: other symbols' last bars may follow
        assert case.comparisons.asked == 1
        await case.close(0)
        assert (case.comparisons.asked, case.drift.state) == (2, OUTSIDE)
        await case.close(700)
        assert case.comparisons.asked == 2
        await case.close(1_440)
        assert case.drift.state == msgspec.structs.replace(OUTSIDE, error="it ended")
    words = "--against /b.db#b --level 0.01 --db run.db --service"
    assert case.comparisons.command.endswith(f"drift {builders.run().run_id} {words}")


async def test_what_is_outside_is_a_metric_and_one_notice() -> None:
    sent: list[Message] = []

    async def send(_address: str, message: Message) -> str:
        sent.append(message)
        return ""

    async with compared(INSIDE, OUTSIDE, OUTSIDE) as case:
        monitor = Monitor(run=builders.run(), clock=case.clock)
        monitor.companions = {"drift": case.drift.status}
        notify = load(None, {"notify": {"addresses": ["json://127.0.0.1:9/x"]}})
        messenger = Messenger(
            notify, builders.run(), case.clock, send, frame_age_s=lambda: 0.0, drift=case.drift
        )
        for day, told in enumerate((0, 1, 1)):
            await case.close(1_440 * day)
            await messenger._tick()  # noqa: SLF001 - a look at the state
            exported = generate_latest(registry_of(monitor)).decode()
            assert f"tracepaper_drift_outside {float(bool(day))}" in exported
            assert len(sent) == told
    assert sent[0].title == "tracepaper BTCUSDT: drift"
    assert OUTSIDE.sentence in sent[0].body


def test_a_backtest_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    for against, told in (
        ("backtest.db", r"\[drift\] against is 'backtest.db'; write FILE#RUN."),
        (f"{tmp_path}/none.db#last", r"\[drift\] against: There is no database "),
    ):
        with pytest.raises(ConfigInvalid, match=told):
            reference_of(load(None, {"drift": {"against": against}}))
    config = load(None, {"drift": {"against": f"{BOOK.recorded().name}#last"}})
    at = config.in_folder(BOOK.recorded().parent)
    assert reference_of(at).startswith(f"{BOOK.recorded()}#")
    assert reference_of(load(None, {})) == ""
