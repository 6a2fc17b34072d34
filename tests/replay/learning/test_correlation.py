"""Correlations of several symbols: EWMA's and the realised ones."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import learning
import numpy as np
import pytest
from numpy.typing import NDArray

from tracepaper.replay.archive import Candles
from tracepaper.replay.learning.baselines import EWMA_DECAY
from tracepaper.replay.learning.dataset import Dataset, close_by_close
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts
from tracepaper.replay.learning.judge.heads import correlation_sentences, ewma_correlations
from tracepaper.replay.learning.judge.metrics import CORRELATION
from tracepaper.replay.learning.splits import Part
from tracepaper.strategies.features.rows import schema

DAYS = 4
BARS = DAYS * learning.DAY_BARS
SPLIT = learning.split(2.0, 2.4, 2.8)
HORIZONS = (2, 30)
Moves = NDArray[np.float64]


def candles(symbol: str, moves: Moves) -> Candles:
    """Return minutes of these log returns."""
    close = np.round(1e8 * np.exp(np.cumsum(moves))).astype(np.int64)
    before = np.concatenate([close[:1], close[:-1]])
    high, low = np.maximum(before, close), np.minimum(before, close)
    return replace(
        learning.learnable(len(moves), symbol=symbol), open=before, high=high, low=low, close=close
    )


def material(folder: Path, moves: dict[str, Moves], *, missing: int | None = None) -> Dataset:
    paths = []
    for symbol, move in moves.items():
        path = learning.write_csv(candles(symbol, move), folder)
        paths.append(str(path))
    if missing is not None:
        lines = gzip.decompress(Path(paths[-1]).read_bytes()).decode().splitlines()
        del lines[1 + missing]
        Path(paths[-1]).write_bytes(gzip.compress("\n".join(lines).encode()))
    return close_by_close(Dataset.read(paths, lambda _: SPLIT, HORIZONS), lambda _: SPLIT)


def together(
    correlation: NDArray[np.float64] | float, *, seed: int = 1, count: int = 2
) -> dict[str, Moves]:
    """Return moves of *count* symbols whose correlation is *correlation* at each bar."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=BARS)
    root = np.sqrt(np.broadcast_to(correlation, (BARS,)))
    noise = np.sqrt(1 - root**2)
    return {
        f"{'ABCD'[at] * 3}USDT": 1e-3 * (root * shared + noise * rng.normal(size=BARS))
        for at in range(count)
    }


def judged(dataset: Dataset) -> Forecasts:
    rows = ewma_correlations(dataset, Part.TEST)
    assert rows is not None
    return rows


def test_both_correlations_are_those_of_their_bars(tmp_path: Path) -> None:
    dataset = material(tmp_path, together(0.5))
    forecasts = judged(dataset)
    assert forecasts.horizons == (30,)  # that of 2 bars is left out
    assert list(forecasts.names.values()) == ["AAAUSDT BBBUSDT"]
    first, second = (np.diff(np.log(segment.close)) for segment in dataset.segments)
    labelled = np.logical_and.reduce(
        [SPLIT.labelled(segment, HORIZONS, Part.TEST)[:, 1] for segment in dataset.segments]
    )
    rows = np.flatnonzero(labelled)
    assert len(rows) == len(forecasts)
    for at in (0, 7, 400):
        bar = rows[at]
        a, b = first[bar : bar + 30], second[bar : bar + 30]  # the 30 returns after it
        expected = (a @ b) / np.sqrt((a @ a) * (b @ b))
        assert forecasts.labels[CORRELATION][at] == pytest.approx(expected, abs=1e-9)
        ages = np.arange(bar)[::-1]  # of the returns until it, the newest last
        weights = EWMA_DECAY**ages
        a, b = first[:bar], second[:bar]
        expected = (weights * a) @ b / np.sqrt(((weights * a) @ a) * ((weights * b) @ b))
        assert forecasts.value(CORRELATION, "EWMA")[at] == pytest.approx(expected, abs=1e-9)


def test_no_later_bar_moves_what_is_said(tmp_path: Path) -> None:
    moves = together(0.5)
    before = judged(material(tmp_path, moves))
    cut = BARS - 300
    for move, sign in zip(moves.values(), (1, -1), strict=True):
        move[cut:] = sign * np.abs(move[cut:]) * 3
    (tmp_path / "after").mkdir()
    after = judged(material(tmp_path / "after", moves))
    count = len(before) - (300 - 30)
    first, second = (of.value(CORRELATION, "EWMA") for of in (before, after))
    np.testing.assert_allclose(first[:count], second[:count], atol=1e-9)
    assert np.abs(first[count + 5 :] - second[count + 5 :]).max() > 0.1


def test_a_head_that_knows_is_said_to_be_better_than_ewma(tmp_path: Path) -> None:
    rows = judged(material(tmp_path, together(0.6)))
    rows = replace(rows, open_ms=np.arange(len(rows)) * (30 * 86_400_000 // len(rows)))  # a month
    constant = rows.with_fields(MODEL, **{CORRELATION: np.full(len(rows), 0.6)})
    (sentence,) = correlation_sentences(constant, horizon=30)
    assert "are better than EWMA's (1 pairs)" in sentence
    assert correlation_sentences(constant, horizon=5) == []


def test_bars_after_a_hole_of_one_symbol_are_left_out(tmp_path: Path) -> None:
    gap = BARS - 700
    complete = judged(material(tmp_path, together(0.5)))
    (tmp_path / "hole").mkdir()
    holed = judged(material(tmp_path / "hole", together(0.5), missing=gap))
    # Bars whose horizon crosses it, the bar itself, and those after it without their features.
    lost = len(complete) - len(holed)
    assert lost == 30 + 1 + schema("v2-1m").lookback - 1
