"""Random layers of attention with their stored matrices: the one way to make them in tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import dense_attention as reference
import torch
from hypothesis import strategies as st
from rounding import entry_roundings, gamma
from torch import Tensor

from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import PLAIN, Rollout, rollout, rollout_buckets
from tracepaper.strategies.attention.reads import Read
from tracepaper.strategies.attention.tiles import FADE

Layout = Callable[[Tensor], Tensor]
"""Gives a tensor of the same shape in other strides: the same values, or fewer that repeat."""


def _spoiled(x: Tensor) -> float:
    """Return what may not be read: NaN, or a number that no index is."""
    return torch.nan if x.is_floating_point() else -99


def _every_other(x: Tensor) -> Tensor:
    """Lay the entries of the last dimension apart, with others between them."""
    return torch.stack((x, torch.full_like(x, _spoiled(x))), dim=-1)[..., 0]


def _cut_out(x: Tensor) -> Tensor:
    """Cut the tensor out of a larger one, so that rows begin at odd places."""
    sides = min(x.ndim, 2)
    whole = torch.nn.functional.pad(x, [3, 2] * sides, value=_spoiled(x))
    for dim in range(-sides, 0):
        whole = whole.narrow(dim, 3, x.shape[dim])
    return whole


def _backwards(x: Tensor) -> Tensor:
    """Store the last dimension as the slowest one."""
    return x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))


def _one_of(dim: int) -> Layout:
    """Repeat the first entry along *dim* with a stride of zero."""
    return lambda x: x.narrow(dim, 0, 1).expand_as(x) if x.ndim >= -dim else x


LAYOUTS: Final[dict[str, Layout]] = {
    "contiguous": lambda x: x.contiguous(),
    "every other entry": _every_other,
    "cut out": _cut_out,
    "last dimension slowest": _backwards,
    "heads beside each other": lambda x: (
        x.transpose(1, 2).contiguous().transpose(1, 2) if x.ndim > 2 else x
    ),
    "one entry": _one_of(-1),
    "one bar": _one_of(-2),
    "one head": _one_of(-3),
    "one element": _one_of(-4),
    "one number": lambda x: x.flatten()[:1].expand(x.shape),
}
"""Every way in which a tensor may lie in memory. What lies between its entries may not be read."""


def largest_score(query: Tensor, key: Tensor) -> float:
    """Return the largest |score| that the norms of queries and keys allow."""
    longest = [float(x.detach().double().norm(dim=-1).max()) for x in (query, key)]
    return float(query.shape[-1] ** -0.5) * longest[0] * longest[1]


def tie_slack(score: float) -> float:
    """Return four roundings to float32 of the largest score, and of 8."""
    return 4.0 * 2.0**-23 * (8.0 + score)


def layers_of(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    sums: Sequence[Tensor],
    mask: Mask,
    **more: Sequence[Tensor],
) -> list[Layer]:
    """Return the layers of one tensor each; *more* gives further fields of theirs."""
    fields = [dict(zip(more, each, strict=True)) for each in zip(*more.values(), strict=True)]
    given = fields or [{} for _ in queries]
    return [
        Layer(query, key, extra.pop("value", None), logsumexp, mask, **extra)
        for query, key, logsumexp, extra in zip(queries, keys, sums, given, strict=True)
    ]


class RolloutRows(NamedTuple):
    """Rows of a rollout, [batch, row, time], and their errors."""

    weights: Tensor
    l1_error: Tensor


def rolled(
    layers: Sequence[Read],
    rows: Sequence[int] | Tensor,
    method: Rollout = PLAIN,
    backend: str = "auto",
) -> RolloutRows:
    """Return the rollout of *rows* of one stream."""
    result = rollout(layers, rows, method, backend=backend)  # type: ignore[arg-type]
    return RolloutRows(result.weights["tokens"], result.l1_error)


def bucketed(layers: Sequence[Layer], method: Rollout = PLAIN, **options: object) -> RolloutRows:
    """Return every row over buckets, the oldest first."""
    result = rollout_buckets(layers, method, **options)  # type: ignore[arg-type]
    return RolloutRows(result.weights["tokens"], result.l1_error)


class Case(NamedTuple):
    """Layers as a forward pass leaves them, and their matrices in float64."""

    queries: list[Tensor]
    keys: list[Tensor]
    sums: list[Tensor]
    matrices: list[Tensor]
    mask: Mask

    @property
    def layers(self) -> list[Layer]:
        """The layers as they are explained."""
        return layers_of(self.queries, self.keys, self.sums, self.mask)

    @property
    def scores(self) -> list[float]:
        """The largest |score| that is possible, layer by layer."""
        return [
            largest_score(query, key) for query, key in zip(self.queries, self.keys, strict=True)
        ]

    @property
    def slacks(self) -> list[float]:
        """Relative differences of entries that are ties to discarding, layer by layer."""
        return [tie_slack(score) for score in self.scores]

    def rounding(self) -> float:
        """Return the largest relative error that rounding may leave in an entry of the rollout.

        No term is negative, so that relative errors add up: those of each layer's entries,
        of the sums over its heads and keys and of its normalised rows.
        """
        _, heads, time, dim = self.queries[0].shape
        roundings = sum(
            entry_roundings(dim=dim, keys=time, score=score) + heads + 2 * time + 8
            for score in self.scores
        )
        return gamma(roundings + time, self.sums[0].dtype)

    def entropy_rounding(self, layer: int) -> float:
        """Return the largest error that rounding may leave in the entropies of a layer.

        They are a logsumexp less a mean score, which the entries weigh.
        """
        only = slice(layer, layer + 1)
        case = Case(
            self.queries[only], self.keys[only], self.sums[only], self.matrices[only], self.mask
        )
        return (1.0 + case.scores[0]) * case.rounding()

    def hold(self, weights: Tensor, wanted: Tensor, *, ratio: float = 0.0) -> None:
        """Hold weights of a rollout to *wanted*, entry by entry, within what rounding may do.

        Where *ratio* of the entries is discarded, others fade over ``FADE`` slacks, and an error
        of an entry and of the threshold moves what is kept of it as much faster as that is short.
        """
        rounding = self.rounding()
        # What lies below the square of a rounding is lost beside rows that sum to 1.
        faded = 0.0 if ratio == 0.0 else 2 * rounding / (FADE * min(self.slacks))
        torch.testing.assert_close(
            weights.double(), wanted.double(), rtol=rounding,
            atol=faded + torch.finfo(self.sums[0].dtype).eps ** 2,
        )  # fmt: skip


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
    layouts: tuple[str, str] = ("contiguous", "contiguous"),
) -> Case:
    """Make *layers* layers; ``size`` scales the inputs, ``ties`` rounds them to whole numbers.

    *layouts* are those of queries and keys.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        values = torch.randn(batch, heads, time, dim, generator=generator, dtype=torch.float64)
        return ((values.round() if ties else values) * size).to(dtype)

    queries, keys = ([LAYOUTS[layout](draw()) for _ in range(layers)] for layout in layouts)
    pairs = list(zip(queries, keys, strict=True))
    return Case(
        queries,
        keys,
        [attend(query, key, key, mask).logsumexp for query, key in pairs],
        [
            reference.attention_matrix(query.double().contiguous(), key.double().contiguous(), mask)
            for query, key in pairs
        ],
        mask,
    )


def layouts() -> st.SearchStrategy[str]:
    """Every way in which a tensor may lie in memory, by its name; the plain one first."""
    return st.sampled_from(list(LAYOUTS))


def masks(longest: int = 90) -> st.SearchStrategy[Mask]:
    """Every kind of mask; windows from one bar to longer than the sequence."""
    windows = st.integers(1, longest).map(Mask.window)
    return st.one_of(st.just(Mask.full()), st.just(Mask()), windows)


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
        layouts=(draw(layouts()), draw(layouts())),
    )
