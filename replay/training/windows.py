"""Batches of single windows, for networks that answer the last bar of a window and no other.

Every labelled bar is a sample whose window ends at it. An epoch visits all of them in an order
drawn from the seed, so that a step is an even subsample of the time that is learnt from. A window
is a view of its segment's rows until its batch is stacked: overlapping ones share them.

The rule is docs/models.md, L25.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tracepaper.replay.training.samples import (
    LABELS,
    Batch,
    Samples,
    first_position,
)
from tracepaper.strategies.errors import DataInvalid

Ids = NDArray[np.int64]


class SingleWindows:
    """Batches of *batch* windows of *window* rows; an epoch holds every labelled bar once.

    Raises ``DataInvalid`` where no labelled bar has a whole window before it.
    """

    def __init__(self, samples: Sequence[Samples], *, window: int, batch: int, seed: int) -> None:
        self._samples = samples
        self._window = window
        self._batch = batch
        self._seed = seed
        rows = [windowed_rows(each, window) for each in samples]
        self._rows = np.concatenate(rows)  # [sample]
        self._of = np.repeat(np.arange(len(rows)), [len(own) for own in rows])  # [sample]
        if not len(self._rows):
            raise DataInvalid(
                f"No labelled bar has {window} rows of features before it; give longer candles or "
                "a smaller window."
            )

    def stream(self, skipped: int = 0) -> Iterator[Batch]:
        """Yield batches epoch after epoch without end, from the *skipped*-th on."""
        batches = -(-len(self._rows) // self._batch)
        for number in itertools.count(skipped // batches):
            order = np.random.default_rng((self._seed, number)).permutation(len(self._rows))
            for batch in range(skipped % batches, batches):
                yield self._joined(order[batch * self._batch : (batch + 1) * self._batch])
            skipped = 0

    def _joined(self, chosen: Ids) -> Batch:
        """Return the samples at *chosen* as one batch, each labelled at its last row alone."""
        pairs = [(self._samples[int(self._of[at])], int(self._rows[at])) for at in chosen]
        values = np.stack([window_of(s.segment.values, row, self._window) for s, row in pairs])
        firsts = [first_position(s.segment, row) - self._window + 1 for s, row in pairs]
        labels = {
            name: _stacked(
                [np.nan_to_num(s.labels[name][row], nan=LABELS[name].missing) for s, row in pairs]
            )
            for name in self._samples[0].labels
        }
        return Batch(
            torch.from_numpy(values),
            labels,
            _stacked([s.weights[row] for s, row in pairs]),
            torch.tensor(firsts)[:, None] + torch.arange(self._window),
        )


def windowed_rows(samples: Samples, window: int) -> Ids:
    """Return the labelled rows that have *window* rows of features up to them, themselves one."""
    rows = np.flatnonzero(samples.weights.any(axis=1))
    return rows[rows >= samples.segment.first + window - 1]


def window_of(values: NDArray[np.float32], row: int, window: int) -> NDArray[np.float32]:
    """Return a view of the *window* rows of *values* [time, feature] that end at *row*."""
    return values[row - window + 1 : row + 1]


def _stacked(rows: Sequence[NDArray[Any]]) -> torch.Tensor:
    """Return [horizon, ..] arrays as [batch, 1, horizon, ..]."""
    return torch.from_numpy(np.stack(rows))[:, None]
