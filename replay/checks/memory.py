"""What a strategy's object remembers, by name: attributes, its class's, its modules', closures'.

Two objects that should have come to the same place are held against each other with it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from hashlib import sha256
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
from msgspec import Struct

from tracepaper.daemon.session.sources import own_folder, own_sources
from tracepaper.daemon.session.user_class import unguarded
from tracepaper.strategies.portfolio import PortfolioStrategy
from tracepaper.strategies.strategy import Strategy

SHOWN_LONGEST: Final = 40
"""Characters of a value that is named with its name; of longer ones a hash is compared."""
_PLAIN: Final = (type(None), bool, int, float, complex, str, bytes, Enum)
_ABSENT: Final = "absent"

Memory = Mapping[str, str]
"""The name of everything remembered, and its value as text that is equal where values are."""


def memory_of(strategy: Strategy) -> dict[str, str]:
    """Return all that *strategy* could remember a bar by, but for its declared state."""
    own = unguarded(strategy)
    found = dict(_of_object("self", own, _fields(own)))
    if getattr(own, "State", None) is not None:
        found = {name: text for name, text in found.items() if name.split(".")[1] != "state"}
    for made_of in type(own).__mro__:
        if made_of in {Strategy, PortfolioStrategy}:
            break
        for name, value in vars(made_of).items():
            found |= _of_name(f"{made_of.__name__}.{name}", name, value)
    for module in _own_modules(type(own)):
        for name, value in vars(module).items():
            if getattr(value, "__module__", module.__name__) == module.__name__:
                found |= _of_name(f"{name} of module {module.__name__}", name, value)
    return found


def unlike(one: Memory, two: Memory) -> list[str]:
    """Return the names of what differs, with both values where they are short."""
    differing = [
        (name, one.get(name, _ABSENT), two.get(name, _ABSENT))
        for name in dict.fromkeys((*one, *two))
        if one.get(name) != two.get(name)
    ]
    differing.sort(key=lambda found: max(map(len, found[1:])))
    return [
        f"{name} ({first} and {second})" if len(first + second) <= 2 * SHOWN_LONGEST else name
        for name, first, second in differing
    ]


def _own_modules(made_of: type) -> Iterator[ModuleType]:
    """Yield the class's module and those of its own folder that it imports."""
    yield sys.modules[made_of.__module__]
    root, file = own_folder(made_of), sys.modules[made_of.__module__].__file__
    if root is None or file is None:
        return
    paths = set(own_sources(Path(file), root)) - {Path(file).resolve()}
    for module in list(sys.modules.values()):
        found = getattr(module, "__file__", None)
        if isinstance(found, str) and Path(found).resolve() in paths:
            yield module


def _of_name(shown: str, name: str, value: object) -> dict[str, str]:
    """Return what is remembered under a *name* of a class or module."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, FunctionType) or hasattr(value, "__wrapped__"):
        return dict(_of_function(shown, value))
    if name.startswith("__") or isinstance(value, (type, ModuleType, property)):
        return {}
    if callable(value) and not _fields(value):
        return {}
    return {shown: _text(value)}


def _of_function(shown: str, function: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any kind of function
    """Yield what a function keeps: in its closure, its defaults, its attributes, its cache."""
    if callable(info := getattr(function, "cache_info", None)):
        yield f"the cache of {shown}", str(info())
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
        try:
            content = cell.cell_contents
        except ValueError:
            continue  # nothing was bound
        if name != "__class__":
            yield f"{name}, which {shown} closes over,", _text(content)
    defaults = (getattr(function, "__defaults__", None), getattr(function, "__kwdefaults__", None))
    if any(defaults):
        yield f"a default of {shown}", _text(defaults)
    for name, value in _fields(function).items():
        if name != "__wrapped__":
            yield f"{shown}.{name}", _text(value)


def _of_object(
    shown: str, value: object, fields: Mapping[str, object], depth: int = 3
) -> Iterator[tuple[str, str]]:
    """Yield the fields of an object, and those of the objects that they hold."""
    for name, held in fields.items():
        inner = {} if isinstance(held, (*_PLAIN, FunctionType, type)) else _fields(held)
        if inner and depth and held is not value:
            yield from _of_object(f"{shown}.{name}", held, inner, depth - 1)
        else:
            yield f"{shown}.{name}", _text(held)


def _fields(value: object) -> dict[str, object]:
    """Return the attributes of *value*, those in slots included."""
    if isinstance(value, (type, ModuleType)):
        return {}
    if isinstance(value, Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    found = dict(getattr(value, "__dict__", {}))
    for made_of in type(value).__mro__:
        slots = made_of.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in {"__dict__", "__weakref__"} and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def _text(value: object) -> str:
    """Return *value* as text: itself where that is short, else its kind and a hash."""
    text = _canonical(value, frozenset())
    if len(text) <= SHOWN_LONGEST:
        return text
    return f"{type(value).__name__} {sha256(text.encode()).hexdigest()}"


def _canonical(value: object, above: frozenset[int]) -> str:
    """Return text that is equal where two values are; *above* are those it is a part of."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in above:
        return "…"
    inside = above | {id(value)}

    def said(part: object) -> str:
        return _canonical(part, inside)

    return _canonical_parts(value, said)


def _canonical_parts(value: object, said: Callable[[object], str]) -> str:
    kind = type(value).__name__
    match value:
        case np.ndarray():
            text = f"{kind} {value.dtype} {value.shape} {value.tolist()}"
        case list() | tuple() | deque():
            text = f"{kind}({', '.join(map(said, value))})"
        case set() | frozenset():
            text = f"{kind}({', '.join(sorted(map(said, value)))})"
        case Mapping():
            text = ", ".join(f"{said(key)}: {said(item)}" for key, item in value.items())
            text = f"{kind}({text})"
        case MethodType():
            text = f"{kind} {value.__func__.__qualname__}"
        case type() | ModuleType():
            text = value.__name__
        case FunctionType():
            kept = ", ".join(f"{name} {held}" for name, held in _of_function("it", value))
            text = f"{kind} {value.__qualname__}({kept})"
        case _ if fields := _fields(value):
            text = ", ".join(f"{name}={said(held)}" for name, held in fields.items())
            text = f"{kind}({text})"
        case _:
            text = repr(value)
            text = kind if " at 0x" in text else text
    return text
