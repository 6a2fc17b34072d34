"""Selective prediction rewards a measure that knows, and no other."""

from __future__ import annotations

import numpy as np
import pytest

from tracepaper.replay.learning.statistics import COVERAGES, area, gained, table, top

RNG = np.random.default_rng(2)
ROWS = 20_000
DAYS = np.repeat(np.arange(50), ROWS // 50)
SURE = RNG.uniform(0.5, 1.0, ROWS)
HIT = (RNG.random(ROWS) < SURE).astype(float)
NOISE = RNG.random(ROWS)


def test_a_measure_that_knows_gains_and_noise_does_not() -> None:
    document = table(HIT, {"sure": SURE, "noise": NOISE}, DAYS)
    assert len(document["sure"]["gained"]) == len(COVERAGES)
    tenth = gained(HIT, SURE, 0.1, DAYS)
    assert tenth.value == pytest.approx(0.975 - 0.75, abs=0.02)
    chance = gained(HIT, NOISE, 0.1, DAYS)
    assert abs(chance.value) < 4 * (chance.error or 0.0)
    assert area(HIT, SURE) < -0.1
    assert abs(area(HIT, NOISE)) < 0.01


def test_everything_chosen_gains_nothing() -> None:
    assert gained(HIT, SURE, 1.0, DAYS).value == pytest.approx(0.0)


def test_the_share_that_is_chosen_is_exact_even_among_ties() -> None:
    chosen = top(np.zeros(1_000), 0.1)
    assert chosen.sum() == 100
    assert chosen[:100].all()
