"""Reads the part of a model's card that gates use; does not need torch.

Loading compares a card with its hash, so it holds what ``tracepaper train`` wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from tracepaper.strategies.errors import CheckpointMismatch, shown
from tracepaper.strategies.types.calibration import (
    Calibration,
    FittedConfidence,
    GateCoverage,
    MeasuredTails,
    RegimeCells,
)

AnyFit = TypeVar("AnyFit")


def calibration_of(
    section: Mapping[str, Any], content_free: float, horizons: tuple[int, ...]
) -> Calibration | None:
    """Return the ``[calibration]`` of a card; None without quantiles."""
    if "quantiles" not in section:
        return None
    slopes = per_horizon(section.get("slope", 1.0), horizons)
    return Calibration(
        quantiles={name: tuple(values) for name, values in section["quantiles"].items()},
        slope=dict(zip(horizons, slopes, strict=True)),
        content_free=float(section.get("content_free", content_free)),
        confidence=_fitted(section, "confidence", FittedConfidence),
        cells=_fitted(section, "regimes", RegimeCells),
        coverage=_fitted(section, "coverage", tuple[GateCoverage, ...]) or (),
        tails={
            int(bars): tails
            for bars, tails in (_fitted(section, "tails", dict[str, MeasuredTails]) or {}).items()
        },
    )


def _fitted(section: Mapping[str, Any], name: str, kind: type[AnyFit]) -> AnyFit | None:
    """Return the fitted values under *name*; None if there are none."""
    if name not in section:
        return None
    try:
        return msgspec.convert(section[name], kind)
    except msgspec.ValidationError as error:  # another version wrote the card
        raise CheckpointMismatch(
            f"The card's calibration.{name} cannot be read ({shown(error)}); train it again."
        ) from None


def per_horizon(
    value: float | list[float] | Mapping[str, float], horizons: tuple[int, ...]
) -> tuple[float, ...]:
    """Return one number per horizon from a number, a list, or a table keyed by horizon."""
    if isinstance(value, Mapping):
        return tuple(float(value[str(bars)]) for bars in horizons)
    if isinstance(value, list | tuple):
        return tuple(map(float, value))
    return (float(value),) * len(horizons)


def section_of(
    card: Mapping[str, Any], name: str, default: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a section of *card*; raise ``CheckpointMismatch`` if it is missing."""
    section = card.get(name, default)
    if not isinstance(section, Mapping):
        raise CheckpointMismatch(f"The model's card has no section [{name}]; train it again.")
    return dict(section)
