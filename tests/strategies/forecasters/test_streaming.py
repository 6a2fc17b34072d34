"""The streaming forecaster: warm, step and scan are one function of the last ``context`` bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import builders
import models
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tracepaper.strategies.features import rows as features
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.types.decisions import Forecast

NAME = "linear:BTCUSDT"
BARS = builders.bars(1_900, seed=5)
FIGURES = ("mean_return", "stdev_return", "p_down", "p_flat", "p_up", "volatility")
MEASURES = ("confidence", "recent_mass", "older_mass", "shift")


def table(answers: Sequence[Forecast | None]) -> NDArray[np.float64]:
    """Return every number of the answers, [bar, number]; all of them must be forecasts."""
    rows = []
    for answer in answers:
        assert answer is not None
        assert answer.explanation is not None
        told = answer.explanation
        rows.append(
            [x for name in FIGURES for x in getattr(answer, name)]
            + [getattr(told, name) for name in MEASURES]
            + np.frombuffer(told.entropy, "<f4").tolist()
            + np.frombuffer(told.buckets, "<f4").tolist()
        )
    return np.array(rows)


@pytest.fixture(scope="module")
def scanned() -> list[Forecast | None]:
    return models.forecaster().scan(BARS)


def test_a_live_step_attends_one_window_a_layer() -> None:
    made = models.forecaster()
    made.warm(NAME, BARS[:1_000])
    before = made.attended_pairs
    for bar in BARS[1_000:1_020]:
        made.step(bar)
    assert made.attended_pairs - before == 20 * 3 * 50


def test_the_attribution_equals_the_dense_rollout() -> None:
    made = models.forecaster()
    made.warm(NAME, BARS[:900])
    queries, keys, _ = zip(*_history(made), strict=True)
    row = torch.zeros(148, dtype=torch.float64)
    row[-1] = 1.0
    age = torch.arange(148)[:, None] - torch.arange(148)
    hidden = (age < 0) | (age >= 50)
    for query, key in zip(reversed(queries), reversed(keys), strict=True):
        scores = query[0].double() @ key[0].double().mT * query.shape[-1] ** -0.5
        shares = scores.masked_fill(hidden, -torch.inf).softmax(-1).mean(0)
        row = 0.5 * row + 0.5 * row @ shares
    np.testing.assert_allclose(made.explain(NAME).weights, row.numpy(), rtol=0, atol=1e-6)


def _history(made: StreamingForecaster) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    _, layers = made.history(NAME)
    return layers


def test_the_first_answer_of_a_stream_has_no_shift() -> None:
    """With a context of one bar and no bar before it there is nothing to compare."""
    made = models.forecaster(replace(models.SMALL, window=1))
    answers = made.scan(BARS[: made.context + 1])
    first, second = answers[-2:]
    assert first is not None
    assert first.explanation is not None
    assert first.explanation.shift is None
    assert second is not None
    assert second.explanation is not None
    assert second.explanation.shift == pytest.approx(0.0, abs=1e-3)


def test_a_row_that_is_not_finite_spoils_its_own_forecast_alone(
    monkeypatch: pytest.MonkeyPatch, scanned: list[Forecast | None]
) -> None:
    def broken(schema: features.FeatureSchema, columns: features.Columns) -> features.FeatureBlock:
        block = compute(schema, columns)
        block.values[1_200, 3] = np.inf
        return block

    compute = features.compute
    monkeypatch.setattr(features, "compute", broken)
    found = models.forecaster().scan(BARS)
    assert found[:1_200] == scanned[:1_200]
    spoiled = found[1_200]
    assert spoiled is not None
    assert np.isnan(spoiled.mean_return).all()
    assert np.isfinite(table(found[1_201:])).all()
