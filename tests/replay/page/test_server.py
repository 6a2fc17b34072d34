"""The page's server over a real socket: files, policy, refusals, the stream."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType
from aiohttp.typedefs import URL  # type: ignore[attr-defined]
from page_cases import shown_of
from prometheus_client import CollectorRegistry

from tracepaper.daemon.http.server import Caller, CommandRequest, HttpServer
from tracepaper.replay.page import interface, server
from tracepaper.replay.page.news import STEPS_MAX
from tracepaper.replay.page.routes import PREFIX, ROUTES
from tracepaper.replay.page.server import POLICY, Page, serving


def readers() -> list[int]:
    """Return the processes that read for servers of this one."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    every = {int(one) for file in children for one in file.read_text().split()}
    return [pid for pid in every if b"page.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def answer(client: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    async with client.get(url) as response:
        assert response.headers["Content-Security-Policy"] == POLICY
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        return response.status, json.loads(await response.text())


async def test_every_quick_address_answers(
    url: str, client: aiohttp.ClientSession, cross_database: Path
) -> None:
    run = shown_of(cross_database).run_id
    for route in ROUTES:
        if not route.is_heavy and route.path not in {"/sweeps/{sweep}", "/fleet"}:
            path = route.path.format(run=run, sequence=1400, view="fills", left=run, right=run)
            status, found = await answer(client, f"{url}{PREFIX}{path}")
            assert status == 200, (route.path, found)
            assert set(found) >= set(route.answer.__struct_fields__)
    status, found = await answer(client, f"{url}{PREFIX}/openapi.json")
    assert found == json.loads(json.dumps(interface.openapi()))


@pytest.mark.parametrize(
    ("path", "due"),
    [
        ("/runs/nowhere", 404),
        ("/runs/..%2F..%2Fetc%2Fpasswd", 404),
        ("/nothing", 404),
        ("/runs/RUN/candles?points=1", 400),
        ("/runs/RUN/candles?points=x", 400),
        ("/runs/RUN/candles?other=1", 400),
        ("/runs/RUN/candles?points=9&points=10", 400),
        ("/runs/RUN/candles?instrument=%3Cimg%3E", 400),
        ("/runs/RUN/decisions/99999999", 404),
        ("/runs/RUN/decisions/-1", 404),
        ("/runs/RUN/views/decisions?sequence=99999999999999999999", 400),
        ("/runs/RUN/views/decisions?sequence=-9223372036854775809", 400),
        ("/runs/RUN/views/runs", 404),
        ("/runs/RUN/views/fills?shelf=1", 400),
        ("/runs/RUN/views/fills?asked=1", 400),
        ("/runs/RUN/views/fills?price%3D1%3B--=1", 400),
        ("/stream", 400),
    ],
)
async def test_a_wrong_request_gets_one_sentence(
    path: str, due: int, url: str, client: aiohttp.ClientSession, cross_database: Path
) -> None:
    path = path.replace("RUN", shown_of(cross_database).run_id)
    status, found = await answer(client, URL(f"{url}{PREFIX}{path}", encoded=True))  # type: ignore[arg-type]
    assert status == due
    assert found["error"].endswith((".", "all."))


async def test_foreign_hosts_origins_and_posts_are_refused(
    url: str, client: aiohttp.ClientSession
) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        async with client.get(f"{url}{PREFIX}/runs", headers=headers) as response:
            assert response.status == 403
    async with client.ws_connect(f"{url}{PREFIX}/stream") as socket:
        assert (await socket.receive_json())["type"] == "hello"
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await client.ws_connect(f"{url}{PREFIX}/stream", headers={"Origin": "http://evil.example"})
    async with client.post(f"{url}{PREFIX}/runs", data="x") as response:
        assert response.status == 405


async def test_no_file_beside_the_assets_is_served(url: str, client: aiohttp.ClientSession) -> None:
    for path in ("../answers.py", "..%2Fanswers.py", "%2Fetc%2Fpasswd", "nothing.js"):
        async with client.get(URL(f"{url}/assets/{path}", encoded=True)) as response:
            assert response.status == 404


async def test_the_assets_are_found_behind_a_link(
    url: str, client: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linked").symlink_to(server.ASSETS, target_is_directory=True)
    monkeypatch.setattr(server, "ASSETS", tmp_path / "linked")
    async with client.get(f"{url}/assets/main.js") as response:
        assert response.status == 200


def test_the_documents_name_the_bounds_of_the_stream() -> None:
    text = (Path(__file__).parents[3] / "docs" / "http.md").read_text()
    most, streams = server.AT_WORK_MAX, server.READERS_MAX
    assert f"more than {STEPS_MAX} steps" in text
    assert (
        f"the newest {STEPS_MAX}."
        in interface.openapi()["paths"][f"{PREFIX}/stream"]["get"]["summary"]
    )
    assert f"{most} requests are at work at once, the streams among them, and {streams} str" in text
    assert f"room for {most - streams}" in text


async def test_databases_that_cannot_be_read_say_why(
    tmp_path: Path, client: aiohttp.ClientSession, cross_database: Path
) -> None:
    empty, text, gone = tmp_path / "empty.db", tmp_path / "<img>.db", tmp_path / "gone.db"
    sqlite3.connect(empty).close()
    text.write_text("no database")
    paths = [empty, text, gone, cross_database]
    async with serving(paths, host="127.0.0.1", port=0) as url:
        status, found = await answer(client, f"{url}{PREFIX}/runs")
        assert status == 200
        refused = {one["database"]: one["error"] for one in found["refused"]}
        assert {"empty.db", "<img>.db", "gone.db"} <= refused.keys()
        assert all(one.endswith(".") for one in refused.values()), refused
        assert "Traceback" not in json.dumps(found)
        for row in found["runs"]:
            status, whole = await answer(client, f"{url}{PREFIX}/runs/{row['run_id']}")
            assert status == 200, whole


async def test_a_locked_database_is_answered_when_it_is_free(
    tmp_path: Path, client: aiohttp.ClientSession, cross_database: Path
) -> None:
    database = tmp_path / "run.db"
    shutil.copy(cross_database, database)
    writer = sqlite3.connect(database, isolation_level=None)
    async with serving([database], host="127.0.0.1", port=0) as url:
        writer.execute("BEGIN IMMEDIATE")  # a writer disturbs no reader
        status, _ = await answer(client, f"{url}{PREFIX}/runs")
        assert status == 200
        writer.execute("ROLLBACK")
    writer.close()


async def test_markup_is_text(
    tmp_path: Path, client: aiohttp.ClientSession, cross_database: Path
) -> None:
    database = tmp_path / "run.db"
    shutil.copy(cross_database, database)
    with sqlite3.connect(database) as raw:
        raw.execute("UPDATE outcomes SET reason = '</script><img src=x onerror=alert(1)>'")
    async with serving([database], host="127.0.0.1", port=0) as url:
        run = shown_of(database).run_id
        async with client.get(f"{url}{PREFIX}/runs/{run}/decisions/1400") as response:
            assert response.content_type == "application/json"
            assert "<img src=x" in (await response.json())["reason"]


async def test_a_reader_process_that_dies_is_started_again(
    url: str, client: aiohttp.ClientSession
) -> None:
    status, _ = await answer(client, f"{url}{PREFIX}/runs")
    assert status == 200
    for pid in readers():
        os.kill(pid, signal.SIGKILL)
    found = [await answer(client, f"{url}{PREFIX}/runs") for _ in range(2)]
    assert found[-1][0] == 200


async def test_the_stream_greets_with_the_newest_step(
    url: str, client: aiohttp.ClientSession, cross_database: Path
) -> None:
    shown = shown_of(cross_database)
    async with client.ws_connect(f"{url}{PREFIX}/stream?run={shown.run_id}") as socket:
        hello = await socket.receive_json()
        assert hello["run_id"] == shown.run_id
        assert hello["sequence"] == shown.columns.span[1]


async def test_readers_beyond_the_limit_are_sent_away(
    url: str, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "READERS_MAX", 2)
    async with (
        client.ws_connect(f"{url}{PREFIX}/stream") as one,
        client.ws_connect(f"{url}{PREFIX}/stream") as two,
    ):
        await asyncio.gather(one.receive_json(), two.receive_json())
        async with client.ws_connect(f"{url}{PREFIX}/stream") as three:
            message = await three.receive()
            assert message.type is WSMsgType.CLOSE
            assert message.data == 1013


def test_the_policy_allows_nothing_inline() -> None:
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY


def test_the_server_knows_which_addresses_are_heavy_and_which_answer_in_lines() -> None:
    for route in ROUTES:
        path = re.sub(r"\{\w+\}", "x", route.path)
        assert bool(server.HEAVY.fullmatch(path)) == route.is_heavy, path
        assert bool(server.STREAMS.fullmatch(path)) == route.streams, path


async def test_a_daemon_s_server_shows_the_page_and_takes_no_word_without_its_token(
    client: aiohttp.ClientSession, cross_database: Path
) -> None:
    made: list[Page] = []

    def page() -> Page:
        status: dict[str, object] = {
            "state": "running",
            "halted_by": None,
            "not_ready": [],
            "counters": {"gaps": 3},
            "notices": {"sent": 2},
            "parity": {"due_ms": 7, "checking": True},
            "feeds": [{"instrument": "linear:BTCUSDT", "bar_s": 1.5, "quote_s": None}],
            "frame_s": 0.5,
            "commit_s": 2.5,
            "latencies": [],
        }
        made.append(Page([cross_database], served=run, status=lambda: status))
        return made[-1]

    async def submit(_request: CommandRequest, _caller: Caller) -> int:
        raise AssertionError("no command may come through")

    run = shown_of(cross_database).run_id
    async with HttpServer(
        host="127.0.0.1",
        port=0,
        tokens={"database": "only-the-owner-knows"},
        status=lambda: {"ready": True},
        submit=submit,
        registry=CollectorRegistry(),
        page=page,
    ) as daemon:
        assert not made
        status, found = await answer(client, f"{daemon.url}{PREFIX}/runs/{run}/health")
        assert status == 200
        assert found["is_live"]
        assert found["counters"] == {"gaps": 3, "notices_sent": 2}
        assert (found["frame_s"], found["commit_s"]) == (0.5, 2.5)
        assert found["feeds"][0]["bar_s"] == 1.5
        assert (found["parity_due_ms"], found["is_checking"]) == (7, True)
        async with client.get(f"{daemon.url}/") as response:
            assert response.status == 200
            assert response.content_type == "text/html"
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with client.post(
                f"{daemon.url}/command", json={"kind": "HALT"}, headers=headers
            ) as response:
                assert response.status == 401
    assert len(made) == 1
