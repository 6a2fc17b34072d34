"""Client of the running daemon: its address is in the lock file, its token beside the database."""

from __future__ import annotations

import os
import pwd
import secrets
from collections.abc import Callable
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from tracepaper.storage.database.lock import Holder, holder_of
from tracepaper.storage.database.remedies import refusal
from tracepaper.strategies.errors import FeedLost, TracepaperError
from tracepaper.strategies.types.market import CommandKind, CommandOrigin

ANSWER_WITHIN_S: Final = 10.0

Document = dict[str, Any]


def ask(database: Path, path: str, body: Document | None = None) -> Document:
    """Return the daemon's answer to GET *path*, or to POST *path* with *body* and its token.

    Raises ``TracepaperError`` if no daemon runs or it refuses, ``FeedLost`` if it does not answer.
    """
    holder = _serving(database)
    token = "" if body is None else read_token(database)
    try:
        status, content = _exchange(holder.http, path, body, token)
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise TracepaperError("The message is too long for the daemon; write a shorter one.")
        document = msgspec.json.decode(content, type=Document)
    except (OSError, HTTPException, msgspec.DecodeError) as error:
        raise FeedLost(
            f"The daemon (process {holder.pid}) does not answer at {holder.http} ({error}); "
            "look at its log."
        ) from None
    if status != HTTPStatus.OK:
        raise TracepaperError(str(document.get("error", f"The daemon answered {status}.")))
    return document


def give(database: Path, kind: CommandKind, note: str) -> Document:
    """Send the daemon an operator's command; return its answer and raise errors as ``ask`` does."""
    body: Document = {"kind": kind.value, "note": note, "origin": CommandOrigin.COMMAND.value}
    return ask(database, "/command", body)


def _serving(database: Path) -> Holder:
    """Return the daemon of *database*; raise ``TracepaperError`` if it serves no status."""
    holder = holder_of(database)
    if holder is None:
        raise TracepaperError(
            f"No daemon runs on {database}; start it with `tracepaper run`, or name its --db."
        )
    if not holder.http:
        raise TracepaperError(
            f"Process {holder.pid} writes {database}, but serves no status yet: it starts, or "
            "waits for the exchange; look at its log."
        )
    return holder


def _exchange(address: str, path: str, body: Document | None, token: str) -> tuple[int, bytes]:
    """Return the status and content of an answer; loopback needs no proxy."""
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


def token_file(database: Path) -> Path:
    """Return the path of the token, such as ``tracepaper.db.token``."""
    file = database.resolve()
    return file.with_name(file.name + ".token")


def write_token(database: Path, entropy: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """Create a token for the daemon of *database*, and write it to ``token_file``.

    The file appears atomically, and only its owner can ever read it.
    """
    token = entropy(32).hex()
    file = token_file(database)
    partial = file.with_name(file.name + ".partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, flags, 0o600)
        try:
            os.write(descriptor, token.encode())
        finally:
            os.close(descriptor)
        partial.rename(file)
    except OSError as error:
        raise refusal(file, error) from None
    return token


def read_token(database: Path) -> str:
    """Return the token of the daemon that runs on *database*.

    Raises ``TracepaperError`` if the file is missing or belongs to another user.
    """
    file = token_file(database)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TracepaperError(
            f"{file} is missing; start the daemon again, which writes it."
        ) from None
    except OSError:
        raise TracepaperError(_not_yours(file)) from None
    try:
        if os.fstat(descriptor).st_uid != os.geteuid() != 0:
            raise TracepaperError(_not_yours(file))
        return os.read(descriptor, 1_000).decode(errors="replace").strip()
    finally:
        os.close(descriptor)


def _not_yours(file: Path) -> str:
    try:
        owner = pwd.getpwuid(file.lstat().st_uid).pw_name
    except (OSError, KeyError):
        owner = "the daemon's user"
    return f"{file} can be read by {owner} alone; give the command as that user."
