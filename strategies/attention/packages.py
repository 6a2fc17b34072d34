"""Attention by packages that need CUDA or a compiler: FlashAttention 2 and 3, and flex."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from tracepaper.strategies.attention.backends import flash_package
from tracepaper.strategies.attention.masks import Mask, MaskKind

_UNBOUNDED: Final = -1


class FlashPackage:
    """The ``flash-attn`` package: version 3's interface where it is installed, else version 2's."""

    @staticmethod
    def attend(
        query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Return output and natural logsumexp; gradients are the package's own.

        The package takes [batch, time, head, dim] and counts a window's left side without the
        query itself. It returns logsumexp without a stored matrix only at dropout 0.
        """
        package = flash_package()
        assert package is not None, "chosen only where it is installed"
        bars = mask.window_bars - 1 if mask.kind is MaskKind.WINDOW else _UNBOUNDED
        options: dict[str, Any] = {
            "softmax_scale": scale,
            "causal": mask.kind is not MaskKind.FULL,
            "window_size": (bars, 0 if mask.kind is MaskKind.WINDOW else _UNBOUNDED),
            "return_attn_probs": True,
        }
        inputs = (x.transpose(1, 2) for x in (query, key, value))
        output, logsumexp, *_ = package.flash_attn_func(*inputs, **options)
        return output.transpose(1, 2), logsumexp[..., : query.shape[2]].detach()


def flex_runs(device: torch.device) -> bool:
    """Return whether flex attention is compiled, not materialised, on *device*."""
    return device.type == "cuda"


@cache
def _flex() -> Any:  # noqa: ANN401
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@cache
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
