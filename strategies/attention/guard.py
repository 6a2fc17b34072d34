"""The guard against NaN and infinity: it names the layer in which they first appear."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor, nn


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
