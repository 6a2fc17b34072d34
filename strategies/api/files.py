"""Files that a user's class or feature function declares; they count for its identity.

The rule is docs/identity.md, I16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tracepaper.strategies.errors import ConfigInvalid

Code = type | Callable[..., Any]
"""A user's class or function."""


def module_file(made_of: Code) -> Path | None:
    """Return the source file of *made_of*; None if it was defined in an interactive session."""
    module = sys.modules.get(made_of.__module__)
    file = getattr(module, "__file__", None)
    if not isinstance(module, ModuleType) or file is None or not Path(file).is_file():
        return None
    return None if "ipykernel" in Path(file).parent.name else Path(file).resolve()


class DeclaredFiles(dict[str, Path]):
    """The paths of declared files, by declared name."""

    @classmethod
    def of(cls, made_of: Code, names: object) -> DeclaredFiles:
        """Resolve *names* relative to the source of *made_of*, or else to the working folder.

        Raises ``ConfigInvalid`` if they are not names.
        """
        if not isinstance(names, tuple | list) or not all(type(name) is str for name in names):
            raise ConfigInvalid(
                f"{made_of.__name__}.files is {names!r:.80}; give a tuple of names, such as "
                '("rates.csv",).'
            )
        source = module_file(made_of)
        folder = Path.cwd() if source is None else source.parent
        return cls({name: (folder / name).resolve() for name in names})

    def require(self, name: str) -> None:
        """Raise ``ConfigInvalid`` if a file that class *name* declares is missing."""
        for written, path in self.items():
            if not path.is_file():
                raise ConfigInvalid(
                    f"{name}.files names {written}, but there is no file {path}; put it there, or "
                    "name its absolute path."
                )


def declare_files(made_of: type) -> None:
    """Replace the file names that the class declares by a mapping of names to paths."""
    declared = vars(made_of).get("files")
    if declared is not None and not isinstance(declared, DeclaredFiles):
        made_of.files = DeclaredFiles.of(made_of, declared)  # type: ignore[attr-defined]
