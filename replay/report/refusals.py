"""Refusals by gate, and what each refused signal would have earned to its horizon.

A refused signal is a forecast whose mean return and class probabilities agree on a side, as the
attention strategy asks. It is entered at the next bar's open and left at the open one horizon
later, at the run's configured costs: a forward return, each signal for itself. Signals overlap,
so their sum is no account; what the gates saved as an account is the ungated twin's equity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from tracepaper.replay.report.record import Floats, Ints, RunRecord
from tracepaper.strategies.types import GATE_ORDER

ALLOWED: Final = "allowed"
UNFILLED: Final = "unfilled"
NOISE: Final = 2.0
"""A mean within so many standard errors of zero says nothing."""


@dataclass(frozen=True)
class Refusal:
    """The decisions of one gate, or the allowed ones; returns in basis points of the notional.

    ``standard_error_bp`` counts only signals that do not overlap. ``said`` is ``saved`` where the
    refused signals would have lost, ``cost`` where they would have earned, ``noise`` where the
    mean is within two standard errors of zero, and empty where nothing can be measured.
    """

    gate: str
    decisions: int
    signals: int  # with a side
    measured: int  # whose horizon lies within the run
    apart: int  # of them, that do not overlap
    gross_bp: float | None
    net_bp: float | None
    standard_error_bp: float | None
    hit_rate: float | None  # share that would have earned after costs
    said: str


def refusals(record: RunRecord) -> list[Refusal]:
    """Return a row a gate that refused, in the order of the gates, and one of what was allowed.

    Between them stands a row a reason for which the exchange would not have taken the order.
    """
    refused = record.decisions.refused_by
    side, gross, net = forward_returns(record)
    names = [gate.value for gate in GATE_ORDER if bool((refused == gate.value).any())]
    found = [_row(name, refused == name, side, gross, net, record) for name in names]
    unfilled = record.decisions.unfilled
    found += [
        _row(f"{UNFILLED}: {reason}", unfilled == reason, side, gross, net, record)
        for reason in sorted(set(unfilled.tolist()) - {""})
    ]
    return [*found, _row(ALLOWED, record.decisions.allowed, side, gross, net, record)]


def forward_returns(record: RunRecord) -> tuple[Floats, Floats, Floats]:
    """Return each decision's side (1, -1, 0), and its gross and net return to the horizon.

    Returns are fractions of the notional, NaN where the run ends before the horizon.
    """
    decisions, horizon = record.decisions, record.config.gate.horizon
    up = (decisions.mean_return > 0) & (decisions.p_up > decisions.p_down)
    down = (decisions.mean_return < 0) & (decisions.p_up < decisions.p_down)
    side = up.astype(np.float64) - down
    ratio = np.full(side.size, np.nan)
    for name, bars in record.bars.items():
        own = np.flatnonzero(decisions.instrument == name)
        ahead = np.full(own.size, np.nan)
        reached = max(own.size - horizon - 1, 0)
        ahead[:reached] = bars.open[1 + horizon :] / bars.open[1 : 1 + reached]
        ratio[own] = ahead
    gross = side * (ratio - 1.0)
    return side, gross, gross - record.cost_rate * (1.0 + ratio)


def _row(
    name: str,
    chosen: np.ndarray[tuple[int], np.dtype[np.bool_]],
    side: Floats,
    gross: Floats,
    net: Floats,
    record: RunRecord,
) -> Refusal:
    """Return the figures of the *chosen* decisions."""
    signals = chosen & (side != 0)
    measured = np.flatnonzero(signals & np.isfinite(net))
    count = int(measured.size)
    apart = sum(
        _apart(record.decisions.open_time_ms[measured[own]], record)
        for instrument in record.bars
        if (own := record.decisions.instrument[measured] == instrument).any()
    )
    mean = 1e4 * float(net[measured].mean()) if count else None
    spread = 1e4 * float(net[measured].std(ddof=1)) if count > 1 else None
    error = spread / math.sqrt(apart) if spread is not None and apart > 1 else None
    return Refusal(
        gate=name,
        decisions=int(np.count_nonzero(chosen)),
        signals=int(np.count_nonzero(signals)),
        measured=count,
        apart=apart,
        gross_bp=1e4 * float(gross[measured].mean()) if count else None,
        net_bp=mean,
        standard_error_bp=error,
        hit_rate=float(np.mean(net[measured] > 0)) if count else None,
        said=_said(mean, error),
    )


def _apart(times_ms: Ints, record: RunRecord) -> int:
    """Return how many of the signals at *times_ms* fit one after the other without overlap."""
    length_ms = record.config.gate.horizon * record.interval_ms
    count, free_ms = 0, -1
    for time_ms in times_ms.tolist():
        if time_ms >= free_ms:
            count, free_ms = count + 1, time_ms + length_ms
    return count


def _said(mean: float | None, error: float | None) -> str:
    if mean is None:
        return ""
    if error is None or abs(mean) <= NOISE * error:
        return "noise"
    return "saved" if mean < 0 else "cost"
