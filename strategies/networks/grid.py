"""Attention along the axes of a grid of tokens, one axis after the other.

No attention is [token x token]. The factorised form is that of Arnab et al., 2021 (ViViT, model 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import torch
from torch import Tensor

from tracepaper.strategies.attention.checks import working_type
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.reads import MEAN, CarriedRows, Fuse, GridRead, Read
from tracepaper.strategies.networks.architecture import Trace
from tracepaper.strategies.networks.encodings import Phases
from tracepaper.strategies.networks.flash import Block

_TOKENS_AT_ONCE: Final = 4_096
"""Tokens per call of a block without gradients; bounds memory."""


class GridAxis(NamedTuple):
    """How the tokens of a grid attend along one of its axes."""

    axis: int  # 0 or 1
    mask: Mask
    phases: Phases = Phases()  # none: the tokens of the axis have no order


@dataclass(frozen=True, eq=False)
class LinesRead(Read):
    """A block's attention within each of many lines of tokens, projected anew by each call.

    Queries, keys and values would take three times the memory of the states that they follow from.
    """

    block: Block
    state: Tensor
    """[line, row, dim], below the block."""
    phases: Phases
    mask: Mask
    logsumexp: Tensor
    """[line, head, row]."""
    has_content: bool = True

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Lines, heads, queries and keys."""
        lines, heads, rows = self.logsumexp.shape
        return lines, heads, rows, rows

    def advance(self, weights: Tensor, fuse: Fuse = MEAN) -> CarriedRows:
        """Return *weights* [line, row, query] above the block as those below it."""
        steps = [layer.advance(weights[part], fuse) for part, layer in self._layers()]
        # Each row sees at least itself: no query keeps its weight for want of a key.
        return CarriedRows(
            torch.cat([step.above for step in steps]), torch.cat([step.moved for step in steps])
        )

    def rows(self, queries: Sequence[int]) -> Tensor:
        """Return the attention of each head of *queries*: [line, head, row, key]."""
        return torch.cat([layer.rows(queries) for _, layer in self._layers()])

    def entropy(self, queries: Sequence[int] | None = None) -> Tensor:
        """Return the entropy in nats of *queries*, None for all: [line, head, row]."""
        return torch.cat([layer.entropy(queries) for _, layer in self._layers()])

    def _counts(self) -> Tensor:
        return self.mask.visible(*self.shape[2:])[:, None].expand(len(self.state), -1, -1)

    def content_free(self) -> LinesRead:
        """Return the read with queries that hold no content."""
        return replace(self, has_content=False)

    def take(self, elements: Tensor) -> LinesRead:
        """Return the read of some lines."""
        return replace(self, state=self.state[elements], logsumexp=self.logsumexp[elements])

    def _layers(self) -> Iterator[tuple[slice, Layer]]:
        """Yield parts of the lines, each with its layer."""
        for part in parts_of(self.state):
            query, key, value = self.block.project(self.state[part], self.phases)
            weight, logsumexp = self.block.project_out.weight, self.logsumexp[part]
            layer = Layer(query, key, value, logsumexp, self.mask, output_weight=weight)
            yield part, layer if self.has_content else layer.content_free()


def parts_of(lines: Tensor) -> list[slice]:
    """Return slices of *lines* [line, row, dim] whose tokens pass a block at once."""
    step = max(_TOKENS_AT_ONCE // lines.shape[1], 1)
    return [slice(start, start + step) for start in range(0, len(lines), step)]


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
) -> tuple[Tensor, LinesRead | None]:
    """Pass the lines of *state* [batch, line, row, dim] through *block*; return its read as well.

    The batch of the read is the lines; it is None without *trace*. Without gradients the lines pass
    in parts, to bound memory.
    """
    lines = state.flatten(0, 1)
    if torch.is_grad_enabled():
        output, logsumexp = pass_block(block, lines, phases, mask)
    else:
        output = torch.empty_like(lines)
        kind = working_type(lines)
        logsumexp = lines.new_empty(len(lines), block.heads, lines.shape[1], dtype=kind)
        for part in parts_of(lines):
            output[part], logsumexp[part] = pass_block(block, lines[part], phases, mask)
    read = None if trace is None else LinesRead(block, lines, phases, mask, logsumexp)
    return output.unflatten(0, state.shape[:2]), read


def pass_block(block: Block, lines: Tensor, phases: Phases, mask: Mask) -> tuple[Tensor, Tensor]:
    """Return *lines* [line, row, dim] above *block*, and its logsumexp [line, head, row]."""
    query, key, value = block.project(lines, phases)
    attended, logsumexp = attend(query, key, value, mask, checked=False)
    return block.finish(lines, attended), logsumexp
