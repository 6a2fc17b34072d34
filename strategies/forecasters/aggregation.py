"""Online aggregation of variance forecasts: weights, level and intervals that follow the losses.

Members forecast the logarithm of a variance, l. Its loss is y e^-l + l, convex in l, where y is the
variance that followed; QLIKE up to constants. Weights follow Bernstein online aggregation with
linearised losses, so that the mix is held to the best weights and not to the best member alone.
Each member keeps a fixed share. A loss enters when its target has closed.

What is learnt has a finite memory. Time is cut into blocks of a quarter of ``memory_ms``; in each a
fold begins from nothing, and a bar is answered by the fold that began four blocks before. So an
answer depends on the last five blocks and the bars that members look back on, and a restarted
daemon says what one says that has run for a year, in every bit.

Sources: Wintenberger, Optimal learning with Bernstein online aggregation, 2017; Cesa-Bianchi and
Lugosi, Prediction, learning, and games, 2006 (gradient trick, fixed share); Patton 2011 (QLIKE);
Gibbs and Candès 2021, and Angelopoulos, Candès and Tibshirani 2023 (intervals by online quantiles).

The rules are docs/models.md, L66 to L68.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BLOCKS: Final = 4
"""Blocks that ``memory_ms`` has: the fold that answers is so many old, or one less than another."""
COVERAGE: Final = 0.9
"""Of the interval whose width is learnt."""
NORMAL_WIDTH: Final = 1.6448536269514722
"""Half of a normal distribution's interval of that coverage, in standard deviations."""
RATIO_MOST: Final = 20.0
"""A variance that is so many times what was forecast counts as no larger one."""
LEVEL_PRIOR: Final = 400.0
"""Horizons of forecasts at the right level that the level begins with."""
WIDTH_STEP: Final = 0.05
"""How far the misses of one horizon may move the logarithm of a width."""
_FOLDS: Final = BLOCKS + 1
_NEVER: Final = -(2**62)


@dataclass(frozen=True, slots=True)
class MixingRule:
    """How a committee mixes; times are milliseconds."""

    memory_ms: int
    half_life_ms: int  # after which a loss counts half
    share: float  # of the weight, divided among all members alike
    floors: tuple[float, ...]  # [horizon], the least variance that follows, in σ² h
    widths: tuple[float, ...]  # [horizon], of the interval at the beginning, in volatilities

    @property
    def block_ms(self) -> int:
        """The time of a block."""
        return max(self.memory_ms // BLOCKS, 1)

    def bars(self, interval_ms: int) -> int:
        """Count the bars of *interval_ms* whose outcomes an answer depends on, at most."""
        return -(-_FOLDS * self.block_ms // interval_ms)


class Mixed(NamedTuple):
    """What is said of one bar, by horizon."""

    log_variance: Floats  # [horizon], of the return to it
    width: Floats  # [horizon], of the interval to either side, in volatilities
    weights: Floats  # [horizon, member]
    regret: Floats  # [horizon, member], what the mix lost more than each, of what still counts


class OnlineMixture:
    """The mix of one instrument's members, fed bar by bar."""

    def __init__(
        self, rule: MixingRule, horizons: tuple[int, ...], members: int, interval_ms: int
    ) -> None:
        """Begin from nothing, with bars of *interval_ms*."""
        self._rule = rule
        self._ahead = np.array(horizons)
        self._members = members
        self._keeps = 0.5 ** (interval_ms / rule.half_life_ms)
        self._room = max(horizons) + 1
        self._prior = LEVEL_PRIOR * self._ahead
        self._rate = WIDTH_STEP / self._ahead
        self._floors = np.array(rule.floors) * self._ahead
        self._columns = np.arange(len(horizons))
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        count, room, members = len(self._ahead), self._room, self._members
        self._seen = 0
        self._block = _NEVER
        self._starts = np.full(_FOLDS, _NEVER)
        # Of each fold, what its weights, level and widths follow from.
        shape = (_FOLDS, count, members)
        self._score, self._regret, self._squares, self._reach, self._rates = np.zeros((5, *shape))
        self._ratios, self._counted = np.zeros((2, *shape[:2]))
        self._log_width = np.empty(shape[:2])
        # Of the newest bars, each in the place of its number; prices twice, so as to be in a row.
        self._moves = np.zeros(2 * room)
        self._closes = np.full(room, np.nan)
        self._born = np.full(room, _NEVER)
        self._logs = np.zeros((room, count, members))
        self._means, self._least = np.zeros((2, room, count))
        self._mixes, self._finals, self._widths = np.zeros((3, room, _FOLDS, count))

    def step(
        self, open_time_ms: int, close: float, logs: Floats, mean: Floats, sigma: float
    ) -> Mixed:
        """Take in a bar and what the members say of it: *logs* [horizon, member].

        These are log variances of the return to each horizon; *mean* [horizon] is the expected
        return and *sigma* the volatility of one bar. Where something is not finite, the answer is
        not either, and nothing is learnt of the bar's own forecast.
        """
        block = open_time_ms // self._rule.block_ms
        if block > self._block:
            self._enter(block)
        place = self._seen % self._room
        before = self._closes[place - 1]
        log_close = np.log(close)
        move = 0.0 if np.isnan(before) else (log_close - before) ** 2
        self._moves[place] = self._moves[place + self._room] = move
        self._closes[place] = log_close
        self._learn(place, log_close)
        self._seen += 1
        weights = self._weights()
        mixes = (weights * logs).sum(axis=-1)
        finals = mixes + np.log((self._prior + self._ratios) / (self._prior + self._counted))
        widths = np.exp(self._log_width)
        is_known = bool(np.isfinite(logs).all() and np.isfinite(mean).all() and sigma > 0)
        self._born[place] = block if is_known else _NEVER
        self._logs[place], self._means[place] = logs, mean
        self._least[place] = self._floors * sigma * sigma
        self._mixes[place], self._finals[place], self._widths[place] = mixes, finals, widths
        own = (block - BLOCKS) % _FOLDS
        return Mixed(finals[own], widths[own], weights[own], self._regret[own].copy())

    def _enter(self, block: int) -> None:
        """Begin a fold in *block*, and in each that was left out before."""
        for number in range(max(self._block + 1, block - BLOCKS), block + 1):
            fold = number % _FOLDS
            self._starts[fold] = number
            for state in (self._score, self._regret, self._squares, self._reach, self._rates):
                state[fold] = 0.0
            self._ratios[fold] = self._counted[fold] = 0.0
            self._log_width[fold] = np.log(self._rule.widths)
        self._block = block

    def _learn(self, place: int, log_close: float) -> None:
        """Take in the losses of the forecasts whose targets close with this bar."""
        made = (place - self._ahead) % self._room
        born = self._born[made]
        # A fold learns from what was said since it began: [fold, horizon].
        knows = self._starts[:, None] <= born
        if not knows.any():
            return
        columns, last = self._columns, place + self._room + 1
        followed = np.array([self._moves[last - ahead : last].sum() for ahead in self._ahead])
        realised = np.maximum(followed, self._least[made, columns])
        mixes = self._mixes[made, :, columns].T  # [fold, horizon]
        ratio = np.minimum(realised * np.exp(-mixes), RATIO_MOST)
        # The loss of a member, linearised at the mix, less the mix's own, with its sign turned.
        gain = (1.0 - ratio)[..., None] * (mixes[..., None] - self._logs[made, columns])
        keeps, chosen = self._keeps, knows[..., None]
        np.copyto(self._reach, np.maximum(keeps * self._reach, np.abs(gain)), where=chosen)
        # Targets of neighbouring bars share all but one bar: so many losses are one.
        squares = keeps * self._squares + self._ahead[:, None] * gain * gain
        np.copyto(self._squares, squares, where=chosen)
        self._rates = self._learning_rates()
        bent = self._rates * gain
        score = 0.5 * (gain - bent * gain + self._reach * (bent > 0.5))
        np.copyto(self._score, keeps * self._score + score, where=chosen)
        np.copyto(self._regret, keeps * self._regret + gain, where=chosen)
        np.copyto(self._ratios, keeps * self._ratios + ratio, where=knows)
        np.copyto(self._counted, keeps * self._counted + 1.0, where=knows)
        moved = np.abs(log_close - self._closes[made] - self._means[made, columns])
        finals = self._finals[made, :, columns].T
        missed = moved > self._widths[made, :, columns].T * np.exp(0.5 * finals)
        widths = self._log_width + self._rate * (missed - (1.0 - COVERAGE))
        np.copyto(self._log_width, widths, where=knows)

    def _learning_rates(self) -> Floats:
        """Compute η of each fold, horizon and member; 0 where nothing was lost or gained yet."""
        most = np.log(max(self._members, 2))
        with np.errstate(divide="ignore"):
            rate = np.minimum(0.5 / self._reach, np.sqrt(most / self._squares))
        found: Floats = np.where(self._squares > 0, rate, 0.0)
        return found

    def _weights(self) -> Floats:
        """Compute the weights of each fold, [fold, horizon, member]."""
        power = self._rates * self._score
        power = np.exp(power - power.max(axis=-1, keepdims=True))
        share = self._rule.share
        found: Floats = (1.0 - share) * power / power.sum(axis=-1, keepdims=True)
        return found + share / self._members
