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


def push_rows(layer: Layer, weights: Tensor, mask: Mask) -> Tensor:
    """Return each head's ``wᵀA`` [batch, head, row, time] in float32; *weights* [batch, row, time].

    Raises ``AttentionInvalid`` for float64 and for heads of more than ``DIM_MAX``.
    """
    kernel = import_module("tracepaper.strategies.attention.triton_kernel")
    batch, heads, time, dim = layer.query.shape
    if layer.logsumexp.dtype == torch.float64 or dim > DIM_MAX:
        raise AttentionInvalid(
            f"The triton rollout kernel takes float32 and half types and heads of at most "
            f"{DIM_MAX}; choose the backend tiles."
        )
    rows = weights.shape[1]
    tiny = torch.finfo(weights.dtype).tiny
    bias = weights.clamp_min(tiny).log()[:, None] - layer.logsumexp[:, :, None]
    bias = (bias * LOG2_E).contiguous()  # [batch, head, row, time]
    result = torch.empty_like(bias)
    is_causal = mask.kind is not MaskKind.FULL
    window = mask.window_bars if mask.kind is MaskKind.WINDOW else time
    kernel.push_kernel[((time + TILE - 1) // TILE, batch * heads * rows)](
        layer.query.contiguous(),
        layer.key.contiguous(),
        bias,
        result,
        layer.scale * LOG2_E,
        time,
        rows,
        window,
        CAUSAL=is_causal,
        DIM=dim,
        DIM_PADDED=max(_DIM_MIN, 1 << (dim - 1).bit_length()),
        QUERIES=TILE,
        KEYS=TILE,
    )
    return result
