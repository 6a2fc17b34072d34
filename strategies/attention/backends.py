"""The fast kernels behind ``attend``: square passes that return logsumexp, and their gradients.

A *square pass* is full or causal attention of equal query and key times. Every fast kernel has
one, so a causal window is made of two of them and needs no mask (see ``window.py``). Each
backend returns the natural logarithm, float32 (float64 for float64 inputs), without padding.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import torch
from torch import Tensor

from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from types import ModuleType

_ATEN: Final = torch.ops.aten
_HALF: Final = (torch.float16, torch.bfloat16)


class Pass(NamedTuple):
    """The result of one square pass; together with its inputs, all that its gradient needs."""

    output: Tensor  # [batch, head, time, dim]
    logsumexp: Tensor  # [batch, head, time]


class Kernel(Protocol):
    """One implementation of square attention, with a gradient that takes any ``logsumexp``.

    ``backward`` recomputes ``P = exp(s q·k - logsumexp)``; given the logsumexp and the output of
    a larger attention it returns exactly this part's share of the gradient.
    """

    name: str

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> Pass:
        """Attend; shapes [batch, head, time, dim]."""
        ...

    def backward(
        self,
        gradient: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor],
        result: Pass,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value."""
        ...


class CpuFlash:
    """PyTorch's own flash kernel for the CPU: float32, float64, float16 and bfloat16."""

    name = "sdpa"

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> Pass:
        """Attend through ``_scaled_dot_product_flash_attention_for_cpu``."""
        output, logsumexp = _ATEN._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scale
        )
        return Pass(output, logsumexp)

    def backward(
        self,
        gradient: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor],
        result: Pass,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Recompute the probabilities in blocks and return the three gradients."""
        grads: tuple[Tensor, Tensor, Tensor] = (
            _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient, *inputs, result.output, result.logsumexp, 0.0, causal, scale=scale
            )
        )
        return grads


class CudaEfficient:
    """PyTorch's memory-efficient kernel for CUDA, which also takes float32."""

    name = "sdpa"

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> Pass:
        """Attend; the kernel pads its logsumexp to a multiple of 32, which is cut off here."""
        output, logsumexp, _, _ = _ATEN._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, causal, scale=scale
        )
        return Pass(output, logsumexp[..., : query.shape[2]])

    def backward(
        self,
        gradient: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor],
        result: Pass,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three gradients; the padding is put back for the kernel."""
        time = inputs[0].shape[2]
        logsumexp = torch.nn.functional.pad(
            result.logsumexp, (0, -time % 32), value=float("inf")
        ).contiguous()
        needs = [True, True, True, False]
        unused = torch.zeros((), dtype=torch.int64, device=gradient.device)  # no dropout, no seed
        grads = _ATEN._scaled_dot_product_efficient_attention_backward(
            gradient, *inputs, None, result.output, logsumexp, unused, unused, 0.0, needs, causal,
            scale=scale,
        )  # fmt: skip
        return grads[0], grads[1], grads[2]


class CudaFlash:
    """PyTorch's own flash kernel for CUDA: float16 and bfloat16, head dim a multiple of 8."""

    name = "sdpa"

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> Pass:
        """Attend through ``_scaled_dot_product_flash_attention``."""
        output, logsumexp, *_ = _ATEN._scaled_dot_product_flash_attention(
            query, key, value, 0.0, causal, return_debug_mask=False, scale=scale
        )
        return Pass(output, logsumexp[..., : query.shape[2]])

    def backward(
        self,
        gradient: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor],
        result: Pass,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three gradients."""
        unused = torch.zeros(2, dtype=torch.uint64, device=gradient.device)  # no dropout, no seed
        times = (inputs[0].shape[2], inputs[1].shape[2])
        grads: tuple[Tensor, Tensor, Tensor] = (
            _ATEN._scaled_dot_product_flash_attention_backward(
                gradient, *inputs, result.output, result.logsumexp.contiguous(),
                None, None, *times, 0.0, causal, unused, unused, scale=scale,
            )
        )  # fmt: skip
        return grads


class Reference:
    """The materialised matrix: the oracle, for a few thousand bars at most."""

    name = "reference"

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> Pass:
        """Attend with an N x N array of scores."""
        scores = dense_scores(query, key, causal=causal, scale=scale)
        logsumexp = torch.logsumexp(scores, dim=-1)
        probabilities = torch.exp(scores - logsumexp[..., None])
        return Pass((probabilities @ value.to(scores.dtype)).to(query.dtype), logsumexp)

    def backward(
        self,
        gradient: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor],
        result: Pass,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three gradients by the softmax's closed form."""
        query, key, value = inputs
        scores = dense_scores(query, key, causal=causal, scale=scale)
        probabilities = torch.exp(scores - result.logsumexp[..., None])
        wide = gradient.to(scores.dtype)
        delta = (wide * result.output.to(scores.dtype)).sum(-1, keepdim=True)
        slope = probabilities * (wide @ value.to(scores.dtype).mT - delta) * scale
        return (
            (slope @ key.to(scores.dtype)).to(query.dtype),
            (slope.mT @ query.to(scores.dtype)).to(key.dtype),
            (probabilities.mT @ wide).to(value.dtype),
        )


def dense_scores(query: Tensor, key: Tensor, *, causal: bool, scale: float) -> Tensor:
    """Return the scaled scores [batch, head, time, time], at least float32, masked by -inf."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = scale * (query.to(wide) @ key.to(wide).mT)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores


@cache
def flash_package() -> ModuleType | None:
    """Return FlashAttention 3's module if installed, else FlashAttention 2's, else None."""
    for name in ("flash_attn_interface", "flash_attn.flash_attn_interface"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def kernel_for(backend: str, device: torch.device, dtype: torch.dtype, dim: int) -> Kernel:
    """Return the kernel of *backend* for these tensors, or raise ``AttentionInvalid``."""
    if backend == "reference":
        return Reference()
    if device.type == "cpu":
        return CpuFlash()
    if device.type == "cuda":
        return CudaFlash() if dtype in _HALF and dim % 8 == 0 else CudaEfficient()
    raise AttentionInvalid(
        f"No flash kernel runs on {device.type}; move the tensors to cpu or cuda, or ask for "
        "the backend reference."
    )
