"""Exact attention rollout of chosen rows, or of all rows in time buckets, in O(N·d) memory.

``Ã_l = ρ·I + (1-ρ)·fuse_h A_l,h`` and ``R = Ã_L ··· Ã_1`` (Abnar and Zuidema, 2020,
arXiv:2005.00928). A row of R is a row vector carried down through the layers, and each step is a
product with one layer that ``products`` and ``fusion`` compute from query, key and logsumexp.

The rules are docs/attention.md, A5 to A8.

``R_l = ρ·R_{l-1} + (1-ρ)·mean_h A_l,h·R_{l-1}`` runs upwards: O(N·G) memory for G buckets, and a
bucket that no row of a tile can have reached yet is not touched. Under a window a row reaches
``layers·(window - 1)`` bars back, so it needs no more columns than that span has buckets: they
are used in turn, as a ring, and memory is linear in time.

The rule is docs/attention.md, A11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

import torch

from tracepaper.strategies.attention import compiled
from tracepaper.strategies.attention.checks import (
    Layer,
    check_head_weights,
    check_layers,
    check_mask,
    check_rows,
    check_share,
    check_start,
    explanation,
)
from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.attention.rollout_kernels import (
    Fuse,
    check_backend,
    discard_below,
    discard_thresholds,
    fuse_heads,
    push,
    step_back,
    step_forward,
)
from tracepaper.strategies.attention.tiles import (
    TILE_BARS,
    check_mass,
    hide_,
    is_whole,
    key_tiles,
    mass_tolerance,
    operand,
    restate,
    row_blocks,
    tie_slack,
    tile_probabilities,
    tile_rows,
)
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.types.decisions import BLOCK_BARS

if TYPE_CHECKING:
    from torch import Tensor

HeadFusion = Literal["mean", "max", "min"]
HeadWeights = Sequence[Sequence[float]] | Sequence[float]
FUSIONS: Final = get_args(HeadFusion)


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """How layers are fused and joined; the same for chosen rows and for every row."""

    head_fusion: HeadFusion = "mean"
    head_weights: HeadWeights | Tensor | None = None
    """Of the mean: one list, or one a layer; None weighs the heads equally."""
    discard_ratio: float = 0.0
    """The share of each layer's visible fused entries that is dropped, smallest first."""
    residual_weight: float = 0.5
    """ρ, the share of the residual stream."""
    start_layer: int = 0
    """The lowest layer that is taken in."""
    scale: float | None = None
    """That of the kernel; None is ``dim ** -0.5``."""


class Rollout(NamedTuple):
    """Where rows looked, through all layers.

    ``weights`` is [batch, row, time] (or [batch, time, bucket]), each row summing to 1 less its
    ``l1_error`` [batch, row]: the mass that pruning left out. All terms are positive, so that is
    exactly the L1 distance from the unpruned row. Without pruning it is rounding, and the
    weights are normalised.
    """

    weights: Tensor
    l1_error: Tensor


@explanation
def rollout_rows(  # noqa: PLR0913
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    logsumexps: Sequence[Tensor],
    rows: Sequence[int] | Tensor,
    mask: Mask,
    *,
    head_fusion: HeadFusion = "mean",
    head_weights: HeadWeights | Tensor | None = None,
    discard_ratio: float = 0.0,
    residual_weight: float = 0.5,
    start_layer: int = 0,
    prune: float = 0.0,
    backend: str = "auto",
    scale: float | None = None,
) -> Rollout:
    """Return the rollout of *rows* over all bars: weights [batch, row, time].

    The sequences hold one tensor a layer, the first layer first: query and key
    [batch, head, time, dim], logsumexp [batch, head, time] in natural logarithms.
    ``head_weights`` (mean only) weighs heads, one list or one a layer. ``discard_ratio`` drops
    that share of each layer's visible fused entries, smallest first; entries equal to the last
    one dropped stay, and those just below it fade out. ``start_layer`` leaves out the layers below
    it. ``prune`` is the largest L1 error to accept for speed (mean only). ``scale`` is that of the
    kernel, ``dim ** -0.5``.
    Raises ``AttentionInvalid`` on tensors, rows or options that do not fit, and when a head does
    not keep its mass.
    """
    check_mask(mask)
    layers = check_layers(queries, keys, logsumexps, scale=scale)
    wanted = check_rows(rows, layers[0].query.shape[2])
    options = RolloutOptions(
        head_fusion, head_weights, discard_ratio, residual_weight, start_layer, scale
    )
    shares = check_options(layers, options, prune=prune)
    name = check_backend(backend, layers[0].query.device)
    plain = head_fusion == "mean" and discard_ratio == 0.0
    if not plain and backend not in {"auto", "tiles"}:
        raise AttentionInvalid(
            f"The backend {backend} takes the heads' mean without discarding; choose tiles."
        )
    weights = one_hot(layers[0], wanted)
    used = range(check_start(start_layer, len(layers)), len(layers))
    for number in reversed(used):
        layer = restate(layers[number], mask)
        # What was restated in float64 is beyond the kernel that takes the layer as it came.
        own = "auto" if name == "triton" and layer is not layers[number] else name
        if plain:
            weights = _mean_step(
                layer,
                weights.to(layer.logsumexp.dtype),
                mask,
                shares=shares[number],
                residual_weight=residual_weight,
                prune=prune / len(used),
                backend=own,
            )
        else:
            fuse = transition(layer, mask, shares[number], head_fusion, discard_ratio)
            weights = step_back(
                layer,
                weights.to(layer.logsumexp.dtype),
                mask,
                fuse,
                residual_weight=residual_weight,
            )
    return finish(weights.to(layers[0].logsumexp.dtype), normalise=prune == 0.0)


@explanation
def carry_rows(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    weights: Tensor,
    mask: Mask,
    *,
    residual_weight: float = 0.5,
    fuse: Fuse | None = None,
) -> Tensor:
    """Return row weights [batch, row, time] above one layer as those below it.

    ``ρ·w + (1-ρ)·mean_h wᵀA_h``, or with the heads fused by *fuse*: one step of ``rollout_rows``,
    whose shapes and errors it has.
    """
    check_mask(mask)
    layers = check_layers([query], [key], [logsumexp], scale=None)
    check_share(residual_weight, "residual_weight")
    layer = restate(layers[0], mask)
    held = weights.to(layer.logsumexp.dtype)
    if fuse is not None:
        carried = step_back(layer, held, mask, fuse, residual_weight=residual_weight)
    else:
        carried = _mean_step(
            layer,
            held,
            mask,
            shares=check_head_weights(None, layers)[0],
            residual_weight=residual_weight,
            prune=0.0,
            backend="auto",
        )
    return carried.to(layers[0].logsumexp.dtype)


def check_options(
    layers: Sequence[Layer], options: RolloutOptions, *, prune: float = 0.0
) -> Tensor:
    """Return the heads' shares [layer, head]; raise ``AttentionInvalid`` on a misfit."""
    check_plain_options(options)
    check_share(prune, "prune", below_one=True)
    if prune and (options.head_fusion != "mean" or options.discard_ratio):
        raise AttentionInvalid(
            "Pruning certifies its error for the heads' mean alone; set prune to 0."
        )
    return check_head_weights(options.head_weights, layers)


def check_plain_options(options: RolloutOptions) -> None:
    """Raise ``AttentionInvalid`` on options that no layers would fit."""
    fusion = options.head_fusion
    if fusion not in FUSIONS:
        raise AttentionInvalid(
            f"There is no head fusion {fusion!r}; choose one of {', '.join(FUSIONS)}."
        )
    check_share(options.discard_ratio, "discard_ratio", below_one=True)
    check_share(options.residual_weight, "residual_weight")
    if fusion != "mean" and options.head_weights is not None:
        raise AttentionInvalid(f"Head weights weigh a mean, not a {fusion}; drop them.")


def one_hot(layer: Layer, rows: Sequence[int]) -> Tensor:
    """Return the rollout above the last layer: each row is itself, [batch, row, time]."""
    batch, _, time, _ = layer.query.shape
    weights = layer.logsumexp.new_zeros(batch, len(rows), time)
    weights[:, range(len(rows)), list(rows)] = 1.0
    return weights


def transition(
    layer: Layer, mask: Mask, shares: Tensor, head_fusion: str, discard_ratio: float
) -> Fuse:
    """Return the fusion of one layer's stripes, its discard threshold found."""
    fuse = fuse_heads(head_fusion, shares.to(layer.logsumexp.dtype))
    if discard_ratio == 0.0:
        return fuse
    thresholds = discard_thresholds(layer, mask, fuse, discard_ratio)
    return discard_below(fuse, thresholds, slack=tie_slack(layer))


def finish(weights: Tensor, *, normalise: bool) -> Rollout:
    """Return the rows with the mass that they lack, normalised where nothing was left out."""
    total = weights.sum(dim=-1)
    missing = (1.0 - total).clamp_min(0.0)
    return Rollout(weights / total[..., None] if normalise else weights, missing)


def _mean_step(
    layer: Layer,
    weights: Tensor,
    mask: Mask,
    *,
    shares: Tensor,
    residual_weight: float,
    prune: float,
    backend: str,
) -> Tensor:
    """Return ``ρ·w + (1-ρ)·Σ_h shares_h wᵀA_h``, the raw product's mass checked by head."""
    used = weights if prune == 0.0 else without_tail(weights, prune)
    kept = (used != 0).flatten(0, 1).any(dim=0)
    product = push(
        layer,
        used,
        mask,
        shares=shares.to(weights.dtype),
        backend=backend,
        kept=None if bool(kept.all()) else kept,
    )
    check_mass(product.mass, used.sum(dim=-1), mass_tolerance(layer))
    return residual_weight * weights + (1.0 - residual_weight) * product.fused


def without_tail(weights: Tensor, budget: float) -> Tensor:
    """Return *weights* with each row's smallest entries zeroed, together at most *budget*."""
    ordered, order = weights.sort(dim=-1)
    dropped = ordered.cumsum(dim=-1) <= budget
    return weights.masked_fill(dropped.new_zeros(dropped.shape).scatter_(-1, order, dropped), 0.0)


DEFAULT_OPTIONS: Final = RolloutOptions()


@explanation
def rollout_buckets(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    logsumexps: Sequence[Tensor],
    mask: Mask,
    options: RolloutOptions = DEFAULT_OPTIONS,
    *,
    bucket_bars: int = BLOCK_BARS,
    first_bucket_bars: int | None = None,
    backend: str = "auto",
) -> Rollout:
    """Return every row's rollout by bucket: weights [batch, time, bucket], oldest bucket first.

    The tensors are those of ``rollout_rows``. ``first_bucket_bars`` is the length of the oldest
    bucket where the sequence starts inside one, so that buckets can follow absolute time. With
    *backend* tiles torch computes alone, with auto compiled loops do where they are built. Raises
    ``AttentionInvalid`` on what does not fit and when a head does not keep its mass.
    """
    check_mask(mask)
    layers = check_layers(queries, keys, logsumexps, scale=options.scale)
    first = bucket_bars if first_bucket_bars is None else first_bucket_bars
    made = _rolled(layers, mask, options, bucket_bars=bucket_bars, first=first, backend=backend)
    ring, buckets = made.values.shape[2], int(made.bucket[-1]) + 1
    if ring == buckets:
        return finish(made.values, normalise=True)
    weights = made.values.new_zeros(*made.values.shape[:2], buckets)
    place = _places(made.bucket, ring)
    seen = (place >= 0).expand_as(made.values)
    weights.scatter_add_(
        2, place.clamp_min(0).expand_as(made.values), made.values.masked_fill(~seen, 0.0)
    )
    return finish(weights, normalise=True)


@explanation
def rollout_by_age(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    logsumexps: Sequence[Tensor],
    mask: Mask,
    options: RolloutOptions = DEFAULT_OPTIONS,
    *,
    bucket_bars: int = BLOCK_BARS,
    first_bucket_bars: int | None = None,
    backend: str = "auto",
) -> Rollout:
    """Return every row's rollout by age: weights [batch, time, age], the newest bucket first.

    Age 0 is the bucket that holds the row itself. Under a window there are only as many ages as
    a row can reach, so memory is linear in time where ``rollout_buckets`` returns a square. The
    arguments and errors are those of ``rollout_buckets``; a full mask, under which a row sees the
    future, is refused.
    """
    check_mask(mask)
    if mask.kind is MaskKind.FULL:
        raise AttentionInvalid(
            "A full mask looks both ways, so its rows have no age; use rollout_buckets."
        )
    layers = check_layers(queries, keys, logsumexps, scale=options.scale)
    first = bucket_bars if first_bucket_bars is None else first_bucket_bars
    made = _rolled(layers, mask, options, bucket_bars=bucket_bars, first=first, backend=backend)
    ring = made.values.shape[2]
    ages = torch.arange(ring, device=made.bucket.device)
    place = made.bucket[:, None] - ages  # [time, age]
    weights = made.values.gather(2, (place % ring).expand_as(made.values))
    return finish(weights.masked_fill_(place < 0, 0.0), normalise=True)


class _Rolled(NamedTuple):
    """Every row's rollout in a ring of buckets: bucket b is in column ``b % ring``."""

    values: Tensor  # [batch, time, ring]
    bucket: Tensor  # [time] int64: the bucket that holds each bar


def _rolled(
    layers: Sequence[Layer],
    mask: Mask,
    options: RolloutOptions,
    *,
    bucket_bars: int,
    first: int,
    backend: str,
) -> _Rolled:
    """Carry every row up through the layers; the oldest bucket holds *first* bars."""
    shares = check_options(layers, options)
    if bucket_bars < 1 or not 1 <= first <= bucket_bars:
        raise AttentionInvalid(
            f"Buckets of {bucket_bars} bars, the first of {first}, cannot be; give at least 1 bar "
            "and a first bucket that is no longer than the others."
        )
    batch, _, time, _ = layers[0].query.shape
    lead = bucket_bars - first
    bucket = (torch.arange(time, device=layers[0].query.device) + lead) // bucket_bars
    used = range(check_start(options.start_layer, len(layers)), len(layers))
    ring = int(bucket[-1]) + 1
    if mask.kind is MaskKind.WINDOW:
        # So many consecutive bars touch one bucket more than they fill.
        ring = min(ring, -(-len(used) * (mask.window_bars - 1) // bucket_bars) + 2)
    is_whole_ring = ring == int(bucket[-1]) + 1
    values = layers[0].logsumexp.new_zeros(batch, time, ring)
    values.scatter_(2, (bucket % ring)[:, None].expand(batch, -1, 1), 1.0)
    for depth, number in enumerate(used):
        layer = restate(layers[number], mask)
        known = values.to(layer.logsumexp.dtype)
        if options.head_fusion == "mean" and options.discard_ratio == 0.0:
            reach = _reach(mask, depth, time) if is_whole_ring else None
            values = _mean_step_of_all_rows(
                layer,
                known,
                mask,
                shares=shares[number],
                residual_weight=options.residual_weight,
                bars=(bucket_bars, lead, reach),
                backend=backend,
            )
        else:
            fuse = transition(
                layer, mask, shares[number], options.head_fusion, options.discard_ratio
            )
            values = step_forward(layer, known, mask, fuse, residual_weight=options.residual_weight)
    return _Rolled(values.to(layers[0].logsumexp.dtype), bucket)


def _places(bucket: Tensor, ring: int) -> Tensor:
    """Return the bucket in each column of a row's ring [time, ring]; below 0 where there is none.

    A row's columns hold its own bucket and the ``ring - 1`` before it.
    """
    column = torch.arange(ring, device=bucket.device)
    return bucket[:, None] - (bucket[:, None] - column) % ring


def _reach(mask: Mask, depth: int, time: int) -> int | None:
    """Return how many bars back a row can have looked after *depth* layers, None for any way."""
    match mask.kind:
        case MaskKind.FULL:
            return None if depth else 0
        case MaskKind.CAUSAL:
            return time if depth else 0
        case MaskKind.WINDOW:
            return depth * (mask.window_bars - 1)


def _mean_step_of_all_rows(
    layer: Layer,
    values: Tensor,
    mask: Mask,
    *,
    shares: Tensor,
    residual_weight: float,
    bars: tuple[int, int, int | None],
    backend: str,
) -> Tensor:
    """Return ``ρ·R + (1-ρ)·Σ_h shares_h A_h·R``, a tile of all heads at a time."""
    batch, heads, time, _ = layer.query.shape
    shares = (1.0 - residual_weight) * shares.to(values.dtype)
    tolerance = mass_tolerance(layer)
    if (loops := compiled.choose(layer) if backend == "auto" else None) is not None:
        made, masses = compiled.bucket_rows(layer, values, mask, shares, residual_weight, loops)
        check_mass(masses, masses.new_ones(batch, time), tolerance)
        return made
    laid = operand(layer)
    result = residual_weight * values
    for block in row_blocks(time, mask, rows_a_block=tile_rows(mask)):
        rows = slice(block.start, block.stop)
        for element in range(batch):
            pairs = slice(element * heads, (element + 1) * heads)
            mass = values.new_zeros(heads, block.size())
            for start, stop in key_tiles(block, TILE_BARS):
                entries = tile_probabilities(
                    laid.queries[pairs, rows],
                    laid.keys_by_dim[pairs, :, start:stop],
                    laid.minus_logsumexp[pairs, rows],
                )
                if not is_whole(block, mask, start, stop):
                    hide_(entries, block, mask, start)
                mass += entries.sum(dim=-1)
                mean = (shares @ entries.view(heads, -1)).view(block.size(), stop - start)
                columns = _columns(start, stop, bars)
                result[element, rows, columns].addmm_(mean, values[element, start:stop, columns])
            check_mass(mass[None], torch.ones_like(mass[:1]), tolerance)
    return result


def _columns(start: int, stop: int, bars: tuple[int, int, int | None]) -> slice:
    """Return the buckets in which the keys ``start`` … ``stop - 1`` can have any mass."""
    bucket_bars, lead, reach = bars
    if reach is None:
        return slice(None)
    return slice(
        (max(0, start - reach) + lead) // bucket_bars, (stop - 1 + lead) // bucket_bars + 1
    )
