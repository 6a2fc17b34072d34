"""The source files of a user's class and their hash; the guard around a call of user code.

The rule is docs/identity.md, I15.
"""

from __future__ import annotations

import ast
import glob
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import linecache
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, TracebackType
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from tracepaper.daemon.config.values import PARSING
from tracepaper.daemon.session.user_error import INSTALLED, advice, place
from tracepaper.strategies.api.files import DeclaredFiles, module_file
from tracepaper.strategies.errors import StrategyFailed, TracepaperError
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import minute_text

Code = type | FunctionType
"""A user's class or function."""

SUFFIXES: Final = (".py", ".so", ".pyd", ".pyc")
"""Suffixes of files with code, in the order in which Python tries them at an import."""

_ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE_FOLDERS: Final = tuple(
    f"{_ROOT / package}{os.sep}" for package in ("daemon", "replay", "storage", "strategies")
)
"""The folders of tracepaper's packages, each with a final separator."""

_DYNAMIC: Final = frozenset({"import_module", "__import__"})


def class_sha256(code: Code, files: DeclaredFiles | None = None) -> str:
    """Return the id of *code*: the SHA-256 of its source files and its declared files.

    A class declares files itself; those of a function are *files*. An interactive class (from a
    notebook, or ``python -c``) is hashed by its source, or by its bytecode if Python has not kept
    the source. Raises ``ConfigInvalid`` if a declared file does not exist.
    """
    digest = hashlib.sha256()
    source, root = module_file(code), custom_folder(code)
    if source is None or root is None:
        digest.update(_interactive_source(code))
    else:
        for path in custom_sources(source, root):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    declared = declared_files(code) if files is None else files
    declared.require(code.__name__)
    for name, path in sorted(declared.items()):
        digest.update(f"\0{name}\0{file_sha256(path)}".encode())
    return digest.hexdigest()


class _Sources(NamedTuple):
    """What a class or function was made of when it was first seen."""

    compiled: tuple[CodeType, ...]  # a reloading notebook replaces it in place
    files: Mapping[Path, str]  # SHA-256 of each


_imported: Final[WeakKeyDictionary[Code, _Sources]] = WeakKeyDictionary()


def remember(code: Code) -> None:
    """Note the source files of *code*, which Python has just imported, for ``is_outdated``."""
    if code in _imported or code.__module__ == "__main__":
        return
    source, root = module_file(code), custom_folder(code)
    if source is not None and root is not None:
        files = {path: file_sha256(path) for path in custom_sources(source, root)}
        _imported[code] = _Sources(_compiled(code), files)


def is_outdated(code: Code) -> bool:
    """Return whether a source file of *code* changed after Python imported it."""
    if (known := _imported.get(code)) is None:
        return False
    if [*map(id, _compiled(code))] != [*map(id, known.compiled)]:  # reloaded in place
        del _imported[code]
        remember(code)
        return False
    return any(path.is_file() and file_sha256(path) != was for path, was in known.files.items())


def forget_outdated() -> None:
    """Let the next import read the files that changed: a notebook lives on while they do."""
    for code in [*_imported]:
        module = sys.modules.get(code.__module__)
        if getattr(module, code.__name__, None) is not code or not is_outdated(code):
            continue
        files = _imported[code].files
        for name, each in [*sys.modules.items()]:
            file = getattr(each, "__file__", None)
            if file is not None and Path(file).resolve() in files:
                del sys.modules[name]
        for path in files:  # Python knows its bytecode by the second and the size of the source
            with suppress(OSError, NotImplementedError):  # none was written, or none can be
                Path(importlib.util.cache_from_source(path)).unlink()


def _compiled(code: Code) -> tuple[CodeType, ...]:
    values = vars(code).values() if isinstance(code, type) else (code,)
    return tuple(value.__code__ for value in values if isinstance(value, FunctionType))


def declared_files(code: Code) -> DeclaredFiles:
    """Return the files that *code* declares as ``files``; none without that attribute."""
    files = getattr(code, "files", None)
    return files if isinstance(files, DeclaredFiles) else DeclaredFiles()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def custom_folder(code: Code) -> Path | None:
    """Return the folder from which *code* was imported; None for interactive code.

    For a module in a package it is the folder of the outermost package.
    """
    if (source := module_file(code)) is None:
        return None
    module, folder = sys.modules[code.__module__], source.parent
    depth = module.__name__.count(".") + hasattr(module, "__path__")
    for _ in range(depth if module.__name__ != "__main__" else 0):
        folder = folder.parent
    return folder


def custom_sources(start: Path, root: Path) -> list[Path]:
    """Return *start* and every file under *root* that it imports, directly or not, sorted."""
    sources: set[Path] = set()
    pending = [start.resolve()]
    while pending:
        path = pending.pop()
        if path in sources:
            continue
        sources.add(path)
        if path.suffix == ".py":
            pending += _imported_files(path, root)
    return sorted(sources)


def _imported_files(path: Path, root: Path) -> Iterator[Path]:
    """Yield the files below *root* that the source at *path* imports.

    For an installed package these are its own files only, since *root* holds other packages too.
    """
    if str(path).startswith(PACKAGE_FOLDERS):
        return  # the code version covers all of tracepaper (docs/identity.md, I13)
    package = path.parent.relative_to(root).parts
    outermost = package[:1] or (path.stem,)
    try:
        names = dict.fromkeys(imported_modules(parsed(path), package))
    except (SyntaxError, ValueError):
        return  # Python cannot import this file either
    for name in names:
        if root.name not in INSTALLED or name[:1] == outermost:
            yield from _module_files(root, name)


def _module_files(root: Path, name: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files below *root* of module *name* and of the packages that contain it."""
    if any(os.sep in part for part in name):
        return  # the text of a dynamic import that names no module
    for depth, part in enumerate(name):
        folder = root.joinpath(*name[:depth])
        for stem in (folder / part / "__init__", folder / part):
            # Python prefers the first suffix that exists, else a library built for its version.
            files = (f"{stem}{suffix}" for suffix in SUFFIXES)
            if (first := next(filter(os.path.isfile, files), None)) is not None:
                yield Path(first)
            else:
                yield from stem.parent.glob(f"{glob.escape(stem.name)}.*.so")


def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of the file *path*; raise ``SyntaxError`` or ``ValueError``."""
    with PARSING:
        return ast.parse(path.read_bytes())


def _source(code: Code) -> str:
    """Return the source of *code*; raise ``OSError`` or ``TypeError`` if Python has none."""
    try:
        with PARSING:
            return inspect.getsource(code)
    except (OSError, TypeError):
        if isinstance(code, type) and (source := _cell_source(code)):
            return source
        raise


def class_line(cls: type) -> str:
    """Return `` at FILE:LINE`` where *cls* begins, or an empty text if Python has no source."""
    try:
        file = inspect.getfile(cls)
        with PARSING:
            return f" at {file}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return ""


def _cell_source(cls: type) -> str:
    """Return the source of a class from a notebook's cell, or an empty text.

    ``inspect`` looks for a class in its module's file, which a notebook does not have. IPython
    keeps each cell under the file name that its functions' code objects carry.
    """
    for method in vars(cls).values():
        if not isinstance(method, FunctionType) or method.__module__ != cls.__module__:
            continue
        code = method.__code__
        lines = linecache.getlines(code.co_filename)
        try:
            with PARSING:
                tree = ast.parse("".join(lines))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                first = min([node.lineno, *(line.lineno for line in node.decorator_list)])
                if first <= code.co_firstlineno <= (node.end_lineno or 0):
                    return "".join(lines[first - 1 : node.end_lineno])
    return ""


def packages_of(cls: type) -> list[str]:
    """Return the names of the installed packages that the source files of *cls* import."""
    root = custom_folder(cls)
    if root is None:
        return []
    names: set[str] = set()
    for path in custom_sources(Path(inspect.getfile(cls)).resolve(), root):
        if path.suffix == ".py":
            names |= {name[0] for name in imported_modules(parsed(path), ()) if name}
    custom_modules = {path.stem for path in root.iterdir()} if root.name not in INSTALLED else set()
    return sorted(names - sys.stdlib_module_names - custom_modules - {"tracepaper"})


def versions_of(cls: type) -> dict[str, str]:
    """Return the versions of the installed packages that the source files of *cls* import."""
    versions = {}
    for name in packages_of(cls):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            for package in importlib.metadata.packages_distributions().get(name, ()):
                versions[package] = importlib.metadata.version(package)
    return versions


def imported_modules(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the name, split at its dots, of every module that *tree* may import.

    *package* is the name of the package that holds the module; relative imports start there.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                yield from (tuple(alias.name.split(".")) for alias in aliases)
            case ast.ImportFrom(module=module, names=aliases, level=level):
                base = package[: len(package) - level + 1] if level else ()
                base += tuple((module or "").split(".")) if module else ()
                yield base
                yield from ((*base, alias.name) for alias in aliases)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                function_name = getattr(function, "attr", getattr(function, "id", ""))
                if function_name in _DYNAMIC:
                    yield tuple(part for part in name.split(".") if part)
            case _:
                pass


def _interactive_source(code: Code) -> bytes:
    """Return the source, else the bytecode, of an interactive function or class with its bases."""
    parts: list[bytes] = []
    if isinstance(code, FunctionType):
        try:
            return _source(code).encode()
        except (OSError, TypeError):
            return b"\0".join(_bytecode([code]))
    for cls in code.__mro__:
        if custom_folder(cls) is None and cls.__module__ not in sys.builtin_module_names:
            try:
                parts.append(_source(cls).encode())
            except (OSError, TypeError):
                parts.append(cls.__qualname__.encode())
                parts += _bytecode(vars(cls).values())
    return b"\0".join(parts)


def _bytecode(values: Iterable[object]) -> Iterator[bytes]:
    """Yield the bytecode, names and constants of every function among *values*."""
    for value in values:
        if isinstance(value, FunctionType):
            value = value.__code__  # noqa: PLW2901 - hash the code object in its place
        if isinstance(value, CodeType):
            yield value.co_code + repr((value.co_names, value.co_varnames)).encode()
            yield from _bytecode(value.co_consts)
        elif isinstance(value, (int, float, str, bytes, bool, tuple, frozenset)):
            yield repr(value).encode()


def has_source(cls: type) -> bool:
    """Return whether Python still has the source of *cls*, from a file or a session."""
    try:
        _source(cls)
    except (OSError, TypeError):
        return False
    return True


ADVICE: Final = "; mend it and start again."
"""The end of the message of ``StrategyFailed``."""


class ForeignCode:
    """A context manager that turns any exception of user code into ``StrategyFailed``.

    The message has file, line and bar. Errors of tracepaper get them too and pass, as Ctrl-C does.
    So does ``SystemExit``, which a signal may have caused, unless *may_exit* is False.
    """

    bars: Sequence[Bar] = ()
    """The bars of one close with which the code is called; none if it sees them all."""

    def __init__(self, name: str, doing: str, *, may_exit: bool = True) -> None:
        self._name = name
        self._doing = doing
        self._passing = BaseException if may_exit else KeyboardInterrupt

    def __enter__(self) -> None:
        """Do nothing: all work is done at the exit."""

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.translate(error)

    def translate(self, error: BaseException) -> None:
        """Raise ``StrategyFailed`` for *error*; return if it passes as it is."""
        if isinstance(error, TracepaperError):
            where = place(error)
            if where and where not in str(error):  # a guard inside this one may have said it
                cause = f"{self._name} failed {self._doing}{where}{self.for_bars}"
                error.args = (f"{cause}: {error}",)
            return
        if not isinstance(error, Exception) and isinstance(error, self._passing):
            return
        raise StrategyFailed(
            f"{self._name} failed {self._doing} with {type(error).__name__}: "
            f"{short(error, quoted=False)}{place(error)}{self.for_bars}{advice(error)}{ADVICE}"
        ) from error

    @property
    def for_bars(self) -> str:
        """`` for the bar TIME of SYMBOL``, or an empty text without bars."""
        if not self.bars:
            return ""
        first, *others = self.bars
        count = f"{len(self.bars)} symbols" if others else first.instrument.partition(":")[2]
        return f" for the bar {minute_text(first.open_time_ms)} of {count}"


_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]+")


def short(value: object, *, quoted: bool = True) -> str:
    """Return *value* as one line of at most 80 characters, without the addresses of objects."""
    try:
        raw = _ADDRESS.sub("0x…", repr(value) if quoted else str(value))
        text = " ".join(raw.split())
    except Exception as error:  # noqa: BLE001 - a user's __repr__ may raise anything
        text = f"({type(value).__name__} has no text: {type(error).__name__})"
    return text if len(text) <= 80 else text[:77] + "…"  # one line of a terminal
