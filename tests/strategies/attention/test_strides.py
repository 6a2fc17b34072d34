"""Every public call of attention takes tensors however they lie in memory.

Kernels behind torch's public functions read what lies beside a tensor whose last stride is not 1;
here that is NaN, or another number, and the answer is that for the same numbers side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pytest
import torch
from attention_cases import LAYOUTS, Layout
from torch import Tensor

from tracepaper.strategies import attention
from tracepaper.strategies.attention import (
    Mask,
    Scores,
    Stream,
    StreamRead,
    attend,
    attention_flow,
    carry_rows,
    closed_keys,
    compiled,
    confidence,
    cross_attend,
    cross_confidence,
    gradient_rollout_rows,
    kernels,
    linear,
    norm_rollout_rows,
    probsparse,
    rollout,
    rollout_rows,
    row_entropy,
    score_entropy,
    score_logsumexp,
    score_rollout,
    stream_rollout,
    trained_entropy,
    value_norms,
)
from tracepaper.strategies.attention.rollout_kernels import BACKENDS as ROLLOUT_BACKENDS

BATCH, HEADS, TIME, DIM = 2, 3, 24, 8
ROWS: Final = [0, 11, TIME - 1]
MASKS: Final = (
    Mask.full(), Mask.causal(), Mask.window(7), Mask.window(12),
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
        found = attend(leaves[0], leaves[1], leaves[2], mask, backend=backend)
        return [*found, *torch.autograd.grad(found.output, leaves, given[3])]

    return call


def explained(mask: Mask, backend: str) -> Call:
    """Return ``rollout_rows`` by *backend*."""

    def call(given: list[Tensor], lay: Layout) -> list[Tensor]:
        queries, keys = [given[0], given[2]], [given[1], given[3]]
        made = [sums(q, k, mask, lay) for q, k in zip(queries, keys, strict=True)]
        return [*rollout_rows(queries, keys, made, lay(torch.tensor(ROWS)), mask, backend=backend)]

    return call


def fused(given: list[Tensor], lay: Layout) -> list[Tensor]:
    """Ask for the fusions that need whole rows, and for weights of heads."""
    query, key = given[:2]
    made = [sums(query, key, Mask.causal(), lay)]
    shares = lay(torch.tensor([[0.2, 0.3, 0.5]]))
    every = rollout_rows([query], [key], made, ROWS, Mask.causal(), head_weights=shares)
    most = rollout_rows([query], [key], made, ROWS, Mask.causal(), head_fusion="max")
    return [*every, *most]


def weighed(given: list[Tensor], lay: Layout) -> list[Tensor]:
    """Ask for the weighted rollouts and the flow."""
    query, key, value, gradient = given
    layers = ([query], [key], [sums(query, key, Mask.causal(), lay)])
    norms = lay(value_norms(value, lay(torch.linspace(-1, 1, 120).view(5, -1).to(value))))
    return [
        norms,
        *norm_rollout_rows(*layers, [norms], ROWS, Mask.causal()),
        *gradient_rollout_rows(*layers, [value], [gradient], ROWS, Mask.causal()),
        attention_flow(*layers, [3], Mask.causal()),
    ]


def entropies(mask: Mask, backend: str) -> Call:
    """Return the entropies of all rows and of some, and their confidence."""

    def call(given: list[Tensor], lay: Layout) -> list[Tensor]:
        layer = (given[0], given[1], sums(given[0], given[1], mask, lay))
        return [
            row_entropy(*layer, mask, backend=backend),
            row_entropy(*layer, mask, lay(torch.tensor(ROWS))),
            trained_entropy(*layer, mask),
            confidence([layer[0]], [layer[1]], [layer[2]], ROWS, mask),
        ]

    return call


def scored(given: list[Tensor], lay: Layout) -> list[Tensor]:
    """Ask what is known of other scores: grouped heads, sinks, padding, a cap."""
    query, key = given[0], given[1][:, :1]
    scores = Scores(
        window=9,
        softcap=3.0,
        sinks=lay(torch.tensor([0.1, -1.0, 0.5])),
        lengths=lay(torch.tensor([TIME, TIME - 5])),
        first=lay(torch.tensor([0, 0])),
        seen=lay(torch.arange(1, TIME + 1).expand(BATCH, -1).contiguous()),
    )
    total = score_logsumexp(query, key, scores)
    laid = lay(total)
    weights = lay(torch.linspace(0, 1, BATCH * 2 * TIME).view(BATCH, 2, TIME).to(total))
    return [
        total,
        carry_rows(query, key, laid, weights, scores),
        score_entropy(query, key, laid, scores),
        score_rollout([(query, key, laid)], weights, scores),
    ]


def crossed(given: list[Tensor], lay: Layout) -> list[Tensor]:
    """Ask across two streams, with gradients."""
    query, key, value = (x.detach().requires_grad_() for x in given[:3])
    closes = lay(torch.arange(TIME).expand(BATCH, -1).contiguous())
    seen = closed_keys(closes, closes)
    read = cross_attend(query, key, value, lay(seen))
    total = lay(read.logsumexp)
    step = [StreamRead(0, 1, query.detach(), key.detach(), total, Scores(causal=False, seen=seen))]
    whole = cross_attend(query, key, value)
    return [
        seen.double(),
        *read,
        *whole,
        *torch.autograd.grad(read.output, (query, key, value), given[3]),
        cross_confidence(query.detach(), key.detach(), total, ROWS, seen),
        *stream_rollout([step], [TIME, TIME], ROWS),
    ]


def streamed(given: list[Tensor], _: Layout) -> list[Tensor]:
    """Take the bars one after the other."""
    made = Stream(5, batch=BATCH, heads=HEADS, dim=DIM, dtype=given[0].dtype)
    read = [made.attend(0, *(x[:, :, at] for x in given[:3])) for at in range(TIME)]
    return [torch.stack([one.output for one in read]), *made.rollout()]


def sparsely(given: list[Tensor], lay: Layout) -> list[Tensor]:
    """Ask ProbSparse and linear attention, with gradients where they have some."""
    query, key, value = (x.detach().requires_grad_() for x in given[:3])
    drawn = lay(probsparse.sample_keys(TIME, Mask.causal(), factor=1, seed=1))
    made = probsparse.attend_sparsely(query, key, value, Mask.causal(), drawn, factor=1)
    own = probsparse.rollout_stages([made.rows], ROWS, dtype=query.dtype)
    even = linear.attend_linearly(query.exp(), key.exp(), value, Mask.causal())
    inputs = (query, key, value)
    return [
        made.output,
        own.weights,
        even.output,
        *torch.autograd.grad(made.output, inputs, given[3]),
        *torch.autograd.grad(even.output, inputs, given[3]),
    ]


def bucketed(given: list[Tensor], lay: Layout) -> list[Tensor]:
    """Ask for every row by bucket and by age."""
    layer = ([given[0]], [given[1]], [sums(given[0], given[1], Mask.window(7), lay)])
    every = rollout.rollout_buckets(*layer, Mask.window(7), bucket_bars=4)
    return [every.weights, rollout.rollout_by_age(*layer, Mask.window(7), bucket_bars=4).weights]


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
}
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
    made = torch.randn(4, BATCH, HEADS, TIME, DIM, generator=generator).to(dtype)
    for layout, changed in LAID:
        given = [LAYOUTS[layout](x) if at in changed else x for at, x in enumerate(made)]
        preserving = layout if layout in PRESERVING else "every other entry"
        yield given, [x.clone().contiguous() for x in given], LAYOUTS[preserving]


@pytest.mark.parametrize("name", CALLS)
def test_a_call_takes_tensors_in_any_strides(name: str) -> None:
    # Products of 8 numbers and sums of 24 round in another order where BLAS reads other strides.
    rounding = 64 * torch.finfo(torch.float32).eps
    for given, plain, own in laid(torch.float32):
        found = CALLS[name](given, own)
        for one, true in zip(found, CALLS[name](plain, LAYOUTS["contiguous"]), strict=True):
            size = max(1.0, float(true.detach().abs().nan_to_num(neginf=0.0).max()))
            torch.testing.assert_close(one, true, rtol=0, atol=rounding * size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", MASKS)
def test_half_types_attend_in_any_strides(dtype: torch.dtype, mask: Mask) -> None:
    for given, plain, own in laid(dtype):
        found = attended(mask, "sdpa")(given, own)
        for one, true in zip(found, attended(mask, "sdpa")(plain, own), strict=True):
            torch.testing.assert_close(one, true, rtol=0, atol=0.0)


def test_every_public_call_is_asked_here() -> None:
    kinds = {"Attention", "Mask", "Rollout"}
    asked = globals()
    assert set(attention.__all__) - kinds <= set(asked)
    assert "tiles" in ROLLOUT_BACKENDS
