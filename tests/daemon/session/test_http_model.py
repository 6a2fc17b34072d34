"""A model that answers over HTTP: what it is asked, and every way in which its answer may fail."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import pytest
from builders import bars, instrument
from structlog.testing import capture_logs
from waiting import deadline_s

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.http_model import ANSWER_BYTES_MOST, HttpModel, _cut
from tracepaper.daemon.session.user_model import UserForecaster, load_model
from tracepaper.strategies.errors import ConfigInvalid

Answering = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]
GOOD: Final = b'{"mean_return": 0.001}'


def said(body: bytes, status: int = 200, **headers: str) -> Answering:
    """Answer everything with *body*."""

    def answers(to: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        to.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            to.send_header(name.replace("_", "-"), value)
        to.end_headers()
        to.wfile.write(body)

    return answers


class Server:
    """A server on loopback that answers as it is told, and keeps what it was asked."""

    def __init__(self, *answers: Answering) -> None:
        self.asked: list[dict[str, Any]] = []
        self.sent: list[dict[str, str]] = []
        self.released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(asked)
                server.sent.append(dict(self.headers))
                answers[min(len(server.asked), len(answers)) - 1](self, asked)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/forecast"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(deadline_s())


@contextmanager
def serving(*answers: Answering) -> Iterator[Server]:
    server = Server(*answers)
    try:
        yield server
    finally:
        server.end()


def made(
    url: str,
    *,
    deadline_ms: int = 20_000,
    known_as: str = "tracepaper:HttpModel",
    **options: Any,
) -> UserForecaster:
    model = {
        "class": known_as,
        "options": {"url": url, **options},
        "deadline_ms": deadline_ms,
    }
    found = load_model(load(None, {"model": model}))
    found.scale([instrument()])
    return found


def asked_once(model: UserForecaster) -> tuple[bool, str]:
    """Return whether one bar has a usable forecast, and the sentence that was logged."""
    with capture_logs() as logged:
        forecast = model.step(bars(1)[0])
    assert forecast is not None
    is_usable = forecast.mean_return[0] == forecast.mean_return[0]
    return is_usable, " ".join(line["error"] for line in logged)


def test_a_bar_is_posted_and_its_forecast_read() -> None:
    def answers(to: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        change = asked["past"]["close"][-1] / asked["past"]["close"][0] - 1
        said(json.dumps({"mean_return": [change, 2 * change]}).encode())(to, asked)

    given = bars(4)
    with serving(answers) as server:
        model = made(server.url, context=3, horizons=[5, 30])
        found = [model.step(bar) for bar in given]
        assert [one is not None for one in found] == [False, False, True, True]
        assert model.is_outside
        assert not model.causal  # each bar is a request of its own, in a replay too
    assert found[3] is not None
    change = given[3].close / given[1].close - 1
    assert found[3].mean_return == pytest.approx((change, 2 * change))
    last = server.asked[-1]
    assert (last["instrument"], last["time"]) == (given[3].instrument, given[3].close_time_ms)
    assert last["past"]["close"] == [bar.close / 100 for bar in given[1:]]
    assert sorted(last["past"]) == ["close", "high", "low", "open", "time", "volume"]


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (said(b"<html>"), "answered what is no JSON"),
        (said(b"\xff\xfe"), "answered what is no JSON"),
        (said(b"[" * 60_000), "answered what is no JSON"),
        (said(b'{"mean_return": NaN}'), "answered what is no JSON"),
        (said(b'{"mean_return": [1, 2]}'), "answered mean_return of shape (2,) for 1 horizons"),
        (said(b'{"mean": 1}'), "answered 'mean'; what it may give is"),
        (said(b"[1]"), "answered list; return a mapping or None"),
        (said(b'{"mean_return": "0.5"}'), "answered '0.5' as 'mean_return'; give numbers"),
        (said(b'{"mean_return": [true]}'), "answered [True] as 'mean_return'; give numbers"),
        (said(b'{"mean_return": 1, "mean_return": 2}'), "('mean_return' is there twice)"),
        (said(b" " * ANSWER_BYTES_MOST + GOOD), "answered more than 65,536 bytes"),
        (said(b"", 302, Location="http://127.0.0.1:9/"), "answered 302, a redirect, which is not"),
        (said(b"no such model", 404), "answered 404"),
        (said(GOOD, Content_Length="400"), "does not answer (HTTPException: the answer ended"),
        (lambda _, __: None, "does not answer (RemoteDisconnected"),
    ],
)
def test_what_is_no_answer_is_one_sentence_and_no_forecast(
    answers: Answering, sentence: str
) -> None:
    with serving(answers) as server:
        is_usable, logged = asked_once(made(server.url))
    assert not is_usable
    assert sentence in logged
    assert logged.startswith("HttpModel ") or server.url in logged
    assert logged.count("\n") == 0
    assert logged.endswith(".")


@pytest.mark.parametrize("line", ["\x1b[2J\rgarbage", "x" * 60_000, "HTTP/1.1 99 none"])
def test_what_a_stranger_on_the_port_says_is_one_short_printable_line(line: str) -> None:
    """Of a status line that is none http.client's error holds all, with its line break."""

    def answers(to: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        to.wfile.write(f"{line}\r\n\r\n".encode())

    with serving(answers) as server:
        is_usable, logged = asked_once(made(server.url))
    assert not is_usable
    assert "does not answer (BadStatusLine: " in logged
    assert logged.isprintable()
    assert len(logged) < 300


class Secretive(HttpModel):
    token = "s3cret"

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@pytest.mark.parametrize("token", ["s3cret\n", "s3cret\x00", "s3crét"])
def test_a_token_that_cannot_be_sent_is_not_logged(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(said(GOOD)) as server:
        assert asked_once(made(server.url, known_as=f"{__name__}:Secretive")) == (True, "")
        assert server.sent[0]["Authorization"] == "Bearer s3cret"
        monkeypatch.setattr(Secretive, "token", token)
        is_usable, logged = asked_once(made(server.url, known_as=f"{__name__}:Secretive"))
        assert len(server.asked) == 1
    assert not is_usable
    assert "the header 'Authorization' is no line of printable ASCII; strip" in logged
    assert "s3cr" not in logged


def test_a_connection_that_is_cut_stays_encrypted() -> None:
    """``SSLSocket.shutdown`` drops the encryption first: what is sent beside it would be plain."""
    near, far = socket.socketpair()
    with near, far:
        context = ssl.create_default_context()
        secured = context.wrap_socket(near, server_hostname="there", do_handshake_on_connect=False)
        with secured:
            _cut(secured)
            with pytest.raises(OSError, match=r"."):
                secured.do_handshake()
            with pytest.raises(OSError, match=r"."):
                secured.send(b"Authorization: Bearer s3cret")
        assert b"s3cret" not in far.recv(4096)


def test_null_is_no_forecast() -> None:
    with serving(said(b"null")) as server:
        assert made(server.url).step(bars(1)[0]) is None


def hangs(released: list[Server]) -> Answering:
    return lambda _, __: void(released[0].released.wait(deadline_s()))


def dribbles(released: list[Server], head: bytes) -> Answering:
    """Send *head* and then a byte every few milliseconds, without an end."""

    def answers(to: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        to.wfile.write(head)
        while not released[0].released.wait(0.01):
            to.wfile.write(b" ")

    return answers


def void(_: object) -> None: ...


@pytest.mark.parametrize("head", [None, b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_slow_server_is_cut_off_within_the_deadline(head: bytes | None) -> None:
    """A byte now and then keeps no connection: without the cut this test would not end."""
    of: list[Server] = []
    with serving(hangs(of) if head is None else dribbles(of, head)) as server:
        of.append(server)
        is_usable, logged = asked_once(made(server.url, deadline_ms=300))
        assert not server.released.is_set()
    assert not is_usable
    assert logged.endswith("gave no whole answer within 0.24 s.")
    assert len(server.asked) == 1  # no time was left for another request


def test_a_service_that_comes_back_is_asked_again_and_no_more_than_twice() -> None:
    with serving(said(b"", 503), said(GOOD)) as server:
        assert asked_once(made(server.url)) == (True, "")
        assert len(server.asked) == 2
    for status, count in ((503, 2), (500, 1)):
        with serving(said(b"", status)) as server:
            is_usable, logged = asked_once(made(server.url))
        assert (is_usable, len(server.asked)) == (False, count)
        assert f"answered {status}." in logged
    is_usable, logged = asked_once(made(server.url))  # whose port is closed now
    assert not is_usable
    assert "does not answer (ConnectionRefusedError" in logged


def test_the_bar_after_a_failure_is_answered() -> None:
    with serving(said(b"<html>"), said(GOOD)) as server:
        model = made(server.url)
        first, second = (model.step(bar) for bar in bars(2))
    assert first is not None
    assert second is not None
    assert first.mean_return[0] != first.mean_return[0]
    assert second.mean_return == (0.001,)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"url": "ftp://there"}, "give one such as http://127.0.0.1:8100/forecast"),
        ({"url": "http://there:99999/"}, "Port out of range"),
        ({"url": ""}, "give one such as"),
        ({"url": "http://there/a b"}, "with %20 and so on for a blank"),
        ({"url": "http://there/é"}, "with %20 and so on for a blank"),
        ({"url": "http://there/\r\nX: y"}, "with %20 and so on for a blank"),
        ({"url": "http://a..b/"}, "give one such as"),
        ({"url": "http://me:secret@there/"}, "a run stores its configuration; take it out"),
        ({"horizon": 30}, "horizon is no option; use url, context"),
        ({"horizons": [0]}, "give whole bars"),
        ({"measures": ["mean"]}, "name some of"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        made(**({"url": "http://127.0.0.1:1/"} | options))
