"""Long chunks of consecutive bars, in which every labelled position is a sample."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.training.series import Segment
from tracepaper.replay.training.splits import Part, Split
from tracepaper.replay.training.targets import Targets, targets, uniqueness
from tracepaper.strategies.errors import DataInvalid


@dataclass(frozen=True)
class Batch:
    """Tensors [batch, time, ..]: features, labels and sample weights by horizon."""

    values: Tensor
    returns: Tensor
    direction: Tensor
    variance: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Samples:
    """One segment's labels, and the weight of each in one part: [time, horizon]."""

    segment: Segment
    horizons: tuple[int, ...]
    labels: Targets
    weights: NDArray[np.float32]
    start: int  # rows from start until stop may be seen
    stop: int


def samples_of(
    segments: Sequence[Segment], horizons: Sequence[int], split: Split, part: Part
) -> list[Samples]:
    """Return the labelled samples of *part*, weighted by uniqueness to a mean of one."""
    found = []
    for segment in segments:
        mask = split.labelled(segment, horizons, part)
        if not mask.any():
            continue
        weights = np.stack(
            [uniqueness(mask[:, i], horizon) * horizon for i, horizon in enumerate(horizons)],
            axis=1,
        ).astype(np.float32)
        rows = np.flatnonzero(mask.any(axis=1))
        found.append(
            Samples(
                segment,
                tuple(horizons),
                targets(segment, horizons),
                weights,
                segment.first,
                int(rows[-1]) + 1,
            )
        )
    if not found:
        raise DataInvalid(f"The {part.value} part holds no labelled bar; move the split's dates.")
    return found


class Chunks:
    """Batches of chunks of *length* bars; each epoch cuts every segment at another phase.

    An epoch holds every position exactly once. What a chunk lacks at a segment's ends is padding
    without weight, and the last batch of an epoch may be smaller.
    """

    def __init__(self, samples: Sequence[Samples], *, length: int, batch: int, seed: int) -> None:
        self._samples = samples
        self._length = length
        self._batch = batch
        self._seed = seed

    def stream(self, skipped: int = 0) -> Iterator[Batch]:
        """Yield batches epoch after epoch without end, from the *skipped*-th on."""
        for number in itertools.count():
            order = self._order(number)
            if skipped < len(order):
                yield from map(self._joined, order[skipped:])
            skipped = max(skipped - len(order), 0)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of epoch *number*; the same number gives the same batches."""
        return map(self._joined, self._order(number))

    def _order(self, number: int) -> list[list[tuple[Samples, int, int]]]:
        """Return the (samples, first row, end) of the chunks of each batch of an epoch."""
        generator = np.random.default_rng((self._seed, number))
        cuts = []
        for samples in self._samples:
            phase = int(generator.integers(0, self._length))
            inner = range(samples.start + self._length - phase, samples.stop, self._length)
            bounds = [samples.start, *inner, samples.stop]
            cuts += [(samples, start, stop) for start, stop in itertools.pairwise(bounds)]
        order = [cuts[i] for i in generator.permutation(len(cuts))]
        return [order[i : i + self._batch] for i in range(0, len(order), self._batch)]

    def _joined(self, cuts: Sequence[tuple[Samples, int, int]]) -> Batch:
        """Return the chunks at *cuts* as one batch."""
        columns = zip(*(self._chunk(*cut) for cut in cuts), strict=True)
        return Batch(*(torch.from_numpy(np.stack(column)) for column in columns))

    def _chunk(self, samples: Samples, start: int, stop: int) -> tuple[NDArray[np.generic], ...]:
        """Return one chunk's arrays, padded at the end where it is shorter than the others."""
        span = slice(start, stop)
        labels = samples.labels
        arrays = (
            samples.segment.values[span],
            np.nan_to_num(labels.returns[span]),
            labels.direction[span],
            np.nan_to_num(labels.variance[span], nan=1.0),
            samples.weights[span],
        )
        missing = self._length - (stop - start)
        return tuple(np.pad(array, ((0, missing), (0, 0))) for array in arrays)
