"""The online mix: its weights by an own computation, its finite memory, and what it may know."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tracepaper.strategies.forecasters.aggregation import (
    BLOCKS,
    COVERAGE,
    LEVEL_PRIOR,
    NORMAL_WIDTH,
    RATIO_MOST,
    WIDTH_STEP,
    Mixed,
    MixingRule,
    OnlineMixture,
)

MINUTE_MS = 60_000
HORIZONS = (2, 5)
RULE = MixingRule(
    memory_ms=80 * MINUTE_MS,
    half_life_ms=30 * MINUTE_MS,
    share=0.06,
    floors=(0.05, 0.05),
    widths=(1.5, 1.7),
)
BARS = 400
RNG = np.random.default_rng(3)
SIGMA = 1e-3 * np.exp(0.5 * np.sin(np.arange(BARS) / 25))
CLOSES = 100 * np.exp(np.cumsum(RNG.normal(size=BARS) * SIGMA))
CLOSES[250:] *= 0.97  # a crash: a variance a hundred times what was forecast
ROOTS = np.log(np.array(HORIZONS))[None, :, None]
LOGS = 2 * np.log(SIGMA)[:, None, None] + ROOTS + RNG.normal(size=(BARS, 2, 3)) * [0.05, 0.5, 1.2]
MEANS = 1e-5 * RNG.normal(size=(BARS, 2))
OPENS = 1_700_000_000_000 + MINUTE_MS * np.arange(BARS)


def fed(
    rule: MixingRule = RULE,
    bars: range = range(BARS),
    *,
    closes: np.ndarray = CLOSES,
    logs: np.ndarray = LOGS,
    opens: np.ndarray = OPENS,
) -> list[Mixed]:
    """Feed *bars* to a mix that begins from nothing."""
    mix = OnlineMixture(rule, HORIZONS, logs.shape[2], MINUTE_MS)
    return [
        mix.step(int(opens[t]), float(closes[t]), logs[t], MEANS[t], float(SIGMA[t])) for t in bars
    ]


def by_hand(at: int, horizon: int) -> tuple[list[float], list[float], float, float]:
    """Weights, regrets, level and width at bar *at* by plain sums, over one fold alone."""
    column, block_ms = HORIZONS.index(horizon), RULE.memory_ms // BLOCKS
    begin = OPENS[at] // block_ms - BLOCKS
    first = next(t for t in range(BARS) if OPENS[t] // block_ms >= begin)
    members, keeps = range(3), 0.5 ** (MINUTE_MS / RULE.half_life_ms)
    score, regret, squares, reach = ([0.0] * 3 for _ in range(4))
    ratios = counted = 0.0
    log_width = math.log(RULE.widths[column])
    mixes: dict[int, float] = {}
    finals: dict[int, float] = {}
    widths: dict[int, float] = {}
    weights: list[float] = []
    moves = np.diff(np.log(CLOSES), prepend=np.log(CLOSES[0])) ** 2

    def rate(k: int) -> float:
        if squares[k] == 0:
            return 0.0
        return min(0.5 / reach[k], math.sqrt(math.log(3) / squares[k]))

    for t in range(first, at + 1):
        made = t - horizon
        if made >= first:
            floor = RULE.floors[column] * horizon * SIGMA[made] ** 2
            realised = max(float(moves[made + 1 : t + 1].sum()), floor)
            ratio = min(realised * math.exp(-mixes[made]), RATIO_MOST)
            for k in members:
                gain = (1.0 - ratio) * (mixes[made] - LOGS[made, column, k])
                reach[k] = max(keeps * reach[k], abs(gain))
                squares[k] = keeps * squares[k] + horizon * gain * gain
                eta = rate(k)
                bonus = reach[k] if eta * gain > 0.5 else 0.0
                score[k] = keeps * score[k] + 0.5 * (gain - eta * gain * gain + bonus)
                regret[k] = keeps * regret[k] + gain
            ratios, counted = keeps * ratios + ratio, keeps * counted + 1.0
            moved = abs(math.log(CLOSES[t] / CLOSES[made]) - MEANS[made, column])
            missed = moved > widths[made] * math.exp(0.5 * finals[made])
            log_width += WIDTH_STEP / horizon * (missed - (1 - COVERAGE))
        power = [math.exp(rate(k) * score[k]) for k in members]
        weights = [(1 - RULE.share) * one / sum(power) + RULE.share / 3 for one in power]
        mixes[t] = sum(w * LOGS[t, column, k] for k, w in enumerate(weights))
        prior = LEVEL_PRIOR * horizon
        finals[t] = mixes[t] + math.log((prior + ratios) / (prior + counted))
        widths[t] = math.exp(log_width)
    return weights, regret, finals[at], widths[at]


@pytest.mark.parametrize("at", [120, 257, 399])
@pytest.mark.parametrize("horizon", HORIZONS)
def test_weights_regret_level_and_width_are_those_of_plain_sums(at: int, horizon: int) -> None:
    found, column = fed()[at], HORIZONS.index(horizon)
    weights, regret, final, width = by_hand(at, horizon)
    assert found.weights[column] == pytest.approx(weights, rel=1e-9)
    assert found.regret[column] == pytest.approx(regret, rel=1e-9, abs=1e-9)
    assert found.log_variance[column] == pytest.approx(final, rel=1e-12)
    assert found.width[column] == pytest.approx(width, rel=1e-9)


def test_the_better_member_gains_weight_and_each_keeps_its_share() -> None:
    weights = fed()[-1].weights
    assert (weights[:, 0] > weights[:, 1]).all()
    assert (weights[:, 1] > weights[:, 2]).all()
    assert weights.sum(axis=1) == pytest.approx([1.0, 1.0])
    assert weights.min() >= RULE.share / 3


def same(one: Mixed, other: Mixed) -> bool:
    """Whether both are equal in every bit."""
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))


def test_a_later_bar_moves_nothing_and_a_loss_enters_when_its_target_closes() -> None:
    known, moved = fed(), CLOSES.copy()
    moved[300:] *= 1.05
    other = fed(closes=moved)
    assert all(map(same, known[:300], other[:300]))
    # The bar that moved closes the targets of what was said before it.
    assert not np.array_equal(known[300].weights, other[300].weights)
    said = LOGS.copy()
    said[295] += 3.0  # the longer target closes with bar 300, the shorter with 297
    third = fed(logs=said)
    assert np.array_equal(known[296].weights, third[296].weights)
    assert not np.array_equal(known[297].weights[0], third[297].weights[0])
    assert np.array_equal(known[299].weights[1], third[299].weights[1])
    assert not np.array_equal(known[300].weights[1], third[300].weights[1])


@pytest.mark.parametrize("last", [399, 398, 380, 379])
def test_an_answer_depends_on_five_blocks_in_every_bit(last: int) -> None:
    whole = fed()[last]
    needed = RULE.bars(MINUTE_MS)
    assert needed == 100
    assert same(whole, fed(bars=range(last - needed + 1, last + 1))[-1])


def test_one_block_less_is_not_enough() -> None:
    assert not same(fed()[399], fed(bars=range(399 - 80 + 2, 400))[-1])


def test_a_hole_in_time_is_forgotten_as_a_restart_forgets_it() -> None:
    opens = OPENS.copy()
    opens[250:] += 7 * RULE.memory_ms
    whole = fed(opens=opens)
    alone = fed(bars=range(250, BARS), opens=opens)
    assert same(whole[-1], alone[-1])
    first = whole[250].weights  # all folds begin anew
    assert first == pytest.approx(np.full((2, 3), 1 / 3))


def test_what_is_not_finite_is_answered_so_and_teaches_nothing() -> None:
    logs = LOGS.copy()
    logs[310, 1, 2] = np.nan
    found = fed(logs=logs)
    assert np.isnan(found[310].log_variance[1])
    assert np.isfinite(found[310].log_variance[0])
    later = np.stack([one.log_variance for one in found[311:]])
    assert np.isfinite(later).all()
    assert same(found[309], fed()[309])


def test_the_level_follows_a_bias_and_the_width_the_coverage() -> None:
    rng = np.random.default_rng(11)
    bars, sigma = 12_000, 1e-3
    memory_ms = bars * MINUTE_MS * BLOCKS // (BLOCKS + 1)
    rule = replace(
        RULE, memory_ms=memory_ms, half_life_ms=memory_ms, widths=(NORMAL_WIDTH,) * len(HORIZONS)
    )
    closes = 100 * np.exp(np.cumsum(sigma * rng.normal(size=bars)))
    log_true = 2 * np.log(sigma) + np.log(np.array(HORIZONS))
    logs = np.stack([log_true, log_true], axis=1) + math.log(2.0)  # both twice too high
    mix = OnlineMixture(rule, HORIZONS, 2, MINUTE_MS)
    for t in range(bars):
        found = mix.step(t * MINUTE_MS, float(closes[t]), logs, np.zeros(2), sigma)
    bias = found.log_variance - log_true
    assert (bias < 0.2).all(), "of 0.69, but for what the prior holds back"
    assert (bias > 0.0).all()
    reach = found.width * np.exp(0.5 * bias)
    assert reach == pytest.approx([NORMAL_WIDTH] * 2, rel=0.12)
