"""Input checks of the explanations: one sentence for each invalid tensor.

``finite_layers`` is the guard against NaN and infinity: it names the layer in which they appear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Final, NamedTuple, ParamSpec, TypeVar

import torch

from tracepaper.strategies.attention.masks import Mask, whole
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor, nn

DTYPES: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""The types that attention takes; half types are explained in float32."""
AXES = 4
"""[batch, head, time, dim]."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def exact(call: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return *call* with autocast off: products are those of the tensors' own types."""

    @wraps(call)
    def without_autocast(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():  # an export records no autocast
            return call(*args, **kwargs)
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return call(*args, **kwargs)

    return without_autocast


def explanation(call: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return *call* with autocast off and without gradients.

    A given logsumexp carries none, so the gradient of what is derived from it would be wrong.
    """
    return exact(torch.no_grad()(call))


class Layer(NamedTuple):
    """One layer's attention as the forward pass left it, with the scale of its products.

    ``query`` and ``key`` are [batch, head, time, dim] as given; ``logsumexp`` is
    [batch, head, time] in natural logarithms and in the type of all results: float64 for float64
    inputs, else float32.
    """

    query: Tensor
    key: Tensor
    logsumexp: Tensor
    scale: float
    largest: float | None = None
    """The largest |score| that the norms of query and key allow, where it was asked."""


def check_mask(mask: object) -> None:
    """Raise ``AttentionInvalid`` for what is no mask."""
    if not isinstance(mask, Mask):
        kind = "None" if mask is None else f"a {type(mask).__name__}"
        raise AttentionInvalid(
            f"The mask is {kind}; give Mask.full(), Mask.causal() or Mask.window(bars)."
        )


def check_tensors(**tensors: object) -> None:
    """Raise ``AttentionInvalid`` for what is no tensor, by its name."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise AttentionInvalid(f"{name} is a {type(tensor).__name__}; give a torch tensor.")


def working_type(tensor: Tensor) -> torch.dtype:
    """Return the type in which *tensor* is explained: float64 stays, all else is float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def check_layers(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    logsumexps: Sequence[Tensor],
    *,
    scale: float | None = None,
) -> list[Layer]:
    """Return the layers in their working type; raise ``AttentionInvalid`` on a misfit.

    ``scale`` is the factor of q·k, by default ``dim ** -0.5`` as in every kernel.
    """
    if isinstance(queries, torch.Tensor) or not len(queries) == len(keys) == len(logsumexps):
        raise AttentionInvalid(
            "Give one query, one key and one logsumexp a layer, as three sequences of one length."
        )
    if not queries:
        raise AttentionInvalid("There is no layer to explain; give at least one.")
    layers = [
        check_layer(query, key, logsumexp, scale=scale, name=f"layer {number}")
        for number, (query, key, logsumexp) in enumerate(
            zip(queries, keys, logsumexps, strict=True)
        )
    ]
    for number, layer in enumerate(layers):
        if (wanted := layers[0].logsumexp).shape != layer.logsumexp.shape:
            raise AttentionInvalid(
                f"layer {number} has [batch, head, time] {list(layer.logsumexp.shape)}, layer 0 "
                f"{list(wanted.shape)}; all layers must agree."
            )
        if wanted.device != layer.logsumexp.device or wanted.dtype != layer.logsumexp.dtype:
            raise AttentionInvalid(
                f"layer {number} is {layer.query.dtype} on {layer.query.device}, layer 0 "
                f"{layers[0].query.dtype} on {wanted.device}; move them to one device and type."
            )
    return layers


def check_layer(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    *,
    scale: float | None = None,
    name: str = "the layer",
) -> Layer:
    """Return one layer in its working type; raise ``AttentionInvalid`` on a misfit."""
    check_tensors(query=query, key=key, logsumexp=logsumexp)
    if query.ndim != AXES or key.ndim != AXES:
        raise AttentionInvalid(
            f"{name} needs query and key as [batch, head, time, dim], not "
            f"{list(query.shape)} and {list(key.shape)}."
        )
    if query.shape != key.shape:
        raise AttentionInvalid(
            f"{name} has query {list(query.shape)} but key {list(key.shape)}; self-attention "
            "needs equal shapes, so repeat grouped heads first."
        )
    if 0 in query.shape:
        raise AttentionInvalid(f"{name} is empty: {list(query.shape)}; give at least one bar.")
    if logsumexp.shape != query.shape[:-1]:
        raise AttentionInvalid(
            f"{name} needs logsumexp {list(query.shape[:-1])}, not {list(logsumexp.shape)}; cut "
            "the padding that some kernels add."
        )
    _check_kind(query, key, logsumexp, name)
    kind = working_type(query)
    if scale is None:
        scale = float(query.shape[-1] ** -0.5)
    if not 0.0 < scale < float("inf"):
        raise AttentionInvalid(f"The scale must be a positive number, not {scale}.")
    tensors = {"query": query, "key": key, "logsumexp": logsumexp}
    totals = [tensor.detach().sum() for tensor in tensors.values()]
    # Together, so that a device is asked once for what is known of a layer.
    *sums, one, other = torch.stack([*(x.double() for x in totals), *_longest(query, key)]).tolist()
    for (label, tensor), total in zip(tensors.items(), sums, strict=True):
        if not (math.isfinite(total) or bool(torch.isfinite(tensor).all())):
            raise AttentionInvalid(f"{name} has a NaN or infinite {label}; look for its source.")
    return Layer(query, key, logsumexp.to(kind), scale, abs(scale) * one * other)


def largest_score(layer: Layer) -> float:
    """Return the largest |score| that the layer's norms allow (Cauchy and Schwarz)."""
    if layer.largest is not None:
        return layer.largest
    one, other = torch.stack(_longest(layer.query, layer.key)).tolist()
    return abs(layer.scale) * float(one) * float(other)


def _longest(query: Tensor, key: Tensor) -> list[Tensor]:
    """Return the norms of the longest query and key, float64 []."""
    kind = working_type(query)
    return [
        torch.linalg.vector_norm(x.detach(), dim=-1, dtype=kind).amax().double()
        for x in (query, key)
    ]


def _check_kind(query: Tensor, key: Tensor, logsumexp: Tensor, name: str) -> None:
    tensors = {"query": query, "key": key, "logsumexp": logsumexp}
    for label, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise AttentionInvalid(f"{name} has a {label} of {tensor.dtype}; give a float type.")
        if tensor.device != query.device:
            raise AttentionInvalid(
                f"{name} has its query on {query.device} but its {label} on {tensor.device}; move "
                "them to one device."
            )
    if query.dtype != key.dtype:
        raise AttentionInvalid(
            f"{name} has a query of {query.dtype} and a key of {key.dtype}; give one type."
        )


def check_rows(rows: Sequence[int] | Tensor, time: int) -> list[int]:
    """Return *rows* as integers in [0, time); raise ``AttentionInvalid`` on any other."""
    if isinstance(rows, torch.Tensor):
        if rows.is_floating_point() or rows.dtype == torch.bool or rows.ndim != 1:
            raise AttentionInvalid(f"Rows are a list of whole numbers, not a {rows.dtype} tensor.")
        rows = rows.tolist()
    if not isinstance(rows, Iterable):
        raise AttentionInvalid(f"Rows are a list of whole numbers, not {rows!r}.")
    wanted = [whole(row, "Rows") for row in rows]
    if not wanted:
        raise AttentionInvalid("There is no row to explain; give at least one.")
    for row in wanted:
        if not 0 <= row < time:
            raise AttentionInvalid(
                f"Row {row} is out of range; the sequence holds rows 0 to {time - 1}."
            )
    return wanted


def check_share(value: float, name: str, *, below_one: bool = False) -> float:
    """Return *value* if it is a share in [0, 1] (or [0, 1)); raise ``AttentionInvalid`` else."""
    if not 0.0 <= value <= 1.0 or (below_one and value == 1.0):
        bounds = "at least 0 and below 1" if below_one else "between 0 and 1"
        raise AttentionInvalid(f"{name} must be {bounds}, not {value}.")
    return value


def check_start(start_layer: int, layers: int) -> int:
    """Return *start_layer* if a layer is left above it; raise ``AttentionInvalid`` else."""
    if not 0 <= start_layer < layers:
        raise AttentionInvalid(
            f"start_layer {start_layer} leaves nothing to explain; choose 0 to {layers - 1}."
        )
    return start_layer


def check_head_weights(
    head_weights: Sequence[Sequence[float]] | Sequence[float] | Tensor | None,
    layers: Sequence[Layer],
) -> Tensor:
    """Return [layer, head] shares that sum to 1 a layer; equal shares for None.

    One list serves every layer. Raise ``AttentionInvalid`` on a negative weight, a wrong count
    or a layer without weight.
    """
    like = layers[0].logsumexp
    return check_shares(head_weights, (len(layers), like.shape[1]), like=like)


def check_shares(
    head_weights: Sequence[Sequence[float]] | Sequence[float] | Tensor | None,
    shape: tuple[int, int],
    *,
    like: Tensor,
) -> Tensor:
    """Return shares of *shape* [layer, head], of the type and device of *like*, as above."""
    if head_weights is None:
        return torch.full(shape, 1.0 / shape[1], dtype=like.dtype, device=like.device)
    shares = torch.as_tensor(head_weights, dtype=like.dtype, device=like.device)
    if shares.ndim == 1:
        shares = shares.expand(shape[0], -1)
    if shares.shape != shape:
        raise AttentionInvalid(
            f"Give {shape[1]} head weights, or {shape[0]} lists of them, not {list(shares.shape)}."
        )
    total = shares.sum(dim=1, keepdim=True)
    if (
        not bool(torch.isfinite(shares).all())
        or bool((shares < 0).any())
        or bool((total == 0).any())
    ):
        raise AttentionInvalid("Head weights must be finite, not negative, and not all zero.")
    return shares / total


# --- the guard against NaN and infinity


def check_products(query: Tensor, key: Tensor, scale: float, **others: Tensor) -> list[float]:
    """Return the largest absolute value of *query*, *key* and *others*, all of them finite.

    Raises ``AttentionInvalid`` for a value or a scale that is not finite, and where ``scale·q·k``
    may be beyond the type in which it is summed: a softmax of infinities is NaN, or silently 0.
    """
    if not math.isfinite(scale):
        raise AttentionInvalid(f"The scale is {scale}; give a finite number.")
    tensors = {"query": query, "key": key, **others}
    ends = [torch.stack(torch.aminmax(x.detach())).abs().amax() for x in tensors.values()]
    # Together, so that a device is asked once.
    largest: list[float] = torch.stack(ends).double().tolist()
    for name, size in zip(tensors, largest, strict=True):
        if not math.isfinite(size):
            raise AttentionInvalid(
                f"{name} holds a value that is not finite; find the layer or feature it came from."
            )
    kind = working_type(query)
    if max(1.0, abs(scale)) * query.shape[-1] * largest[0] * largest[1] > torch.finfo(kind).max:
        raise AttentionInvalid(
            f"query and key are as large as {largest[0]:.3g} and {largest[1]:.3g}, and their "
            f"products can overflow {kind}; scale them down."
        )
    return largest


def is_finite(tensor: Tensor) -> bool:
    """Return whether every value is finite.

    A sum is cheap; it overflows for large finite values too, so only then is each looked at.
    """
    seen = tensor.detach()
    return bool(torch.isfinite(seen.sum())) or bool(torch.isfinite(seen).all())


def require_finite(tensor: Tensor, place: str) -> Tensor:
    """Return *tensor*; raise ``AttentionInvalid`` naming *place* if a value is not finite."""
    if not bool(torch.isfinite(tensor).all()):
        kind = "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
        raise AttentionInvalid(
            f"{place} produced {kind}; check its weights and the features that reached it."
        )
    return tensor


@contextmanager
def finite_layers(network: nn.Module) -> Iterator[None]:
    """Check every module's output inside the block; the first that is not finite is named.

    Costs one pass over each activation, so it is meant for diagnosis and for training's first
    steps. Raises ``AttentionInvalid``.
    """

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def check(_module: nn.Module, _inputs: object, output: object) -> None:
            for tensor in _tensors(output):
                require_finite(tensor, f"Layer {name or 'output'} ({type(module).__name__})")

        return module.register_forward_hook(check)

    handles = [watch(name, module) for name, module in network.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: object) -> Iterator[Tensor]:
    """Yield the floating tensors of a module's output, through tuples and dictionaries."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
