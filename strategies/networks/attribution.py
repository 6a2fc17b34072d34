"""Attention attribution of a window's last bar, by a chosen method.

``rollout`` with any of its options, rollout weighted by value norms or by gradients, and attention
flow: of every network that attends, over whole windows or by ProbSparse. What a layer's values and
outputs were is read where they enter and leave its projections.

The rules are docs/attention.md, A17 and A21 to A23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import singledispatch
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import torch
from torch import nn

from tracepaper.strategies.attention.checks import check_shares, check_start, working_type
from tracepaper.strategies.attention.linear import rollout_linearly
from tracepaper.strategies.attention.probsparse import (
    SparseRows,
    Stage,
    rollout_stages,
    sparse_stripes,
)
from tracepaper.strategies.attention.rollout import (
    Rollout,
    RolloutOptions,
    check_plain_options,
    rollout_rows,
)
from tracepaper.strategies.attention.rollout_kernels import (
    Fuse,
    discard_below,
    fuse_heads,
    smallest_kept,
)
from tracepaper.strategies.attention.weighted import (
    TIME_MAX,
    attention_flow,
    fuse_by_gradient,
    fuse_by_norm,
    gradient_rollout_rows,
    norm_rollout_rows,
    value_norms,
)
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid, DataInvalid
from tracepaper.strategies.networks.architecture import AttendedPart, Network
from tracepaper.strategies.networks.cross_timeframe import CrossNetwork
from tracepaper.strategies.networks.flash import FlashNetwork, Trace, explained_by
from tracepaper.strategies.networks.informer import InformerNetwork
from tracepaper.strategies.networks.linear import LinearNetwork

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.networks.architecture import Outputs

METHODS: Final[dict[str, tuple[str, ...]]] = {
    "rollout": tuple(one.name for one in fields(RolloutOptions) if one.name != "scale"),
    "norm": ("residual_weight", "start_layer"),
    "gradient": ("residual_weight", "start_layer"),
    "flow": ("residual_weight", "head_weights"),
}
"""Each method with the options that it takes."""
_TIE: Final = 1e-6
"""Fused entries of ProbSparse that differ by less, relatively, count as equal when discarding."""


@dataclass(frozen=True, slots=True)
class AttributionMethod:
    """A method with its options; as it stands, the rollout that is stored with a decision."""

    method: str = "rollout"
    options: RolloutOptions = field(default_factory=RolloutOptions)
    horizon: int | None = None
    """Bars ahead whose mean return a gradient is of; the first of a network that has no such."""

    def check(self) -> None:
        """Raise ``AttentionInvalid`` for no method, and for an option that it does not take."""
        if self.method not in METHODS:
            raise AttentionInvalid(
                f"There is no method {self.method!r}; choose one of {', '.join(METHODS)}."
            )
        usual = RolloutOptions()
        for name in (one.name for one in fields(RolloutOptions)):
            if name in METHODS[self.method]:
                continue
            if getattr(self.options, name) != getattr(usual, name):
                able = ", ".join(one for one, takes in METHODS.items() if name in takes)
                raise AttentionInvalid(
                    f"The method {self.method} takes no {name.replace('_', ' ')}; leave it out, or "
                    f"choose {able}."
                )


def refuse_way(way: AttributionMethod, kind: str) -> None:
    """Raise ``ConfigInvalid`` where a *way* is asked for of a model without attention."""
    if way != AttributionMethod():
        raise ConfigInvalid(
            f"A model of the kind {kind} has no attention to explain; take [model] explanation out."
        )


def head_weights(text: str) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
    """Return the weights that *text* gives: a number a head, or such a list for each layer.

    Numbers stand between commas, lists between slashes. Raises ``DataInvalid`` where it is none.
    """
    try:
        layers = tuple(tuple(float(one) for one in layer.split(",")) for layer in text.split("/"))
    except ValueError:
        raise DataInvalid(
            f"The head weights are {text[:40]!r}; give one number a head, as 1,0,0,0, or such a "
            "list for each layer with / between them."
        ) from None
    if len({len(layer) for layer in layers}) > 1:
        raise DataInvalid("Head weights must give each layer as many numbers as it has heads.")
    return layers[0] if len(layers) == 1 else layers


class BarAttribution(NamedTuple):
    """Where a bar looked: weights [1, 1, bars], their error [1, 1], and what it saw as one."""

    weights: Tensor
    l1_error: Tensor
    parts: tuple[AttendedPart, ...] = ()


class WatchedLayers(NamedTuple):
    """What each layer's projections took and gave."""

    values: list[Tensor]  # [batch, head, time, dim]
    outputs: list[Tensor]  # A·V as it went into the projection, [batch, rows, head * dim]
    weights: list[Tensor]  # of the projection of outputs, [model, head * dim]


def attribute_last_bar(
    network: Network, x: Tensor, positions: Tensor, way: AttributionMethod
) -> BarAttribution:
    """Return where the last bar of *x* [1, window, features] looked: weights [1, 1, bars].

    The bars are the newest of the window, oldest first: all of them, but ``TIME_MAX`` for the flow
    of a network that looks back only. Raises ``AttentionInvalid`` for a network without attention,
    and for what cannot be had.
    """
    way.check()
    if (inside := network.inner(x, positions)) is not None:
        seen = attribute_last_bar(inside.network, inside.x, inside.positions, way)
        weights, parts = inside.spread(seen.weights[0, 0])
        return BarAttribution(weights[None, None], seen.l1_error, parts)
    found = _attributed(network, x, positions, way)
    return found if isinstance(found, BarAttribution) else BarAttribution(*found)


@singledispatch
def _attributed(
    network: Network, x: Tensor, positions: Tensor, way: AttributionMethod
) -> Rollout | BarAttribution:
    """Return where the last bar looked, as each network that attends by itself says."""
    del x, positions, way
    raise AttentionInvalid(
        f"A {type(network).__name__} has no attention to look back through; ask its features."
    )


@_attributed.register(FlashNetwork)
def _(network: FlashNetwork, x: Tensor, positions: Tensor, way: AttributionMethod) -> Rollout:
    with torch.set_grad_enabled(way.method == "gradient"), watched(network) as layers:
        outputs, traces = network.trace(x, positions)
    slopes = _slopes(network, outputs, layers, way)
    with torch.no_grad():
        return _of_traces(network, traces, layers, slopes, way)


def _plain_options(way: AttributionMethod, name: str, *others: str) -> tuple[float, int]:
    """Return the residual and the start layer of a rollout over the heads' mean, or *others*.

    Raises ``AttentionInvalid`` where *way* asks for more.
    """
    residual, start = way.options.residual_weight, way.options.start_layer
    plain = RolloutOptions(residual_weight=residual, start_layer=start)
    if way.method not in {"rollout", *others} or way.options != plain:
        able = " or by ".join(("its rollout over the heads' mean", *others))
        raise AttentionInvalid(
            f"{name} is explained by {able}; leave all but the residual and the start layer out."
        )
    return residual, start


@_attributed.register(InformerNetwork)
def _(network: InformerNetwork, x: Tensor, positions: Tensor, way: AttributionMethod) -> Rollout:
    if network.decoder is not None:
        residual, start = _plain_options(way, "A decoder")
        with torch.no_grad():
            _, stages, decoder = network.trace_decoder(x, positions)
            return network.rollout(stages, decoder, residual_weight=residual, start_layer=start)
    with torch.set_grad_enabled(way.method == "gradient"), watched(network) as layers:
        outputs, stages = network.trace(x, positions)
    slopes = _slopes(network, outputs, layers, way)
    with torch.no_grad():
        return _of_stages(stages, layers, slopes, way)


@_attributed.register(LinearNetwork)
def _(network: LinearNetwork, x: Tensor, positions: Tensor, way: AttributionMethod) -> Rollout:
    """Return the rollout of linear attention: of the heads' mean, by its own sums."""
    residual, start = _plain_options(way, "Linear attention")
    with torch.inference_mode():
        _, layers = network.trace(x, positions)
        return rollout_linearly(
            layers,
            [x.shape[1] - 1],
            network.mask,
            residual_weight=residual,
            start_layer=start,
        )


@_attributed.register(CrossNetwork)
def _(
    network: CrossNetwork, x: Tensor, positions: Tensor, way: AttributionMethod
) -> BarAttribution:
    """Return the rollout through both timeframes, of the heads' mean or by the gradient."""
    residual, start = _plain_options(way, "Cross-attention", "gradient")
    by_gradient = way.method == "gradient"
    with torch.set_grad_enabled(by_gradient):
        seen = network.trace(x, positions)
    if by_gradient:
        seen = seen.by_gradient(_mean_return(network, seen.outputs, way))
    with torch.no_grad():
        first = check_start(start, network.config.layers)
        by_token = network.rollout(seen.steps()[2 * first :], residual_weight=residual)
        by_bar, parts = network.shared(by_token, seen.frame)
        return BarAttribution(by_bar[None, None], by_bar.new_zeros(1, 1), parts)


@contextmanager
def watched(network: Network) -> Iterator[WatchedLayers]:
    """Keep what the projections of every block take and give while the network runs."""
    kept, found = WatchedLayers([], [], []), network.watched_blocks()
    assert found is not None

    def entered(_module: nn.Module, _given: object, mixed: Tensor) -> None:
        value = mixed.unflatten(-1, (3, found.heads, -1))[..., 2, :, :]
        kept.values.append(value.transpose(1, 2).detach())

    def left(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        kept.outputs.append(given[0])
        kept.weights.append(cast("nn.Linear", module).weight.detach())

    hooks = []
    for block in found.blocks:
        entry, exit_ = (block.get_submodule(name) for name in ("project_in", "project_out"))
        hooks.append(entry.register_forward_hook(entered))
        hooks.append(exit_.register_forward_pre_hook(left))
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _slopes(
    network: Network, outputs: Outputs, layers: WatchedLayers, way: AttributionMethod
) -> list[Tensor]:
    """Return the gradient of the mean return with respect to each A·V, [1, head, time, dim].

    Empty for another method. The last layer of a network that computes the decided bar alone has
    slopes at that bar alone.
    """
    if way.method != "gradient":
        return []
    slopes = torch.autograd.grad(_mean_return(network, outputs, way), layers.outputs)
    found = []
    for slope, value in zip(slopes, layers.values, strict=True):
        whole = slope.new_zeros(1, value.shape[2], slope.shape[-1])
        whole[:, -slope.shape[1] :] = slope
        found.append(whole.unflatten(-1, (value.shape[1], -1)).transpose(1, 2))
    return found


def _mean_return(network: Network, outputs: Outputs, way: AttributionMethod) -> Tensor:
    """Return the last bar's mean return [] at the horizon that *way* takes the gradient of."""
    horizons = network.config.horizons
    return outputs.mean[0, -1, horizons.index(way.horizon) if way.horizon in horizons else 0]


def _of_traces(
    network: FlashNetwork,
    traces: Sequence[Trace],
    layers: WatchedLayers,
    slopes: list[Tensor],
    way: AttributionMethod,
) -> Rollout:
    queries = [trace.query for trace in traces]
    keys = [trace.key for trace in traces]
    sums = [trace.logsumexp for trace in traces]
    time = queries[0].shape[2]
    last, options = [time - 1], way.options
    residual, start = options.residual_weight, options.start_layer
    match way.method:
        case "norm":
            norms = [
                value_norms(value, weight)
                for value, weight in zip(layers.values, layers.weights, strict=True)
            ]
            return norm_rollout_rows(
                queries, keys, sums, norms, last, network.mask,
                residual_weight=residual, start_layer=start,
            )  # fmt: skip
        case "gradient":
            return gradient_rollout_rows(
                queries, keys, sums, layers.values, slopes, last, network.mask,
                residual_weight=residual, start_layer=start,
            )  # fmt: skip
        case "flow":
            newest = min(TIME_MAX, time)
            flow = attention_flow(
                queries, keys, sums, [newest - 1], network.mask,
                head_weights=options.head_weights, residual_weight=residual, newest=newest,
            )  # fmt: skip
            return Rollout(flow, flow.new_zeros(1, 1))
        case _:
            return rollout_rows(
                queries, keys, sums, last, network.mask,
                head_fusion=options.head_fusion, head_weights=options.head_weights,
                discard_ratio=options.discard_ratio, residual_weight=residual, start_layer=start,
                backend=explained_by(queries[0].device),
            )  # fmt: skip


def _of_stages(
    stages: Sequence[Stage], layers: WatchedLayers, slopes: list[Tensor], way: AttributionMethod
) -> Rollout:
    """Explain ProbSparse layers, whose matrices are some real rows and even ones."""
    attended = [stage for stage in stages if isinstance(stage, SparseRows)]
    options = way.options
    return rollout_stages(
        stages,
        [attended[-1].weights.shape[-1] - 1],
        residual_weight=options.residual_weight,
        start_layer=options.start_layer,
        fusion=_fusion_of_stages(attended, layers, slopes, way),
        dtype=working_type(attended[0].weights),
    )


def _fusion_of_stages(
    attended: Sequence[SparseRows],
    layers: WatchedLayers,
    slopes: list[Tensor],
    way: AttributionMethod,
) -> Callable[[int, SparseRows], Fuse] | None:
    """Return how the heads of each ProbSparse layer are fused; None for their mean as it is."""
    plain = RolloutOptions(
        residual_weight=way.options.residual_weight, start_layer=way.options.start_layer
    )
    match way.method:
        case "flow":
            raise AttentionInvalid(
                "Attention flow needs layers that all see the same bars and look back only, which "
                "ProbSparse with distilling does not; choose rollout, norm or gradient."
            )
        case "norm":
            norms = map(value_norms, layers.values, layers.weights)
            fusions = [fuse_by_norm(lengths) for lengths in norms]
        case "gradient":
            fusions = list(map(fuse_by_gradient, layers.values, slopes))
        case _ if way.options == plain:
            return None
        case _:
            return _sparse_fusion(attended, way.options)
    return lambda number, _rows: fusions[number]


def _sparse_fusion(
    attended: Sequence[SparseRows], options: RolloutOptions
) -> Callable[[int, SparseRows], Fuse]:
    """Return the fusion of each ProbSparse layer that *options* ask for; raise where none is."""
    check_plain_options(options)
    like = attended[0].weights
    shares = check_shares(
        options.head_weights,
        (len(attended), like.shape[1]),
        like=like.new_empty(0, dtype=working_type(like)),
    )

    def fusion(number: int, rows: SparseRows) -> Fuse:
        fuse = fuse_heads(options.head_fusion, shares[number])
        if options.discard_ratio == 0.0:
            return fuse
        time = rows.weights.shape[-1]
        edge = smallest_kept(
            lambda: sparse_stripes(rows, dtype=shares.dtype), fuse, options.discard_ratio,
            candidates=time * time, like=shares.new_empty(len(rows.weights)),
        )  # fmt: skip
        return discard_below(fuse, edge, slack=_TIE)

    return fusion
