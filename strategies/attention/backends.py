"""The fast kernels behind ``attend``: square passes that return logsumexp, and their gradients.

A *square pass* is full or causal attention of equal query and key times. Every fast kernel has
one, so a causal window is made of two of them and needs no mask (see ``kernels``). Each
backend returns the natural logarithm, float32 (float64 for float64 inputs), without padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor

from .flash import (
    _ATEN,
    ALIGNED,
    CudaFlash,
    Inputs,
    Pass,
    WholeAttention,
    attend_by_package,
    flash_package,
    laid_out,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
HALF: Final = (torch.float16, torch.bfloat16)
CHUNK_ENTRIES: Final = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Scores that ``ChunkedBackend`` holds at once: they fit a core's caches, or 128 MiB."""


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
        self, gradient: Tensor, inputs: Inputs, result: Pass, *, causal: bool, scale: float
    ) -> Inputs:
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
            *map(laid_out, (query, key, value)), 0.0, causal, scale=scale
        )
        return Pass(output, logsumexp)

    def backward(
        self, gradient: Tensor, inputs: Inputs, result: Pass, *, causal: bool, scale: float
    ) -> Inputs:
        """Recompute the probabilities in blocks and return the three gradients."""
        return _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
            *map(laid_out, (gradient, *inputs, result.output)),
            result.logsumexp,
            0.0,
            causal,
            scale=scale,
        )


class CudaEfficient:
    """PyTorch's memory-efficient kernel for CUDA, which also takes float32."""

    name = "sdpa"

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> Pass:
        """Attend; the kernel pads its logsumexp to a multiple of 32, which is cut off here."""
        output, logsumexp, _, _ = _ATEN._scaled_dot_product_efficient_attention(
            *map(laid_out, (query, key, value)), None, True, 0.0, causal, scale=scale
        )
        return Pass(output, logsumexp[..., : query.shape[2]])

    def backward(
        self, gradient: Tensor, inputs: Inputs, result: Pass, *, causal: bool, scale: float
    ) -> Inputs:
        """Return the three gradients; the padding is put back for the kernel."""
        time = inputs[0].shape[2]
        logsumexp = torch.nn.functional.pad(
            result.logsumexp, (0, -time % 32), value=float("inf")
        ).contiguous()
        needs = [True, True, True, False]
        unused = torch.zeros((), dtype=torch.int64, device=gradient.device)  # no dropout, no seed
        grads = _ATEN._scaled_dot_product_efficient_attention_backward(
            *map(laid_out, (gradient, *inputs)),
            None,
            laid_out(result.output),
            logsumexp,
            unused,
            unused,
            0.0,
            needs,
            causal,
            scale=scale,
        )
        return grads[0], grads[1], grads[2]


class ChunkedBackend:
    """The plain formulas over a block of queries at a time, in linear memory: any type and device.

    It serves float64 on CUDA, which no flash kernel takes. With *counts* [batch or 1, query] each
    query sees that many leading keys; for one that sees none the output is 0 and the logsumexp
    -inf.
    """

    name = "chunked"

    def __init__(self, counts: Tensor | None = None) -> None:
        self._leading = counts

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> Pass:
        """Attend, one block of queries after the other."""
        wide = torch.promote_types(query.dtype, torch.float32)
        # Allocated once: separate results would keep the memory of every block alive.
        result = Pass(
            query.new_empty(*query.shape[:3], value.shape[3]),
            query.new_empty(query.shape[:3], dtype=wide),
        )
        for rows, scores in self._stripes(query, key, causal=causal, scale=scale):
            logsumexp = torch.logsumexp(scores, dim=-1)
            probabilities = scores.sub_(_finite(logsumexp)[..., None]).exp_()
            result.output[:, :, rows] = probabilities @ value[:, :, : scores.shape[-1]].to(wide)
            result.logsumexp[:, :, rows] = logsumexp
        return result

    def backward(
        self, gradient: Tensor, inputs: Inputs, result: Pass, *, causal: bool, scale: float
    ) -> Inputs:
        """Return the three gradients, those of keys and values summed over the blocks."""
        query, key, value = inputs
        wide = result.logsumexp.dtype
        to_key, to_value = torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide)
        to_query = torch.empty_like(query)
        for rows, scores in self._stripes(query, key, causal=causal, scale=scale):
            keys = slice(scores.shape[-1])
            probabilities = scores.sub_(_finite(result.logsumexp[:, :, rows, None])).exp_()
            grad = gradient[:, :, rows].to(wide)
            delta = (grad * result.output[:, :, rows].to(wide)).sum(-1, keepdim=True)
            to_value[:, :, keys] += probabilities.mT @ grad
            slope = (grad @ value[:, :, keys].to(wide).mT - delta).mul_(probabilities).mul_(scale)
            to_query[:, :, rows] = (slope @ key[:, :, keys].to(wide)).to(query.dtype)
            to_key[:, :, keys] += slope.mT @ query[:, :, rows].to(wide)
        return to_query, to_key.to(key.dtype), to_value.to(value.dtype)

    def _stripes(
        self, query: Tensor, key: Tensor, *, causal: bool, scale: float
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield some rows and their scores [batch, head, row, key], hidden ones -inf.

        Keys after the last one that a row of the stripe sees are left out.
        """
        wide = torch.promote_types(query.dtype, torch.float32)
        pairs, time = query.shape[0] * query.shape[1], key.shape[2]
        counts = self._leading
        if causal:
            counts = torch.arange(1, query.shape[2] + 1, device=query.device)[None]
        size = max(1, chunk_entries(query.device) // (pairs * time))
        places = torch.arange(time, device=key.device)
        for start in range(0, query.shape[2], size):
            rows = slice(start, min(start + size, query.shape[2]))
            last = time if counts is None else max(1, int(counts[:, rows].amax()))
            scores = scale * (query[:, :, rows].to(wide) @ key[:, :, :last].to(wide).mT)
            if counts is not None:
                hidden = places[:last] >= counts[:, rows, None]  # [batch or 1, row, key]
                scores.masked_fill_(hidden[:, None], float("-inf"))
            yield rows, scores


def chunk_entries(device: torch.device) -> int:
    """Return how many scores a pass over whole rows may hold at once on *device*."""
    return CHUNK_ENTRIES["cuda" if device.type == "cuda" else "cpu"]


def _finite(logsumexp: Tensor) -> Tensor:
    """Return *logsumexp* with 0 for rows that see nothing, so that their entries are 0."""
    return logsumexp.masked_fill(torch.isneginf(logsumexp), 0.0)


@dataclass(frozen=True, slots=True)
class Backend:
    """One implementation of attention.

    It provides square passes (``kernel``), from which windows are built, or takes every mask itself
    (``whole``).
    """

    name: str
    runs_on: Callable[[torch.device], bool]
    kernel: Callable[[torch.device, torch.dtype, int], Kernel] | None = None  # of a head dim
    whole: WholeAttention | None = None
    is_automatic: bool = False  # ``auto`` may select it
    is_half: bool = False  # takes float16 and bfloat16 alone
    is_aligned: bool = True  # on CUDA its head dim is a multiple of 8, and padded to that
    takes_float64_on_cuda: bool = False
    dim_least: int = 0  # entries of a head on CUDA: narrower heads are padded
    dim_most: int | None = None
    generation: tuple[int, int] = (0, 0)  # CUDA's compute capability, at least

    def takes(self, device: torch.device, dtype: torch.dtype, dim: int | None = None) -> bool:
        """Return whether it takes tensors of this type, with heads of *dim*, on *device*.

        Without *dim* the head dim is not checked.
        """
        if self.is_half and dtype not in HALF:
            return False
        if device.type != "cuda":
            return True
        if dtype == torch.float64 and not self.takes_float64_on_cuda:
            return False
        if self.dim_most is not None and dim is not None and dim > self.dim_most:
            return False
        # No kernel but the plain formulas multiplies bfloat16 before Ampere.
        least = AMPERE if dtype == torch.bfloat16 and self.is_aligned else self.generation
        return generation_of(device) >= least


AMPERE: Final = (8, 0)
_FLASH_DIM_MOST: Final = 256
_FLASH_DIM_LEAST: Final = 24
"""FlashAttention 4.0.0b36 is wrong by 5 to 19 % for heads of 8 on an H200, and right from 24 on."""
_ANY_GENERATION: Final = (99, 0)


def generation_of(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a CUDA *device*; the highest if there is no CUDA."""
    if not torch.cuda.is_available():
        return _ANY_GENERATION
    return torch.cuda.get_device_capability(device)


BACKENDS: Final[dict[str, Backend]] = {}
"""Every backend by its name, the fastest first."""


def register(backend: Backend) -> Backend:
    """Register *backend* under its name."""
    BACKENDS[backend.name] = backend
    return backend


def kernel_for(
    backend: str, device: torch.device, dtype: torch.dtype, dim: int = ALIGNED
) -> Kernel:
    """Return the kernel of *backend*, which has one, for tensors of heads of *dim*.

    On CUDA the head dim is a multiple of 8 by then: ``attend`` pads it.
    """
    make = BACKENDS[backend].kernel
    assert make is not None, "a backend without it takes every mask itself"
    return make(device, dtype, dim)


def _sdpa(device: torch.device, dtype: torch.dtype, dim: int) -> Kernel:
    if device.type == "cpu":
        return CpuFlash()
    # The flash kernel takes neither older devices nor wider heads; the other takes both.
    flash = dtype in HALF and dim <= _FLASH_DIM_MOST and generation_of(device) >= AMPERE
    return CudaFlash() if flash else CudaEfficient()


register(
    Backend(
        "flash_attn",
        runs_on=lambda device: device.type == "cuda" and flash_package() is not None,
        whole=attend_by_package,
        is_automatic=True,
        is_half=True,
        dim_least=_FLASH_DIM_LEAST,
        dim_most=_FLASH_DIM_MOST,
        generation=AMPERE,
    )
)
register(
    Backend(
        "sdpa",
        runs_on=lambda device: device.type in ("cpu", "cuda"),
        kernel=_sdpa,
        is_automatic=True,
    )
)
register(
    Backend(
        "chunked",
        runs_on=lambda _: True,
        kernel=lambda *_: ChunkedBackend(),
        is_automatic=True,
        is_aligned=False,
        takes_float64_on_cuda=True,
    )
)
