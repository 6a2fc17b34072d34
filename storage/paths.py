"""The user's home in the paths that are given, where no shell puts it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

HOME: Final = re.compile(r"^((?:[^/]*=)?(?:sqlite:///)?)(?:~|\$HOME|\$\{HOME\})(?=/|$)")
"""``~`` and ``$HOME`` in front of a path, of ``NAME=PATH`` and of a URL of SQLite."""


def at_home(text: str) -> str:
    """Return *text* with the user's home in the place of ``~`` or ``$HOME`` where a path begins."""
    return HOME.sub(lambda found: f"{found[1]}{Path.home()}", text)


def path_of(given: str | Path) -> Path:
    """Return *given* as a path, with the user's home in it."""
    return Path(at_home(str(given)))


def with_homes(value: Any) -> Any:  # noqa: ANN401 - of a configuration
    """Return the tables and lists of *value* with the user's home in their texts."""
    if isinstance(value, str):
        return at_home(value)
    if isinstance(value, Mapping):
        return {key: with_homes(each) for key, each in value.items()}
    return [*map(with_homes, value)] if isinstance(value, list) else value
