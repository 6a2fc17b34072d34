"""FlashAttention, from torch and from its packages: passes with logsumexp, and gradients."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

from .errors import AttentionInvalid
from .masks import Mask, MaskKind

if TYPE_CHECKING:
    from types import ModuleType

_ATEN: Final = torch.ops.aten
FLASH_MODULES: Final = (
    "flash_attn.cute",  # version 4
    "flash_attn_interface",  # version 3
    "flash_attn.flash_attn_interface",  # version 2
)


Inputs = tuple[Tensor, Tensor, Tensor]
"""Query, key and value [batch, head, time, dim], or their gradients."""


class Pass(NamedTuple):
    """The result of one square pass; together with its inputs, all that its gradient needs."""

    output: Tensor  # [batch, head, time, dim]
    logsumexp: Tensor  # [batch, head, time]


ALIGNED: Final = 8
"""CUDA's kernels read the head dim in pieces of this many entries."""
_SECTOR_BYTES: Final = 16
"""CUDA's kernels read this many bytes at once: rows must begin at multiples of it."""


def laid_out(x: Tensor) -> Tensor:
    """Return *x* [batch, head, time, dim] in a layout that kernels can read, copied if needed.

    They assume that the last stride is 1, that rows do not overlap and, on CUDA, that rows begin at
    multiples of ``_SECTOR_BYTES``. torch's public functions check this. The operators behind them
    do not: they would read memory outside the tensor.
    """
    entries, rows = x.shape[3], x.shape[2]
    is_dense = entries == 1 or x.stride(3) == 1
    is_spaced = rows == 1 or x.stride(2) >= entries
    if is_dense and is_spaced and (not x.is_cuda or _is_aligned(x)):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _is_aligned(x: Tensor) -> bool:
    """Return whether every row of *x* begins at a multiple of ``_SECTOR_BYTES``."""
    size = x.element_size()
    steps = (x.storage_offset(), *x.stride()[:3])
    return all(step * size % _SECTOR_BYTES == 0 for step in steps)


class CudaFlash:
    """PyTorch's own flash kernel for CUDA: float16 and bfloat16, head dim a multiple of 8.

    It supports windows, so that one pass replaces two.
    """

    name = "sdpa"

    def window_forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float
    ) -> Pass:
        """Attend over a causal window, which counts the query itself; [batch, head, time, dim]."""
        times = (query.shape[2], key.shape[2])
        output, logsumexp, *_ = _ATEN._flash_attention_forward(
            *(laid_out(x).transpose(1, 2) for x in (query, key, value)),
            None,
            None,
            *times,
            0.0,
            True,
            False,
            scale=scale,
            window_size_left=window - 1,
            window_size_right=0,
        )
        return Pass(output.transpose(1, 2), logsumexp[..., : query.shape[2]])

    def window_backward(
        self, gradient: Tensor, inputs: Inputs, result: Pass, *, window: int, scale: float
    ) -> Inputs:
        """Return the three gradients of the window's pass."""
        unused = torch.zeros(2, dtype=torch.uint64, device=gradient.device)  # no dropout, no seed
        times = (inputs[0].shape[2], inputs[1].shape[2])
        by_time = (x.transpose(1, 2).contiguous() for x in (gradient, *inputs, result.output))
        grads = _ATEN._flash_attention_backward(
            *by_time,
            result.logsumexp.contiguous(),
            None,
            None,
            *times,
            0.0,
            True,
            unused,
            unused,
            scale=scale,
            window_size_left=window - 1,
            window_size_right=0,
        )
        query, key, value = (x.transpose(1, 2) for x in grads)
        return query, key, value

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> Pass:
        """Attend through ``_scaled_dot_product_flash_attention``."""
        output, logsumexp, *_ = _ATEN._scaled_dot_product_flash_attention(
            *map(laid_out, (query, key, value)), 0.0, causal, return_debug_mask=False, scale=scale
        )
        return Pass(output, logsumexp[..., : query.shape[2]])

    def backward(
        self, gradient: Tensor, inputs: Inputs, result: Pass, *, causal: bool, scale: float
    ) -> Inputs:
        """Return the three gradients."""
        unused = torch.zeros(2, dtype=torch.uint64, device=gradient.device)  # no dropout, no seed
        times = (inputs[0].shape[2], inputs[1].shape[2])
        return _ATEN._scaled_dot_product_flash_attention_backward(
            *map(laid_out, (gradient, *inputs, result.output)),
            result.logsumexp.contiguous(),
            None,
            None,
            *times,
            0.0,
            causal,
            unused,
            unused,
            scale=scale,
        )


@cache
def flash_package() -> ModuleType | None:
    """Return FlashAttention's newest installed module, of version 4, 3 or 2, or None."""
    for name in FLASH_MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


# --- the packages: FlashAttention 2 to 4


def attend_by_package(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output and natural logsumexp of any version of ``FLASH_MODULES``.

    Gradients are the package's own. It takes [batch, time, head, dim] and counts a window's left
    side without the query itself.
    """
    package = flash_package()
    assert package is not None, "chosen only where it is installed"
    inputs = (laid_out(x).transpose(1, 2) for x in (query, key, value))
    options = flash_options(package.flash_attn_func, mask, scale)
    returned = package.flash_attn_func(*inputs, **options)
    if isinstance(returned, Tensor):
        raise AttentionInvalid(
            f"{package.__name__} returns no logsumexp; install another version of flash-attn, "
            "or choose the backend sdpa."
        )
    output, logsumexp = returned[:2]
    return output.transpose(1, 2), logsumexp[..., : query.shape[2]].detach()


def flash_options(function: Callable[..., Any], mask: Mask, scale: float) -> dict[str, Any]:
    """Return the options by which this version's *function* gives a logsumexp under *mask*.

    Version 2 and later builds of version 3 have ``return_attn_probs``, earlier builds of 3
    always return the logsumexp, and version 4 has ``return_lse`` and writes an open side of the
    window as None instead of -1. Only options that the function declares are returned.
    """
    declared = inspect.signature(function).parameters
    sides = declared["window_size"].default if "window_size" in declared else (-1, -1)
    is_window = mask.kind is MaskKind.WINDOW
    options: dict[str, Any] = {
        "softmax_scale": scale,
        "causal": mask.kind is not MaskKind.FULL,
        "window_size": (mask.window_bars - 1, 0) if is_window else tuple(sides),
        "return_lse": True,
        "return_attn_probs": True,
    }
    return {name: value for name, value in options.items() if name in declared}


# --- the registry

WholeAttention = Callable[[Tensor, Tensor, Tensor, Mask, float], tuple[Tensor, Tensor]]
"""``(query, key, value, mask, scale) -> output, logsumexp`` for every mask, differentiable."""
