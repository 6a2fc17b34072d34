"""Converts network outputs to ``Forecast`` and ``Explanation``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Final

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.features.rows import FeatureSchema
from tracepaper.strategies.networks.architecture import Network, Outputs
from tracepaper.strategies.time_buckets import (
    event_focus,
    recent_mass,
    row_entropy,
    shift,
    units_of,
)
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import (
    DRAWDOWN_LEVELS,
    PATH_LEVELS,
    PATH_STEPS,
    SHARES,
    TAILS,
    Explanation,
    Forecast,
    HeadForecasts,
    path_steps,
)

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
_LEVELS: Final[Mapping[str, tuple[int, ...]]] = {
    "tails": (len(TAILS), len(SHARES), 2),
    "drawdown": (len(DRAWDOWN_LEVELS),),
    "runup": (len(DRAWDOWN_LEVELS),),
}
_SHAPES: Final[Mapping[str, Mapping[str, tuple[int, ...]]]] = {
    "ewma": {**_LEVELS, "path": (PATH_STEPS, len(PATH_LEVELS))},
    "factors": {**_LEVELS, "path": (PATH_STEPS,)},
}
"""The shapes of the calibrated numbers of each head: factors of EWMA, and factors of the head."""
Levels = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""``calibration.further`` of a card: ``ewma`` and ``factors``, by horizon and head."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A checkpoint's network with its identity, features and calibration."""

    network: Network
    schema: FeatureSchema
    model_id: str
    sha256: str
    temperature: tuple[float, ...]  # of the direction head, one a horizon
    content_free: float  # the confidence of mask and encoding alone
    calibration: Calibration | None
    wide: FeatureSchema | None = None
    levels: Levels = field(default_factory=dict)

    @property
    def computed(self) -> FeatureSchema:
        """The computed schema, whose first columns are those of ``schema``."""
        return self.wide or self.schema


def forecasts(
    outputs: Outputs,
    sigmas: Floats,
    explained: Iterable[Explanation | None],
    *,
    horizons: tuple[int, ...],
    temperature: Sequence[float],
    levels: Levels | None = None,
) -> list[Forecast]:
    """Return the forecast of each bar, stream after stream.

    *outputs* are [stream, bar, …], *sigmas* [stream * bar]. A return to horizon h is the network's
    times ``sigma * sqrt(h)``; a NaN in *sigmas* makes the figures NaN, which the gate refuses.
    *temperature* divides the direction's logits, one per horizon; *levels* are the card's
    calibration of the auxiliary heads.
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
    answers = map(Forecast, repeat(horizons), *map(tuples, figures), explained)
    heads = head_forecasts(outputs, sigmas, horizons, levels or {})
    if heads is None:
        return list(answers)
    return [replace(answer, heads=of) for answer, of in zip(answers, heads, strict=True)]


def head_forecasts(
    outputs: Outputs, sigmas: Floats, horizons: Sequence[int], levels: Levels
) -> list[HeadForecasts] | None:
    """Pack the auxiliary heads' forecasts of each bar; return None for a network without them.

    Arguments are those of ``forecasts``; raises ``CheckpointMismatch`` for levels that do not fit.
    """
    heads: dict[str, Singles] = {
        name: part.flatten(0, 1).float().numpy()
        for name in HeadForecasts.__struct_fields__
        if (part := getattr(outputs, name, None)) is not None
    }
    if not heads:
        return None
    rows = len(sigmas)
    by_horizon = [
        _in_returns(
            with_factors({name: values[:, at] for name, values in heads.items()}, levels, horizon),
            sigmas,
            horizon,
        )
        for at, horizon in enumerate(horizons)
    ]
    columns = [
        packed(np.concatenate([values[name].reshape(rows, -1) for values in by_horizon], axis=1))
        if name in heads
        else [b""] * rows
        for name in HeadForecasts.__struct_fields__
    ]
    return list(map(HeadForecasts, *columns))


def _in_returns(heads: Mapping[str, Singles], sigmas: Floats, horizon: int) -> dict[str, Array]:
    """Convert the outputs *heads* for one horizon, [row, ..] by name, from σ √h to log returns."""
    unit = sigmas * np.sqrt(horizon)
    returns: dict[str, Array] = {}
    for name, values in heads.items():
        match name:
            case "allocation":
                returns[name] = values.astype(np.float64)
            case "regimes":
                odds, mean = np.exp(values[:, :2].astype(np.float64)).transpose(1, 0, 2)
                returns[name] = np.stack((odds, unit[:, None] * np.sqrt(mean)), axis=-1)
            case "path":
                roots = sigmas[:, None] * np.sqrt(path_steps(horizon))
                returns[name] = roots[..., None] * values
            case _:
                returns[name] = unit[(..., *(None,) * (values.ndim - 1))] * values
    return returns


def explanations(
    rows: Singles,
    heads: Singles,
    by_age: Floats,
    before: Floats,
    *,
    errors: Sequence[float],
    content_free: float,
    context: int,
) -> list[Explanation]:
    """Return the explanation of each bar, as ``explained_rows``.

    *by_age* are the *rows* by age, *before* those of each previous bar, NaN at the start of a
    stream, where there is no shift; *context* is the receptive field in bars.
    """
    recent = recent_mass(by_age, context).tolist()
    has_before = ~np.isnan(before[:, -1])
    shifts = [
        float(moved) if has_shift else None
        for moved, has_shift in zip(shift(before, by_age), has_before, strict=True)
    ]
    return explained_rows(
        rows, heads, by_age, recent=recent, shifts=shifts, errors=errors,
        content_free=content_free, context=context,
    )  # fmt: skip


def explained_rows(
    rows: Singles,
    heads: Singles,
    by_age: Floats,
    *,
    recent: Sequence[float],
    shifts: Sequence[float | None],
    errors: Sequence[float],
    content_free: float,
    context: int,
) -> list[Explanation]:
    """Return the explanation of each of *rows* [bar, bucket and older], by its measures.

    *heads* [bar, layer * head] are confidences.
    """
    columns = (
        heads.astype(np.float64).mean(axis=1).tolist(),
        row_entropy(by_age).tolist(),
        repeat(content_free),
        recent,
        event_focus(by_age, context).tolist(),
        rows[:, -1].tolist(),
        shifts,
        errors,
        packed(heads),
        units_of(rows[:, :-1]),
    )
    return list(map(Explanation, *columns))


def tuples(rows: Floats) -> Iterator[tuple[float, ...]]:
    """Return each of *rows* [bar, number] as a tuple, without a list of each."""
    return zip(*rows.T.tolist(), strict=True)


def packed(rows: NDArray[np.floating]) -> list[bytes]:
    """Return each of *rows* [bar, number] as little-endian float32: one conversion, then slices."""
    data = rows.astype("<f4").tobytes()
    size = 4 * rows.shape[1]
    return [data[at : at + size] for at in range(0, len(data), size)]


def with_factors(heads: Mapping[str, Singles], levels: Levels, horizon: int) -> dict[str, Singles]:
    """Multiply the outputs *heads*, [row, ..] by name, by the factors of the calibration slice.

    Raises ``CheckpointMismatch`` for factors that do not fit the heads.
    """
    scaled = dict(heads)
    for head, factors in levels_for("factors", levels, heads, horizon).items():
        if head == "path":
            middle = heads[head][..., 1:2]
            spread = factors[:, None] * (heads[head] - middle)
            scaled[head] = (middle + spread).astype(np.float32)
        else:
            scaled[head] = (heads[head] * factors).astype(np.float32)
    return scaled


def levels_for(
    kind: str, levels: Levels, heads: Mapping[str, Singles], horizon: int
) -> dict[str, Array]:
    """Return the numbers of a card's *levels* for each of *heads*; *kind* is a key of them."""
    numbers: dict[str, Array] = {}
    for head, values in levels.get(kind, {}).get(str(horizon), {}).items():
        if head in heads:
            numbers[head] = np.array(values, dtype=np.float64).reshape(_SHAPES[kind][head])
    return numbers
