"""Results of a model's calibration: fitted confidences, regime cells and gate coverage.

They are read from a model's card and evaluated in plain Python arithmetic in a fixed order, so
equal inputs give bit-identical results. ``replay/learning/judge/gates.py`` fits them.

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
"""The choices of ``gate.confidence_by``. Each is a separate gate; only one of them is declared."""
REGIME_MEASURES: Final = ("recent_mass", "confidence_entropy", "shift")
"""The measures of an explanation that define regime cells."""
MAX_REGIMES: Final = 7
"""Maximum number of regime cells on a card."""
_MAX_DEVIATIONS: Final = 4.0
"""Standardised inputs are clipped here: the fit saw too little data beyond."""
_MAX_EXPONENT: Final = 700.0  # exp of more overflows


class LinearScore(Struct, frozen=True, forbid_unknown_fields=True):
    """The probability 1 ÷ (1 + exp(−score)), score = intercept + Σ weight × standardised input."""

    names: tuple[str, ...]  # of the inputs, see ``strategies/gates/gate.py``
    center: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]
    intercept: float

    def probability(self, values: Sequence[float | None]) -> float | None:
        """Return the probability for *values*, one per name; None if any value is None."""
        total = self.intercept
        for value, center, scale, weight in zip(
            values, self.center, self.scale, self.weight, strict=True
        ):
            if value is None:
                return None
            deviation = (value - center) / scale
            total += weight * min(max(deviation, -_MAX_DEVIATIONS), _MAX_DEVIATIONS)
        return 1.0 / (1.0 + math.exp(min(max(-total, -_MAX_EXPONENT), _MAX_EXPONENT)))


class FittedConfidence(Struct, frozen=True, forbid_unknown_fields=True):
    """Fitted confidence at one horizon: in the sign, and in the volatility forecast."""

    horizon: int  # bars
    chosen: str  # one of ``CONFIDENCES``: the meaning of ``gate.confidence_by = "auto"``
    strict: bool  # True: the gain was credible on both holdouts, so the default threshold is q0.5
    sign: LinearScore  # probability that the mean and the return have the same sign
    volatility: LinearScore  # probability that the volatility's error is below its median
    edges: tuple[float, ...]  # between cells of the volatility confidence, ascending
    spread: tuple[float, ...]  # [cell]: the factor by which an interval must be widened

    def widening(self, confidence: float) -> float:
        """Return the factor of an interval's width at this volatility *confidence*."""
        return self.spread[sum(confidence >= edge for edge in self.edges)]


class RegimeCells(Struct, frozen=True, forbid_unknown_fields=True):
    """Cells in the space of standardised attention measures; a bar's regime is its nearest cell.

    Cells are ordered by ``ratio``, ascending.
    """

    names: tuple[str, ...]  # of the measures
    center: tuple[float, ...]
    scale: tuple[float, ...]
    cells: tuple[tuple[float, ...], ...]  # [cell, measure], standardised
    ratio: tuple[float, ...]  # [cell]: realised ÷ forecast variance on the calibration slice
    error: tuple[float | None, ...]  # [cell]: standard error of the ratio over days, if known

    def next_cell(
        self, previous: int | None, values: Sequence[float | None], hysteresis: float
    ) -> int | None:
        """Return the cell (from 1) for a bar's *values*, one per name, after cell *previous*.

        The cell changes only if the nearest centre is closer than the previous one by at least
        the fraction *hysteresis*. It stays if a value is None.
        """
        if None in values:
            return previous
        point = [
            deviation  # most are within the limits, and calls cost more than comparisons
            if -_MAX_DEVIATIONS <= (deviation := (value - center) / scale) <= _MAX_DEVIATIONS  # type: ignore[operator]
            else min(max(deviation, -_MAX_DEVIATIONS), _MAX_DEVIATIONS)
            for value, center, scale in zip(values, self.center, self.scale, strict=True)
        ]
        distances = [math.dist(point, cell) for cell in self.cells]
        nearest = min(distances)
        if previous is not None and nearest >= (1.0 - hysteresis) * distances[previous - 1]:
            return previous
        return distances.index(nearest) + 1


class GateCoverage(Struct, frozen=True, forbid_unknown_fields=True):
    """The share of the calibration slice's bars that passed all judgement gates."""

    share: float
    thresholds: dict[str, float]  # by gate name
    regimes: tuple[str, ...]  # the ``gate.regimes`` it was counted with


def coverage_share(
    coverages: Sequence[GateCoverage], thresholds: Mapping[str, float], regimes: Collection[str]
) -> float | None:
    """Return the coverage at exactly these *thresholds* and *regimes*; None if there is none."""
    wanted = (thresholds, set(regimes))
    return next(
        (
            coverage.share
            for coverage in coverages
            if (coverage.thresholds, set(coverage.regimes)) == wanted
        ),
        None,
    )


class MeasuredTails(Struct, frozen=True, forbid_unknown_fields=True):
    """The losses of both sides beyond the forecast at one horizon: (loss - mean) ÷ stdev.

    A pair for each of ``decisions.SHARES``: the loss that the share of bars exceeds, and the mean
    of these. ``errors`` are their standard errors, zero for the constants of a normal distribution.
    """

    losses: tuple[tuple[float, float], tuple[float, float]]
    errors: tuple[tuple[float, float], tuple[float, float]]


class Calibration(Struct, frozen=True):
    """The results of a model's calibration slice, as stored on its card."""

    quantiles: dict[str, tuple[float, ...]]  # measure -> its 1 % … 99 % quantiles (99 values)
    slope: dict[int, float]  # horizon -> slope of realised on predicted mean return
    content_free: float
    confidence: FittedConfidence | None = None
    cells: RegimeCells | None = None
    coverage: tuple[GateCoverage, ...] = ()  # of all judgement gates together
    tails: dict[int, MeasuredTails] = {}  # by horizon; empty for a model with tails of its own
