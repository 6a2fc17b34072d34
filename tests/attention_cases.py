"""Random layers of attention with their stored matrices: the one way to make them in tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from tracepaper.strategies.attention import reference
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.masks import Mask


class Case(NamedTuple):
    """Layers as a forward pass leaves them, and their matrices in float64."""

    queries: list[Tensor]
    keys: list[Tensor]
    sums: list[Tensor]
    matrices: list[Tensor]
    mask: Mask


def case(
    mask: Mask,
    *,
    seed: int = 3,
    batch: int = 1,
    heads: int = 2,
    time: int = 40,
    dim: int = 8,
    layers: int = 3,
    size: float = 1.0,
    dtype: torch.dtype = torch.float64,
    ties: bool = False,
) -> Case:
    """Make *layers* layers; ``size`` scales the inputs, ``ties`` rounds them to whole numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        values = torch.randn(batch, heads, time, dim, generator=generator, dtype=torch.float64)
        return ((values.round() if ties else values) * size).to(dtype)

    queries, keys = [draw() for _ in range(layers)], [draw() for _ in range(layers)]
    pairs = list(zip(queries, keys, strict=True))
    return Case(
        queries,
        keys,
        [attend(query, key, key, mask).logsumexp for query, key in pairs],
        [reference.attention_matrix(query.double(), key.double(), mask) for query, key in pairs],
        mask,
    )


def masks(longest: int = 90) -> st.SearchStrategy[Mask]:
    """Every kind of mask; windows from one bar to longer than the sequence, and all blocks."""
    windows = st.integers(1, longest).map(Mask.window)
    return st.one_of(st.just(Mask.full()), st.just(Mask.causal()), windows, sparse_masks(longest))


@st.composite
def sparse_masks(draw: st.DrawFn, longest: int = 90) -> Mask:
    """Blocks of one bar to more than the sequence, with any of the earlier ones."""
    return Mask.sparse(
        draw(st.one_of(st.integers(1, 9), st.integers(1, longest))),
        last=draw(st.integers(0, 4)),
        stride=draw(st.integers(0, 4)),
        first=draw(st.integers(0, 3)),
    )


@st.composite
def cases(draw: st.DrawFn, *, longest: int = 70) -> Case:
    """Any small case in float64: shapes, masks, seeds, single bars, ties and equal inputs."""
    return case(
        draw(masks(longest + 20)),
        seed=draw(st.integers(0, 999)),
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 3)),
        time=draw(st.integers(1, longest)),
        dim=draw(st.integers(1, 9)),
        layers=draw(st.integers(1, 3)),
        size=draw(st.sampled_from([0.0, 0.3, 1.0, 3.0])),
        ties=draw(st.booleans()),
    )
