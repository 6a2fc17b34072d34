"""``attend``: one call for every mask and backend, exact, with logsumexp, never N x N."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from tracepaper.strategies.attention.backends import HALF, flash_package, kernel_for
from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.attention.packages import FlashPackage, flex_attend, flex_runs
from tracepaper.strategies.attention.window import square_attention, window_attention
from tracepaper.strategies.errors import AttentionInvalid

BACKENDS: Final = ("flash_attn", "sdpa", "cudnn", "flex", "chunked", "reference")
_DTYPES: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_ALIGNED: Final = 8
"""CUDA's kernels read the head dim in pieces of so many entries."""
_RANK: Final = 4


class Attention(NamedTuple):
    """The result of attention; the logsumexp is natural and carries no gradient."""

    output: Tensor  # [batch, head, time, dim]
    logsumexp: Tensor  # [batch, head, time], float32 (float64 for float64 inputs)


def available(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Return the names of the backends that can run on *device*, fastest first."""
    place = torch.device(device)
    names = []
    if place.type == "cuda" and flash_package() is not None:
        names.append("flash_attn")
    if place.type in ("cpu", "cuda"):
        names.append("sdpa")
    if place.type == "cuda" and torch.backends.cudnn.is_available():
        names.append("cudnn")
    if flex_runs(place):
        names.append("flex")
    return (*names, "chunked", "reference")


def choose(device: torch.device | str, dtype: torch.dtype) -> str:
    """Return the backend that ``auto`` stands for; named in the log, ``doctor`` and the audit."""
    names = available(device)
    if "flash_attn" in names and dtype in HALF:
        return "flash_attn"
    is_wide = torch.device(device).type == "cuda" and dtype == torch.float64
    return "sdpa" if "sdpa" in names and not is_wide else "chunked"


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

    Shapes are [batch, head, time, dim]; *scale* defaults to ``1 / sqrt(dim)``. Memory is linear
    in time for every backend but ``reference``. *checked* looks for non-finite inputs, which
    costs one pass over them (and a synchronisation on CUDA). Raises ``AttentionInvalid`` for
    tensors, masks and backends that do not fit together.
    """
    _validate(query, key, value, mask)
    if checked:
        _refuse_non_finite(query, key, value)
    name = resolve(backend, query.device, query.dtype)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    mask = _simplify(mask, query.shape[2])
    spare = -query.shape[-1] % _ALIGNED
    if query.device.type == "cuda" and spare and name not in ("chunked", "reference"):
        # Zeros add nothing to a product, and their columns of the output are cut off.
        query, key, value = (torch.nn.functional.pad(x, (0, spare)) for x in (query, key, value))
        output, logsumexp = _run(name, query, key, value, mask, factor)
        return Attention(output[..., :-spare], logsumexp)
    return _run(name, query, key, value, mask, factor)


def _run(
    name: str, query: Tensor, key: Tensor, value: Tensor, mask: Mask, factor: float
) -> Attention:
    """Attend by the backend *name*, tensors and mask checked."""
    if name == "flash_attn":
        return Attention(*FlashPackage.attend(query, key, value, mask, factor))
    if name == "flex":
        return Attention(*flex_attend(query, key, value, mask, factor))
    kernel = kernel_for(name, query.device, query.dtype)
    if mask.kind is MaskKind.WINDOW:
        return Attention(*window_attention(query, key, value, kernel, mask.window_bars, factor))
    causal = mask.kind is MaskKind.CAUSAL
    return Attention(*square_attention(query, key, value, kernel, causal, factor))


def _simplify(mask: Mask, time: int) -> Mask:
    """Return plain causality for a window at least as long as the sequence."""
    if mask.kind is MaskKind.WINDOW and mask.window_bars >= time:
        return Mask.causal()
    return mask


def resolve(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """Return the backend that runs where *backend* is asked for; ``auto`` chooses one.

    Raises ``AttentionInvalid`` for one that does not exist or cannot run on *device*.
    """
    device = torch.device(device)
    if backend == "auto":
        return choose(device, dtype)
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
    if backend in ("flash_attn", "cudnn") and dtype not in HALF:
        raise AttentionInvalid(
            f"{backend} takes float16 or bfloat16, not {dtype}; cast the tensors or choose sdpa."
        )
    if device.type == "cuda" and dtype == torch.float64 and backend in ("sdpa", "flex"):
        raise AttentionInvalid(
            f"{backend} takes no float64 on cuda; cast the tensors or choose auto or chunked."
        )
    return backend


def _validate(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != _RANK:
            raise AttentionInvalid(
                f"{name} has shape {list(x.shape)}; attention takes [batch, head, time, dim]."
            )
        if x.dtype not in _DTYPES:
            raise AttentionInvalid(f"{name} is {x.dtype}; attention takes floating point tensors.")
        if x.dtype != query.dtype or x.device != query.device:
            raise AttentionInvalid(
                f"{name} is {x.dtype} on {x.device} but query is {query.dtype} on "
                f"{query.device}; bring them together."
            )
        if x.numel() == 0:
            raise AttentionInvalid(
                f"{name} is empty with shape {list(x.shape)}; give it at least one bar."
            )
    if key.shape[1] != query.shape[1]:
        raise AttentionInvalid(
            f"key has {key.shape[1]} heads but query has {query.shape[1]}; they must agree."
        )
    if key.shape != value.shape or key.shape[::3] != query.shape[::3]:
        raise AttentionInvalid(
            f"query {list(query.shape)}, key {list(key.shape)} and value {list(value.shape)} "
            "must agree in batch, head and dim, and key and value in time."
        )
    if mask.kind is not MaskKind.FULL and key.shape[2] != query.shape[2]:
        raise AttentionInvalid(
            f"A {mask.kind.value} mask needs as many keys as queries, not {key.shape[2]} and "
            f"{query.shape[2]}; use a full mask or equal times."
        )


def _refuse_non_finite(*tensors: Tensor) -> None:
    for name, x in zip(("query", "key", "value"), tensors, strict=True):
        # A sum is cheap; it overflows for large finite values too, so only then look closely.
        if not torch.isfinite(x.detach().sum()) and not torch.isfinite(x.detach()).all():
            raise AttentionInvalid(
                f"{name} holds a value that is not finite; find the layer or feature it came from."
            )
