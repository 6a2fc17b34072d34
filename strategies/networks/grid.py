"""Attention along the axes of a grid of tokens, one axis after the other.

No attention is [token x token]. The factorised form is that of Arnab et al., 2021 (ViViT, model 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.reads import GridRead
from tracepaper.strategies.networks.architecture import Trace
from tracepaper.strategies.networks.encodings import Phases
from tracepaper.strategies.networks.flash import Block

_TOKENS_AT_ONCE: Final = 4_096
"""Tokens per call of a block without gradients and trace; bounds memory."""


class GridAxis(NamedTuple):
    """How the tokens of a grid attend along one of its axes."""

    axis: int  # 0 or 1
    mask: Mask
    phases: Phases = Phases()  # none: the tokens of the axis have no order


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
    """Pass the lines of *state* [batch, line, row, dim] through *block*; return its read as well.

    The batch of the read is the lines; it is None without *trace*. Without gradients and trace the
    lines pass in parts, to bound memory.
    """
    lines, read = state.flatten(0, 1), None
    if torch.is_grad_enabled() or trace is not None:
        output, read = pass_block(block, lines, phases, mask)
    else:
        parts = lines.split(max(_TOKENS_AT_ONCE // lines.shape[1], 1))
        output = torch.cat([pass_block(block, part, phases, mask)[0] for part in parts])
    return output.unflatten(0, state.shape[:2]), read


def pass_block(block: Block, lines: Tensor, phases: Phases, mask: Mask) -> tuple[Tensor, Layer]:
    """Return *lines* [line, row, dim] above *block*, and its attention."""
    query, key, value = block.project(lines, phases)
    attended, logsumexp = attend(query, key, value, mask, checked=False)
    weight = block.project_out.weight
    layer = Layer(query, key, value, logsumexp, mask, output_weight=weight)
    return block.finish(lines, attended), layer
