"""Rollout through Informer's distilling layers: convolution, activation and pooling of time.

Pooling leaves rollout undefined without a convention. Ours makes each stage a row-stochastic map:
a pooled position rests on the bars in proportion to the channels whose maximum they gave, and a
convolved position on its taps in proportion to the length ``‖W_τ x_{n+τ}‖`` of what each brought.
Norm and activation work position by position and move nothing. Say so where it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from tracepaper.strategies.attention.checks import check_rows, check_share
from tracepaper.strategies.attention.probsparse import SparseRows, push_sparse
from tracepaper.strategies.attention.rollout import Rollout, finish
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor

TAPS: Final = 3
"""Kernel of the convolution and of the pooling; both are padded by one on each side."""
STRIDE: Final = 2


class Taps(NamedTuple):
    """A map between positions in time: row n rests on ``STEP·n - 1 + τ`` with ``shares`` τ.

    ``shares`` is [batch, row, TAPS] and sums to 1 over the taps; ``time`` is the length below.
    """

    shares: Tensor
    step: int
    time: int


Stage = SparseRows | Taps
"""One stage of an encoder, in forward order: attention with its residual, or a map of time."""


def convolution_taps(x: Tensor, weight: Tensor) -> Taps:
    """Return on which bars a padded convolution of three taps rests.

    *x* is its input [batch, time, channel], *weight* the kernel [out, channel, TAPS] as
    ``torch.nn.Conv1d`` stores it. A position that nothing reaches keeps itself.
    """
    x, weight = x.detach(), weight.detach()
    lengths = torch.stack(
        [torch.linalg.vector_norm(x @ weight[:, :, tap].T, dim=-1) for tap in range(TAPS)], dim=-1
    )  # [batch, bar, tap]: what each bar brings through each tap
    padded = torch.nn.functional.pad(lengths, (0, 0, 1, 1))
    time = x.shape[1]
    shares = torch.stack([padded[:, tap : tap + time, tap] for tap in range(TAPS)], dim=-1)
    totals = shares.sum(dim=-1, keepdim=True)
    itself = torch.zeros_like(shares)
    itself[..., 1] = 1.0
    tiny = torch.finfo(shares.dtype).tiny
    return Taps(torch.where(totals > 0, shares / totals.clamp_min(tiny), itself), 1, time)


def pooling_taps(chosen: Tensor, time: int) -> Taps:
    """Return on which bars a max-pooling of three taps and stride two rests.

    *chosen* [batch, channel, row] are the indices that ``max_pool1d`` returns for an input of
    *time* bars: a bar's share is that of the channels whose maximum it gave.
    """
    first = STRIDE * torch.arange(chosen.shape[2], device=chosen.device) - 1
    tap = chosen - first  # [batch, channel, row], 0 to TAPS - 1
    shares = torch.nn.functional.one_hot(tap, TAPS).double().mean(dim=1)
    return Taps(shares, STRIDE, time)


def push_taps(taps: Taps, weights: Tensor) -> Tensor:
    """Return row weights [batch, row, position] carried to the bars below: [batch, row, time]."""
    positions = weights.shape[-1]
    result = weights.new_zeros(*weights.shape[:-1], taps.time + 2)  # one bar of padding each side
    spread = weights[..., None] * taps.shares.to(weights.dtype)[:, None]
    last = taps.step * (positions - 1) + 1
    for tap in range(TAPS):
        result[..., tap : tap + last : taps.step] += spread[..., tap]
    return result[..., 1:-1]


def stage_time(stage: Stage) -> tuple[int, int]:
    """Return how many positions a stage has above and below."""
    if isinstance(stage, Taps):
        return stage.shares.shape[1], stage.time
    return stage.weights.shape[-1], stage.weights.shape[-1]


def rollout_stages(
    stages: Sequence[Stage],
    rows: Sequence[int] | Tensor,
    *,
    residual_weight: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> Rollout:
    """Return the rollout of *rows* above the last stage over all bars below the first.

    Weights are [batch, row, time] in *dtype*. Raises ``AttentionInvalid`` on stages or rows that
    do not fit, and when a stage does not keep its mass.
    """
    if not stages:
        raise AttentionInvalid("There is no stage to explain; give at least one.")
    check_share(residual_weight, "residual_weight")
    for lower, upper in pairwise(stages):
        if stage_time(lower)[0] != stage_time(upper)[1]:
            raise AttentionInvalid(
                f"A stage of {stage_time(lower)[0]} positions lies below one of "
                f"{stage_time(upper)[1]}; give the stages of one forward pass in order."
            )
    top = stages[-1]
    first = top.shares if isinstance(top, Taps) else top.weights
    wanted = check_rows(rows, stage_time(top)[0])
    weights = torch.zeros(
        first.shape[0], len(wanted), stage_time(top)[0], dtype=dtype, device=first.device
    )
    weights[:, range(len(wanted)), wanted] = 1.0
    for stage in reversed(stages):
        if isinstance(stage, Taps):
            weights = push_taps(stage, weights)
        else:
            product = push_sparse(stage, weights)
            weights = residual_weight * weights + (1.0 - residual_weight) * product.fused
    rollout = finish(weights, normalise=True)
    lost = float((1.0 - weights.sum(dim=-1)).abs().max())
    if not lost <= torch.finfo(dtype).eps * 1e4:
        raise AttentionInvalid(
            f"The distilling stages lost {lost:.3g} of the attention mass; give the taps of the "
            "same forward pass."
        )
    return rollout
