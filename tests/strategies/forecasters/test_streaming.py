"""The streaming forecaster: its own rows, and one bar of several instruments in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import builders
import models
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rounding import gamma

from tracepaper.strategies.features import rows as features
from tracepaper.strategies.features.rows import FeatureRows, FeatureStreams
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.time_buckets import weights_of
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar

torch.set_num_threads(1)
NAMES = ("linear:BTCUSDT", "spot:ETHUSDT", "linear:SOLUSDT", "spot:XRPUSDT")
BARS = {
    name: builders.bars(1_700, seed=seed, instrument_id=name) for seed, name in enumerate(NAMES)
}
LONG = builders.bars(1_900, seed=5)
AGES = dict(zip(NAMES, (1_300, 1_000, 610, 0), strict=True))
"""Bars known before the first step together: past a wrap, full, short of context, none."""
ODDS = ("p_down", "p_flat", "p_up")
MEASURES = (
    *("confidence_entropy", "rollout_entropy", "recent_mass", "event_focus"),
    *("older_mass", "shift"),
)
NEAR = gamma(3 * 2 * 16, torch.float32)
"""In each of three layers a state takes in two sums of 16 products, in another order in a batch."""


def numbers(answer: Forecast) -> NDArray[np.float64]:
    """Return every number of *answer* in its own scale: of a return that is its deviation."""
    explanation = answer.explanation
    assert explanation is not None
    deviation = np.array(answer.stdev_return)
    return np.concatenate(
        [
            np.array(answer.mean_return) / deviation,
            np.log(deviation),
            np.log(answer.volatility),
            [x for name in ODDS for x in getattr(answer, name)],
            [getattr(explanation, name) for name in MEASURES],
            np.frombuffer(explanation.entropy, "<f4"),
            weights_of(explanation.buckets),
        ]
    )


def assert_equal(forecasts: Sequence[Forecast | None], wanted: Sequence[Forecast | None]) -> None:
    """Hold answers against each other to ``NEAR`` of scale."""
    assert [x is None for x in forecasts] == [x is None for x in wanted]
    for forecast, other in zip(forecasts, wanted, strict=True):
        if forecast is not None and other is not None:
            np.testing.assert_allclose(numbers(forecast), numbers(other), rtol=NEAR, atol=NEAR)


def warmed(ages: dict[str, int], config: FlashConfig = models.SMALL) -> StreamingForecaster:
    model = models.forecaster(config)
    for name, age in ages.items():
        model.warm(name, BARS[name][:age])
    return model


# ---------------------------------------------------------------- one instrument


def test_a_live_step_attends_one_window_a_layer() -> None:
    forecaster = models.forecaster()
    forecaster.warm(NAMES[0], LONG[:1_000])
    before = forecaster.attended_pairs
    for bar in LONG[1_000:1_020]:
        forecaster.step(bar)
    assert forecaster.attended_pairs - before == 20 * 3 * 50


def test_the_attribution_equals_the_dense_rollout() -> None:
    forecaster = models.forecaster()
    forecaster.warm(NAMES[0], LONG[:900])
    _, layers = forecaster.history(NAMES[0])
    row = torch.zeros(148, dtype=torch.float64)
    row[-1] = 1.0
    age = torch.arange(148)[:, None] - torch.arange(148)
    hidden = (age < 0) | (age >= 50)
    for layer in reversed(layers):
        scores = layer.query[0].double() @ layer.key[0].double().mT * layer.factor
        shares = scores.masked_fill(hidden, -torch.inf).softmax(-1).mean(0)
        row = 0.5 * row + 0.5 * row @ shares
    np.testing.assert_allclose(forecaster.explain(NAMES[0]).weights, row.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [22, 23])  # a field of 64 bars, and of 67
def test_a_field_of_at_most_64_bars_is_stored_bar_by_bar(window: int) -> None:
    forecaster = models.forecaster(replace(models.SMALL, window=window))
    forecaster.warm(NAMES[0], LONG[:700])
    for bar in LONG[700:790]:
        forecast = forecaster.step(bar)
    scanned = models.forecaster(replace(models.SMALL, window=window), path="scan")
    scanned.warm(NAMES[0], LONG[:700])
    *_, last = scanned.scan(LONG[700:790])
    weights = np.array(forecaster.explain(NAMES[0]).weights)
    size = 1 if window == 22 else 64
    assert forecaster.bucket_bars == size
    positions = LONG[789].open_time_ms // 60_000 - np.arange(len(weights))[::-1]
    blocks = positions[-1] // size - positions // size
    for answer in (forecast, last):
        assert answer is not None
        assert answer.explanation is not None
        stored = weights_of(answer.explanation.buckets)
        np.testing.assert_allclose(
            stored, np.bincount(blocks, weights, minlength=len(stored)), rtol=0, atol=1e-6
        )
        assert answer.explanation.older_mass == pytest.approx(0.0, abs=1e-6)


def test_the_first_answer_of_a_stream_has_no_shift() -> None:
    """With a context of one bar and no bar before it there is nothing to compare."""
    forecaster = models.forecaster(replace(models.SMALL, window=1))
    answers = forecaster.scan(LONG[: forecaster.context + 1])
    first, second = answers[-2:]
    assert first is not None
    assert first.explanation is not None
    assert first.explanation.shift is None
    assert second is not None
    assert second.explanation is not None
    assert second.explanation.shift == pytest.approx(0.0, abs=1e-3)


def test_a_row_of_a_scan_that_is_not_finite_spoils_its_own_forecast_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(
        schema: features.FeatureSchema, columns: features.CandleArrays
    ) -> features.FeatureBlock:
        block = compute(schema, columns)
        block.values[1_200, 3] = np.inf
        return block

    compute = features.compute
    scanned = models.forecaster().scan(LONG)
    monkeypatch.setattr(features, "compute", broken)
    rescan = models.forecaster().scan(LONG)
    assert rescan[:1_200] == scanned[:1_200]
    spoiled = rescan[1_200]
    assert spoiled is not None
    assert np.isnan(spoiled.mean_return).all()
    assert all(
        forecast is not None and np.isfinite(numbers(forecast)).all() for forecast in rescan[1_201:]
    )


# ---------------------------------------------------------------- several in one pass


@pytest.mark.parametrize("encoding", ["rope", "alibi", "sinusoidal", "learned"])
def test_instruments_of_different_ages_are_stepped_as_if_alone(encoding: str) -> None:
    config = replace(models.SMALL, encoding=encoding, window=40, clock=("week",))
    alone, together = warmed(AGES, config), warmed(AGES, config)
    forecasts: list[Forecast | None] = []
    wanted: list[Forecast | None] = []
    for turn in range(80):
        bars = [BARS[name][AGES[name] + turn] for name in NAMES]
        forecasts += together.predict_many(bars)
        wanted += [alone.step(bar) for bar in bars]
    assert sum(x is not None for x in wanted) > 160
    assert any(x is None for x in wanted)
    assert_equal(forecasts, wanted)
    assert together.attended_pairs == alone.attended_pairs


@pytest.mark.slow
def test_rings_that_wrap_around_together_keep_their_windows() -> None:
    """A ring moves its rows to its front after 512 bars; here each does so."""
    ages = {name: 640 + 60 * seed for seed, name in enumerate(NAMES[:2])}
    config = replace(models.SMALL, layers=1, window=20)
    alone, together = warmed(ages, config), warmed(ages, config)
    for turn in range(600):
        bars = [BARS[name][age + turn] for name, age in ages.items()]
        assert_equal(together.predict_many(bars), [alone.step(bar) for bar in bars])


@pytest.mark.slow
@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True),
        min_size=30,
        max_size=30,
    ),
    st.sampled_from(["rope", "alibi"]),
)
def test_instruments_that_miss_bars_are_stepped_as_if_alone(
    turns: list[list[str]], encoding: str
) -> None:
    """Time goes on for all; who has no bar at a turn has a hole there."""
    ages = dict.fromkeys(NAMES, 700)
    config = replace(models.SMALL, encoding=encoding, layers=2, window=30)
    alone, together = warmed(ages, config), warmed(ages, config)
    for turn, present in enumerate(turns):
        bars = [BARS[name][700 + 30 * turn] for name in present]
        assert_equal(together.predict_many(bars), [alone.step(bar) for bar in bars])


def test_steps_scans_and_warms_of_one_go_between_steps_of_all() -> None:
    ages = dict.fromkeys(NAMES, 800)
    alone, together = warmed(ages), warmed(ages)
    first, second = NAMES[:2]

    def step_all(at: int) -> None:
        bars = [BARS[name][at] for name in NAMES]
        assert_equal(together.predict_many(bars), [alone.step(bar) for bar in bars])

    step_all(800)
    for forecaster in (alone, together):
        forecaster.step(BARS[first][801])
        forecaster.scan(BARS[second][801:870])
        forecaster.warm(NAMES[2], BARS[NAMES[2]][100:850])
    step_all(870)
    step_all(871)
    assert together.explain(second).weights == pytest.approx(
        alone.explain(second).weights, abs=1e-6
    )


def test_the_bits_of_a_group_depend_on_its_members_and_their_order_alone() -> None:
    """Not on which instruments are known beside them, nor on where these lie in memory."""
    group = (NAMES[2], NAMES[0])
    orders = (NAMES, group, NAMES[::-1], (NAMES[0], NAMES[1], NAMES[2]))
    groups = []
    for order in orders:
        forecaster = warmed(dict.fromkeys(order, 800))
        groups.append(
            [forecaster.predict_many([BARS[name][at] for name in group]) for at in range(800, 840)]
        )
    assert groups[1:] == groups[:1] * 3


def test_a_row_that_is_not_finite_spoils_its_own_forecast_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ages = dict.fromkeys(NAMES, 800)
    alone, together = warmed(ages), warmed(ages)
    step = FeatureStreams.step

    def broken(
        self: FeatureStreams, bars: Sequence[Bar], streams: Sequence[int] = (0,)
    ) -> FeatureRows:
        rows = step(self, bars, streams)
        rows.values[[bar is BARS[NAMES[0]][800] for bar in bars], 3] = np.inf
        return rows

    monkeypatch.setattr(FeatureStreams, "step", broken)
    for at in (800, 801):
        bars = [BARS[name][at] for name in NAMES]
        forecasts, wanted = together.predict_many(bars), [alone.step(bar) for bar in bars]
        assert_equal(forecasts[1:], wanted[1:])
        spoiled = forecasts[0]
        assert spoiled is not None
        assert np.isnan(spoiled.mean_return).all() == (at == 800)
        assert spoiled.p_up == pytest.approx(wanted[0].p_up if wanted[0] else (), abs=1e-6)
