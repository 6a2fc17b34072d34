"""Attention along the axes of a grid of tokens, one axis after the other.

No attention is [token x token]. The factorised form is that of Arnab et al., 2021 (ViViT, model 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.layer import Layer, value_norms
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.reads import GridRead
from tracepaper.strategies.networks.architecture import Trace
from tracepaper.strategies.networks.encodings import Phases
from tracepaper.strategies.networks.flash import Block

_TOKENS_AT_ONCE: Final = 32_768
"""Tokens per call of a block without gradients; bounds memory."""
UNORDERED: Final = Phases(None, None, None)
"""The phases of an axis whose tokens have no order."""


class GridAxis(NamedTuple):
    """How the tokens of a grid attend along one of its axes."""

    axis: int  # 0 or 1
    mask: Mask
    phases: Phases = UNORDERED


def attend_by_axis(
    layers: Iterable[Sequence[Block]], state: Tensor, axes: Sequence[GridAxis], trace: Trace | None
) -> Tensor:
    """Return *state* [batch, first, second, dim] above *layers*, which have one block per axis.

    The *trace* of one window gets a read for each block.
    """
    for layer in layers:
        for number, (block, (axis, mask, phases)) in enumerate(zip(layer, axes, strict=True)):
            lines = state if axis else state.transpose(1, 2)
            lines, read = along(block, lines, phases, mask, trace)
            state = lines if axis else lines.transpose(1, 2)
            if trace is not None and read is not None:
                first, second = state.shape[1:3]
                trace.attend(GridRead(read, (first, second), axis), is_layer=number == 0)
    return state


def along(
    block: Block, state: Tensor, phases: Phases, mask: Mask, trace: Trace | None
) -> tuple[Tensor, Layer | None]:
    """Pass the lines of *state* [batch, line, row, dim] through *block*; return its layer as well.

    The batch of the layer is the lines; it is None without *trace*. Without gradients the lines
    pass in parts, to bound memory.
    """
    lines = state.flatten(0, 1)
    count = len(lines)
    if not torch.is_grad_enabled():
        count = max(_TOKENS_AT_ONCE // lines.shape[1], 1)
    weight = block.project_out.weight
    outputs, traced = [], []
    for part in lines.split(count):
        query, key, value = block.project(part, phases)
        mixed, logsumexp = attend(query, key, value, mask, checked=False)
        outputs.append(block.finish(part, mixed))
        if trace is not None:
            traced.append((query, key, logsumexp, value_norms(value, weight)))
    joined = (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unflatten(0, state.shape[:2])
    if trace is None:
        return joined, None
    query, key, logsumexp, norms = (torch.cat(parts) for parts in zip(*traced, strict=True))
    return joined, Layer(query, key, None, logsumexp, mask, norms=norms)
