"""Reads and checks the part of a model's card that gates use; does not need torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import isfinite
from typing import Any, Final, TypeVar

import msgspec

from tracepaper.strategies.errors import CheckpointMismatch, shown
from tracepaper.strategies.gates.gate import is_input
from tracepaper.strategies.types.calibration import (
    Calibration,
    FittedConfidence,
    GateCoverage,
    RegimeCells,
)

AnyFit = TypeVar("AnyFit")
_QUANTILES_MAX: Final = 1_000


def calibration_of(
    section: Mapping[str, Any], content_free: float, horizons: tuple[int, ...]
) -> Calibration | None:
    """Return the checked ``[calibration]`` of a card; None without quantiles."""
    if "quantiles" not in section:
        return None
    quantiles = section["quantiles"]
    if not isinstance(quantiles, Mapping):
        raise CheckpointMismatch("The card's calibration.quantiles is not a table; train it again.")
    slopes = per_horizon(section.get("slope", 1.0), horizons)
    return Calibration(
        quantiles={name: _ascending(name, values) for name, values in quantiles.items()},
        slope=dict(zip(horizons, slopes, strict=True)),
        content_free=finite_number(section.get("content_free", content_free), "content_free"),
        confidence=_confidence(section),
        cells=_fitted(section, "regimes", RegimeCells),
        coverage=_fitted(section, "coverage", tuple[GateCoverage, ...]) or (),
    )


def _confidence(section: Mapping[str, Any]) -> FittedConfidence | None:
    """Return the fitted confidence of a card; raise for unknown inputs."""
    fitted = _fitted(section, "confidence", FittedConfidence)
    if fitted is not None:
        for name in (*fitted.sign.names, *fitted.volatility.names):
            if not is_input(name):
                raise CheckpointMismatch(
                    f"The card's calibration.confidence names the input {shown(name)}, which this "
                    "version does not read; train it again."
                )
    return fitted


def _fitted(section: Mapping[str, Any], name: str, kind: type[AnyFit]) -> AnyFit | None:
    """Return the checked fitted values under *name*; None if there are none."""
    if name not in section:
        return None
    try:
        return msgspec.convert(section[name], kind)
    except msgspec.ValidationError as error:
        raise CheckpointMismatch(
            f"The card's calibration.{name} cannot be read ({shown(error)}); train it again."
        ) from None


def _ascending(name: str, values: object) -> tuple[float, ...]:
    """Return the quantiles of one measure; raise unless they are finite and ascending."""
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= _QUANTILES_MAX:
        raise CheckpointMismatch(
            f"The card's calibration.quantiles.{name} must list 1 to {_QUANTILES_MAX} numbers; "
            "train it again."
        )
    quantiles = tuple(finite_number(value, f"quantiles.{name}") for value in values)
    if any(later < earlier for earlier, later in pairwise(quantiles)):
        raise CheckpointMismatch(
            f"The card's calibration.quantiles.{name} must not fall; train it again."
        )
    return quantiles


def finite_number(value: object, name: str) -> float:
    """Return *value* as a float; raise unless it is a finite number. *name* is for the message."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise CheckpointMismatch(
            f"The card's calibration.{name} must be a finite number; train it again."
        )
    return float(value)


def per_horizon(value: object, horizons: tuple[int, ...]) -> tuple[float, ...]:
    """Return one number per horizon from a number, a list, or a table keyed by horizon."""
    if isinstance(value, int | float):
        return (finite_number(value, "values"),) * len(horizons)
    if isinstance(value, Mapping) and all(str(bars) in value for bars in horizons):
        return tuple(finite_number(value[str(bars)], f"values at {bars}") for bars in horizons)
    if isinstance(value, list | tuple) and len(value) == len(horizons):
        return tuple(finite_number(item, "values") for item in value)
    raise CheckpointMismatch(
        f"The card's calibration must have one number for each of the horizons {list(horizons)}; "
        "train it again."
    )


def section_of(
    card: Mapping[str, Any], name: str, default: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a section of *card*; raise ``CheckpointMismatch`` if it is missing."""
    section = card.get(name, default)
    if not isinstance(section, Mapping):
        raise CheckpointMismatch(f"The model's card has no section [{name}]; train it again.")
    return dict(section)
