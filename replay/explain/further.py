"""What the heads that only some networks have said of one decision, asked again.

Tails, drawdown, regimes and path stand in no record; the network is asked anew with the stored
bars, and takes the factors of its calibration slice from the card, as ``evaluate`` does.

The rule is docs/models.md, L61.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracepaper.replay.training.further import TAILS, Said, with_factors
from tracepaper.replay.training.samples import path_steps
from tracepaper.strategies.networks.heads import DRAWDOWN_LEVELS, SHARES

if TYPE_CHECKING:
    from tracepaper.strategies.networks.architecture import Network
    from tracepaper.strategies.networks.heads import Outputs


@dataclass(frozen=True)
class TailAhead:
    """The loss that a share of returns exceeds, and the mean of those: log returns."""

    position: str  # long or short
    share: float
    value_at_risk: float
    expected_shortfall: float


@dataclass(frozen=True)
class DrawdownAhead:
    """A quantile of the largest fall of a close below an earlier one, as a log return."""

    level: float
    drawdown: float


@dataclass(frozen=True)
class RegimeAhead:
    """With what odds the variance comes from a regime, and the volatility to the horizon in it."""

    probability: float
    volatility: float


@dataclass(frozen=True)
class PathStepAhead:
    """The 5, 50 and 95 % quantiles of the log return after so many bars."""

    bars: int
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class FurtherAhead:
    """All of it to one horizon, in bars; empty where the network has no such head."""

    horizon: int
    tails: tuple[TailAhead, ...]
    drawdown: tuple[DrawdownAhead, ...]
    regimes: tuple[RegimeAhead, ...]
    path: tuple[PathStepAhead, ...]


def further_ahead(
    network: Network, outputs: Outputs, sigma: float, levels: Mapping[str, Any]
) -> tuple[FurtherAhead, ...]:
    """Return what *outputs* [1, 1, ..] of a decision say, where *network* has such heads.

    *sigma* is the volatility of a bar, *levels* the card's ``calibration.further``. Raises
    ``CheckpointMismatch`` for levels that do not fit the heads.
    """
    names = sorted(network.further_heads)
    every: dict[str, Said] = {name: getattr(outputs, name)[0].float().numpy() for name in names}
    return tuple(
        _to_horizon(
            horizon,
            with_factors({name: said[:, at] for name, said in every.items()}, levels, horizon),
            sigma,
        )
        for at, horizon in enumerate(network.config.horizons if names else ())
    )


def _to_horizon(horizon: int, said: Mapping[str, Said], sigma: float) -> FurtherAhead:
    unit = sigma * math.sqrt(horizon)
    tails: list[TailAhead] = []
    if "tails" in said:
        for position, by_share in zip(TAILS, said["tails"][0].tolist(), strict=True):
            for share, (at_risk, shortfall) in zip(SHARES, by_share, strict=True):
                tails.append(TailAhead(position, share, unit * at_risk, unit * shortfall))
    falls = said["drawdown"][0].tolist() if "drawdown" in said else []
    steps = said["path"][0].tolist() if "path" in said else []
    bars = path_steps(horizon) if steps else ()
    return FurtherAhead(
        horizon,
        tuple(tails),
        tuple(
            DrawdownAhead(level, unit * fall)
            for level, fall in zip(DRAWDOWN_LEVELS if falls else (), falls, strict=True)
        ),
        _regimes(said, unit),
        tuple(
            PathStepAhead(count, *(sigma * math.sqrt(count) * one for one in quantiles))
            for count, quantiles in zip(bars, steps, strict=True)
        ),
    )


def _regimes(said: Mapping[str, Said], unit: float) -> tuple[RegimeAhead, ...]:
    if "regimes" not in said:
        return ()
    odds, mean = np.exp(said["regimes"][0, :2].astype(np.float64))
    pairs = zip(odds.tolist(), np.sqrt(mean).tolist(), strict=True)
    return tuple(RegimeAhead(share, unit * root) for share, root in pairs)
