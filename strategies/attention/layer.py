"""``Layer``: one layer's softmax attention, as computed by the forward pass of any model.

Grouped queries, fewer queries than keys (a step of decoding over a cache), windows to either side,
padding, soft caps, sinks and stored masks; keys are never repeated and no matrix is stored. After
each carry the mass of each head is checked, within rounding.

The rules are docs/attention.md, A4 to A10, A21, A22 and A32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Final, TypeVar

import torch
from torch import Tensor

from . import compiled, triton_rollout
from .checks import (
    check_axes,
    check_factor,
    check_mask,
    check_rows,
    explanation,
    is_finite,
    working_type,
)
from .errors import AttentionInvalid
from .kernels import attend
from .masks import CAUSAL, Mask, MaskKind, first_of, shown_table, whole
from .reads import MEAN, CarriedRows, Fuse, Read, by_gradient, by_norm, rows_with_weight
from .tiles import (
    FLOOR,
    ROUNDING_MAX,
    ROWS_A_HEAD_MAX,
    SLACK,
    Entries,
    FuseTile,
    Operand,
    check_mass,
    mass_tolerance,
    tie_slack,
)

BACKENDS: Final = ("tiles", "triton", *compiled.NAMES)
"""Backends that carry the heads' mean: torch, Triton on CUDA, or compiled loops on the CPU."""
_UNDERFLOW: Final = 750.0
"""The exponential of minus this is 0 in every type."""
T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class Layer(Read):
    """Softmax attention of one layer: ``A_ij = exp(score_ij - logsumexp_i)`` [batch, head, i, j].

    Scores are natural logarithms, scaled and masked (Vaswani et al., 2017, arXiv:1706.03762); no
    matrix is stored.
    """

    query: Tensor
    """[batch, head, query, dim]."""
    key: Tensor
    """[batch, key head, key, dim]; the heads are a multiple of the key heads."""
    value: Tensor | None
    """[batch, key head, key, dim]; needed to fuse by norm or gradient alone."""
    logsumexp: Tensor
    """[batch, head, query], natural, at least float32; -inf for a query that sees nothing."""
    mask: Mask = CAUSAL
    scale: float | None = None
    """The factor of q·k; None is ``dim ** -0.5``."""
    softcap: float | None = None
    """c of ``c · tanh(score / c)``."""
    sinks: Tensor | None = None
    """A score [head] that competes with the keys' scores in every row; its mass is lost."""
    output_weight: Tensor | None = None
    """The projection of outputs [model, head * dim], as ``Linear`` stores it: for norms."""
    norms: Tensor | None = None
    """The result of ``value_norms``, [batch, head, key], if values are not kept."""
    gradient: Tensor | None = None
    """The gradient of an output by A·V, [batch, head, query, dim]: for the fusion by gradient."""
    content_dims: int | None = None
    """Leading dimensions of the query that hold content; the others carry a bias by age."""

    def __post_init__(self) -> None:
        """Raise ``AttentionInvalid`` for tensors that do not fit together."""
        _check(self)

    @classmethod
    @explanation
    def of(
        cls,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        mask: Mask = CAUSAL,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Layer:
        """Return the layer with a logsumexp computed from the scores, in one more pass.

        Raises ``AttentionInvalid`` for tensors that do not fit together.
        """
        check_axes({"query": (query, "batch head query dim")})
        sums = query.new_zeros(query.shape[:-1], dtype=working_type(query))
        layer = cls(query, key, value, sums, mask, scale, softcap, sinks)
        return replace(layer, logsumexp=layer.natural_logsumexp(working_type(query)))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, heads, queries and keys."""
        batch, heads, queries = self.query.shape[:3]
        return batch, heads, queries, self.key.shape[2]

    @property
    def factor(self) -> float:
        """The factor of q·k."""
        return float(self.query.shape[-1] ** -0.5 if self.scale is None else self.scale)

    @cached_property
    def _norms_bound(self) -> float:
        """The largest |score| that the norms of query and key allow (Cauchy and Schwarz)."""
        kind = working_type(self.query)
        lengths = [
            torch.linalg.vector_norm(x.detach(), dim=-1, dtype=kind).amax()
            for x in (self.query, self.key)
        ]
        query_length, key_length = torch.stack(lengths).tolist()
        for name, length in (("query", query_length), ("key", key_length)):
            if not math.isfinite(length) and not is_finite(getattr(self, name)):
                raise AttentionInvalid(f"A layer has a NaN or infinite {name}; find its source.")
        size = self.factor * query_length * key_length
        if not size <= torch.finfo(kind).max:
            raise AttentionInvalid(
                f"query and key are so large that their products can overflow {kind}; scale them "
                "down."
            )
        return size if self.softcap is None else min(size, self.softcap)

    @cached_property
    def _shown(self) -> Mask:
        """The mask, with -inf for each stored number that hides its key from a query.

        That is the lowest number of its type, and one so far below the largest of its row that no
        score makes its weight more than 0: models also hide by -1e4 and -1e9.
        """
        dense, (_, _, queries, keys) = self.mask.dense, self.shape
        if dense is None or not dense.is_floating_point():
            return self.mask
        dense = dense.detach()
        if replace(self.mask, dense=None).kind is not MaskKind.FULL:
            reached = shown_table(self.mask, queries, keys, dense.device)[:, None]
            dense = dense.masked_fill(~reached, -torch.inf)
        top = dense.amax(dim=-1, keepdim=True).double()
        hides = dense < top - 2.0 * self._norms_bound - _UNDERFLOW
        hides |= dense <= torch.finfo(dense.dtype).min
        return replace(self.mask, dense=dense.masked_fill(hides, -torch.inf))

    @cached_property
    def _added(self) -> tuple[Tensor, Tensor]:
        """What the mask adds to each row's scores: the largest |number|, and their spread."""
        dense = self._shown.dense
        if dense is None or not dense.is_floating_point():
            nothing = torch.zeros(1, device="cpu")  # a GPU is not synchronised for it
            return nothing, nothing
        hides = torch.isinf(dense)
        spread = dense.amax(dim=-1) - dense.masked_fill(hides, torch.inf).amin(dim=-1)
        return dense.abs().masked_fill(hides, 0.0).amax(dim=-1), spread.clamp_min(0.0)

    @cached_property
    def largest(self) -> float:
        """The largest |score| of a visible key: what norms allow, and what the mask adds."""
        return self._norms_bound + float(self._added[0].amax())

    @cached_property
    def operand(self) -> Operand:
        """The layer ready for tiles; in float64 if its scores are too large for float32.

        With scores of some hundreds ``exp(score - logsumexp)`` has no exact digits left if two
        kernels sum in different orders. The given logsumexp is still compared with the true one:
        raises ``AttentionInvalid`` if rounding cannot explain the difference.
        """
        kind = working_type(self.query)
        eps = torch.finfo(kind).eps
        if kind == torch.float64 or eps * self.largest <= ROUNDING_MAX:
            return self._operand(kind, self.logsumexp.to(kind))
        given = self.logsumexp.double()
        true = self.natural_logsumexp(torch.float64)
        error = (true - given).abs()
        error = error.masked_fill(torch.isneginf(true) & torch.isneginf(given), 0.0)
        size = FLOOR + self._norms_bound + self._added[0].to(error)
        if not bool((error <= SLACK * eps * size).all()):
            raise AttentionInvalid(
                "The logsumexp is not that of this query, key, mask and scale; give the kernel's "
                "own, in natural logarithms."
            )
        return self._operand(torch.float64, true)

    def _operand(self, kind: torch.dtype, logsumexp: Tensor) -> Operand:
        query, key = self.query.detach(), self.key.detach()
        if kind == torch.float64:
            query, key = query.double(), key.double()
        return Operand(
            query, key, logsumexp.detach(), self._shown, scale=self.factor, softcap=self.softcap
        )

    def natural_logsumexp(self, kind: torch.dtype) -> Tensor:
        """Return the logsumexp of the scores and the sinks in the type *kind*.

        A CUDA kernel computes it if one takes the layer; otherwise it is summed over tiles.
        """
        _ = self.largest
        if self.query.device.type == "cuda" and kind == torch.float32 and self._is_square():
            query, key = self.query.detach(), self._key_by_head().detach()
            return attend(query, key, key, self.mask, scale=self.factor, checked=False).logsumexp
        zeros = torch.zeros(self.shape[:3], dtype=kind, device=self.query.device)
        total = self._operand(kind, zeros).natural_logsumexp()
        if self.sinks is not None:
            total = torch.logaddexp(total, self.sinks.to(total)[:, None])
        return total

    # --- carrying rows

    @explanation
    def advance(self, weights: Tensor, fuse: Fuse = MEAN) -> CarriedRows:
        """Return *weights* [batch, row, query] above the layer as those below it.

        A query that sees nothing keeps its weight; the share of a sink is dropped. Raises
        ``AttentionInvalid`` for a backend that cannot run, and if the mass of a head changes.
        """
        check_axes(
            {"weights": (weights, "batch row query")},
            {"batch": self.shape[0], "query": self.shape[2]},
        )
        weights = weights.to(self.query.device, self.operand.kind)
        if fuse.fusion == "mean" and not fuse.discard_ratio:
            carried = self._advance_mean(weights, fuse)
        elif fuse.backend in {"auto", "tiles"}:
            carried = self._advance_fused(weights, fuse)
        else:
            raise AttentionInvalid(
                f"The backend {fuse.backend} takes the heads' mean without discarding; choose "
                "tiles."
            )
        if self.operand.kind == working_type(self.query):
            return carried
        kind = working_type(self.query)
        kept = None if carried.kept is None else carried.kept.to(kind)
        return CarriedRows(carried.above.to(kind), carried.moved.to(kind), kept)

    def _advance_mean(self, weights: Tensor, fuse: Fuse) -> CarriedRows:
        """Return *weights* below the heads' mean, each head's mass checked."""
        product, mass = self._product(weights, fuse)
        if self.lost is not None:
            is_unused = (weights == 0).all(dim=1)[:, None]
            mass = mass + self.lost.masked_fill(is_unused, 0.0) @ weights.mT
        tolerance = mass_tolerance(self.operand.kind, self.largest)
        check_mass(mass, tolerance, weights.sum(dim=-1)[:, None])
        if self.blind is None:
            return CarriedRows(weights, product)
        blind = self.blind.to(product.dtype)
        kept = torch.einsum("h,bhq->bq", self._shares(fuse), blind)[:, None]
        return CarriedRows(weights, product, weights * kept)

    def _product(self, weights: Tensor, fuse: Fuse) -> tuple[Tensor, Tensor]:
        """Return ``Σ_h shares_h wᵀA_h`` [batch, row, key], and each head's mass."""
        operand, shares, count = self.operand, self._shares(fuse), weights.shape[1]
        backend = check_backend(fuse.backend, self.query.device)
        product = self._by_triton(backend, partial(triton_rollout.push_rows, weights=weights))
        loops = None if backend == "tiles" else compiled.choose(operand)
        if product is None and loops is not None and count <= ROWS_A_HEAD_MAX:
            name = loops if backend == "auto" else backend
            product = compiled.push_rows(operand, weights, name)
        if product is None:
            rows = rows_with_weight(weights)
            if count > ROWS_A_HEAD_MAX:
                return operand.carry_fused(weights, rows, shares)
            product = operand.carry_heads(weights, rows)
        product = product.to(weights.dtype)
        return torch.einsum("h,bhrk->brk", shares, product), product.sum(dim=-1)

    def _by_triton(self, backend: str, run: Callable[[Operand], T]) -> T | None:
        """Return the result of *run* by a Triton kernel; None if another *backend* must run."""
        if backend == "triton":
            return run(self.operand)
        is_on_cuda = self.query.device.type == "cuda"
        if backend == "auto" and is_on_cuda and triton_rollout.takes(self.operand):
            # Only the launch shows whether the kernel fits the device.
            with suppress(AttentionInvalid):
                return run(self.operand)
        return None

    def _shares(self, fuse: Fuse) -> Tensor:
        kind, heads = self.operand.kind, self.shape[1]
        if fuse.shares is None:
            return torch.full((heads,), 1.0 / heads, dtype=kind, device=self.query.device)
        return fuse.shares.to(self.query.device, kind)

    @cached_property
    def blind(self) -> Tensor | None:
        """The queries that see nothing, boolean [batch, head, query]; None for none."""
        mask, (_, _, queries, keys) = self.mask, self.shape
        if mask.kind is MaskKind.FULL or (mask.kind is not MaskKind.OTHER and queries == keys):
            return None  # the mask alone shows it, without a synchronisation
        blind = torch.isneginf(self.operand.logsumexp)
        return blind if bool(blind.any()) else None

    @cached_property
    def lost(self) -> Tensor | None:
        """The mass of each query that no key gets [batch, head, query], None for none.

        It is 1 for a query that sees nothing, and otherwise the share of the sink.
        """
        logsumexp, blind = self.operand.logsumexp, self.blind
        lost = None if blind is None else blind.to(logsumexp.dtype)
        if self.sinks is None:
            return lost
        sink = (self.sinks.to(logsumexp)[:, None] - logsumexp).exp()
        return sink if blind is None or lost is None else sink.masked_fill(blind, 0.0) + lost

    # --- single rows

    @explanation
    def rows(self, queries: Sequence[int]) -> Tensor:
        """Return the probabilities of *queries*: [batch, head, row, key], in O(rows · N).

        Raises ``AttentionInvalid`` for queries out of range and for rows that do not sum to 1.
        """
        chosen = torch.tensor(check_rows(queries, self.shape[2]), device="cpu")
        weights = self.operand.rows(chosen)
        self._check_ones(weights.sum(dim=-1), chosen)
        return weights.to(working_type(self.query))

    def _counts(self) -> Tensor:
        return self._unscaled.visible()

    @explanation
    def visible(self, queries: Sequence[int] | None = None) -> Tensor:
        """Return how many keys each head of *queries*, None for all, sees: [batch, head, row]."""
        rows = None if queries is None else check_rows(queries, self.shape[2])
        return self._unscaled.visible(rows)

    def _visible_pairs(self) -> Tensor:
        return self._unscaled.visible_pairs()

    @cached_property
    def _unscaled(self) -> Operand:
        """The scores alone: a kernel's logsumexp of a query that sees nothing is any number."""
        kind = working_type(self.query)
        return self._operand(kind, torch.zeros_like(self.logsumexp, dtype=kind))

    @explanation
    def entropy(self, queries: Sequence[int] | None = None, *, backend: str = "auto") -> Tensor:
        """Return the entropy in nats of *queries*, None for all: [batch, head, row].

        A sink counts as one more key. Chosen queries cost O(rows · N). All queries cost one pass of
        a Triton kernel, of compiled loops, of a flash kernel with the keys in place of the values,
        ``H_i = lse_i - scale·q_i·(A·K)_i``, or of tiles. Raises ``AttentionInvalid`` for a missing
        backend, and for rows that do not sum to 1.
        """
        check_backend(backend, self.query.device)
        operand = self.operand
        rows = None if queries is None else check_rows(queries, self.shape[2])
        chosen = None if rows is None else torch.tensor(rows, device="cpu")
        loops = None if backend == "tiles" else compiled.choose(operand)
        of_rows = self._by_triton(backend, partial(triton_rollout.row_masses, rows=rows))
        if of_rows is not None:
            mass, entropy = of_rows
        elif chosen is not None:
            mass, entropy = operand.mass_and_entropy(chosen)
        elif loops is not None:
            mass, entropy = compiled.row_masses(operand, loops if backend == "auto" else backend)
        elif self._is_square():
            query = operand.query.to(operand.kind)
            key = self._key_by_head().detach().to(operand.kind)
            mean_key, true = attend(query, key, key, self.mask, scale=operand.scale, checked=False)
            mass = (true - operand.logsumexp).exp()
            score = operand.scale * (query * mean_key).sum(dim=-1)
            entropy = operand.logsumexp - score
        else:
            mass, entropy = operand.mass_and_entropy()
        if self.sinks is not None:
            logsumexp = operand.logsumexp if chosen is None else operand.logsumexp[:, :, chosen]
            sink = (self.sinks.to(logsumexp)[:, None] - logsumexp).exp()
            entropy = entropy + torch.special.entr(sink.nan_to_num(posinf=0.0))
        self._check_ones(mass, chosen)
        # Rounding may fall below 0 on a row that sees one key alone.
        return entropy.clamp_min(0.0).to(working_type(self.query))

    def _key_by_head(self) -> Tensor:
        """Return the key of each head, for kernels that share none."""
        return self.key.repeat_interleave(self.shape[1] // self.key.shape[1], dim=1)

    def _is_square(self) -> bool:
        """Return whether a kernel can compute this layer's attention."""
        is_plain = self.softcap is None and self.sinks is None and self.mask.kind != MaskKind.OTHER
        return is_plain and (self.mask.kind is MaskKind.FULL or self.shape[2] == self.shape[3])

    def _check_ones(self, mass: Tensor, rows: Tensor | None) -> None:
        """Raise ``AttentionInvalid`` unless each row's mass is 1, including its sink's."""
        if self.lost is not None:
            mass = mass + (self.lost if rows is None else self.lost[:, :, rows])
        check_mass(mass, mass_tolerance(self.operand.kind, self.largest))

    # --- variants of the layer

    @explanation
    def content_free(self) -> Layer:
        """Return the layer with queries that hold no content.

        Dimensions beyond ``content_dims`` stay, so encodings by age keep their effect.
        """
        query = torch.zeros_like(self.query)
        if self.content_dims is not None:
            query[..., self.content_dims :] = self.query[..., self.content_dims :]
        empty = replace(self, query=query)
        return replace(empty, logsumexp=empty.natural_logsumexp(working_type(query)))

    def take(self, elements: Tensor) -> Layer:
        """Return the layer for some *elements* of its batch; its mask must depend only on age."""
        if not self.mask.is_interval:
            raise AttentionInvalid("The mask differs by sequence, so the batch cannot be split.")

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[elements]

        return replace(
            self,
            query=self.query[elements],
            key=self.key[elements],
            value=of(self.value),
            norms=of(self.norms),
            logsumexp=self.logsumexp[elements],
            gradient=of(self.gradient),
        )

    def place(self, weights: Tensor) -> Tensor:
        """Return weights on the queries as weights on the keys at their positions."""
        batch, _, queries, keys = self.shape
        if queries == keys and self.mask.first is None:
            return weights
        at = first_of(self.mask, queries, keys)[:, None] + torch.arange(queries, device="cpu")
        placed = weights.new_zeros(*weights.shape[:2], keys)
        at = at.to(weights.device).expand(batch, -1)
        return placed.scatter_add_(2, at[:, None].expand_as(weights), weights)

    # --- fusions that need all heads of a row at once

    def _parts(self, rows: Tensor | None) -> Iterator[Entries]:
        count = self.shape[2] if rows is None else len(rows)
        mass = self.operand.minus.new_zeros(*self.shape[:2], count)
        for tile in self.operand.entries(rows, whole=True):
            mass[tile.batch, tile.heads, tile.at] += tile.values.sum(dim=-1)
            yield tile
        self._check_ones(mass, rows)

    def _slack(self) -> float:
        return tie_slack(self._norms_bound + float(self._added[1].amax()))

    def _fuse_tile(self, fuse: Fuse) -> FuseTile:
        if fuse.fusion == "norm":
            return by_norm(self.value_norms())
        if fuse.fusion == "gradient":
            value, gradient = self._value("gradient"), self.gradient
            if gradient is None:
                raise AttentionInvalid(
                    "A layer that is weighed by its gradient needs it; capture with backward=True "
                    "and call gradient(output), or give Layer.gradient."
                )
            if not (is_finite(value) and is_finite(gradient)):
                raise AttentionInvalid(
                    "A layer has a NaN or infinite value or gradient; find its source."
                )
            return by_gradient(value, gradient, self.operand.kind)
        return super()._fuse_tile(fuse)

    def _value(self, name: str) -> Tensor:
        if self.value is None:
            raise AttentionInvalid(f"A layer that is weighed by its {name} needs its value.")
        return self.value

    @explanation
    def value_norms(self) -> Tensor:
        """Return ``‖v_j·W_h‖`` [batch, head, key]: what key j adds to the residual by head h.

        Raises ``AttentionInvalid`` without a value or an output projection that fits it.
        """
        if self.norms is not None:
            return self.norms
        value, weight = self._value("norm"), self.output_weight
        if weight is None:
            raise AttentionInvalid(
                "A layer that is weighed by its norm needs its output projection; give "
                "Layer.output_weight."
            )
        return value_norms(value, weight, self.query.shape[1])


@explanation
def value_norms(value: Tensor, output_weight: Tensor, heads: int | None = None) -> Tensor:
    """Return ``‖v_j·W_h‖`` [batch, head, key] of *value* [batch, key head, key, dim].

    The fusion by norm needs it (Kobayashi et al., 2020, arXiv:2004.10102). *output_weight* is the
    output projection's [model, head * dim], as ``torch.nn.Linear`` stores it; *heads* is the number
    of query heads, if several share a key head.
    """
    axes = {"value": (value, "batch head time dim")}
    check_axes(axes)
    count, dim = value.shape[1] if heads is None else heads, value.shape[3]
    axes["output_weight"] = (output_weight, "model inputs")
    check_axes(axes, {"inputs": count * dim}, alike=("value",))
    if not (is_finite(value) and is_finite(output_weight)):
        raise AttentionInvalid("value or output_weight has a NaN or infinite number; find it.")
    kind = working_type(value)
    by_head = output_weight.to(kind).unflatten(1, (count, dim))  # [model, head, dim]
    # ‖v·W‖² = v·(W·Wᵀ)·vᵀ with a [dim, dim] product a head: no [time, model] array a head.
    gram = torch.einsum("mhd,mhe->hde", by_head, by_head)
    gram = gram.unflatten(0, (value.shape[1], -1))  # [key head, group, dim, dim]
    wide = value.to(kind)
    squares = torch.einsum("bktd,kgde,bkte->bkgt", wide, gram, wide).flatten(1, 2)
    return squares.clamp_min(0.0).sqrt()


def check_backend(backend: str, device: torch.device) -> str:
    """Return *backend*; raise ``AttentionInvalid`` for one that is unknown or cannot run.

    ``auto`` stays: each layer chooses, because large scores need float64.
    """
    if backend in {"auto", "tiles"}:
        return backend
    if backend not in BACKENDS:
        raise AttentionInvalid(
            f"There is no rollout backend {backend!r}; choose auto, {', '.join(BACKENDS)}."
        )
    runs = (
        triton_rollout.runs_on(device) if backend == "triton" else compiled.runs_on(backend, device)
    )
    if not runs:
        cure = (
            "triton and use CUDA" if backend == "triton" else "a C compiler and then this package"
        )
        raise AttentionInvalid(
            f"The {backend} rollout kernel cannot run on {device}; install {cure}, or choose auto."
        )
    return backend


def _check(layer: Layer) -> None:
    """Raise ``AttentionInvalid`` for tensors, numbers and a mask that do not fit together."""
    check_mask(layer.mask)
    axes = {
        "query": "batch head query dim",
        "key": "batch key_head key dim",
        "logsumexp": "batch head query",
        "value": "batch key_head key width",
        "gradient": "batch head query width",
        "norms": "batch head key",
        "sinks": "head",
    }
    given = {name: (getattr(layer, name), of) for name, of in axes.items()}
    needed = ("query", "key", "logsumexp")
    there = {name: of for name, of in given.items() if name in needed or of[0] is not None}
    check_axes(there, alike=("query", "key"))
    heads, shared = layer.query.shape[1], layer.key.shape[1]
    if heads % shared:
        raise AttentionInvalid(
            f"{heads} query heads cannot share {shared} key heads alike; give a multiple."
        )
    for name in ("scale", "softcap"):
        number = getattr(layer, name)
        if number is not None:
            check_factor(number, name)
    if layer.sinks is not None and not bool(
        (torch.isfinite(layer.sinks) | torch.isneginf(layer.sinks)).all()
    ):
        raise AttentionInvalid("A sink is NaN or infinite; give -inf where a head has none.")
    if layer.content_dims is not None:
        whole(layer.content_dims, "content_dims")
    _check_mask_sizes(layer)


def _check_mask_sizes(layer: Layer) -> None:
    """Raise ``AttentionInvalid`` if the sizes of the mask are not those of the layer."""
    mask, (batch, heads, queries, keys) = layer.mask, layer.shape
    if mask.kind is not MaskKind.OTHER:
        return
    try:
        given: list[tuple[Sequence[int], tuple[int, ...]]] = [
            (mask.bounds(queries, keys)[0].shape, (batch, queries))
        ]
        if mask.dense is not None:
            given.append((mask.dense.shape, (batch, heads, queries, keys)))
        fits = all(torch.broadcast_shapes(shape, wanted) == wanted for shape, wanted in given)
    except RuntimeError:
        fits = False
    if not fits:
        raise AttentionInvalid(
            f"The mask does not fit a layer of [batch, head, query, key] {list(layer.shape)}; give "
            "first, starts and stops a number a sequence, leading_keys one a query, and a dense "
            "mask that broadcasts."
        )
