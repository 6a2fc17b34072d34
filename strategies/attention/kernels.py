"""``attend``: exact attention for every mask and backend, with logsumexp, in linear memory.

A kernel that supports windows (``window_forward`` and ``window_backward``) computes them directly.

A causal window is made of two square causal passes: no mask, no wasted band, exact gradients. Cut
time into blocks of the window's length W. A query sees its own block causally, and of the block
before it exactly the keys that its own block has not yet pushed out: key j of that block is visible
to query i of this one when j > i. With time reversed that is causal again. So both parts are square
causal passes, merged by their logsumexp; peak memory is that of a few copies of q, k and v. The
gradient of each part is the kernel's own, given the *merged* output and logsumexp: it rebuilds
``P = exp(s - logsumexp)``, so the parts add up to the whole.

The rule is docs/attention.md, A3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .backends import BACKENDS, ChunkedBackend, Kernel, kernel_for
from .checks import check_axes, check_factor, check_mask, exact, ruled, working_type
from .errors import AttentionInvalid
from .flash import ALIGNED, Inputs, Pass
from .masks import WHOLE, Mask, MaskKind, check_tensor


def _cut(x: Tensor, size: int) -> Tensor:
    """Return [batch, head, time, dim] as [batch, block, head, size, dim], padded at the end.

    It is a view of tensors laid out time-major.
    """
    x = pad(x.transpose(1, 2), (0, 0, 0, 0, 0, -x.shape[2] % size))  # [batch, time, head, dim]
    blocks: Tensor = x.unflatten(1, (-1, size))
    return blocks.transpose(2, 3)


def _joined(x: Tensor, time: int) -> Tensor:
    """Return blocks [batch, block, head, size, dim] as [batch, head, time, dim]."""
    return x.transpose(2, 3).flatten(1, 2)[:, :time].transpose(1, 2)


def _newer(x: Tensor) -> Tensor:
    """Return the rows that see keys of the block before theirs, time reversed."""
    return x[:, 1:, :, :-1].flip(3).flatten(0, 1)  # [batch * block, head, size - 1, dim]


def _older(x: Tensor) -> Tensor:
    """Return the keys that rows of the next block see, time reversed."""
    return x[:, :-1, :, 1:].flip(3).flatten(0, 1)


def _add(output: Tensor, logsumexp: Tensor, more: Tensor, more_logsumexp: Tensor) -> None:
    """Merge the attention *more* of the same rows to other keys into *output*, in place.

    Both are parts of one softmax: each counts by its share of the joint normaliser.
    """
    merged = torch.logaddexp(logsumexp, more_logsumexp)
    share = torch.exp(more_logsumexp - merged)[..., None].to(output.dtype)
    output += share * (more - output)
    logsumexp.copy_(merged)


def window_forward(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output [batch, head, time, dim] and logsumexp [batch, head, time]."""
    batch, _, time, _ = query.shape
    cut = [_cut(x, window) for x in (query, key, value)]
    wide = [x.flatten(0, 1) for x in cut]
    inner = kernel.forward(wide[0], wide[1], wide[2], causal=True, scale=scale)
    output = inner.output.unflatten(0, (batch, -1))  # [batch, block, head, size, dim]
    logsumexp = inner.logsumexp.unflatten(0, (batch, -1))
    if time > window > 1:
        past = kernel.forward(
            _newer(cut[0]), _older(cut[1]), _older(cut[2]), causal=True, scale=scale
        )
        back = (x.unflatten(0, (batch, -1)).flip(3) for x in (past.output, past.logsumexp))
        _add(output[:, 1:, :, :-1], logsumexp[:, 1:, :, :-1], *back)
    return _joined(output, time), _joined(logsumexp[..., None], time).squeeze(-1)


def window_backward(
    kernel: Kernel, gradient: Tensor, inputs: Inputs, result: Pass, *, window: int, scale: float
) -> Inputs:
    """Return the gradients of query, key and value; *result* is what the forward returned."""
    batch, _, time, _ = inputs[0].shape
    query, key, value, output, grad, sums = (
        _cut(x, window) for x in (*inputs, result[0], gradient, result[1][..., None])
    )

    def share(*parts: Tensor) -> list[Tensor]:
        grad, query, key, value, output, sums = parts
        merged = Pass(output, sums.squeeze(-1))
        grads = kernel.backward(grad, (query, key, value), merged, causal=True, scale=scale)
        return [x.unflatten(0, (batch, -1)) for x in grads]

    grads = share(*(x.flatten(0, 1) for x in (grad, query, key, value, output, sums)))
    if time > window > 1:
        newer = (_newer(grad), _newer(query), _older(key), _older(value))
        back = [x.flip(3) for x in share(*newer, _newer(output), _newer(sums))]
        grads[0][:, 1:, :, :-1] += back[0]
        grads[1][:, :-1, :, 1:] += back[1]
        grads[2][:, :-1, :, 1:] += back[2]
    return _joined(grads[0], time), _joined(grads[1], time), _joined(grads[2], time)


class _KernelAttention(torch.autograd.Function):
    """One kernel's attention with its gradient; the logsumexp carries none."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        """Attend; *options* are the kernel, the mask and the scale."""
        kernel, mask, scale = options
        if mask.kind is MaskKind.WINDOW:
            forward = getattr(kernel, "window_forward", partial(window_forward, kernel))
            result = forward(query, key, value, window=mask.window_bars, scale=scale)
        else:
            causal = mask.kind is MaskKind.CAUSAL
            result = kernel.forward(query, key, value, causal=causal, scale=scale)
        output, logsumexp = result
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.mark_non_differentiable(logsumexp)
        ctx.options = options
        return output, logsumexp

    @staticmethod
    @exact
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value; that of the logsumexp is ignored."""
        if torch.is_grad_enabled():
            # No kernel computes a second derivative, and a graph without it would be wrong.
            raise RuntimeError(
                "Attention has no second derivative: leave create_graph out, or write out "
                "softmax(q·k)·v in torch."
            )
        gradient, _ = grad_outputs
        *inputs, output, logsumexp = ctx.saved_tensors
        kernel, mask, scale = ctx.options
        given = (gradient, tuple(inputs), Pass(output, logsumexp))
        if mask.kind is MaskKind.WINDOW:
            slopes = getattr(kernel, "window_backward", partial(window_backward, kernel))
            grads = slopes(*given, window=mask.window_bars, scale=scale)
        else:
            grads = kernel.backward(*given, causal=mask.kind is MaskKind.CAUSAL, scale=scale)
        return (*grads, None, None, None)


kernel_attention: Final[Callable[..., tuple[Tensor, Tensor]]] = _KernelAttention.apply
"""Differentiable ``(query, key, value, kernel, mask, scale) -> output, logsumexp``."""


class Attention(NamedTuple):
    """Output [batch, head, time, dim] and logsumexp of attention, natural and without gradient."""

    output: Tensor  # [batch, head, time, dim]
    logsumexp: Tensor  # [batch, head, time], float32 (float64 for float64 inputs)


def available(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Return the names of the backends that can run on *device*, fastest first."""
    place = torch.device(device)
    return tuple(name for name, backend in BACKENDS.items() if backend.runs_on(place))


def choose(device: torch.device | str, dtype: torch.dtype, dim: int | None = None) -> str:
    """Return the name of the backend that ``auto`` selects.

    *dim* is the head dim, None if unknown: some kernels take no wide heads.
    """
    place = torch.device(device)
    return next(
        name
        for name in available(place)
        if BACKENDS[name].is_automatic and BACKENDS[name].takes(place, dtype, dim)
    )


def is_half(backend: str) -> bool:
    """Return whether *backend* takes half-precision types alone; False for ``auto``."""
    return backend in BACKENDS and BACKENDS[backend].is_half


@exact
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    *,
    backend: str = "auto",
    scale: float | None = None,
    checked: bool = True,
) -> Attention:
    """Return ``softmax(scale q·k) v`` and its logsumexp under *mask*; differentiable in q, k, v.

    Shapes are [batch, head, time, dim] (FlashAttention: Dao et al., 2022, arXiv:2205.14135); the
    value may have another dim. *scale* defaults to ``1 / sqrt(dim)``. Memory is linear in time.
    *checked* checks that inputs and results are finite, in one pass (and a synchronisation on
    CUDA). Raises ``AttentionInvalid`` for tensors, masks and backends that do not fit together, and
    if numbers overflow.
    """
    check_inputs(query, key, value, mask)
    query, key, value = ruled(query, key, value)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else check_factor(scale, "scale")
    attended = _attend(query, key, value, mask, factor=factor, backend=backend)
    if checked:
        _require_finite(factor, query, key, value, attended.output)
    return attended


@exact
def cross_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    leading_keys: Tensor | None = None,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Attention:
    """Attend from *query* [batch, head, query, dim] to another stream: output and logsumexp.

    *key* and *value* are [batch, head, key, dim], of any length. *leading_keys* [query] or [batch,
    query] is how many of the first keys each query sees; None shows all. A query that sees none
    gets 0, with logsumexp -inf. It is differentiable. *backend* runs if all keys are visible;
    otherwise blocks of queries run, with memory that does not grow with query · key. Raises
    ``AttentionInvalid`` like ``attend``.
    """
    if leading_keys is None:
        return attend(query, key, value, Mask.full(), scale=scale, backend=backend)
    check_inputs(query, key, value, Mask.full())
    query, key, value = ruled(query, key, value)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else check_factor(scale, "scale")
    if torch.compiler.is_compiling():
        return _written_out(query, key, value, leading_keys.view(-1, query.shape[2]), factor)
    shown = _checked_leading(leading_keys, query, key)
    kernel = ChunkedBackend(shown)
    attended = Attention(*kernel_attention(query, key, value, kernel, Mask.full(), factor))
    _require_finite(factor, query, key, value, attended.output)
    return attended


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, counts: Tensor, factor: float
) -> Attention:
    """Attend with all scores stored: an export cannot choose blocks of keys by values."""
    shown = torch.arange(key.shape[2], device=key.device) < counts[:, None, :, None]
    scores = (factor * query @ key.mT).float().masked_fill(~shown, -torch.inf)
    logsumexp = scores.logsumexp(dim=-1)
    entries = (scores - logsumexp.clamp_min(torch.finfo(scores.dtype).min)[..., None]).exp()
    return Attention(entries.to(value.dtype) @ value, logsumexp)


def _checked_leading(counts: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return *counts* as [batch or 1, query]; raise unless they are whole numbers of keys."""
    check_tensor("leading_keys", counts, WHOLE)
    if counts.shape not in (query.shape[2:3], (len(query), query.shape[2])):
        raise AttentionInvalid(
            f"leading_keys is {list(counts.shape)} for {query.shape[2]} queries; give one whole "
            "number a query."
        )
    if not bool(((counts >= 0) & (counts <= key.shape[2])).all()):
        raise AttentionInvalid(
            f"leading_keys must be from 0 to {key.shape[2]}, the number of keys; count them again."
        )
    return counts.to(query.device).view(-1, query.shape[2])


def _require_finite(factor: float, query: Tensor, key: Tensor, *others: Tensor) -> None:
    """Raise ``AttentionInvalid`` unless *query*, *key*, value, output and all scores are finite.

    Kernels return 0 for a row whose scores all overflow.
    """
    ends = [torch.stack(torch.aminmax(x.detach())).double() for x in (query, key, *others)]
    # One transfer for all, because each one synchronises a GPU.
    sizes = torch.stack(ends).abs().amax(dim=1).tolist()
    score = max(1.0, factor) * query.shape[-1] * sizes[0] * sizes[1]
    if not (all(map(math.isfinite, sizes)) and score <= torch.finfo(working_type(query)).max):
        raise AttentionInvalid(
            "query, key or value is not finite, or so large that products or sums of it overflow; "
            "find the layer or feature it came from, or scale it down."
        )


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, *, factor: float, backend: str
) -> Attention:
    """Attend by *backend*; pad the head dim if its kernel needs that."""
    if mask.kind is MaskKind.WINDOW and mask.window_bars >= query.shape[2]:
        mask = Mask()  # a window as long as the sequence
    dim, width = query.shape[-1], value.shape[-1]
    name = resolve(backend, query.device, query.dtype, max(dim, width))
    common = max(dim, width)
    if query.device.type == "cuda":
        common = max(common, BACKENDS[name].dim_least)
        if BACKENDS[name].is_aligned:
            common += -common % ALIGNED
    if dim == width == common:
        return _run(name, query, key, value, mask, factor)
    # Zeros add nothing to a product, and their columns of the output are cut off.
    query, key, value = (pad(x, (0, common - x.shape[-1])) for x in (query, key, value))
    output, logsumexp = _run(name, query, key, value, mask, factor)
    return Attention(output[..., :width], logsumexp)


def _run(
    name: str, query: Tensor, key: Tensor, value: Tensor, mask: Mask, factor: float
) -> Attention:
    """Attend by the backend *name*; tensors and mask are checked before."""
    if (whole := BACKENDS[name].whole) is not None:
        return Attention(*whole(query, key, value, mask, factor))
    kernel = kernel_for(name, query.device, query.dtype, query.shape[-1])
    return Attention(*kernel_attention(query, key, value, kernel, mask, factor))


def resolve(
    backend: str,
    device: torch.device | str,
    dtype: torch.dtype,
    dim: int | None = None,
) -> str:
    """Return the name of the backend to run; ``auto`` chooses one.

    *dim* is the head dim, None if unknown. Raises ``AttentionInvalid`` for a backend that does not
    exist or cannot run on *device*.
    """
    device = torch.device(device)
    if backend == "auto":
        return choose(device, dtype, dim)
    names = available(device)
    if backend not in BACKENDS:
        raise AttentionInvalid(
            f"There is no attention backend {backend!r}; choose auto or one of {', '.join(names)}."
        )
    if backend not in names:
        raise AttentionInvalid(
            f"The attention backend {backend} is not available on {device.type}; choose auto or "
            f"one of {', '.join(names)}."
        )
    if not BACKENDS[backend].takes(device, dtype, dim):
        wide = "" if dim is None else f" with heads of {dim}"
        raise AttentionInvalid(
            f"{backend} takes no {dtype}{wide} on this device; cast the tensors, or choose auto or "
            "chunked."
        )
    return backend


def check_inputs(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> None:
    """Raise ``AttentionInvalid`` for tensors that do not fit together under *mask*."""
    check_mask(mask)
    if mask.kind is MaskKind.OTHER:
        raise AttentionInvalid(
            "attend takes Mask(), Mask.full() and Mask.window(bars); give another one to a Layer."
        )
    check_axes(
        {
            "query": (query, "batch head query dim"),
            "key": (key, "batch head time dim"),
            "value": (value, "batch head time width"),
        }
    )
    if mask.kind is not MaskKind.FULL and key.shape[2] != query.shape[2]:
        raise AttentionInvalid(
            f"A {mask.kind.value} mask needs as many keys as queries, not {key.shape[2]} and "
            f"{query.shape[2]}; use a full mask or equal times."
        )
