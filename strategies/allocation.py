"""Portfolio weights: shrunk covariance, and rules such as inverse volatility and mean-variance.

``equal``, ``inverse`` (by volatility), ``minimum`` (least variance) and ``mean_variance`` (expected
return less a price of risk and of turnover). The last two are convex programs that cvxpy solves
(``pip install tracepaper[portfolio]``). Weights lie within [0, bound], sum to at most 1 and are
rounded to 1e-6, below which no account would tell them apart.

The rules are docs/several.md, P20 to P22 and P34.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from importlib import import_module
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import missing_sentence

Array = npt.NDArray[np.float64]

DECIMALS: Final = 6
"""Weights are rounded to so many."""
_LEAST_BARS: Final = 3
_SOLVER: Final = "CLARABEL"


class WeightRule(StrEnum):
    """How weights are found."""

    EQUAL = "equal"
    INVERSE = "inverse"
    MINIMUM = "minimum"
    MEAN_VARIANCE = "mean_variance"


GAINED: Final = {
    WeightRule.MINIMUM: "deviation_saved_bp",
    WeightRule.MEAN_VARIANCE: "utility_gained_bp",
}
"""The note of what new weights are expected to gain, by the rule that found them."""
ERROR: Final = "_error"
"""What the note of its standard error ends in."""
SOLVED: Final = frozenset({WeightRule.MINIMUM, WeightRule.MEAN_VARIANCE})
"""Rules that are solved as a program, which needs cvxpy."""


def covariance(returns: Array, *, half_life: float | None = None) -> Array:
    """Return the shrunk covariance [asset, asset] of *returns* [bar, asset], per bar.

    The mean is taken as 0, as it is next to nothing beside a bar's deviation. *half_life* in bars
    weighs newer ones more. It is shrunk towards the mean variance times the identity, by the share
    that minimises the expected squared error: Ledoit and Wolf, A well-conditioned estimator for
    large-dimensional covariance matrices, 2004. Raises ``DataInvalid`` for too few bars and for
    returns that are not finite.
    """
    weights = _bar_weights(returns, half_life)
    mean, share, sample = _shrunk(returns, weights)
    return np.asarray(share * mean * np.eye(len(sample)) + (1.0 - share) * sample)


def _bar_weights(returns: Array, half_life: float | None) -> Array:
    bars = len(returns)
    if bars < _LEAST_BARS or not np.isfinite(returns).all():
        raise DataInvalid(
            f"A covariance of {bars} bars, some of which may not be finite, says nothing; give at "
            f"least {_LEAST_BARS} finite ones."
        )
    weights = np.ones(bars) if half_life is None else 0.5 ** (np.arange(bars)[::-1] / half_life)
    return np.asarray(weights / weights.sum())


def _shrunk(returns: Array, weights: Array) -> tuple[float, float, Array]:
    """Return the mean variance, the share of shrinkage, and the sample's covariance."""
    assets = returns.shape[1]
    sample = (returns * weights[:, None]).T @ returns
    mean = np.trace(sample) / assets
    distance = ((sample - mean * np.eye(assets)) ** 2).sum()
    # How much the sample itself would differ on other bars: the variance of its outer products.
    lengths = (returns**2).sum(axis=1)
    along = np.einsum("bi,ij,bj->b", returns, sample, returns)
    noise = float((weights**2 * (lengths**2 - 2.0 * along + (sample**2).sum())).sum())
    share = 1.0 if distance == 0.0 else min(1.0, noise / distance)
    return mean, share, sample


class AllocationGoal(Struct, frozen=True):
    """What weights are found for: the rule, the bars that they are held, and the prices."""

    rule: WeightRule
    bars: int
    half_life: float | None = None
    lean: float = 0.0
    aversion: float = 5.0
    cost: float = 0.0


def expected_gain(
    goal: AllocationGoal, returns: Array, *, held: Array, weights: Array
) -> tuple[float, float] | None:
    """Return the gain that is expected of *weights* over *held* until the next, and its error.

    Both [asset] are judged by the estimates of *returns* [bar, asset] that found the weights. For
    ``mean_variance`` it is the utility that ``allocate`` states, the cost of the way taken off; for
    ``minimum`` the standard deviation saved, *held* brought to the sum of the new weights. Both are
    shares of equity. The standard error is by the delta method: each estimate is a mean over bars,
    so the variance is that of the bars' influence on the gain, with the autocovariances of Newey
    and West (1987) up to ``4 (bars / 100)^(2/9)`` bars; the share of shrinkage is taken as known.
    None for rules that optimise nothing, and for ``minimum`` where nothing was held.
    """
    time = _bar_weights(returns, goal.half_life)
    _, share, _ = _shrunk(returns, time)
    mean_square = (returns**2).mean(axis=1)

    def variances(of: Array) -> Array:
        """Return each bar's contribution to the shrunk variance of the weights *of*."""
        along: Array = (returns * of).sum(axis=1) ** 2
        return goal.bars * (share * mean_square * (of**2).sum() + (1.0 - share) * along)

    def centred(values: Array, by: Array) -> Array:
        """Return each bar's influence on the mean of *values* weighed *by*."""
        return by * (values - (by * values).sum())

    match goal.rule:
        case WeightRule.MINIMUM:
            if held.sum() <= 0.0:
                return None
            before, after = variances(held * (weights.sum() / held.sum())), variances(weights)
            from_, to = (math.sqrt((time * each).sum()) for each in (before, after))
            if min(from_, to) == 0.0:
                return None
            gain = from_ - to
            influence = centred(before / (2.0 * from_) - after / (2.0 * to), time)
        case WeightRule.MEAN_VARIANCE:
            even = np.full(len(returns), 1.0 / len(returns))
            moved = goal.lean * goal.bars * (returns * (weights - held)).sum(axis=1)
            risk = 0.5 * goal.aversion * (variances(held) - variances(weights))
            paid = goal.cost * np.abs(weights - held).sum()
            gain = (even * moved).sum() + (time * risk).sum() - paid
            influence = centred(moved, even) + centred(risk, time)
        case _:
            return None
    return float(gain), math.sqrt(_long_run(influence))


def _long_run(influence: Array) -> float:
    """Return the variance of the sum of *influence* [bar], neighbours' covariances included."""
    variance = (influence**2).sum()
    lags = int(4.0 * (len(influence) / 100.0) ** (2.0 / 9.0))
    for lag in range(1, min(lags, len(influence) - 1) + 1):
        variance += 2.0 * (1.0 - lag / (lags + 1.0)) * (influence[lag:] * influence[:-lag]).sum()
    return max(float(variance), 0.0)


def repaired(correlations: Array, *, shrink: float = 0.0) -> Array:
    """Make a correlation matrix [asset, asset] of the *correlations* of each pair, row by row.

    Of two entries of a pair the mean is taken, within [-1, 1], and the diagonal is 1. Off it all is
    multiplied by one less *shrink*. Where the result has negative eigenvalues these become 0, and
    rows and columns are scaled until the diagonal is 1 again: Rebonato and Jäckel, The most general
    methodology to create a valid correlation matrix, 1999 (spectral decomposition). Raises
    ``DataInvalid`` for what is not square or not finite, and for a share outside [0, 1].
    """
    if (
        correlations.ndim != 2
        or len(set(correlations.shape)) != 1
        or not np.isfinite(correlations).all()
    ):
        raise DataInvalid("Correlations must be finite, a row and a column for each asset.")
    if not 0.0 <= shrink <= 1.0:
        raise DataInvalid(f"Correlations cannot be shrunk by {shrink:g}; give a share of 0 to 1.")
    matrix = (1.0 - shrink) * np.clip(0.5 * (correlations + correlations.T), -1.0, 1.0)
    np.fill_diagonal(matrix, 1.0)
    values, vectors = np.linalg.eigh(matrix)
    if values[0] >= 0.0:
        return np.asarray(matrix)
    roots = vectors * np.sqrt(np.maximum(values, 0.0))
    roots /= np.linalg.norm(roots, axis=1, keepdims=True)
    matrix = roots @ roots.T
    np.fill_diagonal(matrix, 1.0)
    return np.asarray(matrix)


def covariance_of(deviations: Array, correlations: Array, *, shrink: float) -> Array:
    """Return the covariance [asset, asset] of *deviations* [asset] and repaired *correlations*."""
    return np.asarray(np.outer(deviations, deviations) * repaired(correlations, shrink=shrink))


def allocate(
    rule: WeightRule,
    risk: Array,
    *,
    expected: Array | None = None,
    held: Array | None = None,
    bound: float = 1.0,
    aversion: float = 5.0,
    cost: float = 0.0,
) -> Array:
    """Return the weight of each asset [asset], in [0, bound] and of a sum of at most 1.

    *risk* is the covariance [asset, asset] over the time until weights are found again, *expected*
    the returns over it, *held* the weights now. ``minimum`` spends all that *bound* lets it: least
    ``wᵀ risk w / mean variance + cost·|w - held|``. ``mean_variance`` may hold nothing: most
    ``expected·w - aversion/2·wᵀ risk w - cost·|w - held|``, where *cost* is the share of what is
    traded that trading costs. Raises ``DataInvalid`` for what does not fit, and ``ConfigInvalid``
    without cvxpy and as ``check_prices``.
    """
    assets = len(risk)
    held = np.zeros(assets) if held is None else held
    if risk.shape != (assets, assets) or len(held) != assets or not np.isfinite(risk).all():
        raise DataInvalid("Risk and weights must be finite and of as many assets; give one each.")
    check_prices(bound=bound, aversion=aversion, cost=cost)
    match rule:
        case WeightRule.EQUAL:
            weights = np.full(assets, 1.0 / assets)
        case WeightRule.INVERSE:
            variance = np.diag(risk)
            moved = variance > 0.0  # an asset that never moved holds nothing
            weights = np.zeros(assets)
            weights[moved] = variance[moved] ** -0.5
            weights /= max(weights.sum(), np.finfo(np.float64).tiny)
        case WeightRule.MINIMUM:
            weights = _solved(risk, None, held, bound, aversion=1.0, cost=cost)
        case WeightRule.MEAN_VARIANCE:
            if expected is None or len(expected) != assets or not np.isfinite(expected).all():
                raise DataInvalid("The rule mean_variance needs a finite return for each asset.")
            weights = _solved(risk, expected, held, bound, aversion=aversion, cost=cost)
    return rounded(np.minimum(weights, bound))


def check_prices(*, bound: float, aversion: float, cost: float) -> None:
    """Raise ``ConfigInvalid`` for a bound, or a price of risk or of turnover, that is none."""
    if not 0.0 < bound <= 1.0:
        raise ConfigInvalid(f"A largest weight of {bound:g} is none; give one above 0, at most 1.")
    for name, price in (("aversion", aversion), ("cost", cost)):
        if not 0.0 <= price < math.inf:
            raise ConfigInvalid(
                f"{name} is {price:g}, and no weights are best then; give at least 0."
            )


def rounded(weights: Array) -> Array:
    """Return *weights* at six decimals, none below 0, their sum at most 1."""
    whole = np.round(np.maximum(weights, 0.0) * 10**DECIMALS).astype(np.int64)
    over = int(whole.sum()) - 10**DECIMALS
    if over > 0:  # rounding up may pass 1 by some millionths: they are taken from the largest
        whole[int(whole.argmax())] -= over
    return whole / 10**DECIMALS


def require_solver(rule: WeightRule) -> None:
    """Raise ``ConfigInvalid`` where *rule* needs cvxpy and it is missing."""
    if rule not in SOLVED:
        return
    try:
        import_module("cvxpy")
    except ImportError as error:
        raise ConfigInvalid(
            f"{missing_sentence('cvxpy', f'The rule {rule}')[:-1]}, or choose equal or inverse "
            f"({error})."
        ) from None


def _solved(
    risk: Array,
    expected: Array | None,
    held: Array,
    bound: float,
    *,
    aversion: float,
    cost: float,
) -> Array:
    """Solve the program, in units of the mean variance so that its tolerance means the same."""
    require_solver(WeightRule.MINIMUM if expected is None else WeightRule.MEAN_VARIANCE)
    cvxpy: Any = import_module("cvxpy")
    assets = len(risk)
    unit = float(np.trace(risk)) / assets
    if unit <= 0.0:
        raise DataInvalid("No asset has moved, so there is no risk to weigh; give more bars.")
    weights = cvxpy.Variable(assets)
    spread = cvxpy.quad_form(weights, cvxpy.psd_wrap(risk / unit))
    turnover = cvxpy.norm1(weights - held)
    limits = [weights >= 0, weights <= bound]
    if expected is None:
        goal = spread + cost * turnover
        limits.append(cvxpy.sum(weights) == min(1.0, bound * assets))
    else:
        goal = 0.5 * aversion * spread + (cost * turnover - expected @ weights) / unit
        limits.append(cvxpy.sum(weights) <= 1)
    problem = cvxpy.Problem(cvxpy.Minimize(goal), limits)
    try:
        problem.solve(solver=_SOLVER)
    except cvxpy.error.SolverError as error:
        raise DataInvalid(f"The weights could not be found ({error}); give more bars.") from None
    if weights.value is None:
        raise DataInvalid(f"The weights could not be found ({problem.status}); give other bounds.")
    return np.asarray(weights.value, dtype=np.float64)


def returns_of(closes: Sequence[Array]) -> Array:
    """Return log returns [bar, asset] of *closes*, one array an asset, of the same times."""
    return np.diff(np.log(np.column_stack(closes)), axis=0)
