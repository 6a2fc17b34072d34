"""The memory of a strategy object by name, to compare two objects at the same step."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum
from hashlib import sha256
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
from msgspec import Struct

from tracepaper.daemon.session.user_class import unguarded
from tracepaper.daemon.session.user_code import custom_folder, custom_sources
from tracepaper.strategies.api.strategy import PortfolioStrategy, Strategy

SHOWN_LONGEST: Final = 40
"""Longest value that is shown with its name; longer ones are compared by a hash."""
_PLAIN: Final = (type(None), bool, int, float, complex, str, bytes, Enum)
_ABSENT: Final = "absent"

Memory = Mapping[str, str]
"""Values by name, as texts that are equal where the values are equal."""


def memory_of(strategy: Strategy) -> dict[str, str]:
    """Return everything in which *strategy* could keep a bar, except its declared state.

    That is its attributes, those of its classes, and the variables of its modules.
    """
    user = unguarded(strategy)
    is_declared = getattr(user, "State", None) is not None
    named = {
        f"self.{name}": value
        for name, value in _attributes(user).items()
        if name != "state" or not is_declared
    }
    for kind in type(user).__mro__:
        if kind in {Strategy, PortfolioStrategy}:
            break
        named |= {f"{kind.__name__}.{name}": value for name, value in _variables(kind)}
    for module in _custom_modules(type(user)):
        for name, value in _variables(module):
            if getattr(value, "__module__", module.__name__) == module.__name__:
                named[f"{name} of module {module.__name__}"] = value
    return {name: text for shown, value in named.items() for name, text in _named(shown, value)}


def differing_names(first_memory: Memory, second_memory: Memory) -> list[str]:
    """Return the names that differ, the shortest values first, with both values if short."""
    differing = [
        (name, first_memory.get(name, _ABSENT), second_memory.get(name, _ABSENT))
        for name in dict.fromkeys((*first_memory, *second_memory))
        if first_memory.get(name) != second_memory.get(name)
    ]
    differing.sort(key=lambda values: max(map(len, values[1:])))
    return [
        f"{name} ({first} and {second})" if len(first + second) <= 2 * SHOWN_LONGEST else name
        for name, first, second in differing
    ]


def _custom_modules(kind: type) -> Iterator[ModuleType]:
    """Yield the class's module and those of its own folder that it imports."""
    yield sys.modules[kind.__module__]
    root, file = custom_folder(kind), sys.modules[kind.__module__].__file__
    if root is None or file is None:
        return
    paths = set(custom_sources(Path(file), root)) - {Path(file).resolve()}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and Path(path).resolve() in paths:
            yield module


def _variables(owner: type | ModuleType) -> Iterator[tuple[str, object]]:
    """Yield the variables of a class or module that can change."""
    for name, value in vars(owner).items():
        is_constant = isinstance(value, (type, ModuleType, property))
        if not name.startswith("__") and not is_constant:
            yield name, value


def _named(shown: str, value: object, depth: int = 3) -> Iterator[tuple[str, str]]:
    """Yield the name and text of *value*, or of each of its attributes."""
    if depth and (attributes := _attributes(value)):
        for name, part in attributes.items():
            yield from _named(f"{shown}.{name}", part, depth - 1)
    else:
        yield shown, short_text(value)


def _attributes(value: Any) -> dict[str, object]:  # noqa: ANN401 - any kind of value
    """Return the attributes of an object; none of a plain value, a function or a class."""
    if isinstance(value, (*_PLAIN, type, ModuleType, FunctionType)):
        return {}
    names = [*getattr(value, "__dict__", ())]
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names += (slots,) if isinstance(slots, str) else slots
    if isinstance(value, Struct):
        names += value.__struct_fields__
    internal = {"__wrapped__", "__dict__", "__weakref__"}
    return {name: getattr(value, name) for name in {*names} - internal if hasattr(value, name)}


def short_text(value: object) -> str:
    """Return *value* as text, or if that is long its type and a hash."""
    text = _canonical(value, frozenset())
    if len(text) <= SHOWN_LONGEST:
        return text
    return f"{type(value).__name__} {sha256(text.encode()).hexdigest()}"


def _canonical(value: object, containers: frozenset[int]) -> str:
    """Return a text, equal for equal values; *containers* are the ids of enclosing values."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in containers:
        return "…"
    kind = type(value).__name__

    def text_of(part: object) -> str:
        return _canonical(part, containers | {id(value)})

    match value:
        case np.ndarray():
            text = f"{kind} {value.dtype} {value.shape} {value.tolist()}"
        case list() | tuple() | deque():
            text = f"{kind}({', '.join(map(text_of, value))})"
        case set() | frozenset():  # equal sets may have different orders
            text = f"{kind}({', '.join(sorted(map(text_of, value)))})"
        case Mapping():
            text = ", ".join(f"{text_of(key)}: {text_of(item)}" for key, item in value.items())
            text = f"{kind}({text})"
        case MethodType() | FunctionType() | type() | ModuleType():
            text = value.__name__
        case _ if attributes := _attributes(value):
            texts = (f"{name}={text_of(attributes[name])}" for name in sorted(attributes))
            text = f"{kind}({', '.join(texts)})"
        case _:
            text = repr(value)
            text = kind if " at 0x" in text else text
    return text
