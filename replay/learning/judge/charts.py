"""The charts of a judgement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from tracepaper.replay.document.charts import (
    ChartAxis,
    ChartPanel,
    ChartRole,
    Layer,
    LineDash,
    LineLayer,
    RuleLayer,
    rounded,
    time_axis,
)
from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts
from tracepaper.replay.learning.judge.judge import SpanJudgement
from tracepaper.replay.learning.judge.metrics import LOSSES, RISKS, views
from tracepaper.replay.learning.statistics import RISK_COVERAGES, RiskCurve
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.units import DAY_MS

_HEIGHT: Final = 280
_ROLES: Final[tuple[ChartRole, ...]] = ("accent", "ink", "gain", "loss", "muted")
_DASHES: Final[tuple[LineDash, ...]] = ("solid", "dash", "dot", "dashdot")
BINS: Final = 15
BINNED_LEAST: Final = 50
"""Bars of a bin under which nothing is drawn: its share would be luck."""
WEEK_DAYS: Final = 7


def risk_coverage(curves: Mapping[tuple[str, str], RiskCurve]) -> ChartPanel | None:
    """Draw excess risk by coverage, a line a measure, a dash a risk."""
    if not curves:
        return None
    names = list(dict.fromkeys(name for _, name in curves))
    shares = [float(100 * share) for share in RISK_COVERAGES]
    lines = [
        LineLayer(
            f"{name.replace('_', ' ')}: {RISKS[risk].title}",
            shares,
            rounded(curve.excess),
            _ROLES[names.index(name) % len(_ROLES)],
            dash=_DASHES[list(RISKS).index(risk) % len(_DASHES)],
        )
        for (risk, name), curve in curves.items()
    ]
    across = ChartAxis("share of bars answered, %", unit=" %", digits=0, is_reversed=True)
    up = ChartAxis("risk less a random gate's", has_zero=True)
    return ChartPanel([RuleLayer(0.0), *lines], across, up, _HEIGHT + 100)


class Bin(NamedTuple):
    """Bars whose top direction was said with about one probability."""

    said: float
    came: float
    bars: int


def bins_of(judgement: SpanJudgement) -> list[Bin]:
    """Return said and realised probability of the top direction, over all horizons."""
    rows = judgement.forecasts
    if not rows.gives("probability"):
        return []
    probability = rows.value("probability")
    sure, hit = probability.max(axis=1), probability.argmax(axis=1) == rows.labels["direction"]
    place = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    return [
        Bin(float(sure[own].mean()), float(hit[own].mean()), int(own.sum()))
        for at in range(BINS)
        if (own := place == at).sum() >= BINNED_LEAST
    ]


def reliability(judgement: SpanJudgement) -> ChartPanel | None:
    """Draw said against realised probability."""
    found = bins_of(judgement)
    if not found:
        return None
    least = min(min(one.said, one.came) for one in found)
    most = max(max(one.said, one.came) for one in found)
    lines = [
        LineLayer("as said", [least, most], [least, most], "muted", dash="dot"),
        LineLayer("the model", [one.said for one in found], [one.came for one in found], width=2.2),
    ]
    across, up = ChartAxis("probability said", digits=3), ChartAxis("share that came", digits=3)
    return ChartPanel(lines, across, up, _HEIGHT)


def has_law(rows: Forecasts) -> bool:
    """Return whether the judged model forecasts a whole distribution of the return."""
    return rows.gives("mean") and rows.gives("scale")


def hits(rows: Forecasts, share: float) -> Array:
    """Return 1 where the return lay in the model's central interval of that *share*, else 0."""
    mean, scale, dof = (rows.value(field) for field in ("mean", "scale", "dof"))
    return figures.inside(mean, scale, dof, rows.labels["returns"], share)


def coverage_by_week(judgement: SpanJudgement) -> ChartPanel | None:
    """Draw the coverage of the 90 % interval by week, a line a horizon."""
    if not has_law(judgement.forecasts):
        return None
    # The claim is the wide pale line: over the others it would hide them.
    layers: list[Layer] = [RuleLayer(figures.COVERAGE, name="claimed", role="faint")]
    for place, (horizon, rows) in enumerate(judgement.forecasts.by_horizon()):
        weeks, at = np.unique(rows.day // WEEK_DAYS, return_inverse=True)
        share = np.bincount(at, hits(rows, figures.COVERAGE)) / np.bincount(at)
        times = (weeks * WEEK_DAYS * DAY_MS).tolist()
        role = _ROLES[place % len(_ROLES)]
        layers.append(LineLayer(f"{horizon} bars", times, rounded(share), role, has_points=True))
    return ChartPanel(layers, time_axis(), ChartAxis("share inside", digits=3), _HEIGHT)


def qlike_by_day(judgement: SpanJudgement) -> ChartPanel | None:
    """Draw by day the sum so far of the model's QLIKE less each baseline's, middle horizon."""
    every = judgement.forecasts.by_horizon()
    horizon, rows = every[len(every) // 2]
    metric = LOSSES["qlike"]
    losses = {name: metric.terms(view) for name, view in views(metric, rows).items()}
    if MODEL not in losses or len(losses) < 2:
        return None
    days, at = np.unique(rows.day, return_inverse=True)
    layers: list[Layer] = [RuleLayer(0.0)]
    for place, name in enumerate(name for name in losses if name != MODEL):
        less: Array = losses[MODEL] - losses[name]
        total = np.cumsum(np.bincount(at, less) / np.bincount(at))
        role = _ROLES[place % len(_ROLES)]
        dash = _DASHES[place // len(_ROLES)]
        times = (days * DAY_MS).tolist()
        layers.append(LineLayer(name.replace("_", " "), times, rounded(total), role, dash=dash))
    up = ChartAxis(f"QLIKE at {horizon} bars, summed", has_zero=True)
    return ChartPanel(layers, time_axis(), up, _HEIGHT)
