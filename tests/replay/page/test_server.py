"""The page's server over a real socket: files, policy, refusals, the stream."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType
from aiohttp.typedefs import URL  # type: ignore[attr-defined]
from page_cases import shown_of

from tracepaper.replay.page import interface, server
from tracepaper.replay.page.process import HEAVY, STREAMS
from tracepaper.replay.page.routes import PREFIX, ROUTES
from tracepaper.replay.page.server import POLICY, serving

pytestmark = pytest.mark.sockets


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
        is_slow = HEAVY.fullmatch(route.path) or STREAMS.fullmatch(route.path)
        if not is_slow and route.path != "/sweeps/{sweep}":
            path = route.path.format(run=run, sequence=1400, view="fills", left=run, right=run)
            status, document = await answer(client, f"{url}{PREFIX}{path}")
            assert status == 200, (route.path, document)
            assert set(document) >= set(route.answer.__struct_fields__)
    status, document = await answer(client, f"{url}{PREFIX}/openapi.json")
    assert document == json.loads(json.dumps(interface.openapi()))


@pytest.mark.parametrize(
    ("path", "due"),
    [
        ("/runs/nowhere", 404),
        ("/runs/..%2F..%2Fetc%2Fpasswd", 404),
        ("/runs/RUN/candles?points=1", 400),
        ("/runs/RUN/candles?points=20001", 400),
        ("/runs/RUN/candles?from_ms=NaN", 400),
        ("/runs/RUN/marks?from_ms=9007199254740993", 400),
        ("/runs/RUN/candles?instrument=linear:BTCUSDT%00", 400),
        ("/runs/RUN/candles?other=1", 400),
        ("/runs/RUN/candles?points=9&points=10", 400),
        ("/runs/RUN/decisions/99999999", 404),
        ("/runs/RUN/views/decisions?sequence=99999999999999999999", 400),
        ("/runs/RUN/views/fills?databases=1", 400),
        ("/runs/RUN/views/fills?parameters=1", 400),
        ("/runs/RUN/views/fills?price%3D1%3B--=1", 400),
        ("/stream", 400),
    ],
)
async def test_a_wrong_request_gets_one_sentence(
    path: str, due: int, url: str, client: aiohttp.ClientSession, cross_database: Path
) -> None:
    path = path.replace("RUN", shown_of(cross_database).run_id)
    status, document = await answer(client, URL(f"{url}{PREFIX}{path}", encoded=True))  # type: ignore[arg-type]
    assert status == due
    assert document["error"].endswith((".", "all."))


async def test_no_file_beside_the_assets_is_served(url: str, client: aiohttp.ClientSession) -> None:
    for path in ("../answers.py", "..%2Fanswers.py", "%2Fetc%2Fpasswd", "nothing.js"):
        async with client.get(URL(f"{url}/assets/{path}", encoded=True)) as response:
            assert response.status == 404


async def test_databases_that_cannot_be_read_say_why(
    tmp_path: Path, client: aiohttp.ClientSession, cross_database: Path
) -> None:
    empty, text, gone = tmp_path / "empty.db", tmp_path / "<img>.db", tmp_path / "gone.db"
    sqlite3.connect(empty).close()
    text.write_text("no database")
    (tmp_path / "folder.db").mkdir()
    paths = [empty, text, gone, tmp_path / "folder.db", cross_database]
    async with serving(paths, host="127.0.0.1", port=0) as url:
        status, document = await answer(client, f"{url}{PREFIX}/runs")
        assert status == 200
        refused = {row["database"]: row["error"] for row in document["refused"]}
        assert {"empty.db", "<img>.db", "gone.db", "folder.db"} <= refused.keys()
        assert all(text.endswith(".") for text in refused.values()), refused
        assert "Traceback" not in json.dumps(document)
        assert str(tmp_path) not in json.dumps(document)
        for row in document["runs"]:
            status, whole = await answer(client, f"{url}{PREFIX}/runs/{row['run_id']}")
            assert status == 200, whole


async def test_the_stream_greets_with_the_newest_step(
    url: str, client: aiohttp.ClientSession, cross_database: Path
) -> None:
    run = shown_of(cross_database)
    async with client.ws_connect(f"{url}{PREFIX}/stream?run={run.run_id}") as socket:
        hello = await socket.receive_json()
        assert hello["run_id"] == run.run_id
        assert hello["sequence"] == run.columns.span[1]


async def test_readers_beyond_the_limit_are_sent_away(
    url: str, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "READERS_MAX", 2)
    async with (
        client.ws_connect(f"{url}{PREFIX}/stream") as first,
        client.ws_connect(f"{url}{PREFIX}/stream") as two,
    ):
        await asyncio.gather(first.receive_json(), two.receive_json())
        async with client.ws_connect(f"{url}{PREFIX}/stream") as three:
            message = await three.receive()
            assert message.type is WSMsgType.CLOSE
            assert message.data == 1013
