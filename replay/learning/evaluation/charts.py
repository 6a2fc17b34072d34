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
from tracepaper.replay.learning.evaluation.evaluate import OWN, RISKS, SpanJudgement
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
            f"{name.replace('_', ' ')}: {RISKS[risk][0]}",
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
    if "probabilities" not in judgement.judged.given:
        return []
    parts = [figures.probabilities(one.logits, 1.0) for one in judgement.horizons]
    sure = np.concatenate([part.max(axis=1) for part in parts])
    hit = np.concatenate(
        [part.argmax(axis=1) == one.classes
         for part, one in zip(parts, judgement.horizons, strict=True)]
    )  # fmt: skip
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


def coverage_by_week(judgement: SpanJudgement) -> ChartPanel | None:
    """Draw the coverage of the 90 % interval by week, a line a horizon."""
    if not {"mean_return", "stdev_return"} <= judgement.judged.given:
        return None
    # The claim is the wide pale line: over the others it would hide them.
    layers: list[Layer] = [RuleLayer(figures.COVERAGE, name="claimed", role="faint")]
    for place, one in enumerate(judgement.horizons):
        hit = figures.inside(one.mean, one.scale, one.dof, one.value, figures.COVERAGE)
        weeks, at = np.unique(one.days // WEEK_DAYS, return_inverse=True)
        share = np.bincount(at, hit) / np.bincount(at)
        times = (weeks * WEEK_DAYS * DAY_MS).tolist()
        role = _ROLES[place % len(_ROLES)]
        layers.append(
            LineLayer(f"{one.horizon} bars", times, rounded(share), role, has_points=True)
        )
    return ChartPanel(layers, time_axis(), ChartAxis("share inside", digits=3), _HEIGHT)


def qlike_by_day(judgement: SpanJudgement) -> ChartPanel | None:
    """Draw by day the sum so far of the model's QLIKE less each baseline's, middle horizon."""
    one = judgement.horizons[len(judgement.horizons) // 2]
    others = [name for name in one.variances if name != OWN]
    if "volatility" not in judgement.judged.given or not others:
        return None
    own = figures.qlike_of(one.variances[OWN], one.variance)
    days, at = np.unique(one.days, return_inverse=True)
    layers: list[Layer] = [RuleLayer(0.0)]
    for place, name in enumerate(others):
        less: Array = own - figures.qlike_of(one.variances[name], one.variance)
        total = np.cumsum(np.bincount(at, less) / np.bincount(at))
        role = _ROLES[place % len(_ROLES)]
        dash = _DASHES[place // len(_ROLES)]
        times = (days * DAY_MS).tolist()
        layers.append(LineLayer(name.replace("_", " "), times, rounded(total), role, dash=dash))
    up = ChartAxis(f"QLIKE at {one.horizon} bars, summed", has_zero=True)
    return ChartPanel(layers, time_axis(), up, _HEIGHT)
