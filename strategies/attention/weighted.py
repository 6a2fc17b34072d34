"""Rollout weighted by gradient or value norm, and attention flow.

Bare attention weights say how much was asked of a bar, not how much came of it. Both weighted forms
weigh each entry of the attention matrix, fuse the heads by their mean and normalise each row; a row
that is left without weight keeps itself. Neither stores a matrix.

Attention flow (Abnar and Zuidema, 2020, section 3) is a reference for small graphs: every bar of
every layer is a node, ``Ã_l`` gives the capacities of the edges to the layer below, and a row's
attribution of a bar is the maximum flow between the two. Cost grows with N³ a bar, so N is bounded.

The rules are docs/attention.md, A21 to A23.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import maximum_flow

from tracepaper.strategies.attention.checks import (
    AXES,
    Layer,
    check_head_weights,
    check_layers,
    check_mask,
    check_rows,
    check_share,
    check_start,
    check_tensors,
    explanation,
    is_finite,
    working_type,
)
from tracepaper.strategies.attention.masks import MaskKind
from tracepaper.strategies.attention.rollout import HeadWeights, Rollout, finish, one_hot
from tracepaper.strategies.attention.rollout_kernels import (
    Fuse,
    Stripe,
    fuse_heads,
    step_back,
    stripes,
)
from tracepaper.strategies.attention.tiles import check_mass, mass_tolerance, own_logsumexp, restate
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.attention.masks import Mask

_FusionOfLayer = Callable[[int, torch.dtype], Fuse]
_MATRIX = 2


@explanation
def gradient_rollout_rows(  # noqa: PLR0913
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    logsumexps: Sequence[Tensor],
    values: Sequence[Tensor],
    output_gradients: Sequence[Tensor],
    rows: Sequence[int] | Tensor,
    mask: Mask,
    *,
    residual_weight: float = 0.5,
    start_layer: int = 0,
    scale: float | None = None,
) -> Rollout:
    """Return the rollout of ``mean_h (∇A ⊙ A)⁺`` (Chefer, Gur and Wolf, 2021, arXiv:2103.15679).

    ``output_gradients`` are those of what is explained with respect to each layer's attention
    output ``A·V``, [batch, head, time, dim] as the values are; then ``∇A_ij = g_i·v_j``, so the
    gradient of the matrix is never stored either. Rows are normalised (the paper adds them to the
    identity as they are, which makes the result depend on the gradient's size). Raises
    ``AttentionInvalid`` as ``rollout_rows`` does.
    """
    layers = check_layers(queries, keys, logsumexps, scale=scale)
    for name, tensors in (("value", values), ("output gradient", output_gradients)):
        _check_companions(layers, tensors, name, axes=4)

    def fusion(number: int, kind: torch.dtype) -> Fuse:
        return fuse_by_gradient(values[number].to(kind), output_gradients[number].to(kind))

    return _roll(layers, rows, mask, fusion, residual_weight, start_layer)


def fuse_by_gradient(value: Tensor, gradient: Tensor) -> Fuse:
    """Return the fusion ``mean_h (∇A ⊙ A)⁺``, rows normalised; both [batch, head, time, dim]."""

    def fuse(stripe: Stripe) -> Tensor:
        slopes = stripe.block.take(gradient[stripe.element], 1)  # [head, row, dim]
        sensitivity = slopes @ value[stripe.element, :, stripe.keys].transpose(1, 2)
        return stripe.entries.mul_(sensitivity).clamp_min_(0.0).mean(dim=0)

    return _normalised(fuse)


@explanation
def norm_rollout_rows(  # noqa: PLR0913
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    logsumexps: Sequence[Tensor],
    norms: Sequence[Tensor],
    rows: Sequence[int] | Tensor,
    mask: Mask,
    *,
    residual_weight: float = 0.5,
    start_layer: int = 0,
    scale: float | None = None,
) -> Rollout:
    """Return the rollout of ``A_ij·‖f(x_j)‖`` (Kobayashi et al., 2020, arXiv:2004.10102).

    ``norms`` [batch, head, time] are the lengths of what each bar's value brings into the
    residual stream; ``value_norms`` computes them. Raises ``AttentionInvalid`` as
    ``rollout_rows`` does.
    """
    layers = check_layers(queries, keys, logsumexps, scale=scale)
    _check_companions(layers, norms, "value norm", axes=3)
    if any(bool((lengths < 0).any()) for lengths in norms):
        raise AttentionInvalid("A value norm is a length and cannot be negative; give norms.")

    def fusion(number: int, kind: torch.dtype) -> Fuse:
        return fuse_by_norm(norms[number].to(kind))

    return _roll(layers, rows, mask, fusion, residual_weight, start_layer)


def fuse_by_norm(lengths: Tensor) -> Fuse:
    """Return the fusion ``mean_h A_ij·‖f(x_j)‖``, rows normalised; lengths [batch, head, time]."""

    def fuse(stripe: Stripe) -> Tensor:
        weights = lengths[stripe.element, :, stripe.keys]
        return stripe.entries.mul_(weights[:, None]).mean(dim=0)

    return _normalised(fuse)


@explanation
def value_norms(value: Tensor, output_weight: Tensor) -> Tensor:
    """Return ``‖v_j·W_h‖`` [batch, head, time]: how far bar j moves the residual through head h.

    *value* is [batch, head, time, dim] and *output_weight* the output projection's
    [model, head * dim], as ``torch.nn.Linear`` stores it.
    """
    check_tensors(value=value, output_weight=output_weight)
    if value.ndim != AXES:
        raise AttentionInvalid(f"value is {list(value.shape)}; give [batch, head, time, dim].")
    _, heads, _, dim = value.shape
    if output_weight.ndim != _MATRIX or output_weight.shape[1] != heads * dim:
        raise AttentionInvalid(
            f"The output projection must take {heads * dim} inputs, not "
            f"{list(output_weight.shape)}; give the layer's own."
        )
    if not (is_finite(value) and is_finite(output_weight)):
        raise AttentionInvalid("value or output_weight has a NaN or infinite number; find it.")
    kind = working_type(value)
    value = value.to(kind)
    by_head = output_weight.to(kind).unflatten(1, (heads, dim))  # [model, head, dim]
    # ‖v·W‖² = v·(W·Wᵀ)·vᵀ with a [dim, dim] product a head: no [time, model] array a head.
    gram = torch.einsum("mhd,mhe->hde", by_head, by_head)
    squares = torch.einsum("bhtd,hde,bhte->bht", value, gram, value)
    return squares.clamp_min(0.0).sqrt()


def _check_companions(
    layers: Sequence[Layer], tensors: Sequence[Tensor], name: str, *, axes: int
) -> None:
    if isinstance(tensors, torch.Tensor) or len(tensors) != len(layers):
        raise AttentionInvalid(f"Give one {name} a layer: {len(layers)}, not {len(tensors)}.")
    for tensor in tensors:
        check_tensors(**{name: tensor})
    for number, (layer, tensor) in enumerate(zip(layers, tensors, strict=True)):
        shape = layer.query.shape[:3]
        if tensor.ndim != axes or tensor.shape[:3] != shape:
            raise AttentionInvalid(
                f"layer {number} needs its {name} over [batch, head, time] {list(shape)}, not "
                f"{list(tensor.shape)}."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise AttentionInvalid(f"layer {number} has a NaN or infinite {name}; find its source.")


def _roll(
    layers: Sequence[Layer],
    rows: Sequence[int] | Tensor,
    mask: Mask,
    fusion: _FusionOfLayer,
    residual_weight: float,
    start_layer: int,
) -> Rollout:
    """Carry the rows down through layers whose fused rows are normalised before mixing."""
    check_mask(mask)
    weights = one_hot(layers[0], check_rows(rows, layers[0].query.shape[2]))
    check_share(residual_weight, "residual_weight")
    for number in reversed(range(check_start(start_layer, len(layers)), len(layers))):
        layer = restate(layers[number], mask)
        kind = layer.logsumexp.dtype
        fuse = fusion(number, kind)
        weights = step_back(layer, weights.to(kind), mask, fuse, residual_weight=residual_weight)
    return finish(weights.to(layers[0].logsumexp.dtype), normalise=True)


def _normalised(fuse: Fuse) -> Fuse:
    """Return *fuse* with rows that sum to 1; a row without any weight keeps itself."""

    def fuse_and_normalise(stripe: Stripe) -> Tensor:
        fused = fuse(stripe)
        totals = fused.sum(dim=-1, keepdim=True)
        empty = (totals == 0)[:, 0].nonzero()[:, 0]
        fused /= totals.clamp_min(torch.finfo(fused.dtype).tiny)
        block = stripe.block
        own = empty + block.start if block.rows is None else block.rows[empty]
        fused[empty, own - block.key_start] = 1.0
        return fused

    return fuse_and_normalise


TIME_MAX: Final = 256
CAPACITY: Final = 1 << 22
"""Whole units of flow that a capacity of 1 stands for; the library's flows are 32-bit integers."""


@explanation
def attention_flow(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    logsumexps: Sequence[Tensor],
    rows: Sequence[int] | Tensor,
    mask: Mask,
    *,
    head_weights: HeadWeights | Tensor | None = None,
    residual_weight: float = 0.5,
    newest: int | None = None,
) -> Tensor:
    """Return each row's flow from every bar, normalised to sum to 1: float64 [batch, row, time].

    Shapes are those of ``rollout_rows``. A reference method: raises ``AttentionInvalid`` beyond
    ``TIME_MAX`` bars. Capacities are rounded to 1 / ``CAPACITY``. *newest* takes the last so many
    bars of longer sequences, and rows are counted among them: where no bar sees a later one, no
    path from a bar to another leads through an older one, so the flows are those of the whole.
    """
    check_mask(mask)
    layers = check_layers(queries, keys, logsumexps)
    batch, _, whole, _ = layers[0].query.shape
    time = whole if newest is None else min(newest, whole)
    if time < whole and mask.kind is MaskKind.FULL:
        raise AttentionInvalid(
            f"Attention flow among the newest {time} of {whole} bars needs a mask that looks back; "
            "use rollout."
        )
    wanted = check_rows(rows, time)
    check_share(residual_weight, "residual_weight")
    if time > TIME_MAX:
        raise AttentionInvalid(
            f"Attention flow of {time} bars would take too long; use at most {TIME_MAX} or rollout."
        )
    shares = check_head_weights(head_weights, layers).double()
    identity = torch.eye(time, dtype=torch.float64)
    mixed = [
        residual_weight * identity
        + (1.0 - residual_weight) * _fused(layer, mask, share, time).cpu()
        for layer, share in zip(layers, shares, strict=True)
    ]
    stacked = torch.stack(mixed, dim=1).numpy()  # [batch, layer, time, time]
    flows = np.array([[_row_flow(graph, row) for row in wanted] for graph in stacked])
    return torch.from_numpy(flows / flows.sum(axis=-1, keepdims=True)).view(batch, -1, time)


def _fused(layer: Layer, mask: Mask, share: Tensor, newest: int) -> Tensor:
    """Return the heads' weighted mean among the newest bars, float64 [batch, newest, newest]."""
    batch, _, time, _ = layer.query.shape
    first = time - newest
    exact = Layer(layer.query.double(), layer.key.double(), layer.logsumexp.double(), layer.scale)
    own = own_logsumexp(exact, mask)
    # The given one may be rounded to float32, and has to be that of these queries and keys.
    mass = (own - exact.logsumexp).exp()
    check_mass(mass, torch.ones_like(mass[:, 0]), mass_tolerance(layer))
    exact = exact._replace(logsumexp=own)
    fuse = fuse_heads("mean", share)
    found = share.new_zeros(batch, time, time - first)
    kept = torch.arange(time, device=share.device) >= first
    # A row's normaliser counts the bars before the newest as well.
    for stripe in stripes(exact, mask, kept=kept):
        block = stripe.block
        rows = slice(block.start, block.stop) if block.rows is None else block.rows
        start = max(0, first - block.key_start)
        columns = slice(max(0, block.key_start - first), max(0, block.key_stop - first))
        found[stripe.element, rows, columns] = fuse(stripe)[:, start:]
    return found[:, first:]


def _row_flow(matrices: np.ndarray[tuple[int, ...], np.dtype[np.float64]], row: int) -> list[int]:
    """Return the maximum flow from *row* above the last layer to each bar below the first."""
    layers, time, _ = matrices.shape
    graph = _graph(matrices)
    source = layers * time + row
    return [int(maximum_flow(graph, source, bar).flow_value) for bar in range(time)]


def _graph(matrices: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> csr_array:
    """Return the layered graph: node ``layer · time + bar``, edges from each layer to the next."""
    layers, time, _ = matrices.shape
    capacities = np.rint(matrices * CAPACITY).astype(np.int32)
    layer, query, key = np.nonzero(capacities)
    nodes = (layers + 1) * time
    edges = ((layer + 1) * time + query, layer * time + key)
    return csr_array(coo_array((capacities[layer, query, key], edges), shape=(nodes, nodes)))
