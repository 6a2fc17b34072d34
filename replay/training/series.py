"""Candle files as segments without holes: closes, features and σ, ready to learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.importers import Candles, read_candles, slice_candles
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.features import Columns, FeatureSchema, compute
from tracepaper.strategies.features_rolling import Array


@dataclass(frozen=True)
class Source:
    """One candle file that was learnt from, as the card lists it."""

    name: str
    sha256: str
    symbol: str
    bars: int
    from_ms: int
    until_ms: int


@dataclass(frozen=True)
class Segment:
    """Consecutive bars of one symbol without a hole; arrays over [time].

    ``values`` is float32 [time, feature]; rows before ``first`` lack their lookback and are NaN.
    """

    candles: Candles
    close: Array
    values: NDArray[np.float32]
    sigma: Array
    first: int

    def __len__(self) -> int:
        """Return the number of bars."""
        return len(self.close)

    @property
    def interval_ms(self) -> int:
        """The length of a bar."""
        return self.candles.interval_ms

    @property
    def open_time_ms(self) -> NDArray[np.int64]:
        """When each bar opened."""
        return self.candles.open_time_ms

    @property
    def close_time_ms(self) -> NDArray[np.int64]:
        """The first millisecond after each bar."""
        return self.open_time_ms + self.interval_ms


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def columns_of(candles: Candles) -> Columns:
    """Return the candles as feature columns; units fall out of every feature."""
    return Columns(
        open_time_ms=candles.open_time_ms,
        open=candles.open.astype(np.float64),
        high=candles.high.astype(np.float64),
        low=candles.low.astype(np.float64),
        close=candles.close.astype(np.float64),
        volume=candles.volume.astype(np.float64),
        interval_ms=candles.interval_ms,
    )


def segments_of(candles: Candles, schema: FeatureSchema) -> list[Segment]:
    """Cut *candles* at every hole; parts too short for a single feature row are left out."""
    cuts = np.flatnonzero(np.diff(candles.open_time_ms) != candles.interval_ms) + 1
    bounds = [0, *cuts.tolist(), len(candles)]
    segments = []
    for start, stop in pairwise(bounds):
        if stop - start < schema.lookback:
            continue
        part = slice_candles(candles, slice(start, stop))
        columns = columns_of(part)
        block = compute(schema, columns)
        segments.append(Segment(part, columns.close, block.values, block.sigma, block.first))
    return segments


def load(paths: Sequence[str], schema: FeatureSchema) -> tuple[list[Source], list[Segment]]:
    """Read candle files (PATH or SYMBOL=PATH) of one interval.

    Raises ``DataInvalid`` where intervals differ, or no file is long enough for one feature row.
    """
    sources: list[Source] = []
    segments: list[Segment] = []
    interval_ms = 0
    for path in paths:
        candles = read_candles(path)
        interval_ms = interval_ms or candles.interval_ms
        if candles.interval_ms != interval_ms:
            raise DataInvalid(
                f"{candles.path} has bars of {candles.interval_ms // 60_000} minutes and the files"
                f" before it of {interval_ms // 60_000}; train on one interval at a time."
            )
        segments += segments_of(candles, schema)
        sources.append(
            Source(
                name=Path(candles.path).name,
                sha256=file_sha256(Path(candles.path)),
                symbol=candles.symbol,
                bars=len(candles),
                from_ms=int(candles.open_time_ms[0]),
                until_ms=int(candles.open_time_ms[-1]) + candles.interval_ms,
            )
        )
    if not segments:
        raise DataInvalid(
            f"No file holds {schema.lookback} bars without a hole; give --data longer candles."
        )
    return sources, segments
