"""Every public call of attention, under each way in which it may be asked: strides and autocast.

Kernels behind torch's public functions read what lies beside a tensor whose last stride is not 1;
here that is NaN, or another number, and the answer is that for the same numbers side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Final

import dense_attention as reference
import pytest
import torch
from attention_cases import LAYOUTS, Layout, layers_of, rolled
from torch import Tensor

from tracepaper.strategies import attention
from tracepaper.strategies.attention import (
    GridRead,
    Layer,
    Mask,
    MatrixRead,
    Read,
    Rollout,
    Stream,
    attend,
    capture,
    closed_keys,
    compiled,
    confidence,
    cross_attend,
    entropy,
    flow,
    kernels,
    linear,
    passages,
    probsparse,
    relevance,
    relevance_rules,
    rollout,
    rollout_buckets,
    trained_entropy,
    value_norms,
)

BATCH, HEADS, TIME, DIM = 2, 3, 24, 8
ROWS: Final = [0, 11, TIME - 1]
MASKS: Final = (
    Mask.full(), Mask(), Mask.window(7), Mask.window(12),
)  # fmt: skip
Call = Callable[[list[Tensor], Layout], list[Tensor]]
"""Asks with query, key, value and a gradient, and lays out what it makes of them itself."""


def sums(query: Tensor, key: Tensor, mask: Mask, lay: Layout) -> Tensor:
    """Return the logsumexp of the numbers, whichever way they lie, and lay it out."""
    plain = key.contiguous()
    return lay(attend(query.contiguous(), plain, plain, mask, backend="chunked").logsumexp)


def attended(mask: Mask, backend: str) -> Call:
    """Return ``attend`` with its gradients."""

    def call(given: list[Tensor], _: Layout) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in given[:3]]
        assert all(a.stride() == b.stride() for a, b in zip(leaves, given, strict=False))
        result = attend(leaves[0], leaves[1], leaves[2], mask, backend=backend)
        return [*result, *torch.autograd.grad(result.output, leaves, given[3])]

    return call


def explained(mask: Mask, backend: str) -> Call:
    """Return ``rollout`` by *backend*."""

    def call(given: list[Tensor], lay: Layout) -> list[Tensor]:
        queries, keys = [given[0], given[2]], [given[1], given[3]]
        tensors = [sums(q, k, mask, lay) for q, k in zip(queries, keys, strict=True)]
        layers = layers_of(queries, keys, tensors, mask)
        return [*rolled(layers, lay(torch.tensor(ROWS)), backend=backend)]

    return call


def fused(given: list[Tensor], lay: Layout) -> list[Tensor]:
    """Ask for the fusions that need whole rows, and for weights of heads."""
    query, key = given[:2]
    tensors = [sums(query, key, Mask(), lay)]
    shares = lay(torch.tensor([[0.2, 0.3, 0.5]]))
    layers = layers_of([query], [key], tensors, Mask())
    every = rolled(layers, ROWS, Rollout(head_weights=shares))
    return [*every, *rolled(layers, ROWS, Rollout(fusion="max"))]


def weighed(given: list[Tensor], lay: Layout) -> list[Tensor]:
    """Ask for the weighted rollouts and the flow."""
    query, key, value, gradient = given
    weight = lay(torch.linspace(-1, 1, 120).view(5, -1).to(value))
    layer = Layer(
        query, key, value, sums(query, key, Mask(), lay), output_weight=weight, gradient=gradient
    )
    grid = GridRead(layer.take(torch.tensor([0, 1])), (BATCH, TIME), 1)
    return [
        value_norms(value, weight),
        *rolled([layer], ROWS, Rollout(fusion="norm")),
        *rolled([layer], ROWS, Rollout(fusion="gradient")),
        *rolled([grid], [TIME - 1, 2 * TIME - 1]),
        flow([layer], [3]).weights["tokens"],
    ]


def entropies(mask: Mask, backend: str) -> Call:
    """Return the entropies of all rows and of some, and their confidence."""

    def call(given: list[Tensor], lay: Layout) -> list[Tensor]:
        total = sums(given[0], given[1], mask, lay)
        layer = Layer(given[0], given[1], None, total, mask)
        return [
            layer.entropy(backend=backend),
            *entropy([layer], lay(torch.tensor(ROWS)).tolist()),
            trained_entropy(given[0], given[1], total, mask),
            *confidence([layer], ROWS),
        ]

    return call


def scored(given: list[Tensor], lay: Layout) -> list[Tensor]:
    """Ask what is known of other scores: grouped heads, sinks, padding, a cap."""
    query, key = given[0], given[1][:, :1]
    mask = Mask(
        before=8,
        starts=[0, 2],
        stops=[TIME, TIME - 5],
        leading_keys=lay(torch.arange(1, TIME + 1).expand(BATCH, -1).contiguous()),
        dense=lay(torch.linspace(-1, 1, TIME * TIME).view(1, 1, TIME, TIME)),
    )
    layer = Layer.of(query, key, key, mask, softcap=3.0, sinks=lay(torch.tensor([0.1, -1.0, 0.5])))
    laid = replace(layer, logsumexp=lay(layer.logsumexp))
    weights = lay(torch.linspace(0, 1, BATCH * 2 * TIME).view(BATCH, 2, TIME).to(layer.logsumexp))
    return [layer.logsumexp, laid.carry(weights), laid.entropy(), *rolled([laid], ROWS)]


def crossed(given: list[Tensor], lay: Layout) -> list[Tensor]:
    """Ask across two streams, with gradients."""
    query, key, value = (x.detach().requires_grad_() for x in given[:3])
    closes = lay(torch.arange(TIME).expand(BATCH, -1).contiguous())
    tensor = closed_keys(closes, closes)
    read = cross_attend(query, key, value, lay(tensor))
    total = lay(read.logsumexp)
    mask = Mask(causal=False, leading_keys=tensor)
    step = Layer(query.detach(), key.detach(), None, total, mask, source="others")
    whole = cross_attend(query, key, value)
    return [
        tensor.double(),
        *read,
        *whole,
        *torch.autograd.grad(read.output, (query, key, value), given[3]),
        *confidence([step], ROWS),
        *rollout([step], ROWS).weights.values(),
    ]


def streamed(given: list[Tensor], _: Layout) -> list[Tensor]:
    """Take the bars one after the other."""
    stream = Stream(5, batch=BATCH, heads=HEADS, dim=DIM, dtype=given[0].dtype)
    read = [stream.attend(0, *(x[:, :, at] for x in given[:3])) for at in range(TIME)]
    return [torch.stack([layer.output for layer in read]), stream.rollout().weights["tokens"]]


def sparsely(given: list[Tensor], lay: Layout) -> list[Tensor]:
    """Ask ProbSparse and linear attention, with gradients where they have some."""
    query, key, value = (x.detach().requires_grad_() for x in given[:3])
    drawn = lay(probsparse.sample_keys(TIME, Mask(), factor=1, seed=1))
    few = probsparse.attend_rows(query, key, value, [1])[0]
    features = linear.random_features(query, key, key[0, :, :3].detach())
    sparse_attention, sparse_read = probsparse.attend_sparsely(
        query, key, value, Mask(), drawn, factor=1
    )
    matrix = reference.dense_rows(sparse_read)
    reads: list[Read] = [
        sparse_read,
        MatrixRead(lay(matrix)),
        probsparse.convolution_taps(query.detach()[:, 0, :, None].expand(-1, -1, 3, -1)),
    ]
    even, read = linear.attend_linearly(query.exp(), key.exp(), value, Mask())
    inputs = (query, key, value)
    with torch.autocast("cpu", enabled=False):  # as training does
        slopes = [
            *torch.autograd.grad(sparse_attention, inputs, given[3], retain_graph=True),
            *torch.autograd.grad(even, inputs, given[3]),
        ]
    return [
        sparse_attention,
        few,
        *features,
        *rolled(reads, ROWS),
        *rolled([read], ROWS),
        even,
        *slopes,
    ]


def bucketed(given: list[Tensor], lay: Layout) -> list[Tensor]:
    """Ask for every row by bucket and by age."""
    total = sums(given[0], given[1], Mask.window(7), lay)
    layer = [Layer(given[0], given[1], None, total, Mask.window(7))]
    every = (rollout_buckets(layer, bucket_bars=4, by_age=by_age) for by_age in (False, True))
    shares = passages(layer, {"first": range(9)}).shares
    return [shares, *(bucket.weights["tokens"] for bucket in every)]


def captured(given: list[Tensor], _lay: Layout) -> list[Tensor]:
    """Capture a call of torch's function, and ask what is relevant to a product."""
    query, key, value, _ = given
    with capture() as capturing:
        torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    inputs = query.detach().requires_grad_()
    with relevance_rules(torch.nn.Identity()):
        relevant = relevance((inputs * key).sum(), inputs)
    return [capturing.rollout(ROWS).weights["tokens"], relevant]


CALLS: Final[dict[str, Call]] = {
    **{
        f"attend {backend} {mask.kind} {mask.window_bars}": attended(mask, backend)
        for backend in kernels.available("cpu")
        for mask in MASKS
    },
    **{
        f"rollout {backend} {mask.kind}": explained(mask, backend)
        for backend in ("auto", "tiles", *compiled.available())
        for mask in (Mask.full(), Mask.window(7))
    },
    **{
        f"entropy {backend} {mask.kind}": entropies(mask, backend)
        for backend in ("tiles", *compiled.available())
        for mask in MASKS
    },
    "fused": fused,
    "weighed": weighed,
    "scored": scored,
    "crossed": crossed,
    "streamed": streamed,
    "sparse": sparsely,
    "bucketed": bucketed,
    "captured": captured,
}
EXPLAINS: Final = ("rollout", "fused", "weighed", "scored", "streamed", "bucketed")
"""Calls whose answers no training differentiates."""
PRESERVING: Final = ("every other entry", "cut out", "last dimension slowest")
"""What keeps all numbers of a tensor, so that what follows from others stays true."""


ALL: Final = (0, 1, 2, 3)
LAID: Final = (
    *((layout, ALL) for layout in LAYOUTS),
    *(("every other entry", (at,)) for at in ALL),
)
"""A layout, and which of query, key, value and gradient lie so."""


def laid(dtype: torch.dtype) -> Iterator[tuple[list[Tensor], list[Tensor], Layout]]:
    """Yield tensors in other strides, the same side by side, and a layout of all their numbers."""
    generator = torch.Generator().manual_seed(4)
    batch = torch.randn(4, BATCH, HEADS, TIME, DIM, generator=generator).to(dtype)
    for layout, changed in LAID:
        given = [LAYOUTS[layout](x) if at in changed else x for at, x in enumerate(batch)]
        preserving = layout if layout in PRESERVING else "every other entry"
        yield given, [x.clone().contiguous() for x in given], LAYOUTS[preserving]


@pytest.mark.parametrize("name", CALLS)
def test_a_call_takes_tensors_in_any_strides(name: str) -> None:
    # Products of 8 numbers and sums of 24 round in another order where BLAS reads other strides.
    rounding = 64 * torch.finfo(torch.float32).eps
    for given, plain, layout in laid(torch.float32):
        tensors = CALLS[name](given, layout)
        for tensor, true in zip(tensors, CALLS[name](plain, LAYOUTS["contiguous"]), strict=True):
            size = max(1.0, float(true.detach().abs().nan_to_num(neginf=0.0).max()))
            torch.testing.assert_close(tensor, true, rtol=0, atol=rounding * size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", MASKS)
def test_half_types_attend_in_any_strides(dtype: torch.dtype, mask: Mask) -> None:
    for given, plain, layout in laid(dtype):
        tensors = attended(mask, "sdpa")(given, layout)
        for tensor, true in zip(tensors, attended(mask, "sdpa")(plain, layout), strict=True):
            torch.testing.assert_close(tensor, true, rtol=0, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_nothing_and_what_explains_carries_no_gradient(
    name: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(4)
    given = list(torch.randn(4, BATCH, HEADS, TIME, DIM, generator=generator).to(dtype))
    if name.startswith(EXPLAINS):
        given = [x.requires_grad_() for x in given]
    plain = CALLS[name](given, LAYOUTS["contiguous"])
    with torch.autocast("cpu", torch.bfloat16):
        under = CALLS[name](given, LAYOUTS["contiguous"])
    for tensor, wanted in zip(under, plain, strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=0)
        assert not name.startswith(EXPLAINS) or not tensor.requires_grad


@pytest.mark.parametrize("mask", MASKS)
def test_gradients_are_those_of_stored_matrices_and_second_ones_are_refused(mask: Mask) -> None:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(3, BATCH, HEADS, TIME, DIM, generator=generator, dtype=torch.float64)
    query, key, value = (x.requires_grad_() for x in drawn)
    total = attend(query, key, value, mask).logsumexp
    matrix = reference.attention_matrix(query, key, mask)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    entropies = reference.logsumexp(query, key, mask) - (matrix * scores).sum(dim=-1)
    for array_spec, dense in (
        (trained_entropy(query, key, total, mask), entropies),
        (attend(query, key, value, mask).output, matrix @ value),
    ):
        torch.testing.assert_close(array_spec, dense, rtol=0, atol=1e-12)
        above = torch.rand(array_spec.shape, dtype=array_spec.dtype)
        wanted = torch.autograd.grad(dense, (query, key), above, retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            first = torch.autograd.grad(array_spec, (query, key), above, retain_graph=True)
        for slope, other in zip(first, wanted, strict=True):
            torch.testing.assert_close(slope, other, rtol=0, atol=1e-11)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(array_spec, (query, key), above, create_graph=True)


def test_every_public_call_is_asked_here() -> None:
    kinds = {
        "Attention",
        "AttentionInvalid",
        "AttendedTokens",
        "LinearRead",
        "MapRead",
        "Mask",
        "Passages",
        "Shown",
        "SparseRead",
    }
    public = {
        name
        for name, value in vars(attention).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert len(public) == 29
    assert public - kinds <= set(globals())
