"""The network of a checkpoint by itself: examined over real rows, or exported to another runtime.

An ensemble's is its half that is a network. Rows are the features of candles that the caller names,
else of the bundled ones at the network's interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor

from tracepaper.replay.archive.candles import Candles, resample
from tracepaper.replay.archive.read import read_candles
from tracepaper.replay.samples import DEMO_CANDLES, MONTH_CANDLES
from tracepaper.replay.training.material import joined_to
from tracepaper.replay.training.series import Segment, segments_of
from tracepaper.storage import checkpoints
from tracepaper.storage.covariates import read_vectors
from tracepaper.strategies.covariates import FixedCovariates
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features import rows as features
from tracepaper.strategies.features.rows import FeatureSchema
from tracepaper.strategies.forecasters.build import (
    HALVES,
    is_ensemble,
    known_schema,
    part_of,
    restore,
    takes_vectors,
    tensors_of,
    vector_scale,
)
from tracepaper.strategies.forecasters.tabular import row_kind
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.networks.checks import Condition, examine, export_onnx, export_torch
from tracepaper.strategies.units import INTERVALS, interval_text

WINDOWS: Final = 4
"""Decisions whose heads are looked at, spread over the rows."""
RUNTIMES: Final = {"onnx": ".onnx", "torch": ".pt2"}
"""The runtimes that a network is exported for, with what the names of their files end in."""

NO_FILE: Final = FixedCovariates("", {})
"""Vectors of which the names alone are known: no rows can be made of them."""

Window = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StoredNetwork:
    """A network as it was stored; ``rows`` is how many one answer depends on."""

    folder: Path
    model_id: str
    network: Network
    schema: FeatureSchema
    interval_ms: int

    @classmethod
    def open(cls, name: str, vectors: Path | None = None) -> Self:
        """Return that of the checkpoint *name*: a bundled one, or a folder.

        *vectors* is a file of those that it was trained with, which rows are made of.

        Raises ``CheckpointMismatch`` for a checkpoint that is not whole, and ``ConfigInvalid`` for
        one without a network and for none.
        """
        folder = checkpoints.locate(name)
        if not folder.is_dir():
            known = ", ".join(checkpoints.bundled())
            raise ConfigInvalid(
                f"There is no checkpoint {name!r}; name a folder, or a bundled one: {known}."
            )
        found = checkpoints.load(folder)
        card, tensors = found.card, found.tensors
        if is_ensemble(card):
            card, tensors = part_of(card, HALVES[0]), tensors_of(tensors, HALVES[0])
        if (kind := row_kind(card)) is not None:
            raise ConfigInvalid(
                f"{folder} is a {kind.name}, which has no network; name a network's checkpoint, or "
                "an ensemble's."
            )
        return cls(
            folder,
            found.id,
            restore(card, tensors),
            _schema(card, vectors),
            INTERVALS.get(str(found.card["market"].get("interval")), 0),
        )

    @property
    def rows(self) -> int:
        """How many rows one answer depends on."""
        return self.network.config.receptive_field

    def windows(self, data: Sequence[str] = ()) -> list[Window]:
        """Return rows [1, rows, features] at positions [rows], oldest first, of up to WINDOWS bars.

        *data* are candle files, by default the bundled ones. Raises ``DataInvalid`` where they hold
        too few bars without a hole.
        """
        whole = [
            segment
            for candles in self._candles(data)
            for segment in self._segments(candles)
            if len(segment) - segment.first >= self.rows
        ]
        if not whole:
            given = ", ".join(data) or "the bundled candles"
            raise DataInvalid(
                f"{given} hold no {self.rows + self.schema.lookback - 1:,} bars of "
                f"{interval_text(self.interval_ms)} without a hole, which one answer of this model "
                "depends on; name longer files with --data."
            )
        longest = max(whole, key=len)
        first, last = longest.first + self.rows, len(longest)
        ends = sorted({first + (last - first) * one // (WINDOWS - 1) for one in range(WINDOWS)})
        return [_window(longest, end - self.rows, end) for end in ends]

    def _segments(self, candles: Candles) -> list[Segment]:
        """Return *candles* with features; raise ``ConfigInvalid`` where vectors are missing."""
        joined = self.schema.covariates
        plain = segments_of(candles, features.schema(self.schema.schema_id))
        if joined is None:
            return plain
        if joined.source == NO_FILE:
            raise ConfigInvalid(
                f"The network was trained with the covariates {', '.join(joined.scale.columns)}; "
                "give a file of them by --covariates, and candles of the same time by --data."
            )
        return joined_to(plain, joined)

    def _candles(self, data: Sequence[str]) -> list[Candles]:
        """Return the candles of *data*, or the bundled ones that have this interval or a finer."""
        found = []
        for path in data or map(str, (DEMO_CANDLES, *MONTH_CANDLES)):
            candles = read_candles(path)
            own = candles.interval_ms
            if self.interval_ms and self.interval_ms != own:
                if self.interval_ms % own:
                    continue
                candles = resample(candles, self.interval_ms)
            found.append(candles)
        return found

    def examined(self, data: Sequence[str] = ()) -> Condition:
        """Return the condition of the network over real rows; raise as ``windows``."""
        return examine(self.network, self.windows(data))

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
            worst = write(self.network, (rows, positions), part, card=self._card_text())
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

    def _card_text(self) -> str:
        return (self.folder / checkpoints.CARD_NAME).read_text(encoding="utf-8")


def _schema(card: Mapping[str, Any], vectors: Path | None) -> FeatureSchema:
    """Return the features of *card*, with those of the file *vectors* where it takes some."""
    if vectors is None:
        return known_schema(card, NO_FILE if takes_vectors(card) else None)
    if not takes_vectors(card):
        raise ConfigInvalid("The network was trained without covariates; leave --covariates out.")
    return known_schema(card, read_vectors(vectors).standing(vector_scale(card).columns))


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
