"""Files of many gzip members, each of which is written whole: what recorders append to.

Each member begins with a mark of its own kind of file: gzip's head, with letters where it has a
time. So none is overseen, and a killed recorder leaves at most one torn member at the end.

The rules are docs/orderbook.md, D4.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

BOOKS_MARK: Final = b"\x1f\x8b\x08\x00TPBK\x00\xff"
"""The head of a member of order books."""
EVENTS_MARK: Final = b"\x1f\x8b\x08\x00TPEV\x00\xff"
"""The head of a member of recorded frames."""
KINDS: Final = {BOOKS_MARK: "order books", EVENTS_MARK: "events"}
_MADE_BY: Final = {
    BOOKS_MARK: "make them of it by `tracepaper data record SYMBOL --from FILE --out NEW`",
    EVENTS_MARK: "name a file of `tracepaper data record --events`",
}
MEMBER_BYTES_MAX: Final = 64 * 1024 * 1024


@dataclass(frozen=True)
class TornTail:
    """What a killed recorder left: where the last whole member ends, and the bytes after it."""

    whole: int
    bytes_left: int


class MemberFile:
    """A file read member by member; ``torn`` is known once all were read."""

    def __init__(self, path: Path, mark: bytes, *, newest: int | None = None) -> None:
        """Open *path*, whose members begin with *mark*; raise ``DataInvalid`` where it has none.

        Of a file of more than *newest* bytes the first member is read, and the last of the others.
        """
        self.path: Final = path
        self._mark: Final = mark
        self._left_out = 0
        try:
            self._content = self._bytes_of(newest)
        except OSError as error:
            raise DataInvalid(
                f"{path} cannot be read ({error.strerror}); name a file that `tracepaper data "
                "record` wrote."
            ) from None
        first = next(self.members(), None)
        if first is None:
            held = [kind for each, kind in KINDS.items() if self._content.startswith(each)]
            if held and held != [KINDS[mark]]:
                raise DataInvalid(
                    f"{path} holds {held[0]}, and {KINDS[mark]} are wanted here; {_MADE_BY[mark]}."
                )
            raise DataInvalid(
                f"{path} is no file of `tracepaper data record`; name another (recorded frames "
                "become one by its --from)."
            )
        self.head: Final = first[0]
        """The content of the first member."""
        self.begin: Final = first[1]
        """The byte at which the second one begins."""
        self.torn: TornTail | None = None

    def _bytes_of(self, newest: int | None) -> bytes:
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if newest is None or size <= newest:
                return file.read()
            self._content = file.read(newest)
            if (first := self._member(0)) is None:
                return self._content
            begin = max(size - newest, first[1])
            file.seek(begin)
            head, self._content = self._content[: first[1]], file.read()
        at = self._content.find(self._mark)
        while at >= 0 and self._member(at) is None:  # it stands in a member by chance
            at = self._content.find(self._mark, at + 1)
        at = len(self._content) if at < 0 else at
        self._left_out = begin + at - len(head)
        return head + self._content[at:]

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self._content)

    @property
    def sha256(self) -> str:
        """Their hash."""
        return sha256(self._content).hexdigest()

    def members(self, start: int = 0) -> Iterator[tuple[bytes, int]]:
        """Yield the content and end of each whole member from byte *start*; stop at a torn last.

        Raises ``DataInvalid`` where a whole one follows a torn one.
        """
        content, end = self._content, start
        while end < len(content):
            member = self._member(end)
            if member is None:
                if (later := content.find(self._mark, end + 1)) >= 0:
                    begin, later = end + self._left_out, later + self._left_out
                    raise DataInvalid(
                        f"{self.path} is damaged between its bytes {begin:,} and {later:,}; "
                        "restore it from a copy."
                    )
                self.torn = TornTail(end + self._left_out, len(content) - end)
                return
            yield member
            end = member[1]

    def _member(self, start: int) -> tuple[bytes, int] | None:
        """Return content and end of the member at byte *start*; None where it is torn."""
        content, mark = self._content, self._mark
        if not content.startswith(mark, start):
            return None
        reader, held, stop = zlib.decompressobj(wbits=31), b"", start
        view = memoryview(content)
        # By marks, for what is handed over beyond its end a reader copies. One may stand in a
        # member.
        while not reader.eof and stop < len(content):
            begin, stop = stop, content.find(mark, stop + len(mark))
            stop = len(content) if stop < 0 else stop
            try:
                held += reader.decompress(view[begin:stop], MEMBER_BYTES_MAX)
            except zlib.error:
                return None
            if len(held) >= MEMBER_BYTES_MAX:
                return None
        return (held, stop - len(reader.unused_data)) if reader.eof else None

    def torn_sentence(self) -> str:
        """Return the sentence about a torn end; empty without one."""
        if self.torn is None:
            return ""
        return (
            f"The last {self.torn.bytes_left:,} bytes of {self.path} are no whole block, as a "
            "recorder that was killed leaves them; they are left out."
        )


def member(mark: bytes, content: bytes) -> bytes:
    """Return *content* as one gzip member that begins with *mark*."""
    packer = zlib.compressobj(9, wbits=31)
    return mark + (packer.compress(content) + packer.flush())[len(mark) :]


def begins_with(path: Path, mark: bytes) -> bool:
    """Return whether *path* begins as a file of *mark* does."""
    try:
        with path.open("rb") as file:
            return file.read(len(mark)) == mark
    except OSError:
        return False


class MemberWriter:
    """Appends members of *mark* to the file at *path*; the only writer of it.

    ``is_new`` says whether the file was empty. Raises ``ConfigInvalid`` where it has a writer
    already.
    """

    def __init__(self, path: Path, mark: bytes) -> None:
        self._path, self._mark = path, mark
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            begun = os.pread(self._file, len(mark), 0)
        except BlockingIOError:
            os.close(self._file)
            raise ConfigInvalid(
                f"{path} is being recorded to already; end that or give another --out."
            ) from None
        self.is_new: Final = begun != mark and mark.startswith(begun)
        if self.is_new:
            os.ftruncate(self._file, 0)

    def cut(self, torn: TornTail) -> None:
        """Cut off what is no whole member."""
        os.ftruncate(self._file, torn.whole)

    def append(self, content: bytes) -> None:
        """Append *content* as one member, and have it on the disk.

        A member that finds no room leaves nothing behind.
        """
        left, before = memoryview(member(self._mark, content)), os.fstat(self._file).st_size
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            error.filename = str(self._path)
            raise

    def close(self) -> None:
        """Let others write."""
        os.close(self._file)


class BlockWriter(ABC):
    """Holds what comes until it is a block; each block becomes one member of ``_file``."""

    _file: MemberWriter

    @abstractmethod
    def flush(self) -> None:
        """Write what is held as one block."""

    def __enter__(self) -> Self:
        """Write."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is held, and let others write."""
        try:
            self.flush()
        finally:
            self._file.close()
