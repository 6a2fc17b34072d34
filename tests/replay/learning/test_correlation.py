"""Correlations of several symbols: EWMA, realised correlations, and the learnt blend."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import learning
import numpy as np
import pytest
from numpy.typing import NDArray

from tracepaper.replay.archive import Candles
from tracepaper.replay.learning.baselines import EWMA_DECAY
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.judge.forecasts import Forecasts
from tracepaper.replay.learning.judge.heads import (
    LEARNT,
    OTHERS,
    correlation_sentences,
    correlations_of,
    learn_correlations,
)
from tracepaper.replay.learning.judge.metrics import CORRELATION, PAIRS, MetricView
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
    return Dataset.read(paths, lambda _: SPLIT, HORIZONS)


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


def of_part(dataset: Dataset, learnt: Mapping[str, Mapping[str, Any]]) -> Forecasts:
    rows = correlations_of(dataset, Part.TEST, learnt)
    assert rows is not None
    return rows


def judged(dataset: Dataset) -> Forecasts:
    return of_part(dataset, learn_correlations(dataset))


def error(rows: Forecasts, name: str) -> float:
    return float(PAIRS[CORRELATION].terms(MetricView(rows, name)).mean())


def over_a_month(rows: Forecasts) -> Forecasts:
    """Return the rows spread over thirty days."""
    return replace(rows, open_ms=np.arange(len(rows)) * (30 * 86_400_000 // len(rows)))


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
    before = material(tmp_path, moves)
    cut = BARS - 300
    for move, sign in zip(moves.values(), (1, -1), strict=True):
        move[cut:] = sign * np.abs(move[cut:]) * 3
    (tmp_path / "after").mkdir()
    after = material(tmp_path / "after", moves)
    learnt = learn_correlations(before)
    assert learn_correlations(after) == learnt
    forecasts, other = (of_part(of, learnt) for of in (before, after))
    count = len(forecasts) - (300 - 30)
    for name in forecasts.values:
        first, second = (of.value(CORRELATION, name) for of in (forecasts, other))
        np.testing.assert_allclose(first[:count], second[:count], atol=1e-9)
    first, second = (of.labels[CORRELATION][: count - 30] for of in (forecasts, other))
    np.testing.assert_allclose(first, second, atol=1e-9)
    first, second = (of.value(CORRELATION, "EWMA")[count + 5 :] for of in (forecasts, other))
    assert np.abs(first - second).max() > 0.1


def test_ewma_is_not_believed_where_the_correlation_stays(tmp_path: Path) -> None:
    dataset = material(tmp_path, together(0.6))
    learnt = learn_correlations(dataset)["30"]
    assert learnt["ewma_weight"] < 0.1
    assert learnt["mean"] == pytest.approx([0.6], abs=0.03)
    forecasts = over_a_month(judged(dataset))
    assert error(forecasts, LEARNT) < 0.9 * error(forecasts, "EWMA")
    assert "are better than EWMA's (1 pairs)" in correlation_sentences(forecasts, horizon=30)[0]
    assert correlation_sentences(forecasts, horizon=5) == []


def test_ewma_is_believed_where_the_correlation_changes(tmp_path: Path) -> None:
    changing = np.where(np.arange(BARS) // 400 % 2, 0.95, 0.05)
    dataset = material(tmp_path, together(changing))
    learnt = learn_correlations(dataset)["30"]
    assert learnt["ewma_weight"] > 0.6
    forecasts = judged(dataset)
    assert error(forecasts, LEARNT) < 0.6 * error(forecasts, "mean of the training part")


def test_what_is_learnt_of_several_is_a_correlation_matrix(tmp_path: Path) -> None:
    dataset = material(tmp_path, together(np.where(np.arange(BARS) // 300 % 2, 0.99, 0.3), count=4))
    learnt = learn_correlations(dataset)["30"]
    assert len(learnt["pairs"]) == 6
    assert 0 <= learnt["mean_weight"] + learnt["ewma_weight"] <= 1.0 + 1e-7
    forecasts = judged(dataset)
    assert set(forecasts.values) == {LEARNT, *OTHERS}
    learnt_rows = forecasts.value(CORRELATION, LEARNT).reshape(6, -1).T  # pair after pair
    for values in learnt_rows[::40]:
        matrix = np.eye(4)
        matrix[np.triu_indices(4, 1)] = values
        matrix = matrix + np.triu(matrix, 1).T
        assert np.linalg.eigvalsh(matrix).min() > -1e-9


def test_bars_after_a_hole_of_one_symbol_are_left_out(tmp_path: Path) -> None:
    gap = BARS - 700
    complete = judged(material(tmp_path, together(0.5)))
    (tmp_path / "hole").mkdir()
    holed = judged(material(tmp_path / "hole", together(0.5), missing=gap))
    # Bars whose horizon crosses it, the bar itself, and those after it without their features.
    lost = len(complete) - len(holed)
    assert lost == 30 + 1 + schema("v2-1m").lookback - 1


def test_one_symbol_has_no_correlation(tmp_path: Path) -> None:
    (single,) = together(0.5, count=1).items()
    dataset = material(tmp_path, dict([single]))
    assert learn_correlations(dataset) == {}
    assert correlations_of(dataset, Part.TEST, {"30": {}}) is None


def test_pairs_of_a_card_that_the_candles_lack_are_left_out(tmp_path: Path) -> None:
    learnt = learn_correlations(material(tmp_path, together(0.5, count=3)))
    (tmp_path / "fewer").mkdir()
    fewer = material(tmp_path / "fewer", together(0.5, count=2))
    assert list(of_part(fewer, learnt).names.values()) == ["AAAUSDT BBBUSDT"]
