"""Head analysis of attention and rollout rows: locality, stability, collapse, kinds of heads.

These are pure functions of rows that hold one weight per bar. ``time_buckets`` computes recent mass
and shift, which the gates check at every bar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from tracepaper.strategies.attention.checks import check_axes, explanation
from tracepaper.strategies.attention.masks import check_tensor
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.units import percent

if TYPE_CHECKING:
    from torch import Tensor

EVENT_BARS: Final = 8
"""The number of bars that together count as an event."""
EVENT_SHARE: Final = 0.25
"""The least mass of a focused row on its event bars; uniform attention gives them under 1 %."""
RECENT_SHARE: Final = 0.25
"""The newest quarter of the context is recent, the rest distant."""
_MATRIX: Final = 2


class Locality(NamedTuple):
    """How far back rows attend, in bars: all are [..., row]."""

    mean_age: Tensor
    half_life: Tensor  # the smallest age within which half of the mass lies
    effective_bars: Tensor  # exp(entropy): the number of equally weighted bars with this entropy


def rows_by_age(weights: Tensor, rows: Sequence[int]) -> Tensor:
    """Return rollout rows over age instead of time, the newest bar first: [..., row, time].

    *weights* is [..., row, time]; ``rows`` are the bars from which each row looks back. The weight
    of an age before the first bar is zero.
    """
    check_tensor("weights", weights)
    time = weights.shape[-1]
    if weights.shape[-2] != len(rows):
        raise AttentionInvalid(f"There are {len(rows)} rows for {weights.shape[-2]} of weights.")
    at = torch.as_tensor(list(rows), device=weights.device)[:, None]
    source = at - torch.arange(time, device=weights.device)  # [row, age]
    by_age = weights.gather(-1, source.clamp_min(0).expand_as(weights))
    return by_age.masked_fill(source < 0, 0.0)


def locality(by_age: Tensor) -> Locality:
    """Return the locality of rows by age [..., row, age]."""
    ages = torch.arange(by_age.shape[-1], device=by_age.device, dtype=by_age.dtype)
    cumulative = by_age.cumsum(dim=-1)
    reached = cumulative >= 0.5 * cumulative[..., -1:]
    entropy: Tensor = torch.special.entr(by_age)
    return Locality(
        (by_age * ages).sum(dim=-1), reached.int().argmax(dim=-1), entropy.sum(dim=-1).exp()
    )


def event_focus(by_age: Tensor, context: int) -> Tensor:
    """Return the mass [..., row] of rows by age on their ``EVENT_BARS`` heaviest distant bars.

    Distant means older than the newest quarter of *context*. A row with at least ``EVENT_SHARE`` on
    these bars is focused: it attends to events, not to a span of time.
    """
    first = max(1, round(RECENT_SHARE * context))
    return by_age[..., first:].topk(EVENT_BARS, dim=-1).values.sum(dim=-1)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return the Jensen–Shannon divergence of distributions [..., n] in bits, within [0, 1]."""
    middle = 0.5 * (first + second)
    entropy: Tensor = torch.special.entr(torch.stack([middle, first, second]))
    mixed, left, right = entropy.sum(dim=-1).unbind()
    nats: Tensor = mixed - 0.5 * (left + right)
    return (nats / math.log(2.0)).clamp(0.0, 1.0)


def stability(weights: Tensor) -> Tensor:
    """Return the similarity of consecutive rows [..., row, time]: 1 minus their mean JS distance.

    Rows are in absolute time: an explanation is stable if a bar keeps its weight as time passes.
    """
    return 1.0 - divergence(weights[..., :-1, :], weights[..., 1:, :]).sqrt().mean(dim=-1)


def content_free_confidence(visible: int, slopes: Sequence[float] = ()) -> float:
    """Return the confidence that mask and encoding give when no score depends on content.

    *slopes* are ALiBi's, one per head; without them attention is uniform and the confidence is 0.
    """
    if visible <= 1 or not slopes:
        return 0.0
    ages = torch.arange(visible, dtype=torch.float64)
    rows = (-torch.tensor(list(slopes), dtype=torch.float64)[:, None] * ages).softmax(dim=-1)
    entropy: Tensor = torch.special.entr(rows)
    return float((1.0 - entropy.sum(dim=-1) / math.log(visible)).mean())


@explanation
def feature_attribution(inputs: Tensor, gradient: Tensor, rollout: Tensor) -> Tensor:
    """Return each feature's share of |input × gradient|, bars weighted by the rollout: [feature].

    *inputs* and *gradient* (of the forecast with respect to the inputs) are [time, feature],
    *rollout* [time]. Shares sum to 1; all zero where no input moves the forecast.
    """
    both = {"inputs": (inputs, "time feature"), "gradient": (gradient, "time feature")}
    check_axes({**both, "rollout": (rollout, "time")})
    moved = rollout @ (inputs * gradient).abs()
    return moved / moved.sum().clamp_min(torch.finfo(moved.dtype).tiny)


DIFFUSE_BELOW: Final = 0.05
"""A head with a lower confidence attends almost evenly."""
EVENT_ABOVE: Final = 0.6
"""A head is event-driven if its event share is higher."""
LOCAL_ABOVE: Final = 0.5
"""A head is local if more of its mass lies in the newest sixteenth of its window."""
LOCAL_SHARE: Final = 1.0 / 16.0
PERIODIC_ABOVE: Final = 0.5
"""A head is periodic if its profile by age repeats with at least this autocorrelation."""
STABLE_ABOVE: Final = 0.5
"""A head is stable if the similarity of its consecutive rows is at least this."""
SEPARATION_ABOVE: Final = 0.2
"""A head is apart if it differs by at least so many bits from the mean of its layer's others."""
TIED_ABOVE: Final = 0.3
"""A head is tied to volume or volatility if its rank correlation with it is at least this."""
EXTREME_SHARE: Final = 1.0 / 64.0
"""The share of bars, those with the largest moves, that count as extreme."""
EXTREME_ABOVE: Final = 4.0
"""A head is tied to extremes if it attends to them this many times as much as to all bars."""
TIED_P: Final = 0.01
"""A tie is significant if at most this share of the circular shifts agrees as well."""
_TIED_BARS: Final = 64
_NEAR_SHIFTS: Final = 20  # shifts below this fraction of the bars resemble the series itself
_ALIKE_LEAST: Final = 0.1
_PERIODS_MIN: Final = 3
_ROWS_MIN: Final = 2
LEGEND: Final = (
    f"A diffuse head has a confidence below {DIFFUSE_BELOW:g} and repeats nothing. The rows of an "
    f"event-driven head agree on bars rather than ages (event share above {EVENT_ABOVE:g}). The "
    "profile by age of a periodic head repeats with a correlation of at least "
    f"{PERIODIC_ABOVE:g}. A local head has more than {percent(LOCAL_ABOVE, 0)} of its mass in "
    f"the newest sixteenth. Focused: at least {percent(EVENT_SHARE, 0)} on {EVENT_BARS} bars older "
    f"than the newest quarter. Stable: a stability of at least {STABLE_ABOVE:g} from row to row. "
    f"Apart: at least {SEPARATION_ABOVE:g} bits of divergence from the layer's other heads. The "
    "thresholds separate planted heads of each kind, two fifths of whose weights are noise. Tied "
    "to volume or volatility (high to low): the attention to each bar, relative to the mean "
    f"profile by age, has a rank correlation of at least {TIED_ABOVE:g} with it. Tied to extremes: "
    f"at least {EXTREME_ABOVE:g} times as much attention to the {percent(EXTREME_SHARE, 1)} of "
    "bars with the largest moves as to all bars. Of the circularly shifted series at most "
    f"{percent(TIED_P, 0)} agree as well."
)
"""The meaning of the figures of heads, with their thresholds."""


class HeadKind(StrEnum):
    """What a head's attention follows."""

    LOCAL = "local"  # the last few bars
    PERIODIC = "periodic"  # bars at equal distances
    EVENT = "event-driven"  # certain bars, wherever they lie
    DIFFUSE = "diffuse"  # all bars equally


class HeadReading(NamedTuple):
    """The figures behind a head's kind."""

    kind: HeadKind
    confidence: float
    local_mass: float
    period_bars: int  # 0 where nothing repeats
    period_correlation: float
    event_share: float  # the share of the rows' similarity that is by bar, not by age


class Tie(NamedTuple):
    """How closely a head's attention follows a series of the bars."""

    value: float  # rank correlation; for extremes, attention to them over attention to all bars
    p: float  # the share of circular shifts that agree as well

    def exceeds(self, threshold: float) -> bool:
        """Return whether the value reaches a threshold, and is significant."""
        return self.value >= threshold and self.p <= TIED_P


class Ties(NamedTuple):
    """The ties of a head's attention, its mean profile by age divided out."""

    volume: Tie
    volatility: Tie
    extremes: Tie

    @property
    def marks(self) -> tuple[str, ...]:
        """The names of the ties that reach the thresholds of ``LEGEND``."""
        thresholds = (TIED_ABOVE, TIED_ABOVE, EXTREME_ABOVE)
        ties = zip(self._fields, self, thresholds, strict=True)
        return tuple(name for name, tie, threshold in ties if tie.exceeds(threshold))


class HeadFigures(NamedTuple):
    """Reach, concentration, stability and distinctness of one head."""

    mean_age: float  # bars
    half_life: float  # bars, within which half of its mass lies
    effective_bars: float
    focus: float | None  # mass on its heaviest distant bars; None in a short window
    stability: float
    separation: float  # bits, from the mean of its layer's other heads; 0 for a single head

    @property
    def marks(self) -> tuple[str, ...]:
        """The head's properties besides its kind, by the thresholds of ``LEGEND``."""
        marks = {
            "focused": self.focus is not None and self.focus >= EVENT_SHARE,
            "stable": self.stability >= STABLE_ABOVE,
            "apart": self.separation >= SEPARATION_ABOVE,
        }
        return tuple(name for name, is_marked in marks.items() if is_marked)


def head_figures(weights: Tensor, rows: Sequence[int], visible: int) -> list[HeadFigures]:
    """Return the figures of each head of a layer, from its rows [head, row, time] at *rows*.

    *visible* is how many keys each of the rows sees. Raises ``AttentionInvalid`` on fewer than two
    rows.
    """
    weights = weights.double()
    by_age = rows_by_age(weights, rows)[..., :visible]
    reach, steady = locality(by_age), stability(weights)
    # In a short window the event bars are a large part of all bars, so their mass means nothing.
    is_long = visible >= 2 * EVENT_BARS / EVENT_SHARE
    focus = event_focus(by_age, visible).mean(dim=-1).tolist() if is_long else None
    heads = len(weights)
    others = (weights.sum(dim=0) - weights) / max(1, heads - 1)
    divergences = divergence(weights, others).mean(dim=-1)
    return [
        HeadFigures(
            float(reach.mean_age[head].mean()),
            float(reach.half_life[head].double().mean()),
            float(reach.effective_bars[head].mean()),
            None if focus is None else focus[head],
            float(steady[head]),
            float(divergences[head]) if heads > 1 else 0.0,
        )
        for head in range(heads)
    ]


def read_head(weights: Tensor, rows: Sequence[int], visible: int) -> HeadReading:
    """Describe one head from its attention rows [row, time] at the bars *rows*.

    *visible* is how many keys each of the rows sees; give rows that see equally many, some dozens
    of them. Raise ``AttentionInvalid`` on fewer than two rows.
    """
    if weights.ndim != _MATRIX or len(rows) < _ROWS_MIN:
        raise AttentionInvalid("A head's kind is read from at least two rows of [row, time].")
    by_age = rows_by_age(weights, rows)[:, :visible].double()  # [row, age]
    entropy: Tensor = torch.special.entr(by_age)
    confidence = 1.0 - float(entropy.sum(dim=-1).mean()) / math.log(max(2, visible))
    profile = by_age.mean(dim=0)
    local_mass = float(profile[: max(1, round(LOCAL_SHARE * visible))].sum())
    period, correlation = _period(profile)
    event_share = _event_share(weights.double(), by_age)
    if confidence < DIFFUSE_BELOW and correlation < PERIODIC_ABOVE:
        kind = HeadKind.DIFFUSE
    elif event_share > EVENT_ABOVE:
        kind = HeadKind.EVENT
    elif correlation >= PERIODIC_ABOVE:
        kind = HeadKind.PERIODIC
    else:
        kind = HeadKind.LOCAL if local_mass > LOCAL_ABOVE else HeadKind.DIFFUSE
    return HeadReading(kind, confidence, local_mass, period, correlation, event_share)


def ties_of(
    weights: Tensor,
    rows: Sequence[int],
    visible: int,
    volume: Tensor,
    volatility: Tensor,
    move_sizes: Tensor,
) -> Ties | None:
    """Return the ties of a head's attention [row, time] at *rows*; None for fewer than 64 bars.

    *volume*, *volatility* and *move_sizes* are [time], in any unit. The head's mean profile by age
    is divided out. The null distribution is each series shifted circularly by at least a twentieth
    of the bars, which keeps its autocorrelation.
    """
    weights = weights.double()
    by_age = rows_by_age(weights, rows)[:, :visible]
    profile = by_age.mean(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    attended, counts = torch.zeros(2, weights.shape[-1], dtype=torch.float64)
    for at, row in enumerate(rows):
        reach = min(row + 1, visible)
        bars = slice(row + 1 - reach, row + 1)
        attended[bars] += (by_age[at, :reach] / profile[:reach]).flip(0)
        counts[bars] += 1
    enough = counts >= max(_ROWS_MIN, len(rows) // 2)
    if int(enough.sum()) < _TIED_BARS:
        return None
    attended = attended[enough] / counts[enough]
    size = move_sizes.double()[enough]
    edge = size.sort(descending=True).values[max(1, round(EXTREME_SHARE * len(size))) - 1]
    extreme = (size >= edge).double()
    ranks = _ranks(attended)
    return Ties(
        _tie(ranks, _ranks(volume.double()[enough])),
        _tie(ranks, _ranks(volatility.double()[enough])),
        _tie(attended / attended.mean(), extreme / extreme.mean()),
    )


def _ranks(values: Tensor) -> Tensor:
    """Return the ranks of *values*, ties averaged, scaled to mean 0 and variance 1."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts + 1) / 2.0)[inverse].double()
    centred = ranks - ranks.mean()
    return centred / centred.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)


def _tie(attended: Tensor, series: Tensor) -> Tie:
    """Return the mean product of *attended* and *series*, and its p among circular shifts."""
    count = len(attended)
    products: Tensor = (
        torch.fft.irfft(torch.fft.rfft(attended) * torch.fft.rfft(series).conj(), n=count) / count
    )
    shift = max(1, count // _NEAR_SHIFTS)
    shifted = products[shift : count - shift]
    value = products[0]
    as_good = int((shifted >= value - 1e-12).sum())
    return Tie(float(value), (1 + as_good) / (1 + len(shifted)))


def _period(profile: Tensor) -> tuple[int, float]:
    """Return the period at which a profile by age repeats best, and its autocorrelation.

    The best is the largest after the autocorrelation first falls below zero; (0, 0.0) for none.
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


def _event_share(weights: Tensor, by_age: Tensor) -> float:
    """Return the share of the rows' similarity that is in absolute time, not by age: 0 to 1.

    Rows of an event-driven head agree on bars, those of a local head on ages. The first half is
    compared with the second: neighbouring rows agree on both if events lie side by side.
    """
    half = len(weights) // 2
    in_time = 1.0 - float(divergence(weights[:-half], weights[half:]).mean())
    in_age = 1.0 - float(divergence(by_age[:-half], by_age[half:]).mean())
    # Rows with almost nothing in common agree only by chance.
    return in_time / (in_time + in_age) if in_time + in_age >= _ALIKE_LEAST else 0.5
