"""A causal window out of two square causal passes: no mask, no wasted band, exact gradients.

Cut time into blocks of the window's length W. A query sees its own block causally, and of the
block before it exactly the keys that its own block has not yet pushed out: key j of that block
is visible to query i of this one when j > i. With time reversed that is causal again. So both
parts are square causal passes, merged by their logsumexp; peak memory is that of a few copies
of q, k and v. The gradient of each part is the kernel's own, handed the *merged* output and
logsumexp: it rebuilds ``P = exp(s - logsumexp)``, so the parts add up to the whole. A kernel
that knows windows itself (``window_forward`` and ``window_backward``) is asked directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tracepaper.strategies.attention.backends import Kernel, Pass


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


def window_forward(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output [batch, head, time, dim] and logsumexp [batch, head, time]."""
    batch, heads, time, _ = query.shape
    cuts = _Cuts(batch, heads, time, window, -(-time // window))
    cut = [cuts.cut(x) for x in (query, key, value)]
    own = kernel.forward(*(x.flatten(0, 1) for x in cut), causal=True, scale=scale)
    output = own.output.unflatten(0, (batch, -1))  # [batch, block, head, size, dim]
    logsumexp = own.logsumexp.unflatten(0, (batch, -1))
    if cuts.blocks > 1 and window > 1:
        past = kernel.forward(
            _newer(cut[0]), _older(cut[1]), _older(cut[2]), causal=True, scale=scale
        )
        past_output = past.output.unflatten(0, (batch, -1)).flip(3)
        past_logsumexp = past.logsumexp.unflatten(0, (batch, -1)).flip(3)
        here = logsumexp[:, 1:, :, :-1]
        merged = torch.logaddexp(here, past_logsumexp)
        share = torch.exp(past_logsumexp - merged)[..., None].to(output.dtype)
        output[:, 1:, :, :-1] += share * (past_output - output[:, 1:, :, :-1])
        here.copy_(merged)
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
        return kernel.backward(
            part_grad, (part_query, part_key, part_value), merged, causal=True, scale=scale
        )

    own = share(*(x.flatten(0, 1) for x in (grad, query, key, value, output, logsumexp)))
    grads = [x.unflatten(0, (batch, -1)) for x in own]
    if cuts.blocks > 1 and window > 1:
        past = share(
            _newer(grad), _newer(query), _older(key), _older(value), _newer(output),
            _newer(logsumexp),
        )  # fmt: skip
        back = [x.unflatten(0, (batch, -1)).flip(3) for x in past]
        grads[0][:, 1:, :, :-1] += back[0]
        grads[1][:, :-1, :, 1:] += back[1]
        grads[2][:, :-1, :, 1:] += back[2]
    return cuts.join(grads[0]), cuts.join(grads[1]), cuts.join(grads[2])


class _WindowAttention(torch.autograd.Function):
    """``window_forward`` with its gradient; the logsumexp carries none."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        """Attend; *options* are the kernel, the window and the scale."""
        kernel, window, scale = options
        own = getattr(kernel, "window_forward", None)
        if own is not None:
            output, logsumexp = own(query, key, value, window=window, scale=scale)
        else:
            output, logsumexp = window_forward(
                kernel, query, key, value, window=window, scale=scale
            )
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.mark_non_differentiable(logsumexp)
        ctx.options = options
        return output, logsumexp

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, output, logsumexp = ctx.saved_tensors
        kernel, window, scale = ctx.options
        inputs = (query, key, value)
        own = getattr(kernel, "window_backward", None)
        if own is not None:
            result = Pass(output, logsumexp)
            return (*own(gradient, inputs, result, window=window, scale=scale), None, None, None)
        grads = window_backward(
            kernel, gradient, inputs, (output, logsumexp), window=window, scale=scale
        )
        return (*grads, None, None, None)


class _SquareAttention(torch.autograd.Function):
    """One square pass with its gradient; the logsumexp carries none."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        """Attend; *options* are the kernel, causality and the scale."""
        kernel, causal, scale = options
        result = kernel.forward(query, key, value, causal=causal, scale=scale)
        ctx.save_for_backward(query, key, value, result.output, result.logsumexp)
        ctx.mark_non_differentiable(result.logsumexp)
        ctx.options = options
        return result.output, result.logsumexp

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        *inputs, output, logsumexp = ctx.saved_tensors
        kernel, causal, scale = ctx.options
        grads = kernel.backward(
            gradient, tuple(inputs), Pass(output, logsumexp), causal=causal, scale=scale
        )
        return (*grads, None, None, None)


window_attention: Final[Callable[..., tuple[Tensor, Tensor]]] = _WindowAttention.apply
"""Differentiable ``(query, key, value, kernel, window, scale) -> output, logsumexp``."""

square_attention: Final[Callable[..., tuple[Tensor, Tensor]]] = _SquareAttention.apply
"""Differentiable ``(query, key, value, kernel, causal, scale) -> output, logsumexp``."""
