"""The five lines of ``docs/telegram.md`` send notices to a server that plays Telegram."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from apprise.plugins.telegram import NotifyTelegram
from bybit_server import ScriptedServer
from daemon_under_test import daemon
from programs import ROOT
from readme import blocks

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.http.client import ask

pytestmark = pytest.mark.sockets

CLOSINGS = """
SELECT exit_price, net FROM v_trades WHERE exit_reason LIKE 'exits%'
"""


class TelegramServer:
    """Bots of Telegram on loopback: the path and the document of each request."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.messages: list[dict[str, Any]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.paths.add(request.path)
        self.messages.append(await request.json())
        return web.json_response({"ok": True, "result": {}})

    def text(self) -> str:
        return "\n".join(message["text"] for message in self.messages)


@asynccontextmanager
async def telegram(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TelegramServer]:
    """Serve bots, and let Apprise take them for Telegram's."""
    server, application = TelegramServer(), web.Application()
    application.router.add_post("/{path:.*}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        monkeypatch.setattr(NotifyTelegram, "notify_url", f"http://{host}:{port}/bot")
        yield server
    finally:
        await runner.cleanup()


async def test_the_five_lines_send_what_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "telegram.md").read_text("utf-8")
    (toml,) = (block.text for block in blocks(page) if block.language == "toml")
    address = re.search(r"export TELEGRAM=tgram://(\S+?)/(\d+);", page)
    assert address is not None
    monkeypatch.setenv("TELEGRAM", f"tgram://{address[1]}/{address[2]}")
    (tmp_path / "telegram.toml").write_text(toml, encoding="utf-8")

    async with telegram(monkeypatch) as bots, ScriptedServer() as server:
        words = ["notify", "test", "-c", str(tmp_path / "telegram.toml")]
        assert await asyncio.to_thread(invoke, words) == 0
        (first,) = bots.messages
        assert first["chat_id"] == int(address[2])

        sections: dict[str, Any] = tomllib.loads(toml)
        sections["exits"] = {"minimal_roi": {"0": "1%"}}
        async with daemon(server, tmp_path / "run.db", **sections) as running:
            await running.close_bars(24)
            halt: dict[str, object] = {"kind": "HALT", "note": "lunch"}
            await asyncio.to_thread(ask, tmp_path / "run.db", "/command", halt)
            await running.until(lambda: "lunch" in bots.text())
    assert bots.paths == {f"/bot{address[1]}/sendMessage"}
    with closing(sqlite3.connect(tmp_path / "run.db")) as record:
        closings = record.execute(CLOSINGS).fetchall()
    assert closings
    for price, profit in closings:
        line = f"BTCUSDT: exits.minimal_roi 1 % at {price:g}, profit {profit:+,.2f}"
        assert line in bots.text()
