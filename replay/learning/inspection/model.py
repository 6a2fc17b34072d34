"""The model under inspection: its forecasts of real and changed inputs, and its network.

An ensemble's network is inspected. By default its inputs are rows of features of the bundled
candles at its interval.

The rules are docs/models.md, L38 to L42.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.archive.candles import Candles
from tracepaper.replay.archive.columns import instant
from tracepaper.replay.archive.read import read_candles
from tracepaper.replay.learning.dataset import Dataset, joined_to
from tracepaper.replay.learning.estimators.tabular import row_fields
from tracepaper.replay.learning.fitted import FittedModel, Mix
from tracepaper.replay.learning.samples import Fields, Samples
from tracepaper.replay.learning.side_inputs import OtherInputs, SideFiles, SideInputs, source_for
from tracepaper.replay.learning.splits import Part, Segment, segments_of
from tracepaper.replay.learning.windows import first_position, judged_rows, no_context, predict
from tracepaper.replay.samples import DEMO_CANDLES, MONTH_CANDLES
from tracepaper.storage import checkpoints
from tracepaper.storage.paths import path_of
from tracepaper.strategies import book_features
from tracepaper.strategies.covariates import FixedCovariates, takes_vectors
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features import rows as features
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.features.rows import FeatureSchema
from tracepaper.strategies.forecasters.build import (
    known_kind,
    known_schema,
    part_of,
    restore,
    tensors_of,
)
from tracepaper.strategies.forecasters.tabular import TrainedRows
from tracepaper.strategies.networks.architecture import LayerAttribution, Network
from tracepaper.strategies.networks.checks import (
    NetworkCheck,
    check_network,
    export_onnx,
    export_torch,
)
from tracepaper.strategies.other_symbol import KnownOtherBars, OtherColumns, other_of
from tracepaper.strategies.units import DAY_MS, INTERVALS, interval_text

TARGETS: Final = ("log variance", "mean")
"""The forecast values that inspections explain; the mean is in units of σ √h."""
_ROWS_AT_ONCE: Final = 16_384  # rows over all windows of one pass; bounds memory

Ids = NDArray[np.int64]
Rows = NDArray[np.float32]


class DecidedBar(NamedTuple):
    """A bar at which the model decides, as a row of a segment."""

    samples: Samples
    row: int

    @property
    def day(self) -> int:
        """The bar's day, counted from 1970."""
        return int(self.samples.segment.open_time_ms[self.row]) // DAY_MS

    def rows(self, count: int) -> Rows:
        """Return a copy of the last *count* rows of features, this bar's last: [count, feature]."""
        return self.samples.segment.values[self.row - count + 1 : self.row + 1].copy()

    def positions(self, count: int) -> Tensor:
        """Return the absolute numbers of these bars."""
        first = first_position(self.samples.segment, self.row) - count + 1
        return torch.arange(first, first + count)


@dataclass(frozen=True)
class Subject:
    """A network, a model of one row of features, or both, with the data to inspect it on."""

    material: Dataset
    horizon: int
    """The gates' horizon, in bars."""
    network: Network | None = None
    trained: TrainedRows | None = None
    mix: Mix | None = None
    """Only an ensemble, which has both members, has a mix."""

    @classmethod
    def of(cls, model: FittedModel, material: Dataset) -> Self:
        """Return the subject of *model*; raise ``ConfigInvalid`` if nothing can be inspected."""
        if model.network is None and model.rows is None:
            raise ConfigInvalid(
                "The model has neither a network nor a model of rows to inspect; leave --inspect "
                "out."
            )
        network = None if model.network is None else model.network.eval()
        mix: Any = model.mix  # Pyright follows this module by two names
        return cls(material, model.horizon, network, model.rows, mix)

    @property
    def column(self) -> int:
        """The index of ``horizon`` among the model's horizons."""
        return self.material.horizons.index(self.horizon)

    @property
    def of_network(self) -> str:
        """A title's addition where only the network of an ensemble is inspected."""
        return "" if self.mix is None else " (the ensemble's network)"

    def need_network(self, option: str) -> Network:
        """Return the network; raise ``ConfigInvalid`` for a model of single rows."""
        if self.network is None:
            raise ConfigInvalid(
                f"{option} needs a model that sees several bars, and this one sees the features of "
                f"one bar; leave {option} out."
            )
        return self.network

    def predict(self, segment: Segment, rows: Ids) -> Fields:
        """Return the model's fields at *rows* of *segment*."""
        if self.trained is None:
            assert self.network is not None
            return predict(self.network, segment, rows)
        member = row_fields(self.trained.model, self.own_rows(segment.values[rows]))
        if self.network is None:
            spread = np.array(self.trained.spread, dtype=np.float32)
            return {**member, "scale": member["scale"] * spread}
        assert self.mix is not None
        fields = predict(self.network, segment, rows)
        mixed = self.mix.log_variance(np.log(fields["variance"]), np.log(member["variance"]))
        return {
            **fields,
            "variance": np.exp(mixed).astype(np.float32),
            "scale": (np.exp(0.5 * mixed) * self.mix.spread).astype(np.float32),
            "dof": member["dof"],
        }

    def own_rows(self, rows: Rows) -> Rows:
        """Return the row model's columns of *rows* [.., feature], which are the first."""
        assert self.trained is not None
        return rows[..., : len(self.trained.schema.names)]

    def labelled(self, part: Part, at_most: int | None = None) -> list[tuple[Samples, Ids]]:
        """Return the labelled rows of *part* with a full context, by segment.

        They are thinned evenly to *at_most*, and for a network that needs a pass for each row.
        """
        try:
            samples = self.material.samples(part)
        except DataInvalid:
            raise DataInvalid(
                f"The candles hold no labelled bar of the card's {part.value} part; give --data of"
                " that time too, or leave out the inspections that need it."
            ) from None
        if labelled := judged_rows(self.network, samples, at_most):
            return labelled
        raise no_context(part, 1 if self.network is None else self.network.config.receptive_field)

    def decisions(self, count: int) -> list[DecidedBar]:
        """Return up to *count* decisions of the test part, evenly spread."""
        bars = [(s, row) for s, rows in self.labelled(Part.TEST) for row in rows.tolist()]
        chosen = np.unique(np.linspace(0, len(bars) - 1, count).round().astype(np.int64))
        return [DecidedBar(*bars[at]) for at in chosen.tolist()]

    @cached_property
    def neutral(self) -> Rows:
        """The neutral row [feature]: the mean of each feature over the training part.

        A checkpoint's ridge baseline stores it, so the training candles are not needed.
        """
        if "ridge" in (stored := self.material.stored or {}):
            return stored["ridge"]["centre"].astype(np.float32)
        total, count = np.zeros(len(self.material.schema.names)), 0
        for samples in self.material.samples(Part.TRAIN):
            rows = samples.segment.values[samples.start : samples.stop]
            total += rows.sum(axis=0, dtype=np.float64)
            count += len(rows)
        return (total / count).astype(np.float32)


class NetworkForecast(NamedTuple):
    """A network's forecast of the last bar of each window: [window, horizon]."""

    mean: NDArray[np.float32]
    log_variance: NDArray[np.float32]

    def targets(self, column: int) -> Array:
        """Return ``TARGETS`` at one horizon: [target, window]."""
        both = (self.log_variance[:, column], self.mean[:, column])
        return np.stack(both).astype(np.float64)


def ask(network: Network, windows: Rows, positions: Tensor) -> NetworkForecast:
    """Return the forecasts of *windows* [window, bar, feature], all at int64 *positions* [bar].

    The network sees the first of the features.
    """
    step = max(_ROWS_AT_ONCE // windows.shape[1], 1)
    place = positions.to(network.device)
    parts = []
    inputs = windows[..., : network.config.features]
    with torch.inference_mode():
        for start in range(0, len(windows), step):
            x = torch.from_numpy(inputs[start : start + step]).to(network.device)
            outputs = network(x, place)
            parts.append(
                [part[:, -1].float().cpu().numpy() for part in (outputs.mean, outputs.log_variance)]
            )
    return NetworkForecast(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def answer_of(
    network: Network, positions: Tensor, target: str, column: int
) -> Callable[[Tensor], Tensor]:
    """Return a differentiable function: [window, bar, feature] → *target* [window]."""
    place = positions.to(network.device)

    def answer(windows: Tensor) -> Tensor:
        inputs = windows[..., : network.config.features]
        outputs = network(inputs.to(network.device), place)
        chosen: Tensor = outputs.log_variance if target == TARGETS[0] else outputs.mean
        return chosen[:, -1, column]

    return answer


def attended(network: Network, window: Rows, positions: Tensor) -> Array:
    """Return the attention rollout [bar] of *network* over one *window* [bar, feature]."""
    x = torch.from_numpy(window[None, :, : network.config.features])
    with torch.inference_mode():
        rollout = network.explain(x.to(network.device), positions.to(network.device)).rollout
    return rollout.weights[0, 0].double().cpu().numpy()


def days_of(decisions: Sequence[DecidedBar]) -> Ids:
    """Return the day of each decision."""
    return np.array([decision.day for decision in decisions], dtype=np.int64)


WINDOWS: Final = 4
"""Windows of a check, evenly spread."""
RUNTIMES: Final = {"onnx": ".onnx", "torch": ".pt2"}
"""The runtimes of an exported network, with their file suffixes."""


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of a network at one bar, layer by layer; bars are oldest first."""

    open_time_ms: Ids  # [bar] of the network's rows; the last is the decided bar
    layers: tuple[Rows, ...]
    """[head, bar] by layer, the lowest first; a head's weights sum to 1."""


MAP_BARS_MAX: Final = 8_192
"""Bars of an attention map, which then takes 256 MiB."""
MAP_QUERIES: Final = 256  # carried at once
NO_FILE: Final = FixedCovariates("", {})
"""Stands for covariates that are not given: their names are known, their rows are not."""

FileOrFrame = Any  # of candles; a frame of any library
Window = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StoredNetwork:
    """The network of a checkpoint."""

    folder: Path
    model_id: str
    network: Network
    schema: FeatureSchema
    interval_ms: int
    gradients: Mapping[str, Any]
    """``[gradients]`` of its card, from the fit; may be empty."""
    asset: str | None = None
    """``stock`` if it was trained on shares."""

    @classmethod
    def open(cls, name: str, inputs: SideInputs | None = None) -> Self:
        """Return the network of the checkpoint *name*: a bundled one, or a folder.

        *inputs* are covariates or order books, if it was trained with such. Raises
        ``CheckpointMismatch`` for a damaged checkpoint, and ``ConfigInvalid`` if there is no
        checkpoint or no network in it.
        """
        folder = checkpoints.locate(name)
        if not folder.is_dir():
            names = ", ".join(checkpoints.bundled())
            raise ConfigInvalid(
                f"There is no checkpoint {name!r}; name a folder, or a bundled one: {names}."
            )
        checkpoint = checkpoints.load(folder)
        card, tensors = checkpoint.card, checkpoint.tensors
        while (kind := known_kind(card)) is not None and kind.members:
            part = kind.members[0]
            card, tensors = part_of(card, part), tensors_of(tensors, part)
        if kind is not None and kind.rows is not None:
            raise ConfigInvalid(
                f"{folder} is a {kind.name}, which has no network; name a network's checkpoint, or "
                "an ensemble's."
            )
        return cls(
            folder,
            checkpoint.id,
            restore(card, tensors),
            _schema(card, inputs),
            INTERVALS.get(str(checkpoint.card["market"].get("interval")), 0),
            card.get("gradients", {}),
            checkpoint.card["features"].get("asset"),
        )

    @property
    def rows(self) -> int:
        """The number of rows that a forecast depends on."""
        return self.network.config.receptive_field

    @property
    def _needed_bars(self) -> str:
        return (
            f"{self.rows + self.schema.lookback - 1:,} bars of {interval_text(self.interval_ms)} "
            "without a gap, which a forecast of this model needs"
        )

    def windows(self, data: Sequence[str] = (), columns: Sequence[str] = ()) -> list[Window]:
        """Return up to WINDOWS windows: rows [1, row, feature] and positions [row], oldest first.

        *data* are candle files, by default the bundled ones. *columns* are the choices of
        ``read_candles``. Raises ``DataInvalid`` if there are too few bars without a gap.
        """
        long_enough = [
            segment
            for segment in self._segments(self._candles(data, columns))
            if len(segment) - segment.first >= self.rows
        ]
        if not long_enough:
            source = ", ".join(data) or "the bundled candles"
            raise DataInvalid(
                f"{source} hold no {self._needed_bars}; name longer files with --data."
            )
        longest = max(long_enough, key=len)
        first, last = longest.first + self.rows, len(longest)
        ends = sorted({first + (last - first) * place // (WINDOWS - 1) for place in range(WINDOWS)})
        return [_window(longest, end - self.rows, end) for end in ends]

    def _segments(self, candles: Sequence[Candles]) -> list[Segment]:
        """Return *candles* with features; raise ``ConfigInvalid`` if side inputs are missing."""
        joined = self.schema.covariates
        schema = features.schema(self.schema.schema_id)
        plain = [segment for series in candles for segment in segments_of(series, schema)]
        if joined is None:
            return plain
        if isinstance(joined, OtherColumns):  # the candles include the other symbol's bars
            others = OtherInputs(joined.source.symbol).of_bars(plain, schema.names)
            return joined_to(plain, others.joined(0))
        if joined.source == NO_FILE:
            columns = ", ".join(joined.scale.columns)
            files = f"the covariates {columns}; give a file of them by --covariates"
            if joined.scale.prefix == book_features.PREFIX:
                files = "order books; give files of them by --depth"
            raise ConfigInvalid(
                f"The network was trained with {files}, and candles of the same time by --data."
            )
        return joined_to(plain, joined)

    def _candles(self, data: Sequence[FileOrFrame], columns: Sequence[str] = ()) -> list[Candles]:
        """Return the candles of *data* at the network's interval; by default bundled ones."""
        series = []
        for path in data or map(str, (DEMO_CANDLES, *MONTH_CANDLES)):
            candles = read_candles(path, category=self.asset, columns=columns, unnamed="BARS")
            interval_ms = candles.interval_ms
            if self.interval_ms and self.interval_ms != interval_ms:
                if self.interval_ms % interval_ms:
                    continue
                candles = candles.resampled(self.interval_ms)
            series.append(candles)
        return series

    def attention(self, bars: FileOrFrame, *, at: str | int | None = None) -> AttentionMaps:
        """Return the attention of each head of each layer at the newest of *bars*.

        *bars* are a candle file, or a frame of any library. *at*, ISO text or UTC milliseconds,
        chooses the newest bar that opened by then. Raises ``ConfigInvalid`` for a network without
        attention, and ``DataInvalid`` if there are too few bars before that bar.
        """
        opened_ms, layers = self._newest(bars, at)
        return AttentionMaps(opened_ms, tuple(of.rows.float().cpu().numpy() for of in layers))

    def attention_map(self, bars: FileOrFrame, *, at: str | int | None = None) -> tuple[Ids, Rows]:
        """Return the open times [bar] of the newest window and its rollout map [query, bar].

        A query is a position of the top layer: a bar, or where a network joins bars, a group. Each
        row is the exact rollout from there and sums to 1; the last is that of a decision, and
        earlier queries see the bars of this window alone. n queries and m bars take 4 n m bytes,
        and blocks of 256 queries that much for each 256. *bars*, *at* and errors are those of
        ``attention``; raises ``ConfigInvalid`` beyond ``MAP_BARS_MAX`` bars.
        """
        if self.rows > MAP_BARS_MAX:
            raise ConfigInvalid(
                f"A map covers at most {MAP_BARS_MAX:,} bars, and a forecast of this model needs "
                f"{self.rows:,}; ask attention for the last row."
            )
        opened_ms, layers = self._newest(bars, at)
        count = len(layers[-1].age)
        weights = np.empty((count, self.rows), dtype=np.float32)
        for first in range(0, count, MAP_QUERIES):
            rows = layers[0].rows.new_zeros(min(MAP_QUERIES, count - first), count)
            rows.diagonal(first).fill_(1.0)
            for layer in reversed(layers):
                rows = layer.carry(rows)
            weights[first : first + MAP_QUERIES] = (
                (rows / rows.sum(dim=1, keepdim=True)).cpu().numpy()
            )
        return opened_ms, weights

    def _newest(
        self, bars: FileOrFrame, at: str | int | None
    ) -> tuple[Ids, list[LayerAttribution]]:
        """Return the open times [bar] of the newest window of *bars* by *at*, and its layers."""
        if not self.network.has_attention:
            raise ConfigInvalid(
                f"The network of {self.folder} has no attention; name a checkpoint of a network "
                "that attends."
            )
        until_ms = None if at is None else instant(str(at))
        segments = [
            (segment, len(segment) if until_ms is None else int(end))
            for segment in self._segments(self._candles([bars]))
            for end in (np.searchsorted(segment.open_time_ms, until_ms or 0, "right"),)
        ]
        long_enough = [(each, end) for each, end in segments if end - each.first >= self.rows]
        if not long_enough:
            raise DataInvalid(f"The bars hold no {self._needed_bars}; give more of them.")
        segment, end = max(long_enough, key=lambda pair: int(pair[0].open_time_ms[pair[1] - 1]))
        rows, positions = _window(segment, end - self.rows, end)
        with torch.inference_mode():
            layers = self.network.eval().attribution_by_layer(rows, positions)
        return segment.open_time_ms[end - self.rows : end].copy(), layers

    def examined(self, data: Sequence[str] = (), columns: Sequence[str] = ()) -> NetworkCheck:
        """Return the check of the network over real rows; raises like ``windows``."""
        return check_network(self.network, self.windows(data, columns))

    def exported(self, to: str, path: Path, *, bars: int | None = None) -> dict[str, Any]:
        """Write the network to *path* for another runtime; return a description of the file.

        Windows have *bars* rows, by default as many as a forecast needs. Raises
        ``AttentionInvalid`` if the exported network would answer differently, and ``ConfigInvalid``
        for a file that exists or cannot be written, an invalid length, or an unknown runtime.
        """
        if to not in RUNTIMES:
            raise ConfigInvalid(f"--to is {to!r}; choose one of {', '.join(RUNTIMES)}.")
        if path.suffix != RUNTIMES[to]:
            raise ConfigInvalid(f"--out is {path}; name a file that ends in {RUNTIMES[to]}.")
        length = self.rows if bars is None else bars
        if length != self.rows and not self.network.takes_any_length:
            raise ConfigInvalid(
                f"This network takes windows of {self.rows:,} bars; leave --bars out."
            )
        rows = torch.randn(
            1, length, len(self.schema.names), generator=torch.Generator().manual_seed(0)
        )
        positions = torch.arange(length) + 1_000 * length
        part = _begun(path)
        write = export_onnx if to == "onnx" else export_torch
        try:
            card = (self.folder / checkpoints.CARD_NAME).read_text(encoding="utf-8")
            worst = write(self.network, (rows, positions), part, card=card)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return {
            "model_id": self.model_id,
            "to": to,
            "file": str(path),
            "bytes": path.stat().st_size,
            "bars": length,
            "bars_of_an_answer": self.rows,
            "features": self.schema.schema_id,
            "columns": len(self.schema.names),
            "horizons": list(self.network.config.horizons),
            "largest_difference": worst,
        }


def _schema(card: Mapping[str, Any], inputs: SideInputs | None) -> FeatureSchema:
    """Return the feature schema of *card*, with those of side *inputs*."""
    if inputs is None and (symbol := other_of(card)):
        no_rows = np.empty((0, 0), np.float32)
        return known_schema(card, KnownOtherBars(symbol, (), np.empty(0, np.int64), no_rows))
    takes_files = takes_vectors(card) or book_features.reading_of(card) is not None
    if inputs is None:
        return known_schema(card, NO_FILE if takes_files else None)
    if not takes_files:
        raise ConfigInvalid(
            "The network was trained on bars alone; leave --covariates and --depth out."
        )
    return known_schema(card, source_for(card, inputs))


def _begun(path: Path) -> Path:
    """Return an empty temporary file beside *path*; raise ``ConfigInvalid`` if that fails."""
    part = path.with_name(f".part-{path.name}")
    try:
        if path.exists():
            raise ConfigInvalid(f"{path} is there already; name another file, or remove it.")
        if not path.parent.is_dir():
            raise ConfigInvalid(f"There is no folder {path.parent}; make it, or name another.")
        part.touch()
    except OSError as error:
        raise ConfigInvalid(
            f"{path} cannot be written ({error.strerror}); name another file."
        ) from None
    return part


def _window(segment: Segment, start: int, end: int) -> Window:
    """Return the rows from *start* to *end* of *segment*, with their absolute numbers."""
    rows = torch.from_numpy(segment.values[start:end].copy()).nan_to_num(0.0, 0.0, 0.0)
    positions = torch.from_numpy(segment.open_time_ms[start:end] // segment.interval_ms)
    return rows[None], positions


def open_checkpoint(
    name: str,
    covariates: Any = None,  # noqa: ANN401 - a path or a frame
    depth: Sequence[str | Path] = (),
) -> StoredNetwork:
    """Return the network of the checkpoint *name*, a bundled one or a folder.

    *covariates* is a file or a frame of those that it was trained with. *depth* are files of order
    books, for a network that reads them. Raises like ``StoredNetwork.open``.
    """
    return StoredNetwork.open(name, SideFiles(covariates, [*map(path_of, depth)]).read())
