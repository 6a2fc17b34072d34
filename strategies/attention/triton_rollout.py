"""The launcher of the Triton rollout kernel; imports triton only where it can run."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import torch

from tracepaper.strategies.attention.backends import AMPERE, generation_of
from tracepaper.strategies.attention.masks import MaskKind
from tracepaper.strategies.attention.tiles import LOG2_E
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tracepaper.strategies.attention.tiles import Operand

TILE: Final = 64
"""Queries and keys of a program's tile; with a head of 64 it fits every GPU since Turing."""
DIM_MAX: Final = 256
ROWS: Final = 16
"""Rows of weights that share a program's exponentials: the least that a matrix unit takes."""
_DIM_MIN: Final = 16  # the smallest side that a matrix unit takes
_TURING: Final = (7, 5)
_GRID_MOST: Final = (1 << 31) - 1
PRECISION: Final = "ieee"
"""Of products of float32 numbers; "tf32x3" would take the matrix units, and is not measured."""
_STAGES: Final = (3, 1)
"""Tiles of queries that are fetched ahead: fewer where a device's shared memory holds no more."""


@cache
def is_available() -> bool:
    """Return whether triton is installed."""
    return find_spec("triton") is not None


def runs_on(device: torch.device) -> bool:
    """Return whether the kernel runs on *device*: CUDA, or any through Triton's interpreter."""
    if not is_available():
        return False
    return device.type == "cuda" or bool(import_module("triton").knobs.runtime.interpret)


def takes(layer: Operand) -> bool:
    """Return whether the kernel takes tensors of this type and head dim on their device.

    Triton compiles for Turing and later, and multiplies bfloat16 from Ampere on. The kernel knows
    square masks.
    """
    query = layer.query
    if layer.mask.kind is MaskKind.OTHER:
        return False
    if layer.kind == torch.float64 or query.shape[3] > DIM_MAX or layer.queries != layer.keys:
        return False
    if not is_available():
        return False
    least = AMPERE if query.dtype == torch.bfloat16 else _TURING
    return query.device.type != "cuda" or generation_of(query.device) >= least


def push_rows(
    layer: Operand, weights: Tensor, used: Tensor | None = None, *, precision: str = PRECISION
) -> Tensor:
    """Return each head's ``wᵀA`` [batch, head, row, time] in float32; *weights* [batch, row, time].

    Only the queries *used* (int64, ascending, None for all) are read. *precision* is that of
    products of float32 numbers, by Triton's name. Raises ``AttentionInvalid`` for float64, heads
    of more than ``DIM_MAX``, and what a device cannot hold.
    """
    if not takes(layer):
        raise AttentionInvalid(
            "The triton rollout kernel takes square layers of float32 and half types, heads of at "
            f"most {DIM_MAX}, and bfloat16 from Ampere on; choose the backend tiles."
        )
    kernel = import_module("tracepaper.strategies.attention.triton_kernel")
    batch, heads, time, dim = layer.query.shape
    rows, device = weights.shape[1], weights.device
    mask, query, minus, shares = layer.mask, layer.query, layer.minus, weights
    if used is not None:
        query, minus, shares = (x.index_select(2, used) for x in (query, minus, shares))
    is_causal = mask.kind is not MaskKind.FULL
    window = mask.window_bars if mask.kind is MaskKind.WINDOW else time
    if used is None:
        place, first, last = _all_spans(time, window, device, is_causal=is_causal)
    else:
        place, first, last = _spans(used, time, window, is_causal=is_causal)
    rows_a_program = 1 if rows == 1 else ROWS
    row_blocks = -(-rows // rows_a_program)
    result = torch.empty(batch, heads, rows, time, dtype=torch.float32, device=device)
    programs = len(first) * row_blocks * batch * heads
    if programs > _GRID_MOST:
        raise AttentionInvalid(
            f"{rows} rows of {time} bars are {programs:,} programs, and a grid takes "
            f"{_GRID_MOST:,}; ask fewer rows at once."
        )
    arguments = (
        query.contiguous(),
        layer.key.contiguous(),
        minus.float().contiguous(),
        shares.float().contiguous(),
        place,
        first,
        last,
        result,
        layer.scale * LOG2_E if layer.softcap is None else layer.scale / layer.softcap,
        0.0 if layer.softcap is None else layer.softcap * LOG2_E,
        time,
        len(place),
        rows,
        heads,
        layer.group,
        window,
        len(first),
        row_blocks,
    )
    options = {
        "CAUSAL": is_causal,
        "CAPPED": layer.softcap is not None,
        "DIM": dim,
        "DIM_PADDED": max(_DIM_MIN, 1 << (dim - 1).bit_length()),
        "QUERIES": TILE,
        "KEYS": TILE,
        "WIDEN": device.type != "cuda",
        "PRECISION": precision,
        "ROWS": rows_a_program,
        # Its default changed between versions of Triton, and the last bits with it.
        "enable_fp_fusion": True,
    }
    launch(kernel.push_kernel[(programs,)], arguments, options)
    return result


def _spans(
    used: Tensor, time: int, window: int, *, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return *used*, and the first and one past the last of them that see each block of keys."""
    starts = torch.arange(0, time, TILE, device=used.device)
    if is_causal:
        first = torch.searchsorted(used, starts)
        # The last key of a tile is seen by queries up to a window after it.
        last = torch.searchsorted(used, starts + (TILE - 1 + window))
    else:
        first, last = torch.zeros_like(starts), torch.full_like(starts, len(used))
    return used.int(), first.int(), last.int()


@lru_cache(maxsize=64)
def _all_spans(
    time: int, window: int, device: torch.device, *, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``_spans`` of every bar, which layer after layer asks for."""
    return _spans(torch.arange(time, device=device), time, window, is_causal=is_causal)


def launch(
    kernel: Callable[..., object], arguments: tuple[object, ...], options: dict[str, object]
) -> None:
    """Run *kernel* with as many tiles fetched ahead as the device's shared memory holds."""
    exhausted = import_module("triton.runtime.errors").OutOfResources
    lacking = ""
    for stages in _STAGES:
        try:
            kernel(*arguments, **options, num_stages=stages)
        except exhausted as error:
            lacking = str(error).rstrip(".")
        else:
            return
    raise AttentionInvalid(
        f"The triton rollout kernel does not fit this device ({lacking}); choose the backend tiles."
    )
