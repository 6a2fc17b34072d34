"""A network and a row model as one checkpoint: shares fitted on the calibration slice.

The rule is docs/models.md, L26.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from tracepaper.replay.training import card as cards
from tracepaper.replay.training import figures
from tracepaper.replay.training.card import rounded
from tracepaper.replay.training.evaluation import HorizonForecasts, Predictions, judged
from tracepaper.replay.training.explained import JudgedPart, bars_of
from tracepaper.replay.training.figures import DailyEstimate
from tracepaper.replay.training.fitted import save_judged, stored_baselines
from tracepaper.replay.training.material import Material
from tracepaper.replay.training.own import figures_of, predictions_of, selective_of
from tracepaper.replay.training.pipeline import split_of
from tracepaper.replay.training.rowwise import judged_sentences
from tracepaper.replay.training.samples import VARIANCE_FLOOR, Samples
from tracepaper.replay.training.series import Part, iso
from tracepaper.storage.checkpoints import Checkpoint, load
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features_rolling import Array
from tracepaper.strategies.forecasters.build import ENSEMBLE, build
from tracepaper.strategies.forecasters.ensemble import EnsembleForecaster, halves
from tracepaper.strategies.gates import MEASURES
from tracepaper.strategies.types import Forecast

HALVES: Final = ("network_half", "row_half")
"""What tables call the two halves beside the mix."""


class NetworkShare(NamedTuple):
    """The network's share of the log variance, and the mix's QLIKE less that of the better half."""

    share: float
    gain: DailyEstimate  # below zero: the mix is better


def network_share(
    network: Array, rows: Array, realised: Array, days: NDArray[np.int64]
) -> NetworkShare:
    """Return the share w at which exp(w · *network* + (1 − w) · *rows*) has the least QLIKE.

    All are [row]: log variances, what was realised, and the day of each row. QLIKE of v is
    v e^-s + s up to constants, convex in the log variance s and so in w: there is one minimum.
    """
    value = np.maximum(realised, VARIANCE_FLOOR)

    def each(share: float) -> Array:
        score: Array = share * network + (1.0 - share) * rows
        return value * np.exp(-score) + score

    found = minimize_scalar(
        lambda share: float(each(share).mean()), bounds=(0.0, 1.0), method="bounded"
    )
    candidates = (0.0, 1.0, float(found.x))  # the search never reaches the bounds themselves
    share = min(candidates, key=lambda one: float(each(one).mean()))
    better = min((each(0.0), each(1.0)), key=lambda losses: float(losses.mean()))
    return NetworkShare(share, figures.mean(each(share) - better, days))


def combine(
    network: Path, rows: Path, paths: Sequence[str], folder: Path, *, created_ms: int, name: str
) -> Checkpoint:
    """Write the ensemble of two checkpoints into *folder*, judged on candle files; return it.

    *network* is a flash network that streams, *rows* a tree or a glm, trained over one split with
    the same features and horizons. Raises ``ConfigInvalid`` where they were not.
    """
    one, other = load(network), load(rows)
    for section in ("split", "features"):
        if one.card.get(section) != other.card.get(section):
            raise ConfigInvalid(
                f"The halves differ in [{section}] of their cards; train both on the same candles, "
                "dates and features."
            )
    material = Material.read(
        paths,
        lambda _: split_of(one.card),
        tuple(one.card["architecture"]["horizons"]),
        one.card["features"]["schema_id"],
        stored=stored_baselines(network, one.card),
    )
    tensors = {
        **{f"network.{key}": tensor for key, tensor in one.tensors.items()},
        **{f"rows.{key}": tensor for key, tensor in other.tensors.items()},
    }
    card = _shared(_first_card(one, other, name, created_ms), tensors, material)
    card = evaluated_ensemble(card, tensors, material)
    return save_judged(folder, tensors, card, material.fitted)


def _first_card(network: Checkpoint, rows: Checkpoint, name: str, at: int) -> dict[str, Any]:
    """Return the card of an ensemble without shares, whose halves' cards stand in ``[parts]``."""
    inside = ("model", "architecture", "features", "market", "calibration")
    parts = {
        half: {section: made.card[section] for section in inside}
        for half, made in (("network", network), ("rows", rows))
    }
    kept = ("architecture", "features", "market", "calibration", "split", "data", "versions")
    known = {"kind": ENSEMBLE, "name": name, "created": iso(at), "notice": cards.NOTICE}
    return {
        "model": known,
        **{section: network.card[section] for section in kept},
        "parts": parts,
    }


def _shared(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], material: Material
) -> dict[str, Any]:
    """Return *card* with the shares that the calibration slice asks for."""
    even = {str(horizon): 0.5 for horizon in material.horizons}
    found = _judge(
        {**card, "ensemble": {"network_share": even}}, tensors, material, Part.CALIBRATION
    )
    shares = {
        str(one.horizon): network_share(
            np.log(one.variances[HALVES[0]]),
            np.log(one.variances[HALVES[1]]),
            one.variance,
            one.days,
        )
        for one in found
    }
    section = {
        "network_share": {key: rounded(share.share) for key, share in shares.items()},
        "gain": {key: [round(part, 5) for part in share.gain] for key, share in shares.items()},
    }
    return {**card, "ensemble": section}


def evaluated_ensemble(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], material: Material
) -> dict[str, Any]:
    """Return *card* with the figures of the test part, each half's volatility among them."""
    found = judge_ensemble(card, tensors, material)
    return {**card, "honesty": {"sentences": found.sentences}, "figures": found.figures}


def judge_ensemble(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], material: Material
) -> JudgedPart:
    """Return what the mix said of the test part, and its figures."""
    found = _judge(card, tensors, material, Part.TEST)
    told: dict[str, Any] = {str(one.horizon): figures_of(one, MEASURES) for one in found}
    horizon = int(card["calibration"]["horizon"])
    chosen = next(one for one in found if one.horizon == horizon)
    sentences = judged_sentences(told, horizon=horizon, halves=HALVES)
    share, gain = (card["ensemble"][key][str(horizon)] for key in ("network_share", "gain"))
    sentences.append(
        f"At {horizon} bars the network has a share of {share:.2f} in the log variance; on the "
        f"calibration slice the mix changed QLIKE by {gain[0]:+.4f} (± {gain[1]:.4f} by days) from "
        "the better half."
    )
    told["gates"] = {"selective": selective_of(chosen, MEASURES)}
    return JudgedPart(found, frozenset(MEASURES), told, sentences)


def _judge(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], material: Material, part: Part
) -> list[HorizonForecasts]:
    """Return the mix, its halves and the baselines on *part*, for each horizon."""
    forecaster = build(card, tensors, threads=torch.get_num_threads(), mode="scan")
    assert isinstance(forecaster, EnsembleForecaster)
    answered: list[tuple[Samples, NDArray[np.int64], Predictions]] = []
    parts: list[Array] = []
    for samples in material.samples(part):
        rows, said = _said(forecaster, samples)
        if len(rows):
            answered.append((samples, rows, predictions_of(samples, rows, said)))
            root = samples.segment.sigma[rows][:, None, None] * np.sqrt(forecaster.horizons)
            volatility = np.stack([halves(forecast)[:, 1] for forecast in said])
            parts.append((volatility / root) ** 2)
    if not answered:
        raise ConfigInvalid(
            f"The {part.value} part has no bar with {forecaster.context} bars before it; move the "
            "split's dates or give longer candles."
        )
    found = judged(answered, material.baselines, material.horizons)
    every = np.concatenate(parts)  # [row, half, horizon]
    weights = np.concatenate([samples.weights[rows] for samples, rows, _ in answered])
    return [
        replace(
            one,
            variances={
                **one.variances,
                **{
                    half: every[weights[:, column] > 0, at, column]
                    for at, half in enumerate(HALVES)
                },
            },
        )
        for column, one in enumerate(found)
    ]


def _said(
    forecaster: EnsembleForecaster, samples: Samples
) -> tuple[NDArray[np.int64], list[Forecast]]:
    """Return the labelled rows of *samples* with a full context, and their forecasts."""
    rows = np.flatnonzero(samples.weights.any(axis=1))
    rows = rows[rows >= forecaster.context - 1]
    if not len(rows):
        return rows, []
    start = int(rows[0]) - forecaster.context + 1
    forecaster.warm(samples.segment.candles.instrument, [])
    found = forecaster.scan(bars_of(samples.segment, start, int(rows[-1]) + 1))
    known = [(row, one) for row in rows.tolist() if (one := found[row - start]) is not None]
    return np.array([row for row, _ in known], dtype=np.int64), [one for _, one in known]
