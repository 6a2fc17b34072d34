"""Vectors by time: what a bar has is the newest row that was known when it closed, by any count."""

from __future__ import annotations

import numpy as np
import pytest
from builders import bar
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.covariates import (
    AGE,
    CovariateColumns,
    CovariateRows,
    CovariateScale,
    FixedCovariates,
    rows_of,
)
from tracepaper.strategies.features.rows import (
    FeatureStreams,
    columns,
    compute,
    schema,
    with_covariates,
)

MINUTE_MS = 60_000
SCALE = CovariateScale(("mood", "heat"), (0.0, 1.0), (1.0, 2.0))


def naive(rows: CovariateRows, close_ms: int) -> int:
    """Return the place of the row that a bar has by looking at each of them."""
    last = -1
    for place in range(len(rows)):
        if rows.from_ms[place] <= close_ms:
            last = place
    return last


times = st.lists(st.integers(0, 500), min_size=1, max_size=30, unique=True).map(sorted)


@given(
    times, st.lists(st.integers(0, 40), min_size=30, max_size=30), st.lists(st.integers(-5, 600))
)
def test_the_join_is_that_of_a_naive_loop(
    at: list[int], late: list[int], closes: list[int]
) -> None:
    known_ms = np.maximum.accumulate(np.array(at) + np.array(late[: len(at)]))
    rows = CovariateRows(np.array(at), known_ms, np.zeros((len(at), 1)))
    places = rows.places(np.array(closes, dtype=np.int64))
    assert places.tolist() == [naive(rows, close) for close in closes]


@given(times, st.integers(0, 600))
def test_no_row_that_comes_later_changes_a_bar(at: list[int], close_ms: int) -> None:
    generator = np.random.default_rng(len(at))
    every = rows_of(np.array(at), generator.normal(size=(len(at), 2)))
    count = sum(time <= close_ms for time in at)
    prefix = rows_of(every.time_ms[:count], every.values[:count])
    both = [
        CovariateColumns(SCALE, FixedCovariates("", {"": rows})).at("", np.array([close_ms]), 1)
        for rows in (every, prefix)
    ]
    assert np.array_equal(both[0], both[1], equal_nan=True)


def test_a_row_counts_from_the_bar_that_closes_at_its_time_and_is_held() -> None:
    rows = rows_of(np.array([100, 250]), np.array([[1.0, 1.0], [2.0, 5.0]]))
    joined = CovariateColumns(SCALE, FixedCovariates("", {"": rows}))
    joined_rows = joined.at("ANY", np.array([99, 100, 200, 249, 250]), 100)
    assert np.isnan(joined_rows[0]).all()
    assert joined_rows[1].tolist() == [1.0, 0.0, 0.0]
    assert joined_rows[2].tolist() == pytest.approx([1.0, 0.0, np.log(2.0) / 2])
    assert joined_rows[3, 0] == 1.0
    assert joined_rows[4].tolist() == [2.0, 2.0, 0.0]


def test_each_symbol_has_its_own_rows_and_one_without_has_none() -> None:
    rows = {"BTC": rows_of(np.array([5]), np.array([[3.0, 1.0]]))}
    joined = CovariateColumns(SCALE, FixedCovariates("", rows))
    assert joined.at("BTC", np.array([9]), 1)[0, 0] == 3.0
    assert np.isnan(joined.at("ETH", np.array([9]), 1)).all()


def test_features_of_an_archive_and_bar_by_bar_are_equal_with_covariates() -> None:
    bars = [
        bar(100_000 + (at * 7) % 50, open_=100_000, open_time_ms=at * MINUTE_MS)
        for at in range(560)
    ]
    at = np.arange(3, 560, 11) * MINUTE_MS + 17
    rows = rows_of(at, np.random.default_rng(1).normal(size=(len(at), 2)))
    wide = with_covariates(
        schema("v2-1m"), CovariateColumns(SCALE, FixedCovariates("", {"": rows}))
    )
    assert wide.names[-3:] == ("vector_mood", "vector_heat", AGE)
    whole = compute(wide, columns(bars))
    plain = compute(schema("v2-1m"), columns(bars))
    assert np.array_equal(whole.values[:, :78], plain.values, equal_nan=True)
    streams = FeatureStreams(wide)
    stepped = np.concatenate([streams.step([bar]).values for bar in bars])
    assert np.array_equal(stepped[whole.first :], whole.values[whole.first :])


def test_the_scale_is_that_of_the_rows_before_a_time() -> None:
    rows = rows_of(np.array([1, 2, 3]), np.array([[1.0, 4.0], [3.0, 4.0], [900.0, 9.0]]))
    covariate_scale = CovariateScale.fitted(("mood", "heat"), [rows], until_ms=3)
    assert covariate_scale.centre == (2.0, 4.0)
    assert covariate_scale.scale == (1.0, 1.0)
    assert CovariateScale.of(covariate_scale.section()) == covariate_scale
