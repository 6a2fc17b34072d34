"""Two decisions beside each other, or two models on one: where each looked, and what moved it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.session.models import forecaster_of
from tracepaper.daemon.session.vectors import kept_vectors_of, recorded_vectors
from tracepaper.replay.explain.recomputed import (
    Explainable,
    Floats,
    Past,
    PastOf,
    attribute,
    rank_correlation,
)
from tracepaper.storage import checkpoints
from tracepaper.storage.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.forecasters.attributing import Probe
from tracepaper.strategies.forecasters.ensemble import network_half
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.forecasters.windowed import WindowedForecaster


@dataclass(frozen=True)
class Sided:
    """One of the two: what it said, where it looked bar by bar, and what each feature added."""

    name: str
    model_id: str
    open_time_ms: int  # of the decided bar
    horizon: int  # bars
    mean_return: float  # log return
    lean: float  # p_up - p_down
    times_ms: tuple[int, ...]  # of the bars, oldest first
    weights: tuple[float, ...]  # of the rollout, sum 1
    features: dict[str, float]  # what each added to the mean return, over all bars
    layers: tuple[Floats, ...]  # [head, age] of each layer, the newest bar first

    def by_age(self, ages: int) -> Floats:
        """Return the weights by age, the decided bar first, as many as *ages*."""
        found = np.zeros(ages)
        own = np.array(self.weights[::-1])[:ages]
        found[: own.size] = own
        return found


@dataclass(frozen=True)
class SideBySide:
    """What two explanations have in common: shares of the weight, from 0 to 1."""

    first: Sided
    second: Sided
    common_ages: float  # that both give to the same ages
    common_bars: float  # that both give to the same bars
    rank_correlation: float | None  # Spearman's, of the past ages that both have
    common_by_layer: tuple[float, ...]  # of the mean of a layer's heads, by age, the lowest first


def compare(first: Sided, second: Sided) -> SideBySide:
    """Return what *first* and *second* have in common."""
    ages = max(len(first.weights), len(second.weights))
    both = min(len(first.weights), len(second.weights))
    one, other = first.by_age(ages), second.by_age(ages)
    known = dict(zip(second.times_ms, second.weights, strict=True))
    bars = sum(
        min(weight, known.get(time, 0.0))
        for time, weight in zip(first.times_ms, first.weights, strict=True)
    )
    return SideBySide(
        first,
        second,
        float(np.minimum(one, other).sum()),
        float(bars),
        rank_correlation(one[1:both], other[1:both]),
        tuple(
            _common(of.mean(axis=0), beside.mean(axis=0))
            for of, beside in zip(first.layers, second.layers, strict=False)
        ),
    )


def _common(one: Floats, other: Floats) -> float:
    both = min(one.size, other.size)
    return float(np.minimum(one[:both], other[:both]).sum())


def sided(past: Past, name: str) -> Sided:
    """Return one side: the decision of *past* under the *name* that people are shown."""
    found = attribute(past)
    horizon = past.forecast.horizons[past.horizon_index]
    probe = Probe(past.forecaster, past.bars, horizon=horizon)
    again, added = probe.figures(), probe.contributions().mean_return.sum(axis=0)
    looks = past.forecaster.look_by_layer(past.decided.instrument)
    return Sided(
        name,
        past.forecaster.model_id,
        past.decided.open_time_ms,
        horizon,
        again.mean_return,
        again.lean,
        found.open_time_ms,
        found.weights,
        dict(zip(probe.names, added.tolist(), strict=True)),
        tuple(look.rows.flip(-1).double().cpu().numpy() for look in looks),
    )


def by_model(database: Path, past: Past, model: str) -> Past:
    """Return the same decision as the checkpoint *model* would make it: a bundled name or a folder.

    Raises ``DataInvalid`` for a model without attention, of other bars, or that needs more bars
    than the run has.
    """
    folder = checkpoints.locate(model)
    card = checkpoints.read_card(folder)
    minutes = past.decided.interval_ms // 60_000
    if str(card["market"].get("interval")) != str(minutes):
        raise DataInvalid(
            f"{model} is for bars of {card['market'].get('interval')} minutes and the decision is "
            f"of {minutes}; choose another model."
        )
    vectors = recorded_vectors(database, kept_vectors_of(past.run.libraries), card)
    found = network_half(
        forecaster_of(folder, restore(past.run.config), mode="step", vectors=vectors)
    )
    if not isinstance(found, StreamingForecaster | WindowedForecaster):
        raise DataInvalid(f"{model} has no attention to compare; choose a network's checkpoint.")
    run_id, instrument = past.run.run_id, past.decided.instrument
    with Reader.open(database) as reader:
        bars = reader.bars(run_id, instrument, found.context, until=past.sequence)
    if len(bars) < found.context:
        raise DataInvalid(
            f"Run {run_id} holds {len(bars):,} bars up to decision {past.sequence}, and {model} "
            f"looks back on {found.context:,}; choose a later decision."
        )
    found.warm(instrument, bars[:-1])
    forecast = found.step(bars[-1])
    if forecast is None:
        raise DataInvalid(f"{model} gives no forecast at that bar; choose another decision.")
    made: PastOf[Explainable] = PastOf(
        past.run, past.sequence, found, forecast, tuple(bars), past.price_decimals
    )
    return made


def as_document(found: SideBySide) -> dict[str, Any]:
    """Return the comparison as plain values; returns are log returns."""
    return {
        "sides": [
            {
                "name": side.name,
                "model_id": side.model_id,
                "open_time_ms": side.open_time_ms,
                "horizon": side.horizon,
                "mean_return": side.mean_return,
                "lean": side.lean,
                "weights": list(side.weights),
                "features": side.features,
            }
            for side in (found.first, found.second)
        ],
        "common_ages": found.common_ages,
        "common_bars": found.common_bars,
        "rank_correlation": found.rank_correlation,
        "common_by_layer": list(found.common_by_layer),
    }
