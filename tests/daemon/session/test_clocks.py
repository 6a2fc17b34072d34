"""Public clocks date a note a day; none delays a decision, and each fault is named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import builders
import pytest
from aiohttp import web
from clocks import Authority, Calendar
from waiting import until
from witnessed import Witnessed, saved, witnessed

from tracepaper.daemon.clock import Clock, SystemClock
from tracepaper.daemon.config.sections import WitnessSection
from tracepaper.daemon.session.witnessing import Witnessing, witness_keys
from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.witness.judge import Refused, judge, read_witness
from tracepaper.storage.witness.log import WitnessLog
from tracepaper.storage.witness.publish import publish

pytest.importorskip("opentimestamps", reason="opentimestamps is not installed")
pytest.importorskip("rfc3161_client", reason="rfc3161-client is not installed")

PORT = 8791
URL = f"http://127.0.0.1:{PORT}"
Answer = Callable[[web.Request], Awaitable[web.Response]]


class Served:
    """An authority and a calendar at an address; *answer* stands for theirs while it is set."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.calendar = Authority(folder / "tsa"), Calendar()
        self.answer: Answer | None = None
        self.requests = list[str]()

    async def _answer(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        if self.answer is not None:
            return await self.answer(request)
        body = await request.read()
        if request.path == "/tsr":
            assert request.content_type == "application/timestamp-query"
            return web.Response(body=self.authority.answer(body))
        if request.path == "/digest":
            return web.Response(body=self.calendar.digest(URL, body))
        found = self.calendar.timestamp(bytes.fromhex(request.path.rpartition("/")[2]))
        return web.Response(body=found, status=200 if found else 404)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", PORT).start()
            yield
        finally:
            await runner.cleanup()


class Ahead(SystemClock):
    """A clock that is ahead."""

    ahead_ms = 0

    def wall_ms(self) -> int:
        return super().wall_ms() + self.ahead_ms


def companion(case: Witnessed, *clocks: str, clock: Clock | None = None) -> Witnessing:
    section = WitnessSection(clocks=clocks)
    keys = witness_keys(section, case.database)
    return Witnessing(section, keys, case.database, builders.run(), clock or SystemClock())


def proof_of(case: Witnessed, folder: Path) -> Path:
    with closing(open_reader(case.database)) as reader:
        return saved(folder, WitnessLog(case.database).prove(reader, 1, 3))


async def test_a_clock_alone_dates_a_decision_and_is_asked_once_a_day(tmp_path: Path) -> None:
    case, service = witnessed(tmp_path, bars=4), Served(tmp_path)
    async with service.served():
        work = companion(case, f"{URL}/tsr")
        async with work.in_background(pytest.fail):
            await until_kept(work, lambda: work.status()["cosigned"] == 6)
            for _ in range(3):
                work.observe(bar())
                await asyncio.sleep(1)  # of the loop's time
            assert (work.status()["error"], work.status()["away_s"]) == ("", 0.0)
        assert service.requests == ["/tsr"]
    authority = read_witness(str(service.authority.certificate))
    (sentence,) = judge([proof_of(case, tmp_path)], case.log, [authority])
    assert "by the clock of CN=tsa.example (a public clock, asked once a day); the next" in sentence
    with pytest.raises(Refused, match="None of the given witnesses signed the note"):
        judge([proof_of(case, tmp_path)], case.log, [case.witness])


def bar() -> Any:
    return builders.step(builders.bar())


async def until_kept(work: Witnessing, condition: Callable[[], object]) -> None:
    """Let bars close until *condition* holds."""
    while not condition():
        work.observe(bar())
        await asyncio.sleep(1)  # of the loop's time


async def hang(_request: web.Request) -> web.Response:
    await asyncio.sleep(60)  # network time
    return web.Response(status=200)


async def nonsense(_request: web.Request) -> web.Response:
    return web.Response(body=b"\x30\x03\x02\x01\x00")


async def broken(_request: web.Request) -> web.Response:
    return web.Response(status=503)


async def away(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.parametrize("clock", [f"{URL}/tsr", f"opentimestamps:{URL}"])
@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (hang, "does not answer (TimeoutError)"),
        (away, "does not answer (ClientOSError)"),
        (nonsense, "answers nonsense"),
        (broken, "answers 503"),
    ],
)
async def test_a_clock_that_fails_is_named_and_asked_again(
    tmp_path: Path, clock: str, answer: Answer, fault: str
) -> None:
    case, service = witnessed(tmp_path, bars=4), Served(tmp_path)
    service.answer = answer
    async with service.served():
        work = companion(case, clock)
        async with work.in_background(pytest.fail):
            await until(lambda: work.status()["error"], poll_s=1.0)
            assert work.status()["error"] == f"{clock} {fault}"
            assert (work.status()["leaves"], work.status()["cosigned"]) == (6, 0)
            service.answer = None
            log = WitnessLog(case.database)
            await until_kept(work, lambda: log.clock_files(clock))
            await until(lambda: not work.status()["error"], poll_s=1.0)


async def test_a_token_on_another_hash_is_named_and_not_kept(tmp_path: Path) -> None:
    case, service = witnessed(tmp_path, bars=4), Served(tmp_path)
    query = service.authority.query("another text")

    async def other(_request: web.Request) -> web.Response:
        return web.Response(body=service.authority.answer(query))

    service.answer = other
    async with service.served():
        work = companion(case, f"{URL}/tsr")
        async with work.in_background(pytest.fail):
            await until(lambda: work.status()["error"], poll_s=1.0)
        assert work.status()["error"] == f"{URL}/tsr signs another hash"
    assert WitnessLog(case.database).clock_files("*") == []


async def test_a_calendar_brings_a_note_into_bitcoin_a_day_later(tmp_path: Path) -> None:
    from opentimestamps.core.serialize import BytesDeserializationContext
    from opentimestamps.core.timestamp import DetachedTimestampFile

    case, service, clock = witnessed(tmp_path, bars=4), Served(tmp_path), Ahead()
    name, log = f"opentimestamps:{URL}", WitnessLog(case.database)
    async with service.served():
        work = companion(case, name, clock=clock)
        async with work.in_background(pytest.fail):
            await until_kept(work, lambda: log.clock_files(name, ending="pending"))
            service.calendar.is_mined = True
            clock.ahead_ms = 86_400_000
            await until_kept(work, lambda: log.clock_files(name, ending="ots"))
    with closing(open_reader(case.database)) as reader:
        assert publish(WitnessLog(case.database), reader, tmp_path / "public")["runs"] == 1
    note, proof = (tmp_path / "public" / each for each in ("day.note", "day.note.ots"))
    file = DetachedTimestampFile.deserialize(BytesDeserializationContext(proof.read_bytes()))
    assert file.file_digest == sha256(note.read_bytes()).digest()
    (root,) = filter(None, service.calendar.roots.values())
    assert root in {message for message, _ in file.timestamp.all_attestations()}
    sentences = judge([tmp_path / "public"], case.log, [])
    assert sentences[0] == f"`ots verify {proof}` dates its note."
    assert any("is in the log of 6 leaves" in each for each in sentences)
