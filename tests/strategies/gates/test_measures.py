"""The measures of a rollout row, by age and free of the open bucket's phase."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tracepaper.strategies.time_buckets import (
    cells_by_age,
    event_focus,
    recent_mass,
    row_entropy,
    shift,
)

CONTEXT = 4 * 1087 + 1
BUCKETS = 69


def uniform_by_bar() -> NDArray[np.float64]:
    """Return the rollout by age of uniform attention, L = 4, W = 1,088: four convolutions."""
    kernel = np.full(1088, 0.5 / 1088)
    kernel[0] += 0.5
    row = np.ones(1)
    for _ in range(4):
        row = np.convolve(row, kernel)
    return row


def bucketed(row: NDArray[np.float64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return one distribution by age as absolute buckets at each position."""
    table = np.zeros((len(positions), BUCKETS + 1))
    for i, position in enumerate(positions):
        block = position // 64 - (position - np.arange(len(row))) // 64
        table[i] = np.bincount(np.minimum(block, BUCKETS), row, minlength=BUCKETS + 1)
    return table.astype(np.float32)


def test_uniform_attention_has_a_recent_mass_of_0_544() -> None:
    positions = np.arange(64 * 100, 64 * 102)
    aged = cells_by_age(bucketed(uniform_by_bar(), positions), positions, 64)
    mass = recent_mass(aged, CONTEXT)
    assert mass[-1] == pytest.approx(0.544, abs=1e-3)  # a whole newest block: no interpolation
    np.testing.assert_allclose(mass, 0.544, atol=4e-3)


@given(
    phase=st.integers(0, 63),
    weights=st.lists(st.floats(0, 1), min_size=BUCKETS + 1, max_size=BUCKETS + 1).filter(
        lambda w: sum(w) > 0.1
    ),
)
def test_recent_mass_is_whole_buckets_and_a_share_of_the_oldest(
    phase: int, weights: list[float]
) -> None:
    row = np.array([weights], dtype=np.float32)
    row /= row.sum()
    held = phase + 1
    aged = cells_by_age(row, np.array([6400 + phase]), 64)
    wanted = row[0, :17].sum() + (64 - held) / 64 * row[0, 17]
    assert recent_mass(aged, CONTEXT)[0] == pytest.approx(wanted, abs=1e-6)
    assert aged.sum() == pytest.approx(1.0, abs=1e-6)
    assert (aged >= 0).all()


def test_the_phase_of_the_bucket_explains_under_one_percent_of_each_measure() -> None:
    """Rows that wander at random; then the variance between the 64 phases is chance alone."""
    source = np.random.default_rng(4)
    count = 64 * 60
    positions = np.arange(6_400, 6_400 + count)
    # Recency of a decaying row wanders slowly; bars are drawn into buckets exactly.
    pace = np.cumsum(source.normal(0, 0.02, count))
    pace = 900.0 * np.exp(0.3 * (pace - pace.mean()) / pace.std())
    age = np.arange(CONTEXT)
    rows = np.empty((count, BUCKETS + 1), dtype=np.float32)
    for i in range(count):
        row = np.exp(-age / pace[i])
        rows[i] = bucketed(row / row.sum(), positions[i : i + 1])
    aged = cells_by_age(rows, positions, 64)
    for measure, phases in (
        (recent_mass(aged, CONTEXT), positions % 64),
        (event_focus(aged, CONTEXT), positions % 64),
        (row_entropy(aged), positions % 64),
        (shift(aged[:-1], aged[1:]), positions[1:] % 64),
    ):
        assert _explained(measure, phases) < 0.01 + 64 / count


def _explained(measure: NDArray[np.float64], phases: NDArray[np.int64]) -> float:
    """Return the share of the measure's variance that lies between the phases."""
    means = np.array([measure[phases == phase].mean() for phase in range(64)])
    return float(means[phases].var() / measure.var())


def test_a_bar_that_keeps_its_weight_keeps_its_share_of_event_focus_while_it_ages() -> None:
    first = 6_400 + 7  # the event; all else is on the newest bar
    positions = np.arange(first + 1_216, first + CONTEXT - 64)
    table = np.zeros((len(positions), BUCKETS + 1), dtype=np.float32)
    table[:, 0] = 0.7
    table[np.arange(len(table)), positions // 64 - first // 64] = 0.3
    aged = cells_by_age(table, positions, 64)
    np.testing.assert_allclose(event_focus(aged, CONTEXT), 0.3, atol=1e-6)
    recent = cells_by_age(table[:1], positions[:1] - 192, 64)  # three cells nearer: not distant
    assert event_focus(recent[:, 3:], CONTEXT)[0] == 0.0


def test_the_entropy_of_a_row_is_a_share_of_an_even_row_s() -> None:
    rows = np.array([[0.25] * 4, [0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    np.testing.assert_allclose(row_entropy(rows), [1.0, 0.5, 0.0], atol=1e-12)


distributions = st.lists(st.floats(0, 1), min_size=6, max_size=6).filter(lambda w: sum(w) > 0.1)


@example(weights=[1.0] + 5 * [0.0], other=[1.0, 5e-324] + 4 * [0.0])
@given(weights=distributions, other=distributions)
def test_shift_is_a_distance_between_zero_and_one(weights: list[float], other: list[float]) -> None:
    first = np.array([weights]) / sum(weights)
    second = np.array([other]) / sum(other)
    distance = shift(first, second)[0]
    assert 0.0 <= distance <= 1.0 + 1e-9
    assert distance == pytest.approx(shift(second, first)[0], abs=1e-9)
    assert shift(first, first)[0] == 0.0


def test_shift_of_rows_with_nothing_in_common_is_one() -> None:
    assert shift(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))[0] == 1.0


def test_shift_is_the_square_root_of_the_divergence_in_bits() -> None:
    distance = shift(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]))[0]
    entropy = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25)
    assert distance == pytest.approx(math.sqrt(entropy - 0.5))
