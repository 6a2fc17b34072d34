"""``HttpModel``: a model that answers over HTTP, asked within the deadline of each bar.

The rule is docs/own_models.md, N13.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from threading import Timer
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from tracepaper.daemon.clock import SystemClock
from tracepaper.strategies.api.model import Answer, Model, ModelInput
from tracepaper.strategies.errors import StrategyFailed, shown

ANSWER_BYTES_MOST: Final = 1 << 16
_SHARE: Final = 0.8
"""Of the deadline: what is left is for reading the answer, so that a failure is known in time."""
_LEAST_S: Final = 0.001
_DECLARED: Final = frozenset({"context", "features", "horizons", "measures", "trained_until"})
_AGAIN: Final = frozenset(
    {0, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE}
)
"""What another request may mend; 0 where none answered."""
_REDIRECTS: Final = range(300, 400)
_SAID_LONGEST: Final = 200
"""Characters of what another library says of a failure."""


class HttpModel(Model):
    """A forecaster behind ``[model.options] url``: each bar is a POST of JSON, answered by JSON.

    The options may also set context, features, horizons, measures and trained_until, else they are
    those of the class. Raises ``ValueError`` for other options and for an address that is none.
    """

    is_outside = True
    attempts = 2
    """Requests for one bar at most, all within its deadline; the second only where none answered,
    or with 429, 502 or 503."""

    def __init__(self, options: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        super().__init__(options, files)
        if unknown := sorted(set(options) - _DECLARED - {"url"}):
            raise ValueError(f"{unknown[0]} is no option; use url, {', '.join(sorted(_DECLARED))}")
        self.url = str(options.get("url", ""))
        if not _is_address(self.url):
            raise ValueError(
                f"url is {shown(self.url)}; give one such as http://127.0.0.1:8100/forecast, with "
                "%20 and so on for a blank and letters beyond ASCII in its path"
            )
        for name in _DECLARED & set(options):
            setattr(self, name, options[name])
        self._clock = SystemClock()

    def question(self, seen: ModelInput) -> Mapping[str, Any]:
        """Return the body of the request: by default all that *seen* holds, arrays as lists."""
        past = seen.past
        return {
            "instrument": seen.instrument,
            "time": seen.time,
            "interval_ms": seen.interval_ms,
            "past": {name: getattr(past, name).tolist() for name in past.__struct_fields__},
            "features": seen.features.tolist(),
        }

    def headers(self) -> Mapping[str, str]:
        """Return further headers of each request, such as a token read from a file."""
        return {}

    def predict(self, seen: ModelInput) -> Answer:
        """Ask for the bar; raise ``StrategyFailed``, in one sentence, where no forecast comes."""
        body = msgspec.json.encode(self.question(seen))
        headers = {"Content-Type": "application/json", **self.headers()}
        for name, value in headers.items():
            # http.client would name the value in its error, and a token with it.
            if not (isinstance(value, str) and value.isascii() and value.isprintable()):
                raise StrategyFailed(
                    f"the header {shown(name)} is no line of printable ASCII; strip what headers() "
                    "reads of line breaks"
                )
        until_s = self._clock.network_s() + _SHARE * self.deadline_s
        failure = ""
        for _ in range(self.attempts):
            try:
                status, content = self._post(body, headers, until_s)
            except (OSError, HTTPException, ValueError) as error:
                status, content = 0, b""
                said = " ".join(str(error).split())
                said = "".join(each if each.isprintable() else "?" for each in said)
                failure = f"does not answer ({type(error).__name__}: {said:.{_SAID_LONGEST}})"
            if self._clock.network_s() >= until_s:
                failure = f"gave no whole answer within {_SHARE * self.deadline_s:g} s"
                break
            if status == HTTPStatus.OK:
                return self._forecast(content)
            if status:
                way = ", a redirect, which is not followed" if status in _REDIRECTS else ""
                failure = f"answered {status}{way}"
            if status not in _AGAIN:
                break
        raise StrategyFailed(f"{self.url} {failure}")

    def _post(self, body: bytes, headers: Mapping[str, str], until_s: float) -> tuple[int, bytes]:
        """Return status and content; at *until_s* the connection is cut, whatever arrives.

        A time limit of a socket begins anew with each byte, so it alone would not bound the whole.
        """
        address = urlsplit(self.url)
        scheme = HTTPSConnection if address.scheme == "https" else HTTPConnection
        left_s = until_s - self._clock.network_s()
        connection = scheme(address.hostname or "", address.port, timeout=max(left_s, _LEAST_S))
        path = (address.path or "/") + (f"?{address.query}" if address.query else "")
        with closing(connection):
            connection.connect()
            # The connection lets go of its socket before a body without a length is read.
            cut = Timer(until_s - self._clock.network_s(), _cut, [connection.sock])
            cut.start()
            try:
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                content = answer.read(ANSWER_BYTES_MOST + 1)
                if answer.length and len(content) <= ANSWER_BYTES_MOST:
                    raise HTTPException("the answer ended early")
                return answer.status, content
            finally:
                cut.cancel()

    def _forecast(self, content: bytes) -> Answer:
        if len(content) > ANSWER_BYTES_MOST:
            raise StrategyFailed(f"{self.url} answered more than {ANSWER_BYTES_MOST:,} bytes")
        try:
            found: Answer = msgspec.json.decode(content)
            json.loads(content, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise StrategyFailed(f"{self.url} answered what is no JSON ({error})") from None
        for name, value in found.items() if isinstance(found, dict) else ():
            if any(isinstance(each, str | bool) for each in _flat(value)):
                raise StrategyFailed(
                    f"{self.url} answered {shown(value)} as {shown(name)}; give numbers, not text"
                )
        return found


def _is_address(url: str) -> bool:
    """Return whether a request can be made of *url*; raises ``ValueError`` for its port."""
    address = urlsplit(url)
    host = address.hostname or ""
    try:
        host.encode("idna")
    except UnicodeError:  # a part of it is empty or too long
        return False
    line = f"{address.path}{address.query}"
    return (
        address.scheme in {"http", "https"}
        and bool(host)
        and address.port != 0
        and url.isprintable()
        and line.isascii()
        and " " not in url
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that is given twice: which of the two counts would be the reader's choice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for at, (name, _) in enumerate(pairs) if name in dict(pairs[:at]))
        raise ValueError(f"{shown(twice)} is there twice")
    return found


def _flat(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else (value,)


def _cut(opened: socket.socket) -> None:
    with suppress(OSError):  # closed just now
        # A TLS socket's own shutdown drops the encryption first, and what the other thread is
        # sending then, a token perhaps, would leave as it is.
        socket.socket.shutdown(opened, socket.SHUT_RDWR)
