"""Input checks of the explanations: one sentence for each invalid tensor.

``finite_layers`` is the guard against NaN and infinity: it names the layer in which they appear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from numbers import Real
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar, cast

import torch
from torch import nn

from .errors import AttentionInvalid
from .masks import FLOATS, WHOLE, Mask, check_tensor, whole
from .tiles import is_explaining, masses_checked_together

if TYPE_CHECKING:
    from torch import Tensor

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
    """Return *call* with autocast off, without gradients, and its masses checked together.

    A given logsumexp has no gradient, so gradients of results derived from it would be wrong.
    """

    @wraps(call)
    def together(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with masses_checked_together():
            return call(*args, **kwargs)

    outermost = exact(torch.no_grad()(together))

    @wraps(call)
    def explained(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return (call if is_explaining() else outermost)(*args, **kwargs)

    return explained


RULES: Final[list[nn.Module]] = []
"""The networks inside ``relevance_rules``, whose gradients are relevances."""


def ruled(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensors of one attention; for relevances, with constant query and key."""
    return (query.detach(), key.detach(), value) if RULES else (query, key, value)


def check_mask(mask: object) -> None:
    """Raise ``AttentionInvalid`` unless *mask* is a ``Mask``."""
    if not isinstance(mask, Mask):
        kind = "None" if mask is None else f"a {type(mask).__name__}"
        raise AttentionInvalid(
            f"The mask is {kind}; give Mask(), Mask.full() or Mask.window(bars)."
        )


def check_axes(
    given: Mapping[str, tuple[object, str]],
    sizes: Mapping[str, int] | None = None,
    *,
    kinds: Sequence[torch.dtype] = FLOATS,
    alike: Collection[str] | None = None,
) -> None:
    """Raise ``AttentionInvalid`` unless tensors are dense, fit their axes and share a device.

    *given* maps names to tensors and their axes, such as ``batch head key``. Axes with one name
    have one size, that of *sizes* if it is there, and none is empty. All types are among *kinds*;
    tensors named in *alike*, None for all, have the type of the first.
    """
    size_of = dict(sizes or {})
    first, (like, _) = next(iter(given.items()))
    for name, (tensor, text) in given.items():
        if isinstance(tensor, torch.Tensor) and isinstance(like, torch.Tensor):
            if tensor.device != like.device:
                raise AttentionInvalid(
                    f"{name} is on {tensor.device} and {first} on {like.device}; bring them "
                    "together."
                )
            if tensor.dtype != like.dtype and like.dtype in kinds and name in (alike or given):
                raise AttentionInvalid(f"{name} is {tensor.dtype}; give {like.dtype}.")
        check_tensor(name, tensor, kinds)
        assert isinstance(tensor, torch.Tensor)
        axes, shape = text.split(), list(tensor.shape)
        fits = len(axes) == len(shape) and 0 not in shape
        if not fits or any(size_of.get(*of) != of[1] for of in zip(axes, shape, strict=True)):
            wanted = ", ".join(
                f"{axis} {size_of[axis]}" if axis in size_of else axis for axis in axes
            )
            least = ", none of them 0" if 0 in shape else ""
            raise AttentionInvalid(f"{name} is {shape}; give [{wanted}]{least}.")
        size_of |= dict(zip(axes, shape, strict=True))


def working_type(tensor: Tensor) -> torch.dtype:
    """Return the type in which *tensor* is explained: float64 stays, all else is float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def check_rows(rows: Sequence[int] | Tensor, time: int, *, from_end: bool = False) -> list[int]:
    """Return *rows* as integers in [0, time); raise ``AttentionInvalid`` on any other.

    With *from_end* those below 0 count from the end.
    """
    if isinstance(rows, torch.Tensor):
        check_axes({"rows": (rows, "row")}, kinds=WHOLE)
        rows = rows.tolist()
    wanted = [whole(row, "Rows") for row in rows]
    if not wanted:
        raise AttentionInvalid("There is no row to explain; give at least one.")
    for row in wanted:
        if not (-time if from_end else 0) <= row < time:
            raise AttentionInvalid(
                f"Row {row} is out of range; the sequence holds rows 0 to {time - 1}."
            )
    return [row % time for row in wanted]


def check_share(value: float, name: str, *, below_one: bool = False) -> float:
    """Return *value*, a share in [0, 1] (or [0, 1)); raise ``AttentionInvalid`` otherwise."""
    is_share = isinstance(value, (int, float)) and 0.0 <= value <= 1.0
    if not is_share or (below_one and value == 1.0):
        bounds = "at least 0 and below 1" if below_one else "between 0 and 1"
        raise AttentionInvalid(f"{name} must be {bounds}, not {value!r}.")
    return value


def check_start(start_layer: int, layers: int) -> int:
    """Return *start_layer*; raise ``AttentionInvalid`` unless it is one of the layers."""
    if not 0 <= whole(start_layer, "start_layer") < layers:
        raise AttentionInvalid(
            f"start_layer {start_layer} leaves nothing to explain; choose 0 to {layers - 1}."
        )
    return start_layer


def check_shares(
    head_weights: Sequence[Sequence[float]] | Sequence[float] | Tensor | None,
    shape: tuple[int, int],
    *,
    like: Tensor,
) -> Tensor:
    """Return [layer, head] shares that sum to 1 a layer; equal shares for None.

    One list serves every layer; *like* sets type and device. Raise ``AttentionInvalid`` on a
    negative weight, a wrong count or a layer without weight.
    """
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
    if not bool(((shares >= 0) & (shares < math.inf) & (total > 0)).all()):
        raise AttentionInvalid("Head weights must be finite, not negative, and not all zero.")
    return shares / total


# --- the guard against NaN and infinity


def check_factor(number: object, name: str) -> float:
    """Return *number*, also one of NumPy, as a float that is finite and above 0.

    *name* is its name in the message. Raises ``AttentionInvalid`` for anything else.
    """
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if is_number and 0.0 < float(cast("float", number)) < math.inf:
        return float(cast("float", number))
    raise AttentionInvalid(f"{name} is {number!r}; it must be a finite number above 0.")


def is_finite(tensor: Tensor) -> bool:
    """Return whether every value is finite.

    A sum is cheap but can overflow for finite values; only then is each value checked.
    """
    values = tensor.detach()
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


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
    """Inside the block raise ``AttentionInvalid`` naming the first module with NaN or infinity.

    It costs one pass over each activation, so it is meant for diagnosis and the first steps of
    training.
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
