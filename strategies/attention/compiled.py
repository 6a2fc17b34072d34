"""Compiled C loops for rollout, entropy and streaming, built where a C compiler is.

``native.c`` is one text for every width of vectors. Installing tracepaper compiles an object for
AVX-512 and one for AVX2 beside it, and each says whether this processor has its instructions.
Nothing here is needed: torch computes the same within 1e-6. Results have the same bits at any
number of threads, and other ones by another object, so a run names the one that computed it.

The rule is docs/attention.md, A31.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from tracepaper.strategies.attention.checks import Layer

NAMES: Final = ("native_avx512", "native_avx2")
"""The objects, the fastest first."""
FOLDER: Final = Path(__file__).parent
ID_DIGITS: Final = 12
_P, _L, _F = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_SIGNATURES: Final = {
    "rollout": (*[_P] * 5, *[_L] * 7, _F, _L),
    "entropy": (*[_P] * 4, *[_L] * 5, _F, _L),
    "scan": (*[_P] * 12, _F, _L),
    "buckets": (*[_P] * 8, _F, _F, _L),
}


class Loops(NamedTuple):
    """One object: its functions, and the beginning of its SHA-256, by which a run names it."""

    library: ctypes.CDLL
    sha256: str


def file_of(name: str) -> str:
    """Return the file of the object *name*; with two dots it is no module of the package."""
    return f"{name.replace('_', '.')}.so"


def opened(path: Path) -> Loops | None:
    """Return the object at *path*; None where there is none that runs here.

    That is one of other sources than those beside it, or of instructions that the processor lacks.
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
    except (OSError, AttributeError):  # built for another machine, or no object of ours
        return None
    return Loops(library, hashlib.sha256(path.read_bytes()).hexdigest()[:ID_DIGITS])


@cache
def found() -> dict[str, Loops]:
    """Return the objects that are built and run here, by their names, the fastest first."""
    loops = {name: opened(FOLDER / file_of(name)) for name in NAMES}
    return {name: one for name, one in loops.items() if one is not None}


def available() -> tuple[str, ...]:
    """Return the names of the objects that can compute here, the fastest first."""
    return tuple(found())


def runs_on(name: str, device: torch.device) -> bool:
    """Return whether the object *name* is here and computes on *device*."""
    return device.type == "cpu" and name in found()


def takes(tensor: Tensor) -> bool:
    """Return whether the loops can compute with *tensor*: float32 of the CPU, without gradient."""
    is_plain = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return is_plain and not (tensor.requires_grad and torch.is_grad_enabled())


def choose(layer: Layer) -> str | None:
    """Return the fastest object where there is one that takes *layer*, None where there is none."""
    if not found() or layer.logsumexp.dtype != torch.float32:
        return None
    given = (layer.query, layer.key, layer.logsumexp)
    return available()[0] if all(takes(tensor) for tensor in given) else None


def push_rows(layer: Layer, weights: Tensor, mask: Mask, name: str) -> Tensor:
    """Return each head's ``wᵀA`` for *weights* [batch, row, time]: [batch, head, row, time]."""
    batch, heads, time, dim = layer.query.shape
    rows = weights.shape[1]
    product = weights.new_empty(batch, heads, rows, time)
    tensors = [_plain(x) for x in (layer.query, layer.key, layer.logsumexp, weights)]
    low, high = _distances(mask, time)
    sizes = (batch * heads, heads, time, dim, rows, low, high)
    _call(name, "rollout", *map(_at, (*tensors, product)), *sizes, layer.scale)
    return product


def row_masses(layer: Layer, mask: Mask, name: str) -> tuple[Tensor, Tensor]:
    """Return each row's mass and entropy in nats, both [batch, head, time]."""
    batch, heads, time, dim = layer.query.shape
    sums = layer.logsumexp.new_empty(batch * heads, 2, time)
    tensors = [_plain(x) for x in (layer.query, layer.key, layer.logsumexp)]
    low, high = _distances(mask, time)
    _call(
        name,
        "entropy",
        *map(_at, (*tensors, sums)),
        *(batch * heads, time, dim, -high, -low),
        layer.scale,
    )
    mass, entropy = (part.unflatten(0, (batch, heads)) for part in sums.unbind(1))
    return mass, entropy


def bucket_rows(
    layer: Layer, values: Tensor, mask: Mask, shares: Tensor, residual_weight: float, name: str
) -> tuple[Tensor, Tensor]:
    """Return ``ρ·R + Σ_h shares_h A_h·R`` for R = *values* [batch, time, column], and the masses.

    These are each row's, [batch, head, time].
    """
    batch, heads, time, dim = layer.query.shape
    result, mass = torch.empty_like(values), values.new_zeros(batch, heads, time)
    tensors = [_plain(x) for x in (layer.query, layer.key, layer.logsumexp, shares, values)]
    sizes = (batch, heads, time, dim, values.shape[2], *_distances(mask, time))
    shape = (ctypes.c_long * len(sizes))(*sizes)
    _call(name, "buckets", *map(_at, (*tensors, mass, result)), shape, residual_weight, layer.scale)
    return result, mass


class Scanned(NamedTuple):
    """What new rows of streams got from their windows."""

    output: Tensor  # [pair, time, dim]
    figures: Tensor  # [pair, time, 4]: mass, largest score, largest share, mean score
    rollout: Tensor  # [stream, time, width]: mean_h A_h R


class StreamRows(NamedTuple):
    """New rows of streams, or the rings of what they leave behind."""

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
) -> Scanned:
    """Write *new* rows of streams into their *rings* from *end* on, and attend with them there.

    *query* is [pair, time, dim]; *counts* are the bars that each stream has before these.
    """
    pairs, time, dim = query.shape
    keys, _, rollout = rings
    streams, width = len(counts), rollout.shape[2]
    given = [x if x.stride(2) == 1 else x.contiguous() for x in (query, *new)]
    made = Scanned(
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
    _call(name, "scan", *tensors, before, *map(_at, made), shape, scale)
    return made


def _call(name: str, function: str, *arguments: object) -> None:
    """Call *function* of the object *name* with as many threads as torch has."""
    if _function(name, function)(*arguments, torch.get_num_threads()):
        raise MemoryError(f"{name} found no memory for a tile; free some.")


@cache
def _function(name: str, function: str) -> Callable[..., int]:
    if name not in found():
        raise AttentionInvalid(
            f"There is no {name} here; choose auto, or install a C compiler and then tracepaper "
            "again."
        )
    return getattr(found()[name].library, function)


def _plain(tensor: Tensor) -> Tensor:
    """Return *tensor* as one stretch of float32."""
    return tensor.to(torch.float32).contiguous()


def _at(tensor: Tensor) -> int:
    return tensor.data_ptr()


def _distances(mask: Mask, time: int) -> tuple[int, int]:
    """Return how far back a visible key is at least and at most."""
    match mask.kind:
        case MaskKind.FULL:
            return -time, time
        case MaskKind.CAUSAL:
            return 0, time
        case MaskKind.WINDOW:
            return 0, min(mask.window_bars - 1, time)
