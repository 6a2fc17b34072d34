"""What a user's class is made of: its module and what that imports from its own folder, hashed.

The rule is docs/identity.md, I15.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Final

from tracepaper.daemon.session.outside import INSTALLED, SUFFIXES

_DYNAMIC: Final = frozenset({"import_module", "__import__"})


def class_sha256(made_of: type) -> str:
    """Return the id of *made_of*: the SHA-256 of every source file of its own that it is made of.

    A class that was typed (in a notebook, or after ``python -c``) is hashed by its source, and
    where not even that is kept, by its compiled code.
    """
    digest = hashlib.sha256()
    root = own_folder(made_of)
    if root is None:
        digest.update(_typed_source(made_of))
        return digest.hexdigest()
    module = sys.modules[made_of.__module__]
    assert module.__file__ is not None
    for path in own_sources(Path(module.__file__), root):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def own_folder(made_of: type) -> Path | None:
    """Return the folder in which the class's own code lies; None where it was typed.

    Of a package it is the folder that holds the outermost package.
    """
    module = sys.modules.get(made_of.__module__)
    file = getattr(module, "__file__", None)
    if not isinstance(module, ModuleType) or file is None or not Path(file).is_file():
        return None
    if "ipykernel" in Path(file).parent.name:
        return None
    folder = Path(file).resolve().parent
    depth = module.__name__.count(".") + hasattr(module, "__path__")
    for _ in range(depth if module.__name__ != "__main__" else 0):
        folder = folder.parent
    return folder


def own_sources(start: Path, root: Path) -> list[Path]:
    """Return *start* and every file under *root* that it imports, directly or not, sorted."""
    found: set[Path] = set()
    waiting = [start.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if path.suffix == ".py":
            waiting += _imported(path, root)
    return sorted(found)


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """Yield the files under *root* that the source at *path* names in an import.

    Of an installed package only its own files: its folder also holds everybody else's.
    """
    package = path.parent.relative_to(root).parts
    alone = package[:1] or (path.stem,)
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # Python cannot import it either, so it brings nothing more
    for name in _names(tree, package):
        if root.name in INSTALLED and name[:1] != alone:
            continue
        folder = root
        for part in name:
            folder = folder / part
            yield from _existing(folder / "__init__", folder)


def _existing(*stems: Path) -> Iterator[Path]:
    for stem in stems:
        for suffix in SUFFIXES:
            if (path := stem.with_name(stem.name + suffix)).is_file():
                yield path
                break
        else:
            yield from stem.parent.glob(f"{stem.name}.*.so")


def _names(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
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


def _typed_source(made_of: type) -> bytes:
    """Return what is known of a typed class and of the typed classes that it derives from."""
    parts: list[bytes] = []
    for part in made_of.__mro__:
        if own_folder(part) is None and part.__module__ not in sys.builtin_module_names:
            try:
                parts.append(inspect.getsource(part).encode())
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
