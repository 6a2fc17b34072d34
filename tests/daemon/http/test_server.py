"""HTTP on loopback: answers, refusals, and a clean end."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge
from waiting import deadline, deadline_s

from tracepaper.daemon.config.sections import HttpSection
from tracepaper.daemon.http.server import NOTE_LIMIT, Caller, CommandRequest, HttpServer
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid
from tracepaper.strategies.types.market import CommandKind, CommandOrigin

TOKEN = "only-the-owner-knows"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Daemon:
    """A daemon reduced to what HTTP sees of it."""

    status: dict[str, object] = field(default_factory=lambda: {"ready": True, "decisions": 3})
    commands: list[tuple[CommandKind, str]] = field(default_factory=list)
    callers: list[tuple[CommandOrigin, str, str]] = field(default_factory=list)
    is_broken: bool = False

    async def submit(self, request: CommandRequest, caller: Caller) -> int:
        if self.is_broken:
            raise AuditUnwritable("The disk is full; free some space.")
        self.commands.append((request.kind, request.note))
        self.callers.append((request.origin, *caller))
        return 41 + len(self.commands)


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


def server_of(daemon: Daemon, port: int = 0) -> HttpServer:
    registry = CollectorRegistry()
    Gauge("some", "A gauge.", registry=registry).set(3)
    return HttpServer(
        HttpSection(port=port),
        tokens={"database": TOKEN, "anna": "a-token-of-anna-alone"},
        status=lambda: daemon.status,
        submit=daemon.submit,
        registry=registry,
    )


@pytest.fixture
async def url(daemon: Daemon) -> AsyncIterator[str]:
    async with server_of(daemon) as server:
        yield server.url


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=deadline_s())
    async with aiohttp.ClientSession(timeout=timeout, headers=KNOWN) as session:
        yield session


async def test_health_follows_the_status(
    url: str, daemon: Daemon, client: aiohttp.ClientSession
) -> None:
    async with client.get(f"{url}/livez") as answer:
        assert (answer.status, await answer.text()) == (200, "live\n")
    async with client.get(f"{url}/readyz") as answer:
        assert (answer.status, await answer.text()) == (200, "ready\n")
    daemon.status = {"ready": False, "not_ready": ["linear:BTCUSDT is warming up"]}
    async with client.get(f"{url}/readyz") as answer:
        assert (answer.status, await answer.text()) == (503, "linear:BTCUSDT is warming up\n")
    async with client.get(f"{url}/livez") as answer:
        assert answer.status == 200


async def test_status_and_metrics_answer(url: str, client: aiohttp.ClientSession) -> None:
    async with client.get(f"{url}/status") as answer:
        assert await answer.json() == {"ready": True, "decisions": 3}
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    async with client.get(f"{url}/metrics") as answer:
        assert "some 3.0" in await answer.text()
        assert answer.headers["Content-Type"].startswith("text/plain")


async def test_a_command_is_handed_on_and_answered_with_its_event(
    url: str, daemon: Daemon, client: aiohttp.ClientSession
) -> None:
    async with client.post(f"{url}/command", json={"kind": "HALT", "note": "lunch"}) as answer:
        assert await answer.json() == {"kind": "HALT", "sequence": 42}
    async with client.post(f"{url}/command", json={"kind": "RESUME"}) as answer:
        assert (await answer.json())["sequence"] == 43
    assert daemon.commands == [(CommandKind.HALT, "lunch"), (CommandKind.RESUME, "")]


@pytest.mark.sockets  # whose process calls is read from the machine's table of connections
async def test_a_command_brings_its_origin_its_tokens_label_and_the_user_of_its_process(
    url: str, daemon: Daemon, client: aiohttp.ClientSession
) -> None:
    user = pwd.getpwuid(os.geteuid()).pw_name
    callers = []
    for token, label in ((TOKEN, "database"), ("a-token-of-anna-alone", "anna")):
        for origin in (None, *CommandOrigin):
            body = {"kind": "HALT"} if origin is None else {"kind": "HALT", "origin": origin.value}
            headers = {"Authorization": f"Bearer {token}"}
            async with client.post(f"{url}/command", json=body, headers=headers) as answer:
                assert answer.status == 200
            callers.append((origin or CommandOrigin.HTTP, label, user))
    assert daemon.callers == callers


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"kind": "SELL"}, 400, "one of HALT, RESUME, FLATTEN"),
        ({"kind": "HALT", "nope": "x"}, 400, "Send {"),
        ({"kind": "HALT", "note": "x" * (NOTE_LIMIT + 1)}, 400, "Keep the note within"),
        ({"kind": "HALT", "note": "x" * 10_000}, 413, ""),
    ],
)
async def test_a_command_that_is_none_is_refused(
    url: str, daemon: Daemon, client: aiohttp.ClientSession, body: object, status: int, words: str
) -> None:
    async with client.post(f"{url}/command", json=body) as answer:
        assert answer.status == status
        assert words in await answer.text()
    assert daemon.commands == []


async def test_a_command_that_cannot_be_recorded_says_so(
    url: str, daemon: Daemon, client: aiohttp.ClientSession
) -> None:
    daemon.is_broken = True
    async with client.post(f"{url}/command", json={"kind": "HALT"}) as answer:
        assert answer.status == 503
        assert await answer.json() == {"error": "The disk is full; free some space."}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "["},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
@pytest.mark.parametrize("path", ["/status", "/command"])
async def test_pages_of_other_sites_are_refused(
    url: str, daemon: Daemon, client: aiohttp.ClientSession, path: str, headers: dict[str, str]
) -> None:
    method = "POST" if path == "/command" else "GET"
    body = {"kind": "HALT"} if method == "POST" else None
    async with client.request(method, url + path, json=body, headers=headers) as answer:
        assert answer.status == 403
        assert "loopback" in await answer.text()
    assert daemon.commands == []


async def test_a_form_of_another_site_is_no_command(
    url: str, daemon: Daemon, client: aiohttp.ClientSession
) -> None:
    async with client.post(
        f"{url}/command", data=json.dumps({"kind": "HALT"}), headers={"Content-Type": "text/plain"}
    ) as answer:
        assert answer.status == 415
    assert daemon.commands == []


@pytest.mark.parametrize(
    "given",
    [None, "", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer ", f"Bearer {TOKEN}x", "Bearer \u00e9"],
)
@pytest.mark.parametrize("path", ["/command", "/status", "/nowhere"])
async def test_who_does_not_know_the_token_changes_nothing_and_may_look(
    url: str, daemon: Daemon, path: str, given: str | None
) -> None:
    headers = {} if given is None else {"Authorization": given}
    async with aiohttp.ClientSession(headers=headers) as client:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            async with client.request(method, url + path, json={"kind": "HALT"}) as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        async with client.get(f"{url}/status") as answer:
            assert answer.status == 200
    assert daemon.commands == []


async def test_a_port_that_is_taken_is_refused_in_one_sentence(daemon: Daemon) -> None:
    async with server_of(daemon) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(ConfigInvalid, match="set another \\[http\\] port"):
            await server_of(daemon, port).__aenter__()


async def test_the_end_frees_the_port_though_a_client_holds_on(daemon: Daemon) -> None:
    async with server_of(daemon) as server:
        host, port = server.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /status HTTP/1.1\r\n")  # a request that never ends
        await writer.drain()
    async with deadline():
        with pytest.raises(OSError, match="onnect"):
            await asyncio.open_connection(host, int(port))
    writer.close()
