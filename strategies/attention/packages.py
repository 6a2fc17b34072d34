"""Attention by packages that need CUDA or a compiler: FlashAttention 2 to 4, and flex."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from tracepaper.strategies.attention.backends import flash_package
from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.errors import AttentionInvalid


class FlashPackage:
    """The ``flash-attn`` package of any version: 4, 3 or 2, see ``backends.FLASH_MODULES``."""

    @staticmethod
    def attend(
        query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Return output and natural logsumexp; gradients are the package's own.

        The package takes [batch, time, head, dim] and counts a window's left side without the
        query itself.
        """
        package = flash_package()
        assert package is not None, "chosen only where it is installed"
        inputs = (x.transpose(1, 2) for x in (query, key, value))
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

    Version 2 and later builds of version 3 ask for ``return_attn_probs``, earlier builds of 3
    always return the logsumexp, and version 4 asks for ``return_lse`` and writes an open side of
    the window as None instead of -1. Only options that the function declares are given.
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


def flex_runs(device: torch.device) -> bool:
    """Return whether flex attention is compiled, not materialised, on *device*."""
    return device.type == "cuda"


@cache
def _flex() -> Any:  # noqa: ANN401
    from torch.nn.attention.flex_attention import flex_attention

    # One compilation serves all lengths; a static one would be made anew for each.
    return torch.compile(flex_attention, dynamic=True)


@lru_cache(maxsize=16)  # a mask's blocks are small, but a run may see thousands of lengths
def _block_mask(kind: MaskKind, window: int, times: tuple[int, int], device: str) -> Any:  # noqa: ANN401
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        past = key <= query
        return past & (query - key < window) if kind is MaskKind.WINDOW else past

    return create_block_mask(visible, None, None, *times, device=device)


def flex_attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output and natural logsumexp by ``flex_attention``, compiled for this mask."""
    blocks = None
    if mask.kind is not MaskKind.FULL:
        times = (query.shape[2], key.shape[2])
        blocks = _block_mask(mask.kind, mask.window_bars, times, str(query.device))
    from torch.nn.attention import flex_attention as flex

    options: dict[str, Any] = {"block_mask": blocks, "scale": scale}
    if hasattr(flex, "AuxRequest"):  # PyTorch 2.9 and later
        output, told = _flex()(query, key, value, **options, return_aux=flex.AuxRequest(lse=True))
        return output, told.lse.detach()
    output, logsumexp = _flex()(query, key, value, **options, return_lse=True)
    return output, logsumexp.detach()
