"""A daemon has its record dated by witnesses, and none of them delays or ends it."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import builders
import numpy as np
import pytest
from aiohttp import web
from bybit_server import ScriptedServer
from daemon_under_test import RunningDaemon, daemon
from prometheus_client import generate_latest
from waiting import until
from witnessed import ORIGIN, record_run, saved, witnessed
from world.witness import WitnessService, now_s

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.sections import WitnessSection
from tracepaper.daemon.http.client import ask
from tracepaper.daemon.http.metrics import registry_of
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.session import background
from tracepaper.daemon.session.clocks import Send
from tracepaper.daemon.session.witnessing import Witnessing, witness_keys
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.witness.cosigner import Cosigner
from tracepaper.storage.witness.judge import PLAIN, Note, judge
from tracepaper.storage.witness.keys import key_text, make_key
from tracepaper.storage.witness.leaves import witness_folder
from tracepaper.storage.witness.log import WitnessLog
from tracepaper.strategies.errors import ConfigInvalid


async def told(running: RunningDaemon, database: Path) -> dict[str, Any]:
    status = await asyncio.to_thread(ask, database, "/status")
    return cast("dict[str, Any]", status["witness"])


async def until_told(
    running: RunningDaemon, database: Path, condition: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    while True:
        if running.task.done():
            running.task.result()
            raise AssertionError("the daemon ended by itself")
        state = await told(running, database)
        if condition(state):
            return state
        await asyncio.sleep(0.05)


# ---------------------------------------------------------------- with a daemon


async def test_every_decision_is_dated_within_the_second_of_its_bar(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    key = make_key(witness_folder(path) / "key", ORIGIN, PLAIN)
    service = WitnessService(tmp_path, key)
    async with (
        service.served() as section,
        ScriptedServer() as server,
        daemon(server, path, witness=section) as running,
    ):
        await running.close_bars(6)
        state = await until_told(
            running,
            path,
            lambda state: state["cosigned"] == state["leaves"] and state["leaves"] > 6,
        )
        assert (state["error"], state["away_s"]) == ("", 0.0)
        assert running.decided() == 6
    with Reader.open(path) as reader:
        (run_id,) = reader.run_ids()
        log = WitnessLog(path)
        sequence = running.decisions()[-1].sequence
        proof = log.prove(reader.connection, 1, sequence)
        assert json.loads(proof["leaves"][0]["entry"])["run"] == run_id
        opening = log.leaves[log.find(1, np.array([0])).item()]
        first = min(step.sequence for step in running.decisions())
        assert opening["last"] < first  # the run's row and start are a leaf before it
    assert "was in the log before" in judge([saved(tmp_path, proof)], key, [service.key])[0]


async def hang(_request: web.Request) -> web.Response:
    await asyncio.sleep(60)  # network time
    return web.Response(status=200)


async def nonsense(_request: web.Request) -> web.Response:
    return web.Response(text="— nobody AAAA\n")


async def binary(_request: web.Request) -> web.Response:
    return web.Response(body=b"\xff" * 100_000)


async def broken(_request: web.Request) -> web.Response:
    return web.Response(status=500)


async def redirected(_request: web.Request) -> web.Response:
    return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})


async def longer(_request: web.Request) -> web.Response:
    return web.Response(status=409, text="999999\n")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (hang, "does not answer (TimeoutError)"),
        (nonsense, "does not sign with a key that [witness] keys names"),
        (binary, "does not answer (UnicodeDecodeError)"),
        (broken, "answers 500"),
        (redirected, "answers 307"),
        (longer, "knows another history of this log, of 999999 leaves"),
    ],
)
async def test_a_witness_that_fails_delays_no_decision_and_is_named(
    tmp_path: Path,
    answer: Callable[[web.Request], Awaitable[web.Response]],
    sentence: str,
) -> None:
    path = tmp_path / "run.db"
    service = WitnessService(tmp_path, make_key(witness_folder(path) / "key", ORIGIN, PLAIN))
    service.answer = answer
    loop = asyncio.get_running_loop()
    async with (
        service.served() as section,
        ScriptedServer() as server,
        daemon(server, path, witness=section) as running,
    ):
        begun_s = loop.time()
        await running.close_bars(5)
        assert loop.time() - begun_s < 5.0  # network time: a witness has ten seconds to answer
        assert running.decided() == 5
        state = await until_told(running, path, lambda state: state["error"])
        assert sentence in state["error"]
        assert state["cosigned"] == 0
        service.answer = None
        await until_told(running, path, lambda state: state["cosigned"] == state["leaves"])


# ---------------------------------------------------------------- without a daemon


def companion(case: Any, send: Send, *urls: str) -> Witnessing:
    section = WitnessSection(url=urls or ("http://w1",), keys=(key_text(case.witness),))
    keys = witness_keys(section, case.database)
    return Witnessing(section, keys, case.database, builders.run(), SystemClock(), send)


def sender(cosigner: Cosigner, ahead_s: int = 0) -> Send:
    async def send(_url: str, body: bytes | None, _kind: str) -> tuple[int, bytes]:
        status, text = cosigner.add_checkpoint((body or b"").decode(), now_s() + ahead_s)
        return status, text.encode()

    return send


async def over_bars(work: Witnessing) -> None:
    """Let three bars close."""
    for _ in range(3):
        work.observe(builders.step(builders.bar()))
        await asyncio.sleep(1)  # of the loop's time


async def test_a_clock_that_differs_is_named_and_its_date_is_kept(tmp_path: Path) -> None:
    case = witnessed(tmp_path, bars=4)
    work = companion(case, sender(case.cosigner, ahead_s=3600))
    async with work.in_background(pytest.fail):
        await until(lambda: work.status()["error"])
    assert work.status()["cosigned"] == 6
    assert "has a clock that differs by 3600 s from this machine's" in str(work.status()["error"])


async def test_a_bar_is_submitted_at_once_whatever_failed_before(tmp_path: Path) -> None:
    """Between two bars the pauses double; the longest is five minutes."""
    case, loop, tried_s, is_away = witnessed(tmp_path, bars=4), asyncio.get_running_loop(), [], True

    async def send(url: str, body: bytes | None, kind: str) -> tuple[int, bytes]:
        tried_s.append(loop.time())
        if is_away:
            raise ConnectionError
        return await sender(case.cosigner)(url, body, kind)

    work = companion(case, send)
    async with work.in_background(pytest.fail):
        await asyncio.sleep(900)  # of the loop's time
        pauses_s = [late - early for early, late in itertools.pairwise(tried_s)]
        assert [round(each) for each in pauses_s] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
        is_away, bar_s = False, loop.time()
        work.observe(builders.step(builders.bar()))
        await until(lambda: work.status()["cosigned"] == 6)
        assert tried_s[-1] - bar_s < 1


@pytest.mark.parametrize("copies_all", [False, True])
async def test_a_log_that_was_put_back_is_never_signed_over(
    tmp_path: Path, copies_all: bool
) -> None:
    """The record alone is an older copy, or the folder of the log too."""
    case = witnessed(tmp_path, bars=4)
    folder, older = witness_folder(case.database), tmp_path / "older"
    work = companion(case, sender(case.cosigner))
    async with work.in_background(pytest.fail):
        await until(lambda: work.status()["cosigned"] == 6)
    shutil.copytree(folder, older / folder.name)
    shutil.copy(case.database, older / "run.db")
    record_run(case.database, 1, bars=4)
    work = companion(case, sender(case.cosigner))
    async with work.in_background(pytest.fail):
        await until(lambda: work.status()["cosigned"] == 12)
    signed = (folder / "checkpoint").read_text("utf-8")
    shutil.copy(older / "run.db", case.database)
    if copies_all:
        shutil.rmtree(folder)
        shutil.copytree(older / folder.name, folder)
    record_run(case.database, 2, bars=4)
    before = (folder / "checkpoint").read_text("utf-8")
    work = companion(case, sender(case.cosigner))
    async with work.in_background(pytest.fail):
        await until(lambda: work.status()["error"])
        await over_bars(work)
    sentence = (
        "knows another history" if copies_all else "an older copy of the database was put back"
    )
    assert sentence in str(work.status()["error"])
    after = (folder / "checkpoint").read_text("utf-8")
    assert after == before
    assert (after == signed) is not copies_all


async def test_one_key_on_two_machines_is_told_to_the_second(tmp_path: Path) -> None:
    case = witnessed(tmp_path, bars=4)
    other = tmp_path / "other"
    shutil.copytree(witness_folder(case.database), other / "run.db.witness")
    record_run(other / "run.db", 7, bars=4)
    first = companion(case, sender(case.cosigner))
    second = companion(case._replace(database=other / "run.db"), sender(case.cosigner))
    async with first.in_background(pytest.fail):
        await until(lambda: first.status()["cosigned"] == 6)
    async with second.in_background(pytest.fail):
        await until(lambda: second.status()["error"])
        signed = WitnessLog(other / "run.db").signed
        record_run(other / "run.db", 8, bars=4)
        await over_bars(second)
    assert WitnessLog(other / "run.db").signed == signed
    assert "or the key is used twice; nothing is signed over it" in str(second.status()["error"])


async def test_drawn_faults_never_fork_the_log_and_all_is_dated_after_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that are lost after the witness signed, errors and nonsense, for each request."""
    monkeypatch.setattr(background, "PAUSE_S", (0.001, 0.002))
    case, rng, is_over = witnessed(tmp_path, bars=2), random.Random(5), False
    roots: dict[int, set[bytes]] = {}

    async def send(url: str, body: bytes | None, kind: str) -> tuple[int, bytes]:
        note = Note.parse((body or b"").decode().partition("\n\n")[2])
        roots.setdefault(note.size, set()).add(note.root)
        fault = "none" if is_over else rng.choice(("none", "lost", "away", "status", "nonsense"))
        if fault == "away":
            raise ConnectionError
        answer = await sender(case.cosigner)(url, body, kind)
        if fault == "lost":
            raise TimeoutError
        nonsense = rng.choice(("", "— x\n", "\0", "— a b\n")).encode()
        return {"status": (503, b""), "nonsense": (200, nonsense)}.get(fault, answer)

    for number in range(12):
        is_over = number == 11
        work = companion(case, send)
        async with work.in_background(pytest.fail):
            for _ in range(20):
                work.observe(builders.step(builders.bar()))
                await asyncio.sleep(0.002)
            if is_over:
                await until(lambda: work.status()["cosigned"] == work.status()["leaves"])  # noqa: B023
        record_run(case.database, 20 + number, bars=2)
    assert not (witness_folder(case.database) / "ended").exists()
    assert {len(each) for each in roots.values()} == {1}
    assert len(roots) > 3


def test_the_metrics_say_since_when_a_commit_waits(tmp_path: Path) -> None:
    case = witnessed(tmp_path, bars=2)

    async def metrics() -> str:
        work = companion(case, sender(case.cosigner))
        monitor = Monitor(run=builders.run(), clock=SystemClock())
        monitor.companions = {"witness": work.status}
        return generate_latest(registry_of(monitor)).decode()

    text = asyncio.run(metrics())
    assert "\ntracepaper_witness_horizon_seconds 60.0\n" in text
    assert "\ntracepaper_witness_away_seconds " in text


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"keys": ()}, "name the key that `witness serve` prints"),
        ({"keys": ("x",)}, "is no key of Ed25519 or no file, or was copied wrongly"),
    ],
)
def test_a_section_that_dates_nothing_is_refused_at_the_start(
    tmp_path: Path, section: dict[str, Any], sentence: str
) -> None:
    case = witnessed(tmp_path, bars=2)
    given = WitnessSection(url=("http://w1",), **section)
    with pytest.raises(ConfigInvalid, match=sentence):
        witness_keys(given, case.database)
    right = WitnessSection(url=("http://w1",), keys=(key_text(case.witness),))
    assert witness_keys(right, case.database) == [case.witness]
    shutil.copy(case.database, tmp_path / "copied.db")  # without its folder
    with pytest.raises(ConfigInvalid, match=r"copied.db.witness/key cannot be read .*makes one"):
        witness_keys(right, tmp_path / "copied.db")
    assert witness_keys(WitnessSection(), tmp_path / "other.db") == []
