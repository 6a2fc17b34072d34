"""Network outputs to ``Forecast`` and ``Explanation``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray

from tracepaper.strategies.attention.time_buckets import recent_mass, shift
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.features.rows import FeatureSchema
from tracepaper.strategies.networks.architecture import Network, Outputs
from tracepaper.strategies.networks.stream import Advance
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import Explanation, Forecast
from tracepaper.strategies.types.market import Bar

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What a checkpoint adds to the network: identity, features and calibration."""

    network: Network
    schema: FeatureSchema
    model_id: str
    sha256: str
    temperature: tuple[float, ...]  # of the direction head, one a horizon
    content_free: float  # confidence that mask and encoding alone give
    calibration: Calibration | None
    wide: FeatureSchema | None = None

    @property
    def computed(self) -> FeatureSchema:
        """The schema that is computed, of which the network's own is the first columns."""
        return self.wide or self.schema


def require_one_of_each(bars: Sequence[Bar]) -> None:
    """Raise ``InvariantBroken`` where two of *bars*, a group, are of one instrument."""
    if len({bar.instrument for bar in bars}) < len(bars):
        raise InvariantBroken(
            "Two bars of one instrument cannot be stepped at once; hand over one of each."
        )


def forecasts(
    outputs: Outputs,
    sigmas: Floats,
    explained: Iterable[Explanation | None],
    *,
    horizons: tuple[int, ...],
    temperature: Sequence[float],
    model_id: str,
) -> list[Forecast]:
    """Return the forecast of each bar, stream after stream.

    *outputs* are [stream, bar, …], *sigmas* [stream * bar].

    A return to horizon h is the network's times ``sigma * sqrt(h)``; a NaN in *sigmas* goes
    through to the figures, and the gate refuses them. *temperature* divides the direction's
    logits, one a horizon.
    """
    root = sigmas[:, None] * np.sqrt(horizons)  # one standard deviation to the horizon
    mean, scale, dof, variance = (
        x.flatten(0, 1).double().numpy()
        for x in (outputs.mean, outputs.log_scale, outputs.dof, outputs.log_variance)
    )
    logits = outputs.direction_logits.flatten(0, 1).double()
    logits = logits / logits.new_tensor(temperature)[:, None]
    p_down, p_flat, p_up = torch.softmax(logits, dim=-1).numpy().transpose(2, 0, 1)
    # The scale of a Student-t is not its standard deviation.
    stdev = np.exp(scale) * np.sqrt(dof / (dof - 2.0)) * root
    volatility = np.exp(0.5 * variance) * root
    figures = (mean * root, stdev, p_down, p_flat, p_up, volatility)
    columns = [map(tuple, figure.tolist()) for figure in figures]
    return list(map(Forecast, repeat(horizons), *columns, repeat(model_id), explained))


def explanations(
    advanced: Advance, by_age: Floats, before: Floats, *, content_free: float, context: int
) -> list[Explanation]:
    """Return where each bar looked.

    *by_age* are the rollout rows by age, *before* the same of the bar before each, NaN at the start
    of a stream, where there is no shift; *context* is the receptive field in bars.
    """
    recent = recent_mass(by_age, context).tolist()
    known = ~np.isnan(before[:, -1])
    shifts = [
        float(moved) if has_shift else None
        for moved, has_shift in zip(shift(before, by_age), known, strict=True)
    ]
    rollout = advanced.rollout.reshape(len(by_age), -1)  # [bar, buckets + 1]
    errors = np.abs(1.0 - rollout.sum(axis=1, dtype=np.float64)).tolist()
    entropy = advanced.confidence.reshape(len(by_age), -1)  # [bar, layer * head]
    confidence = entropy.double().mean(1).tolist()
    heads = _packed(entropy.numpy())
    buckets = _packed(rollout[:, :-1])
    older = rollout[:, -1].tolist()
    return [
        Explanation(
            confidence[i],
            content_free,
            recent[i],
            older[i],
            shifts[i],
            errors[i],
            heads[i],
            buckets[i],
        )
        for i in range(len(by_age))
    ]


def _packed(rows: NDArray[np.float32]) -> list[bytes]:
    """Return each of *rows* [bar, number] as little-endian float32: one conversion, then slices."""
    whole = rows.astype("<f4").tobytes()
    size = 4 * rows.shape[1]
    return [whole[at : at + size] for at in range(0, len(whole), size)]
