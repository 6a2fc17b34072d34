"""Registration by a decorator: what a function is made into stands in a mapping by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tracepaper.strategies.errors import ConfigInvalid

F = TypeVar("F")
T = TypeVar("T")


def registering(
    into: dict[str, T], what: str, name: str, make: Callable[[F], T]
) -> Callable[[F], F]:
    """Return what puts *make* of a function into *into*, by its *name*.

    It raises ``ConfigInvalid`` for a name that is taken; *what* is what is registered, in a word.
    """

    def register(function: F) -> F:
        if name in into:
            raise ConfigInvalid(f"There is a {what} called {name} already.")
        into[name] = make(function)
        return function

    return register
