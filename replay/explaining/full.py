"""What moved one forecast: attribution, contributions of features and bars, and a deletion test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from tracepaper.replay.explaining.attribution import HEAVIEST, FullAttribution, Past, attribute
from tracepaper.storage.encode import gate_horizon
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.forecasters.attributing import Contributions, Figures, Probe

DELETED_SHARE: Final = 0.05
"""Share of the past bars whose rows the deletion test makes neutral."""
SEEDS: Final = tuple(range(8))
"""Seeds of the random bars that the deletion test is held against."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """The forecast at the gates' horizon as it was stored, and as the model says it again."""

    horizon: int  # bars
    stored: Figures
    recomputed: Figures


@dataclass(frozen=True)
class FeatureMove:
    """What one feature adds to the mean return (log return), by integrated gradients."""

    feature: str
    value: float  # of the decided bar, as the network was given it
    decided_bar: float
    heaviest_bars: float  # of the heaviest past bars, together
    all_bars: float


@dataclass(frozen=True)
class BarMove:
    """What one bar adds to the mean return (log return), beside the weight of the rollout."""

    open_time_ms: int
    age: int  # bars before the decided one
    added: float
    weight: float
    feature: str  # the one that adds most, up or down


@dataclass(frozen=True)
class Moves:
    """Integrated gradients of the mean return; they add up to ``told - neutral`` within ``gap``.

    ``rank_correlation`` is Spearman's between the size of the past bars' contributions and the
    rollout: how far "where it looked" and "what moved it" agree on this decision. It is None where
    either is the same for every bar.
    """

    told: float
    neutral: float  # the mean return of rows that say nothing
    gap: float
    rank_correlation: float | None
    features: tuple[FeatureMove, ...]  # largest sum over all bars first
    bars: tuple[BarMove, ...]  # largest first, the decided bar among them
    by_bar: tuple[float, ...]  # oldest first, beside ``FullAttribution.weights``


@dataclass(frozen=True)
class Trial:
    """How far the forecast moved when the rows of some bars became neutral (absolute values)."""

    order: str  # heaviest, newest or random; decided: that bar alone; past: all but it
    seed: int | None
    bars: int
    mean_return: float
    lean: float


@dataclass(frozen=True)
class Deletion:
    """The deletion test of this very decision: as many past bars by rollout, by age, by chance.

    The decided bar itself stays in all three: both other orders would begin with it, and it
    outweighs all the rest.
    """

    bars: int
    trials: tuple[Trial, ...]

    def of(self, order: str) -> tuple[Trial, ...]:
        """Return the trials of one order; random has one a seed."""
        return tuple(trial for trial in self.trials if trial.order == order)


@dataclass(frozen=True)
class Full:
    """Everything about one decision that its own model must be asked again for."""

    agreement: Agreement
    attribution: FullAttribution
    moves: Moves
    deletion: Deletion


def explain_fully(past: Past) -> Full:
    """Return all that can be recomputed of one decision; raise ``DataInvalid`` if it cannot be."""
    attribution = attribute(past)
    forecast = past.forecast
    wanted = gate_horizon(past.run.config)
    horizon = wanted if wanted in forecast.horizons else forecast.horizons[0]
    at = forecast.horizons.index(horizon)
    probe = Probe(past.forecaster, past.bars, horizon=horizon)
    if len(probe.rows) != len(attribution.weights):
        raise InvariantBroken("The probe and the attribution cover different bars; report this.")
    told = probe.figures()
    stored = Figures(forecast.mean_return[at], forecast.p_up[at] - forecast.p_down[at])
    return Full(
        Agreement(horizon, stored, told),
        attribution,
        moves_of(probe.contributions(), probe.rows[-1].tolist(), probe.names, attribution),
        delete(probe, told, attribution),
    )


def moves_of(
    found: Contributions,
    decided: Sequence[float],
    names: Sequence[str],
    attribution: FullAttribution,
) -> Moves:
    """Sum contributions [bar, feature] over features and over bars.

    *decided* is the decided bar's row, *names* the features in its order.
    """
    table = found.mean_return
    heaviest = table[attribution.heaviest(HEAVIEST)].sum(axis=0)
    features = [
        FeatureMove(name, value, float(own), float(heavy), float(total))
        for name, value, own, heavy, total in zip(
            names, decided, table[-1], heaviest, table.sum(axis=0), strict=True
        )
    ]
    by_bar: Floats = table.sum(axis=1)
    newest = len(by_bar) - 1
    largest = np.argsort(-np.abs(by_bar), kind="stable")[:HEAVIEST].tolist()
    return Moves(
        found.told,
        found.neutral,
        found.gap,
        _rank_correlation(np.abs(by_bar[:-1]), np.array(attribution.weights[:-1])),
        tuple(sorted(features, key=lambda move: -abs(move.all_bars))),
        tuple(
            BarMove(
                attribution.open_time_ms[place],
                newest - place,
                float(by_bar[place]),
                attribution.weights[place],
                names[int(np.abs(table[place]).argmax())],
            )
            for place in largest
        ),
        tuple(by_bar.tolist()),
    )


def _rank_correlation(one: Floats, other: Floats) -> float | None:
    if len(one) == 0 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one, other).statistic)


def delete(probe: Probe, told: Figures, attribution: FullAttribution) -> Deletion:
    """Make as many bars neutral by rollout, by age and by chance, and see how far *told* moves."""
    past = len(attribution.weights) - 1
    count = max(1, round(DELETED_SHARE * past))

    def trial(order: str, bars: Sequence[int], seed: int | None = None) -> Trial:
        left = probe.without(bars)
        return Trial(
            order,
            seed,
            len(bars),
            abs(left.mean_return - told.mean_return),
            abs(left.lean - told.lean),
        )

    chance = [
        trial("random", np.random.default_rng(seed).permutation(past)[:count].tolist(), seed)
        for seed in SEEDS
    ]
    return Deletion(
        count,
        (
            trial("heaviest", attribution.heaviest(count)),
            trial("newest", range(past - count, past)),
            *chance,
            trial("decided", [past]),
            trial("past", range(past)),
        ),
    )
