"""What the heads that only some networks have said of one part, beside what came.

Tails, drawdown, regimes and path of every labelled bar, in units of σ √h as the network's. Tails,
drawdown and path are taken times factors by which they cover what they should of the calibration
slice. Beside each stands the simplest forecast of its kind: EWMA volatility times constants of the
same slice (filtered historical simulation; Hull and White, 1998).

The rules are docs/models.md, L59 to L61.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.baselines import (
    past_variances,
)
from tracepaper.replay.learning.card import rounded
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.evaluation.forecasts import outputs_at, thinned
from tracepaper.replay.learning.losses import ADDED
from tracepaper.replay.learning.samples import Samples, drawdown, path, runup, windowed_rows
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.statistics import (
    DailyEstimate,
)
from tracepaper.replay.report.honesty import FEW_DAYS
from tracepaper.replay.report.metrics import is_credible
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.outputs import Levels, Said, levels_for, with_factors
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.types.decisions import (
    DRAWDOWN_LEVELS,
    PATH_LEVELS,
    SHARES,
    TAILS,
    path_steps,
)
from tracepaper.strategies.units import DAY_MS

EWMA: Final = "EWMA, scaled"
EXTREMES: Final = ("drawdown", "runup")
"""Heads whose quantiles are those of a largest move, at ``DRAWDOWN_LEVELS``."""


@dataclass(frozen=True)
class AuxiliaryForecasts:
    """One horizon's rows of one part, [row, ..]: what each head said, by its name, and what came.

    Labels are as in training, by their names. ``ewma`` is EWMA volatility in units of σ, of a bar,
    and ``scaled`` what it says times constants of the calibration slice, by the head.
    """

    horizon: int
    keys: NDArray[np.int64]  # of the bars, as ``Segment.keys``
    days: NDArray[np.int64]
    labels: Mapping[str, Array]
    ewma: Array
    said: Mapping[str, Said]
    scaled: Mapping[str, Array]

    def loss(self, head: str, said: Array | Said) -> Array:
        """Return the loss that *head* was trained by of what is *said* instead, [row]."""
        labels = {name: torch.from_numpy(known) for name, known in self.labels.items()}
        found: Array = ADDED[head].of(torch.from_numpy(said).double(), labels).numpy()
        return found

    @property
    def regime(self) -> NDArray[np.int64]:
        """The most probable regime of each row, from 0, the calmest."""
        found: NDArray[np.int64] = self.said["regimes"][:, 0].argmax(axis=1)
        return found

    def at_average_odds(self) -> Said:
        """Return what a forecast says of regimes that gives each bar the rows' mean odds."""
        said = self.said["regimes"].copy()
        said[:, 0] = np.log(np.exp(said[:, 0]).mean(axis=0))
        return said


def further_of(
    network: Network,
    material: Dataset,
    part: Part,
    levels: Levels | None = None,
) -> list[AuxiliaryForecasts]:
    """Return what the further heads of *network* said of *part*, for each horizon; none of none.

    Without the *levels* of a card they are as they are, and nothing is ``scaled``. Raises
    ``CheckpointMismatch`` for levels that do not fit the heads.
    """
    if not network.further_heads:
        return []
    every = material.samples(part)
    rows = [windowed_rows(samples, network.config.receptive_field) for samples in every]
    total = sum(map(len, rows))
    parts = [
        (samples, chosen, _said(network, samples, chosen))
        for samples, own in zip(every, rows, strict=True)
        if len(chosen := thinned(own, total, network))
    ]
    return [
        _levelled(_of_horizon(parts, column, horizon), levels or {})
        for column, horizon in enumerate(material.horizons)
    ]


def _said(network: Network, samples: Samples, rows: NDArray[np.int64]) -> dict[str, Said]:
    """Return what each further head says of *rows*, [row, horizon, ..], by its name."""
    network.eval()
    names = sorted(network.further_heads)
    kept: dict[str, list[Said]] = {name: [] for name in names}
    for outputs in outputs_at(network, samples.segment, rows):
        for name in names:
            given: Tensor = getattr(outputs, name)
            kept[name].append(given.float().cpu().numpy())
    return {name: np.concatenate(each) for name, each in kept.items()}


def _of_horizon(
    parts: Sequence[tuple[Samples, NDArray[np.int64], Mapping[str, Said]]],
    column: int,
    horizon: int,
) -> AuxiliaryForecasts:
    columns: list[dict[str, NDArray[Any]]] = []
    heads: list[dict[str, Said]] = []
    for samples, rows, said in parts:
        used = samples.weights[rows, column] > 0
        segment, chosen = samples.segment, rows[used]
        columns.append(
            {
                "keys": segment.keys[chosen],
                "days": segment.open_time_ms[chosen] // DAY_MS,
                "ewma": np.sqrt(past_variances(segment)[-1][chosen]),
                "returns": samples.labels["returns"][chosen, column].astype(np.float64),
                "variance": samples.labels["variance"][chosen, column].astype(np.float64),
                "drawdown": drawdown(segment, horizon)[chosen].astype(np.float64),
                "runup": runup(segment, horizon)[chosen].astype(np.float64),
                "path": path(segment, horizon)[chosen].astype(np.float64),
            }
        )
        heads.append({name: each[used, column] for name, each in said.items()})
    merged = {name: np.concatenate([one[name] for one in columns]) for name in columns[0]}
    keys, days, ewma = (merged.pop(name) for name in ("keys", "days", "ewma"))
    return AuxiliaryForecasts(
        horizon=horizon,
        keys=keys,
        days=days,
        labels=merged,
        ewma=ewma,
        said={name: np.concatenate([one[name] for one in heads]) for name in heads[0]},
        scaled={},
    )


# --- what the calibration slice gives


def levels_of(found: Sequence[AuxiliaryForecasts]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return ``calibration.further`` of a card: what *found*, as the network said it, needed."""
    return {
        "ewma": {str(one.horizon): _listed(_ewma_levels(one)) for one in found},
        "factors": {str(one.horizon): _listed(_factors(one)) for one in found},
    }


def _listed(made: Mapping[str, Array]) -> dict[str, list[float]]:
    return {name: [rounded(one) for one in of.ravel().tolist()] for name, of in made.items()}


def _ewma_levels(one: AuxiliaryForecasts) -> dict[str, Array]:
    """Return by head the levels that what came had in units of EWMA volatility."""
    made: dict[str, Array] = {}
    if "tails" in one.said:
        even = np.broadcast_to(one.ewma[:, None, None, None], (len(one.ewma), 2, len(SHARES), 2))
        made["tails"] = _tail_factors(one, even)
    for name in EXTREMES:
        if name in one.said:
            made[name] = np.quantile(one.labels[name] / one.ewma, DRAWDOWN_LEVELS)
    if "path" in one.said:
        came = one.labels["path"] / one.ewma[:, None]
        made["path"] = np.quantile(came, PATH_LEVELS, axis=0).T
    return made


def _factors(one: AuxiliaryForecasts) -> dict[str, Array]:
    """Return by head what it is multiplied by, so that it covers what it should."""
    made: dict[str, Array] = {}
    if "tails" in one.said:
        made["tails"] = _tail_factors(one, one.said["tails"].astype(np.float64))
    for name in EXTREMES:
        if name in one.said:
            ratio = one.labels[name][:, None] / one.said[name]
            made[name] = np.array(
                [np.quantile(ratio[:, at], level) for at, level in enumerate(DRAWDOWN_LEVELS)]
            )
    if "path" in one.said:
        low, middle, high = one.said["path"].astype(np.float64).transpose(2, 0, 1)
        away = one.labels["path"] - middle
        beyond = np.maximum(-away / (middle - low), away / (high - middle))
        made["path"] = np.quantile(beyond, PATH_LEVELS[-1] - PATH_LEVELS[0], axis=0)
    return made


def _tail_factors(one: AuxiliaryForecasts, said: Array) -> Array:
    """Return what makes values at risk and shortfalls *said* right, [tail, share, 2]."""
    factors = np.ones((len(TAILS), len(SHARES), 2))
    for at, sign in enumerate((-1.0, 1.0)):
        lost = sign * one.labels["returns"]
        for place, share in enumerate(SHARES):
            at_risk, shortfall = said[:, at, place].T
            edge = np.quantile(lost / at_risk, 1.0 - share)
            beyond = lost >= edge * at_risk
            factors[at, place] = edge, lost[beyond].sum() / shortfall[beyond].sum()
    return factors


def _levelled(one: AuxiliaryForecasts, levels: Levels) -> AuxiliaryForecasts:
    """Return *one* times the factors of the calibration slice, and what EWMA says beside it."""
    ewma = levels_for("ewma", levels, one.said, one.horizon)
    scaled = {head: np.multiply.outer(one.ewma, values) for head, values in ewma.items()}
    return replace(one, said=with_factors(one.said, levels, one.horizon), scaled=scaled)


# --- figures


def further_figures(found: Sequence[AuxiliaryForecasts]) -> dict[str, Any]:
    """Return the figures of every horizon for a card, each [value, standard error by day]."""
    return {str(one.horizon): _figures(one) for one in found}


def _figures(one: AuxiliaryForecasts) -> dict[str, Any]:
    made: dict[str, dict[str, list[float | None]]] = {name: {} for name in sorted(one.said)}
    for name, section in made.items():
        section |= {key: value.rounded() for key, value in coverage(one, name).items()}
        if name in one.scaled:
            less = one.loss(name, one.said[name]) - one.loss(name, one.scaled[name])
            section["less_ewma"] = figures.mean(less, one.days).rounded()
    if "regimes" in made:
        less = one.loss("regimes", one.said["regimes"])
        less = less - one.loss("regimes", one.at_average_odds())
        made["regimes"]["less_average_odds"] = figures.mean(less, one.days).rounded()
    return made


def coverage(one: AuxiliaryForecasts, head: str) -> dict[str, DailyEstimate]:
    """Return how often what came lay where *head* said, by what was said of it."""
    said = one.said[head].astype(np.float64)
    hits: dict[str, NDArray[np.bool_]] = {}
    match head:
        case "tails":
            lost = np.stack((-one.labels["returns"], one.labels["returns"]), axis=1)
            for at, tail in enumerate(TAILS):
                for place, share in enumerate(SHARES):
                    hits[f"{tail}_{100 * share:g}"] = lost[:, at] > said[:, at, place, 0]
        case "drawdown" | "runup":
            for place, level in enumerate(DRAWDOWN_LEVELS):
                hits[f"below_{100 * level:g}"] = one.labels[head] <= said[:, place]
        case "path":
            came = one.labels["path"]
            for step, bars in enumerate(path_steps(one.horizon)):
                low, _, high = said[:, step].T
                # Steps of a horizon of few bars may end together.
                hits[f"inside_{bars}"] = (came[:, step] >= low) & (came[:, step] <= high)
        case _:
            for number in range(said.shape[-1]):
                hits[f"share_{number + 1}"] = one.regime == number
    return {key: figures.mean(hit.astype(np.float64), one.days) for key, hit in hits.items()}


def further_sentences(found: Mapping[str, Any], *, horizon: int, days: int) -> list[str]:
    """Say what the figures of ``further_figures`` come to at one horizon; nothing of none.

    On few *days* every head is level with the others.
    """
    if not (main := found.get(str(horizon))):
        return []
    lines = []
    if "tails" in main:
        shares = [f"{100 * main['tails'][f'{tail}_5'][0]:.1f} %" for tail in TAILS]
        lines.append(
            f"Its value at risk of 5 % at {horizon} bars was passed by {shares[0]} of untouched"
            f" bars for a long and {shares[1]} for a short position."
        )
    words = [
        f"{name} {verdict(section['less_ewma'], days)}"
        for name, section in main.items()
        if "less_ewma" in section
    ]
    if words:
        lines.append(
            f"Beside EWMA volatility times constants, at {horizon} bars: {', '.join(words)} (better"
            " or worse by more than two errors by day, or level)."
        )
    if "regimes" in main:
        word = verdict(main["regimes"]["less_average_odds"], days)
        lines.append(f"Its odds of regimes are {word} beside their average at {horizon} bars.")
    return lines


def verdict(pair: Sequence[float | None], days: int) -> str:
    """Return whether a difference is better, worse, or level: within two errors or on few days."""
    value, error = pair
    if value is None or days < FEW_DAYS or not is_credible(value, error):
        return "level"
    return "better" if value < 0 else "worse"
