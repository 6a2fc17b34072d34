"""Records what a user's class opens besides its arguments: files, addresses and programs.

An audit hook in the process of a check sees the event that Python raises for each. Native code,
such as that of polars, raises none.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import zoneinfo
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from msgspec import Struct

from tracepaper.daemon.session.user_code import PACKAGE_FOLDERS, SUFFIXES
from tracepaper.daemon.session.user_error import INSTALLED

NAMES_KEPT: Final = 200
"""Most names kept, in case a class opens a new file at every bar."""
_NATIVE_READERS: Final = ("polars", "pyarrow", "duckdb", "h5py", "torch")
"""Packages whose compiled code opens files without an audit event."""
_EVENTS: Final[Mapping[str, tuple[str, int]]] = {
    "open": ("file", 0),
    "sqlite3.connect": ("file", 0),
    "socket.connect": ("address", 1),
    "subprocess.Popen": ("program", 0),
    "os.system": ("program", 0),
}
"""What each event opens, and which of its arguments names it."""
_MACHINE: Final = ("/proc/", "/sys/", "/dev/")


class ExternalInput(Struct, frozen=True):
    """One thing that was opened: ``what`` is ``file``, ``address`` or ``program``."""

    what: str
    name: str


_opened: Final[dict[ExternalInput, None]] = {}
_owners: Final[set[str]] = set()
"""The outermost packages or modules of the classes, which may be installed, or examples of ours."""


def listen(classes: Collection[str]) -> None:
    """Record from now on what the *classes* (``module:Class``) open in this process."""
    is_first = not _owners
    _owners.update(name.partition(":")[0] for name in classes)
    if is_first and _owners:  # Python cannot remove a hook
        sys.addaudithook(_on_audit_event)


def opened(declared: Collection[str]) -> Sequence[ExternalInput]:
    """Return the opened inputs in order, without the *declared* files."""
    # Copy it atomically: another thread of the class may add to it.
    return [item for item in tuple(_opened) if item.name not in declared]


def native_readers() -> list[str]:
    """Return the loaded packages that can read without an audit event."""
    return [name for name in _NATIVE_READERS if name in sys.modules]


def _on_audit_event(event: str, args: tuple[Any, ...]) -> None:
    if event not in _EVENTS or len(_opened) >= NAMES_KEPT:
        return
    what, place = _EVENTS[event]
    value = args[place]
    if isinstance(value, tuple):  # an address
        name = ":".join(map(str, value[:2]))
    else:
        name = os.fsdecode(value) if isinstance(value, (bytes, os.PathLike)) else str(value)
    if what == "file":
        if isinstance(value, int) or name == ":memory:":  # opened before, or a database of SQLite
            return
        name = os.path.realpath(name.removeprefix("file:").partition("?")[0])
        # Code, what is installed, and the machine tell nothing of the market.
        is_code = name.endswith(SUFFIXES) or f"{os.sep}__pycache__{os.sep}" in name
        if is_code or name.startswith((*_MACHINE, *_installed())):
            return
    if _is_for_user(sys._getframe(1)):  # noqa: SLF001 - the frame that raised it
        _opened[ExternalInput(what, name)] = None


def _is_for_user(frame: FrameType | None) -> bool:
    """Return whether a user's code is on the stack."""
    exempt = ("<", *PACKAGE_FOLDERS, *_installed())
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module in _owners or not frame.f_code.co_filename.startswith(exempt):
            return True
        frame = frame.f_back
    return False


def _installed() -> tuple[str, ...]:
    """Return the folders of the standard library, of installed packages and of time zones."""
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [path for path in sys.path if Path(path).name in INSTALLED]
    folders += [*site.getsitepackages(), site.getusersitepackages(), *zoneinfo.TZPATH]
    return tuple(
        {end for path in folders for end in (path + os.sep, os.path.realpath(path) + os.sep)}
    )
