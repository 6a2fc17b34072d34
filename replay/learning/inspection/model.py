"""The model that is inspected: what it says of untouched bars as they are, and when changed.

Of an ensemble it is the network. Rows are the features of candles that the caller names,
else of the bundled ones at the network's interval.

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
from tracepaper.replay.archive.read import candles_of_frame, is_frame, read_candles
from tracepaper.replay.learning.dataset import Dataset, joined_to
from tracepaper.replay.learning.estimators.tabular import row_fields
from tracepaper.replay.learning.fitted import FittedModel
from tracepaper.replay.learning.samples import Fields, Samples
from tracepaper.replay.learning.side_inputs import OtherInputs, SideFiles, SideInputs, source_for
from tracepaper.replay.learning.splits import Part, Segment, segments_of
from tracepaper.replay.learning.windows import first_position, judged_rows, no_context, predict
from tracepaper.replay.samples import DEMO_CANDLES, MONTH_CANDLES
from tracepaper.storage import checkpoints
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
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.networks.checks import (
    NetworkCheck,
    check_network,
    export_onnx,
    export_torch,
)
from tracepaper.strategies.other_symbol import KnownOtherBars, OtherColumns, other_of
from tracepaper.strategies.units import DAY_MS, INTERVALS, interval_text

TARGETS: Final = ("log variance", "mean")
"""What of a forecast is looked at; the mean is in units of σ √h."""
_ROWS_AT_ONCE: Final = 16_384  # of all windows of one pass; bounds memory

Ids = NDArray[np.int64]
Rows = NDArray[np.float32]


class DecidedBar(NamedTuple):
    """One bar that is decided, by its row in a segment."""

    samples: Samples
    row: int

    @property
    def day(self) -> int:
        """The number of its day."""
        return int(self.samples.segment.open_time_ms[self.row]) // DAY_MS

    def rows(self, count: int) -> Rows:
        """Return a copy of the last *count* rows of features up to it: [count, feature]."""
        return self.samples.segment.values[self.row - count + 1 : self.row + 1].copy()

    def positions(self, count: int) -> Tensor:
        """Return the absolute numbers of these bars."""
        first = first_position(self.samples.segment, self.row) - count + 1
        return torch.arange(first, first + count)


class Mix(NamedTuple):
    """How an ensemble mixes its members, [horizon] each: see ``EnsembleForecaster``."""

    shares: Array
    spread: Array

    def log_variance(self, network: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
        """Return the ensemble's of both members' log variances [.., horizon]."""
        return self.shares * network + (1.0 - self.shares) * rows


@dataclass(frozen=True)
class Subject:
    """A network, or a model of one row of features, or both, and what it is examined on."""

    material: Dataset
    horizon: int
    """Bars ahead, that of the gates."""
    network: Network | None = None
    trained: TrainedRows | None = None
    mix: Mix | None = None
    """Of an ensemble, which has both."""

    @classmethod
    def of(cls, model: FittedModel, material: Dataset) -> Self:
        """Return that of *model*.

        Raises ``ConfigInvalid`` where the kind of model shows nothing to examine.
        """
        if model.network is None and model.rows is None:
            raise ConfigInvalid(
                "The model shows no network and no arrays of its own to examine; leave that out."
            )
        network = None if model.network is None else model.network.eval()
        mix: Any = model.mix  # Pyright follows this module by two names
        return cls(material, model.horizon, network, model.rows, mix)

    @property
    def column(self) -> int:
        """The place of ``horizon`` among the model's."""
        return self.material.horizons.index(self.horizon)

    @property
    def of_network(self) -> str:
        """What a title says where an ensemble's network alone is examined."""
        return "" if self.mix is None else " (the ensemble's network)"

    def need_network(self, option: str) -> Network:
        """Return the network; raise ``ConfigInvalid`` where the model sees one row alone."""
        if self.network is None:
            raise ConfigInvalid(
                f"{option} changes the bars that a model sees, and this one sees the features of "
                f"one bar alone; leave {option} out."
            )
        return self.network

    def predict(self, segment: Segment, rows: Ids) -> Fields:
        """Return its fields at *rows* of *segment*."""
        if self.trained is None:
            assert self.network is not None
            return predict(self.network, segment, rows)
        of_rows = row_fields(self.trained.model, self.own_rows(segment.values[rows]))
        if self.network is None:
            spread = np.array(self.trained.spread, dtype=np.float32)
            return {**of_rows, "scale": of_rows["scale"] * spread}
        assert self.mix is not None
        fields = predict(self.network, segment, rows)
        mixed = self.mix.log_variance(np.log(fields["variance"]), np.log(of_rows["variance"]))
        return {
            **fields,
            "variance": np.exp(mixed).astype(np.float32),
            "scale": (np.exp(0.5 * mixed) * self.mix.spread).astype(np.float32),
            "dof": of_rows["dof"],
        }

    def own_rows(self, rows: Rows) -> Rows:
        """Return the columns of *rows* [.., feature] that the row model sees: the first."""
        assert self.trained is not None
        return rows[..., : len(self.trained.schema.names)]

    def labelled(self, part: Part, at_most: int | None = None) -> list[tuple[Samples, Ids]]:
        """Return the labelled rows of *part* with a whole context, by segment.

        Evenly fewer where there are more than *at_most*, or a network takes a pass for each.
        """
        try:
            every = self.material.samples(part)
        except DataInvalid:
            raise DataInvalid(
                f"The candles hold no labelled bar of the card's {part.value} part; give --data of"
                " that time too, or leave out what is examined on it."
            ) from None
        if labelled := judged_rows(self.network, every, at_most):
            return labelled
        raise no_context(part, 1 if self.network is None else self.network.config.receptive_field)

    def decisions(self, count: int) -> list[DecidedBar]:
        """Return *count* decisions of the test part, evenly spread; all where there are fewer."""
        every = [(s, row) for s, rows in self.labelled(Part.TEST) for row in rows.tolist()]
        chosen = np.unique(np.linspace(0, len(every) - 1, count).round().astype(np.int64))
        return [DecidedBar(*every[at]) for at in chosen.tolist()]

    @cached_property
    def neutral(self) -> Rows:
        """The neutral row [feature]: the mean of each feature over the training part.

        The ridge that stands beside a checkpoint is centred there, so that any candles do.
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
    """What a network says of the last bar of each window: [window, horizon]."""

    mean: NDArray[np.float32]
    log_variance: NDArray[np.float32]

    def targets(self, column: int) -> Array:
        """Return ``TARGETS`` at one horizon: [target, window]."""
        both = (self.log_variance[:, column], self.mean[:, column])
        return np.stack(both).astype(np.float64)


def ask(network: Network, windows: Rows, positions: Tensor) -> NetworkForecast:
    """Ask *network* about *windows* [window, bar, feature], all at int64 *positions* [bar].

    Its features are the first of those.
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
    """Return [window, bar, feature] → the *target* [window] at one horizon, differentiably."""
    place = positions.to(network.device)

    def answer(windows: Tensor) -> Tensor:
        inputs = windows[..., : network.config.features]
        outputs = network(inputs.to(network.device), place)
        chosen: Tensor = outputs.log_variance if target == TARGETS[0] else outputs.mean
        return chosen[:, -1, column]

    return answer


def attended(network: Network, window: Rows, positions: Tensor) -> Array:
    """Return where *network* looks in one *window* [bar, feature]: the rollout's weights [bar]."""
    x = torch.from_numpy(window[None, :, : network.config.features])
    with torch.inference_mode():
        rollout = network.explain(x.to(network.device), positions.to(network.device)).rollout
    return rollout.weights[0, 0].double().cpu().numpy()


def days_of(decisions: Sequence[DecidedBar]) -> Ids:
    """Return the day of each decision."""
    return np.array([decision.day for decision in decisions], dtype=np.int64)


WINDOWS: Final = 4
"""Decisions whose heads are looked at, spread over the rows."""
RUNTIMES: Final = {"onnx": ".onnx", "torch": ".pt2"}
"""The runtimes that a network is exported for, with what the names of their files end in."""


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of a network at one bar, layer by layer; bars are oldest first."""

    open_time_ms: Ids  # [bar] of the network's rows; the last is the bar that it answered
    layers: tuple[Rows, ...]
    """[head, bar] of each layer, the lowest first: a head's weights sum to 1."""


NO_FILE: Final = FixedCovariates("", {})
"""Vectors of which the names alone are known: no rows can be made of them."""

Window = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StoredNetwork:
    """A stored network; ``rows`` is how many rows a forecast depends on."""

    folder: Path
    model_id: str
    network: Network
    schema: FeatureSchema
    interval_ms: int
    gradients: Mapping[str, Any]
    """``[gradients]`` of its card: the flow while it was fitted; empty of older checkpoints."""

    @classmethod
    def open(cls, name: str, inputs: SideInputs | None = None) -> Self:
        """Return that of the checkpoint *name*: a bundled one, or a folder.

        *inputs* are covariates or order books of which rows are made, as those that it was trained
        with were.

        Raises ``CheckpointMismatch`` for a checkpoint that is not whole, and ``ConfigInvalid`` for
        one without a network and for none.
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
        )

    @property
    def rows(self) -> int:
        """How many rows a forecast depends on."""
        return self.network.config.receptive_field

    @property
    def _one_answer(self) -> str:
        return (
            f"{self.rows + self.schema.lookback - 1:,} bars of {interval_text(self.interval_ms)} "
            "without a hole, which one answer of this model depends on"
        )

    def windows(self, data: Sequence[str] = (), columns: Sequence[str] = ()) -> list[Window]:
        """Return rows [1, rows, features] at positions [rows], oldest first, of up to WINDOWS bars.

        *data* are candle files, by default the bundled ones, and *columns* choices as of
        ``read_candles``. Raises ``DataInvalid`` where they hold
        too few bars without a hole.
        """
        whole = [
            segment
            for segment in self._segments(self._candles(data, columns))
            if len(segment) - segment.first >= self.rows
        ]
        if not whole:
            given = ", ".join(data) or "the bundled candles"
            raise DataInvalid(f"{given} hold no {self._one_answer}; name longer files with --data.")
        longest = max(whole, key=len)
        first, last = longest.first + self.rows, len(longest)
        ends = sorted({first + (last - first) * place // (WINDOWS - 1) for place in range(WINDOWS)})
        return [_window(longest, end - self.rows, end) for end in ends]

    def _segments(self, candles: Sequence[Candles]) -> list[Segment]:
        """Return *candles* with features; raise ``ConfigInvalid`` where vectors are missing."""
        joined = self.schema.covariates
        schema = features.schema(self.schema.schema_id)
        plain = [segment for series in candles for segment in segments_of(series, schema)]
        if joined is None:
            return plain
        if isinstance(joined, OtherColumns):  # whose bars are among the candles
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

    def _candles(self, data: Sequence[str | Candles], columns: Sequence[str] = ()) -> list[Candles]:
        """Return the candles of *data*, or the bundled ones that have this interval or a finer."""
        if columns and not data:
            raise ConfigInvalid("The bundled candles need no --columns; leave it out.")
        series = []
        for path in data or map(str, (DEMO_CANDLES, *MONTH_CANDLES)):
            candles = path if isinstance(path, Candles) else read_candles(path, columns=columns)
            interval_ms = candles.interval_ms
            if self.interval_ms and self.interval_ms != interval_ms:
                if self.interval_ms % interval_ms:
                    continue
                candles = candles.resampled(self.interval_ms)
            series.append(candles)
        return series

    def attention(self, bars: Any, *, at: str | int | None = None) -> AttentionMaps:  # noqa: ANN401
        """Return the attention of each head of each layer at the newest of *bars*.

        *bars* are a candle file, or a frame of any library. With *at*, ISO text or UTC
        milliseconds, it is the newest bar that opened until then. Raises ``ConfigInvalid`` for a
        network without attention, and ``DataInvalid`` if there are too few bars before it.
        """
        if not self.network.has_attention:
            raise ConfigInvalid(
                f"The network of {self.folder} has no attention; name a checkpoint of a network "
                "that attends."
            )
        until_ms = None if at is None else instant(str(at))
        given = candles_of_frame(bars, symbol="BARS") if is_frame(bars) else bars
        segments = [
            (segment, len(segment) if until_ms is None else int(end))
            for segment in self._segments(self._candles([given]))
            for end in (np.searchsorted(segment.open_time_ms, until_ms or 0, "right"),)
        ]
        whole = [(series, end) for series, end in segments if end - series.first >= self.rows]
        if not whole:
            raise DataInvalid(f"The bars hold no {self._one_answer}; give more of them.")
        segment, end = max(whole, key=lambda of: int(of[0].open_time_ms[of[1] - 1]))
        rows, positions = _window(segment, end - self.rows, end)
        with torch.inference_mode():
            layers = self.network.eval().attribution_by_layer(rows, positions)
        return AttentionMaps(
            segment.open_time_ms[end - self.rows : end].copy(),
            tuple(layer.rows.float().cpu().numpy() for layer in layers),
        )

    def examined(self, data: Sequence[str] = (), columns: Sequence[str] = ()) -> NetworkCheck:
        """Return the condition of the network over real rows; raise as ``windows``."""
        return check_network(self.network, self.windows(data, columns))

    def exported(self, to: str, path: Path, *, bars: int | None = None) -> dict[str, Any]:
        """Write the network to *path* for another runtime; return what was written, as a document.

        Windows have *bars* rows, by default as many as an answer depends on. Raises
        ``AttentionInvalid`` where the exported network would answer otherwise, ``ConfigInvalid``
        for a file that exists or cannot be written, a length that the network cannot take, or an
        unknown runtime.
        """
        if to not in RUNTIMES:
            raise ConfigInvalid(f"--to is {to!r}; choose one of {', '.join(RUNTIMES)}.")
        if path.suffix != RUNTIMES[to]:
            raise ConfigInvalid(f"--out is {path}; name a file that ends in {RUNTIMES[to]}.")
        length = self.rows if bars is None else bars
        if length < 1 or (length != self.rows and not self.network.takes_any_length):
            raise ConfigInvalid(
                f"This network takes windows of {self.rows:,} bars; leave --bars out."
                if length > 0
                else "--bars must be at least 1."
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
    """Return the features of *card*, with those of what is given as *inputs* beside candles."""
    if inputs is None and (symbol := other_of(card)):
        nothing = np.empty((0, 0), np.float32)
        return known_schema(card, KnownOtherBars(symbol, (), np.empty(0, np.int64), nothing))
    takes_files = takes_vectors(card) or book_features.reading_of(card) is not None
    if inputs is None:
        return known_schema(card, NO_FILE if takes_files else None)
    if not takes_files:
        raise ConfigInvalid(
            "The network was trained on bars alone; leave --covariates and --depth out."
        )
    return known_schema(card, source_for(card, inputs))


def _begun(path: Path) -> Path:
    """Return an empty file beside *path*; raise ``ConfigInvalid`` where nothing can be written."""
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
    name: str, covariates: str | Path | None = None, depth: Sequence[str | Path] = ()
) -> StoredNetwork:
    """Return the network of the checkpoint *name*, a bundled one or a folder.

    *covariates* is a file of the covariates that it was trained with, *depth* are files of order
    books for a network that reads them. Raises like ``StoredNetwork.open``.
    """
    files = SideFiles(None if covariates is None else Path(covariates), [*map(Path, depth)])
    return StoredNetwork.open(name, files.read())
