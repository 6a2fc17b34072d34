"""Users' strategies as small files: honest ones, and every leak that people write."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEAD = """
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.types.decisions import Action

def by(rises):
    return Signal(Action.LONG if rises else Action.FLAT, "as it says")
"""


def source(
    *,
    top: str = "",
    head: str = "pass",
    init: str = "pass",
    observe: str = "pass",
    decide: str = "return by(True)",
    columns: str = "",
) -> str:
    """Return a module with a class ``Mine``; *head* stands in it, its methods have these bodies."""
    return (
        f"{top}\n{HEAD}\n\nclass Mine(Strategy):\n    {head}\n"
        f"    def __init__(self, options):\n{_body(init)}\n"
        f"    def observe(self, bar):\n{_body(observe)}\n"
        + (f"    def columns(self, history):\n{_body(columns)}\n" if columns else "")
        + f"    def decide(self, now):\n        bar = now.exact\n{_body(decide)}\n"
    )


def _body(text: str) -> str:
    return "\n".join(f"        {line}" for line in text.strip("\n").splitlines())


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let Python import from *folder*, and forget afterwards what it did."""
    with forgetting(folder):
        sys.path.insert(0, str(folder))
        yield


@contextmanager
def forgetting(folder: Path) -> Iterator[None]:
    """Forget afterwards what Python imported from *folder*: the next test may write its names."""
    modules, path, bytecode = set(sys.modules), [*sys.path], sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = bytecode
        for name in set(sys.modules) - modules:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
