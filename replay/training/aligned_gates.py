"""What gates measure at the closes of several symbols, explained close by close, and its verdict.

The closes are answered as a run answers them, by the forecaster of the checkpoint. The rules are
docs/several.md, P27 and P29.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from tracepaper.replay.training.aligned import AlignedMaterial, Ids, Labelled
from tracepaper.replay.training.card import PERCENTS, ROUND_TRIP_COST, quantiles
from tracepaper.replay.training.explained import (
    AnsweredRows,
    ExplainedRows,
    bars_of,
    rows_of,
    selective,
    traded,
)
from tracepaper.replay.training.judgement import (
    default_thresholds,
    judged_section,
    judgement_section,
)
from tracepaper.replay.training.series import Part
from tracepaper.strategies.forecasters.cross_asset import TogetherForecaster, TogetherModel
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar

EXPLAINED_CLOSES: Final = 6_000
"""Closes that are explained of a part, each by a pass over all symbols."""


def gates_calibrated(
    card: Mapping[str, Any], weights: Mapping[str, Tensor], material: AlignedMaterial
) -> dict[str, Any]:
    """Return ``[calibration]`` of *card* with what gates need: quantiles, confidence, regimes."""
    section = dict(card["calibration"])
    seen = _explained(card, weights, material, Part.CALIBRATION)
    section |= {
        "bars": len(seen.value),
        "round_trip_cost": ROUND_TRIP_COST,
        "percents": [PERCENTS[0], PERCENTS[-1]],
        "quantiles": {name: list(quantiles(values)) for name, values in seen.measures.items()},
    }
    return section | judgement_section(seen, section["quantiles"])


def gates_judged(
    card: Mapping[str, Any], weights: Mapping[str, Tensor], material: AlignedMaterial
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return ``[calibration]`` with the test part's verdict, its figures, and what they say."""
    seen = _explained(card, weights, material, Part.TEST)
    section, found, said = judged_section(
        seen, card["calibration"], second_span_ms=material.material.split.second_span_ms
    )
    thresholds = default_thresholds(section)
    figures = {"selective": selective(seen), "traded": traded(seen, thresholds), **found}
    return section, figures, said


def _explained(
    card: Mapping[str, Any], weights: Mapping[str, Tensor], material: AlignedMaterial, part: Part
) -> ExplainedRows:
    """Forecast and explain the earliest labelled closes of *part*, shared equally by stretches."""
    horizon = int(card["calibration"]["horizon"])
    forecaster = TogetherForecaster(
        TogetherModel.read(card, weights), material.symbols, threads=torch.get_num_threads()
    )
    labelled = material.labelled(part)
    bars = card["training"].get("explained_bars")
    closes = bars // len(material.symbols) if bars else EXPLAINED_CLOSES
    share = max(closes // len(labelled), 1)
    found: list[AnsweredRows] = []
    for one in labelled:
        rows = _rows(one, forecaster.context, horizon)[:share]
        if len(rows):
            answers = _answers(forecaster, one, rows)
            found += map(AnsweredRows, one.samples, [rows] * len(answers), answers)
    slope = card["calibration"]["slope"][str(horizon)]
    return rows_of(forecaster, found, horizon=horizon, slope=slope)


def _rows(one: Labelled, context: int, horizon: int) -> Ids:
    """Return the rows whose return to *horizon* is known, with *context* bars up to each."""
    samples = one.samples[0]
    rows = np.flatnonzero(samples.weights[:, samples.horizons.index(horizon)] > 0)
    found: Ids = rows[rows >= context - 1]
    return found


def _answers(
    forecaster: TogetherForecaster, one: Labelled, rows: Ids
) -> list[Sequence[Forecast | None]]:
    """Return what is said at *rows* of each symbol, all closes up to them taken in."""
    start, stop = int(rows[0]) - forecaster.context + 1, int(rows[-1]) + 1
    bars: list[list[Bar]] = [bars_of(each, start, stop) for each in one.stretch.segments]
    for own in bars:
        forecaster.warm(own[0].instrument, own[: forecaster.context - 1])
    closes = zip(*(own[forecaster.context - 1 :] for own in bars), strict=True)
    said = [forecaster.predict_many(close) for close in closes]
    return [[said[row - int(rows[0])][at] for row in rows.tolist()] for at in range(len(bars))]
