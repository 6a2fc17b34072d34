"""Arrays that cost minutes to compute, kept on disk by what they follow from, and mapped.

Each set of arrays is a folder named by its key; it is written under another name and renamed when
it is whole. So whoever stops half-way leaves nothing that could be taken for an answer, and of two
that write the same one wins. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from tracepaper.storage.sweeps import user_folder
from tracepaper.strategies.errors import ConfigInvalid

AnyArray = NDArray[Any]
Arrays = dict[str, AnyArray]
Fill = Callable[[Arrays], None]
_VERSION: Final = b"1"


class ArraySpec(NamedTuple):
    """What an array must be."""

    shape: tuple[int, ...]
    dtype: str


def default_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/tracepaper/training``, or the same below ``~/.cache``."""
    return user_folder("XDG_CACHE_HOME", ".cache") / "training"


def code_key(modules: Iterable[ModuleType]) -> bytes:
    """Return a hash of the sources of *modules* and of the arithmetic that they run on."""
    digest = hashlib.sha256(_VERSION + np.__version__.encode())
    for module in modules:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.digest()


class ArrayCache:
    """Sets of arrays by their keys, below *folder*; without one they are made in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: str, wanted: Mapping[str, ArraySpec], fill: Fill) -> Arrays:
        """Return the arrays of *key*; where they are not kept, *fill* makes them.

        What is written into them stays with the caller (torch takes no array that refuses it).
        What is kept and is not as *wanted* is made again. Raises ``ConfigInvalid`` where the
        folder cannot be written.
        """
        if self.folder is None:
            arrays = {name: np.empty(spec.shape, spec.dtype) for name, spec in wanted.items()}
            fill(arrays)
            return arrays
        place = self.folder / key
        stored = _mapped(place, wanted)
        if stored is None:
            self._write(place, wanted, fill)
            stored = _mapped(place, wanted)
        if stored is None:
            raise ConfigInvalid(f"{place} cannot be read back; delete it, or give another --cache.")
        return stored

    def _write(self, place: Path, wanted: Mapping[str, ArraySpec], fill: Fill) -> None:
        """Fill a folder of another name, and give it *place*'s when it is whole."""
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        except OSError as error:
            raise _refused(place.parent, error) from None
        try:
            arrays = {name: _reserved(draft / f"{name}.npy", spec) for name, spec in wanted.items()}
            fill(arrays)
            for array in arrays.values():
                array.flush()
            arrays.clear()
            _rename(draft, place, wanted)
        except OSError as error:
            raise _refused(place.parent, error) from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _reserved(path: Path, wanted: ArraySpec) -> Any:  # noqa: ANN401 - a memmap, which has no type
    """Return a new array on disk whose blocks are there: a full disk is an error here, not later.

    Writing to a mapping that finds no room kills the process.
    """
    array = open_memmap(path, mode="w+", dtype=wanted.dtype, shape=wanted.shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _rename(draft: Path, place: Path, wanted: Mapping[str, ArraySpec]) -> None:
    """Give *draft* the name of *place*, unless another has put there what is *wanted*."""
    try:
        draft.rename(place)
    except OSError:
        if _mapped(place, wanted) is not None:
            return
        place.rename(draft / "not_as_wanted")  # goes with *draft*, where that cannot move either
        draft.rename(place)
        shutil.rmtree(place / "not_as_wanted", ignore_errors=True)


def _mapped(place: Path, wanted: Mapping[str, ArraySpec]) -> Arrays | None:
    """Return the arrays in *place*, mapped; None where one is not there, or is not as wanted."""
    arrays: Arrays = {}
    for name, spec in wanted.items():
        try:
            array = np.load(place / f"{name}.npy", mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
            return None
        arrays[name] = array
    return arrays


def _refused(folder: Path, error: OSError) -> ConfigInvalid:
    return ConfigInvalid(
        f"{folder} cannot keep the features ({error.strerror or error}); make room, or give "
        "another --cache."
    )
