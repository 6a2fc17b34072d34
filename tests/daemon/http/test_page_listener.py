"""The page beyond loopback lets in who has a token and asks by an allowed name, and nobody else."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from waiting import deadline_s

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.config.sections import HttpSection
from tracepaper.daemon.http.access import GUESSES_MOST, tokens_of
from tracepaper.daemon.http.server import Caller, CommandRequest, HttpServer
from tracepaper.strategies.errors import ConfigInvalid

TOKEN = "a-token-of-anna"
FILE_TOKEN = "lies-beside-the-database"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PATHS = ("/", "/assets/app.js", "/api/v1/runs", "/api/v1/stream?run=last", "/status")


class PageAndDaemon:
    """A page that answers every address, and a daemon that takes every command."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.callers: list[Caller] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        return web.Response(text="the page")

    def wake(self) -> None: ...

    async def close(self) -> None: ...

    async def submit(self, _request: CommandRequest, caller: Caller) -> int:
        self.callers.append(caller)
        return 1


@pytest.fixture
def page() -> PageAndDaemon:
    return PageAndDaemon()


@pytest.fixture
async def url(page: PageAndDaemon) -> AsyncIterator[str]:
    async with HttpServer(
        HttpSection(port=0, page="127.0.0.1:0"),
        tokens={"database": FILE_TOKEN, "anna": TOKEN},
        status=lambda: {"ready": True},
        submit=page.submit,
        registry=CollectorRegistry(),
        page=lambda: page,
    ) as server:
        yield server.page_url


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=deadline_s())
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=jar) as session:
        yield session


async def status(client: aiohttp.ClientSession, url: str, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.get(url, headers=named) as answer:
        return answer.status


async def test_nothing_is_shown_without_a_token_and_all_with_one(
    url: str, page: PageAndDaemon, client: aiohttp.ClientSession
) -> None:
    for path in PATHS:
        assert await status(client, url + path) == 401
        assert await status(client, url + path, Authorization="Bearer wrong") == 401
        assert await status(client, f"{url}{path}{'&' if '?' in path else '?'}token={TOKEN}") == 401
        assert await status(client, url + path, Cookie=f"tracepaper-1={TOKEN}") == 401
    for path in ("/livez", "/metrics", "/command"):  # and what is not there says nothing either
        assert await status(client, url + path) == 401
    assert page.paths == []
    assert [await status(client, url + path, **BEARER) for path in PATHS] == [200] * len(PATHS)


async def test_a_token_is_traded_for_a_cookie_that_reads_and_gives_no_command(
    url: str, page: PageAndDaemon, client: aiohttp.ClientSession
) -> None:
    async with client.post(f"{url}/session", headers=BEARER) as answer:
        assert answer.status == 204
        cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert [await status(client, url + path) for path in PATHS] == [200] * len(PATHS)
    async with client.post(f"{url}/command", json={"kind": "HALT"}) as answer:
        assert answer.status == 401
    async with client.post(f"{url}/command", json={"kind": "HALT"}, headers=BEARER) as answer:
        assert answer.status == 200
    assert [caller.token for caller in page.callers] == ["anna"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a foreign name that resolves here
        {"Host": "localhost.evil.example:9188"},
        {"Host": "evil.example@localhost"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:1"},  # another port of this machine
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/runs", "/api/v1/stream?run=last", "/session"])
async def test_another_host_and_another_site_are_refused_with_a_token_too(
    url: str, page: PageAndDaemon, client: aiohttp.ClientSession, headers: dict[str, str], path: str
) -> None:
    method = "POST" if path == "/session" else "GET"
    async with client.request(method, url + path, headers={**BEARER, **headers}) as answer:
        assert answer.status == 403
        assert "Set-Cookie" not in answer.headers
    assert page.paths == []


async def test_a_token_cannot_be_guessed_and_who_is_in_stays_in(
    url: str, client: aiohttp.ClientSession, capsys: pytest.CaptureFixture[str]
) -> None:
    async with client.post(f"{url}/session", headers=BEARER):
        pass
    wrong = [
        await status(client, f"{url}/status", Authorization=f"Bearer guess-{number}")
        for number in range(GUESSES_MOST + 5)
    ]
    assert wrong[:GUESSES_MOST] == [401] * GUESSES_MOST
    assert 429 in wrong[GUESSES_MOST:]
    assert await status(client, f"{url}/status") == 200  # by the cookie
    assert "guess-" not in "".join(capsys.readouterr())


async def test_the_page_that_asks_for_a_token_runs_its_own_script_alone(
    url: str, client: aiohttp.ClientSession
) -> None:
    async with client.get(f"{url}/") as answer:
        assert answer.status == 401
        policy, text = answer.headers["Content-Security-Policy"], await answer.text()
    assert re.fullmatch(r".*script-src 'sha256-[\w+/=]+'", policy)
    assert "default-src 'none'" in policy
    assert text.count("<script") == 1


@pytest.mark.parametrize(
    ("http", "reason"),
    [
        ({"page": "0.0.0.0:9188"}, "has no token"),
        ({"tokens": {"anna": "short"}}, "at least"),
        ({"tokens": {"database": TOKEN}}, "label"),
        ({"tokens": {"anna": [TOKEN]}}, "cannot be used"),
        ({"tokens": {"anna": TOKEN, "ben": TOKEN}}, "own"),
        ({"tokens": {"anna": "env:NOT_SET_ANYWHERE"}}, "not set"),
    ],
)
def test_a_page_without_a_token_that_can_be_told_apart_is_refused(
    http: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigInvalid, match=reason) as refused:
        tokens_of(load({"http": http}).http, {})
    assert not re.search(f"short|{TOKEN}", str(refused.value))


def test_no_run_stores_a_token() -> None:
    config = load({"http": {"page": "0.0.0.0:9188", "tokens": {"anna": TOKEN}}})
    assert tokens_of(config.http, {}) == {"anna": TOKEN}
    assert TOKEN not in config.canonical_json() + repr(config)
