"""Labels, sample weights, and batches of windows.

The return from this close to the close *h* bars later is measured in units of σ √h, where σ is the
volatility that the features report at this bar; the variance is that of the h one-bar returns in
the same unit. Labels look forward and features back: they share no bar but the one decided.

Every labelled bar is a sample whose window ends at it. An epoch visits all of them in an order
drawn from the seed, so that a step is an even subsample of the time that is learnt from.

The rules are docs/models.md, L25; docs/models.md, L5 and L6.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.learning.registry import registering
from tracepaper.replay.learning.splits import Part, Parts, Segment
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.architecture import Network, Outputs
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
    return registering(
        LABELS, "label", name, lambda function: Label(name, function, missing, head, width)
    )


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
    count = max(len(segment) - horizon, 0)
    logs = np.log(segment.close)
    scale = segment.sigma[:count] * np.sqrt(horizon)
    column[:count] = np.clip((logs[horizon:] - logs[:count]) / scale, -RETURN_LIMIT, RETURN_LIMIT)
    return column


@label("direction", missing=NO_LABEL)
def direction(segment: Segment, horizon: int) -> NDArray[np.int64]:
    """Return DOWN, FLAT or UP of the scaled return."""
    return direction_of(scaled_return(segment, horizon))


@label("variance", missing=1.0)
def realised_variance(segment: Segment, horizon: int) -> NDArray[np.float32]:
    """Return the variance of the one-bar returns to *horizon* in units of σ² h, floored."""
    column = np.full(len(segment), np.nan, dtype=np.float32)
    count = max(len(segment) - horizon, 0)
    logs = np.log(segment.close)
    moves = np.diff(logs, prepend=logs[0])
    squares = np.concatenate([[0.0], np.cumsum(moves * moves)])
    scale = segment.sigma[:count] * np.sqrt(horizon)
    realised = squares[horizon + 1 :][:count] - squares[1 : count + 1]
    column[:count] = np.clip(realised / scale**2, VARIANCE_FLOOR, RETURN_LIMIT**2)
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
    count = max(len(segment) - horizon, 0)
    highest, most = logs[:count].copy(), np.zeros(count)
    for step in range(1, horizon + 1):
        close = logs[step : step + count]
        np.maximum(highest, close, out=highest)
        np.maximum(most, highest - close, out=most)
    column[:count] = np.minimum(most / (segment.sigma[:count] * np.sqrt(horizon)), RETURN_LIMIT)
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

    ``positions`` int64 [batch, time] are absolute bar numbers, ``open_time_ms // interval_ms``. Of
    several assets features are [batch, asset, time, feature], and all have the positions [time];
    see ``PanelBatches``.
    """

    values: Tensor
    labels: dict[str, Tensor]
    weights: Tensor
    positions: Tensor
    across: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on *device*."""
        labels, across = (
            {name: each.to(device) for name, each in part.items()}
            for part in (self.labels, self.across)
        )
        values, weights, positions = (
            of.to(device) for of in (self.values, self.weights, self.positions)
        )
        return Batch(values, labels, weights, positions, across)

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


class Windows:
    """Batches of windows of *length* rows, epoch after epoch in orders that are drawn by the seed.

    Where every row is learnt from, each epoch cuts every segment into windows at another phase, so
    that it holds each position once; a window at a segment's end that is shorter is padded without
    weight. With *last_row* a window ends at each labelled bar, which alone is learnt from, and an
    epoch holds each once. The last batch of an epoch may be smaller. Raises ``DataInvalid`` where
    no labelled bar has a whole window before it.
    """

    def __init__(
        self,
        samples: Sequence[Samples],
        *,
        length: int,
        batch: int,
        seed: int,
        last_row: bool = False,
    ) -> None:
        self._samples = samples
        self._length, self._batch, self._seed = length, batch, seed
        self._last_row = last_row
        rows = [windowed_rows(each, length) for each in samples] if last_row else []
        ends = [np.stack([np.full_like(of, at), of - length + 1, of + 1], axis=1)
                for at, of in enumerate(rows)]  # fmt: skip
        self._ends = np.concatenate(ends) if ends else np.empty((0, 3), dtype=np.int64)
        if last_row and not len(self._ends):
            raise DataInvalid(
                f"No labelled bar has {length} rows of features before it; give longer candles or "
                "a smaller window."
            )

    def stream(self, skipped: int = 0) -> Iterator[Batch]:
        """Yield batches epoch after epoch without end, from the *skipped*-th on."""
        for number in itertools.count():
            order = self._order(number)
            yield from map(self._joined, order[skipped:])
            skipped = max(skipped - len(order), 0)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of epoch *number*; the same number gives the same batches."""
        return map(self._joined, self._order(number))

    def _order(self, number: int) -> list[_Cuts]:
        """Return the windows of each batch of an epoch."""
        generator = np.random.default_rng((self._seed, number))
        cuts = self._ends if self._last_row else np.array(list(self._chunks(generator)))
        order = cuts[generator.permutation(len(cuts))]
        return [order[at : at + self._batch] for at in range(0, len(order), self._batch)]

    def _chunks(self, generator: np.random.Generator) -> Iterator[tuple[int, int, int]]:
        for at, samples in enumerate(self._samples):
            phase = int(generator.integers(0, self._length))
            inner = range(samples.start + self._length - phase, samples.stop, self._length)
            for start, stop in itertools.pairwise((samples.start, *inner, samples.stop)):
                yield at, start, stop

    def _joined(self, cuts: _Cuts) -> Batch:
        """Return the windows at *cuts* as one batch."""
        of = [(self._samples[at], start, stop) for at, start, stop in cuts.tolist()]
        learnt = 1 if self._last_row else self._length  # rows of a window

        def stacked(parts: Iterator[Column], length: int) -> Tensor:
            padded = (np.pad(a, ((0, length - len(a)), *((0, 0),) * (a.ndim - 1))) for a in parts)
            return torch.from_numpy(np.stack(list(padded)))

        def label(name: str) -> Tensor:
            missing = LABELS[name].missing
            parts = (s.labels[name][max(start, stop - learnt) : stop] for s, start, stop in of)
            return stacked((np.nan_to_num(part, nan=missing) for part in parts), learnt)

        weights = (s.weights[max(start, stop - learnt) : stop] for s, start, stop in of)
        firsts = [  # with sessions, bars that follow one another may have numbers that do not
            first_position(s.segment, stop - 1) - self._length + 1
            if self._last_row
            else first_position(s.segment, start)
            for s, start, stop in of
        ]
        return Batch(
            stacked((s.segment.values[start:stop] for s, start, stop in of), self._length),
            {name: label(name) for name in of[0][0].labels},
            stacked(weights, learnt),
            torch.tensor(firsts)[:, None] + torch.arange(self._length),
        )


_Cuts = NDArray[np.int64]
"""Windows [window, 3]: the place of its samples, its first row, and one past its last."""


def windowed_rows(samples: Samples, window: int) -> NDArray[np.int64]:
    """Return the labelled rows that have *window* rows of features up to them, themselves one."""
    rows = np.flatnonzero(samples.weights.any(axis=1))
    return rows[rows >= samples.segment.first + window - 1]


# --- what a network answers at rows of a segment


_CHUNK_ROWS: Final = 8_192  # rows answered at once; bounds memory
WINDOWS_JUDGED: Final = 20_000
"""Bars of a part that a network of whole windows is judged on: each costs a pass."""
HEADS: Final = ("quantiles", "tails", "drawdown", "runup", "regimes", "path")
"""Fields that not every network has."""

Ids = NDArray[np.int64]
Fields = Mapping[str, NDArray[np.float32]]
"""Each field's name → [row, horizon, ..], in units of σ √h: mean, scale, dof and variance of the
return, logits of the direction, and ``HEADS``."""


def predict(network: Network, segment: Segment, rows: Ids, *, dropout: bool = False) -> Fields:
    """Return the fields at *rows* (ascending) of *segment*, which has features there.

    Each row sees the receptive field that ends at it, or all there is of it; before that a network
    of whole windows is given zeros, which are neutral. It takes the first columns of the features,
    as many as it has. With *dropout* it drops as in training, by
    PyTorch's seed. Leaves it in evaluation mode.
    """
    network.eval()
    try:
        for module in network.dropping() if dropout else ():
            module.train()
        return joined([fields_of(each) for each in outputs_at(network, segment, rows)])
    finally:
        network.eval()


def joined(parts: Sequence[Fields]) -> Fields:
    """Return the fields one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def fields_of(outputs: Outputs) -> Fields:
    """Return *outputs* [row, horizon, ..] as fields."""
    every = {
        "mean": outputs.mean,
        "scale": torch.exp(outputs.log_scale),
        "dof": outputs.dof,
        "logits": outputs.direction_logits,
        "variance": torch.exp(outputs.log_variance),
        **{name: getattr(outputs, name) for name in HEADS},
    }
    return {name: part.float().cpu().numpy() for name, part in every.items() if part is not None}


def outputs_at(network: Network, segment: Segment, rows: Ids) -> Iterator[Outputs]:
    """Yield the outputs of *network* at *rows* of *segment*, [row, horizon, ..], as ``predict``."""
    if not len(rows):
        raise DataInvalid("There is no bar to forecast; give longer candles.")
    answer = _by_row if network.answers_every_row else _by_window
    with torch.inference_mode():
        yield from answer(network, segment, rows)


def passes(rows: Ids, first: int, field: int, at_once: int) -> Iterator[tuple[Ids, int, int]]:
    """Yield those of *rows* that one pass answers, with the first bar that it sees and its end.

    A pass spans *at_once* bars, and sees *field* bars up to its first, from *first* on.
    """
    for begin in range(int(rows[0]), int(rows[-1]) + 1, at_once):
        chosen = rows[(rows >= begin) & (rows < begin + at_once)]
        if len(chosen):
            yield chosen, max(begin - field + 1, first), int(chosen[-1]) + 1


def _by_row(network: Network, segment: Segment, rows: Ids) -> Iterator[Outputs]:
    """Yield the outputs of chunks of *rows*, each of one pass over all bars between."""
    device, config = network.device, network.config
    for chosen, start, stop in passes(rows, segment.first, config.receptive_field, _CHUNK_ROWS):
        x = torch.from_numpy(segment.values[start:stop, : config.features]).to(device)[None]
        positions = first_position(segment, start) + torch.arange(x.shape[1], device=device)
        outputs: Outputs = network(x, positions)
        at = torch.from_numpy(chosen - start).to(device)
        yield Outputs._make(None if part is None else part[0, at] for part in outputs)


def _by_window(network: Network, segment: Segment, rows: Ids) -> Iterator[Outputs]:
    """Yield the outputs of batches of *rows*, each of its window alone."""
    window, device = network.config.window, network.device
    batch, columns = max(_CHUNK_ROWS // window, 1), network.config.features
    for start in range(0, len(rows), batch):
        chosen = rows[start : start + batch].tolist()
        x = np.zeros((len(chosen), window, columns), dtype=np.float32)
        for target, row in zip(x, chosen, strict=True):
            values = segment.values[max(row - window + 1, segment.first) : row + 1, :columns]
            target[window - len(values) :] = values
        firsts = torch.tensor([first_position(segment, row) - window + 1 for row in chosen])
        positions = firsts[:, None] + torch.arange(window)
        outputs: Outputs = network(torch.from_numpy(x).to(device), positions.to(device))
        yield outputs.map(lambda part: part[:, -1])


def thinned(rows: Ids, total: int, network: Network) -> Ids:
    """Return *rows*, of *total* in a part; evenly fewer where each costs a whole window."""
    if network.answers_every_row:
        return rows
    return rows[:: -(-total // WINDOWS_JUDGED)]


def judged_rows(network: Network, part: Sequence[Samples]) -> list[tuple[Samples, Ids]]:
    """Return the labelled rows with a full context of each segment that has some, ``thinned``."""
    rows = [windowed_rows(samples, network.config.receptive_field) for samples in part]
    total = sum(map(len, rows))
    every = ((s, thinned(of, total, network)) for s, of in zip(part, rows, strict=True))
    return [(samples, chosen) for samples, chosen in every if len(chosen)]


def no_context(part: Part, rows: int) -> ConfigInvalid:
    """Return the error of a *part* without a bar that has the *rows* an answer depends on."""
    return ConfigInvalid(
        f"The {part.value} part has no bar with {rows:,} bars before it, on which an answer "
        "depends; narrow the window, move the split's dates or give more candles."
    )
