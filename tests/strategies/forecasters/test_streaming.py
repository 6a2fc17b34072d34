"""The streaming forecaster: warm, step and scan are one function of the last ``context`` bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import builders
import models
import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.features import rows as features
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar

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


def assert_close(found: Sequence[Forecast | None], wanted: Sequence[Forecast | None]) -> None:
    one, other = table(found), table(wanted)
    scale = np.maximum(np.abs(other).max(0), 1e-6)
    assert (np.abs(one - other) / scale).max() <= 1e-4


@pytest.fixture(scope="module")
def scanned() -> list[Forecast | None]:
    return models.forecaster().scan(BARS)


def test_it_is_a_forecaster() -> None:
    made: Forecaster = models.forecaster()
    assert made.causal
    assert (made.device, made.dtype, made.mode, made.threads) == ("cpu", "float32", "step", 1)
    assert made.horizons == (5, 30, 240)
    assert made.context == 3 * 49 + 1 + features.schema("v2-1m").lookback - 1


def test_the_first_forecast_comes_with_the_last_bar_of_the_context(
    scanned: list[Forecast | None],
) -> None:
    context = models.forecaster().context
    assert all(answer is None for answer in scanned[: context - 1])
    assert all(answer is not None for answer in scanned[context - 1 :])
    stepper = models.forecaster()
    stepper.warm(NAME, BARS[: context - 2])
    assert stepper.step(BARS[context - 2]) is None
    assert stepper.step(BARS[context - 1]) is not None


def test_step_equals_scan(scanned: list[Forecast | None]) -> None:
    stepper = models.forecaster()
    stepped = [stepper.step(bar) for bar in BARS]
    assert [s is None for s in stepped] == [s is None for s in scanned]
    assert_close([s for s in stepped if s is not None], [s for s in scanned if s is not None])


def test_warm_from_exactly_the_context_equals_the_endless_stream(
    scanned: list[Forecast | None],
) -> None:
    warmed = models.forecaster()
    start = 1_200
    warmed.warm(NAME, BARS[start - warmed.context : start])
    assert_close([warmed.step(bar) for bar in BARS[start : start + 100]], scanned[start:1_300])


def test_scan_goes_on_where_warm_step_or_scan_ended(scanned: list[Forecast | None]) -> None:
    mixed = models.forecaster()
    mixed.warm(NAME, BARS[:1_000])
    found = mixed.scan(BARS[1_000:1_003])
    found += [mixed.step(bar) for bar in BARS[1_003:1_010]]
    found += mixed.scan(BARS[1_010:1_600])
    found += [mixed.step(BARS[1_600])]
    assert_close(found, scanned[1_000:1_601])


@pytest.mark.parametrize("cut", [700, 1_000, 1_001, 1_511, 1_512, 1_513])
def test_a_cut_future_changes_no_bit(scanned: list[Forecast | None], cut: int) -> None:
    assert models.forecaster().scan(BARS[:cut]) == scanned[:cut]


@pytest.mark.parametrize("cut", [900, 1_300])
def test_a_corrupted_future_changes_no_bit(scanned: list[Forecast | None], cut: int) -> None:
    broken = [
        msgspec.structs.replace(bar, high=bar.high * 1_000, close=bar.low * 7, volume=10**17)
        for bar in BARS[cut:]
    ]
    assert models.forecaster().scan([*BARS[:cut], *broken])[:cut] == scanned[:cut]


def test_two_runs_of_one_path_have_equal_bits() -> None:
    runs = []
    for _ in range(2):
        made = models.forecaster()
        made.warm(NAME, BARS[:1_000])
        runs.append([made.step(bar) for bar in BARS[1_000:1_200]])
    assert runs[0] == runs[1]


def test_instruments_do_not_touch_each_other() -> None:
    other = builders.bars(1_300, seed=8, instrument_id="spot:ETHUSDT")
    alone, both = models.forecaster(), models.forecaster()
    alone.warm(NAME, BARS[:1_000])
    both.warm(NAME, BARS[:1_000])
    both.warm("spot:ETHUSDT", other[:1_000])
    for mine, theirs in zip(BARS[1_000:1_100], other[1_000:1_100], strict=True):
        wanted = alone.step(mine)
        assert both.step(mine) == wanted
        assert both.step(theirs) != wanted


def test_warming_again_forgets_what_was_known(scanned: list[Forecast | None]) -> None:
    made = models.forecaster()
    made.scan(builders.bars(800, seed=9))
    made.warm(NAME, BARS[:1_000])
    fresh = models.forecaster()
    fresh.warm(NAME, BARS[:1_000])
    assert made.step(BARS[1_000]) == fresh.step(BARS[1_000])
    made.warm(NAME, [])
    assert made.step(BARS[0]) is None
    assert made.step(BARS[1]) is None


def test_a_live_step_attends_one_window_a_layer() -> None:
    made = models.forecaster()
    made.warm(NAME, BARS[:1_000])
    before = made.attended_pairs
    for bar in BARS[1_000:1_020]:
        made.step(bar)
    assert made.attended_pairs - before == 20 * 3 * 50


@pytest.mark.parametrize("encoding", ["rope", "alibi"])
def test_the_attribution_adds_up_to_the_buckets(encoding: str) -> None:
    made = models.forecaster(replace(models.SMALL, encoding=encoding))
    made.warm(NAME, BARS[:1_000])
    for bar in BARS[1_000:1_031]:
        answer = made.step(bar)
    assert answer is not None
    assert answer.explanation is not None
    found = made.explain(NAME)
    assert found.open_time_ms == tuple(bar.open_time_ms for bar in BARS[1_031 - 148 : 1_031])
    weights = np.array(found.weights)
    assert weights.min() >= 0.0
    assert weights.sum() == pytest.approx(1.0, abs=1e-5)
    block = np.array(found.open_time_ms) // (64 * builders.MINUTE)
    buckets = np.frombuffer(answer.explanation.buckets, "<f4")
    summed = [weights[block == block[-1] - age].sum() for age in range(len(buckets))]
    np.testing.assert_allclose(summed, buckets, rtol=0, atol=2e-6)


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


def test_an_explanation_sums_to_one_within_its_error(scanned: list[Forecast | None]) -> None:
    for answer in scanned[-200:]:
        assert answer is not None
        assert answer.explanation is not None
        told = answer.explanation
        assert told.older_mass is not None
        assert told.l1_error is not None
        total = np.frombuffer(told.buckets, "<f4").sum(dtype=np.float64) + told.older_mass
        assert abs(1.0 - total) <= told.l1_error + 1e-9
        assert told.l1_error <= 1e-5
        entropy = np.frombuffer(told.entropy, "<f4")
        assert len(entropy) == 3 * 2
        assert told.confidence == pytest.approx(entropy.mean(), abs=1e-6)


def test_figures_are_returns_of_their_horizon(scanned: list[Forecast | None]) -> None:
    for answer in scanned[-200:]:
        assert answer is not None
        for index in range(3):
            odds = answer.p_down[index] + answer.p_flat[index] + answer.p_up[index]
            assert odds == pytest.approx(1.0, abs=1e-6)
        assert min(answer.stdev_return) > 0
        assert min(answer.volatility) > 0


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


def test_a_temperature_flattens_the_odds() -> None:
    sharp, flat = models.forecaster(temperature=1.0), models.forecaster(temperature=[9.0] * 3)
    one, other = sharp.scan(BARS[:800])[-1], flat.scan(BARS[:800])[-1]
    assert one is not None
    assert other is not None
    assert one.mean_return == other.mean_return
    for index in range(3):
        odds = np.array([one.p_down[index], one.p_flat[index], one.p_up[index]])
        wanted = odds ** (1 / 9) / (odds ** (1 / 9)).sum()
        found = [other.p_down[index], other.p_flat[index], other.p_up[index]]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_hole_in_the_bars_leaves_empty_buckets() -> None:
    hole = 200
    late = [
        msgspec.structs.replace(bar, open_time_ms=bar.open_time_ms + hole * builders.MINUTE)
        for bar in BARS[1_000:1_010]
    ]
    made = models.forecaster()
    made.warm(NAME, BARS[:1_000])
    answer = [made.step(bar) for bar in late][-1]
    assert answer is not None
    assert answer.explanation is not None
    buckets = np.frombuffer(answer.explanation.buckets, "<f4")
    assert (buckets[1:3] == 0.0).any()  # the blocks of the hole
    older = answer.explanation.older_mass or 0.0
    assert buckets.sum() + older == pytest.approx(1.0, abs=1e-5)
    assert older > 0.0


@pytest.mark.parametrize("method", ["step", "scan"])
@pytest.mark.parametrize(
    "change", [{"open_time_ms": BARS[99].open_time_ms}, {"interval_ms": 300_000}]
)
def test_bars_out_of_order_or_of_another_interval_are_refused(
    method: str, change: dict[str, Any]
) -> None:
    made = models.forecaster()
    made.warm(NAME, BARS[:100])
    wrong: Bar = msgspec.structs.replace(BARS[100], **change)
    take = made.step if method == "step" else lambda bar: made.scan([bar])
    with pytest.raises(InvariantBroken, match="does not follow the one at"):
        take(wrong)


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


def test_nothing_to_scan_is_no_work() -> None:
    made = models.forecaster()
    assert made.scan([]) == []
    assert made.attended_pairs == 0


def test_there_is_nothing_to_explain_before_the_first_decision() -> None:
    made = models.forecaster()
    made.warm(NAME, BARS[: made.context - 1])
    with pytest.raises(InvariantBroken, match="no decision to explain yet"):
        made.explain(NAME)
    made.step(BARS[made.context - 1])
    assert len(made.explain(NAME).weights) == made.receptive_field
