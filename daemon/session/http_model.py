"""``HttpModel``: a model that answers over HTTP, asked within the deadline of each bar.

The rule is docs/own_models.md, N13.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
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
from tracepaper.strategies.errors import StrategyFailed

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
        address = urlsplit(self.url)
        if address.scheme not in {"http", "https"} or not address.hostname or address.port == 0:
            raise ValueError(
                f"url is {self.url!r}; give one such as http://127.0.0.1:8100/forecast"
            )
        for name in _DECLARED & set(options):
            setattr(self, name, options[name])
        self._clock = SystemClock()

    def question(self, seen: ModelInput) -> Mapping[str, Any]:
        """Return what is posted: by default all that *seen* holds, arrays as lists."""
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
        until_s = self._clock.network_s() + _SHARE * self.deadline_s
        failure = ""
        for _ in range(self.attempts):
            try:
                status, content = self._post(body, headers, until_s)
            except (OSError, HTTPException, ValueError) as error:
                status, content = 0, b""
                failure = f"does not answer ({type(error).__name__}: {error})"
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
        except (ValueError, RecursionError) as error:
            raise StrategyFailed(f"{self.url} answered what is no JSON ({error})") from None
        return found


def _cut(opened: socket.socket) -> None:
    with suppress(OSError):  # closed just now
        opened.shutdown(socket.SHUT_RDWR)
