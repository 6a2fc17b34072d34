"""Panels: the bars that all symbols have, as arrays [asset, time], and chunks to learn from.

A close counts where every symbol has a bar and a row of features; where one has not, none is used.
So a panel's arrays are [asset, time], and a return can be held to the mean over the assets.

The rules are docs/several.md, P23 and P26.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, combinations_with_replacement
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.archive import slice_candles
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.samples import (
    LABELS,
    RETURN_LIMIT,
    Batch,
    Fields,
    Samples,
    fields_of,
    first_position,
    joined,
    passes,
    samples_in,
    windowed_rows,
)
from tracepaper.replay.learning.splits import Part, Segment, Split
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.cross_asset import JOINT, CrossAssetNetwork, CrossOutputs

Ids = NDArray[np.int64]
Rows = NDArray[np.float32]

_AT_ONCE: Final = 2_048
"""Bars that are answered in one pass; bounds memory."""
LEAST: Final = 2
"""Symbols of a network over several."""
LEAST_BARS: Final = 5
"""Horizons of fewer bars have no correlation: two or three returns have none to speak of."""


@dataclass(frozen=True)
class Panel:
    """Consecutive bars that all symbols have: a segment of each, of the same times."""

    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        """Return the number of bars."""
        return len(self.segments[0])

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols, in the order of the first axis."""
        return tuple(segment.candles.symbol for segment in self.segments)

    @property
    def first(self) -> int:
        """The first bar at which every symbol has a row of features."""
        return max(segment.first for segment in self.segments)

    def rows(self, start: int, stop: int) -> Rows:
        """Return the features of the bars from *start* until *stop*: [asset, time, feature]."""
        return np.stack([segment.values[start:stop] for segment in self.segments])

    def positions(self, start: int, stop: int) -> Tensor:
        """Return the absolute numbers of these bars: int64 [time]."""
        return first_position(self.segments[0], start) + torch.arange(stop - start)

    def moves(self, bars: int) -> Array:
        """Return the log returns to *bars* later: [asset, time], NaN where they are not known."""
        logs = np.log(np.stack([segment.close for segment in self.segments]))
        returns = np.full(logs.shape, np.nan)
        count = max(len(self) - bars, 0)
        returns[:, :count] = logs[:, bars:] - logs[:, :count]
        return returns

    def unit(self, bars: int) -> Array:
        """Return what is one at each bar, σ √bars: [asset, time]."""
        sigma = np.stack([segment.sigma for segment in self.segments])
        scale: Array = sigma * np.sqrt(bars)
        return scale

    def relative(self, horizons: Sequence[int]) -> Rows:
        """Return each return less the mean over the assets, in its own units.

        [asset, time, horizon], cut at ``RETURN_LIMIT``, NaN where it is not known.
        """
        returns = []
        for bars in horizons:
            moves = self.moves(bars)
            apart = (moves - moves.mean(axis=0)) / self.unit(bars)
            returns.append(np.clip(apart, -RETURN_LIMIT, RETURN_LIMIT).astype(np.float32))
        return np.stack(returns, axis=-1)

    def products(self) -> dict[tuple[int, int], Array]:
        """Return products of the one-bar log returns of each pair, itself too: [time]."""
        logs = np.log(np.stack([segment.close for segment in self.segments]))
        moved = np.diff(logs, axis=1, prepend=logs[:, :1])
        places = combinations_with_replacement(range(len(moved)), 2)
        return {(first, second): moved[first] * moved[second] for first, second in places}

    def correlations(self, horizons: Sequence[int]) -> Array:
        """Return the correlation of each pair's one-bar returns to each horizon, about 0.

        [pair, time, horizon]; NaN where one is not known, where nothing moved, and at horizons of
        fewer than ``LEAST_BARS``.
        """
        products = self.products()
        pairs = combinations(range(len(self.segments)), 2)
        correlations = np.full((len(list(pairs)), len(self), len(horizons)), np.nan)
        for at, bars in enumerate(horizons):
            if LEAST_BARS <= bars < len(self):
                ahead = {pair: _ahead(of, bars) for pair, of in products.items()}
                correlations[:, : len(self) - bars, at] = correlated(ahead)
        return correlations

    def decisions(self, rows: Ids, every: int) -> Ids:
        """Return those of *rows* whose closes are whole numbers of *every* bars of the clock."""
        chosen: Ids = rows[(first_position(self.segments[0], 0) + rows + 1) % every == 0]
        return chosen


def _ahead(values: Array, bars: int) -> Array:
    """Return the sums of the *bars* values after each of *values* [time], where they are known."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    sums: Array = total[bars + 1 :] - total[1:-bars]
    return sums


def correlated(sums: Mapping[tuple[int, int], Array]) -> Array:
    """Return the correlations [pair, time] by sums of products; NaN where nothing has moved."""
    correlations = []
    for (first, second), shared in sums.items():
        if first != second:
            spread = np.sqrt(sums[first, first] * sums[second, second])
            with np.errstate(divide="ignore", invalid="ignore"):
                correlations.append(np.where(spread > 0, shared / spread, np.nan))
    return np.clip(np.stack(correlations), -1.0, 1.0)


class LabelledPanel(NamedTuple):
    """One panel's samples of a part, one a symbol; one symbol's bars are a panel of one."""

    samples: tuple[Samples, ...]

    @property
    def panel(self) -> Panel:
        """The bars."""
        return Panel(tuple(samples.segment for samples in self.samples))

    @property
    def rows(self) -> Ids:
        """The labelled bars."""
        return np.flatnonzero(self.samples[0].weights.any(axis=1))

    def span(self, field: int) -> tuple[int, int]:
        """Return the first bar seen, *field* bars up to the first label, and one past the last."""
        return max(self.panel.first, int(self.rows[0]) - field + 1), self.samples[0].stop

    def whole_rows(self, field: int) -> Ids:
        """Return the labelled bars with *field* bars up to them, themselves one."""
        return windowed_rows(self.samples[0], field)


def close_by_close(data: Dataset, split: Callable[[Sequence[Segment]], Split]) -> Dataset:
    """Return *data* at the closes that all of its symbols have, which *split* cuts anew.

    Raises ``ConfigInvalid`` or ``DataInvalid`` where nothing is common.
    """
    symbols = tuple(dict.fromkeys(segment.candles.symbol for segment in data.segments))
    if len(symbols) < LEAST:
        raise ConfigInvalid(
            "A network over several assets needs candles of at least two symbols; repeat "
            "--data for each."
        )
    by_symbol = {
        symbol: [segment for segment in data.segments if segment.candles.symbol == symbol]
        for symbol in symbols
    }
    spans = [  # of open times, in which a row of features is known
        [(int(segment.open_time_ms[segment.first]), int(segment.close_time_ms[-1]))
         for segment in by_symbol[symbol]]
        for symbol in symbols
    ]  # fmt: skip
    panels = tuple(
        Panel(tuple(_cut(by_symbol[symbol], start, stop) for symbol in symbols))
        for start, stop in _common(spans)
    )
    if not panels:
        raise DataInvalid(
            f"There is no close at which all of {', '.join(symbols)} have a bar and "
            f"{data.schema.lookback} bars before it; give --data of one time."
        )
    segments = [segment for panel in panels for segment in panel.segments]
    return replace(
        data,
        segments=segments,
        others=(),
        split=split(segments),
        panels=panels,
        notes=_unused(by_symbol, panels),
    )


def labelled_closes(data: Dataset, part: Part) -> list[LabelledPanel]:
    """Return the panels' samples of *part*; raise ``DataInvalid`` where it, or a horizon, has none.

    Without panels each segment is one. Where *data* are some bars ``only``, the labels of the
    others stay in a panel of several.
    """
    if not data.panels:
        return [LabelledPanel((samples,)) for samples in data.samples(part)]
    closes = []
    panels: Any = data.panels  # Pyright follows this module by two names
    for panel in panels:
        samples = samples_in(panel.segments, data.horizons, data.parts, part)
        if len(samples) == len(panel.segments):
            closes.append(LabelledPanel(tuple(samples)))
    if not closes:
        raise DataInvalid(f"The {part.value} part holds no labelled close; move the dates.")
    data.require_every_horizon(part, [labelled.samples[0] for labelled in closes])
    return closes


def _common(spans: Sequence[Sequence[tuple[int, int]]]) -> Iterator[tuple[int, int]]:
    """Yield the spans of time that lie in a span of each symbol, in order."""
    held = list(spans[0])
    for others in spans[1:]:
        held = [
            (max(span[0], other[0]), min(span[1], other[1]))
            for span in held
            for other in others
            if max(span[0], other[0]) < min(span[1], other[1])
        ]
    yield from sorted(held)


def _cut(segments: Sequence[Segment], start: int, stop: int) -> Segment:
    """Return the bars of that time, and before them as many as rows of features look back on."""
    for segment in segments:
        times = segment.open_time_ms
        if times[segment.first] <= start and stop <= times[-1] + segment.interval_ms:
            first, last = np.searchsorted(times, (start, stop)).tolist()
            rows = slice(first - segment.first, last)
            return Segment(
                slice_candles(segment.candles, rows),
                segment.close[rows],
                segment.values[rows],
                segment.sigma[rows],
                segment.first,
            )
    raise AssertionError("a common span lies in a segment of each symbol")


def _unused(by_symbol: dict[str, list[Segment]], panels: Sequence[Panel]) -> tuple[str, ...]:
    """Return a sentence for streams of unequal length, and one for closes that are not used."""
    held = {name: np.concatenate([s.open_time_ms for s in by_symbol[name]]) for name in by_symbol}
    every = np.unique(np.concatenate(list(held.values())))
    used = sum(len(panel) - panel.first for panel in panels)
    sentences = []
    counts = {name: len(times) for name, times in held.items()}
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        sentences.append(
            f"The symbols have bars of unequal number ({listing}): common closes are used."
        )
    if used < len(every):
        lacking = {name: len(every) - len(times) for name, times in held.items()}
        most = max(lacking, key=lacking.__getitem__)
        why = f"; {most} alone has none at {lacking[most]:,}" if lacking[most] else ""
        sentences.append(
            f"Of {len(every):,} closes {len(every) - used:,} are not used, for not every symbol "
            f"has a bar with its features there{why}."
        )
    return tuple(sentences)


# ---------------------------------------------------------------- what a network says of it


class PanelFields(NamedTuple):
    """What a network answers at some bars of a panel, as arrays; in units of σ √h."""

    rows: Ids
    each: tuple[Fields, ...]  # one an asset, with its relative return: [row, horizon, ..]
    heads: Mapping[str, Rows]
    """relative [asset, row, horizon]; where it has them allocation [asset, row] and loadings
    [asset, row, horizon, factor]."""


def predicted(network: CrossAssetNetwork, panel: Panel, rows: Ids) -> PanelFields:
    """Return the fields of *network* at *rows*, ascending, each of its receptive field alone.

    Raises ``DataInvalid`` where there is no row.
    """
    if not len(rows):
        raise DataInvalid("There is no close to forecast; give longer candles.")
    network.eval()
    field, assets = network.config.receptive_field, network.config.places(panel.symbols)
    is_joint = network.config.attention == JOINT
    parts: list[CrossOutputs] = []
    with torch.inference_mode():
        for chosen, start, stop in passes(rows, panel.first, field, 1 if is_joint else _AT_ONCE):
            x = torch.from_numpy(panel.rows(start, stop))[None]
            outputs: CrossOutputs = network(x, assets, panel.positions(start, stop))
            at = torch.from_numpy(chosen - start)
            if not is_joint:  # which answers its last bar alone
                outputs = outputs.map(partial(torch.index_select, dim=2, index=at))
            parts.append(outputs)
    heads = {}
    for name in ("relative", "allocation", "loadings"):
        of = [given[0] for part in parts if (given := getattr(part, name)) is not None]
        if of:
            heads[name] = torch.cat(of, dim=1).float().numpy()
    each = tuple(
        {
            **joined([fields_of(part.each.map(itemgetter((0, asset)))) for part in parts]),
            "relative": heads["relative"][asset],
        }
        for asset in range(len(panel.segments))
    )
    return PanelFields(rows, each, heads)


# ---------------------------------------------------------------- batches


class PanelBatches:
    """Batches of chunks of the labelled bars of a part, drawn at random by a seed, or spread.

    Of a network that answers every row a chunk is *length* bars, each of which is a sample; of
    joint attention a window for each decision, as many as *length* bars hold. The labels of a batch
    are [batch, asset, row, horizon] and its weights [batch, row, horizon]. ``across`` is of all
    assets together: relative [batch, asset, row, horizon]; decided, int64 [batch, decision], the
    rows whose weights are held until the next; gains [batch, asset, decision], simple returns while
    they are held; of a network that learns them correlations [batch, pair, row, horizon], NaN where
    none is known.
    """

    def __init__(
        self, part: Sequence[LabelledPanel], network: CrossAssetNetwork, *, length: int, batch: int
    ) -> None:
        config = self._config = network.config
        self._joint = config.attention == JOINT
        self._batch = batch
        spans = [labelled.span(config.receptive_field) for labelled in part]
        lengths = [stop - first for first, stop in spans]
        self._length = min(length, max(lengths))
        self._part = [
            (labelled, self._ahead(labelled.panel), *span)
            for labelled, span, count in zip(part, spans, lengths, strict=True)
            if count >= self._length
        ]
        weights = np.array([stop - first - self._length + 1 for *_, first, stop in self._part])
        self._shares = weights / weights.sum()
        least = config.every + (config.window if self._joint else 0)
        if self._length < least + config.every:
            raise DataInvalid(
                f"A part has at most {max(lengths):,} closes in a row, of which chunks are "
                f"{self._length:,}, and weights held for {config.every} bars need "
                f"{least + config.every:,}; give longer candles, or lower every."
            )

    def _ahead(self, panel: Panel) -> dict[str, NDArray[Any]]:
        """Return what is known of all bars of *panel*: [asset or pair, time, horizon]."""
        horizons = self._config.horizons
        ahead: dict[str, NDArray[Any]] = {"relative": np.nan_to_num(panel.relative(horizons))}
        if self._config.factors:
            ahead["correlations"] = panel.correlations(horizons)
        return ahead

    def drawn(self, generator: np.random.Generator) -> Batch:
        """Return the next batch that *generator* draws."""
        place = int(generator.choice(len(self._part), p=self._shares))
        *_, first, stop = self._part[place]
        starts = generator.integers(first, stop - self._length + 1, self._batch)
        return self._joined(place, starts)

    def spread(self, count: int) -> Iterator[Batch]:
        """Yield *count* batches, their chunks evenly spread over the part."""
        for number in range(count):
            place = number % len(self._part)
            *_, first, stop = self._part[place]
            wide = stop - self._length - first
            last = max(count * self._batch - 1, 1)
            numbers = number * self._batch + np.arange(self._batch)
            yield self._joined(place, first + wide * numbers // last)

    def _joined(self, place: int, starts: Ids) -> Batch:
        """Return the chunks of a panel at *starts*, with as many decisions as the shortest has."""
        config, joint = self._config, self._joint
        labelled, ahead, *_ = self._part[place]
        panel, samples, weights = labelled.panel, labelled.samples, labelled.samples[0].weights
        skipped = config.window - 1 if joint else 0
        every = [
            panel.decisions(np.arange(start + skipped, start + self._length), config.every)
            for start in starts.tolist()
        ]
        decided = np.stack([of[: min(map(len, every))] for of in every])
        gains = np.nan_to_num(np.expm1(panel.moves(config.every)[:, decided]))
        held = config.horizons.index(config.every)
        gains[:, weights[decided, held] <= 0] = 0.0  # no return of the next part is seen
        if joint:  # each decision is a row, and sees a window
            rows, bars = decided, decided[..., None] + np.arange(1 - config.window, 1)
            first, length = 0, config.window
        else:
            rows = bars = starts[:, None] + np.arange(self._length)
            first, length = int(starts[0]), self._length
        values = np.stack([segment.values[bars] for segment in panel.segments], axis=-3)
        labels = {
            name: np.stack(
                [np.nan_to_num(of.labels[name][rows], nan=LABELS[name].missing) for of in samples],
                axis=1,
            )
            for name in samples[0].labels
        }
        across: dict[str, NDArray[Any]] = {
            **{name: of[:, rows].swapaxes(0, 1).astype(np.float32) for name, of in ahead.items()},
            "decided": decided if joint else decided - starts[:, None],
            "gains": gains.swapaxes(0, 1).astype(np.float32),
        }
        return Batch(
            torch.from_numpy(values.reshape(-1, *values.shape[-3:])),
            {name: torch.from_numpy(of) for name, of in labels.items()},
            torch.from_numpy(weights[rows]),
            panel.positions(first, first + length),
            {name: torch.from_numpy(np.ascontiguousarray(of)) for name, of in across.items()},
        )


def answered(network: CrossAssetNetwork, assets: Tensor, batch: Batch) -> CrossOutputs:
    """Return what *network* says of *batch* at its labelled rows: [batch, asset, row, ..]."""
    outputs: CrossOutputs = network(batch.values, assets, batch.positions)
    if network.config.attention != JOINT:
        return outputs
    count = len(batch.weights)

    def folded(part: Tensor) -> Tensor:
        """[batch * window, asset, 1, ..] as [batch, asset, window, ..]."""
        windows: Tensor = part[:, :, 0].unflatten(0, (count, -1))
        return windows.transpose(1, 2)

    return outputs.map(folded)
