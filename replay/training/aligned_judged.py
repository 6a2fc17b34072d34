"""A network over several assets judged on a part: each asset's forecasts, their ranks, the weights.

Figures of each horizon are over all assets, beside the baselines of each; to them come the rank
correlation across the assets, close by close, and what the weights made.

The rules are docs/several.md, P29 and P31.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.training import figures
from tracepaper.replay.training.across import AcrossAssets, close_ranks
from tracepaper.replay.training.aligned import (
    AlignedMaterial,
    CrossPredictions,
    Ids,
    Labelled,
    predicted,
)
from tracepaper.replay.training.aligned_gates import gates_judged
from tracepaper.replay.training.card import NOTICE, slope, temperature
from tracepaper.replay.training.correlation import (
    CorrelationForecasts,
    correlation_figures,
    correlation_sentences,
)
from tracepaper.replay.training.correlation import correlations_of as correlations_of_part
from tracepaper.replay.training.evaluation import HorizonForecasts, judged, report
from tracepaper.replay.training.explained import JudgedPart
from tracepaper.replay.training.honesty import FEW_DAYS, compared_sentences, few_days
from tracepaper.replay.training.paired import paired_figures
from tracepaper.replay.training.pipeline import ALL_MEASURES, cooled, no_context
from tracepaper.replay.training.series import Part
from tracepaper.replay.training.tails import TAILS, tail_factors
from tracepaper.replay.training.weighed import (
    NETWORK,
    Weighed,
    WeightsAt,
    rules_weighed,
    weighed,
    weighed_figures,
    weighings,
)
from tracepaper.replay.training.weighed import sentences as weighed_sentences
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.cross_asset import TogetherModel
from tracepaper.strategies.networks.cross_asset import JOINT, CrossAssetNetwork, correlations_of

JOINT_ROWS: Final = 4_000
"""Closes of a part that joint attention is judged on: each costs a pass over its window."""


class _Answered(NamedTuple):
    """What a network said of one stretch of a part."""

    labelled: Labelled
    said: CrossPredictions


def _answered(
    network: CrossAssetNetwork,
    material: AlignedMaterial,
    part: Part,
    closes: NDArray[np.int64] | None = None,
) -> list[_Answered]:
    """Return the answers at every labelled close of *part* with a whole field before it.

    Where *closes* are given, open times by the interval, at these alone.
    """
    found = []
    for one in material.labelled(part):
        rows = one.whole_rows(network.config.receptive_field)
        if closes is not None:
            segment = one.stretch.segments[0]
            rows = rows[np.isin(segment.open_time_ms[rows] // segment.interval_ms, closes)]
        if network.config.attention == JOINT:
            rows = rows[:: -(-len(rows) // JOINT_ROWS)] if len(rows) else rows
        if len(rows):
            found.append(_Answered(one, predicted(network, one.stretch, rows)))
    if not found:
        raise no_context(part, network.config.receptive_field)
    return found


def _side_by_side(
    answered: Sequence[_Answered], material: AlignedMaterial
) -> list[HorizonForecasts]:
    """Put forecasts, baselines and labels of every asset side by side, asset after asset."""
    pairs = [
        (samples, one.said.rows, said)
        for one in answered
        for samples, said in zip(one.labelled.samples, one.said.each, strict=True)
    ]
    return judged(pairs, material.material.baselines, material.horizons)


def _relative(answered: Sequence[_Answered], at: int) -> Array:
    """Return the expected relative returns to one horizon, over the rows of its forecasts."""
    parts = []
    for one in answered:
        used = one.labelled.samples[0].weights[one.said.rows, at] > 0
        parts.append(one.said.relative[:, used, at].ravel().astype(np.float64))
    return np.concatenate(parts)


def scales_together(network: CrossAssetNetwork, material: AlignedMaterial) -> dict[str, Any]:
    """Return temperature and slopes of the calibration slice, by horizon."""
    answered = _answered(network, material, Part.CALIBRATION)
    found = _side_by_side(answered, material)
    relative = {}
    for at, horizon in enumerate(material.horizons):
        pairs = [
            (one.said.relative[..., at], one.labelled.relative[:, one.said.rows, at])
            for one in answered
        ]
        forecast, value = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
        known = np.isfinite(value)
        relative[str(horizon)] = slope(
            forecast[known].astype(np.float64), value[known].astype(np.float64)
        )
    return {
        "temperature": {str(one.horizon): temperature(one.logits, one.classes) for one in found},
        "slope": {str(one.horizon): slope(one.mean, one.value) for one in found},
        TAILS: tail_factors(found),
        "relative_slope": relative,
    }


def forecasts_together(
    card: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    material: AlignedMaterial,
    *,
    closes: NDArray[np.int64] | None = None,
) -> tuple[list[HorizonForecasts], AcrossAssets]:
    """Return what a checkpoint says of the test part: of each asset, across them, its own weights.

    Forecasts are of *closes* alone, where they are given; the weights of all decisions.
    """
    model = TogetherModel.read(card, weights)
    answered = _answered(model.network, material, Part.TEST, closes)
    found = _side_by_side(answered, material)
    relative = {one.horizon: _relative(answered, at) for at, one in enumerate(found)}
    return found, AcrossAssets(relative, _held(model, material))


def judge_together(
    card: Mapping[str, Any], weights: Mapping[str, Tensor], material: AlignedMaterial
) -> JudgedPart:
    """Return what the network said of the test part, calibrated by its card, and its figures."""
    section = card["calibration"]
    forecasts, across = forecasts_together(card, weights, material)
    found: dict[str, Any] = {}
    for one in forecasts:
        name = str(one.horizon)
        own = report(one, temperature=section["temperature"][name], slope=section["slope"][name])
        found[name] = {**own, "relative_rank_ic": _rank_figures(one, across)}
    found |= paired_figures(forecasts, ALL_MEASURES)
    said = []
    if across.held:
        found["weights"] = weighed_figures(across.held)
        said = weighed_sentences(found["weights"])
    if "quantiles" in section:
        section, found["gates"], of_gates = gates_judged(card, weights, material)
        said += of_gates
    told = [NOTICE, *_sentences(found, horizon=int(section["horizon"])), *said]
    correlations = _correlations(card, weights, material)
    if correlations:
        found["correlation"] = correlation_figures(correlations)
        told += correlation_sentences(correlations, horizon=int(section["horizon"]))
    cool = [cooled(one, section["temperature"][str(one.horizon)]) for one in forecasts]
    return JudgedPart(
        cool,
        ALL_MEASURES,
        found,
        told,
        calibration=section,
        correlations=correlations,
        across=across,
    )


def evaluated_together(
    card: Mapping[str, Any], weights: Mapping[str, Tensor], material: AlignedMaterial
) -> dict[str, Any]:
    """Return *card* with the figures of the test part and the sentences that follow from them."""
    found = judge_together(card, weights, material)
    return {
        **card,
        "calibration": found.calibration,
        "figures": found.figures,
        "honesty": {"sentences": found.sentences},
    }


def _correlations(
    card: Mapping[str, Any], weights: Mapping[str, Tensor], material: AlignedMaterial
) -> list[CorrelationForecasts]:
    """Return what a head of correlations said of the test part, beside others; none without it."""
    model = TogetherModel.read(card, weights)
    if not model.config.factors:
        return []
    times: list[NDArray[np.int64]] = []
    said: list[NDArray[np.float64]] = []
    for one in _answered(model.network, material, Part.TEST):
        assert one.said.loadings is not None
        pairs = correlations_of(torch.from_numpy(one.said.loadings)[None])[0]
        times.append(one.labelled.stretch.segments[0].open_time_ms[one.said.rows])
        said.append(pairs.double().numpy())
    opened, every = np.concatenate(times), np.concatenate(said, axis=1)
    names = [" ".join(sorted(pair)) for pair in combinations(material.symbols, 2)]
    learnt = card["calibration"].get("correlation", {})
    found = [
        one.with_head(
            opened,
            dict(zip(names, every[..., material.horizons.index(one.horizon)], strict=True)),
        )
        for one in correlations_of_part(material.material, Part.TEST, learnt)
    ]
    return [one for one in found if one is not None]


def _held(model: TogetherModel, material: AlignedMaterial) -> dict[str, Weighed]:
    """Return what the network's weights and every rule's made of the test part's decisions."""
    field, every = model.config.receptive_field, model.config.every
    decisions = weighings(material.labelled(Part.TEST), every=every, field=field)
    if not decisions:
        return {}
    return {NETWORK: weighed(decisions, _weights_of(model)), **rules_weighed(decisions)}


def _weights_of(model: TogetherModel) -> WeightsAt:
    """Return what weighs as the strategy of *model* does."""

    def found(one: Labelled, rows: Ids) -> Array:
        said = predicted(model.network, one.stretch, rows)
        allocation = None if said.allocation is None else torch.from_numpy(said.allocation)
        return model.weights(torch.from_numpy(said.relative), allocation)

    return found


def _rank_figures(found: HorizonForecasts, across: AcrossAssets) -> dict[str, list[float]]:
    """Return the mean over closes of the rank correlation across the assets, by forecast.

    Of expected with realised log returns; ``relative`` is the network's head for it, every other
    name is a mean of the tables. Errors are by day.
    """
    means = {}
    for name, expected in across.expected(found).items():
        ranks = close_ranks(found, expected)
        one = figures.mean(ranks.value, ranks.days)
        means[name] = [round(one.value, 5), round(one.error, 5)]
    return means


def _sentences(found: Mapping[str, Any], *, horizon: int) -> list[str]:
    """Return what an honest reader must know of the forecasts at the gates' horizon."""
    main = found[str(horizon)]
    rank, noise = main["relative_rank_ic"]["relative"]
    word = "above" if rank > 2.0 * noise > 0.0 and main["days"] >= FEW_DAYS else "not above"
    return [
        *compared_sentences(found, horizon, NETWORK),
        (
            f"Across the assets its relative returns have a rank correlation of {rank:+.3f} (± "
            f"{noise:.3f} over {main['days']} days) with what came: {word} chance."
        ),
        *few_days(main["days"]),
    ]
