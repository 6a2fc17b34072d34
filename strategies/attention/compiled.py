"""Compiled C loops for attention, streams and trees, built if a C compiler is installed.

``native.c`` is one source for every vector width. Installing the package compiles one object for
AVX-512 and one for AVX2, and each reports whether this processor has its instructions. The loops
are optional: torch computes the same within 1e-6. Results are bit-identical at any number of
threads, but differ between objects, so a run records the one that computed it.

The rule is docs/attention.md, A31.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

from .errors import AttentionInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from .masks import Mask
    from .tiles import Operand

NAMES: Final = ("native_avx512", "native_avx2")
"""The objects, the fastest first."""
FOLDER: Final = Path(__file__).parent
ID_DIGITS: Final = 12
_P, _L, _F = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_SIGNATURES: Final = {
    "rollout": (*[_P] * 6, _F, _F, _L),
    "entropy": (*[_P] * 5, _F, _F, _L),
    "scan": (*[_P] * 12, _F, _L),
    "buckets": (*[_P] * 8, _F, _F, _L),
    "trees": (*[_P] * 10, _L),
}
TREES_AT_ONCE: Final = 64
"""A table of trees has a multiple of these, four vectors of the widest loops."""


class Loops(NamedTuple):
    """One object: its functions, and the beginning of its SHA-256, which a run records."""

    library: ctypes.CDLL
    sha256: str


def file_of(name: str) -> str:
    """Return the file of the object *name*; its two dots keep Python from importing it."""
    return f"{name.replace('_', '.')}.so"


def opened(path: Path) -> Loops | None:
    """Return the object at *path*; None if there is none that runs here.

    It does not if it was built from other sources, or the processor lacks its instructions.
    """
    source = path.with_name("native.c")
    if not (path.is_file() and source.is_file()):
        return None
    built_from = hashlib.sha256(source.read_bytes()).hexdigest()
    try:
        library = ctypes.CDLL(str(path))
        library.source.restype = ctypes.c_char_p
        if library.source().decode() != built_from or not library.supported():
            return None
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, _L
    except (OSError, AttributeError):  # built for another machine, or not such an object
        return None
    return Loops(library, hashlib.sha256(path.read_bytes()).hexdigest()[:ID_DIGITS])


@cache
def loops() -> dict[str, Loops]:
    """Return the objects that are built and run here, by their names, the fastest first."""
    built = {name: opened(FOLDER / file_of(name)) for name in NAMES}
    return {name: library for name, library in built.items() if library is not None}


def available() -> tuple[str, ...]:
    """Return the names of the objects that can compute here, the fastest first."""
    return tuple(loops())


def runs_on(name: str, device: torch.device) -> bool:
    """Return whether the object *name* is built and computes on *device*."""
    return device.type == "cpu" and name in loops()


def takes(tensor: Tensor) -> bool:
    """Return whether the loops can compute with *tensor*: float32 of the CPU, without gradient."""
    is_plain = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return is_plain and not (tensor.requires_grad and torch.is_grad_enabled())


def choose(layer: Operand) -> str | None:
    """Return the name of the fastest object that takes *layer*, None if none does."""
    if not loops() or layer.kind != torch.float32 or not layer.mask.is_interval:
        return None
    given = (layer.query, layer.key, layer.logsumexp)
    return available()[0] if all(takes(tensor) for tensor in given) else None


def push_rows(layer: Operand, weights: Tensor, name: str) -> Tensor:
    """Return each head's ``wᵀA`` for *weights* [batch, row, query]: [batch, head, row, key]."""
    rows = weights.shape[1]
    product = weights.new_empty(layer.batch, layer.heads, rows, layer.keys)
    # A query without weight may have any logsumexp: +inf makes its entries 0. A query with a
    # logsumexp of -inf is computed all the same, so that the mass check finds a wrong one.
    has_weight = (weights != 0).any(dim=1)[:, None]
    sums = layer.logsumexp.masked_fill(torch.isneginf(layer.logsumexp), 0.0)
    sums = sums.masked_fill(~has_weight, torch.inf)
    tensors = [_plain(x) for x in (layer.query, layer.key, sums, weights)]
    _call(name, "rollout", *map(_at, (*tensors, product)), _sizes(layer, rows), *_factors(layer))
    return product


def row_masses(layer: Operand, name: str) -> tuple[Tensor, Tensor]:
    """Return the keys' mass and entropy in nats of each row, both [batch, head, query]."""
    sums = layer.logsumexp.new_empty(layer.batch * layer.heads, 2, layer.queries)
    given = layer.logsumexp.masked_fill(torch.isneginf(layer.logsumexp), 0.0)
    tensors = [_plain(x) for x in (layer.query, layer.key, given)]
    _call(name, "entropy", *map(_at, (*tensors, sums)), _sizes(layer, 0), *_factors(layer))
    mass, entropy = (part.unflatten(0, (layer.batch, layer.heads)) for part in sums.unbind(1))
    return mass, entropy


def bucket_rows(
    layer: Operand, values: Tensor, shares: Tensor, residual_weight: float, name: str
) -> tuple[Tensor, Tensor]:
    """Return ``ρ·R + Σ_h shares_h A_h·R`` for R = *values* [batch, time, column], and the masses.

    These are each row's, [batch, head, time].
    """
    result, mass = torch.empty_like(values), values.new_zeros(layer.logsumexp.shape)
    key = layer.key.repeat_interleave(layer.group, dim=1)
    tensors = [_plain(x) for x in (layer.query, key, layer.logsumexp, shares, values)]
    low, high = _distances(layer.mask, layer.queries)
    sizes = (layer.batch, layer.heads, layer.queries, layer.dim, values.shape[2], low, high)
    shape = (ctypes.c_long * len(sizes))(*sizes)
    _call(name, "buckets", *map(_at, (*tensors, mass, result)), shape, residual_weight, layer.scale)
    return result, mass


def _sizes(layer: Operand, rows: int) -> ctypes.Array[ctypes.c_long]:
    """Return the loops' arguments for a layer: counts, and the bounds of query minus key."""
    first = layer.mask.first if isinstance(layer.mask.first, int) else layer.keys - layer.queries
    low, high = _distances(layer.mask, layer.queries + layer.keys + abs(first))
    sizes = (
        *(layer.batch * layer.heads, layer.heads, layer.group),
        *(layer.queries, layer.keys, layer.dim, rows, low - first, high - first),
    )
    return (ctypes.c_long * len(sizes))(*sizes)


def _factors(layer: Operand) -> tuple[float, float]:
    """Return the scale, and the soft cap or 0."""
    return layer.scale, layer.softcap or 0.0


class WindowRows(NamedTuple):
    """The attention of new rows of streams over their windows."""

    output: Tensor  # [pair, time, dim]
    figures: Tensor  # [pair, time, 4]: mass, largest score, largest share, mean score
    rollout: Tensor  # [stream, time, width]: mean_h A_h R


class StreamRows(NamedTuple):
    """New rows of streams, or the rings that keep earlier ones."""

    keys: Tensor  # [pair, time, dim]
    values: Tensor  # [pair, time, dim]
    rollout: Tensor  # [stream, time, width]


def scan_rows(
    query: Tensor,
    new: StreamRows,
    rings: StreamRows,
    *,
    end: int,
    counts: Sequence[int],
    window: int,
    scale: float,
    name: str,
) -> WindowRows:
    """Write *new* rows of streams into their *rings* from *end* on, and attend with them there.

    *query* is [pair, time, dim]; *counts* are the bars that each stream had before.
    """
    pairs, time, dim = query.shape
    keys, _, rollout = rings
    streams, width = len(counts), rollout.shape[2]
    given = [x if x.stride(2) == 1 else x.contiguous() for x in (query, *new)]
    attended = WindowRows(
        query.new_empty(pairs, time, dim),
        query.new_empty(pairs, time, 4),
        query.new_empty(streams, time, width),
    )
    sizes = (
        *(streams, pairs // streams, time, dim, window, width, end),
        *(*given[0].stride()[:2], *keys.stride()[:2], rollout.stride(0)),
        *(step for x in given[1:] for step in x.stride()[:2]),
    )
    before = (ctypes.c_long * streams)(*counts)
    shape = (ctypes.c_long * len(sizes))(*sizes)
    tensors = map(_at, (*given, *rings))
    _call(name, "scan", *tensors, before, *map(_at, attended), shape, scale)
    return attended


class TreeTable(NamedTuple):
    """Trees as tables of the leaves that remain (``forecasters.trees``); entry 0 has all."""

    columns: NDArray[np.int64]  # [feature] of a row
    edges: NDArray[np.float64]  # [feature, edge], rising, then infinite
    first: NDArray[np.int64]  # [feature]: the entry for a value above no edge
    of_nan: NDArray[np.int64]  # [feature]: the entry for NaN
    entries: NDArray[np.unsignedinteger]  # [entry, tree] of 32 or 64 bits
    values: NDArray[np.float64]  # [leaf], each tree's from left to right
    starts: NDArray[np.int64]  # [tree]: the place of its first leaf


def leaf_values(rows: NDArray[np.float64], table: TreeTable, name: str) -> NDArray[np.float64]:
    """Return the value of the leaf that each of *rows* [row, column] reaches, [row, tree]."""
    output = np.empty((len(rows), len(table.starts)))
    sizes = *rows.shape, *table.edges.shape, len(table.starts), table.entries.itemsize
    arrays = [array.ctypes.data for array in (np.ascontiguousarray(rows), *table, output)]
    _call(name, "trees", *arrays, (ctypes.c_long * len(sizes))(*sizes))
    return output


def _call(name: str, function: str, *arguments: object) -> None:
    """Call *function* of the object *name* with as many threads as torch has."""
    if _function(name, function)(*arguments, torch.get_num_threads()):
        raise MemoryError(f"{name} found no memory for a tile; free some.")


@cache
def _function(name: str, function: str) -> Callable[..., int]:
    if name not in loops():
        raise AttentionInvalid(
            f"There is no {name} here; choose auto, or install a C compiler and then this "
            "package again."
        )
    return getattr(loops()[name].library, function)


def _plain(tensor: Tensor) -> Tensor:
    """Return *tensor* as contiguous float32."""
    return tensor.to(torch.float32).contiguous()


def _at(tensor: Tensor) -> int:
    return tensor.data_ptr()


def _distances(mask: Mask, most: int) -> tuple[int, int]:
    """Return the least and the largest distance back of a visible key; *most* is no limit."""
    low = 0 if mask.causal else -most if mask.after is None else -mask.after
    return low, most if mask.before is None else min(mask.before, most)
