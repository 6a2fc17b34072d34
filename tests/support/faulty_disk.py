"""A disk under SQLite that remembers what a power cut leaves, and can be full or fail a sync.

``Disk.installed`` puts a copy of SQLite's VFS ``unix`` before the one that the ``sqlite3`` module
uses. Nothing of the product changes. Only one database may be open on it at a time: its files are
named by their ending, ``""``, ``"-wal"`` or ``"-journal"``.
"""

from __future__ import annotations

import _sqlite3
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

OK, FULL, IOERR_FSYNC = 0, 13, 10 | 4 << 8
ENDINGS = ("-journal", "-wal")


class _Vfs(ctypes.Structure):
    _fields_: ClassVar = [
        ("version", ctypes.c_int),
        ("file_bytes", ctypes.c_int),
        ("longest_name", ctypes.c_int),
        ("following", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("open", ctypes.c_void_p),
        ("delete", ctypes.c_void_p),
        ("others", ctypes.c_void_p * 14),
    ]


class _Methods(ctypes.Structure):
    _fields_: ClassVar = [
        ("version", ctypes.c_int),
        ("close", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("write", ctypes.c_void_p),
        ("truncate", ctypes.c_void_p),
        ("sync", ctypes.c_void_p),
        ("others", ctypes.c_void_p * 13),
    ]


class _File(ctypes.Structure):
    _fields_: ClassVar = [("methods", ctypes.POINTER(_Methods))]


# SQLite keeps the address of a name, so names are passed as addresses.
_address = ctypes.c_void_p
_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, _address, _address, _address, ctypes.c_int, _address)
_DELETE = ctypes.CFUNCTYPE(ctypes.c_int, _address, _address, ctypes.c_int)
_CLOSE = ctypes.CFUNCTYPE(ctypes.c_int, _address)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_int, _address, _address, ctypes.c_int, ctypes.c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, _address, ctypes.c_int64)
_SYNC = ctypes.CFUNCTYPE(ctypes.c_int, _address, ctypes.c_int)

_Change = tuple[int, bytes | None]
"""Bytes written at a place, or None for a file cut to that size."""


class Disk:
    """Contents that the disk has for good, and the changes that only the kernel has yet."""

    def __init__(self) -> None:
        self.durable: dict[str, bytearray] = {}
        self.unwritten: dict[str, list[_Change]] = {}
        self.syncs: dict[str, int] = {}
        self.is_full = False
        self.fails_sync = False
        self.before: Callable[[], object] = object  # called before each operation

    def image(self, *, is_lucky: bool) -> dict[str, bytes]:
        """Return the files after a power cut; if *is_lucky*, with every change of the kernel."""
        files = {ending: bytearray(content) for ending, content in self.durable.items()}
        for ending, changes in self.unwritten.items() if is_lucky else ():
            for change in changes:
                _apply(files.setdefault(ending, bytearray()), change)
        return {ending: bytes(content) for ending, content in files.items()}

    def write(self, ending: str, at: int, data: bytes) -> int:
        """Take a write; return SQLite's code."""
        self.before()
        if self.is_full:
            return FULL
        self.unwritten.setdefault(ending, []).append((at, data))
        return OK

    def truncate(self, ending: str, size: int) -> int:
        """Take a change of the size; return SQLite's code."""
        self.before()
        self.unwritten.setdefault(ending, []).append((size, None))
        return OK

    def sync(self, ending: str) -> int:
        """Take a sync; one that fails leaves the changes with the kernel, as if written."""
        self.before()
        changes = self.unwritten.pop(ending, [])
        self.syncs[ending] = self.syncs.get(ending, 0) + 1
        if self.fails_sync:
            return IOERR_FSYNC
        for change in changes:
            _apply(self.durable.setdefault(ending, bytearray()), change)
        return OK

    def delete(self, ending: str) -> None:
        """Take the removal of a file."""
        self.before()
        self.durable.pop(ending, None)
        self.unwritten.pop(ending, None)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let every connection that is opened and closed in the block use this disk."""
        library = ctypes.CDLL(_sqlite3.__file__)
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        usual = library.sqlite3_vfs_find(None)
        vfs, kept = _watched(usual.contents, self)
        assert library.sqlite3_vfs_register(ctypes.byref(vfs), 1) == OK
        try:
            yield
        finally:
            library.sqlite3_vfs_unregister(ctypes.byref(vfs))
            library.sqlite3_vfs_register(usual, 1)
            kept.clear()


def put(image: dict[str, bytes], path: Path) -> None:
    """Write the files of *image* as the database *path*."""
    path.parent.mkdir()
    for ending, content in image.items():
        path.with_name(path.name + ending).write_bytes(content)


def files_of(path: Path) -> dict[str, bytes]:
    """Return the files of the database *path* as they lie, which is what a kill leaves."""
    files = {ending: path.with_name(path.name + ending) for ending in ("", *ENDINGS)}
    return {ending: file.read_bytes() for ending, file in files.items() if file.exists()}


def _apply(content: bytearray, change: _Change) -> None:
    at, data = change
    if data is None:
        del content[at:]
        return
    content.extend(bytes(max(0, at - len(content))))
    content[at : at + len(data)] = data


def _ending(name: int | None) -> str:
    path = "" if name is None else ctypes.string_at(name).decode()
    return next((ending for ending in ENDINGS if path.endswith(ending)), "")


def _watched_methods(real: _Methods, disk: Disk, endings: dict[int, str]) -> tuple[_Methods, Any]:
    """Return a copy of the methods *real* that ask *disk*, and what must live as long as it does.

    *endings* has the files of the database by their address.
    """
    write, truncate, close = _WRITE(real.write), _TRUNCATE(real.truncate), _CLOSE(real.close)

    def write_file(file: int, data: int, size: int, at: int) -> int:
        code = disk.write(endings[file], at, ctypes.string_at(data, size)) if file in endings else 0
        return code or int(write(file, data, size, at))

    def truncate_file(file: int, size: int) -> int:
        code = disk.truncate(endings[file], size) if file in endings else 0
        return code or int(truncate(file, size))

    def sync_file(file: int, _flags: int) -> int:
        return disk.sync(endings[file]) if file in endings else OK

    def close_file(file: int) -> int:
        endings.pop(file, None)
        return int(close(file))

    table = _Methods.from_buffer_copy(real)
    functions = {
        "write": _WRITE(write_file),
        "truncate": _TRUNCATE(truncate_file),
        "sync": _SYNC(sync_file),
        "close": _CLOSE(close_file),
    }
    for name, function in functions.items():
        setattr(table, name, ctypes.cast(function, ctypes.c_void_p).value)
    return table, (functions, write, truncate, close)


def _watched(usual: _Vfs, disk: Disk) -> tuple[_Vfs, list[Any]]:
    """Return a copy of *usual* whose files ask *disk*, and what must live as long as it does."""
    vfs = _Vfs.from_buffer_copy(usual)
    vfs.following, vfs.name = None, b"faulty"
    endings: dict[int, str] = {}
    tables: dict[int, tuple[_Methods, Any]] = {}
    open_usual, delete_usual = _OPEN(usual.open), _DELETE(usual.delete)

    def open_file(given: int, name: int, file: int, flags: int, out: int) -> int:
        code = int(open_usual(given, name, file, flags, out))
        if code == OK and name:  # a temporary file has no name
            opened = ctypes.cast(file, ctypes.POINTER(_File)).contents
            real = opened.methods.contents
            address = ctypes.addressof(real)
            if address not in tables:
                tables[address] = _watched_methods(real, disk, endings)
            opened.methods = ctypes.pointer(tables[address][0])
            endings[file] = _ending(name)
        return code

    def delete_file(given: int, name: int, is_synced: int) -> int:
        disk.delete(_ending(name))
        return int(delete_usual(given, name, is_synced))

    opening, deleting = _OPEN(open_file), _DELETE(delete_file)
    vfs.open = ctypes.cast(opening, ctypes.c_void_p).value
    vfs.delete = ctypes.cast(deleting, ctypes.c_void_p).value
    return vfs, [opening, deleting, open_usual, delete_usual, tables, endings]
