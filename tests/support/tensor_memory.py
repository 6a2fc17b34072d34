"""The peak memory of torch's tensors, counted: it depends on no machine and on no other process."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Storages(TorchDispatchMode):
    """Counts the bytes of the storages that operations made and that are still held."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._held = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {_place(leaf) for leaf in tree_leaves((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            place = _place(leaf)
            if place is not None and place not in given and place not in self._known:
                storage = leaf.untyped_storage()
                self._known.add(place)
                self._held += storage.nbytes()
                weakref.finalize(storage, self._let_go, place, storage.nbytes())
        self.peak = max(self.peak, self._held)
        return made

    def _let_go(self, place: int, size: int) -> None:
        self._known.discard(place)
        self._held -= size


def _place(leaf: object) -> int | None:
    return leaf.untyped_storage().data_ptr() or None if isinstance(leaf, torch.Tensor) else None


def peak_mb(call: Callable[[], object]) -> float:
    """Return the most MB that tensors made in *call* hold at once."""
    with torch.no_grad(), _Storages() as storages:
        call()
    return storages.peak / 1e6
