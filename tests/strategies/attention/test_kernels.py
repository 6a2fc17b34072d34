"""Every backend of ``attend`` equals the dense definition, with gradients and without N x N."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from functools import partial
from typing import ClassVar

import pytest
import torch
from attention_cases import LAYOUTS, largest_score, layouts
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import entry_roundings, gamma
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from waiting import deadline_s

from tracepaper.strategies.attention import backends, kernels
from tracepaper.strategies.attention.backends import (
    ChunkedBackend,
    CudaEfficient,
    Kernel,
    kernel_for,
)
from tracepaper.strategies.attention.flash import CudaFlash, Inputs, Pass
from tracepaper.strategies.attention.kernels import (
    attend,
    available,
    choose,
    kernel_attention,
    resolve,
    window_backward,
    window_forward,
)
from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.errors import AttentionInvalid

BACKENDS = available("cpu")


def inputs(
    batch: int, heads: int, time: int, dim: int, *, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values laid out time-major, as a network makes them."""
    source = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(batch, time, heads, dim, generator=source, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
        for _ in range(3)
    ]
    return tensors[0], tensors[1], tensors[2]


def dense(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the definition, written out over the whole matrix."""
    rows, columns = torch.meshgrid(
        torch.arange(query.shape[2]), torch.arange(key.shape[2]), indexing="ij"
    )
    hidden = torch.zeros(rows.shape, dtype=torch.bool)
    if mask.kind is not MaskKind.FULL:
        hidden = columns > rows
    if mask.kind is MaskKind.WINDOW:
        hidden |= rows - columns >= mask.window_bars
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.mT * factor).masked_fill(hidden, -math.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def rounding(query: Tensor, key: Tensor, dtype: torch.dtype) -> float:
    """Return the largest relative error of a weight's product with a value, in a sum over keys.

    A logsumexp is the exponent of a weight in part, and off by less.
    """
    keys, score = key.shape[2], largest_score(query, key)
    return gamma(entry_roundings(dim=query.shape[-1], keys=keys, score=score) + keys, dtype)


def masks(time: int) -> st.SearchStrategy[Mask]:
    return st.one_of(
        st.just(Mask.full()), st.just(Mask()), st.integers(1, time + 3).map(Mask.window)
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[Tensor, Tensor, Tensor], Mask]:
    batch, heads, time = (draw(st.integers(1, top)) for top in (3, 3, 40))
    dim = draw(st.sampled_from([1, 2, 5, 8, 16]))
    tensors = inputs(batch, heads, time, dim, seed=draw(st.integers(0, 2**31)), dtype=torch.float64)
    factor = draw(st.sampled_from([0.0, 1.0, 1.0, 1e3]))
    query, key, value = (
        LAYOUTS[draw(layouts())](x) for x in (tensors[0] * factor, tensors[1], tensors[2])
    )
    return (query, key, value), draw(masks(time))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_every_backend_equals_the_dense_definition(
    backend: str, case: tuple[tuple[Tensor, Tensor, Tensor], Mask]
) -> None:
    tensors, mask = case
    output, logsumexp = attend(*tensors, mask, backend=backend)
    wanted, wanted_logsumexp = dense(*tensors, mask)
    assert output.shape == wanted.shape
    # Both round: what is asked and what is wanted.
    bound = 2 * rounding(*tensors[:2], torch.float64)
    sizes = dense(*tensors[:2], tensors[2].abs(), mask)[0]
    assert bool(((output - wanted).abs() <= bound * sizes).all())
    torch.testing.assert_close(logsumexp, wanted_logsumexp, rtol=0, atol=bound)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_stays_within_rounding_of_float64(backend: str) -> None:
    tensors = inputs(2, 4, 700, 16, seed=3, dtype=torch.float32)
    attended = attend(*tensors, Mask.window(200), backend=backend)
    query, key, value = (x.double() for x in tensors)
    output, logsumexp = dense(query, key, value, Mask.window(200))
    assert attended.logsumexp.dtype == torch.float32
    bound = rounding(query, key[:, :, :200], torch.float32)  # no more keys than the window shows
    sizes = dense(query, key, value.abs(), Mask.window(200))[0]
    assert bool(((attended.output.double() - output).abs() <= bound * sizes).all())
    torch.testing.assert_close(attended.logsumexp.double(), logsumexp, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_returns_a_float32_logsumexp(dtype: torch.dtype) -> None:
    tensors = inputs(1, 2, 90, 16, seed=4, dtype=dtype)
    attended = attend(*tensors, Mask.window(33))
    query, key, value = (x.double() for x in tensors)
    output, logsumexp = dense(query, key, value, Mask.window(33))
    assert attended.output.dtype == dtype
    assert attended.logsumexp.dtype == torch.float32
    # Where there is no product of half numbers that sums in float32, scores are rounded to them,
    # and weights everywhere before they meet the values.
    score = float((query @ key.mT).abs().max()) / 4
    bound = gamma(score, dtype) + rounding(query, key[:, :, :33], torch.float32)
    torch.testing.assert_close(attended.logsumexp.double(), logsumexp, rtol=0, atol=bound)
    sizes = dense(query, key, value.abs(), Mask.window(33))[0]
    allowed = (2 * bound + gamma(2, dtype)) * sizes
    assert bool(((attended.output.double() - output).abs() <= allowed).all())


def test_a_scale_is_taken_as_given() -> None:
    tensors = inputs(1, 2, 30, 4, seed=6, dtype=torch.float64)
    attended = attend(*tensors, Mask.window(7), scale=0.125)
    torch.testing.assert_close(attended.output, dense(*tensors, Mask.window(7), 0.125)[0])


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operator returned."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        assert callable(func)
        result = func(*args, **(kwargs if isinstance(kwargs, dict) else {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return result


def test_no_operator_returns_more_than_a_few_copies_of_its_inputs() -> None:
    query, key, value = inputs(1, 2, 3_000, 4, seed=7, dtype=torch.float32)
    for x in (query, key, value):
        x.requires_grad_()
    with _Largest() as largest:
        attend(query, key, value, Mask.window(256)).output.sum().backward()
    assert 0 < largest.elements <= 2 * query.numel()


_PEAK = """
from pathlib import Path
import torch
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.masks import Mask
torch.set_num_threads(1)
query, key, value = (torch.randn(1, 1, {time}, 16).requires_grad_() for _ in range(3))
def step(time):
    cut = [x[:, :, :time] for x in (query, key, value)]
    attend(*cut, Mask.window({window})).output.sum().backward()
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
step(1_024)
before = peak()
step({time})
print(peak() - before)
"""


def test_a_window_over_sixteen_thousand_bars_takes_less_than_a_tenth_of_its_matrix() -> None:
    time = 16_384
    script = _PEAK.format(time=time, window=512)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=deadline_s(120),
    )
    assert 0 < int(done.stdout) * 1024 < time * time * 4 / 10


def test_auto_takes_the_flash_kernel_of_the_device() -> None:
    assert choose("cpu", torch.float32) == "sdpa"
    assert available("cpu") == ("sdpa", "chunked")


@pytest.mark.parametrize(
    ("backend", "dtype", "kernel"),
    [
        ("sdpa", torch.float32, CudaEfficient),
        ("sdpa", torch.float16, CudaFlash),
        ("sdpa", torch.bfloat16, CudaFlash),
        ("chunked", torch.float64, ChunkedBackend),
    ],
)
def test_a_device_has_a_kernel_for_every_type(
    backend: str, dtype: torch.dtype, kernel: type[Kernel]
) -> None:
    assert type(kernel_for(backend, torch.device("cuda"), dtype)) is kernel


def test_float64_on_a_device_is_chunked_and_nothing_else() -> None:
    assert choose("cuda", torch.float64) == "chunked"
    assert resolve("chunked", "cuda", torch.float64) == "chunked"
    with pytest.raises(AttentionInvalid, match=r"takes no torch\.float64"):
        resolve("sdpa", "cuda", torch.float64)


def test_half_kernels_refuse_other_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda _: ("flash_attn",))
    with pytest.raises(AttentionInvalid, match=r"flash_attn takes no torch\.float32"):
        resolve("flash_attn", "cuda", torch.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 60), st.integers(1, 9), masks(60), st.integers(1, 4_000))
def test_chunks_equal_the_definition_with_their_gradients(
    heads: int, time: int, dim: int, mask: Mask, entries: int
) -> None:
    generator = torch.Generator().manual_seed(time)
    tensor = torch.randn(3, 2, heads, time, dim, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, heads, time, dim, generator=generator, dtype=torch.float64)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends.CHUNK_ENTRIES, "cpu", entries)
        for way in (partial(attend, backend="chunked"), dense):
            query, key, value = (x.clone().requires_grad_() for x in tensor)
            output, logsumexp = way(query, key, value, mask)
            grads = torch.autograd.grad(output, (query, key, value), weights)
            results.append([output.detach(), logsumexp.detach(), *grads])
    for chunked, two in zip(*results, strict=True):
        torch.testing.assert_close(chunked, two, rtol=0, atol=1e-12)


class WindowedKernel(ChunkedBackend):
    """A kernel that knows windows itself, as the device's flash kernel does."""

    windows: ClassVar[list[int]] = []

    def window_forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float
    ) -> Pass:
        self.windows.append(window)
        return Pass(
            *window_forward(ChunkedBackend(), query, key, value, window=window, scale=scale)
        )

    def window_backward(
        self, gradient: Tensor, inputs: Inputs, result: Pass, *, window: int, scale: float
    ) -> Inputs:
        self.windows.append(-window)
        return window_backward(
            ChunkedBackend(), gradient, inputs, result, window=window, scale=scale
        )


def test_a_kernel_with_windows_of_its_own_is_asked_for_them() -> None:
    tensor = torch.randn(3, 1, 2, 30, 8, generator=torch.Generator().manual_seed(1))
    grads = []
    WindowedKernel.windows.clear()
    for kernel in (WindowedKernel(), ChunkedBackend()):
        leaves = [x.clone().requires_grad_() for x in tensor]
        output, _ = kernel_attention(*leaves, kernel, Mask.window(7), 0.3)
        grads.append(torch.autograd.grad(output.sum(), leaves))
    assert WindowedKernel.windows == [7, -7]
    for grad, two in zip(*grads, strict=True):
        torch.testing.assert_close(grad, two)


def _broken(**changes: object) -> dict[str, object]:
    x = torch.ones(1, 2, 6, 4)
    return {"query": x, "key": x, "value": x, "mask": Mask(), **changes}


NAN = torch.full((1, 2, 6, 4), float("nan"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"key": torch.ones(1, 2, 6, 4, device="meta")}, "key is on meta and query on cpu"),
        ({"key": torch.ones(1, 3, 6, 4)}, r"key is \[1, 3, 6, 4\]; give \[batch 1, head 2,"),
        ({"value": torch.ones(1, 2, 5, 4)}, r"value is \[1, 2, 5, 4\]; give .* time 6,"),
        ({"key": torch.ones(1, 2, 5, 4), "value": torch.ones(1, 2, 5, 4)}, "as many keys"),
        ({"query": NAN}, "value is not finite"),
        ({"backend": "flash_attn"}, "flash_attn is not available on cpu"),
        ({"backend": "magic"}, "no attention backend 'magic'"),
    ],
)
def test_bad_input_is_refused_with_one_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(AttentionInvalid, match=sentence) as refused:
        attend(**_broken(**changes))  # type: ignore[arg-type]
    message = str(refused.value)
    assert message.endswith(".")
    assert not re.search(r"[.?!] [A-Z]", message)


def test_huge_finite_inputs_are_not_called_infinite() -> None:
    huge = torch.full((8, 4, 40, 2), 3e36)  # their sum overflows, no value does
    assert torch.isinf(huge.sum())
    small = torch.zeros(8, 4, 40, 2)
    output = attend(small, small, huge, Mask()).output
    torch.testing.assert_close(output, huge)
