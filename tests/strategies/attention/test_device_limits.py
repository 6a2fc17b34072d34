"""What devices cannot hold or multiply is left to what can; tried here without one, by reading."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tracepaper.strategies.attention import (
    Mask,
    attend,
    backends,
    cross_attend,
    kernels,
    triton_rollout,
)
from tracepaper.strategies.attention.backends import CudaEfficient, kernel_for
from tracepaper.strategies.attention.flash import CudaFlash
from tracepaper.strategies.attention.kernels import choose, resolve
from tracepaper.strategies.errors import AttentionInvalid

TURING, AMPERE, HOPPER = (7, 5), (8, 0), (9, 0)
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("generation", "dtype", "dim", "chosen", "kernel"),
    [
        (HOPPER, HALF, 128, "flash_attn", None),
        (AMPERE, BRAIN, 256, "flash_attn", None),
        (AMPERE, BRAIN, 257, "sdpa", CudaEfficient),
        (AMPERE, SINGLE, 512, "sdpa", CudaEfficient),
        (TURING, HALF, 64, "sdpa", CudaEfficient),
        (TURING, SINGLE, 64, "sdpa", CudaEfficient),
        (TURING, BRAIN, 64, "chunked", None),
    ],
)
def test_auto_falls_back_on_what_takes_the_head_and_the_device(
    generation: tuple[int, int],
    dtype: torch.dtype,
    dim: int,
    chosen: str,
    kernel: type | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "generation_of", lambda _: generation)
    names = ("flash_attn", "sdpa", "chunked")
    monkeypatch.setattr(kernels, "available", lambda _: names)
    assert choose("cuda", dtype, dim=dim) == chosen
    if kernel is not None:
        assert type(kernel_for("sdpa", torch.device("cuda"), dtype, dim)) is kernel


def test_a_named_backend_refuses_a_head_that_it_does_not_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "available", lambda _: ("flash_attn", "sdpa", "chunked"))
    assert resolve("flash_attn", "cuda", HALF, dim=256) == "flash_attn"
    with pytest.raises(AttentionInvalid, match=r"takes no torch\.float16 with heads of"):
        resolve("flash_attn", "cuda", HALF, dim=257)
    monkeypatch.setattr(backends, "generation_of", lambda _: TURING)
    with pytest.raises(AttentionInvalid, match="on this device; cast the tensors, or choose auto"):
        resolve("flash_attn", "cuda", HALF)
    assert type(kernel_for("sdpa", torch.device("cuda"), HALF)) is CudaEfficient
    monkeypatch.setattr(backends, "generation_of", lambda _: HOPPER)
    assert type(kernel_for("sdpa", torch.device("cuda"), HALF, 256)) is CudaFlash


@pytest.mark.parametrize(
    ("generation", "dtype", "dim", "takes"),
    [
        (HOPPER, BRAIN, 256, True),
        (HOPPER, BRAIN, 257, False),
        (TURING, HALF, 64, True),
        (TURING, BRAIN, 64, False),
        ((7, 0), SINGLE, 64, False),
    ],
)
def test_the_rollout_kernel_knows_its_devices(
    generation: tuple[int, int],
    dtype: torch.dtype,
    dim: int,
    takes: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_rollout, "generation_of", lambda _: generation)

    class There:
        """A query of a device that is not here."""

        device = torch.device("cuda")
        shape = (1, 1, 8, dim)

    query: Any = There()
    query.dtype = dtype
    monkeypatch.setattr(triton_rollout, "is_available", lambda: True)
    layer: Any = SimpleNamespace(
        query=query, kind=torch.promote_types(dtype, torch.float32), group=1, softcap=None,
        mask=Mask(), queries=8, keys=8,
    )  # fmt: skip
    assert triton_rollout.takes(layer) is takes


def test_a_kernel_that_does_not_fit_fetches_less_ahead_and_then_gives_up() -> None:
    exhausted = pytest.importorskip("triton.runtime.errors").OutOfResources
    stages: list[int] = []

    def holding(most: int) -> Callable[..., None]:
        def kernel(*_: object, num_stages: int) -> None:
            stages.append(num_stages)
            if num_stages > most:
                raise exhausted(131_072, 65_536, "shared memory")

        return kernel

    triton_rollout.launch(holding(1), (), {})
    with pytest.raises(AttentionInvalid, match=r"Hardware limit: 65536.*choose the backend tiles"):
        triton_rollout.launch(holding(0), (), {})
    assert stages == [3, 1, 3, 1]


@pytest.mark.parametrize("width", [3, 8, 21])
@pytest.mark.parametrize("mask", [Mask.full(), Mask.window(7)])
@pytest.mark.parametrize("backend", ["sdpa", "chunked"])
def test_values_have_a_dim_of_their_own(backend: str, mask: Mask, width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value, tensor = (
        torch.randn(2, 3, 20, dim, generator=generator, dtype=torch.float64)
        for dim in (8, 8, width, width)
    )
    results = []
    for name in (backend, None):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        if name is not None:
            output, sums = attend(leaves[0], leaves[1], leaves[2], mask, backend=name)
        else:  # a column of the values at a time, at the width that kernels know
            parts = [
                attend(
                    leaves[0], leaves[1], leaves[2][..., at : at + 1].expand(-1, -1, -1, 8), mask
                )
                for at in range(width)
            ]
            output, sums = torch.cat([part.output[..., :1] for part in parts], -1), parts[0][1]
        results.append([output, sums, *torch.autograd.grad(output, leaves, tensor)])
    for whole, two in zip(*results, strict=True):
        torch.testing.assert_close(whole, two, rtol=0, atol=1e-13)


def test_streams_read_values_of_a_dim_of_their_own() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, 2, 9, dim, generator=generator) for dim in (8, 8, 3))
    read = cross_attend(query, key, value, torch.full((9,), 9))
    assert read.output.shape == (1, 2, 9, 3)
    torch.testing.assert_close(read.output, cross_attend(query, key, value).output)
