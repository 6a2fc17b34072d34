"""The source files of a user's class, and their hash.

The rule is docs/identity.md, I15.
"""

from __future__ import annotations

import ast
import glob
import hashlib
import importlib
import importlib.metadata
import inspect
import linecache
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, TracebackType
from typing import Final, TypeVar

from tracepaper.strategies.api.files import DeclaredFiles, module_file
from tracepaper.strategies.errors import StrategyFailed, TracepaperError

Code = type | FunctionType
"""A user's class, or function."""

SUFFIXES: Final = (".py", ".so", ".pyd", ".pyc")
"""Files that hold code; a name with the first of them that exists is what Python imports."""

INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
"""Names of the folders that hold installed packages."""

_HERE: Final = Path(__file__).resolve().parents[2]
ROOMS: Final = tuple(
    f"{_HERE / package}{os.sep}" for package in ("daemon", "replay", "storage", "strategies")
)
"""Folders of tracepaper's own sources, each with its separator."""

_PARSING: Final = threading.Lock()
"""Held while Python parses: that of 3.11 counts the depth of all threads' trees together."""

_PARSES: Final = 100
"""After so many that were disturbed the next one's error is let through."""

_Parsed = TypeVar("_Parsed", ast.Module, str)

_DYNAMIC: Final = frozenset({"import_module", "__import__"})


def class_sha256(made_of: Code, files: DeclaredFiles | None = None) -> str:
    """Return the id of *made_of*: the SHA-256 of its own source files and of what it declares.

    Those are the *files* of a function, and of a class its own. A class that was typed (in a
    notebook, or after ``python -c``) is hashed by its source, and where not even that is kept, by
    its compiled code. Raises ``ConfigInvalid`` where a declared file is not there.
    """
    digest = hashlib.sha256()
    source, root = module_file(made_of), custom_folder(made_of)
    if source is None or root is None:
        digest.update(_typed_source(made_of))
    else:
        for path in custom_sources(source, root):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    declared = declared_files(made_of) if files is None else files
    declared.require(made_of.__name__)
    for name, path in sorted(declared.items()):
        digest.update(f"\0{name}\0{file_sha256(path)}".encode())
    return digest.hexdigest()


def declared_files(made_of: Code) -> DeclaredFiles:
    """Return the files that a class declares; none of a class that cannot."""
    files = getattr(made_of, "files", None)
    return files if isinstance(files, DeclaredFiles) else DeclaredFiles()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def custom_folder(made_of: Code) -> Path | None:
    """Return the folder of the code of *made_of*; None where it was typed in a session.

    For a package it is the folder that holds the outermost package.
    """
    if (source := module_file(made_of)) is None:
        return None
    module, folder = sys.modules[made_of.__module__], source.parent
    depth = module.__name__.count(".") + hasattr(module, "__path__")
    for _ in range(depth if module.__name__ != "__main__" else 0):
        folder = folder.parent
    return folder


def custom_sources(start: Path, root: Path) -> list[Path]:
    """Return *start* and every file under *root* that it imports, directly or not, sorted."""
    sources: set[Path] = set()
    waiting = [start.resolve()]
    while waiting:
        path = waiting.pop()
        if path in sources:
            continue
        sources.add(path)
        if path.suffix == ".py":
            waiting += _imported(path, root)
    return sorted(sources)


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """Yield the files below a root that the source at *path* names in an import.

    For an installed package only its own files: its folder also holds other packages.
    """
    if str(path).startswith(ROOMS):
        return  # all of tracepaper is in the code version (docs/identity.md, I13)
    package = path.parent.relative_to(root).parts
    alone = package[:1] or (path.stem,)
    try:
        names = dict.fromkeys(names_of(parsed(path), package))
    except (SyntaxError, ValueError):
        return  # Python cannot import it either, so it brings nothing more
    for name in names:
        if root.name not in INSTALLED or name[:1] == alone:
            yield from _files_of(root, name)


def _files_of(root: Path, name: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files below *root* of the module *name*, and of the packages around it."""
    if any(os.sep in part for part in name):
        return  # a dynamic import may have any text, and no module has that name
    for depth, part in enumerate(name):
        folder = root.joinpath(*name[:depth])
        for stem in (folder / part / "__init__", folder / part):
            # Python takes the first kind that there is, else a library built for its version.
            files = (f"{stem}{suffix}" for suffix in SUFFIXES)
            if (first := next(filter(os.path.isfile, files), None)) is not None:
                yield Path(first)
            else:
                yield from stem.parent.glob(f"{glob.escape(stem.name)}.*.so")


def parsed(path: Path) -> ast.Module:
    """Return the tree of the source at *path*; raise ``SyntaxError`` or ``ValueError``."""
    source = path.read_bytes()
    return _alone(lambda: ast.parse(source))


def _source(part: Code) -> str:
    """Return the source of a class or function; raise ``OSError`` or ``TypeError`` without one."""
    try:
        return _alone(lambda: inspect.getsource(part))
    except (OSError, TypeError):
        if isinstance(part, type) and (typed := _cell_source(part)):
            return typed
        raise


def _cell_source(part: type) -> str:
    """Return the source of a class of a notebook's cell, or an empty text.

    ``inspect`` looks for a class in its module's file, which a notebook's does not have. IPython
    keeps each cell under the file name that the code of its functions bears.
    """
    for method in vars(part).values():
        if not isinstance(method, FunctionType) or method.__module__ != part.__module__:
            continue
        code = method.__code__
        lines = linecache.getlines(code.co_filename)
        try:
            tree = _alone(partial(ast.parse, "".join(lines)))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == part.__name__:
                first = min([node.lineno, *(line.lineno for line in node.decorator_list)])
                if first <= code.co_firstlineno <= (node.end_lineno or 0):
                    return "".join(lines[first - 1 : node.end_lineno])
    return ""


def _alone(parse: Callable[[], _Parsed]) -> _Parsed:
    """Return the result of *parse*, which runs alone among ours.

    Libraries parse too, as ``inspect.signature`` does, without our lock: where one interferes,
    Python raises ``SystemError``, and *parse* runs again.
    """
    with _PARSING:
        for _ in range(_PARSES):
            try:
                return parse()
            except SystemError:
                continue
        return parse()


def packages_of(made_of: type) -> list[str]:
    """Return the names of the installed packages that the class's own sources import."""
    root = custom_folder(made_of)
    if root is None:
        return []
    names: set[str] = set()
    for path in custom_sources(Path(inspect.getfile(made_of)).resolve(), root):
        if path.suffix == ".py":
            names |= {name[0] for name in names_of(parsed(path), ()) if name}
    custom_modules = {path.stem for path in root.iterdir()} if root.name not in INSTALLED else set()
    return sorted(names - sys.stdlib_module_names - custom_modules - {"tracepaper"})


def versions_of(made_of: type) -> dict[str, str]:
    """Return the versions of the installed packages that the class's own sources import."""
    versions = {}
    for name in packages_of(made_of):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            for package in importlib.metadata.packages_distributions().get(name, ()):
                versions[package] = importlib.metadata.version(package)
    return versions


def names_of(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield every module that *tree* may import, as its parts below the own folder."""
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
                called = getattr(function, "attr", getattr(function, "id", ""))
                if called in _DYNAMIC:
                    yield tuple(part for part in name.split(".") if part)
            case _:
                pass


def _typed_source(made_of: Code) -> bytes:
    """Return the source, else the bytecode, of a typed function, or of a class and its bases."""
    parts: list[bytes] = []
    if isinstance(made_of, FunctionType):
        try:
            return _source(made_of).encode()
        except (OSError, TypeError):
            return b"\0".join(_codes([made_of]))
    for part in made_of.__mro__:
        if custom_folder(part) is None and part.__module__ not in sys.builtin_module_names:
            try:
                parts.append(_source(part).encode())
            except (OSError, TypeError):
                parts.append(part.__qualname__.encode())
                parts += _codes(vars(part).values())
    return b"\0".join(parts)


def _codes(values: Iterable[object]) -> Iterator[bytes]:
    """Yield the bytecode, names and constants of every function among *values*."""
    for value in values:
        if isinstance(value, FunctionType):
            value = value.__code__  # noqa: PLW2901 - a function is its code
        if isinstance(value, CodeType):
            yield value.co_code + repr((value.co_names, value.co_varnames)).encode()
            yield from _codes(value.co_consts)
        elif isinstance(value, (int, float, str, bytes, bool, tuple, frozenset)):
            yield repr(value).encode()


def has_source(made_of: type) -> bool:
    """Return whether Python still has the source of *made_of*, in a file or as it was typed."""
    try:
        _source(made_of)
    except (OSError, TypeError):
        return False
    return True


MEND: Final = "; mend it and start again."
"""The end of the sentence of a failure."""

_WHY_NONE: Final = {
    "account": "it is None unless the class declares sees_account = True",
    "forecast": "it is None unless the class declares needs_forecast = True and the model answered",
    "explanation": "it is None unless the class declares needs_forecast = True and the model says",
    "verdict": "it is None before the first decision of a run",
}
"""The parts of a context that may be None, and when."""


class ForeignCode:
    """Turns whatever a user's code raises into ``StrategyFailed``, with file and line.

    Errors of tracepaper pass, and Ctrl-C does; so do exits, which a signal may have asked for,
    unless *may_exit* is false.
    """

    def __init__(self, name: str, doing: str, *, may_exit: bool = True) -> None:
        self._name = name
        self._doing = doing
        self._passing = BaseException if may_exit else KeyboardInterrupt

    def __enter__(self) -> None:
        """Let the user's code begin."""

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, TracepaperError):
            return
        if not isinstance(error, Exception) and isinstance(error, self._passing):
            return
        frames = traceback.extract_tb(trace)
        where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        hint = _hint(error, frames[-1].line or "") if frames else ""
        raise StrategyFailed(
            f"{self._name} failed {self._doing} with {type(error).__name__}: "
            f"{short(error, quoted=False)}{where}{hint or MEND}"
        ) from error


def _hint(error: Exception, line: str) -> str:
    """Explain an attribute of None where *line* read a part of the context that may be None."""
    if not isinstance(error, AttributeError) or error.obj is not None:
        return ""
    for part, when in _WHY_NONE.items():
        if re.search(rf"\b{part}\.{re.escape(error.name or '')}\b", line):
            return f"; context.{part} was read: {when}."
    return ""


_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]+")
_SET: Final = re.compile(r"\{((?:(?!: )[^{}])*)\}")


def short(value: object, *, quoted: bool = True) -> str:
    """Return *value* in at most some 80 characters of one line, the same in every process.

    Addresses of objects are left out, and the elements of a set are sorted.
    """
    try:
        raw = _ADDRESS.sub("0x…", repr(value) if quoted else str(value))
        raw = _SET.sub(lambda of: f"{{{', '.join(sorted(of[1].split(', ')))}}}", raw)
        text = " ".join(raw.split())
    except Exception as error:  # noqa: BLE001 - what a user's object says of itself is foreign too
        text = f"({type(value).__name__} has no text: {type(error).__name__})"
    return text if len(text) <= 80 else text[:77] + "…"  # a line's worth
