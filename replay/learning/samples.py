"""Labels, sample weights, and batches of chunks or windows.

The return from this close to the close *h* bars later is measured in units of σ √h, where σ is the
volatility that the features report at this bar; the variance is that of the h one-bar returns in
the same unit. Labels look forward and features back: they share no bar but the one decided.

Every labelled bar is a sample whose window ends at it. An epoch visits all of them in an order
drawn from the seed, so that a step is an even subsample of the time that is learnt from. A window
is a view of its segment's rows until its batch is stacked: overlapping ones share them.

The rules are docs/models.md, L25; docs/models.md, L5 and L6.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.learning.splits import Part, Parts, Segment
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.types.decisions import PATH_STEPS, path_steps
from tracepaper.strategies.units import BASE_FEES

FLAT_BAND: Final = 0.2
"""A scaled return within ±0.2 is flat: about a fifth of a fat-tailed bell."""
RETURN_LIMIT: Final = 20.0
"""Scaled returns are cut here: one crash minute must not outweigh a month."""
DOWN, FLAT, UP, NO_LABEL = 0, 1, 2, -1


Column = NDArray[Any]
"""[time, ..] of float32, or int64 where a label is a class."""
Labels = Mapping[str, Column]
"""Each label's name → [time, horizon]; unknown futures are NaN, or ``NO_LABEL`` of a class."""


class Label(NamedTuple):
    """A quantity that a network learns at each bar, by its name."""

    name: str
    of: Callable[[Segment, int], Column]
    """The label of every bar of a segment for a horizon, in bars: [time]."""
    missing: float
    """Its value in a batch where it is not known; no loss is taken there."""
    head: str = ""
    """The head that learns from it, where not every network has one."""
    width: int = 0
    """Numbers of each bar and horizon, [time, width]; 0 for one, [time]."""


LABELS: Final[dict[str, Label]] = {}
"""Every label by its name."""

_LabelFunction = Callable[[Segment, int], Column]


def label(
    name: str, *, missing: float, head: str = "", width: int = 0
) -> Callable[[_LabelFunction], _LabelFunction]:
    """Register the function of a label; raise ``ConfigInvalid`` for a name that is taken."""

    def register(function: _LabelFunction) -> _LabelFunction:
        if name in LABELS:
            raise ConfigInvalid(f"There is a label called {name} already.")
        LABELS[name] = Label(name, function, missing, head, width)
        return function

    return register


def wanted_labels(heads: Collection[str] = ()) -> dict[str, Label]:
    """Return the labels that every network learns from, and those of the further *heads*."""
    return {name: each for name, each in LABELS.items() if not each.head or each.head in heads}


def targets(
    segment: Segment, horizons: Sequence[int], heads: Collection[str] = ()
) -> dict[str, Column]:
    """Return the ``wanted_labels`` of every bar of *segment* for each horizon, in bars.

    Each is [time, horizon], or [time, horizon, width].
    """
    return {
        name: np.stack([each.of(segment, horizon) for horizon in horizons], axis=1)
        for name, each in wanted_labels(heads).items()
    }


@label("returns", missing=0.0)
def scaled_return(segment: Segment, horizon: int) -> NDArray[np.float32]:
    """Return the return to *horizon* in units of σ √h, cut at ``RETURN_LIMIT``."""
    column = np.full(len(segment), np.nan, dtype=np.float32)
    known = max(len(segment) - horizon, 0)
    logs = np.log(segment.close)
    scale = segment.sigma[:known] * np.sqrt(horizon)
    column[:known] = np.clip((logs[horizon:] - logs[:known]) / scale, -RETURN_LIMIT, RETURN_LIMIT)
    return column


@label("direction", missing=NO_LABEL)
def direction(segment: Segment, horizon: int) -> NDArray[np.int64]:
    """Return DOWN, FLAT or UP of the scaled return."""
    return direction_of(scaled_return(segment, horizon))


@label("variance", missing=1.0)
def realised_variance(segment: Segment, horizon: int) -> NDArray[np.float32]:
    """Return the variance of the one-bar returns to *horizon* in units of σ² h, floored."""
    column = np.full(len(segment), np.nan, dtype=np.float32)
    known = max(len(segment) - horizon, 0)
    logs = np.log(segment.close)
    moves = np.diff(logs, prepend=logs[0])
    squares = np.concatenate([[0.0], np.cumsum(moves * moves)])
    scale = segment.sigma[:known] * np.sqrt(horizon)
    realised = squares[horizon + 1 :][:known] - squares[1 : known + 1]
    column[:known] = np.clip(realised / scale**2, VARIANCE_FLOOR, RETURN_LIMIT**2)
    return column


@label("drawdown", missing=0.0, head="drawdown")
def drawdown(segment: Segment, horizon: int) -> NDArray[np.float32]:
    """Return the largest fall of a close below an earlier one until *horizon*, in units of σ √h.

    The close of the bar itself is the first; cut at ``RETURN_LIMIT``.
    """
    return _largest_fall(np.log(segment.close), segment, horizon)


@label("runup", missing=0.0, head="runup")
def runup(segment: Segment, horizon: int) -> NDArray[np.float32]:
    """Return the largest rise of a close above an earlier one until *horizon*, in units of σ √h.

    The close of the bar itself is the first; cut at ``RETURN_LIMIT``.
    """
    return _largest_fall(-np.log(segment.close), segment, horizon)


def _largest_fall(logs: Array, segment: Segment, horizon: int) -> NDArray[np.float32]:
    column = np.full(len(segment), np.nan, dtype=np.float32)
    known = max(len(segment) - horizon, 0)
    highest, most = logs[:known].copy(), np.zeros(known)
    for step in range(1, horizon + 1):
        close = logs[step : step + known]
        np.maximum(highest, close, out=highest)
        np.maximum(most, highest - close, out=most)
    column[:known] = np.minimum(most / (segment.sigma[:known] * np.sqrt(horizon)), RETURN_LIMIT)
    return column


@label("path", missing=0.0, head="path", width=PATH_STEPS)
def path(segment: Segment, horizon: int) -> NDArray[np.float32]:
    """Return [time, step]: the return to each of ``path_steps`` in units of σ √(its bars)."""
    return np.stack([scaled_return(segment, step) for step in path_steps(horizon)], axis=-1)


@label("cost", missing=0.0, head="allocation")
def round_trip_cost(segment: Segment, horizon: int) -> NDArray[np.float32]:
    """Return the taker fees of a position that is opened and closed, in units of σ √h."""
    scale = segment.sigma * np.sqrt(horizon)
    return (2.0 * float(BASE_FEES["linear"][0]) / scale).astype(np.float32)


def direction_of(returns: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return DOWN, FLAT or UP of scaled returns, ``NO_LABEL`` where they are NaN."""
    return np.select(
        [np.isnan(returns), returns < -FLAT_BAND, returns > FLAT_BAND],
        [NO_LABEL, DOWN, UP],
        default=FLAT,
    ).astype(np.int64)


def uniqueness(labelled: NDArray[np.bool_], horizon: int) -> Array:
    """Return the uniqueness of each label: the mean over its span of 1 ÷ labels alive there.

    *labelled* is [time]; label t spans the *horizon* bars after t. Zero where there is no label.
    Source: López de Prado, Advances in Financial Machine Learning, section 4.4.
    """
    count = len(labelled)
    alive = np.zeros(count + horizon + 1)
    starts = np.flatnonzero(labelled)
    np.add.at(alive, starts + 1, 1.0)
    np.add.at(alive, starts + 1 + horizon, -1.0)
    # +1 where a label begins and -1 where it ends: the running sum counts those alive.
    share = 1.0 / np.maximum(np.cumsum(alive), 1.0)
    total = np.concatenate([[0.0], np.cumsum(share)])
    weights = np.zeros(count)
    weights[starts] = (total[starts + 1 + horizon] - total[starts + 1]) / horizon
    return weights


@dataclass(frozen=True)
class Batch:
    """Tensors [batch, time, ..]: features, labels by name and sample weights by horizon.

    ``positions`` int64 [batch, time] are absolute bar numbers, ``open_time_ms // interval_ms``.
    """

    values: Tensor
    labels: dict[str, Tensor]
    weights: Tensor
    positions: Tensor

    def pieces(self, size: int) -> list[Batch]:
        """Split the batch into views of at most *size* samples each."""
        labels = [
            dict(zip(self.labels, parts, strict=True))
            for parts in zip(*(label.split(size) for label in self.labels.values()), strict=True)
        ]
        kept = (self.values.split(size), labels, self.weights.split(size))
        return [Batch(*parts) for parts in zip(*kept, self.positions.split(size), strict=True)]


@dataclass(frozen=True)
class Samples:
    """One segment's labels, and the weight of each in one part: [time, horizon]."""

    segment: Segment
    horizons: tuple[int, ...]
    labels: Labels
    weights: NDArray[np.float32]
    start: int  # the network may see rows from start until stop
    stop: int


def samples_of(
    segments: Sequence[Segment],
    horizons: Sequence[int],
    split: Parts,
    part: Part,
    labels: Callable[[Segment, Sequence[int]], Labels] = targets,
) -> list[Samples]:
    """Return the labelled samples of *part*, weighted by uniqueness to a mean of one.

    Raises ``DataInvalid`` where there is none.
    """
    samples = samples_in(segments, horizons, split, part, labels)
    if not samples:
        raise DataInvalid(f"The {part.value} part holds no labelled bar; move the split's dates.")
    return samples


def samples_in(
    segments: Sequence[Segment],
    horizons: Sequence[int],
    split: Parts,
    part: Part,
    labels: Callable[[Segment, Sequence[int]], Labels] = targets,
) -> list[Samples]:
    """Return the labelled samples of *part*, if there are any; *labels* are those of a segment."""
    samples = []
    for segment in segments:
        mask = split.labelled(segment, horizons, part)
        if segment.lacks is not None:
            mask[segment.lacks] = False
        if not mask.any():
            continue
        weights = np.stack(
            [uniqueness(mask[:, i], horizon) * horizon for i, horizon in enumerate(horizons)],
            axis=1,
        ).astype(np.float32)
        rows = np.flatnonzero(mask.any(axis=1))
        samples.append(
            Samples(
                segment,
                tuple(horizons),
                labels(segment, horizons),
                weights,
                segment.first,
                int(rows[-1]) + 1,
            )
        )
    return samples


def first_position(segment: Segment, row: int) -> int:
    """Return the absolute number of the bar at *row*; those after it follow one by one."""
    return int(segment.open_time_ms[row]) // segment.interval_ms


class Chunks:
    """Batches of chunks of *length* bars; each epoch cuts every segment at another phase.

    An epoch holds every position exactly once. A chunk that is shorter, at a segment's ends, is
    padded without weight, and the last batch of an epoch may be smaller.
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
        names = tuple(cuts[0][0].labels)
        columns = zip(*(self._chunk(*cut) for cut in cuts), strict=True)
        values, weights, *labels = (torch.from_numpy(np.stack(column)) for column in columns)
        ahead = torch.arange(self._length)
        positions = [first_position(samples.segment, start) + ahead for samples, start, _ in cuts]
        return Batch(values, dict(zip(names, labels, strict=True)), weights, torch.stack(positions))

    def _chunk(self, samples: Samples, start: int, stop: int) -> tuple[NDArray[np.generic], ...]:
        """Return one chunk's arrays, padded at the end where it is shorter than the others."""
        span = slice(start, stop)
        arrays = (
            samples.segment.values[span],
            samples.weights[span],
            *(
                np.nan_to_num(known[span], nan=LABELS[name].missing)
                for name, known in samples.labels.items()
            ),
        )
        missing = self._length - (stop - start)
        return tuple(
            np.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1))) for array in arrays
        )


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
        self._segment_of = np.repeat(np.arange(len(rows)), list(map(len, rows)))  # [sample]
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
        pairs = [(self._samples[int(self._segment_of[at])], int(self._rows[at])) for at in chosen]
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
