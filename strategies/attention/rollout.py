"""Exact attention rollout of chosen rows: O(N·d) memory, no stored attention matrix.

``Ã_l = ρ·I + (1-ρ)·fuse_h A_l,h`` and ``R = Ã_L ··· Ã_1`` (Abnar and Zuidema, 2020,
arXiv:2005.00928). A row of R is a row vector carried down through the layers, and each step is a
product with one layer that ``products`` and ``fusion`` compute from query, key and logsumexp.

The rules are docs/attention.md, A5 to A8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from tracepaper.strategies.attention.checks import (
    Layer,
    check_head_weights,
    check_layers,
    check_mask,
    check_rows,
    check_share,
    check_start,
)
from tracepaper.strategies.attention.products import (
    Fuse,
    check_backend,
    discard_below,
    discard_thresholds,
    fuse_heads,
    push,
    step_back,
)
from tracepaper.strategies.attention.tiles import check_mass, mass_tolerance, restate, tie_slack
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.attention.masks import Mask

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
