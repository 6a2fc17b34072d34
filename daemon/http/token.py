"""The word that a command to the daemon needs, in a file that only the daemon's user can read."""

from __future__ import annotations

import os
import pwd
import secrets
from pathlib import Path

from tracepaper.strategies.errors import ConfigInvalid, TracepaperError


def token_file(database: Path) -> Path:
    """Return the file of the token, beside *database*: ``tracepaper.db.token``."""
    file = database.resolve()
    return file.with_name(file.name + ".token")


def write_token(database: Path) -> str:
    """Make a new token for the daemon of *database*, and write it where ``command`` finds it.

    The file appears whole, and is nobody else's at any moment.
    """
    token = secrets.token_urlsafe(32)
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
        raise ConfigInvalid(
            f"{file} cannot be written ({error.strerror}); mend the permissions of its folder."
        ) from None
    return token


def read_token(database: Path) -> str:
    """Return the token of the daemon that runs on *database*.

    Raises ``TracepaperError`` where it is not there, or is another user's.
    """
    file = token_file(database)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TracepaperError(
            f"{file} is gone, which every start writes; start the daemon again."
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
