"""Long chunks of consecutive bars, in which every labelled position is a sample."""

from __future__ import annotations

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
    """Batches of chunks of *length* bars; each epoch cuts every segment at another offset."""

    def __init__(self, samples: Sequence[Samples], *, length: int, batch: int, seed: int) -> None:
        self._samples = samples
        self._length = length
        self._batch = batch
        self._seed = seed
        self._steps = len(self._cuts(np.random.default_rng(0))) // batch or 1

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same in each."""
        return self._steps

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of epoch *number*; the same number gives the same batches."""
        generator = np.random.default_rng((self._seed, number))
        cuts = self._cuts(generator)
        order = generator.permutation(len(cuts))
        for step in range(self._steps):
            chosen = order[step * self._batch : (step + 1) * self._batch]
            yield _stack([self._chunk(*cuts[i]) for i in chosen])

    def _cuts(self, generator: np.random.Generator) -> list[tuple[Samples, int]]:
        """Return (samples, first row) of every chunk: back to back from a random offset."""
        cuts = []
        for samples in self._samples:
            rows = samples.stop - samples.start
            whole = max(rows // self._length, 1)
            spare = max(rows - whole * self._length, 0)
            offset = samples.start + int(generator.integers(0, spare + 1))
            cuts += [(samples, offset + i * self._length) for i in range(whole)]
        return cuts

    def _chunk(self, samples: Samples, start: int) -> tuple[NDArray[np.generic], ...]:
        """Return one chunk's arrays, padded at the end where the segment is shorter."""
        stop = min(start + self._length, samples.stop)
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


def _stack(chunks: Sequence[tuple[NDArray[np.generic], ...]]) -> Batch:
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*chunks, strict=True)]
    return Batch(*columns)
