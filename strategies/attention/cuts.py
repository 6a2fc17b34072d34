"""Masks made of square passes: a causal window of two, blocks of the past of one a block.

A causal window is made of two square causal passes: no mask, no wasted band, exact gradients. Cut
time into blocks of the window's length W. A query sees its own block causally, and of the block
before it exactly the keys that its own block has not yet pushed out: key j of that block is visible
to query i of this one when j > i. With time reversed that is causal again. So both parts are square
causal passes, merged by their logsumexp; peak memory is that of a few copies of q, k and v. The
gradient of each part is the kernel's own, handed the *merged* output and logsumexp: it rebuilds
``P = exp(s - logsumexp)``, so the parts add up to the whole.

A mask of blocks is made alike: one causal pass over all blocks at once, and for each block a full
pass over the earlier ones that it sees; what none sees is never computed.

The rules are docs/attention.md, A3 and A33.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import torch
from torch.nn.functional import pad

from tracepaper.strategies.attention.backends import Kernel, Pass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from tracepaper.strategies.attention.masks import Blocks

_BATCH_MOST: Final = 65_535
"""Elements of a batch that one call takes: CUDA counts them along an axis of the grid."""


def _forward(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
) -> Pass:
    """Attend within many short stretches of time, some of the batch a call."""
    parts = [
        kernel.forward(*part, causal=causal, scale=scale)
        for part in zip(*(x.split(_BATCH_MOST) for x in (query, key, value)), strict=True)
    ]
    return parts[0] if len(parts) == 1 else Pass(*map(torch.cat, zip(*parts, strict=True)))


def _backward(
    kernel: Kernel, gradient: Tensor, inputs: _Inputs, result: Pass, *, causal: bool, scale: float
) -> _Inputs:
    """Return the gradients of such stretches, some of the batch a call."""
    parts = [
        kernel.backward(grad, (query, key, value), Pass(output, sums), causal=causal, scale=scale)
        for grad, query, key, value, output, sums in zip(
            *(x.split(_BATCH_MOST) for x in (gradient, *inputs, *result)), strict=True
        )
    ]
    if len(parts) == 1:
        return parts[0]
    to_query, to_key, to_value = (torch.cat(own) for own in zip(*parts, strict=True))
    return to_query, to_key, to_value


_Inputs: TypeAlias = "tuple[Tensor, Tensor, Tensor]"


class _Cuts(NamedTuple):
    """How [batch, head, time, dim] is cut into blocks of ``size`` bars, padded at the end."""

    batch: int
    heads: int
    time: int
    size: int
    blocks: int

    def cut(self, x: Tensor) -> Tensor:
        """Return [batch, block, head, size, dim]; free for tensors laid out time-major."""
        x = x.transpose(1, 2)  # [batch, time, head, dim]
        x = pad(x, (0, 0, 0, 0, 0, self.blocks * self.size - self.time))
        blocks: Tensor = x.unflatten(1, (self.blocks, self.size))
        return blocks.transpose(2, 3)

    def join(self, x: Tensor) -> Tensor:
        """Return [batch, head, time, dim] of [batch, block, head, size, dim]."""
        x = x.transpose(2, 3).reshape(self.batch, self.blocks * self.size, self.heads, -1)
        return x[:, : self.time].transpose(1, 2)


def _newer(x: Tensor) -> Tensor:
    """Return the rows of all blocks but the first that reach back a block, time reversed."""
    return x[:, 1:, :, :-1].flip(3).flatten(0, 1)  # [batch * block, head, size - 1, dim]


def _older(x: Tensor) -> Tensor:
    """Return the keys of all blocks but the last that the next block reaches, time reversed."""
    return x[:, :-1, :, 1:].flip(3).flatten(0, 1)


def _add(output: Tensor, logsumexp: Tensor, more: Tensor, more_logsumexp: Tensor) -> None:
    """Take *more* into views of what other keys of the same rows gave, in place.

    Two parts of one softmax: each counts by its share of the normaliser of both.
    """
    merged = torch.logaddexp(logsumexp, more_logsumexp)
    share = torch.exp(more_logsumexp - merged)[..., None].to(output.dtype)
    output += share * (more - output)
    logsumexp.copy_(merged)


def window_forward(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output [batch, head, time, dim] and logsumexp [batch, head, time]."""
    batch, heads, time, _ = query.shape
    cuts = _Cuts(batch, heads, time, window, -(-time // window))
    cut = [cuts.cut(x) for x in (query, key, value)]
    wide = [x.flatten(0, 1) for x in cut]
    own = _forward(kernel, wide[0], wide[1], wide[2], causal=True, scale=scale)
    output = own.output.unflatten(0, (batch, -1))  # [batch, block, head, size, dim]
    logsumexp = own.logsumexp.unflatten(0, (batch, -1))
    if cuts.blocks > 1 and window > 1:
        past = _forward(
            kernel, _newer(cut[0]), _older(cut[1]), _older(cut[2]), causal=True, scale=scale
        )
        back = (x.unflatten(0, (batch, -1)).flip(3) for x in (past.output, past.logsumexp))
        _add(output[:, 1:, :, :-1], logsumexp[:, 1:, :, :-1], *back)
    return cuts.join(output), cuts.join(logsumexp[..., None]).squeeze(-1)


def window_backward(
    kernel: Kernel,
    gradient: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    result: tuple[Tensor, Tensor],
    *,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value; *result* is what the forward returned."""
    batch, heads, time, _ = inputs[0].shape
    cuts = _Cuts(batch, heads, time, window, -(-time // window))
    query, key, value = (cuts.cut(x) for x in inputs)
    output, grad = cuts.cut(result[0]), cuts.cut(gradient)
    logsumexp = cuts.cut(result[1][..., None])

    def share(*parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        part_grad, part_query, part_key, part_value, part_output, part_logsumexp = parts
        merged = Pass(part_output, part_logsumexp.squeeze(-1))
        return _backward(
            kernel,
            part_grad,
            (part_query, part_key, part_value),
            merged,
            causal=True,
            scale=scale,
        )

    own = share(*(x.flatten(0, 1) for x in (grad, query, key, value, output, logsumexp)))
    grads = [x.unflatten(0, (batch, -1)) for x in own]
    if cuts.blocks > 1 and window > 1:
        past = share(
            _newer(grad),
            _newer(query),
            _older(key),
            _older(value),
            _newer(output),
            _newer(logsumexp),
        )
        back = [x.unflatten(0, (batch, -1)).flip(3) for x in past]
        grads[0][:, 1:, :, :-1] += back[0]
        grads[1][:, :-1, :, 1:] += back[1]
        grads[2][:, :-1, :, 1:] += back[2]
    return cuts.join(grads[0]), cuts.join(grads[1]), cuts.join(grads[2])


def blocks_forward(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, *, blocks: Blocks, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output [batch, head, time, dim] and logsumexp [batch, head, time]."""
    batch, heads, time, _ = query.shape
    cuts = _Cuts(batch, heads, time, blocks.bars, -(-time // blocks.bars))
    wide = [cuts.cut(x).flatten(0, 1) for x in (query, key, value)]
    own = _forward(kernel, wide[0], wide[1], wide[2], causal=True, scale=scale)
    output = cuts.join(own.output.unflatten(0, (batch, -1)))
    logsumexp = cuts.join(own.logsumexp.unflatten(0, (batch, -1))[..., None]).squeeze(-1)
    for rows, runs in _pasts(blocks, time):
        past = kernel.forward(
            query[:, :, rows], _taken(key, runs), _taken(value, runs), causal=False, scale=scale
        )
        _add(output[:, :, rows], logsumexp[:, :, rows], past.output, past.logsumexp)
    return output, logsumexp


def blocks_backward(
    kernel: Kernel,
    gradient: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    result: tuple[Tensor, Tensor],
    *,
    blocks: Blocks,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value; *result* is what the forward returned."""
    query, key, value = inputs
    batch, heads, time, _ = query.shape
    cuts = _Cuts(batch, heads, time, blocks.bars, -(-time // blocks.bars))
    wide = [cuts.cut(x).flatten(0, 1) for x in (gradient, *inputs, result[0], result[1][..., None])]
    own = _backward(
        kernel,
        wide[0],
        (wide[1], wide[2], wide[3]),
        Pass(wide[4], wide[5].squeeze(-1)),
        causal=True,
        scale=scale,
    )
    to_query, to_key, to_value = (cuts.join(x.unflatten(0, (batch, -1))) for x in own)
    for rows, runs in _pasts(blocks, time):
        seen = (query[:, :, rows], _taken(key, runs), _taken(value, runs))
        merged = Pass(result[0][:, :, rows], result[1][:, :, rows])
        back = kernel.backward(gradient[:, :, rows], seen, merged, causal=False, scale=scale)
        to_query[:, :, rows] += back[0]
        start = 0
        for run in runs:
            part = slice(start, start + run.stop - run.start)
            to_key[:, :, run] += back[1][:, :, part]
            to_value[:, :, run] += back[2][:, :, part]
            start = part.stop
    return to_query, to_key, to_value


def _pasts(blocks: Blocks, time: int) -> Iterator[tuple[slice, list[slice]]]:
    """Yield the bars of each block, and of the earlier ones that it sees, where there are any."""
    for number, start in enumerate(range(0, time, blocks.bars)):
        if runs := blocks.runs(number):
            yield slice(start, min(start + blocks.bars, time)), runs


def _taken(x: Tensor, runs: list[slice]) -> Tensor:
    """Return the bars *runs* of *x* [batch, head, time, dim], a view where they are one."""
    parts = [x[:, :, run] for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
