"""Ensembles: a mix of a network and a model of rows, with shares from the calibration slice.

The rules are docs/models.md, L36, L37 and L49.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from tracepaper.replay.document.values import plus_minus
from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning import statistics
from tracepaper.replay.learning.boosting import BoostingOptions
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimators.networks import NetworkModel, network_forecasts
from tracepaper.replay.learning.estimators.tabular import (
    RowKeys,
    RowsModel,
    row_fields,
    spread,
    spreading,
)
from tracepaper.replay.learning.fitted import FitRun, FittedModel, Mix
from tracepaper.replay.learning.judge.forecasts import MODEL, NORMAL, OF_MODEL, Forecasts
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.judge.metrics import LOSSES, TAILS, compare, standardized_tails
from tracepaper.replay.learning.recipe import Kind, Recipe, register
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR, DailyEstimate
from tracepaper.replay.learning.windows import judged_rows
from tracepaper.replay.report.honesty import FEW_DAYS
from tracepaper.replay.report.metrics import is_credible
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.build import MEMBERS, part_of, restore, tensors_of
from tracepaper.strategies.forecasters.tabular import ENSEMBLE, ENSEMBLE_KIND, TrainedRows
from tracepaper.strategies.networks.architecture import Network

NAMES: Final = ("network_member", "row_member")
"""The names of the two members in tables."""
_KEPT: Final = ("model", "architecture", "features", "market", "training", "split", "data")
"""Sections that an ensemble's card keeps of a member's card, besides the scales."""
_SCALES: Final = ("content_free", "horizon", "temperature", "slope", "spread")
"""Keys that it keeps of a member's calibration; gates use quantiles of the ensemble."""


def fit(data: Dataset, recipe: Recipe, run: FitRun) -> EnsembleModel:
    """Fit both members and their scales, then the shares on the calibration slice.

    *data* has the wider features of both; ``data.narrow`` has the network's, if they are fewer.
    """
    network, rows = (
        member.kind.fit(material, member, run._replace(name=member.name)).scaled(material)
        for member, material in zip(recipe.members, (data.narrow or data, data), strict=True)
    )
    run.say("Combining the members.")
    return join(network, rows, data, run)


def join(network: FittedModel, rows: FittedModel, data: Dataset, run: FitRun) -> EnsembleModel:
    """Return the ensemble of two members, its shares fitted on the calibration slice of *data*."""
    tensors = {
        f"{name}.{key}": tensor
        for name, member in zip(MEMBERS, (network, rows), strict=True)
        for key, tensor in member.tensors.items()
    }
    card = _first_card(network, rows, data, run)
    return EnsembleModel(card, tensors, network.stopped).scaled(data)


class EnsembleModel(NetworkModel):
    """A fitted ensemble of a network and a model of rows."""

    called = OF_MODEL
    members = NAMES

    @cached_property
    def network(self) -> Network:
        """The network with its weights, checked."""
        return restore(*self._member(MEMBERS[0]))

    @cached_property
    def rows(self) -> TrainedRows:
        """The model of rows with its arrays, checked."""
        return RowsModel(*self._member(MEMBERS[1])).rows

    def _member(self, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return part_of(self.card, name), tensors_of(self.tensors, name)

    @property
    def mix(self) -> Mix:
        """The network's shares, and the factors of the mix's scale."""
        horizons = self.card["architecture"]["horizons"]
        shares, spreads = (
            np.array([self.card[section][key][str(h)] for h in horizons])
            for section, key in ((ENSEMBLE, "network_share"), ("calibration", "spread"))
        )
        return Mix(shares, spreads)

    def scaled(self, data: Dataset) -> EnsembleModel:
        """Return a copy with shares and spread fitted on the calibration slice."""
        table = self._of_members(data, Part.CALIBRATION)
        shares, gains = {}, {}
        for horizon, rows in table.by_horizon():
            network, trees = (np.log(rows.value("variance", member)) for member in NAMES)
            fitted = network_share(network, trees, rows.labels["variance"], rows.day)
            shares[str(horizon)] = cards.rounded(fitted.share)
            gains[str(horizon)] = fitted.gain.rounded()
        mix = _mixed(table, shares)
        spreads = {str(horizon): spread(rows) for horizon, rows in mix.by_horizon()}
        tails = standardized_tails(spreading(mix, spreads))
        section = {**self.card["calibration"], "spread": spreads, TAILS: tails}
        return self.with_card(
            **{ENSEMBLE: {"network_share": shares, "gain": gains}}, calibration=section
        )

    def _of_members(self, data: Dataset, part: Part) -> Forecasts:
        """Return the forecasts of *part* by the network, both members (``NAMES``) and baselines."""
        table = network_forecasts(self.network, data, part)
        columns, chosen = len(self.rows.schema.names), judged_rows(self.network, data.samples(part))
        variances = [
            row_fields(self.rows.model, samples.segment.values[rows, :columns])["variance"]
            for samples, rows in chosen
        ]
        labelled = [
            variance[samples.weights[rows, column] > 0, column].astype(np.float64)
            for column in range(len(data.horizons))
            for (samples, rows), variance in zip(chosen, variances, strict=True)
        ]
        table = table.with_fields(NAMES[0], variance=table.value("variance"))
        return table.with_fields(NAMES[1], variance=np.concatenate(labelled))

    def answers(self, data: Dataset, part: Part) -> Forecasts:
        """Return the mix's forecasts of *part*, with its members' and the baselines'."""
        section, shares = self.card["calibration"], self.card[ENSEMBLE]["network_share"]
        mix = _mixed(self._of_members(data, part), shares)
        return spreading(mix, section["spread"]).cooled(section["temperature"])

    def calibrated_forecasts(self, data: Dataset, part: Part) -> Forecasts:
        """Return ``answers``, which are calibrated already."""
        return self.answers(data, part)

    def findings(self, results: dict[str, Any], judgement: Judgement) -> list[str]:
        """Return the sentences of every model, and one that compares the mix with its members."""
        for horizon, rows in judgement.forecasts.by_horizon():
            results[str(horizon)]["qlike_gain"] = _gains(rows)
        sentences = FittedModel.findings(self, results, judgement)
        main = results[str(self.horizon)]
        gains = _members_sentence(self.card, main["qlike_gain"], self.horizon, main["days"])
        return [*sentences, gains]


def _first_card(
    network: FittedModel, rows: FittedModel, data: Dataset, run: FitRun
) -> dict[str, Any]:
    """Return the card of an ensemble without shares; ``[parts]`` has the members' cards."""
    parts = {}
    for name, member in zip(MEMBERS, (network, rows), strict=True):
        scales = member.card["calibration"]
        kept = {section: member.card[section] for section in _KEPT}
        kept["model"] = {key: kept["model"].get(key, "") for key in ("kind", "name")}
        kept["calibration"] = {key: scales[key] for key in _SCALES if key in scales}
        parts[name] = kept
    first = parts[MEMBERS[0]]
    return {
        "model": cards.model_section(ENSEMBLE, run.name, run.created_ms),
        "architecture": first["architecture"],
        "features": cards.features_section(data.schema) | data.read_as,
        "market": first["market"],
        "training": {key: first["training"][key] for key in ("seed", "threads")},
        "calibration": first["calibration"],
        "split": first["split"],
        "data": first["data"],
        "versions": cards.versions_section(),
        "parts": parts,
    }


class NetworkShare(NamedTuple):
    """The network's share of the log variance; QLIKE of the mix minus the better member's."""

    share: float
    gain: DailyEstimate  # below zero: the mix is better


def network_share(
    network: Array, rows: Array, realised: Array, days: NDArray[np.int64]
) -> NetworkShare:
    """Return the share w at which exp(w · *network* + (1 - w) · *rows*) has the least QLIKE.

    *network* and *rows* are log variances, *realised* variances; all are [row]. For a realised
    variance v and a log variance s, QLIKE is v e^-s + s up to constants. It is convex in s and so
    in w, so there is one minimum.
    """
    value = np.maximum(realised, VARIANCE_FLOOR)

    def each(share: float) -> Array:
        score: Array = share * network + (1.0 - share) * rows
        return value * np.exp(-score) + score

    optimum = minimize_scalar(
        lambda share: float(each(share).mean()), bounds=(0.0, 1.0), method="bounded"
    )
    candidates = (0.0, 1.0, float(optimum.x))  # the search never reaches the bounds
    share = min(candidates, key=lambda candidate: float(each(candidate).mean()))
    better = min((each(0.0), each(1.0)), key=lambda losses: float(losses.mean()))
    return NetworkShare(share, statistics.mean(each(share) - better, days))


def _mixed(table: Forecasts, shares: Mapping[str, float]) -> Forecasts:
    """Return *table* with the mix in place of the network, by the network's *shares*."""
    network = table.by_row(shares)
    variance = table.mix({NAMES[0]: network, NAMES[1]: 1.0 - network})
    normal = np.full(len(table), NORMAL)
    return table.with_fields(MODEL, variance=variance, scale=np.sqrt(variance), dof=normal)


def _gains(rows: Forecasts) -> dict[str, list[float | None]]:
    """Return the mix's QLIKE minus each member's on the same bars, with errors by day."""
    differences = compare(rows, LOSSES["qlike"], others=NAMES)
    return {name: DailyEstimate(*each.pair).rounded() for name, each in differences.items()}


def _members_sentence(
    card: Mapping[str, Any], gains: Mapping[str, Sequence[float]], horizon: int, days: int
) -> str:
    """Return a sentence with the members' shares, and whether the mix is better than both.

    On few *days* it is not credibly better.
    """
    share = card[ENSEMBLE]["network_share"][str(horizon)]
    kind = card["parts"][MEMBERS[1]]["model"]["kind"]
    words = {NAMES[0]: "the network", NAMES[1]: f"the {kind}"}
    changes = " and ".join(
        f"by {gains[name][0]:+.4f} ({plus_minus(gains[name][1], '.4f', unit=' by days')}) "
        f"from {words[name]}'s"
        for name in NAMES
    )
    is_few = days < FEW_DAYS
    rivals = [
        name for name in NAMES if is_few or gains[name][0] > 0 or not is_credible(*gains[name])
    ]
    verdict = "credibly better than both members."
    if rivals:
        names = " or ".join(words[name] for name in rivals)
        verdict = f"not credibly better than {names} alone, which may be used in its place."
    return (
        f"At {horizon} bars the network's share of the log variance is {share:.2f}, the {kind} has "
        f"the rest; on untouched bars the ensemble's QLIKE differs {changes}: {verdict}"
    )


register(
    Kind(
        ENSEMBLE_KIND,
        RowKeys,
        BoostingOptions,
        fit,
        EnsembleModel,
    )
)
