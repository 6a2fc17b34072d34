"""Whether a network is in order: finite layers, heads that attend, and a gradient that flows.

What is asked is plain: the network runs forward over some rows with every module's output watched,
its heads are read at the last row of each, and one short backward pass from all outputs shows what
the parameters of each part receive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from tracepaper.strategies.attention.checks import finite_layers
from tracepaper.strategies.attention.methods import value_norms
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.networks.flash import FlashNetwork
from tracepaper.strategies.networks.informer import InformerNetwork
from tracepaper.strategies.networks.looked import watched
from tracepaper.strategies.networks.multiscale import MultiscaleNetwork
from tracepaper.strategies.networks.trading import TradingNetwork

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.networks.architecture import Network

ONE_BAR_ABOVE: Final = 0.98
"""A head whose confidence is above it at every row looked at has collapsed onto one bar."""
EVEN_BELOW: Final = 0.001
"""A head never further than this above the content-free confidence attends evenly."""
DEAD_BELOW: Final = 0.01
"""A head that moves the residual stream by less than this share of an equal part is dead."""
VANISHED_BELOW: Final = 1e-6
"""A part whose gradient, relative to its weights, is this share of the largest gets none."""
EXTREME: Final = 5.0
"""Features are clipped there, so no row that a network is given holds more."""


@dataclass(frozen=True)
class HeadCondition:
    """One head over the rows looked at; ``share`` is of its layer's output, None if unknown."""

    layer: int
    head: int
    confidence: float  # the mean of 1 - H / ln n
    lowest: float
    highest: float
    share: float | None
    fault: str = ""


@dataclass(frozen=True)
class GradientOfPart:
    """The gradient of the mean square of all outputs with respect to one part's parameters."""

    part: str
    parameters: int
    weights: float  # their root mean square
    gradient: float  # the same of their gradient
    fault: str = ""


@dataclass(frozen=True)
class Condition:
    """What was found; ``faults`` are sentences, and without one the network is in order."""

    rows: int
    windows: int
    heads: tuple[HeadCondition, ...]
    gradients: tuple[GradientOfPart, ...]
    faults: tuple[str, ...]


def examine(network: Network, windows: Sequence[tuple[Tensor, Tensor]]) -> Condition:
    """Return the condition of *network* over *windows*, each rows [1, time, features] at positions.

    Positions are int64 [time]. The parameters keep their gradients as they were: the network is
    run with copies of none, and what the backward pass wrote is returned and not kept.
    """
    network.eval()
    found = list(_not_finite(network, windows))
    if found:
        return Condition(windows[0][0].shape[1], len(windows), (), (), tuple(found))
    heads = tuple(_heads(network, windows)) if network.has_attention else ()
    gradients = tuple(_gradients(network, *windows[-1]))
    found += [f"Layer {one.layer}, head {one.head}: {one.fault}." for one in heads if one.fault]
    found += [f"{one.part}: {one.fault}." for one in gradients if one.fault]
    return Condition(windows[0][0].shape[1], len(windows), heads, gradients, tuple(found))


def _not_finite(network: Network, windows: Sequence[tuple[Tensor, Tensor]]) -> Iterator[str]:
    """Yield a sentence where a layer gives NaN or infinity: of the rows, or at their extremes."""
    rows, positions = windows[-1]
    signs = torch.ones_like(rows)
    signs[:, ::2] = -1.0
    extremes = {
        "rows that are all zero": torch.zeros_like(rows),
        f"rows at {EXTREME:g}": torch.full_like(rows, EXTREME),
        f"rows at {EXTREME:g} and -{EXTREME:g} in turn": EXTREME * signs,
    }
    cases = [("the rows", x, at) for x, at in windows]
    cases += [(name, x, positions) for name, x in extremes.items()]
    for name, x, at in cases:
        try:
            with torch.inference_mode(), finite_layers(network):
                network(x, at)
        except AttentionInvalid as error:
            yield f"Over {name}: {error}"
            return


@torch.no_grad()
def _heads(network: Network, windows: Sequence[tuple[Tensor, Tensor]]) -> Iterator[HeadCondition]:
    confidence = torch.stack([network.look(*window).confidence.double() for window in windows])
    shares = _shares(network, windows)
    even = network.content_free() + EVEN_BELOW
    for layer in range(confidence.shape[1]):
        for head in range(confidence.shape[2]):
            seen = confidence[:, layer, head]
            share = None if shares is None else float(shares[layer][head])
            low, high = float(seen.min()), float(seen.max())
            equal = 1.0 / confidence.shape[2]
            fault = ""
            if share is not None and share < DEAD_BELOW * equal:
                fault = f"it is dead, and moves {share:.2%} of its layer's output"
            elif low > ONE_BAR_ABOVE:
                fault = "it has collapsed onto one bar"
            elif high < even:
                fault = "it attends evenly, whatever the rows are"
            yield HeadCondition(layer, head, float(seen.mean()), low, high, share, fault)


def _shares(network: Network, windows: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor] | None:
    """Return each head's share of its layer's output by length, [head] a layer; None if unknown."""
    is_around = isinstance(network, MultiscaleNetwork | TradingNetwork)
    inner = network.trunk if is_around else network
    if not isinstance(inner, FlashNetwork | InformerNetwork):
        return None
    lengths: list[Tensor] = []
    for window in windows:
        with watched(inner) as layers:
            network(*window)
        for number, (output, weight) in enumerate(zip(layers.outputs, layers.weights, strict=True)):
            by_head = output.unflatten(-1, (inner.config.heads, -1)).transpose(1, 2)
            moved = value_norms(by_head, weight).mean(dim=(0, 2)).double()  # [head]
            if number == len(lengths):
                lengths.append(torch.zeros_like(moved))
            lengths[number] = lengths[number] + moved
    tiny = torch.finfo(torch.float64).tiny
    return [moved / moved.sum().clamp_min(tiny) for moved in lengths]


def _gradients(network: Network, rows: Tensor, positions: Tensor) -> Iterator[GradientOfPart]:
    """Yield what each part gets from one backward pass, in the order of the network."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    with torch.enable_grad():
        outputs = [one for one in network(rows, positions) if one is not None]
        loss = torch.stack([one[:, -1].float().square().mean() for one in outputs]).sum()
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, parameter, slope in zip(names, parameters, slopes, strict=True):
        given = torch.zeros_like(parameter) if slope is None else slope
        parts.setdefault(_part(name), []).append((parameter.detach(), given))
    measured = {
        part: (
            sum(one.numel() for one, _ in pairs),
            _root_mean_square([one for one, _ in pairs]),
            _root_mean_square([slope for _, slope in pairs]),
        )
        for part, pairs in parts.items()
    }
    tiny = torch.finfo(torch.float64).tiny
    relative = {part: found[2] / max(found[1], tiny) for part, found in measured.items()}
    largest = max(relative.values())
    for part, (count, weights, gradient) in measured.items():
        fault = ""
        if not gradient < float("inf"):
            fault = "its gradient is not finite"
        elif relative[part] <= VANISHED_BELOW * largest:
            fault = "no gradient reaches it"
        yield GradientOfPart(part, count, weights, gradient, fault)


def _part(name: str) -> str:
    """Return the part of a network that a parameter belongs to: its module, a layer by number."""
    words = name.split(".")
    numbers = [place for place, word in enumerate(words) if word.isdecimal()]
    return ".".join(words[: numbers[0] + 1] if numbers else words[:-1][:2] or words)


def _root_mean_square(tensors: Sequence[Tensor]) -> float:
    count = sum(one.numel() for one in tensors)
    total = sum(float(one.double().square().sum()) for one in tensors)
    return math.sqrt(total / count)
