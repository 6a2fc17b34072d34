"""The steps of a rollout: one stream of tokens reads another, or itself.

A ``Read`` carries row weights over its queries to its keys. ``Layer`` is softmax attention; here
are the others: linear attention, ProbSparse, distilling, stored matrices, and a layer along one
axis of a grid.

The rules are docs/attention.md, A5, A18, A20 and A29.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import torch

from .checks import check_axes, check_rows, explanation
from .errors import AttentionInvalid
from .masks import Mask
from .tiles import TILE, Entries, FuseTile, carry_by, discard_below, fuse_mean, smallest_kept

if TYPE_CHECKING:
    from torch import Tensor

TOKENS: Final = "tokens"
"""The stream of a model whose layers all read the same tokens."""
Fusion = Literal["mean", "max", "min", "norm", "gradient", "flow"]
"""How heads are fused; a flow takes their mean."""
NORMALISED: Final = ("norm", "gradient")
"""Fusions whose rows are normalised before the residual is mixed in; others are after it."""


class Fuse(NamedTuple):
    """How the heads of one read are fused, and by which backend."""

    fusion: Fusion = "mean"
    shares: Tensor | None = None  # [head], of the mean; they sum to 1
    discard_ratio: float = 0.0
    residual_weight: float = 0.5
    backend: str = "auto"


MEAN: Final = Fuse()


class CarriedRows(NamedTuple):
    """The weights of rows below a read, in parts."""

    above: Tensor  # [batch, row, query], to be scaled by the residual's share
    moved: Tensor  # [batch, row, key], carried by attention
    kept: Tensor | None = None  # [batch, row, query] of queries that see no key


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Read(ABC):
    """A step of a rollout [batch, head, query, key]: one stream reads another, or itself."""

    target: str = TOKENS
    """The stream of the queries."""
    source: str = TOKENS
    """The stream of the keys."""
    step: int | None = None
    """Reads of one step see the same state; None makes each read a step of its own."""
    layer: int | None = None
    """Which layer of attention it belongs to; None: its step."""
    residual: bool = True
    """Whether the queries keep a share; False for maps of time, which carry all weight."""

    def __repr__(self) -> str:
        """Name the sizes and the mask."""
        batch, heads, queries, keys = self.shape
        several = f", batch of {batch}" if batch > 1 else ""
        tokens = f"{keys}" if queries == keys else f"{queries} of {keys}"
        return f"{type(self).__name__}: {heads} heads, {tokens} tokens, {self.masked}{several}"

    @property
    def masked(self) -> str:
        """Which keys the queries see, in words."""
        mask = getattr(self, "mask", None)
        return mask.words if isinstance(mask, Mask) else "its own matrix"

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, heads, queries and keys."""

    @abstractmethod
    def advance(self, weights: Tensor, fuse: Fuse = MEAN) -> CarriedRows:
        """Propagate *weights* [batch, row, query] above the read to those below it.

        Raises ``AttentionInvalid`` if the mass of a head changes, and for an unsupported fusion.
        """

    @abstractmethod
    def rows(self, queries: Sequence[int]) -> Tensor:
        """Return the attention of each head of *queries*: [batch, head, row, key]."""

    @abstractmethod
    def _counts(self) -> Tensor:
        """Return how many keys every query sees by each head: int64 [batch, 1 or head, query]."""

    def visible(self, queries: Sequence[int] | None = None) -> Tensor:
        """Return how many keys each head of *queries*, None for all, sees: [batch, head, row]."""
        counts = self._counts().expand(-1, self.shape[1], -1)
        return counts if queries is None else counts[..., check_rows(queries, self.shape[2])]

    def _visible_pairs(self) -> Tensor:
        """Return how many pairs of query and key any head sees: int64 [batch]."""
        return self.visible()[:, 0].sum(dim=-1)

    @abstractmethod
    def content_free(self) -> Read:
        """Return the same read with uniform attention over the visible keys."""

    def carry(self, weights: Tensor, fuse: Fuse = MEAN) -> Tensor:
        """Return ``wĀ`` [batch, row, key] of *weights* [batch, row, query], the heads fused."""
        return self.advance(weights, fuse).moved

    @explanation
    def entropy(self, queries: Sequence[int] | None = None) -> Tensor:
        """Return the entropy in nats of *queries*, None for all: [batch, head, row]."""
        rows = self.rows(range(self.shape[2]) if queries is None else queries)
        terms: Tensor = torch.special.entr(rows)
        return terms.sum(dim=-1)

    @explanation
    def confidence(self, queries: Sequence[int]) -> Tensor:
        """Return ``1 - H / ln n`` of *queries* over the n keys that each sees: [batch, head, row].

        1 means all attention on one key, 0 uniform attention; a row with one visible key, or none,
        has 0.
        """
        return row_confidence(self.entropy(queries), self.visible(queries))

    def take(self, elements: Tensor) -> Read:
        """Return the read for some *elements* of its batch."""
        del elements
        raise AttentionInvalid(f"A {type(self).__name__} has one batch, which cannot be split.")

    def place(self, weights: Tensor) -> Tensor:
        """Return weights on the queries as weights on the keys, if a stream reads itself."""
        queries, keys = self.shape[2:]
        if queries == keys:
            return weights
        placed = weights.new_zeros(*weights.shape[:2], keys)
        placed[..., keys - queries :] = weights
        return placed

    # --- fusions that need all heads of a row at once

    def _parts(self, rows: Tensor | None) -> Iterator[Entries]:
        """Yield the probabilities of *rows*, None for all, in tiles of whole rows of all heads."""
        batch, heads, queries, keys = self.shape
        chosen = list(range(queries)) if rows is None else rows.tolist()
        size = max(1, 4 * TILE["cpu"] ** 2 // (batch * heads * keys))
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            values = self.rows(part).clone()
            at = slice(start, start + len(part))
            index = torch.tensor(part, device=values.device)
            yield Entries(slice(0, batch), slice(0, heads), index, at, slice(0, keys), values)

    def _fuse_tile(self, fuse: Fuse) -> FuseTile:
        """Return the fusion of one tile's heads, without discarding."""
        shares = fuse.shares

        def fused(tile: Entries) -> Tensor:
            match fuse.fusion:
                case "max":
                    return tile.values.amax(dim=1)
                case "min":
                    return tile.values.amin(dim=1)
                case "mean":
                    even = tile.values.new_full((tile.values.shape[1],), 1 / tile.values.shape[1])
                    return fuse_mean(tile.values, even if shares is None else shares.to(even))
                case _:
                    raise AttentionInvalid(
                        f"A {type(self).__name__} has no values to be weighed by; choose another "
                        "fusion."
                    )

        return fused

    def _slack(self) -> float:
        """Return the relative difference below which fused entries are ties to discarding."""
        return 1e-6

    def _fuse_and_discard(self, fuse: Fuse) -> FuseTile:
        """Return the fusion of one tile's heads; the discard threshold is that of all rows."""
        fused = self._fuse_tile(fuse)
        if fuse.discard_ratio == 0.0:
            return fused
        like = next(iter(self._parts(None))).values
        edge = smallest_kept(
            self._parts,
            fused,
            fuse.discard_ratio,
            candidates=self._visible_pairs().tolist(),
            like=like.new_empty(self.shape[0]),
        )
        return discard_below(fused, edge, slack=self._slack())

    def _advance_fused(self, weights: Tensor, fuse: Fuse) -> CarriedRows:
        """Return *weights* below the read where fused rows need not sum to 1."""
        is_normalised, residual = fuse.fusion in NORMALISED, fuse.residual_weight

        def divisor(sums: Tensor) -> Tensor:
            totals = sums if is_normalised else residual + (1.0 - residual) * sums
            return totals.masked_fill(totals == 0, torch.inf)

        rows, fused = rows_with_weight(weights), self._fuse_and_discard(fuse)
        moved, sums = carry_by(self._parts, fused, weights, rows, self.shape[3], divisor)
        if is_normalised:
            return CarriedRows(weights, moved, weights * (sums == 0)[:, None])
        has_weight = (weights != 0).any(dim=1)
        totals = divisor(sums)
        if not bool((totals.isfinite() | ~has_weight).all()):
            raise AttentionInvalid(
                "A row kept no attention at all; raise residual_weight or lower discard_ratio."
            )
        return CarriedRows(weights / totals.masked_fill(~has_weight, 1.0)[:, None], moved)


def by_norm(lengths: Tensor) -> FuseTile:
    """Return the fusion by *lengths* [batch, head, key], those of ``value_norms``."""

    def fused(tile: Entries) -> Tensor:
        part = lengths[tile.batch, :, tile.keys].to(tile.values)
        return torch.einsum("bhrk,bhk->brk", tile.values, part) / tile.values.shape[1]

    return fused


def by_gradient(value: Tensor, gradient: Tensor, kind: torch.dtype) -> FuseTile:
    """Return the fusion by ``mean_h (∇A ⊙ A)⁺``, computed in the type *kind*.

    *value* is [batch, key head, key, dim], *gradient* [batch, head, query, dim].
    """
    value = value.detach().to(kind)
    slopes = gradient.detach().to(kind).unflatten(1, (value.shape[1], -1))

    def fused(tile: Entries) -> Tensor:
        part = slopes[tile.batch, :, :, tile.rows]  # [batch, key head, group, row, dim]
        moved = part @ value[tile.batch, :, None, tile.keys].mT
        return tile.values.mul_(moved.flatten(1, 2)).clamp_min_(0.0).mean(dim=1)

    return fused


def rows_with_weight(weights: Tensor) -> Tensor | None:
    """Return the queries with any weight in *weights* [batch, row, query]; None for all."""
    rows = weights.flatten(0, 1).any(dim=0).nonzero()[:, 0]
    return None if len(rows) == weights.shape[2] else rows


def row_confidence(entropy: Tensor, visible: Tensor) -> Tensor:
    """Return ``1 - H / ln n`` for entropies [..., row] of rows that see *visible* keys.

    A row that sees one key has no choice and therefore 0.
    """
    choices = visible.to(entropy.dtype).clamp_min(1).log()
    most = (choices > 0).to(choices)
    most, choices = torch.stack((most, choices.clamp_min(math.log(2.0)))).to(entropy.device)
    return (most - entropy / choices).clamp(0.0, 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class MatrixRead(Read):
    """Stored matrices [batch, head, query, key], whose rows sum to 1."""

    matrices: Tensor
    shown: Tensor | None = None
    """The keys that each query sees, boolean [query, key]; None for all."""

    def __post_init__(self) -> None:
        """Raise ``AttentionInvalid`` for tensors of other axes or types."""
        check_axes({"matrices": (self.matrices, "batch head query key")})
        if self.shown is not None:
            sizes = {"query": self.shape[2], "key": self.shape[3]}
            check_axes({"shown": (self.shown, "query key")}, sizes, kinds=(torch.bool,))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, heads, queries and keys."""
        batch, heads, queries, keys = self.matrices.shape
        return batch, heads, queries, keys

    @explanation
    def advance(self, weights: Tensor, fuse: Fuse = MEAN) -> CarriedRows:
        """Return *weights* below the matrices."""
        weights = weights.to(self.matrices.device, self.matrices.dtype)
        if fuse.fusion != "mean" or fuse.discard_ratio:
            return self._advance_fused(weights, fuse)
        heads = self.shape[1]
        even = self.matrices.new_full((heads,), 1.0 / heads)
        shares = even if fuse.shares is None else fuse.shares.to(even)
        return CarriedRows(weights, weights @ torch.einsum("h,bhqk->bqk", shares, self.matrices))

    def rows(self, queries: Sequence[int]) -> Tensor:
        """Return the rows of *queries*."""
        return self.matrices[:, :, check_rows(queries, self.shape[2])]

    def _counts(self) -> Tensor:
        shown = torch.ones_like(self.matrices[0, 0]) if self.shown is None else self.shown
        return shown.long().sum(dim=-1).expand(self.shape[0], 1, -1)

    def content_free(self) -> MatrixRead:
        """Return the read with equal weights for all visible keys."""
        shown = torch.ones_like(self.matrices[0, 0], dtype=torch.bool)
        even = (shown if self.shown is None else self.shown).to(self.matrices)
        even = even / even.sum(dim=-1, keepdim=True).clamp_min(1.0)
        return replace(self, matrices=even.expand_as(self.matrices))


@dataclass(frozen=True, eq=False, repr=False)
class GridRead(Read):
    """A layer along one axis of a grid of tokens; the other axis is its batch.

    It is axial attention (Ho et al., 2019, arXiv:1912.12180). Weights are [1, row, token], the
    tokens those of *grid* [first, second] in order.
    """

    along: Read
    grid: tuple[int, int]
    axis: int
    """0 or 1: the axis along which *along* attends."""

    def __post_init__(self) -> None:
        """Raise ``AttentionInvalid`` for a grid that does not fit the layer."""
        lines, _, queries, keys = self.along.shape
        wanted = (queries, lines) if self.axis == 0 else (lines, queries)
        if self.axis not in (0, 1) or queries != keys or self.grid != wanted:
            raise AttentionInvalid(
                f"A layer of {lines} sequences of {queries} tokens is none along axis "
                f"{self.axis!r} of a grid {self.grid!r}; give both sizes of the grid."
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, heads, queries and keys."""
        tokens = math.prod(self.grid)
        return 1, self.along.shape[1], tokens, tokens

    @explanation
    def advance(self, weights: Tensor, fuse: Fuse = MEAN) -> CarriedRows:
        """Return *weights* below the layer; lines of the grid without weight are left out."""
        by_line = self._lines(weights)  # [line, row, place]
        is_needed = by_line.flatten(1).any(dim=1) | (fuse.discard_ratio > 0.0)
        lines = is_needed.nonzero()[:, 0]
        if not len(lines):
            return CarriedRows(weights, torch.zeros_like(weights))
        along = self.along if len(lines) == len(by_line) else self.along.take(lines)
        step = along.advance(by_line[lines], fuse)

        def on_grid(some_lines: Tensor) -> Tensor:
            all_lines = some_lines.new_zeros(by_line.shape)
            all_lines[lines] = some_lines
            return self._tokens(all_lines)

        kept = None if step.kept is None else on_grid(step.kept)
        return CarriedRows(on_grid(step.above), on_grid(step.moved), kept)

    def rows(self, queries: Sequence[int]) -> Tensor:
        """Return the rows of the tokens *queries*: [1, head, row, token]."""
        lines, rows = self._of_tokens(queries, lambda along, places: along.rows(places))
        grids = rows.new_zeros(*rows.shape[:2], *self.grid)  # [row, head, first, second]
        at = lines[:, None, None, None].to(rows.device)
        rows = rows.unsqueeze(3 - self.axis)
        grids.scatter_(3 - self.axis, at.expand_as(rows), rows)
        return grids.flatten(2).transpose(0, 1)[None]

    @explanation
    def entropy(self, queries: Sequence[int] | None = None) -> Tensor:
        """Return the entropy in nats of the tokens *queries*: [1, head, row]."""
        wanted = range(self.shape[2]) if queries is None else queries
        _, entropies = self._of_tokens(wanted, lambda along, places: along.entropy(places))
        return entropies.T[None]

    def _of_tokens(
        self, queries: Sequence[int], explain: Callable[[Read, list[int]], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the line of each token, and what *explain* gives of it: [row, head, ...].

        It is called once, with all lines and places that any of the tokens has.
        """
        tokens = torch.tensor(check_rows(queries, self.shape[2]), device="cpu")
        places = (tokens // self.grid[1], tokens % self.grid[1])
        lines, line_of = places[1 - self.axis].unique(return_inverse=True)
        along, place_of = places[self.axis].unique(return_inverse=True)
        explained = explain(self.along.take(lines), along.tolist())  # [line, head, place, ...]
        chosen = explained[line_of.to(explained.device), :, place_of.to(explained.device)]
        return places[1 - self.axis], chosen

    def _counts(self) -> Tensor:
        every = self.along.visible().transpose(0, 1)  # [head, line, place]
        return (every.mT if self.axis == 0 else every).flatten(1)[None]

    def content_free(self) -> GridRead:
        """Return the read with the content-free layer along its axis."""
        return replace(self, along=self.along.content_free())

    def _lines(self, weights: Tensor) -> Tensor:
        """Return [1, row, token] as [line, row, place]: a view."""
        grid = weights[0].unflatten(-1, self.grid)  # [row, first, second]
        return grid.permute(2, 0, 1) if self.axis == 0 else grid.transpose(0, 1)

    def _tokens(self, lines: Tensor) -> Tensor:
        """Return [line, row, place] as [1, row, token]."""
        grid = lines.permute(1, 2, 0) if self.axis == 0 else lines.transpose(0, 1)
        return grid.flatten(1)[None]
