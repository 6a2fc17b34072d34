"""A question of a user's own in a process of its own, which is ended at its limit.

One operation of SQLite can take minutes and gigabytes, and looks at no clock meanwhile: only from
outside can it be ended.
"""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

MEMORY_BYTES: Final = 2 * 2**30
"""What a question may take beside what its process takes before it."""
OPEN_S: Final = 120.0
"""Until the process must have the database open, on a machine that does much else."""
TOO_LONG: Final = "The question took too long and was given up; ask for less, or longer."


class Answered(NamedTuple):
    """The answer to a question; ``cut`` says why it is not whole, where it is not."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    cut: str = ""

    def documents(self) -> list[dict[str, Any]]:
        """Return a dictionary a row; blobs as lower-case hexadecimal text."""
        return [
            {
                name: value.hex() if isinstance(value, bytes) else value
                for name, value in zip(self.columns, row, strict=True)
            }
            for row in self.rows
        ]

    def oldest_first(self) -> Answered:
        """Return the rows in the opposite order."""
        return Answered(self.columns, self.rows[::-1])


class _Asked(Struct):
    """What the process is asked."""

    path: str
    sql: str
    rows_most: int
    seconds: float
    memory_bytes: int


class _Said(Struct):
    """What it answers: rows, or why there are none."""

    columns: tuple[str, ...] = ()
    rows: list[tuple[Any, ...]] = []
    cut: str = ""
    error: str = ""  # the name of the exception, by which it is raised again
    sentence: str = ""


_ERRORS: Final[dict[str, type[Exception]]] = {
    "ConfigInvalid": ConfigInvalid,
    "DataInvalid": DataInvalid,
}
_READY: Final = b"+"


def ask_aside(path: Path, sql: str, *, rows_most: int, seconds: float) -> Answered:
    """Return what *sql* answers over the database *path*, asked in a process of its own.

    Raises what ``questions.ask`` does; ``DataInvalid`` too where the process was ended at its limit
    of *seconds*, or took more than ``MEMORY_BYTES``. Ctrl-C ends it at once.
    """
    asked = msgspec.msgpack.encode(_Asked(str(path), sql, rows_most, seconds, MEMORY_BYTES))
    words = [sys.executable, "-m", __name__]
    pipe = subprocess.PIPE
    with subprocess.Popen(  # noqa: S603 - this very module
        words, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        try:
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as given:
                given.write(asked)
            process.stdin = None
            assert process.stdout is not None
            begun = process.stdout.read(1)
            is_asked = begun == _READY
            rest, trouble = process.communicate(timeout=seconds if is_asked else OPEN_S)
            # What cannot be opened is said without a beginning.
            said = rest if is_asked else begun + rest
        except subprocess.TimeoutExpired:
            raise DataInvalid(TOO_LONG) from None
        finally:
            process.kill()
            process.wait()
    try:
        found = msgspec.msgpack.decode(said, type=_Said)
    except msgspec.DecodeError:
        why = trouble.decode(errors="replace").strip().splitlines()[-1:] or [
            f"signal {-process.returncode}"
        ]
        raise DataInvalid(
            f"The question ended its process ({why[0]}), most likely for want of memory; ask for "
            "less at once."
        ) from None
    if found.error:
        raise _ERRORS.get(found.error, sqlite3.DatabaseError)(found.sentence)
    return Answered(found.columns, found.rows, found.cut)


def main() -> None:
    """Answer the question that stands in the standard input; say when it begins."""
    from tracepaper.storage.questions import ask
    from tracepaper.storage.reader import Reader

    asked = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Asked)
    _limit(asked)
    try:
        with Reader.open(Path(asked.path)) as reader:
            sys.stdout.buffer.write(_READY)
            sys.stdout.buffer.flush()
            found = ask(reader.connection, asked.sql, rows_most=asked.rows_most)
        said = _Said(found.columns, found.rows, found.cut)
    except KeyboardInterrupt:
        return  # who asked has heard of it too
    except (ConfigInvalid, DataInvalid, sqlite3.Error) as error:
        said = _Said(error=type(error).__name__, sentence=str(error))
    sys.stdout.buffer.write(msgspec.msgpack.encode(said))


def _limit(asked: _Asked) -> None:
    """Bound the memory of this process; the time too, should nobody be left to end it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    _bound(resource.RLIMIT_AS, pages * resource.getpagesize() + asked.memory_bytes)
    _bound(resource.RLIMIT_CPU, int(asked.seconds) + 10)


def _bound(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    main()
