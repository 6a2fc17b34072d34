"""The charts of a judgement, as plain Plotly documents in the manner of the report's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.evaluation.evaluate import OWN, RISKS, SpanJudgement
from tracepaper.replay.learning.statistics import RISK_COVERAGES, RiskCurve
from tracepaper.replay.report.charts import (
    ACCENT,
    FAINT,
    GAIN,
    INK,
    LOSS,
    MUTED,
    axis,
    layout,
    line,
)
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.units import DAY_MS

Chart = dict[str, Any]
_HEIGHT: Final = 320
_COLOURS: Final = (ACCENT, INK, GAIN, LOSS, MUTED)
_DASHES: Final = ("solid", "dash", "dot", "dashdot")
BINS: Final = 15
BINNED_LEAST: Final = 50
"""Bars of a bin under which nothing is drawn: its share would be luck."""
WEEK_DAYS: Final = 7


def risk_coverage(curves: Mapping[tuple[str, str], RiskCurve]) -> Chart | None:
    """Return excess risk by coverage, a line a measure, a dash a risk."""
    if not curves:
        return None
    names = list(dict.fromkeys(name for _, name in curves))
    shares = [float(100 * share) for share in RISK_COVERAGES]
    data = [
        line(
            shares,
            curve.excess,
            f"{name.replace('_', ' ')}: {RISKS[risk][0]}",
            {
                "color": _COLOURS[names.index(name) % len(_COLOURS)],
                "dash": _DASHES[list(RISKS).index(risk) % len(_DASHES)],
                "width": 1.6,
            },
        )
        for (risk, name), curve in curves.items()
    ]
    made = layout(_HEIGHT + 100, hovermode="closest")
    made["xaxis"] = axis("share of bars answered, %", autorange="reversed")
    made["yaxis"] = axis("risk less a random gate's", zeroline=True, zerolinecolor=MUTED)
    return {"data": data, "layout": made}


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


def reliability(judgement: SpanJudgement) -> Chart | None:
    """Return said against realised probability."""
    found = bins_of(judgement)
    if not found:
        return None
    least = min(min(one.said, one.came) for one in found)
    most = max(max(one.said, one.came) for one in found)
    data = [
        line([least, most], [least, most], "as said", {"color": MUTED, "dash": "dot"}),
        line([one.said for one in found], [one.came for one in found], "the model",
             {"color": ACCENT, "width": 2.2}),
    ]  # fmt: skip
    made = layout(_HEIGHT, hovermode="closest")
    made["xaxis"], made["yaxis"] = axis("probability said"), axis("share that came")
    return {"data": data, "layout": made}


def coverage_by_week(judgement: SpanJudgement) -> Chart | None:
    """Return the coverage of the 90 % interval by week, a line a horizon."""
    if not {"mean_return", "stdev_return"} <= judgement.judged.given:
        return None
    data = []
    for place, one in enumerate(judgement.horizons):
        hit = figures.inside(one.mean, one.scale, one.dof, one.value, figures.COVERAGE)
        weeks, at = np.unique(one.days // WEEK_DAYS, return_inverse=True)
        share = np.bincount(at, hit) / np.bincount(at)
        times = (weeks * WEEK_DAYS * DAY_MS).tolist()
        style = {"color": _COLOURS[place % len(_COLOURS)], "width": 1.6}
        data.append(line(times, share, f"{one.horizon} bars", style, mode="lines+markers"))
    ends = [min(data[0]["x"]), max(data[0]["x"])]
    claim = [figures.COVERAGE] * 2
    data.append(line(ends, claim, "claimed", {"color": FAINT, "width": 3}))
    made = layout(_HEIGHT)
    made["xaxis"], made["yaxis"] = axis("", type="date"), axis("share inside")
    return {"data": data, "layout": made}


def qlike_by_day(judgement: SpanJudgement) -> Chart | None:
    """Return by day the sum so far of the model's QLIKE less each baseline's, middle horizon."""
    one = judgement.horizons[len(judgement.horizons) // 2]
    others = [name for name in one.variances if name != OWN]
    if "volatility" not in judgement.judged.given or not others:
        return None
    own = figures.qlike_of(one.variances[OWN], one.variance)
    days, at = np.unique(one.days, return_inverse=True)
    data = []
    for place, name in enumerate(others):
        less: Array = own - figures.qlike_of(one.variances[name], one.variance)
        total = np.cumsum(np.bincount(at, less) / np.bincount(at))
        style = {
            "color": _COLOURS[place % len(_COLOURS)],
            "dash": _DASHES[place // len(_COLOURS)],
            "width": 1.6,
        }
        data.append(line((days * DAY_MS).tolist(), total, name.replace("_", " "), style))
    made = layout(_HEIGHT)
    made["xaxis"] = axis("", type="date")
    made["yaxis"] = axis(f"QLIKE at {one.horizon} bars, summed", zeroline=True, zerolinecolor=MUTED)
    return {"data": data, "layout": made}
