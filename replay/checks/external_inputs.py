"""Records what a user's class opens besides its arguments: files, addresses and programs.

An audit hook in the process of a check sees the event that Python raises for each. Native code,
such as that of polars, raises none.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import linecache
import os
import site
import sys
import sysconfig
import threading
import tokenize
import traceback
import warnings
import zipfile
import zoneinfo
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Final

from msgspec import Struct

from tracepaper.daemon.session.user_code import PACKAGE_FOLDERS, SUFFIXES
from tracepaper.daemon.session.user_error import INSTALLED

NAMES_KEPT: Final = 200
"""Most names kept, in case a class opens a new file at every bar."""

NATIVE_READERS: Final = (
    "polars", "pyarrow", "duckdb", "h5py", "tables", "netCDF4", "lmdb", "lxml", "cv2", "torch",
    "pyogrio", "rasterio", "connectorx", "fastparquet", "psycopg", "psycopg2", "MySQLdb", "pycurl",
    "curl_cffi", "grpc", "zmq", "numba", "cffi", "_gdbm", "_dbm",
)  # fmt: skip
"""Packages whose compiled code opens files or addresses without an audit event."""

_HARMLESS: Final = frozenset({os.devnull, "/dev/urandom", "/dev/random"})
_MACHINE: Final = ("/proc/", "/sys/")
_CODE: Final = frozenset(SUFFIXES)
_PACKAGE: Final = "tracepaper"
_WRITING: Final = os.O_WRONLY | os.O_RDWR
_METADATA_FILES: Final = frozenset(
    str(path) for path in Path(importlib.metadata.__file__).parent.glob("*.py")
)
_LINE_READERS: Final = frozenset({linecache.__file__, tokenize.__file__})
_LINE_PRINTERS: Final = frozenset(
    {sys.modules.get("_py_warnings", warnings).__file__, traceback.__file__}
)
"""Modules that read source lines, and those that print them with a warning or an error."""
_COMPILED: Final = tuple(importlib.machinery.EXTENSION_SUFFIXES)


class ExternalInput(Struct, frozen=True):
    """One thing that was opened: ``what`` is ``file``, ``address`` or ``program``."""

    what: str
    name: str


class _Local(threading.local):
    """Whether this thread is in the hook, whose own accesses are ignored."""

    busy = False


_local: Final = _Local()
_opened: Final[dict[ExternalInput, None]] = {}
_sources: Final[dict[ExternalInput, None]] = {}
"""Files that Python's import opened; a file read as data is in ``_opened``."""
_written: Final[set[ExternalInput]] = set()
_attaching: Final[set[str]] = set()
_modules: Final[set[str]] = set()
_packages: Final[set[str]] = set()
"""The modules of the classes, and the outermost packages of those that are not tracepaper's."""


def listen(owners: Collection[str]) -> None:
    """Record from now on what the classes *owners* (``module:Class``) open in this process."""
    is_first = not _modules
    for owner in owners:
        module = owner.partition(":")[0]
        _modules.add(module)
        _packages.update({module.partition(".")[0]} - {_PACKAGE})
    if is_first and _modules:  # Python cannot remove a hook
        sys.addaudithook(_on_audit_event)


def opened(folders: Collection[Path], declared: Collection[Path]) -> Sequence[ExternalInput]:
    """Return the opened inputs in order, without the classes' sources in *folders*.

    A *declared* file is left out unless the class writes it.
    """
    # Copy each atomically: another thread of the class may add to it.
    modules, exempt = set(custom_modules(folders)), {str(path) for path in declared}
    elsewhere = [item for item in tuple(_sources) if item.name not in modules]
    read = [item for item in tuple(_opened) if item.name not in exempt or item in _written]
    return tuple(dict.fromkeys((*elsewhere, *read)))


def custom_modules(folders: Collection[Path]) -> Sequence[str]:
    """Return the files, sources or compiled, that Python imported from *folders*."""
    inside = tuple(f"{folder}{os.sep}" for folder in folders)
    names = [item.name for item in tuple(_sources)]
    return [name for name in names if name.startswith(inside) and Path(name).suffix in _CODE]


def native_readers() -> list[str]:
    """Return the loaded packages that can read without an audit event, and SQLite where used."""
    return [name for name in NATIVE_READERS if name in sys.modules] + sorted(_attaching)


def compiled_modules() -> list[str]:
    """Return the loaded, installed modules of compiled code, in the order of loading."""
    folders = _installed(len(sys.path))
    files = [(name, getattr(module, "__file__", None)) for name, module in sys.modules.items()]
    return [
        name
        for name, file in files
        if file is not None and file.endswith(_COMPILED) and file.startswith(folders)
    ]


# ---------------------------------------------------------------- the hook


def _on_audit_event(event: str, args: tuple[Any, ...]) -> None:
    read = _EVENTS.get(event)
    if read is None or _local.busy:
        return
    _local.busy = True
    try:
        frame = sys._getframe(1)  # noqa: SLF001 - the frame that raised it
        is_module = event == "open" and _is_module_import(frame)
        if not is_module and not _is_for_user(frame):
            return
        item = read((_source(args[0]),) if is_module else args)
        if item is None or _is_opened_by_package(event, item, frame):
            return
        if not is_module or not item.name.startswith(PACKAGE_FOLDERS):
            inputs = _sources if is_module else _opened
            if len(inputs) < NAMES_KEPT:
                inputs[item] = None
        if event == "open" and args[2] & _WRITING:
            _written.add(item)
    finally:
        _local.busy = False


def _is_for_user(frame: FrameType) -> bool:
    """Return whether a user's code is on the stack, or started this thread.

    Only a user's class starts threads in the process of a check.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return True
    exempt = ("<", *PACKAGE_FOLDERS, *_installed(len(sys.path)))
    for each in _outwards(frame):
        module = str(each.f_globals.get("__name__"))
        # A user's class may be an installed package, or one of tracepaper's examples.
        if module in _modules or module.partition(".")[0] in _packages:
            return True
        if not each.f_code.co_filename.startswith(exempt):
            return True
    return False


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_opened_by_package(event: str, item: ExternalInput, frame: FrameType) -> bool:
    """Return whether *item* is installed, or Python's import or a package opened it."""
    folders = _installed(len(sys.path))
    if item.what == "file" and (
        item.name in _HARMLESS or f"{item.name}{os.sep}".startswith(folders)
    ):
        return True
    if event == "ctypes.dlopen":
        while frame.f_back is not None and "/ctypes/" in frame.f_code.co_filename:
            frame = frame.f_back
        # The import of ctypes opens the libraries of the process.
        return frame.f_code.co_filename.startswith(("<frozen importlib", *folders))
    if (
        # A version look-up lists every folder and archive of ``sys.path``.
        _caller(frame, zipfile.__file__) in _METADATA_FILES
        # A warning or a traceback reads the line of source that it prints.
        or _caller(frame, *_LINE_READERS) in _LINE_PRINTERS
        # A package examines the machine while it is imported: psutil reads ``/proc/stat``, and
        # scikit-learn imports joblib, which imports psutil.
        or (
            item.name.startswith(_MACHINE)
            and _caller(frame, *folders).startswith("<frozen importlib")
        )
    ):
        return True
    if not frame.f_code.co_filename.startswith("<frozen importlib"):
        return False
    # Python's import lists folders, and writes compiled code to a numbered temporary file.
    return event != "open" or ".pyc." in Path(item.name).name


def _is_module_import(frame: FrameType) -> bool:
    """Return whether Python loads a module; ``get_data`` of a loader alone reads any file."""
    loading = [
        each.f_code.co_name
        for each in islice(_outwards(frame), 2)
        if each.f_code.co_filename.startswith("<frozen importlib")
    ]
    return loading == ["get_data", "get_code"]


def _source(path: str) -> str:
    """Return the source path of the module at *path*, also where that is cached bytecode."""
    try:
        return importlib.util.source_from_cache(path)
    except ValueError:
        return path  # the source, or a module without one


def _caller(frame: FrameType | None, *through: str) -> str:
    """Return the file of the first frame outwards whose path begins with none of *through*."""
    while frame is not None and frame.f_code.co_filename.startswith(through):
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_filename


def _file(path: object) -> ExternalInput | None:
    if path is None:
        return ExternalInput("file", os.getcwd())  # noqa: PTH109 - raises no audit event
    if isinstance(path, int):
        try:
            path = os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115 - likewise
        except OSError:
            path = f"file descriptor {path}"
        return ExternalInput("file", path)
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError:
        text = str(path)
    return ExternalInput("file", os.path.realpath(text))


def _database(args: tuple[Any, ...]) -> ExternalInput | None:
    text = os.fsdecode(args[0])
    if text in ("", ":memory:"):
        _attaching.add("sqlite3")  # its ATTACH raises no event
        return None
    return _file(text.removeprefix("file:").partition("?")[0])


def _address(address: object) -> ExternalInput | None:
    match address:
        case None:
            return None
        case (host, port, *_):
            return ExternalInput("address", f"{_text(host)}:{_text(port)}")
        case _:
            return ExternalInput("address", _text(address))


def _program(*words: object) -> ExternalInput:
    for word in words:
        if isinstance(word, (list, tuple)) and word:
            return ExternalInput("program", _text(word[0]))
        if word:
            return ExternalInput("program", _text(word))
    return ExternalInput("program", "a copy of this process")


def _text(value: object) -> str:
    if isinstance(value, (str, bytes, os.PathLike)):
        return os.fsdecode(value)
    return str(value)


_EVENTS: Final[Mapping[str, Callable[[tuple[Any, ...]], ExternalInput | None]]] = {
    **dict.fromkeys(
        (
            "open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.link", "os.symlink",
            "os.truncate", "os.mkdir", "os.rmdir", "os.getxattr", "os.listxattr",
        ),
        lambda args: _file(args[0]),
    ),
    "builtins.input": lambda _: ExternalInput("file", "standard input"),
    "sqlite3.connect": _database,
    "mmap.__new__": lambda args: None if args[0] < 0 else _file(args[0]),
    "sqlite3.load_extension": lambda args: _file(args[1]),
    "ctypes.dlopen": lambda args: (
        _program("ctypes.CDLL(None)")
        if args[0] is None
        else ExternalInput("file", _text(args[0]))
    ),
    **dict.fromkeys(
        ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"),
        lambda args: _address(args[1]),
    ),
    "socket.getaddrinfo": lambda args: _address(args[:2]),
    **dict.fromkeys(
        ("socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"),
        lambda args: _address(args[0]),
    ),
    "subprocess.Popen": lambda args: _program(args[0], args[1]),
    **dict.fromkeys(
        ("os.system", "os.exec", "os.posix_spawn", "pty.spawn"), lambda args: _program(args[0])
    ),
    "os.spawn": lambda args: _program(args[1]),
    **dict.fromkeys(("os.fork", "os.forkpty"), lambda _: _program()),
}  # fmt: skip


# ---------------------------------------------------------------- exemptions


@cache
def _installed(_entries: int) -> tuple[str, ...]:
    """Return the folders of the standard library, of installed packages and of time zones.

    The argument is the length of ``sys.path``: the cache is renewed when it changes.
    """
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [path for path in sys.path if Path(path).name in INSTALLED]
    folders += [*site.getsitepackages(), site.getusersitepackages(), *zoneinfo.TZPATH]
    return tuple(
        {end for path in folders for end in (path + os.sep, os.path.realpath(path) + os.sep)}
    )
