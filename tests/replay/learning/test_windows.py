"""Single windows: each labelled bar once an epoch, with its own rows, labels and place in time."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from learning import DAY_BARS, HORIZONS, MINUTE_MS, segment, split

from tracepaper.replay.learning.samples import Samples, SingleWindows, samples_of
from tracepaper.replay.learning.splits import Part
from tracepaper.strategies.errors import DataInvalid

WINDOW = 20
SEGMENTS = [segment(DAY_BARS), segment(900, seed=1, symbol="BBBUSDT", start=100)]
TRAINING = samples_of(SEGMENTS, HORIZONS, split(1, 2, 3), Part.TRAIN)


def made(batch: int = 64, seed: int = 0) -> SingleWindows:
    return SingleWindows(TRAINING, window=WINDOW, batch=batch, seed=seed)


def row_of(samples: Samples, position: int) -> int:
    return position - int(samples.segment.open_time_ms[0]) // MINUTE_MS


def test_an_epoch_holds_every_labelled_bar_once() -> None:
    wanted = sorted(
        int(s.segment.open_time_ms[row]) // MINUTE_MS
        for s in TRAINING
        for row in np.flatnonzero(s.weights.any(axis=1))
        if row >= s.segment.first + WINDOW - 1
    )
    batches = -(-len(wanted) // 64)
    first = [batch.positions[:, -1].tolist() for batch in islice(made().stream(), batches)]
    assert sorted(position for batch in first for position in batch) == wanted
    assert next(islice(made().stream(), batches, None)).positions[:, -1].tolist() != first[0]


def test_a_window_holds_its_own_rows_and_labels() -> None:
    batch = next(made(batch=1).stream())
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
            returns = np.nan_to_num(samples.labels["returns"][row])
            assert np.array_equal(batch.labels["returns"][0, 0].numpy(), returns)
    assert matches == 1


def test_a_stream_goes_on_where_it_was_left() -> None:
    whole = [batch.positions for batch in islice(made().stream(), 40)]
    for skipped in (0, 1, 17, 39):
        rest = next(made().stream(skipped))
        assert rest.positions.equal(whole[skipped])
    assert not next(made(seed=1).stream()).positions.equal(whole[0])


def test_a_window_longer_than_any_segment_is_refused() -> None:
    with pytest.raises(DataInvalid, match="a smaller window"):
        SingleWindows(TRAINING, window=2_000, batch=1, seed=0)
