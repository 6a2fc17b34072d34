"""Chunks give every labelled position its turn, and repeat for a seed."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import DAY_BARS, HORIZONS, segment, split

from tracepaper.replay.learning.samples import Chunks, samples_of
from tracepaper.replay.learning.splits import Part
from tracepaper.strategies.errors import DataInvalid

SEGMENTS = [segment(2 * DAY_BARS), segment(700, seed=1, symbol="BBBUSDT")]
SPLIT = split(1, 3, 4)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(64, 900), batch=st.integers(1, 4), number=st.integers(0, 50))
def test_every_labelled_position_is_a_sample_once_an_epoch(
    length: int, batch: int, number: int
) -> None:
    samples = samples_of(SEGMENTS, HORIZONS, SPLIT, Part.TRAIN)
    wanted = sorted(
        values.tobytes()
        for known in samples
        for values, weights in zip(known.segment.values, known.weights, strict=True)
        if weights.any()
    )
    seen: list[bytes] = []
    for found in Chunks(samples, length=length, batch=batch, seed=0).epoch(number):
        used = found.weights.any(dim=-1)
        seen += [row.tobytes() for row in found.values[used].numpy()]
    assert sorted(seen) == wanted


def test_the_stream_goes_on_where_it_was_left() -> None:
    samples = samples_of(SEGMENTS, HORIZONS, SPLIT, Part.TRAIN)
    chunks = Chunks(samples, length=300, batch=2, seed=3)
    whole = list(islice(chunks.stream(), 30))
    for skipped in (0, 1, 7, 23):
        rest = islice(chunks.stream(skipped), 30 - skipped)
        for left, right in zip(whole[skipped:], rest, strict=True):
            assert torch.equal(left.values, right.values)


def test_an_epoch_repeats_for_its_seed_and_differs_from_the_next() -> None:
    samples = samples_of(SEGMENTS, HORIZONS, SPLIT, Part.TRAIN)

    def first(seed: int, number: int) -> torch.Tensor:
        return next(iter(Chunks(samples, length=100, batch=2, seed=seed).epoch(number))).values

    assert torch.equal(first(0, 1), first(0, 1))
    assert not torch.equal(first(0, 1), first(0, 2))
    assert not torch.equal(first(0, 1), first(1, 1))


def test_a_segment_shorter_than_a_chunk_is_padded_without_weight() -> None:
    samples = samples_of(SEGMENTS[1:], HORIZONS, SPLIT, Part.TRAIN)
    batch = next(iter(Chunks(samples, length=512, batch=1, seed=0).epoch(0)))
    rows = samples[0].stop - samples[0].start
    assert rows < 512
    assert batch.weights[0, rows:].abs().sum() == 0
    for tensor in (batch.values, batch.labels["returns"], batch.labels["variance"]):
        assert torch.isfinite(tensor).all()


def test_weights_have_a_mean_of_about_one() -> None:
    known = samples_of(SEGMENTS, HORIZONS, SPLIT, Part.TRAIN)[0]
    assert np.median(known.weights[known.weights > 0]) == pytest.approx(1.0)


def test_a_part_without_a_label_is_refused() -> None:
    with pytest.raises(DataInvalid, match="test part"):
        samples_of(SEGMENTS, HORIZONS, SPLIT, Part.TEST)
