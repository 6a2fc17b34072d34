"""What a process finds around it beside its work: environment, folder, hashes of texts.

The rule is docs/strategies.md, U8.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HASH_SEEDS: Final = (1, 2)
"""Of the hashes of texts. A question with two answers falls alike under both in half of all cases:
then these two servers and the first one, whose seed is drawn, agree by chance in a quarter."""

_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables that say how work is shared out: by another count of threads sums are rounded anew."""

_unset: Final[set[str]] = set()


def unset() -> tuple[str, ...]:
    """Return the variables that were asked for in an emptied environment, and are missing."""
    return tuple(sorted(_unset))


@dataclass(frozen=True)
class Surroundings:
    """What a process finds around it: an environment, emptied but for *kept*, and a folder."""

    kept: frozenset[str] | None = None  # None: the environment as it is
    folder: str | None = None  # None: the working folder as it is

    def enter(self) -> None:
        """Empty the environment, and work in the folder."""
        if self.folder is not None:
            # The class is looked for where it was; an empty entry means the working folder.
            here = os.path.abspath("")  # noqa: PTH100 - one more string of the path
            sys.path[:] = [os.path.join(here, one) for one in sys.path]  # noqa: PTH118 - likewise
            if here not in map(os.path.normpath, sys.path):
                sys.path.append(here)
            os.chdir(self.folder)
        if self.kept is not None:
            for name in set(os.environ) - self.kept - {*_THREADS}:
                del os.environ[name]
            known = vars(os.environ)["_data"]
            setattr(os.environ, "_data", _Variables(known))  # noqa: B010 - no public way


class _Variables(dict[bytes, bytes]):
    """The variables of an environment; it keeps the names that are asked for and missing."""

    def __missing__(self, name: bytes) -> bytes:
        _unset.add(os.fsdecode(name))
        raise KeyError(name)


def link(names: Sequence[str], folder: Path) -> None:
    """Let what *names* name in the working folder be found in *folder* by the same names."""
    for name in names:
        path = Path(name)
        if name and not path.is_absolute() and ".." not in path.parts and path.exists():
            linked = folder / path
            linked.parent.mkdir(parents=True, exist_ok=True)
            if not linked.exists():
                linked.symlink_to(path.resolve())
