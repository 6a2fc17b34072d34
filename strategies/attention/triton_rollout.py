"""Calls the Triton rollout kernel; answers whether it can run without importing triton early."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import torch

from tracepaper.strategies.attention.masks import MaskKind
from tracepaper.strategies.attention.tiles import LOG2_E
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.attention.checks import Layer
    from tracepaper.strategies.attention.masks import Mask

TILE: Final = 64
"""Queries and keys of a program's tile; with a head of 64 it fits every GPU since Turing."""
DIM_MAX: Final = 256
ROWS: Final = 16
"""Rows of weights that share a program's exponentials: the least that a matrix unit takes."""
_DIM_MIN: Final = 16  # the smallest side that a matrix unit takes


@cache
def is_available() -> bool:
    """Return whether triton is installed."""
    return find_spec("triton") is not None


def runs_on(device: torch.device) -> bool:
    """Return whether the kernel runs on *device*: CUDA, or any through Triton's interpreter."""
    if not is_available():
        return False
    return device.type == "cuda" or bool(import_module("triton").knobs.runtime.interpret)


def takes(layer: Layer) -> bool:
    """Return whether the kernel takes tensors of this type and head dim."""
    return layer.logsumexp.dtype != torch.float64 and layer.query.shape[3] <= DIM_MAX


def push_rows(layer: Layer, weights: Tensor, mask: Mask, *, kept: Tensor | None = None) -> Tensor:
    """Return each head's ``wᵀA`` [batch, head, row, time] in float32; *weights* [batch, row, time].

    ``kept`` (boolean [time]) names the only positions where a weight is not zero: no other query
    is read. Raises ``AttentionInvalid`` for float64 and for heads of more than ``DIM_MAX``.
    """
    if not takes(layer):
        raise AttentionInvalid(
            f"The triton rollout kernel takes float32 and half types and heads of at most "
            f"{DIM_MAX}; choose the backend tiles."
        )
    kernel = import_module("tracepaper.strategies.attention.triton_kernel")
    batch, heads, time, dim = layer.query.shape
    rows, device = weights.shape[1], weights.device
    place = torch.arange(time, device=device) if kept is None else kept.nonzero()[:, 0]
    query, logsumexp, shares = layer.query, layer.logsumexp, weights
    if kept is not None:
        query, logsumexp = query.index_select(2, place), logsumexp.index_select(2, place)
        shares = shares.index_select(2, place)
    is_causal = mask.kind is not MaskKind.FULL
    window = mask.window_bars if mask.kind is MaskKind.WINDOW else time
    starts = torch.arange(0, time, TILE, device=device)
    if is_causal:
        first = torch.searchsorted(place, starts)
        # The last key of a tile is seen by queries up to a window after it.
        last = torch.searchsorted(place, starts + (TILE - 1 + window))
    else:
        first, last = torch.zeros_like(starts), torch.full_like(starts, len(place))
    rows_a_program = 1 if rows == 1 else ROWS
    row_blocks = -(-rows // rows_a_program)
    result = torch.empty(batch, heads, rows, time, dtype=torch.float32, device=device)
    kernel.push_kernel[(len(starts) * row_blocks * batch * heads,)](
        query.contiguous(),
        layer.key.contiguous(),
        (logsumexp * -LOG2_E).float().contiguous(),
        shares.float().contiguous(),
        place.int(),
        first.int(),
        last.int(),
        result,
        layer.scale * LOG2_E,
        time,
        len(place),
        rows,
        heads,
        window,
        len(starts),
        row_blocks,
        CAUSAL=is_causal,
        DIM=dim,
        DIM_PADDED=max(_DIM_MIN, 1 << (dim - 1).bit_length()),
        QUERIES=TILE,
        KEYS=TILE,
        WIDEN=device.type != "cuda",
        ROWS=rows_a_program,
    )
    return result
