"""Segments end at every hole, and a file's bytes name it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from learning import learnable, write_csv

from tracepaper.replay.archive import slice_candles
from tracepaper.replay.training.series import file_sha256, load, segments_of
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.features import schema

SCHEMA = schema("v1")


def test_a_hole_ends_a_segment_and_no_feature_looks_over_it() -> None:
    whole = learnable(2_000)
    rows = np.delete(np.arange(2_000), [900])
    first, second = segments_of(slice_candles(whole, rows), SCHEMA)
    assert (len(first), len(second)) == (900, 1_099)
    alone = segments_of(slice_candles(whole, slice(901, 2_000)), SCHEMA)[0]
    assert second.values.tobytes() == alone.values.tobytes()
    assert np.isnan(second.values[: SCHEMA.lookback - 1]).all()


def test_a_part_too_short_for_a_row_is_left_out() -> None:
    rows = np.delete(np.arange(1_200), [511])
    segments = segments_of(slice_candles(learnable(1_200), rows), SCHEMA)
    assert [len(segment) for segment in segments] == [688]


def test_a_source_is_named_by_its_bytes(tmp_path: Path) -> None:
    path = write_csv(learnable(700), tmp_path)
    sources, segments = load([f"ZZZUSDT={path}"], SCHEMA)
    assert sources[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == file_sha256(path)
    assert (sources[0].name, sources[0].symbol, sources[0].bars) == (path.name, "ZZZUSDT", 700)
    assert sources[0].until_ms - sources[0].from_ms == 700 * 60_000
    assert len(segments) == 1


def test_too_few_candles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="512 bars without a hole"):
        load([str(write_csv(learnable(400), tmp_path))], SCHEMA)
