"""Planted attacks on the page and its interface all end in a sentence."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sqlite3
import sys
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import URL  # type: ignore[attr-defined]
from browser import browsing, complaints
from msgspec import convert
from page_cases import shown_of
from playwright.sync_api import Page as PageOfBrowser
from programs import BIN, Program
from prometheus_client import CollectorRegistry
from report_cases import BTC, cross, replayed
from structlog.testing import capture_logs
from waiting import deadline_s, until

from tracepaper.daemon.config.sections import HttpSection
from tracepaper.daemon.http.client import token_file
from tracepaper.daemon.http.server import Caller, CommandRequest, HttpServer
from tracepaper.daemon.session.child import messages_of
from tracepaper.replay.page import process, reader, server
from tracepaper.replay.page.databases import Databases
from tracepaper.replay.page.process import ReaderProcess, ReplyFrame
from tracepaper.replay.page.routes import PREFIX, ROUTES, ReadRoute
from tracepaper.replay.page.server import READERS_MAX, Page, serving
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.types.market import CommandKind

pytestmark = pytest.mark.sockets

TOKEN: Final = "only-the-owner-knows"

# ---------------------------------------------------------------- a daemon's server


@dataclass
class AttackedServer:
    """A daemon's server that stores the steps of a test."""

    url: str
    page: Page
    commands: list[tuple[CommandKind, str]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@asynccontextmanager
async def daemon_of(database: Path) -> AsyncIterator[AttackedServer]:
    run = shown_of(database).run_id
    page = Page([database], served=run)
    commands: list[tuple[CommandKind, str]] = []

    async def submit(request: CommandRequest, _caller: Caller) -> int:
        commands.append((request.kind, request.note))
        return 1

    async with HttpServer(
        HttpSection(port=0),
        tokens={"database": TOKEN},
        status=lambda: {"ready": True},
        submit=submit,
        registry=CollectorRegistry(),
        page=lambda: page,
    ) as http_server:
        yield AttackedServer(http_server.url, page, commands)


@pytest.fixture
async def daemon(cross_database: Path) -> AsyncIterator[AttackedServer]:
    async with daemon_of(cross_database) as served:
        yield served


async def answer(client: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    async with client.get(URL(url, encoded=True)) as response:
        text = await response.text()
        assert "Traceback" not in text
        assert response.content_type == "application/json", text
        return response.status, json.loads(text)


# ---------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    ("path", "due"), [("/", 200), ("/status", 403), (f"{PREFIX}/runs", 403), ("/assets/x.js", 403)]
)
async def test_a_link_of_another_site_leads_to_the_page_alone(
    daemon: AttackedServer, client: aiohttp.ClientSession, path: str, due: int
) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    async with client.get(f"{daemon.url}{path}", headers=headers) as response:
        assert response.status == due


async def test_every_answer_has_a_policy_without_anything_inline(
    daemon: AttackedServer, client: aiohttp.ClientSession
) -> None:
    requests = [
        *(("GET", path) for path in ("/", "/assets/main.js", "/assets/none", "/none", "/livez")),
        *(("GET", path) for path in ("/status", "/metrics", f"{PREFIX}/runs", f"{PREFIX}/none")),
        *(("GET", path) for path in (f"{PREFIX}/", f"{PREFIX}/runs/x", f"{PREFIX}/stream")),
        *(("POST", path) for path in ("/", "/command", f"{PREFIX}/runs")),
        ("DELETE", "/"),
        ("GET", "/assets/%00"),
        ("GET", f"/assets/{'a' * 3_000}"),
    ]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for method, path in requests:
        address = URL(f"{daemon.url}{path}", encoded=True)
        async with client.request(method, address, headers=headers) as response:
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy, path
            assert "unsafe" not in policy, path
            assert response.headers["X-Content-Type-Options"] == "nosniff", path
            assert response.status < 500, path


# ---------------------------------------------------------------- what is asked


# ---------------------------------------------------------------- slow readers

UPGRADE: Final = (
    "GET /api/v1/stream HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


async def plugs(port: int, count: int, stack: ExitStack) -> list[socket.socket]:
    """Open the stream *count* times with readers that never read."""
    loop = asyncio.get_running_loop()
    sockets = []
    for _ in range(count):
        plug = stack.enter_context(closing(socket.socket()))
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the smallest that there is
        plug.setblocking(False)
        with suppress(OSError):  # sent away already
            await loop.sock_connect(plug, ("127.0.0.1", port))
            await loop.sock_sendall(plug, UPGRADE.format(port=port).encode())
        sockets.append(plug)
    return sockets


@pytest.mark.parametrize(
    "count", [1_000, pytest.param(10_000, marks=(pytest.mark.slow, pytest.mark.long))]
)
async def test_readers_that_never_read_keep_nobody_out(
    daemon: AttackedServer, client: aiohttp.ClientSession, count: int
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < (files := count + 1_000):
        pytest.skip(f"a process may open {hard} files here, fewer than {files}")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))
        await plugs(daemon.port, count, stack)
        await until(lambda: daemon.page.readers == READERS_MAX, poll_s=0.01)
        async with client.get(f"{daemon.url}/status") as response:
            assert response.status == 200
        word = {"kind": "HALT"}
        async with client.post(f"{daemon.url}/command", json=word, headers=headers) as response:
            assert response.status == 200
        status, _ = await answer(client, f"{daemon.url}{PREFIX}/runs")
        assert status == 200
    assert [kind for kind, _ in daemon.commands] == [CommandKind.HALT]
    await until(lambda: daemon.page.readers == 0, poll_s=0.01)


async def test_a_reader_that_never_reads_loses_its_connection(
    daemon: AttackedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    greeting = {"run_id": "", "sequence": 0, "padding": "x" * (16 << 20)}  # more than sockets hold
    hello = ReplyFrame(process.ANSWER, 200, json.dumps({"hello": greeting}).encode())
    sockets: list[TransportSocket] = []

    async def greet(_reader: ReaderProcess, _request: dict[str, Any]) -> ReplyFrame:
        return hello

    handle = Page.handle

    async def record(page: Page, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        sockets.append(request.transport.get_extra_info("socket"))
        return await handle(page, request)

    monkeypatch.setattr(ReaderProcess, "answer", greet)
    monkeypatch.setattr(Page, "handle", record)
    monkeypatch.setattr(server, "HEARTBEAT_S", 0.1)
    with ExitStack() as stack:
        await plugs(daemon.port, 2, stack)
        await until(lambda: len(sockets) == 2, poll_s=0.01)
        await until(lambda: all(each.fileno() < 0 for each in sockets), poll_s=0.01)
        assert daemon.page.readers == 0


async def test_questions_beyond_what_it_answers_leave_the_operator_his_place(
    daemon: AttackedServer, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "AT_WORK_MAX", 2)
    async with (
        client.ws_connect(f"{daemon.url}{PREFIX}/stream") as first,
        client.ws_connect(f"{daemon.url}{PREFIX}/stream") as two,
    ):
        await asyncio.gather(first.receive_json(), two.receive_json())
        status, document = await answer(client, f"{daemon.url}{PREFIX}/runs")
        assert (status, document["error"][-10:]) == (503, "ask again.")
        async with client.get(f"{daemon.url}/status") as response:
            assert response.status == 200


async def test_work_ends_with_the_reader_who_asked_for_it(
    url: str, client: aiohttp.ClientSession, cross_database: Path
) -> None:
    run = shown_of(cross_database).run_id
    status, _ = await answer(client, f"{url}{PREFIX}/runs/{run}")
    assert status == 200
    await until(lambda: len(working()) >= 2, poll_s=0.01)  # who derives decisions is started too
    quick = working()
    async with client.get(f"{url}{PREFIX}/runs/{run}/verify") as response:
        assert json.loads(await response.content.readline())["type"] == "progress"
        (pid,) = set(working()).difference(quick)
        response.close()
    await until(lambda: pid not in working(), poll_s=0.01)
    status, document = await answer(client, f"{url}{PREFIX}/runs/{run}/refusals")
    assert status == 200, (pid, document)


async def test_a_child_that_cannot_be_started_is_said(
    cross_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    reading = ReaderProcess([cross_database], served="", is_heavy=False)
    await reading.prepare()
    reply_frame = await reading.answer({"path": "/runs", "query": {}})
    assert reply_frame.status == 503
    assert b"The page reader process could not begin" in reply_frame.body
    assert b"ask again." in reply_frame.body
    await reading.close()


async def test_the_time_of_an_answer_ends_the_answer_and_not_who_reads_it(
    cross_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    now, late_s = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: now() + late_s)
    heavy = ReaderProcess([cross_database], served="", is_heavy=True)
    run = shown_of(cross_database).run_id
    frames = heavy.ask({"path": f"/runs/{run}/verify", "query": {}})
    try:
        assert (await anext(frames)).kind == process.PROGRESS
        late_s = 2 * process.HEAVY_LIMIT_S
        for _ in range(5):  # the reader is at something else
            await asyncio.sleep(0)
        async for frame in frames:
            last = frame
        assert last.status == 503
        assert b"took too long" in last.body
        await until(lambda: not working(), poll_s=0.01)
    finally:
        await heavy.close()


async def test_what_no_request_may_raise_is_answered_and_logged(
    cross_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "import tracepaper.replay.page.runs as runs\ndef fail(*_, **__):\n"
    broken += "    raise NotImplementedError('planted')\nruns.runs = fail\n"
    (tmp_path / "sitecustomize.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    reading = ReaderProcess([cross_database], served="", is_heavy=False)
    try:
        with capture_logs() as logged:
            reply_frame = await reading.answer({"path": "/runs", "query": {}})
            assert reply_frame.status == 409
            assert b"cannot be answered (NotImplementedError: planted)" in reply_frame.body
            run = shown_of(cross_database).run_id
            assert (await reading.answer({"path": f"/runs/{run}", "query": {}})).status == 200
            sentence = "NotImplementedError: planted"
            await until(lambda: sentence in [row["line"] for row in logged], poll_s=0.01)
    finally:
        await reading.close()


@pytest.fixture
async def reading(cross_database: Path) -> AsyncIterator[ReaderProcess]:
    reader_process = ReaderProcess([cross_database], served="", is_heavy=False)
    yield reader_process
    await reader_process.close()


def working() -> list[int]:
    """Return the running reader processes of this one."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = []
    for pid in {int(part) for file in children for part in file.read_text().split()}:
        with suppress(OSError):
            if b"page.reader" in Path(f"/proc/{pid}/cmdline").read_bytes():
                pids.append(pid)
    return pids


async def test_a_reader_process_that_dies_is_started_again(
    url: str, client: aiohttp.ClientSession
) -> None:
    status, _ = await answer(client, f"{url}{PREFIX}/runs")
    assert status == 200
    for pid in working():
        os.kill(pid, signal.SIGKILL)
    answers = [await answer(client, f"{url}{PREFIX}/runs") for _ in range(2)]
    assert answers[-1][0] == 200


async def test_decisions_are_derived_by_a_process_that_stays(
    client: aiohttp.ClientSession, cross_database: Path
) -> None:
    path = f"{PREFIX}/runs/{shown_of(cross_database).run_id}/decisions/1400/verify"
    before, children = set(working()), []
    async with serving([cross_database], host="127.0.0.1", port=0) as url:
        for _ in range(2):
            async with client.get(f"{url}{path}") as response:
                done = json.loads((await response.text()).splitlines()[-1])
                assert (done["type"], done["result"]["title"]) == ("done", "✓ Same")
            children.append(set(working()) - before)
    assert children[0] == children[1]
    assert len(children[0]) == 2  # the other one reads for charts


async def test_a_page_that_is_closed_starts_no_child(reading: ReaderProcess) -> None:
    others = set(working())
    answering = asyncio.create_task(reading.answer({"path": "/runs", "query": {}}))
    await until(lambda: set(working()) - others, poll_s=0.01)
    preparing = asyncio.create_task(reading.prepare())  # its turn comes once that has ended
    await asyncio.sleep(0)
    await reading.close()
    assert (await answering).status == 503
    await preparing
    assert set(working()) <= others


async def test_a_child_that_was_idle_ends_and_is_started_again(reading: ReaderProcess) -> None:
    request = {"path": "/runs", "query": {}}
    others = set(working())  # of what other tests have left
    for _ in range(2):
        assert (await reading.answer(request)).status == 200
        (pid,) = set(working()) - others
        os.kill(pid, signal.SIGALRM)  # as its own alarm does
        ended = partial(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        await until(lambda ended=ended: ended() is not None, poll_s=0.01)  # type: ignore[misc]


# ---------------------------------------------------------------- databases


def copied(database: Path, folder: Path, *changes: str) -> Path:
    """Copy *database* and change the copy by SQL."""
    copy = folder / "copy.db"
    with closing(sqlite3.connect(database)) as connection, closing(sqlite3.connect(copy)) as two:
        connection.backup(two)
        for change in changes:
            two.execute(change)
        two.commit()
    return copy


def address(route: ReadRoute, run: str) -> str:
    """Return the address of *route* for the tests."""
    return route.path.format(run=run, sequence=1400, view="fills", left=run, right=run, sweep="x")


def refusal(path: str, status: int, document: Any) -> dict[str, str]:
    """Return {path: sentence} if *path* is refused; the error must be one sentence."""
    if status == 200:
        return {}
    assert 400 <= status < 500 or status == 503, (path, status)
    assert document["error"].endswith((".", "all.")), (path, document)
    assert "Traceback" not in document["error"]
    return {path: document["error"]}


def every_answer(database: Path, run: str) -> dict[str, str]:
    """Request every address in this process; return the refusals."""
    refused: dict[str, str] = {}
    databases = Databases([database])
    for route in ROUTES:
        out, path = BytesIO(), address(route, run)
        reader.respond(databases, {"path": path, "query": {}}, out)
        out.seek(0)
        frames = [convert(frame, process.ReplyFrame) for frame in messages_of(out)]
        assert frames[-1].kind in {process.ANSWER, process.REFUSED}, path
        if frames[-1].kind == process.REFUSED:
            refused |= refusal(path, frames[-1].status, json.loads(frames[-1].body))
    return refused


def test_the_page_reads_nothing_after_an_answer(cross_database: Path, tmp_path: Path) -> None:
    """A transaction that stays open would keep a daemon from its start (docs/storage.md, S3)."""
    copy, run = copied(cross_database, tmp_path), shown_of(cross_database).run_id
    writer, databases = open_writer(copy), Databases([copy])
    writer.driver.execute("PRAGMA busy_timeout = 1")
    for route in (*ROUTES, *ROUTES):
        writer.driver.execute("UPDATE runs SET warnings = warnings || ' '")
        out = BytesIO()
        reader.respond(databases, {"path": address(route, run), "query": {}}, out)
        emptied = writer.driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert emptied == (0, 0, 0), route.path
    writer.close()


def test_flipped_pages_are_answered_in_sentences(tmp_path: Path, cross_database: Path) -> None:
    content = bytearray(copied(cross_database, tmp_path).read_bytes())
    for at in range(50_000, len(content), 40_000):
        content[at] ^= 0xFF
    (tmp_path / "flipped.db").write_bytes(content)
    every_answer(tmp_path / "flipped.db", shown_of(cross_database).run_id)


async def test_a_locked_database_refuses_and_answers_when_it_is_free(
    tmp_path: Path, client: aiohttp.ClientSession, cross_database: Path
) -> None:
    database, run = copied(cross_database, tmp_path), shown_of(cross_database).run_id
    async with serving([database], host="127.0.0.1", port=0) as url:
        with closing(sqlite3.connect(database, isolation_level=None)) as writer:
            writer.execute("PRAGMA locking_mode = EXCLUSIVE")
            writer.execute("BEGIN EXCLUSIVE")
            status, document = await answer(client, f"{url}{PREFIX}/runs/{run}")
            assert status in {409, 503}
            assert "lock" in document["error"]
            writer.execute("ROLLBACK")
        status, _ = await answer(client, f"{url}{PREFIX}/runs/{run}")
        assert status == 200


# ---------------------------------------------------------------- secrets


async def test_no_answer_holds_a_secret_or_where_files_lie(
    tmp_path: Path, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hunter2Hunter2hunter2"
    monkeypatch.setenv("PLANTED_ADDRESS", f"json://user:{secret}@127.0.0.1:9/x")
    notify = '[notify]\naddresses = ["env:PLANTED_ADDRESS"]\n'
    database = replayed(tmp_path, cross() + notify, "--data", BTC)
    token_file(database).write_text(TOKEN)
    run = shown_of(database).run_id
    async with daemon_of(database) as daemon:
        for route in ROUTES:
            path = address(route, run).replace("/fills", "/events")
            async with client.get(f"{daemon.url}{PREFIX}{path}") as response:
                text = await response.text()
            assert secret not in text, path
            assert TOKEN not in text, path
            assert str(tmp_path) not in text, path
        async with client.get(f"{daemon.url}{PREFIX}/runs/{run}") as response:
            assert "env:PLANTED_ADDRESS" in await response.text()  # the name alone


# ---------------------------------------------------------------- in a browser

PLANT: Final = "<img src=x onerror=window.planted=1>"
PLACES: Final = ("", "/account", "/gates", "/health", "/report", "/compare")


@contextmanager
def shown_in_browser(database: Path) -> Iterator[tuple[PageOfBrowser, str, list[str]]]:
    """Serve *database* by ``tracepaper ui``; yield a page, its address and its errors."""
    command = [str(BIN / "tracepaper"), "ui", "--db", str(database)]
    program = Program(command, database.parent, name="ui")
    try:
        program.wait_until(lambda: "The page is " in program.out)
        url = program.out.split("The page is ", 1)[1].split("/ ", 1)[0]
        with browsing() as browser:
            page = browser.new_page()
            page.set_default_timeout(1_000 * deadline_s(30))
            yield page, url, complaints(page)
    finally:
        program.kill()


def test_markup_in_a_record_is_text_in_every_place(tmp_path: Path, cross_database: Path) -> None:
    word = json.dumps({"kind": "HALT", "note": PLANT})
    database = copied(
        cross_database,
        tmp_path,
        f"UPDATE runs SET strategy = '{PLANT}', warnings = '[\"{PLANT}\"]'",
        f"UPDATE outcomes SET reason = '{PLANT}'",
        f"UPDATE events SET kind = 'command', content = '{word}' WHERE kind = 'end'",
    )
    named = database.rename(tmp_path / f"{PLANT}.db")
    run = shown_of(named).run_id
    with shown_in_browser(named) as (page, url, problems):
        for place in ("#/runs", *(f"#/run/{run}{rest}" for rest in PLACES)):
            page.goto(f"{url}/{place}")
            page.locator("h1").first.wait_for()
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.querySelectorAll('img, [onerror]').length") == 0, place
            assert page.evaluate("window.planted") is None, place
            assert PLANT in page.inner_text("body"), place
            if place.endswith(("account", "gates", "report", "compare")):
                assert PLANT in page.inner_text(".warning[role=alert]"), place
        assert problems == []


@pytest.mark.parametrize(
    ("forged", "verdict"),
    [((), "Sound."), (("UPDATE steps SET close = close + 1 WHERE sequence = 1400",), "Not sound.")],
)
def test_only_a_run_that_was_derived_again_is_called_sound(
    tmp_path: Path, cross_database: Path, forged: tuple[str, ...], verdict: str
) -> None:
    database = copied(cross_database, tmp_path, *forged)
    with shown_in_browser(database) as (page, url, _):
        page.goto(f"{url}/#/run/{shown_of(database).run_id}/health")
        element = page.locator("main h1")
        element.filter(has_text=verdict).wait_for()  # a short run is derived again without a click
        assert page.locator("main .warning").count() == bool(forged)
        page.get_by_role("button", name="Verify the run").click()
        page.get_by_text("Derived again, now.").wait_for()
        assert verdict in element.inner_text()
