"""Ask the daemon that runs on a database; its address stands in the lock file beside it."""

from __future__ import annotations

from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from tracepaper.daemon.http.token import read_token
from tracepaper.storage.lock import holder_of
from tracepaper.strategies.errors import FeedLost, TracepaperError

ANSWER_WITHIN_S: Final = 10.0

Document = dict[str, object]


def ask(database: Path, path: str, body: Document | None = None) -> Document:
    """Return the daemon's answer to GET *path*, or to POST *path* with *body* and its token.

    Raises ``TracepaperError`` where no daemon runs or it refuses, ``FeedLost`` where it is silent.
    """
    holder = holder_of(database)
    if holder is None:
        raise TracepaperError(
            f"No daemon runs on {database}; start it with `tracepaper run`, or name its --db."
        )
    if not holder.http:
        raise TracepaperError(
            f"Process {holder.pid} writes {database}, but serves no status; try again in a moment."
        )
    token = "" if body is None else read_token(database)
    try:
        status, content = _exchange(holder.http, path, body, token)
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise TracepaperError("The daemon takes no message of this length; write a short one.")
        document = msgspec.json.decode(content, type=Document)
    except (OSError, HTTPException, msgspec.DecodeError) as error:
        raise FeedLost(
            f"The daemon (process {holder.pid}) does not answer at {holder.http} ({error}); "
            "look at its log."
        ) from None
    if status != HTTPStatus.OK:
        raise TracepaperError(str(document.get("error", f"The daemon answered {status}.")))
    return document


def _exchange(address: str, path: str, body: Document | None, token: str) -> tuple[int, bytes]:
    """Return status and content. A plain connection: no proxy stands within one machine."""
    target = urlsplit(address)
    connection = HTTPConnection(target.hostname or "", target.port, timeout=ANSWER_WITHIN_S)
    with closing(connection):
        if body is None:
            connection.request("GET", path)
        else:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
            connection.request("POST", path, msgspec.json.encode(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
