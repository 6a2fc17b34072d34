"""Batches of windows for training, in seeded random order, and forecasts of rows.

Every labelled bar is a sample; its window ends at it. An epoch visits all samples in an order drawn
from the seed, so that each step samples the training time evenly.

The rules are docs/models.md, L25, and docs/several.md, P26.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.learning.samples import LABELS, Fields, Ids, Samples
from tracepaper.replay.learning.splits import Panel, Part, Segment
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.architecture import Network, Outputs

Cuts = NDArray[np.int64]
"""Windows [window, 3]: the index of its samples in the part, its first row, its last plus one."""


@dataclass(frozen=True)
class Batch:
    """Tensors [batch, time, ..]: features, labels by name and sample weights by horizon.

    ``positions`` int64 [batch, time] are absolute bar numbers, ``open_time_ms // interval_ms``.
    With several assets, features and labels are [batch, asset or pair, time, ..].
    """

    values: Tensor
    labels: dict[str, Tensor]
    weights: Tensor
    positions: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on *device*."""
        return Batch(
            self.values.to(device),
            {name: label.to(device) for name, label in self.labels.items()},
            self.weights.to(device),
            self.positions.to(device),
        )

    def pieces(self, size: int) -> list[Batch]:
        """Split the batch into views of at most *size* samples each."""
        labels = [
            dict(zip(self.labels, parts, strict=True))
            for parts in zip(*(label.split(size) for label in self.labels.values()), strict=True)
        ]
        pieces = (self.values.split(size), labels, self.weights.split(size))
        return [Batch(*piece) for piece in zip(*pieces, self.positions.split(size), strict=True)]


def windows(
    part: Sequence[Samples], cuts: Cuts, length: int, *, learnt: int | None = None
) -> Batch:
    """Return the windows of *part* at *cuts* as a batch.

    A window that is shorter than *length* is padded at its end without weight. Labels and weights
    are those of the last *learnt* rows of each window, by default of all.
    """
    rows, has_assets = learnt or length, len(part[0].panel.symbols) > 1
    spans = [(part[at], start, stop) for at, start, stop in cuts.tolist()]
    labelled = [(samples, slice(max(start, stop - rows), stop)) for samples, start, stop in spans]
    labels = {}
    for name in part[0].labels:
        missing = LABELS[name].missing
        each = [np.nan_to_num(samples.labels[name][:, at], nan=missing) for samples, at in labelled]
        labels[name] = _stacked(each, rows, has_assets=has_assets)
    panels = [(samples.panel, start, stop) for samples, start, stop in spans]
    values, positions = inputs(panels, length, by_last=learnt == 1)
    weights = _stacked([samples.weights[None, at] for samples, at in labelled], rows)
    return Batch(values, labels, weights, positions)


def inputs(
    cuts: Sequence[tuple[Panel, int, int]], length: int, *, by_last: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the features [window, time, ..] of rows of panels, and their positions [window, time].

    A window that is shorter than *length* is padded with zeros, which are neutral: at its end, or
    with *by_last*, for a forecast of the last row, at its start.
    """
    parts = [panel.values(start, stop) for panel, start, stop in cuts]
    # Count from one bar: with sessions, consecutive bars may have numbers that are not.
    at = -1 if by_last else 0
    firsts = [
        first_position(panel.segments[0], (start, stop - 1)[at]) for panel, start, stop in cuts
    ]
    ahead = torch.arange(length) - (length - 1 if by_last else 0)
    return _stacked(parts, length, by_last=by_last), torch.tensor(firsts)[:, None] + ahead


def _stacked(
    parts: Sequence[NDArray[Any]], count: int, *, has_assets: bool = False, by_last: bool = False
) -> Tensor:
    """Stack [asset, time, ..] arrays, padded to *count*, as [window, asset, time, ..].

    The axis of a single asset is dropped, unless *has_assets*: two assets have a single pair.
    """
    stack = np.zeros((len(parts), len(parts[0]), count, *parts[0].shape[2:]), parts[0].dtype)
    for row, part in zip(stack, parts, strict=True):
        begin = count - part.shape[1] if by_last else 0
        row[:, begin : begin + part.shape[1]] = part
    return torch.from_numpy(stack if has_assets or len(parts[0]) > 1 else stack[:, 0])


def first_position(segment: Segment, row: int) -> int:
    """Return the absolute number of the bar at *row*."""
    return int(segment.open_time_ms[row]) // segment.interval_ms


class Epochs:
    """Every window of a part once per epoch, in batches and in seeded random order.

    By default a window has labels at all its rows, and each epoch cuts every panel into windows at
    a random phase. With *last_row*, a window ends at each labelled bar and has its label only. The
    last batch of an epoch may be smaller. Raises ``DataInvalid`` if no labelled bar has a full
    window.
    """

    def __init__(
        self,
        part: Sequence[Samples],
        *,
        length: int,
        batch: int,
        seed: int,
        last_row: bool = False,
    ) -> None:
        self._part, self._length, self._batch, self._seed = part, length, batch, seed
        self._learnt = 1 if last_row else None
        rows = [each.whole_rows(length) for each in part] if last_row else []
        ends = [np.stack([np.full_like(last, at), last - length + 1, last + 1], axis=1)
                for at, last in enumerate(rows)]  # fmt: skip
        self._ends = np.concatenate(ends) if ends else np.empty((0, 3), dtype=np.int64)
        if last_row and not len(self._ends):
            raise DataInvalid(
                f"No labelled bar has {length} rows of features before it; give longer candles or "
                "a smaller window."
            )

    def stream(self, skipped: int = 0) -> Iterator[Batch]:
        """Yield batches epoch after epoch without end, after skipping *skipped*."""
        for number in itertools.count():
            order = self._order(number)
            yield from map(self._taken, order[skipped:])
            skipped = max(skipped - len(order), 0)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of epoch *number*; the same number gives the same batches."""
        return map(self._taken, self._order(number))

    def _taken(self, cuts: Cuts) -> Batch:
        return windows(self._part, cuts, self._length, learnt=self._learnt)

    def _order(self, number: int) -> list[Cuts]:
        """Return the windows of each batch of an epoch."""
        generator = np.random.default_rng((self._seed, number))
        cuts = self._ends if self._learnt else np.array(list(self._chunks(generator)))
        order = cuts[generator.permutation(len(cuts))]
        return [order[at : at + self._batch] for at in range(0, len(order), self._batch)]

    def _chunks(self, generator: np.random.Generator) -> Iterator[tuple[int, int, int]]:
        for at, samples in enumerate(self._part):
            phase = int(generator.integers(0, self._length))
            inner = range(samples.start + self._length - phase, samples.stop, self._length)
            for start, stop in itertools.pairwise((samples.start, *inner, samples.stop)):
                yield at, start, stop


@dataclass(frozen=True)
class Chunks:
    """Random windows of *length* rows; those of a batch are from one panel.

    ``begins`` [panel, 2] are the first row at which a window may begin, and one past the last.
    ``shares`` [panel] are proportional to the probability of drawing each panel.
    """

    begins: Cuts
    shares: Array
    length: int

    def drawn(self, generator: np.random.Generator, batch: int) -> Cuts:
        """Return the windows of the next batch that *generator* draws."""
        place = int(generator.choice(len(self.shares), p=self.shares / self.shares.sum()))
        first, stop = self.begins[place].tolist()
        return self._cuts(place, generator.integers(first, stop, batch))

    def spread(self, count: int, batch: int) -> Iterator[Cuts]:
        """Yield *count* batches, their windows evenly spread over the panels."""
        last = max(count * batch - 1, 1)
        for number in range(count):
            place = number * max(len(self.begins), count) // count % len(self.begins)
            first, stop = self.begins[place].tolist()
            yield self._cuts(
                place, first + (stop - 1 - first) * (number * batch + np.arange(batch)) // last
            )

    def _cuts(self, place: int, starts: Ids) -> Cuts:
        return np.stack([np.full_like(starts, place), starts, starts + self.length], axis=1)


# --- forecasts at rows of a segment


_CHUNK_ROWS: Final = 8_192  # rows of one pass; bounds memory
WINDOWS_JUDGED: Final = 20_000
"""The most bars per part to judge a network of whole windows on: each costs a pass."""
HEADS: Final = ("quantiles", "tails", "drawdown", "runup", "regimes", "path")
"""The fields of auxiliary heads."""


def predict(network: Network, segment: Segment, rows: Ids, *, dropout: bool = False) -> Fields:
    """Return the fields at ascending *rows* of *segment*, which must have features.

    Each row sees the receptive field that ends at it, or as much as the segment has; a network of
    whole windows gets neutral zeros before that. The network reads the first columns of the
    features. *dropout* applies dropout as in training, with PyTorch's seed. The network is left in
    evaluation mode.
    """
    if not len(rows):
        raise DataInvalid("There is no bar to forecast; give longer candles.")
    answer = _by_row if network.answers_every_row else _by_window
    network.eval()
    try:
        for module in network.dropping() if dropout else ():
            module.train()
        with torch.inference_mode():
            return joined([fields_of(each) for each in answer(network, segment, rows)])
    finally:
        network.eval()


def joined(parts: Sequence[Fields]) -> Fields:
    """Return the concatenated fields of *parts*."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def fields_of(outputs: Outputs) -> Fields:
    """Return *outputs* [row, horizon, ..] as fields."""
    fields = {
        "mean": outputs.mean,
        "scale": torch.exp(outputs.log_scale),
        "dof": outputs.dof,
        "logits": outputs.direction_logits,
        "variance": torch.exp(outputs.log_variance),
        **{name: getattr(outputs, name) for name in HEADS},
    }
    return {name: part.float().cpu().numpy() for name, part in fields.items() if part is not None}


def passes(rows: Ids, first: int, field: int, at_once: int) -> Iterator[tuple[Ids, int, int]]:
    """Yield for each pass its *rows*, the first bar that it sees and its end.

    A pass spans *at_once* bars. It sees *field* bars up to its first row, but none before *first*.
    """
    for begin in range(int(rows[0]), int(rows[-1]) + 1, at_once):
        chosen = rows[(rows >= begin) & (rows < begin + at_once)]
        if len(chosen):
            yield chosen, max(begin - field + 1, first), int(chosen[-1]) + 1


def _by_row(network: Network, segment: Segment, rows: Ids) -> Iterator[Outputs]:
    """Yield the outputs of chunks of *rows*, each from one pass over consecutive bars."""
    device, config, panel = network.device, network.config, Panel((segment,))
    for chosen, start, stop in passes(rows, segment.first, config.receptive_field, _CHUNK_ROWS):
        x, positions = inputs([(panel, start, stop)], stop - start)
        outputs: Outputs = network(x[..., : config.features].to(device), positions[0].to(device))
        at = torch.from_numpy(chosen - start).to(device)
        yield Outputs._make(None if part is None else part[0, at] for part in outputs)


def _by_window(network: Network, segment: Segment, rows: Ids) -> Iterator[Outputs]:
    """Yield the outputs of batches of *rows*, each row from its window."""
    window, device, panel = network.config.window, network.device, Panel((segment,))
    batch, columns = max(_CHUNK_ROWS // window, 1), network.config.features
    for start in range(0, len(rows), batch):
        cuts = [
            (panel, max(row - window + 1, segment.first), row + 1)
            for row in rows[start : start + batch].tolist()
        ]
        x, positions = inputs(cuts, window, by_last=True)
        outputs: Outputs = network(x[..., :columns].to(device), positions.to(device))
        yield outputs.map(lambda part: part[:, -1])


def thinned(rows: Ids, total: int, network: Network) -> Ids:
    """Return *rows*, thinned evenly if each costs a window; the part has *total* rows."""
    return rows if network.answers_every_row else rows[:: -(-total // WINDOWS_JUDGED)]


def judged_rows(
    network: Network | None, part: Sequence[Samples], at_most: int | None = None
) -> list[tuple[Samples, Ids]]:
    """Return for each segment its labelled rows with a full context, ``thinned``.

    They are thinned evenly to *at_most*. A model without a network sees one row. Segments without
    such rows are left out.
    """
    context = 1 if network is None else network.config.receptive_field
    rows = [samples.whole_rows(context) for samples in part]
    total = sum(map(len, rows))
    step = 1 if at_most is None else max(-(-total // at_most), 1)
    if network is not None and step == 1:
        rows = [thinned(each, total, network) for each in rows]
    return [(samples, each[::step]) for samples, each in zip(part, rows, strict=True) if len(each)]


def no_context(part: Part, rows: int) -> ConfigInvalid:
    """Return the error of a *part* without a bar that has a full context of *rows* rows."""
    return ConfigInvalid(
        f"The {part.value} part has no bar with {rows:,} bars before it, on which an answer "
        "depends; narrow the window, move the split's dates or give more candles."
    )
