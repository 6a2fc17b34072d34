"""A gamma regression with log link, fitted by iteratively reweighted least squares with a ridge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from tracepaper.strategies.errors import DataInvalid

Floats = NDArray[np.float64]

RIDGE: Final = 1e-2
"""Penalty a row on squared weights, in units of features whose variance is about one."""
_STEPS_MOST: Final = 50
_CLOSE: Final = 1e-9  # change of a weight at which the fit has arrived
_STEP_LONGEST: Final = 2.0  # change of a log variance that one step may ask for, at the mean row
_BLOCK_ROWS: Final = 65_536


class GammaFit(NamedTuple):
    """log variance = base + weights · (row - centre)."""

    centre: Floats  # [column]
    weights: Floats  # [column]
    base: float


def fit_gamma(
    rows: Sequence[NDArray[np.floating[Any]]],
    variances: Sequence[NDArray[np.floating[Any]]],
    weights: Sequence[NDArray[np.floating[Any]]],
) -> GammaFit:
    """Fit the mean of *variances* [row] given *rows* [row, column], segment by segment.

    Minimises Σ w (v e^-s + s) ÷ Σ w + RIDGE ‖β‖² ÷ 2 over s = base + β · (row - centre), which is
    QLIKE up to constants, by Newton's method with expected curvature (IRLS: McCullagh and Nelder,
    1989, chapter 8). Rows of no weight are left out. Raises ``DataInvalid`` where none is left.
    """
    total = float(sum(part.sum(dtype=np.float64) for part in weights))
    if total <= 0:
        raise DataInvalid("The training part has no label; move the split's dates.")
    pieces = list(zip(rows, variances, weights, strict=True))
    columns = rows[0].shape[1]
    centre, level = np.zeros(columns), 0.0
    for part, variance, weight in pieces:
        used = weight > 0
        centre += weight[used].astype(np.float64) @ part[used] / total
        level += float(weight[used].astype(np.float64) @ variance[used]) / total
    beta = np.zeros(columns + 1)
    beta[-1] = np.log(level)
    # The expected curvature is that of least squares whatever the weights: it is made once.
    curvature = np.zeros((columns + 1, columns + 1))
    for inputs, _, weight in _blocks(pieces, centre):
        curvature += inputs.T @ (inputs * weight[:, None]) / total
    penalty = np.append(np.full(columns, RIDGE), 0.0)
    curvature += np.diag(penalty)
    for _ in range(_STEPS_MOST):
        slope = penalty * beta
        for inputs, variance, weight in _blocks(pieces, centre):
            slope += inputs.T @ (weight * (1.0 - variance * np.exp(-(inputs @ beta)))) / total
        step = solve(curvature, slope, assume_a="pos")
        longest = max(float(np.abs(step).max()), 1e-300)
        beta -= step * min(1.0, _STEP_LONGEST / longest)
        if longest < _CLOSE:
            break
    return GammaFit(centre, beta[:-1], float(beta[-1]))


def _blocks(
    pieces: Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]], centre: Floats
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Yield (inputs with a column of ones, variances, weights) of the rows in use, some at once."""
    for rows, variances, weights in pieces:
        used = np.flatnonzero(weights > 0)
        for start in range(0, len(used), _BLOCK_ROWS):
            at = used[start : start + _BLOCK_ROWS]
            inputs = np.ones((len(at), len(centre) + 1))
            inputs[:, :-1] = rows[at] - centre
            yield inputs, variances[at].astype(np.float64), weights[at].astype(np.float64)
