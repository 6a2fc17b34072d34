"""Windows visit every labelled bar with its rows and labels, and repeat for a seed."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import DAY_BARS, HORIZONS, MINUTE_MS, segment, split

from tracepaper.replay.learning.dataset import alone
from tracepaper.replay.learning.samples import Samples, samples_in
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.windows import Epochs
from tracepaper.strategies.errors import DataInvalid

SEGMENTS = [segment(2 * DAY_BARS), segment(700, seed=1, symbol="BBBUSDT", start=100)]
SPLIT = split(1, 3, 4)
TRAINING = samples_in(alone(SEGMENTS), HORIZONS, SPLIT, Part.TRAIN)
WINDOW = 20


def epochs(
    length: int = WINDOW, batch: int = 64, seed: int = 0, *, last_row: bool = True
) -> Epochs:
    return Epochs(TRAINING, length=length, batch=batch, seed=seed, last_row=last_row)


def row_of(samples: Samples, position: int) -> int:
    return position - int(samples.segment.open_time_ms[0]) // MINUTE_MS


@settings(max_examples=15, deadline=None)
@given(length=st.integers(64, 900), batch=st.integers(1, 4), number=st.integers(0, 50))
def test_every_labelled_position_is_a_sample_once_an_epoch(
    length: int, batch: int, number: int
) -> None:
    wanted = sorted(
        values.tobytes()
        for samples in TRAINING
        for values, weights in zip(samples.segment.values, samples.weights, strict=True)
        if weights.any()
    )
    rows: list[bytes] = []
    for chunk in epochs(length, batch, last_row=False).epoch(number):
        used = chunk.weights.any(dim=-1)
        rows += [row.tobytes() for row in chunk.values[used].numpy()]
    assert sorted(rows) == wanted


def test_a_window_ends_at_every_labelled_bar_once_an_epoch() -> None:
    wanted = sorted(
        int(s.segment.open_time_ms[row]) // MINUTE_MS
        for s in TRAINING
        for row in s.rows
        if row >= s.segment.first + WINDOW - 1
    )
    batches = -(-len(wanted) // 64)
    first = [batch.positions[:, -1].tolist() for batch in islice(epochs().stream(), batches)]
    assert sorted(position for batch in first for position in batch) == wanted
    assert next(islice(epochs().stream(), batches, None)).positions[:, -1].tolist() != first[0]


def test_a_window_holds_its_own_rows_and_labels() -> None:
    batch = next(epochs(batch=1).stream())
    last = int(batch.positions[0, -1])
    matches = 0
    for samples in TRAINING:
        row = row_of(samples, last)
        if not 0 <= row < len(samples.segment):
            continue
        rows = samples.segment.values[row - WINDOW + 1 : row + 1]
        if np.array_equal(batch.values[0].numpy(), rows):
            matches += 1
            assert np.array_equal(batch.weights[0, 0].numpy(), samples.weights[row])
            returns = np.nan_to_num(samples.labels["returns"][0, row])
            assert np.array_equal(batch.labels["returns"][0, 0].numpy(), returns)
    assert matches == 1


@pytest.mark.parametrize("last_row", [False, True])
def test_the_stream_goes_on_where_it_was_left_and_another_seed_has_another(last_row: bool) -> None:
    def stream(skipped: int = 0, seed: int = 3) -> list[torch.Tensor]:
        windows = epochs(300, 2, seed, last_row=last_row)
        return [batch.values for batch in islice(windows.stream(skipped), 30 - skipped)]

    whole = stream()
    for skipped in (0, 1, 7, 23):
        assert all(map(torch.equal, whole[skipped:], stream(skipped)))
    assert not torch.equal(stream(seed=4)[0], whole[0])


def test_a_segment_shorter_than_a_chunk_is_padded_without_weight() -> None:
    samples = samples_in(alone(SEGMENTS[1:]), HORIZONS, SPLIT, Part.TRAIN)
    batch = next(iter(Epochs(samples, length=512, batch=1, seed=0).epoch(0)))
    rows = samples[0].stop - samples[0].start
    assert rows < 512
    assert batch.weights[0, rows:].abs().sum() == 0
    for tensor in (batch.values, batch.labels["returns"], batch.labels["variance"]):
        assert torch.isfinite(tensor).all()


def test_a_window_longer_than_any_segment_is_refused() -> None:
    with pytest.raises(DataInvalid, match="a smaller window"):
        epochs(2_500)
