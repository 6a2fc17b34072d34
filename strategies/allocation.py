"""Portfolio weights: shrunk covariance, and rules such as inverse volatility and mean-variance.

The rules are ``equal``, ``inverse`` (volatility), ``minimum`` (variance) and ``mean_variance``
(expected return minus costs of risk and turnover). The last two are convex programs that cvxpy
solves (``pip install tracepaper[portfolio]``). Weights lie in [0, bound], sum to at most 1 and are
rounded to 1e-6, which is finer than any account needs.

The rules are docs/several.md, P20 to P22 and P34.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
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
"""Decimals of weights."""
_MIN_BARS: Final = 3
_SOLVER: Final = "CLARABEL"


class WeightRule(StrEnum):
    """A rule for portfolio weights."""

    EQUAL = "equal"
    INVERSE = "inverse"
    MINIMUM = "minimum"
    MEAN_VARIANCE = "mean_variance"


GAINED: Final = {
    WeightRule.MINIMUM: "deviation_saved_bp",
    WeightRule.MEAN_VARIANCE: "utility_gained_bp",
}
"""The note with the expected gain of new weights, by rule."""
ERROR: Final = "_error"
"""Suffix of the note with the standard error."""
SOLVED: Final = frozenset({WeightRule.MINIMUM, WeightRule.MEAN_VARIANCE})
"""Rules that need cvxpy."""


def covariance(returns: Array, *, half_life: float | None = None) -> Array:
    """Return the shrunk covariance [asset, asset] of *returns* [bar, asset], per bar.

    The mean return is taken as 0, since it is negligible compared with the deviation of a bar. With
    *half_life* (bars) newer bars weigh more. The sample covariance is shrunk towards the mean
    variance times the identity by the share that minimises the expected squared error (Ledoit and
    Wolf, A well-conditioned estimator for large-dimensional covariance matrices, 2004). Raises
    ``DataInvalid`` for too few bars and for non-finite returns.
    """
    weights = _bar_weights(returns, half_life)
    mean, share, sample = _shrunk(returns, weights)
    return np.asarray(share * mean * np.eye(len(sample)) + (1.0 - share) * sample)


def _bar_weights(returns: Array, half_life: float | None) -> Array:
    bars = len(returns)
    if bars < _MIN_BARS or not np.isfinite(returns).all():
        raise DataInvalid(
            f"{bars} bars, possibly with non-finite returns, give no covariance; give at least "
            f"{_MIN_BARS} finite ones."
        )
    weights = np.ones(bars) if half_life is None else 0.5 ** (np.arange(bars)[::-1] / half_life)
    return np.asarray(weights / weights.sum())


def _shrunk(returns: Array, weights: Array) -> tuple[float, float, Array]:
    """Return the mean variance, the shrinkage, and the sample covariance."""
    assets = returns.shape[1]
    sample = (returns * weights[:, None]).T @ returns
    mean = np.trace(sample) / assets
    distance = ((sample - mean * np.eye(assets)) ** 2).sum()
    # The sampling error of the covariance: the variance of the bars' outer products.
    lengths = (returns**2).sum(axis=1)
    cross = np.einsum("bi,ij,bj->b", returns, sample, returns)
    noise = float((weights**2 * (lengths**2 - 2.0 * cross + (sample**2).sum())).sum())
    share = 1.0 if distance == 0.0 else min(1.0, noise / distance)
    return mean, share, sample


class AllocationGoal(Struct, frozen=True):
    """The objective of weights: the rule, the bars until the next ones, and the prices."""

    rule: WeightRule
    bars: int
    half_life: float | None = None
    lean: float = 0.0
    aversion: float = 5.0
    cost: float = 0.0


def expected_gain(
    goal: AllocationGoal, returns: Array, *, held: Array, weights: Array
) -> tuple[float, float] | None:
    """Return the expected gain of *weights* over *held* until the next ones, and its error.

    Both [asset] are evaluated with the estimates from *returns* [bar, asset] that gave the weights.
    For ``mean_variance`` the gain is in the utility of ``allocate``, minus trading costs; for
    ``minimum`` it is the saved standard deviation, with *held* scaled to the sum of the new
    weights. Both are shares of equity. The standard error uses the delta method: each estimate is a
    mean over bars, so the variance is that of the bars' influence on the gain, with Newey and
    West's (1987) autocovariances up to ``4 (bars / 100)^(2/9)`` bars; the shrinkage is taken as
    known. None for rules without an objective, and for ``minimum`` if nothing was held.
    """
    bar_weights = _bar_weights(returns, goal.half_life)
    _, shrinkage, _ = _shrunk(returns, bar_weights)
    mean_square = (returns**2).mean(axis=1)

    def variances(portfolio: Array) -> Array:
        """Return each bar's contribution to the shrunk variance of *portfolio*."""
        sample: Array = (returns * portfolio).sum(axis=1) ** 2
        target = mean_square * (portfolio**2).sum()
        return goal.bars * (shrinkage * target + (1.0 - shrinkage) * sample)

    def influences(values: Array, weights: Array) -> Array:
        """Return each bar's influence on the weighted mean of *values*."""
        return weights * (values - (weights * values).sum())

    match goal.rule:
        case WeightRule.MINIMUM:
            if held.sum() <= 0.0:
                return None
            before, after = variances(held * (weights.sum() / held.sum())), variances(weights)
            old, new = (math.sqrt((bar_weights * each).sum()) for each in (before, after))
            if min(old, new) == 0.0:
                return None
            gain = old - new
            influence = influences(before / (2.0 * old) - after / (2.0 * new), bar_weights)
        case WeightRule.MEAN_VARIANCE:
            even = np.full(len(returns), 1.0 / len(returns))
            expected = goal.lean * goal.bars * (returns * (weights - held)).sum(axis=1)
            risk = 0.5 * goal.aversion * (variances(held) - variances(weights))
            costs = goal.cost * np.abs(weights - held).sum()
            gain = (even * expected).sum() + (bar_weights * risk).sum() - costs
            influence = influences(expected, even) + influences(risk, bar_weights)
        case _:
            return None
    return float(gain), math.sqrt(_long_run(influence))


def _long_run(influence: Array) -> float:
    """Return the variance of the sum of *influence* [bar], including autocovariances."""
    variance = (influence**2).sum()
    lags = int(4.0 * (len(influence) / 100.0) ** (2.0 / 9.0))
    for lag in range(1, min(lags, len(influence) - 1) + 1):
        variance += 2.0 * (1.0 - lag / (lags + 1.0)) * (influence[lag:] * influence[:-lag]).sum()
    return max(float(variance), 0.0)


def repaired(correlations: Array, *, shrink: float = 0.0) -> Array:
    """Return a valid correlation matrix [asset, asset] from estimated pairwise *correlations*.

    The two entries of a pair are averaged and clipped to [-1, 1], and the diagonal becomes 1.
    Off-diagonal entries are multiplied by 1 - *shrink*. Negative eigenvalues become 0, and rows and
    columns are rescaled to a diagonal of 1 (Rebonato and Jäckel, The most general methodology to
    create a valid correlation matrix, 1999, spectral decomposition). Raises ``DataInvalid`` for a
    matrix that is not square or not finite, and for *shrink* outside [0, 1].
    """
    if (
        correlations.ndim != 2
        or len(set(correlations.shape)) != 1
        or not np.isfinite(correlations).all()
    ):
        raise DataInvalid("Correlations must be a square matrix of finite numbers.")
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
    by_volume: Array | None = None,
    aversion: float = 5.0,
    cost: float = 0.0,
) -> Array:
    """Return the weights [asset], each in [0, bound], with a sum of at most 1.

    *risk* is the covariance [asset, asset] until the next rebalancing, *expected* the returns over
    that time, *held* the current weights, *by_volume* those of ``volume_bounds``, which limit a
    weight like *bound*. ``minimum`` invests as much as the bounds allow and minimises
    ``wᵀ risk w / mean variance + cost·|w - held|``. ``mean_variance`` may stay in cash and
    maximises ``expected·w - aversion/2·wᵀ risk w - cost·|w - held|``. *cost* is a fraction of
    the traded value. Raises ``DataInvalid`` for inconsistent arrays, and ``ConfigInvalid`` without
    cvxpy and as ``check_prices``.
    """
    assets = len(risk)
    held = np.zeros(assets) if held is None else held
    if risk.shape != (assets, assets) or len(held) != assets or not np.isfinite(risk).all():
        raise DataInvalid("Risk and held weights must be finite numbers for the same assets.")
    check_prices(bound=bound, aversion=aversion, cost=cost)
    bounds = np.minimum(bound, np.ones(assets) if by_volume is None else by_volume)
    match rule:
        case WeightRule.EQUAL:
            weights = np.full(assets, 1.0 / assets)
        case WeightRule.INVERSE:
            variance = np.diag(risk)
            has_risk = variance > 0.0  # an asset that never moved gets no weight
            weights = np.zeros(assets)
            weights[has_risk] = variance[has_risk] ** -0.5
            weights /= max(weights.sum(), np.finfo(np.float64).tiny)
        case WeightRule.MINIMUM:
            weights = _solved(risk, None, held, bounds, aversion=1.0, cost=cost)
        case WeightRule.MEAN_VARIANCE:
            if expected is None or len(expected) != assets or not np.isfinite(expected).all():
                raise DataInvalid("The rule mean_variance needs a finite return for each asset.")
            weights = _solved(risk, expected, held, bounds, aversion=aversion, cost=cost)
    return rounded(np.minimum(weights, bounds))


def volume_bounds(share: float, contexts: Collection[Any], *, bars: int) -> Array | None:
    """Return the largest weights [asset] by volume, in six decimals; None where *share* is 0.

    A position may be worth *share* of what trades in *bars* bars, by the mean of close × volume
    over the history of each of *contexts* (``BarContext``), which know the account.
    """
    account = next(iter(contexts)).account
    if share == 0.0 or account is None:
        return None
    pasts = [context.history for context in contexts]
    traded = np.array([np.mean(past.close * past.volume) for past in pasts]) * bars
    weights = share * traded / max(account.equity, np.finfo(np.float64).tiny)
    return np.floor(np.minimum(weights, 1.0) * 10**DECIMALS) / 10**DECIMALS


def check_prices(*, bound: float, aversion: float, cost: float, volume_share: float = 0.0) -> None:
    """Raise ``ConfigInvalid`` for an invalid bound, risk aversion, cost or share of volume."""
    if not 0.0 < bound <= 1.0:
        raise ConfigInvalid(f"The largest weight is {bound:g}; give one above 0, at most 1.")
    prices = {"aversion": aversion, "cost": cost, "volume_share": volume_share}
    for name, price in prices.items():
        if not 0.0 <= price < math.inf:
            raise ConfigInvalid(f"{name} is {price:g}; give a finite number of at least 0.")


def rounded(weights: Array) -> Array:
    """Return *weights* rounded to six decimals, none below 0, with a sum of at most 1."""
    millionths = np.round(np.maximum(weights, 0.0) * 10**DECIMALS).astype(np.int64)
    excess = int(millionths.sum()) - 10**DECIMALS
    if excess > 0:  # by rounding: subtract it from the largest
        millionths[int(millionths.argmax())] -= excess
    return millionths / 10**DECIMALS


def require_solver(rule: WeightRule) -> None:
    """Raise ``ConfigInvalid`` if *rule* needs cvxpy and it is missing."""
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
    bounds: Array,
    *,
    aversion: float,
    cost: float,
) -> Array:
    """Solve the program, scaled by the mean variance so that the tolerance is relative."""
    require_solver(WeightRule.MINIMUM if expected is None else WeightRule.MEAN_VARIANCE)
    cvxpy: Any = import_module("cvxpy")
    assets = len(risk)
    unit = float(np.trace(risk)) / assets
    if unit <= 0.0:
        raise DataInvalid("No asset has moved, so there is no risk to minimise; give more bars.")
    weights = cvxpy.Variable(assets)
    spread = cvxpy.quad_form(weights, cvxpy.psd_wrap(risk / unit))
    turnover = cvxpy.norm1(weights - held)
    limits = [weights >= 0, weights <= bounds]
    if expected is None:
        goal = spread + cost * turnover
        limits.append(cvxpy.sum(weights) == min(1.0, bounds.sum()))
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
    """Return log returns [bar, asset] of *closes*, one array per asset at the same times."""
    return np.diff(np.log(np.column_stack(closes)), axis=0)
