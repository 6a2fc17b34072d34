"""ProbSparse attention: selected queries attend, the others take the mean value.

Zhou et al. (2021), Informer, arXiv:2012.07436. The attention matrix has u computed rows, the
others are uniform, so its rollout and its entropies are exact in O(u·N). Ranking the whole sequence
looks ahead, so a pass that answers several bars must not use it.

The rules are docs/attention.md, A18 to A20.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import torch
from torch.nn.functional import pad

from .checks import check_axes, check_mask, check_rows, exact, explanation, ruled, working_type
from .errors import AttentionInvalid
from .layer import value_norms
from .masks import WHOLE, Mask, MaskKind, whole
from .reads import MEAN, CarriedRows, Fuse, Read, by_gradient, by_norm
from .tiles import FuseTile, check_mass

if TYPE_CHECKING:
    from torch import Tensor

FACTOR: Final = 5
_SAMPLED_ROWS: Final = 512
"""Rows whose sampled keys are gathered at once: the gather is the largest array here."""
_SAMPLED_ROWS_LEAST: Final = 16
_DENSE_RATIO: Final = 32
"""With at most this many keys per sampled key, the product with all keys is faster."""
_TOLERANCE: Final = 1e-4


def sample_keys(time: int, mask: Mask, *, factor: int = FACTOR, seed: int) -> Tensor:
    """Return int64 [time, sample]: the keys that each query samples, with replacement.

    ``sample = min(time, factor · ceil(ln time))``, drawn from the keys that the query sees. The
    same seed gives the same keys on every machine.
    """
    _check_mask(mask)
    generator = torch.Generator().manual_seed(whole(seed, "A seed"))
    count = queries_attending(time, factor)
    chance = torch.rand(time, count, generator=generator, dtype=torch.float64, device="cpu")
    return (chance * visible_counts(time, mask)[:, None]).long()


@exact
def attend_sparsely(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    samples: Tensor,
    *,
    factor: int = FACTOR,
    always: Sequence[int] = (),
) -> tuple[Tensor, SparseRead]:
    """Return ProbSparse attention of [batch, head, time, dim], differentiable, and its read.

    *samples* are ``sample_keys`` of the same time and mask. The rows in *always* attend whatever
    their spread, so that the decided row always attends. Ties in spread go to the earlier row.
    Raises ``AttentionInvalid`` on shapes that do not fit.
    """
    _check_mask(mask)
    _check(query, key, value)
    time = query.shape[2]
    check_axes({"samples": (samples, "time sample")}, {"time": time}, kinds=WHOLE)
    query, key, value = ruled(query, key, value)
    spread = _spread(query, key, samples)
    for row in always if always == () else check_rows(always, time):
        spread[:, :, row] = torch.inf
    active = _largest(spread, queries_attending(time, factor))  # [batch, head, u]
    at = active[..., None].expand(-1, -1, -1, query.shape[3])
    kind = working_type(query)
    chosen = query.gather(2, at).to(kind) * query.shape[3] ** -0.5
    scores = chosen @ key.transpose(2, 3).to(kind)
    if mask.kind is MaskKind.CAUSAL:
        ahead = torch.arange(time, device=query.device) > active[..., None]
        scores = scores.masked_fill(ahead, -torch.inf)
    weights = scores.softmax(dim=-1)  # [batch, head, u, time]
    # Laid out as [batch, time, head, dim], in which a layer joins its heads.
    lazy = _mean_value(value, mask).transpose(1, 2)
    output = lazy.scatter(1, at.transpose(1, 2), _mixed(weights, value).transpose(1, 2))
    return output.transpose(1, 2), SparseRead(active, weights.detach(), mask, value)


@exact
def attend_rows(
    query: Tensor, key: Tensor, value: Tensor, rows: Sequence[int]
) -> tuple[Tensor, SparseRead]:
    """Return the attention of *rows* alone over a sequence, [batch, head, row, dim]; and its read.

    It equals that of ``attend_sparsely`` under the full mask with these rows in *always*. The read
    has all other rows uniform. Raises ``AttentionInvalid`` for rows out of range.
    """
    _check(query, key, value)
    rows = check_rows(rows, query.shape[2])
    query, key, value = ruled(query, key, value)
    active = torch.tensor(rows, device=query.device).expand(*query.shape[:2], -1)
    kind = working_type(query)
    chosen = query[:, :, rows].to(kind) * query.shape[3] ** -0.5
    scores = chosen @ key.transpose(2, 3).to(kind)
    weights = scores.softmax(dim=-1)  # [batch, head, row, time]
    read = SparseRead(active, weights.detach(), Mask.full(), value)
    return _mixed(weights, value), read


def _mixed(weights: Tensor, value: Tensor) -> Tensor:
    """Return ``weights · value`` in the value's type, summed in that of the weights."""
    return (weights @ value.to(weights.dtype)).to(value.dtype)


def visible_counts(time: int, mask: Mask) -> Tensor:
    """Return how many keys each row of a full or a causal mask sees: int64 [row]."""
    at = torch.arange(1, time + 1, device="cpu")
    return at if mask.kind is MaskKind.CAUSAL else torch.full_like(at, time)


def queries_attending(time: int, factor: int) -> int:
    """Return ``factor · ceil(ln time)``, at least 1 and at most *time*."""
    return min(time, max(1, factor * math.ceil(math.log(time))))


def _spread(query: Tensor, key: Tensor, samples: Tensor) -> Tensor:
    """Return how much each query's sampled products spread: [batch, head, time], no gradient."""
    samples = samples.to(query.device)
    kind = working_type(query)
    query, key = query.detach().to(kind), key.detach().to(kind)
    time, count = samples.shape
    is_dense = key.shape[2] <= _DENSE_RATIO * count
    windows, heads = query.shape[:2]
    # On the CPU the products of one window stay in the cache; a GPU is faster with all at once.
    at_once = windows if query.device.type != "cpu" else 1
    step = max(_SAMPLED_ROWS // at_once, _SAMPLED_ROWS_LEAST)
    with torch.no_grad():
        spread = query.new_empty(windows, heads, time)
        for window in range(0, windows, at_once):
            batch = slice(window, window + at_once)
            for start in range(0, time, step):
                rows = slice(start, start + step)
                asked, known, at = query[batch, :, rows], key[batch], samples[rows]
                if is_dense:  # one product with every key is cheap
                    every = asked @ known.mT  # [batch, head, row, time]
                    sampled = every.gather(3, at.expand(*every.shape[:2], -1, -1))
                else:  # [batch, head, row, sample, dim] · [batch, head, row, dim, 1]
                    sampled = (known[:, :, at] @ asked[..., None])[..., 0]
                mean = sampled.sum(dim=-1) / count
                torch.sub(sampled.amax(dim=-1), mean, out=spread[batch, :, rows])
        return spread


def _largest(spread: Tensor, count: int) -> Tensor:
    """Return the *count* rows of the largest spread [batch, head, count], the largest first.

    Of rows with equal spreads the earlier ones come first.
    """
    if spread.device.type == "cpu" and not torch.compiler.is_compiling():
        top = spread.topk(count, dim=-1)
        # Usually no row that is left out ties with the last one, and no stable sort is needed.
        if bool(((spread >= top.values[..., -1:]).sum(dim=-1) == count).all()):
            return top.indices
    return spread.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _mean_value(value: Tensor, mask: Mask) -> Tensor:
    """Return the value of each lazy row: the mean of the values that it sees."""
    time = value.shape[2]
    if mask.kind is MaskKind.CAUSAL:
        kind = working_type(value)  # bfloat16 counts no further than 256
        counts = visible_counts(time, mask).to(value.device, kind)
        return (value.cumsum(dim=2, dtype=kind) / counts[:, None]).to(value.dtype)
    return value.mean(dim=2, keepdim=True).expand_as(value)


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    names = {"query": query, "key": key, "value": value}
    check_axes({name: (tensor, "batch head time dim") for name, tensor in names.items()})


def _check_mask(mask: Mask) -> None:
    check_mask(mask)
    if mask.kind not in (MaskKind.FULL, MaskKind.CAUSAL):
        raise AttentionInvalid(
            "ProbSparse ranks a whole sequence, so a sliding window cannot be; use Mask.full() "
            "over the window that ends at the bar."
        )


TAPS: Final = 3
"""Kernel of the convolution and of the pooling; both are padded by one on each side."""
STRIDE: Final = 2


@explanation
def convolution_taps(products: Tensor) -> MapRead:
    """Return the map of a padded convolution of three taps: each position's shares of bars.

    *products* [batch, bar, tap, channel] are the terms of the convolution: each bar through each
    tap. A position whose terms are all 0 rests on its own bar.
    """
    lengths = torch.linalg.vector_norm(products.detach(), dim=-1)  # [batch, bar, tap]
    shares = lengths.new_zeros(lengths.shape)
    shares[:, 1:, 0] = lengths[:, :-1, 0]
    shares[..., 1] = lengths[..., 1]
    shares[:, :-1, 2] = lengths[:, 1:, 2]
    totals = shares.sum(dim=-1, keepdim=True)
    shares /= totals.clamp_min(torch.finfo(shares.dtype).tiny)
    shares[..., 1] += totals[..., 0] == 0
    return MapRead(shares, 1, lengths.shape[1])


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the padded convolution of three taps [batch, bar, out], and its terms.

    *x* is [batch, bar, channel], *weight* [out, channel, TAPS] as ``torch.nn.Conv1d`` stores it;
    the terms [batch, bar, tap, out] are what ``convolution_taps`` explains it by.
    """
    taps = weight.permute(2, 0, 1).flatten(0, 1)  # [tap * out, channel]
    products = (x @ taps.T).unflatten(-1, (TAPS, -1))
    # The gradient of one unbind is one array; those of three slices would be three full of zeros.
    before, at, after = products.unbind(2)
    mixed = at + pad(before[:, :-1], (0, 0, 1, 0)) + pad(after[:, 1:], (0, 0, 0, 1))
    return mixed + bias, products


def pooling_taps(chosen: Tensor, time: int) -> MapRead:
    """Return the map of a max-pooling of three taps and stride two.

    *chosen* [batch, channel, row] are the indices that ``max_pool1d`` returns for an input of
    *time* bars. A bar's share is the share of channels whose maximum it is.
    """
    first = STRIDE * torch.arange(chosen.shape[2], device=chosen.device) - 1
    tap = chosen - first  # [batch, channel, row], 0 to TAPS - 1
    earlier, later = ((tap == place).sum(dim=1) for place in (0, 2))
    counts = torch.stack((earlier, chosen.shape[1] - earlier - later, later), dim=-1)
    shares = counts.double() / chosen.shape[1]
    return MapRead(shares, STRIDE, time)


@dataclass(frozen=True, eq=False, repr=False)
class MapRead(Read):
    """A map of positions, such as distilling, without attention and residual: [batch, n, bar].

    Distilling is of Informer (Zhou et al., 2021, arXiv:2012.07436). Position n takes the share
    ``shares[n, τ]`` from the bar ``stride·n - 1 + τ``.
    """

    shares: Tensor
    """[batch, position, TAPS]; they sum to 1 over the taps."""
    stride: int
    bars: int
    residual: bool = field(default=False, kw_only=True)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, one head, positions above and bars below."""
        batch, positions, _ = self.shares.shape
        return batch, 1, positions, self.bars

    @explanation
    def advance(self, weights: Tensor, fuse: Fuse = MEAN) -> CarriedRows:
        """Return *weights* on the positions as those on the bars below."""
        del fuse
        weights = weights.to(self.shares.device)
        result = weights.new_zeros(*weights.shape[:-1], self.bars + 2)  # a bar of padding each side
        spread = weights[..., None] * self.shares.to(weights.dtype)[:, None]
        last = self.stride * (weights.shape[-1] - 1) + 1
        for tap in range(TAPS):
            result[..., tap : tap + last : self.stride] += spread[..., tap]
        return CarriedRows(weights, result[..., 1:-1])

    def rows(self, queries: Sequence[int]) -> Tensor:
        """Return the shares of the bars in the positions *queries*."""
        batch, _, positions, _ = self.shape
        chosen = check_rows(queries, positions)
        weights = torch.zeros(batch, len(chosen), positions)
        weights[:, range(len(chosen)), chosen] = 1.0
        return self.advance(weights).moved[:, None]

    def _counts(self) -> Tensor:
        batch, _, positions, _ = self.shape
        return torch.full((batch, 1, positions), TAPS)

    def content_free(self) -> MapRead:
        """Return it unchanged: the shares of positions do not depend on queries."""
        return self


@dataclass(frozen=True, eq=False, repr=False)
class SparseRead(Read):
    """ProbSparse attention [batch, head, query, key]: some computed rows, the others uniform.

    Informer's (Zhou et al., 2021, arXiv:2012.07436).
    """

    active: Tensor
    """[batch, head, u] int64: the rows that attend, the largest spread first."""
    weights: Tensor
    """[batch, head, u, time]: their probabilities, at least float32."""
    mask: Mask
    value: Tensor | None = None
    """[batch, head, key, dim]."""
    output_weight: Tensor | None = None
    """The projection of outputs [model, head * dim]: with the value, to fuse by norm."""
    gradient: Tensor | None = None
    """Of an output by A·V, [batch, head, query, dim]: with the value, to fuse by gradient."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, heads, queries and keys."""
        batch, heads, _, time = self.weights.shape
        return batch, heads, time, time

    @explanation
    def advance(self, weights: Tensor, fuse: Fuse = MEAN) -> CarriedRows:
        """Return *weights* below the layer: by the mean in O(u·N), else in O(N²) time."""
        kind = torch.promote_types(weights.dtype, self.weights.dtype)
        weights = weights.to(self.weights.device, kind)
        if fuse.fusion != "mean" or fuse.discard_ratio:
            return self._advance_fused(weights, fuse)
        batch, heads, time, _ = self.shape
        per_head = weights[:, None].expand(batch, heads, -1, -1)  # [batch, head, row, time]
        at = self.active[:, :, None].expand(-1, -1, weights.shape[1], -1)
        pushed = per_head.gather(3, at) @ self.weights.to(kind)
        lazy = per_head.scatter(3, at, 0.0)
        if self.mask.kind is MaskKind.CAUSAL:
            counts = visible_counts(time, self.mask).to(weights)
            pushed = pushed + (lazy / counts).flip(3).cumsum(dim=3).flip(3)
        else:
            pushed = pushed + lazy.sum(dim=3, keepdim=True) / time
        check_mass(pushed.sum(dim=-1), _TOLERANCE, weights.sum(dim=-1)[:, None])
        if fuse.shares is None:
            return CarriedRows(weights, pushed.mean(dim=1))
        shares = fuse.shares.to(weights)
        return CarriedRows(weights, torch.einsum("h,bhmt->bmt", shares, pushed))

    @explanation
    def rows(self, queries: Sequence[int]) -> Tensor:
        """Return the attention of each head of *queries*; rows that did not attend are uniform."""
        batch, heads, _, time = self.weights.shape
        chosen = check_rows(queries, time)
        is_row = self._is_row(chosen)  # [batch, head, row, u]
        real = is_row.to(self.weights.dtype) @ self.weights
        even = self._even(chosen).to(real).expand(batch, heads, -1, -1)
        return torch.where(is_row.any(dim=-1)[..., None], real, even)

    def _counts(self) -> Tensor:
        return visible_counts(self.shape[2], self.mask).expand(self.shape[0], 1, -1)

    @explanation
    def confidence(self, queries: Sequence[int]) -> Tensor:
        """Return the confidence of each row, 0 for a row that did not attend."""
        confidence = super().confidence(queries)
        chosen = check_rows(queries, self.shape[2])
        return confidence.masked_fill(~self._is_row(chosen).any(dim=-1), 0.0)

    def content_free(self) -> SparseRead:
        """Return the layer with uniform rows only."""
        return replace(self, active=self.active[:, :, :0], weights=self.weights[:, :, :0])

    def _is_row(self, rows: Sequence[int]) -> Tensor:
        at = torch.tensor(list(rows), device=self.active.device)
        return self.active[:, :, None] == at[:, None]

    def _even(self, rows: Sequence[int]) -> Tensor:
        """Return *rows* of uniform attention: [row, key]."""
        time = self.shape[2]
        shares = 1.0 / visible_counts(time, self.mask)[list(rows)].double()
        even = shares[:, None].expand(-1, time)
        if self.mask.kind is not MaskKind.CAUSAL:
            return even
        return even * (torch.arange(time) <= torch.tensor(list(rows))[:, None])

    def _fuse_tile(self, fuse: Fuse) -> FuseTile:
        if fuse.fusion == "norm" and self.value is not None and self.output_weight is not None:
            return by_norm(value_norms(self.value, self.output_weight))
        if fuse.fusion == "gradient" and self.value is not None and self.gradient is not None:
            return by_gradient(self.value, self.gradient, self.weights.dtype)
        return super()._fuse_tile(fuse)
