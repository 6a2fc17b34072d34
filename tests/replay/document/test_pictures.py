"""A matrix as an image file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import tracepaper
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

FULL = np.array([0x06, 0x40, 0x4E]) / 255
"""The colour of the end of the scale."""


def full_cells(path: Path) -> tuple[float, float]:
    """Return the mean place of the pixels of full colour: shares of the height and the width."""
    pixels = imread(path)[..., :3]
    down, across = np.nonzero(np.abs(pixels - FULL).max(axis=-1) < 0.02)
    assert down.size > 100
    return float(down.mean()) / pixels.shape[0], float(across.mean()) / pixels.shape[1]


@pytest.mark.parametrize("side", [20, 1_601])
def test_the_first_row_is_on_top_and_time_runs_to_the_right(tmp_path: Path, side: int) -> None:
    matrix = np.zeros((side, side))
    matrix[: side // 10, -side // 5 :] = 0.25
    tracepaper.write_matrix(matrix, tmp_path / "a.png", range(0, side * 60_000, 60_000))
    down, across = full_cells(tmp_path / "a.png")
    assert down < 0.2
    assert across > 0.8


def test_a_few_large_cells_do_not_hide_the_others(tmp_path: Path) -> None:
    matrix = np.zeros((100, 100))
    matrix[50:] = 0.01
    matrix[0, :10] = 1.0
    tracepaper.write_matrix(matrix, tmp_path / "a.png")
    down, _ = full_cells(tmp_path / "a.png")
    assert down > 0.6


@pytest.mark.parametrize(
    ("matrix", "times_ms", "words"),
    [
        (np.ones(3), (), r"The matrix is \[3\], with 0 times; give finite numbers"),
        (np.full((2, 2), np.nan), (), r"The matrix is \[2, 2\]"),
        (np.ones((2, 3)), (0, 1), r"\[2, 3\], with 2 times"),
        (np.ones((0, 3)), (), r"\[0, 3\]"),
    ],
)
def test_anything_but_a_matrix_with_its_times_is_refused(
    tmp_path: Path, matrix: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    times_ms: tuple[int, ...], words: str,
) -> None:  # fmt: skip
    with pytest.raises(DataInvalid, match=words):
        tracepaper.write_matrix(matrix, tmp_path / "a.png", times_ms)
    with pytest.raises(ConfigInvalid, match="is not a picture"):
        tracepaper.write_matrix(matrix, tmp_path / "a.txt")
