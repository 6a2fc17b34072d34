"""What each head does: its rows, its kind, and how much the heads differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from tracepaper.strategies.attention.checks import check_layer, check_rows
from tracepaper.strategies.attention.patterns import by_age, divergence
from tracepaper.strategies.attention.precision import check_mass, mass_tolerance, restate
from tracepaper.strategies.attention.tiles import key_span, operand
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.attention.masks import Mask

DIFFUSE_BELOW: Final = 0.05
"""A head whose confidence is lower spreads its attention evenly."""
EVENT_ABOVE: Final = 0.6
"""A head is event-driven where its rows agree on bars this much more than on ages."""
LOCAL_ABOVE: Final = 0.5
"""A head is local where this much of its mass lies in the newest sixteenth of what it sees."""
LOCAL_SHARE: Final = 1.0 / 16.0
PERIODIC_ABOVE: Final = 0.5
"""A head is periodic where its profile by age repeats itself with this correlation."""
_PERIODS_MIN: Final = 3
_ROWS_MIN: Final = 2
_MATRIX: Final = 2


class HeadKind(StrEnum):
    """What a head's attention follows."""

    LOCAL = "local"  # the last few bars
    PERIODIC = "periodic"  # bars at equal distances
    EVENT = "event-driven"  # certain bars, wherever they lie
    DIFFUSE = "diffuse"  # everything alike


class HeadReading(NamedTuple):
    """The figures behind a head's kind."""

    kind: HeadKind
    confidence: float
    local_mass: float
    period_bars: int  # 0 where nothing repeats
    period_correlation: float
    event_share: float  # of what rows have in common, the part that is tied to bars, not ages


def head_rows(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    rows: Sequence[int] | Tensor,
    mask: Mask,
    *,
    scale: float | None = None,
) -> Tensor:
    """Return the attention rows of each head: [batch, head, row, time], in O(rows · N).

    Shapes and errors are those of ``row_entropy``.
    """
    given = check_layer(query, key, logsumexp, scale=scale)
    layer = restate(given, mask)
    time = query.shape[2]
    wanted = check_rows(rows, time)
    laid = operand(layer)
    entries = torch.baddbmm(
        laid.minus_logsumexp[:, wanted], laid.queries[:, wanted], laid.keys_by_dim
    ).exp2_()
    for at, row in enumerate(wanted):
        start, stop = key_span(mask, row, row + 1, time)
        entries[:, at, :start] = 0.0
        entries[:, at, stop:] = 0.0
    mass = entries.sum(dim=-1)
    check_mass(mass[None], torch.ones_like(mass[:1]), mass_tolerance(layer))
    by_head: Tensor = entries.view(*query.shape[:2], len(wanted), time)
    return by_head.to(given.logsumexp.dtype)


def read_heads(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    logsumexps: Sequence[Tensor],
    rows: Sequence[int] | Tensor,
    mask: Mask,
) -> list[list[HeadReading]]:
    """Return what each head of the first batch element does: [layer][head].

    Arguments are those of ``rollout_rows``; *rows* are some dozens of bars that see equally many
    keys, as all do that lie a window or more from the start. Raises ``AttentionInvalid``.
    """
    wanted = check_rows(rows, queries[0].shape[2])
    counts = {mask.visible(row, queries[0].shape[2]) for row in wanted}
    if len(counts) != 1:
        raise AttentionInvalid(
            "Heads are read from rows that see equally many keys; give later rows."
        )
    visible = counts.pop()
    return [
        [read_head(one, wanted, visible) for one in head_rows(query, key, sums, wanted, mask)[0]]
        for query, key, sums in zip(queries, keys, logsumexps, strict=True)
    ]


def specialisation(rows: Tensor) -> Tensor:
    """Return how differently heads attend, 0 (all alike) to 1 (nothing in common): [batch, row].

    The generalised Jensen–Shannon divergence of the heads' rows [batch, head, row, time] over
    ``ln heads``; 0 for a single head.
    """
    heads = rows.shape[1]
    if heads == 1:
        return torch.zeros_like(rows[:, 0, :, 0])
    mixed: Tensor = torch.special.entr(rows.mean(dim=1))
    single: Tensor = torch.special.entr(rows)
    apart: Tensor = mixed.sum(dim=-1) - single.sum(dim=-1).mean(dim=1)
    return (apart / math.log(heads)).clamp(0.0, 1.0)


def read_head(weights: Tensor, rows: Sequence[int], visible: int) -> HeadReading:
    """Return what one head does, from its attention rows [row, time] at the bars *rows*.

    *visible* is how many keys each of the rows sees; give rows that see equally many, some dozens
    of them. Raise ``AttentionInvalid`` on fewer than two rows.
    """
    if weights.ndim != _MATRIX or len(rows) < _ROWS_MIN:
        raise AttentionInvalid("A head's kind is read from at least two rows of [row, time].")
    aged = by_age(weights, rows)[:, :visible].double()  # [row, age]
    entropy: Tensor = torch.special.entr(aged)
    confidence = 1.0 - float(entropy.sum(dim=-1).mean()) / math.log(max(2, visible))
    profile = aged.mean(dim=0)
    local_mass = float(profile[: max(1, round(LOCAL_SHARE * visible))].sum())
    period, correlation = _period(profile)
    event_share = _event_share(weights.double(), aged)
    if confidence < DIFFUSE_BELOW and correlation < PERIODIC_ABOVE:
        kind = HeadKind.DIFFUSE
    elif event_share > EVENT_ABOVE:
        kind = HeadKind.EVENT
    elif correlation >= PERIODIC_ABOVE:
        kind = HeadKind.PERIODIC
    else:
        kind = HeadKind.LOCAL if local_mass > LOCAL_ABOVE else HeadKind.DIFFUSE
    return HeadReading(kind, confidence, local_mass, period, correlation, event_share)


def _period(profile: Tensor) -> tuple[int, float]:
    """Return the distance at which a profile by age repeats best, and with what correlation.

    The first peak of the autocorrelation after it has fallen below zero; (0, 0.0) without one.
    """
    ages = len(profile)
    centred = profile - profile.mean()
    power = torch.fft.rfft(centred, n=2 * ages).abs().square()
    raw: Tensor = torch.fft.irfft(power)[: ages // _PERIODS_MIN]
    # Not corrected for the shrinking overlap, so that a period wins over its multiples.
    correlation = raw / raw[0].clamp_min(torch.finfo(raw.dtype).tiny)
    below = (correlation < 0).nonzero()
    if not len(below):
        return 0, 0.0
    first = int(below[0, 0])
    period = first + int(correlation[first:].argmax())
    return (period, float(correlation[period])) if correlation[period] > 0 else (0, 0.0)


def _event_share(weights: Tensor, aged: Tensor) -> float:
    """Return how much more alike rows are in absolute time than by age, 0 to 1.

    Consecutive rows of an event-driven head agree on bars, those of a local head on ages.
    """
    in_time = 1.0 - float(divergence(weights[:-1], weights[1:]).mean())
    in_age = 1.0 - float(divergence(aged[:-1], aged[1:]).mean())
    return in_time / (in_time + in_age) if in_time + in_age else 0.5
