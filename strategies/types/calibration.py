"""What the calibration slice of a model fitted, as plain numbers.

Each is read from a card and evaluated in Python's own arithmetic, in a fixed order, so that equal
numbers give equal bits. How they are fitted is ``replay/learning/judge/gates.py``.

The rules are docs/decisions.md, G32 to G36.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from msgspec import Struct

ENTROPY: Final = "entropy"
CALIBRATED: Final = "calibrated"
MARGIN: Final = "margin"
CONFIDENCES: Final = (ENTROPY, CALIBRATED, MARGIN)
"""What ``gate.confidence_by`` chooses from; each is a gate of its own, of which one is declared."""
REGIME_MEASURES: Final = ("recent_mass", "confidence", "shift")
"""What an explanation's cells of regimes are told apart by."""
REGIMES_MOST: Final = 7
"""Most cells of regimes that a card may carry."""
_FARTHEST: Final = 4.0
"""A standardised input counts no further than so many deviations: what lies beyond is unknown."""
_STEEPEST: Final = 700.0  # exp of more overflows


class LinearScore(Struct, frozen=True, forbid_unknown_fields=True):
    """The probability 1 ÷ (1 + exp(−score)), score = intercept + Σ weight × standardised input."""

    names: tuple[str, ...]  # of the inputs, as ``strategies/gates/gate.py`` declares them
    center: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]
    intercept: float

    def __post_init__(self) -> None:
        """Refuse what does not fit together; raises ``ValueError``."""
        parts = (self.center, self.scale, self.weight)
        if any(len(part) != len(self.names) for part in parts):
            raise ValueError("a score needs one center, scale and weight for each name")
        _finite(*self.center, *self.scale, *self.weight, self.intercept)
        if any(number <= 0 for number in self.scale):
            raise ValueError("a scale must be above 0")

    def probability(self, values: Sequence[float | None]) -> float | None:
        """Return the probability at *values*, one a name; None where one is not known."""
        total = self.intercept
        for value, center, scale, weight in zip(
            values, self.center, self.scale, self.weight, strict=True
        ):
            if value is None:
                return None
            total += weight * min(max((value - center) / scale, -_FARTHEST), _FARTHEST)
        return 1.0 / (1.0 + math.exp(min(max(-total, -_STEEPEST), _STEEPEST)))


class FittedConfidence(Struct, frozen=True, forbid_unknown_fields=True):
    """How sure a model may be at one horizon: of the sign, and of its forecast of volatility."""

    horizon: int  # bars
    chosen: str  # of ``CONFIDENCES``: what ``gate.confidence_by = "auto"`` stands for
    strict: bool  # the gain was credible on both holdouts: the default threshold is q0.5
    sign: LinearScore  # that the sign of the mean is the return's
    volatility: LinearScore  # that the volatility's error is under its median
    edges: tuple[float, ...]  # between cells of the second, rising
    spread: tuple[float, ...]  # a cell: by how much an interval must be widened there

    def __post_init__(self) -> None:
        """Refuse what does not fit together; raises ``ValueError``."""
        if self.chosen not in CONFIDENCES:
            raise ValueError(f"chosen must be one of {', '.join(CONFIDENCES)}")
        if len(self.spread) != len(self.edges) + 1 or self.horizon < 1:
            raise ValueError("spread needs one number more than edges, and horizon bars")
        _finite(*self.edges, *self.spread)
        if min(self.spread) <= 0 or list(self.edges) != sorted(self.edges):
            raise ValueError("spread must be above 0, and edges must not fall")

    def spread_of(self, sure: float) -> float:
        """Return the factor of an interval's width where the second confidence is *sure*."""
        return self.spread[sum(sure >= edge for edge in self.edges)]


class RegimeCells(Struct, frozen=True, forbid_unknown_fields=True):
    """Cells of standardised measures of attention: the nearest centre names a bar's regime.

    Cell 1 is the one whose realised variance was the least of what was forecast, the last the most.
    """

    names: tuple[str, ...]  # of the measures
    center: tuple[float, ...]
    scale: tuple[float, ...]
    cells: tuple[tuple[float, ...], ...]  # [cell, measure], standardised
    ratio: tuple[float, ...]  # a cell: realised over forecast variance on the calibration slice
    error: tuple[float | None, ...]  # of the ratio, by day; None where it is not known

    def __post_init__(self) -> None:
        """Refuse what does not fit together; raises ``ValueError``."""
        if not set(self.names) <= set(REGIME_MEASURES):
            raise ValueError(f"regimes are named by {', '.join(REGIME_MEASURES)}")
        if not 2 <= len(self.cells) <= REGIMES_MOST:
            raise ValueError(f"regimes need 2 to {REGIMES_MOST} cells")
        rows = (self.center, self.scale, *self.cells)
        if any(len(row) != len(self.names) for row in rows):
            raise ValueError("a regime's cell needs one number for each name")
        if len(self.ratio) != len(self.cells) or len(self.error) != len(self.cells):
            raise ValueError("each cell needs a ratio and its error")
        errors = (error for error in self.error if error is not None)
        _finite(*(number for row in rows for number in row), *self.ratio, *errors)
        if min(self.scale) <= 0:
            raise ValueError("a scale must be above 0")

    def next_cell(
        self, before: int | None, values: Sequence[float | None], hysteresis: float
    ) -> int | None:
        """Return the cell, from 1 on, that follows *before* at a bar's *values*, one a name.

        A cell is left only for one whose centre is nearer by the share *hysteresis* of the
        distance to its own. Where a measure is not known it stays.
        """
        place = []
        for value, center, scale in zip(values, self.center, self.scale, strict=True):
            if value is None:
                return before
            place.append(min(max((value - center) / scale, -_FARTHEST), _FARTHEST))
        distances = [math.dist(place, cell) for cell in self.cells]
        nearest = min(distances)
        if before is not None and nearest >= (1.0 - hysteresis) * distances[before - 1]:
            return before
        return distances.index(nearest) + 1


class GateCoverage(Struct, frozen=True, forbid_unknown_fields=True):
    """Which share of the calibration slice's bars passed the judgement gates, all together."""

    share: float
    thresholds: dict[str, float]  # of those gates, by name
    regimes: tuple[str, ...]  # those of ``gate.regimes``

    def __post_init__(self) -> None:
        """Refuse what is no share; raises ``ValueError``."""
        _finite(self.share, *self.thresholds.values())
        if not 0 <= self.share <= 1:
            raise ValueError("a share lies between 0 and 1")


def share_of(
    coverages: Sequence[GateCoverage], thresholds: Mapping[str, float], regimes: Collection[str]
) -> float | None:
    """Return the coverage of judgement gates at exactly these *thresholds*, in these *regimes*.

    None where it was not counted.
    """
    wanted = (thresholds, set(regimes))
    return next(
        (
            coverage.share
            for coverage in coverages
            if (coverage.thresholds, set(coverage.regimes)) == wanted
        ),
        None,
    )


def _finite(*numbers: float) -> None:
    if not all(map(math.isfinite, numbers)):
        raise ValueError("every number must be finite")


class Calibration(Struct, frozen=True):
    """What a model's card says of its calibration slice."""

    quantiles: dict[str, tuple[float, ...]]  # measure -> its 1 % … 99 % quantiles (99 values)
    slope: dict[int, float]  # horizon -> realised on predicted mean
    content_free: float
    confidence: FittedConfidence | None = None
    cells: RegimeCells | None = None
    coverage: tuple[GateCoverage, ...] = ()  # of all judgement gates together
