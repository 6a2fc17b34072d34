"""Columns of a bucketed rollout keep every block's mass, over holes and for ever."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.time_buckets import (
    OLDER,
    BlockColumns,
    rows_by_age,
    units_of,
    weights_of,
)
from tracepaper.strategies.types.decisions import WEIGHT_UNITS


@given(steps=st.lists(st.integers(0, 5), min_size=1, max_size=60), data=st.data())
def test_mass_stays_with_its_block_or_becomes_older(steps: list[int], data: st.DataObject) -> None:
    """A running sum of one-hot rows: what each block holds is known without columns."""
    columns = BlockColumns(buckets=4, spare=2)
    blocks = np.cumsum(np.array(steps, dtype=np.int64)) + 1_000
    row = np.zeros((1, columns.width), dtype=np.float32)
    done = 0
    while done < len(blocks):
        for gone in columns.expired(int(blocks[done])):
            row[:, OLDER] += row[:, gone]
            row[:, gone] = 0.0
        wish = data.draw(st.integers(1, len(blocks) - done))
        columns_of_portion = columns.take(blocks[done : done + wish])
        assert len(columns_of_portion) >= 1
        for column in columns_of_portion:
            row[0, column] += 1.0
        done += len(columns_of_portion)
        now = blocks[done - 1]
        counts = [int((blocks[:done] == now - age).sum()) for age in range(4)]
        wanted = [*counts, done - sum(counts)]
        [[ages]] = rows_by_age(row[None], blocks[None, done - 1 : done], [columns])
        assert ages.tolist() == wanted


def test_there_is_room_for_the_spare_blocks_after_a_full_span() -> None:
    columns = BlockColumns(buckets=5, spare=3)
    assert columns.expired(10) == []
    assert len(columns.take(np.arange(6, 11))) == 5
    free = columns.width - 1 - 5
    assert free >= 3
    assert len(columns.take(np.arange(10, 100))) == 1 + free  # the open one and all that is free
    assert len(columns.expired(13)) == 3


def test_clearing_forgets_every_block() -> None:
    columns = BlockColumns(buckets=2, spare=1)
    columns.take(np.array([7, 8]))
    columns.clear()
    assert columns.expired(10_000) == []


def test_streams_are_put_by_age_together_as_each_alone() -> None:
    rng = np.random.default_rng(4)
    columns = [BlockColumns(buckets=6, spare=2) for _ in range(3)]
    blocks = np.array([[20, 20, 21], [7, 9, 9], [30, 41, 42]])  # with holes; the last expire some
    for ages, first in zip(columns, (18, 7, 28), strict=True):
        ages.take(np.arange(first, first + 3))
    for ages, named in zip(columns, blocks, strict=True):
        ages.expired(int(named[0]))
        assert len(ages.take(named)) == 3
    rows = rng.random((3, 3, columns[0].width), dtype=np.float32)
    together = rows_by_age(rows, blocks, columns)
    for place, ages in enumerate(columns):
        at = slice(place, place + 1)
        assert together[at].tobytes() == rows_by_age(rows[at], blocks[at], [ages]).tobytes()
        for bar in range(3):
            for block, column in zip(ages.block_of, rows[place, bar], strict=True):
                if 0 <= (age := int(blocks[place, bar]) - int(block)) < 6:
                    assert together[place, bar, age] == column
    np.testing.assert_allclose(together.sum(-1), rows.sum(-1), rtol=1e-6)


@given(row=st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=300))
def test_a_weight_is_stored_to_one_unit_and_a_sum_to_half_a_unit(row: list[float]) -> None:
    [packed] = units_of(np.array([row], dtype=np.float32))
    stored = weights_of(packed)
    assert np.abs(stored - row).max() * WEIGHT_UNITS < 1.0 + 1e-6
    assert abs(stored.sum() - sum(row)) * WEIGHT_UNITS < 0.5 + 1e-6


def test_a_row_that_is_not_finite_is_not_stored() -> None:
    rows = np.array([[0.5, 0.5], [np.nan, 0.5], [0.5, np.inf]])
    first, *others = units_of(rows)
    assert weights_of(first).tolist() == [0.5, 0.5]
    assert others == [b"", b""]
