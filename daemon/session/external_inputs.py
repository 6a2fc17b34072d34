"""External inputs of a user's class: the files, addresses and programs that it opens.

A hook sees the audit event that Python raises for each. Native code, such as that of polars, raises
none.

The rule is docs/identity.md, I16.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Final

from msgspec import Struct

NAMES_KEPT: Final = 200
"""Names kept of one class; by then a class that opens a new file at every bar is known as such."""

NATIVE_READERS: Final = (
    "polars", "pyarrow", "duckdb", "h5py", "tables", "netCDF4", "lmdb", "lxml", "cv2", "torch",
    "pyogrio", "rasterio", "connectorx", "fastparquet", "psycopg", "psycopg2", "MySQLdb", "pycurl",
    "curl_cffi", "grpc", "zmq", "numba", "cffi", "_gdbm", "_dbm",
)  # fmt: skip
"""Packages whose compiled code opens files or addresses by itself, unseen by the hook."""

SUFFIXES: Final = (".py", ".so", ".pyd", ".pyc")
"""Files that hold code; a name with the first of them that exists is what Python imports."""

INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
"""Names of the folders that hold installed packages."""

_HARMLESS: Final = frozenset({os.devnull, "/dev/urandom", "/dev/random"})
_MACHINE: Final = ("/proc/", "/sys/")
_CODE: Final = frozenset(SUFFIXES)
_WRITING: Final = os.O_WRONLY | os.O_RDWR
_METADATA: Final = frozenset(
    str(path) for path in Path(importlib.metadata.__file__).parent.glob("*.py")
)
_LINES: Final = frozenset({linecache.__file__, tokenize.__file__})
_SHOWN_BY: Final = frozenset(
    {sys.modules.get("_py_warnings", warnings).__file__, traceback.__file__}
)
"""Modules that read a line of a source, and those that show it with a warning or an error."""
_COMPILED: Final = tuple(importlib.machinery.EXTENSION_SUFFIXES)
_HERE: Final = Path(__file__).resolve().parents[2]
ROOMS: Final = tuple(
    f"{_HERE / package}{os.sep}" for package in ("daemon", "replay", "storage", "strategies")
)
"""Folders of tracepaper's own sources, each with its separator."""


class Outside(Struct, frozen=True):
    """One thing that was opened: ``what`` is ``file``, ``address`` or ``program``."""

    what: str
    name: str


class _Local(threading.local):
    """The strategy whose code runs in this thread; empty where tracepaper's own does."""

    owner = ""
    busy = False


_local: Final = _Local()
_opened: Final[dict[str, dict[Outside, None]]] = {}
_sources: Final[dict[str, dict[Outside, None]]] = {}
"""What Python's import system opened; a file that is read as data is in ``_opened``."""
_folders: Final[dict[str, str]] = {}
_watching: Final[list[bool]] = []
_claimed: Final[list[str]] = []
_attaching: Final[set[str]] = set()
_written: Final[set[Outside]] = set()
_declared: Final[set[str]] = set()


class AttributedTo:
    """Attributes what this thread opens meanwhile to *owner*, a strategy's name."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._before = ""
        watch()

    def __enter__(self) -> None:
        """Let the user's code begin."""
        self._before, _local.owner = _local.owner, self._owner

    def __exit__(self, *_error: object) -> None:
        """Go back to who ran before."""
        _local.owner = self._before


def watch() -> None:
    """Add the hook, once; Python cannot take one away again."""
    if not _watching:
        _watching.append(True)
        sys.addaudithook(_on_audit_event)


def belongs(owner: str, folder: Path | None) -> None:
    """Remember the folder of *owner*'s sources: they are exempt, and known in other threads."""
    if folder is not None:
        _folders[owner] = str(folder)


def declare(paths: Iterable[Path]) -> None:
    """Exempt *paths*: files that the configuration names, whose content is part of an id."""
    _declared.update(str(path) for path in paths)


def claim_threads(owner: str) -> None:
    """Attribute to *owner* what a thread opens whose stack holds no known frame.

    For a process that has no threads of its own; a daemon's resolve names, say.
    """
    _claimed.append(owner)


def opened(owner: str) -> Sequence[Outside]:
    """Return the external inputs that the class *owner* has opened in this process, in order."""
    # Copied at once: another thread of the same class may add to it meanwhile.
    own, sources = set(own_modules(owner)), tuple(_sources.get(owner, ()))
    elsewhere = [item for item in sources if item.name not in own]
    # A file that the configuration names is no input, unless the class writes it.
    read = [
        item
        for item in tuple(_opened.get(owner, ()))
        if item.name not in _declared or item in _written
    ]
    return tuple(dict.fromkeys((*elsewhere, *read)))


def own_modules(owner: str) -> Sequence[str]:
    """Return the files, sources or compiled, that Python imported from the folder of *owner*."""
    if (folder := _folders.get(owner)) is None:
        return ()
    inside = folder + os.sep
    names = [item.name for item in tuple(_sources.get(owner, ()))]
    return [name for name in names if name.startswith(inside) and Path(name).suffix in _CODE]


class NewlyOpened:
    """A function of no arguments: what the classes *owners* have opened since the call before."""

    def __init__(self, *owners: str) -> None:
        self._owners = owners
        self._counted = 0
        self._returned: set[Outside] = set()

    def __call__(self) -> Sequence[Outside]:
        """Return the new external inputs, in order."""
        count = 0
        for owner in self._owners:
            for table in (_opened, _sources):
                if (own := table.get(owner)) is not None:
                    count += len(own)
        if count == self._counted:
            return ()
        self._counted = count
        inputs = [item for owner in self._owners for item in opened(owner)]
        new = [item for item in dict.fromkeys(inputs) if item not in self._returned]
        self._returned.update(new)
        return new


def native_readers() -> list[str]:
    """Return the names of loaded packages that can read without an audit event, SQLite if used."""
    return [name for name in NATIVE_READERS if name in sys.modules] + sorted(_attaching)


def compiled_modules() -> list[str]:
    """Return the installed modules of compiled code that are loaded, in the order of loading."""
    folders = _installed(len(sys.path))
    files = [(name, getattr(module, "__file__", None)) for name, module in sys.modules.items()]
    return [
        name
        for name, file in files
        if file is not None and file.endswith(_COMPILED) and file.startswith(folders)
    ]


# ---------------------------------------------------------------- the hook


def _on_audit_event(event: str, arguments: tuple[Any, ...]) -> None:
    read = _EVENTS.get(event)
    if read is None or _local.busy:
        return
    _local.busy = True
    try:
        owner = _local.owner or _owner_of_thread()
        if owner:
            item = read(arguments)
            if item is not None and not _is_opened_by_package(event, item):
                is_module = event == "open" and _is_module_import()
                if not is_module or not item.name.startswith(ROOMS):
                    inputs = (_sources if is_module else _opened).setdefault(owner, {})
                    if len(inputs) < NAMES_KEPT:
                        inputs[item] = None
                if event == "open" and arguments[2] & _WRITING:
                    _written.add(item)
    finally:
        _local.busy = False


def _owner_of_thread() -> str:
    """Return the owner of the nearest known frame; empty in the main thread and for our code."""
    if threading.get_ident() == threading.main_thread().ident:
        return ""
    frame = sys._getframe(1)  # noqa: SLF001 - the only way to a thread's own stack
    while frame is not None:
        file = frame.f_code.co_filename
        # Ours and installed code may lie below the class's folder: beside a `.venv`, say.
        if file.startswith(ROOMS):
            if file != __file__:
                return ""
        elif not file.startswith(_installed(len(sys.path))):
            for owner, folder in _folders.items():
                if file.startswith(folder + os.sep):
                    return owner
        frame = frame.f_back  # type: ignore[assignment]
    return _claimed[-1] if _claimed else ""


def _is_opened_by_package(event: str, item: Outside) -> bool:
    """Return whether *item* is installed, or Python's import or a package opens it for itself."""
    if item.what == "file" and (
        item.name in _HARMLESS or item.name.startswith(_installed(len(sys.path)))
    ):
        return True
    frame = sys._getframe(2)  # noqa: SLF001 - who asked for it
    if event == "ctypes.dlopen":
        while frame.f_back is not None and "/ctypes/" in frame.f_code.co_filename:
            frame = frame.f_back
        # While ctypes is imported it opens the process's own libraries.
        exempt = ("<frozen importlib", *_installed(len(sys.path)))
        return frame.f_code.co_filename.startswith(exempt)
    if _looks_up_version(frame) or _prints_source_line(frame) or _examines_machine(frame, item):
        return True
    if not frame.f_code.co_filename.startswith("<frozen importlib"):
        return False
    # Python's import lists folders, and writes compiled code by way of a numbered file.
    return event != "open" or ".pyc." in Path(item.name).name


def _is_module_import() -> bool:
    """Return whether Python loads a module; a loader's ``get_data`` alone reads any file."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - who asked for it
    names = []
    for _ in ("get_data", "get_code"):
        if frame is None or not frame.f_code.co_filename.startswith("<frozen importlib"):
            return False
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names == ["get_data", "get_code"]


def _prints_source_line(frame: FrameType | None) -> bool:
    """Return whether a warning or a traceback reads the line of source that it prints."""
    while frame is not None and frame.f_code.co_filename in _LINES:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename in _SHOWN_BY


def _looks_up_version(frame: FrameType | None) -> bool:
    """Return whether a package's version is looked up, which lists every folder of ``sys.path``."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file in _METADATA:
            return True
        if file != zipfile.__file__:  # some of the folders may be archives
            return False
        frame = frame.f_back
    return False


def _examines_machine(frame: FrameType | None, item: Outside) -> bool:
    """Return whether an installed package examines the machine while it is imported.

    psutil reads the columns of ``/proc/stat``; scikit-learn imports joblib, which imports psutil.
    """
    if not item.name.startswith(_MACHINE):
        return False
    while frame is not None and frame.f_code.co_filename.startswith(_installed(len(sys.path))):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith("<frozen importlib")


def _file(path: object) -> Outside | None:
    if path is None:
        return Outside("file", os.getcwd())  # noqa: PTH109 - an audit event must not raise others
    if isinstance(path, int):
        try:
            path = os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115 - likewise
        except OSError:
            path = f"file descriptor {path}"
        return Outside("file", path)
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError:
        text = str(path)
    return Outside("file", os.path.realpath(text))


def _database(arguments: tuple[Any, ...]) -> Outside | None:
    text = os.fsdecode(arguments[0])
    if text in ("", ":memory:"):
        _attaching.add("sqlite3")  # its ATTACH raises no event
        return None
    return _file(text.removeprefix("file:").partition("?")[0])


def _address(address: object) -> Outside | None:
    match address:
        case None:
            return None
        case (host, port, *_):
            return Outside("address", f"{_text(host)}:{_text(port)}")
        case _:
            return Outside("address", _text(address))


def _program(*words: object) -> Outside:
    for word in words:
        if isinstance(word, (list, tuple)) and word:
            return Outside("program", _text(word[0]))
        if word:
            return Outside("program", _text(word))
    return Outside("program", "a copy of this process")


def _text(value: object) -> str:
    if isinstance(value, (str, bytes, os.PathLike)):
        return os.fsdecode(value)
    return str(value)


def _second_as_address(arguments: tuple[Any, ...]) -> Outside | None:
    return _address(arguments[1])


_EVENTS: Final[Mapping[str, Callable[[tuple[Any, ...]], Outside | None]]] = {
    **dict.fromkeys(
        (
            "open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.link", "os.symlink",
            "os.truncate", "os.mkdir", "os.rmdir", "os.getxattr", "os.listxattr",
        ),
        lambda given: _file(given[0]),
    ),
    "builtins.input": lambda _: Outside("file", "standard input"),
    "sqlite3.connect": _database,
    "mmap.__new__": lambda given: None if given[0] < 0 else _file(given[0]),
    "sqlite3.load_extension": lambda given: _file(given[1]),
    "ctypes.dlopen": lambda given: (
        _program("ctypes.CDLL(None)") if given[0] is None else Outside("file", _text(given[0]))
    ),
    "socket.connect": _second_as_address,
    "socket.bind": _second_as_address,
    "socket.sendto": _second_as_address,
    "socket.sendmsg": _second_as_address,
    "socket.getaddrinfo": lambda given: _address(given[:2]),
    "socket.gethostbyname": lambda given: _address(given[0]),
    "socket.gethostbyaddr": lambda given: _address(given[0]),
    "socket.getnameinfo": lambda given: _address(given[0]),
    "subprocess.Popen": lambda given: _program(given[0], given[1]),
    "os.system": lambda given: _program(given[0]),
    "os.exec": lambda given: _program(given[0]),
    "os.posix_spawn": lambda given: _program(given[0]),
    "os.spawn": lambda given: _program(given[1]),
    "os.fork": lambda _: _program(),
    "os.forkpty": lambda _: _program(),
    "pty.spawn": lambda given: _program(given[0]),
}  # fmt: skip


# ---------------------------------------------------------------- exemptions


@cache
def _installed(_entries: int) -> tuple[str, ...]:
    """Return the folders of the standard library, of installed packages and of time zones.

    They are looked for again where ``sys.path`` has another length.
    """
    paths = sysconfig.get_paths()
    given = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    given += [path for path in sys.path if Path(path).name in INSTALLED]
    given += [*site.getsitepackages(), site.getusersitepackages(), *zoneinfo.TZPATH]
    return tuple(
        {end for path in given for end in (path + os.sep, os.path.realpath(path) + os.sep)}
    )
