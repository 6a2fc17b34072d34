"""Linear attention: products of positive features in place of the softmax, and its explanation.

``A_ij = φ(q_i)·φ(k_j) / Σ_j φ(q_i)·φ(k_j)`` over the visible keys is row-stochastic like any
attention, so rollout and entropy mean the same. It is never stored: the output, a step of the
rollout and the entropy of a row all go through sums of ``φ(k) ⊗ v`` and ``w ⊗ φ(q)``, in
O(N · features · dim). Source: Katharopoulos et al. (2020), arXiv:2006.16236; random features that
approximate the softmax: Choromanski et al. (2021), Performers, arXiv:2009.14794.

The rule is docs/attention.md, A29.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from .checks import check_axes, check_mask, check_rows, exact, explanation, ruled, working_type
from .errors import AttentionInvalid
from .masks import CAUSAL, Mask, MaskKind
from .reads import MEAN, CarriedRows, Fuse, Read

if TYPE_CHECKING:
    from torch import Tensor

CHUNK: Final = 128
"""Bars of a causal block whose products are computed as a square; older bars enter by sums."""


def elu_features(x: Tensor) -> Tensor:
    """Return ``elu(x) + 1`` of *x* [..., dim]: positive, and as many features."""
    return functional.elu(x) + 1.0


def draw_directions(heads: int, dim: int, features: int, *, seed: int) -> Tensor:
    """Return random directions [head, feature, dim], orthogonal in blocks of *dim*, float32.

    Their lengths are those of Gaussian vectors.
    """
    draw = torch.Generator().manual_seed(seed)
    blocks = -(-features // dim)
    normal = torch.randn(heads, blocks, dim, dim, generator=draw, dtype=torch.float64)
    rotations, triangle = torch.linalg.qr(normal)
    # The signs of the diagonal make all rotations equally likely; without them the mean is biased.
    even = rotations * triangle.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    turned: Tensor = even.flatten(1, 2)[:, :features]
    lengths = torch.randn(heads, features, dim, generator=draw, dtype=torch.float64).norm(dim=-1)
    directions: Tensor = turned * lengths[..., None]
    return directions.float()


@exact
def random_features(query: Tensor, key: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return positive features whose products equal those of softmax attention on average.

    *query* and *key* are [batch, head, time, dim], *directions* [head, feature, dim]; the scale is
    ``dim ** -0.5``. A factor common to all keys, and one per query, are left out; they only change
    rows through the 1e-6 that keeps features above 0. The factor of the keys depends on all keys,
    so under a causal mask a later key with far larger features changes earlier rows.
    """
    axes = {"query": (query, "batch head time dim"), "key": (key, "batch head key dim")}
    check_axes(axes | {"directions": (directions, "head feature dim")}, alike=("query", "key"))
    root = query.shape[-1] ** -0.25
    scaled = [root * x.to(working_type(x)) for x in (query, key)]
    exponents = [
        x @ directions.mT.to(x.dtype) - 0.5 * x.square().sum(-1, keepdim=True) for x in scaled
    ]
    largest = (
        exponents[0].amax(dim=-1, keepdim=True).detach(),
        exponents[1].amax(dim=(-2, -1), keepdim=True).detach(),
    )
    features = [(each - most).exp() + 1e-6 for each, most in zip(exponents, largest, strict=True)]
    return features[0], features[1]


@exact
def attend_linearly(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask
) -> tuple[Tensor, LinearRead]:
    """Return the output for *value* [batch, head, time, dim] under *mask*, and its attention.

    The features [batch, head, time, feature] must be positive. Raises ``AttentionInvalid`` for a
    window mask, and for tensors that do not fit.
    """
    _check(query, key, mask, value=(value, "batch head time dim"))
    query, key, value = ruled(query, key, value)
    kind, wide_type = value.dtype, working_type(value)
    query, key, value = (x.to(wide_type) for x in (query, key, value))
    if mask.kind is MaskKind.FULL:
        normaliser = (query * key.sum(dim=-2, keepdim=True)).sum(dim=-1)
        read = query @ (key.mT @ value) / normaliser[..., None]
        return read.to(kind), LinearRead(query, key, normaliser, mask)
    # A column of ones after the values sums the products themselves.
    wide = torch.cat((value, torch.ones_like(value[..., :1])), dim=-1)
    before = wide.new_zeros(*wide.shape[:2], key.shape[-1], wide.shape[-1])
    parts = []
    for rows in _chunks(query.shape[-2]):
        q, k, v = query[..., rows, :], key[..., rows, :], wide[..., rows, :]
        parts.append(q @ before + (q @ k.mT).tril() @ v)
        before = before + k.mT @ v
    read = torch.cat(parts, dim=-2)
    normaliser = read[..., -1]
    output = (read[..., :-1] / normaliser[..., None]).to(kind)
    return output, LinearRead(query, key, normaliser, mask)


@dataclass(frozen=True, eq=False, repr=False)
class LinearRead(Read):
    """Linear attention ``φ(q_i)·φ(k_j) / normaliser_i`` [batch, head, i, j], without a matrix.

    Its heads can only be fused by their plain mean (Katharopoulos et al., 2020, arXiv:2006.16236).
    """

    query: Tensor
    """φ(q) [batch, head, time, feature], positive."""
    key: Tensor
    """φ(k) [batch, head, time, feature], positive."""
    normaliser: Tensor
    """[batch, head, time]: Σ_j φ(q)·φ(k_j) over the keys that a row sees."""
    mask: Mask = CAUSAL

    def __post_init__(self) -> None:
        """Raise ``AttentionInvalid`` for features and a mask that do not fit."""
        _check(self.query, self.key, self.mask, normaliser=(self.normaliser, "batch head time"))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, heads, queries and keys."""
        batch, heads, time = self.query.shape[:3]
        return batch, heads, time, time

    @explanation
    def advance(self, weights: Tensor, fuse: Fuse = MEAN) -> CarriedRows:
        """Return *weights* below the layer, in O(N · features)."""
        if fuse.fusion != "mean" or fuse.discard_ratio or fuse.shares is not None:
            raise AttentionInvalid(
                "Linear attention is explained by its rollout over the heads' mean; leave all but "
                "the residual and the start layer out."
            )
        weights = weights.to(self.query.device, self.query.dtype)
        # The weight of each query over its normaliser.
        held = weights[:, None] / self.normaliser[:, :, None]  # [batch, head, row, time]
        if self.mask.kind is MaskKind.FULL:
            return CarriedRows(weights, ((held @ self.query) @ self.key.mT).mean(dim=1))
        after = held.new_zeros(*held.shape[:3], self.key.shape[-1])
        parts = []
        for rows in reversed(list(_chunks(self.shape[2]))):
            q, k, w = self.query[..., rows, :], self.key[..., rows, :], held[..., rows]
            parts.append(after @ k.mT + w @ (q @ k.mT).tril())
            after = after + w @ q
        return CarriedRows(weights, torch.cat(parts[::-1], dim=-1).mean(dim=1))

    @explanation
    def rows(self, queries: Sequence[int]) -> Tensor:
        """Return the attention of each head of *queries*, in O(rows · N)."""
        chosen = check_rows(queries, self.shape[2])
        products = self.query[..., chosen, :] @ self.key.mT
        if self.mask.kind is MaskKind.CAUSAL:
            at = torch.tensor(chosen, device=products.device)[:, None]
            later = torch.arange(products.shape[-1], device=products.device) > at
            products = products.masked_fill(later, 0.0)
        return products / self.normaliser[..., chosen, None]

    def _counts(self) -> Tensor:
        batch, _, time, _ = self.shape
        return self.mask.visible(time, time).expand(batch, 1, -1)

    def content_free(self) -> LinearRead:
        """Return the layer with equal features everywhere."""
        unit = torch.ones_like(self.query)
        normaliser = self.visible().to(unit) * unit.shape[3]
        return replace(self, query=unit, key=unit, normaliser=normaliser)


def _chunks(time: int) -> Iterator[slice]:
    for start in range(0, time, CHUNK):
        yield slice(start, min(start + CHUNK, time))


def _check(query: Tensor, key: Tensor, mask: Mask, **other: tuple[Tensor, str]) -> None:
    check_mask(mask)
    axes = "batch head time feature"
    check_axes({"query": (query, axes), "key": (key, axes), **other})
    if mask.kind not in (MaskKind.FULL, MaskKind.CAUSAL):
        raise AttentionInvalid(
            "Linear attention sums over all that a row sees and cannot forget a window's oldest "
            "bar; take a full or a causal mask."
        )
