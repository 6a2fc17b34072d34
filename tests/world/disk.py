"""A disk under the record: each operation of SQLite, and of ``FILE.lock``, can be watched or fail.

``install`` puts a copy of SQLite's VFS ``unix`` before the one that the ``sqlite3`` module uses.
Its files ask the disk that was installed last before each read, write, truncation and sync.
Nothing of the product changes, and no file is really synced.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Final, NamedTuple

from tracepaper.storage.database import lock

OK: Final = sqlite3.SQLITE_OK
FULL: Final = sqlite3.SQLITE_FULL
IOERR: Final = sqlite3.SQLITE_IOERR
FAILURES: Final[Mapping[str, int]] = {
    "read": sqlite3.SQLITE_IOERR_READ,
    "write": sqlite3.SQLITE_IOERR_WRITE,
    "truncate": sqlite3.SQLITE_IOERR_TRUNCATE,
    "sync": sqlite3.SQLITE_IOERR_FSYNC,
}
"""SQLite's code of a failed operation by its kind."""
KILLED: Final = 9
"""The exit code of a process that a disk has killed."""


class Operation(NamedTuple):
    """What happened to a file.

    *kind* is ``create``, ``write``, ``truncate``, ``sync``, ``failed sync``, ``delete``, ``rename``
    or ``folder``, which is the sync of a folder. *offset* is the place in bytes of a write and the
    size of a truncation. *data* are the bytes written, or the new name. An ``acknowledge`` has a
    run's id for a path, and the number of its steps for an offset; a ``promise`` has a file
    that the product says is there.
    """

    kind: str
    path: str
    offset: int = 0
    data: bytes = b""


class Disk:
    """A disk on which every operation succeeds."""

    def __init__(self) -> None:
        self.operations = 0  # those that were asked for, also those that failed

    def before(self, kind: str, path: str, offset: int, size: int) -> int | None:
        """Return None to let a read, write, truncate or sync happen, else how it fails.

        A positive number is SQLite's error code. A negative number -n lets n bytes of a write
        arrive, and fails it as a full disk does. *size* is in bytes, 0 for truncate and sync.
        """

    def done(self, operation: Operation) -> None:
        """Take what has happened to a file."""


class Recorder(Disk):
    """A disk that keeps its history."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Operation] = []

    def done(self, operation: Operation) -> None:
        self.history.append(operation)


FOREVER: Final = 1_000_000


class Outage(Mapping[int, int]):
    """One error of *span* operations from the operation *first* on, as ``Faults.errors`` has it."""

    def __init__(self, first: int, code: int, span: int = FOREVER) -> None:
        self._numbers, self._code = range(first, first + span), code

    def __getitem__(self, number: int) -> int:
        if number not in self._numbers:
            raise KeyError(number)
        return self._code

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


class Faults(Disk):
    """A disk that fails, or kills its process, at numbered operations; the first is number 1.

    *errors* has SQLite's error code by operation, or -n for a write of which n bytes arrive. The
    code ``IOERR`` becomes that of the operation's kind. A full disk (``FULL`` or -n) fails writes
    only. *kill_at* is the operation at which the process dies; if *is_short*, half of a write
    arrives there, and the process dies at the next operation.
    """

    def __init__(
        self, *, kill_at: int = 0, is_short: bool = False, errors: Mapping[int, int] | None = None
    ) -> None:
        super().__init__()
        self.kill_at, self.is_short = kill_at, is_short
        self.errors: Mapping[int, int] = errors or {}
        self.fired = 0

    def before(self, kind: str, path: str, offset: int, size: int) -> int | None:
        is_half = self.is_short and kind == "write"
        if 0 < self.kill_at < self.operations or (self.kill_at == self.operations and not is_half):
            os._exit(KILLED)
        if self.kill_at == self.operations:
            return -max(1, size // 2)
        code = self.errors.get(self.operations)
        if code is None or (kind != "write" and (code < 0 or code == FULL)):
            return None
        self.fired += 1
        return FAILURES[kind] if code == IOERR else code


# ---------------------------------------------------------------- the disk of this process

_disk = Disk()


def install(disk: Disk) -> None:
    """Let every connection that is opened from now on, and the instance lock, ask *disk*.

    A later call only changes the disk, also for the files that are open.
    """
    global _disk  # noqa: PLW0603
    _disk = disk
    if not _kept:
        _kept.append(_registered())
    _library().sqlite3_vfs_register(ctypes.byref(_kept[0]), 1)
    setattr(lock, "os", _LockFiles())  # noqa: B010
    lock.InstanceLock.acknowledge = _acknowledge  # type: ignore[method-assign]


@contextmanager
def installed(disk: Disk) -> Iterator[None]:
    """Let the connections of the block ask *disk*, which ask none afterwards."""
    library = _library()
    library.sqlite3_vfs_find.restype = ctypes.c_void_p
    usual = library.sqlite3_vfs_find(None)
    install(disk)
    try:
        yield
    finally:
        install(Disk())
        library.sqlite3_vfs_register(ctypes.c_void_p(usual), 1)
        setattr(lock, "os", os)  # noqa: B010
        lock.InstanceLock.acknowledge = _usual_acknowledge  # type: ignore[method-assign]


def _asked(kind: str, path: str, offset: int = 0, size: int = 0) -> int | None:
    _disk.operations += 1
    return _disk.before(kind, path, offset, size)


# ---------------------------------------------------------------- the instance lock

_usual_acknowledge = lock.InstanceLock.acknowledge


def _acknowledge(self: lock.InstanceLock, run_id: str, steps: int) -> None:
    _disk.done(Operation("acknowledge", run_id, steps))
    _usual_acknowledge(self, run_id, steps)


class _LockFiles:
    """The module ``os`` for the instance lock: its writes to its file ask the disk."""

    _paths: ClassVar[dict[int, str]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o777) -> int:
        is_there = os.path.exists(path)  # noqa: PTH110
        descriptor = os.open(path, flags, mode)
        self._paths[descriptor] = os.fspath(path)
        if not is_there:
            _disk.done(Operation("create", os.fspath(path)))
        return descriptor

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        path = self._paths[descriptor]
        if (code := _asked("write", path, offset, len(data))) is not None:
            if code > 0:
                raise os_error(code, path)
            data = data[:-code]
        count = os.pwrite(descriptor, data, offset)
        _disk.done(Operation("write", path, offset, data[:count]))
        return count

    def truncate(self, descriptor: int, size: int) -> None:
        path = self._paths[descriptor]
        if (code := _asked("truncate", path, size)) is not None:
            raise os_error(code, path)
        os.truncate(descriptor, size)
        _disk.done(Operation("truncate", path, size))


def os_error(code: int, path: str) -> OSError:
    """Return the error of the system that stands for SQLite's *code*."""
    number = errno.ENOSPC if code == FULL else errno.EIO
    return OSError(number, os.strerror(number), path)


# ---------------------------------------------------------------- the VFS


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


class _Vfs(ctypes.Structure):
    _fields_: ClassVar = [
        ("version", ctypes.c_int),
        ("file_bytes", ctypes.c_int),
        ("longest_name", ctypes.c_int),
        ("following", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        *_pointers("data", "open", "delete"),
        ("others", ctypes.c_void_p * 14),
    ]


class _Methods(ctypes.Structure):
    _fields_: ClassVar = [
        ("version", ctypes.c_int),
        *_pointers("close", "read", "write", "truncate", "sync"),
        ("others", ctypes.c_void_p * 13),
    ]


class _File(ctypes.Structure):
    _fields_: ClassVar = [("methods", ctypes.POINTER(_Methods))]


# SQLite keeps the address of a name: what ctypes converts to bytes would dangle.
_ADDRESS: Final = ctypes.c_void_p
_OPEN: Final = ctypes.CFUNCTYPE(ctypes.c_int, _ADDRESS, _ADDRESS, _ADDRESS, ctypes.c_int, _ADDRESS)
_DELETE: Final = ctypes.CFUNCTYPE(ctypes.c_int, _ADDRESS, _ADDRESS, ctypes.c_int)
_CLOSE: Final = ctypes.CFUNCTYPE(ctypes.c_int, _ADDRESS)
_DATA: Final = ctypes.CFUNCTYPE(ctypes.c_int, _ADDRESS, _ADDRESS, ctypes.c_int, ctypes.c_int64)
_TRUNCATE: Final = ctypes.CFUNCTYPE(ctypes.c_int, _ADDRESS, ctypes.c_int64)
_SYNC: Final = ctypes.CFUNCTYPE(ctypes.c_int, _ADDRESS, ctypes.c_int)
_JOURNALS: Final = 0x800 | 0x80000
"""The flags of a journal and of a log; SQLite syncs the folder at the first sync of an open one."""

_kept: list[_Vfs] = []
_paths: dict[int, str] = {}  # by the address of an open file
_unlisted: set[int] = set()  # journals and logs that were not synced since they were opened
_methods: dict[int, _Methods] = {}  # ours by the address of the usual ones
_functions: list[object] = []  # must live as long as SQLite may call them


def _library() -> ctypes.CDLL:
    """Return the library of the ``sqlite3`` module, which may be part of the interpreter."""
    return ctypes.CDLL(getattr(_sqlite3, "__file__", None))


def _function(prototype: Callable[..., Any], function: Callable[..., int]) -> int | None:
    """Return the address of *function* for C."""
    made = prototype(function)
    _functions.append(made)
    return ctypes.cast(made, ctypes.c_void_p).value


def _registered() -> _Vfs:
    """Return a copy of SQLite's VFS ``unix`` whose files ask the disk."""
    library = _library()
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    usual = library.sqlite3_vfs_find(b"unix").contents
    vfs = _Vfs.from_buffer_copy(usual)
    vfs.following, vfs.name = None, b"world"
    open_usual, delete_usual = _OPEN(usual.open), _DELETE(usual.delete)

    def open_file(given: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        path = "" if name is None else ctypes.string_at(name).decode()
        is_there = os.path.exists(path)  # noqa: PTH110
        code = int(open_usual(given, name, file, flags, out))
        if code == OK and path:  # a temporary file has no name
            opened = ctypes.cast(file, ctypes.POINTER(_File)).contents
            real = opened.methods.contents
            address = ctypes.addressof(real)
            if address not in _methods:
                _methods[address] = _watched(real)
            opened.methods = ctypes.pointer(_methods[address])
            _paths[file] = path
            if not is_there:
                _disk.done(Operation("create", path))
            if flags & _JOURNALS:
                _unlisted.add(file)
        return code

    def delete_file(given: int, name: int, is_synced: int) -> int:
        code = int(delete_usual(given, name, is_synced))
        if code == OK:
            path = ctypes.string_at(name).decode()
            _disk.done(Operation("delete", path))
            if is_synced:
                _disk.done(Operation("folder", os.path.dirname(path)))  # noqa: PTH120
        return code

    vfs.open, vfs.delete = _function(_OPEN, open_file), _function(_DELETE, delete_file)
    return vfs


def _watched(real: _Methods) -> _Methods:
    """Return a copy of the methods *real* that ask the disk."""
    methods = _Methods.from_buffer_copy(real)
    _watch_contents(real, methods)
    _watch_ends(real, methods)
    return methods


def _watch_contents(real: _Methods, methods: _Methods) -> None:
    """Let reads and writes of *methods* ask the disk before those of *real*."""
    read, write = _DATA(real.read), _DATA(real.write)

    def read_file(file: int, data: int, size: int, offset: int) -> int:
        code = _asked("read", _paths[file], offset, size)
        return int(read(file, data, size, offset)) if code is None else code

    def write_file(file: int, data: int, size: int, offset: int) -> int:
        path, length, failed = _paths[file], size, OK
        if (code := _asked("write", path, offset, size)) is not None:
            if code > 0:
                return code
            length, failed = min(size, -code), FULL
        content = ctypes.string_at(data, length)
        code = int(write(file, data, length, offset))
        if code == OK:
            _disk.done(Operation("write", path, offset, content))
        return code or failed

    methods.read, methods.write = _function(_DATA, read_file), _function(_DATA, write_file)


def _watch_ends(real: _Methods, methods: _Methods) -> None:
    """Let truncations and syncs of *methods* ask the disk; the close of *real* forgets the file."""
    truncate, close = _TRUNCATE(real.truncate), _CLOSE(real.close)

    def truncate_file(file: int, size: int) -> int:
        path = _paths[file]
        if (code := _asked("truncate", path, size)) is None:
            code = int(truncate(file, size))
            if code == OK:
                _disk.done(Operation("truncate", path, size))
        return code

    def sync_file(file: int, _flags: int) -> int:
        path = _paths[file]
        if (code := _asked("sync", path)) is not None:
            _disk.done(Operation("failed sync", path))
            return code
        _disk.done(Operation("sync", path))
        if file in _unlisted:
            _unlisted.discard(file)
            _disk.done(Operation("folder", os.path.dirname(path)))  # noqa: PTH120
        return OK

    def close_file(file: int) -> int:
        _paths.pop(file, None)
        _unlisted.discard(file)
        return int(close(file))

    methods.truncate = _function(_TRUNCATE, truncate_file)
    methods.sync, methods.close = _function(_SYNC, sync_file), _function(_CLOSE, close_file)
