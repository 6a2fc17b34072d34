"""On a device: every type, head dim, length and mask against the CPU's float64 definition."""

from __future__ import annotations

import pytest
import torch
from attention_cases import LAYOUTS, bucketed, layers_of, rolled

from tracepaper.strategies.attention.kernels import attend, available, resolve
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.tiles import check_mass, mass_tolerance
from tracepaper.strategies.attention.triton_rollout import push_rows
from tracepaper.strategies.errors import AttentionInvalid

pytestmark = pytest.mark.gpu

TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 2e-4,  # the memory-efficient kernel multiplies in TF32 where that is on
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
MASKS = (Mask.full(), Mask(), Mask.window(100))
BACKENDS = ("auto", "sdpa", "flash_attn", "chunked")


@pytest.mark.parametrize("mask", [*MASKS, Mask.window(1)])
@pytest.mark.parametrize("time", [1, 63, 257, 2_049])
@pytest.mark.parametrize("dim", [8, 18, 28, 64, 128])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_with_its_gradients_equals_the_definition(
    backend: str, dtype: torch.dtype, dim: int, time: int, mask: Mask
) -> None:
    try:
        resolve(backend, "cuda", dtype)
    except AttentionInvalid:
        assert backend != "auto"
        return  # the refusals have tests of their own
    generator = torch.Generator().manual_seed(time + dim)
    batch = torch.randn(3, 1, 2, time, dim, generator=generator).to(dtype)
    there = [x.cuda().requires_grad_() for x in batch]
    here = [x.double().requires_grad_() for x in batch]
    attended = attend(there[0], there[1], there[2], mask, backend=backend)
    wanted = attend(here[0], here[1], here[2], mask, backend="chunked")
    tensor = torch.randn(wanted.output.shape, generator=generator)
    grads = torch.autograd.grad(attended.output, there, tensor.to(dtype).cuda())
    true = torch.autograd.grad(wanted.output, here, tensor.to(dtype).double())
    least = float(tensor.norm())  # a query that sees one key alone moves nothing: the slope is 0
    pairs = [(attended.output, wanted.output, 1e-9), (attended.logsumexp, wanted.logsumexp, 1.0)]
    for ours, exact, size in (*pairs, *((*pair, least) for pair in zip(grads, true, strict=True))):
        error = (ours.detach().double().cpu() - exact.detach()).norm() / exact.norm().clamp_min(
            size
        )
        assert float(error) < TOLERANCES[dtype]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dim", [18, 64])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_takes_any_strides(
    layout: str, backend: str, dtype: torch.dtype, dim: int, mask: Mask
) -> None:
    try:
        resolve(backend, "cuda", dtype)
    except AttentionInvalid:
        return  # the refusals have tests of their own
    lay, generator = LAYOUTS[layout], torch.Generator().manual_seed(dim)
    random = torch.randn(4, 2, 3, 129, dim, generator=generator).to(dtype).cuda()
    tensors: list[list[torch.Tensor]] = []
    for given in ([lay(x) for x in random], [lay(x).contiguous() for x in random]):
        leaves = [x.detach().requires_grad_() for x in given[:3]]
        output, logsumexp = attend(leaves[0], leaves[1], leaves[2], mask, backend=backend)
        tensors.append([output, logsumexp, *torch.autograd.grad(output, leaves, given[3])])
    for actual, two in zip(*tensors, strict=True):
        error = (actual - two).double().norm() / two.double().norm().clamp_min(1e-9)
        assert float(error) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("dim", "width"), [(64, 24), (24, 64), (264, 264), (520, 520)])
def test_auto_takes_wide_heads_and_values_of_their_own_dim(
    dim: int, width: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(dim)
    query, key, value = (
        torch.randn(1, 2, 129, size, generator=generator).to(dtype) for size in (dim, dim, width)
    )
    output = attend(query.cuda(), key.cuda(), value.cuda(), Mask()).output
    wide = (query.double(), key.double(), value.double())
    wanted = attend(wide[0], wide[1], wide[2], Mask(), backend="chunked").output
    error = (output.double().cpu() - wanted).norm() / wanted.norm()
    assert float(error) < TOLERANCES[dtype]


def test_a_window_of_one_bar_takes_more_stretches_than_a_grid_has_rows() -> None:
    tensors = torch.randn(3, 1, 1, 70_000, 8, generator=torch.Generator().manual_seed(1)).cuda()
    output = attend(tensors[0], tensors[1], tensors[2], Mask.window(1)).output
    error = (output - tensors[2]).norm() / tensors[2].norm()  # a matrix unit rounds the values
    assert float(error) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
@pytest.mark.parametrize("rows", [1, 20])
def test_the_rollout_kernel_keeps_its_mass_in_each_precision(rows: int, precision: str) -> None:
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 1, 2, 1_025, 64, generator=generator).cuda()
    sums = attend(query, key, key, Mask()).logsumexp
    layer = Layer(query, key, None, sums)
    weights = torch.rand(1, rows, 1_025, generator=generator).cuda()
    mass = push_rows(layer.operand, weights, precision=precision).sum(-1)
    check_mass(mass, mass_tolerance(torch.float32, layer.largest), weights.sum(-1)[:, None])


@pytest.mark.parametrize("mask", [Mask.full(), Mask.window(100)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rollout_takes_any_strides(layout: str, mask: Mask) -> None:
    generator = torch.Generator().manual_seed(2)
    tensors = torch.randn(2, 2, 3, 257, 18, generator=generator).cuda()
    query, key = (LAYOUTS[layout](x) for x in tensors)
    sums = attend(query.contiguous(), key.contiguous(), key.contiguous(), mask).logsumexp
    weights = rolled(layers_of([query], [key], [sums], mask), [200, 256]).weights
    wanted = rolled(layers_of([query.contiguous()], [key.contiguous()], [sums], mask), [200, 256])
    assert float((weights - wanted.weights).abs().amax()) < 1e-6


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dim", [8, 18, 64])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("rows", [1, 40])
def test_rollout_equals_the_cpu(rows: int, dtype: torch.dtype, dim: int, mask: Mask) -> None:
    time = 1_025
    generator = torch.Generator().manual_seed(dim)
    queries = [torch.randn(1, 2, time, dim, generator=generator).to(dtype) for _ in range(2)]
    keys = [torch.randn(1, 2, time, dim, generator=generator).to(dtype) for _ in range(2)]
    wide = [(query.double(), key.double()) for query, key in zip(queries, keys, strict=True)]
    sums = [attend(query, key, key, mask).logsumexp for query, key in wide]
    wanted = rolled(
        layers_of([query for query, _ in wide], [key for _, key in wide], sums, mask),
        range(time - rows, time),
    ).weights
    kind = torch.promote_types(dtype, torch.float32)
    layers = (
        [x.cuda() for x in queries],
        [x.cuda() for x in keys],
        [x.to(kind).cuda() for x in sums],
    )
    result = rolled(layers_of(*layers, mask), range(time - rows, time))
    assert float((result.weights.cpu() - wanted).abs().sum(-1).amax()) < 1e-4
    if mask != Mask.full():
        every = bucketed(layers_of(*layers, mask), by_age=True).weights
        assert float((every.sum(-1) - 1).abs().amax()) < 1e-4


def test_every_backend_of_the_device_is_named() -> None:
    names = available("cuda")
    assert names[-1] == "chunked"
    assert "sdpa" in names
