"""What the shape of a rollout says: locality, focus on events, stability, collapse, influence.

Pure functions of rollout rows. Recent mass and shift, which gates judge at every bar, are taken
by age over buckets in ``forecasters/measures.py``; a row here has one weight a bar.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

EVENT_BARS: Final = 8
"""How many bars may make up an event."""
EVENT_SHARE: Final = 0.25
"""The mass that so few distant bars must hold; spread evenly they would hold under 1 %."""
RECENT_SHARE: Final = 0.25
"""The newest quarter of the context is recent, the rest distant."""
_MATRIX: Final = 2


class Locality(NamedTuple):
    """How far back rows look, in bars: all are [..., row]."""

    mean_age: Tensor
    half_life: Tensor  # the smallest age within which half of the mass lies
    effective_bars: Tensor  # exp(entropy): as many bars with equal weights would be as spread out


class EventFocus(NamedTuple):
    """Whether rows rest on few distant bars."""

    share: Tensor  # [..., row] mass of the heaviest distant bars
    bars: Tensor  # [..., row, EVENT_BARS] which they are, heaviest first
    is_focused: Tensor  # [..., row]


def by_age(weights: Tensor, rows: Sequence[int]) -> Tensor:
    """Return rollout rows over age instead of time, the newest bar first: [..., row, time].

    *weights* is [..., row, time]; ``rows`` are the bars from which each row looks back. What is
    older than the first bar, or younger than the row, is zero.
    """
    time = weights.shape[-1]
    _require_rows(weights, rows)
    at = torch.as_tensor(list(rows), device=weights.device)[:, None]
    source = at - torch.arange(time, device=weights.device)  # [row, age]
    aged = weights.gather(-1, source.clamp_min(0).expand_as(weights))
    return aged.masked_fill(source < 0, 0.0)


def locality(aged: Tensor) -> Locality:
    """Return how local rows by age [..., row, age] are."""
    ages = torch.arange(aged.shape[-1], device=aged.device, dtype=aged.dtype)
    cumulative = aged.cumsum(dim=-1)
    reached = cumulative >= 0.5 * cumulative[..., -1:]
    entropy: Tensor = torch.special.entr(aged)
    return Locality(
        (aged * ages).sum(dim=-1), reached.int().argmax(dim=-1), entropy.sum(dim=-1).exp()
    )


def event_focus(aged: Tensor, context: int) -> EventFocus:
    """Return how much of rows by age rests on their ``EVENT_BARS`` heaviest distant bars.

    Distant is older than the newest quarter of *context*. A row is focused where those few bars
    hold at least ``EVENT_SHARE`` of all its mass: it looks at events, not at a stretch of time.
    """
    first = max(1, round(RECENT_SHARE * context))
    if aged.shape[-1] < first + EVENT_BARS:
        raise AttentionInvalid(
            f"A context of {context} bars has no distant part in rows of {aged.shape[-1]} bars; "
            "give longer rows."
        )
    heaviest = aged[..., first:].topk(EVENT_BARS, dim=-1)
    share = heaviest.values.sum(dim=-1)
    return EventFocus(share, heaviest.indices + first, share >= EVENT_SHARE)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return the Jensen–Shannon divergence of distributions [..., n] in bits, within [0, 1]."""
    middle = 0.5 * (first + second)
    entropy: Tensor = torch.special.entr(torch.stack([middle, first, second]))
    mixed, one, other = entropy.sum(dim=-1).unbind()
    nats: Tensor = mixed - 0.5 * (one + other)
    return (nats / math.log(2.0)).clamp(0.0, 1.0)


def stability(weights: Tensor) -> Tensor:
    """Return how alike consecutive rows [..., row, time] are: 1 less their mean JS distance.

    Rows in absolute time: an explanation is stable when a bar keeps its weight as time moves on.
    """
    if weights.shape[-2] < _MATRIX:
        raise AttentionInvalid("Stability compares rows; give at least two.")
    return 1.0 - divergence(weights[..., :-1, :], weights[..., 1:, :]).sqrt().mean(dim=-1)


def content_free_confidence(visible: int, slopes: Sequence[float] = ()) -> float:
    """Return the confidence that mask and encoding give when no score depends on content.

    *slopes* are ALiBi's, one a head; without them every visible key is alike and it is 0.
    """
    if visible <= 1 or not slopes:
        return 0.0
    ages = torch.arange(visible, dtype=torch.float64)
    rows = (-torch.tensor(list(slopes), dtype=torch.float64)[:, None] * ages).softmax(dim=-1)
    entropy: Tensor = torch.special.entr(rows)
    return float((1.0 - entropy.sum(dim=-1) / math.log(visible)).mean())


def collapse(confidence: Tensor, content_free: float) -> Tensor:
    """Return the confidence less the content-free value: what content adds.

    Near or below 0 the attention has collapsed to what mask and encoding alone would give.
    """
    return confidence - content_free


def feature_attribution(inputs: Tensor, gradient: Tensor, rollout: Tensor) -> Tensor:
    """Return each feature's share of |input × gradient|, bars weighted by the rollout: [feature].

    *inputs* and *gradient* (of the forecast with respect to the inputs) are [time, feature],
    *rollout* [time]. Shares sum to 1; all zero where no input moves the forecast.
    """
    if (
        inputs.ndim != _MATRIX
        or inputs.shape != gradient.shape
        or rollout.shape != inputs.shape[:1]
    ):
        raise AttentionInvalid(
            f"Give inputs and gradient as [time, feature] and a rollout of [time], not "
            f"{list(inputs.shape)}, {list(gradient.shape)} and {list(rollout.shape)}."
        )
    moved = rollout @ (inputs * gradient).abs()
    return moved / moved.sum().clamp_min(torch.finfo(moved.dtype).tiny)


def symbol_influence(
    weights: Tensor, row_symbols: Sequence[int], bar_symbols: Sequence[int]
) -> Tensor:
    """Return how much of each symbol's rows rests on each symbol's bars: [symbol, symbol].

    *weights* [row, time] are rollout rows over one sequence that holds the bars of several
    symbols; the lists number the symbol of each row and each bar. A row of the result sums to 1.
    """
    if weights.shape != (len(row_symbols), len(bar_symbols)):
        raise AttentionInvalid(
            f"Rows of {list(weights.shape)} need as many symbols: {weights.shape[0]} for rows and "
            f"{weights.shape[-1]} for bars."
        )
    count = max([*row_symbols, *bar_symbols]) + 1
    if set(row_symbols) != set(range(count)):
        raise AttentionInvalid(f"Number the symbols 0 to {count - 1} and give each at least a row.")
    rows = torch.nn.functional.one_hot(torch.tensor(list(row_symbols)), count).to(weights)
    bars = torch.nn.functional.one_hot(torch.tensor(list(bar_symbols)), count).to(weights)
    return (rows.T @ weights @ bars) / rows.sum(dim=0)[:, None]


def uniform_rollout(layers: int, window: int, *, residual_weight: float = 0.5) -> Tensor:
    """Return the rollout row by age that uniform window attention gives: float64 [age].

    A yardstick for tests and reports: ``layers`` convolutions of the same kernel.
    """
    kernel = torch.full((window,), (1.0 - residual_weight) / window, dtype=torch.float64)
    kernel[0] += residual_weight
    row = torch.ones(1, dtype=torch.float64)
    for _ in range(layers):
        row = torch.nn.functional.conv1d(
            row[None, None], kernel.flip(0)[None, None], padding=window - 1
        )[0, 0]
    return row


def context_of(mask: Mask, layers: int, time: int) -> int:
    """Return how many bars a row can draw on through *layers*: the receptive field."""
    if mask.kind is MaskKind.WINDOW:
        return min(time, layers * (mask.window_bars - 1) + 1)
    return time


def _require_rows(weights: Tensor, rows: Sequence[int]) -> None:
    if weights.ndim < _MATRIX or weights.shape[-2] != len(rows):
        raise AttentionInvalid(
            f"Weights of {list(weights.shape)} need one number a row, not {len(rows)} numbers."
        )
