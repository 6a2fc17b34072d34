"""What holds of every forecaster: warm, step and scan are one function of the last bars."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import builders
import models
import msgspec
import numpy as np
import pytest
import torch
from builders import present
from numpy.typing import NDArray

from tracepaper.strategies.api.model import EXPLAINED
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.features import rows
from tracepaper.strategies.forecasters.attribution import Attending
from tracepaper.strategies.forecasters.build import build
from tracepaper.strategies.gates.gate import MEASURES
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.networks.informer import InformerConfig
from tracepaper.strategies.networks.lstm import LstmConfig
from tracepaper.strategies.networks.timeframes import CrossConfig
from tracepaper.strategies.time_buckets import weights_of
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar

torch.set_num_threads(1)
NAME, OTHER = "linear:BTCUSDT", "linear:ETHUSDT"
WINDOW = 150
CONTEXT = WINDOW + rows.schema("v2-1m").lookback - 1
BARS = builders.bars(CONTEXT + 40, seed=5)
OTHERS = builders.bars(CONTEXT + 40, seed=9, instrument_id=OTHER)
SIZES: Final = {"dim": 16, "layers": 2, "heads": 2}
CONFIGS: Final[dict[str, models.AnyConfig]] = {
    "informer": InformerConfig(**SIZES, window=WINDOW),  # type: ignore[arg-type]
    "decoder": InformerConfig(**SIZES, window=WINDOW, decoder_layers=1, start_token=20),  # type: ignore[arg-type]
    "full": FlashConfig(**SIZES, window=WINDOW, mask="full"),  # type: ignore[arg-type]
    "cross": CrossConfig(dim=16, heads=2, bars=20, frame=15, tokens=9),
    "lstm": LstmConfig(dim=12, layers=2, window=WINDOW),
    "stream": FlashConfig(dim=16, layers=1, heads=2, window=WINDOW),
}
WHOLE: Final = ("informer", "decoder", "full", "cross")
"""They answer each window by itself: in every bit alike, whatever goes with it."""
ATTENDING: Final = (*WHOLE, "stream")
WEIGHTS: Final = {kind: models.weights(config) for kind, config in CONFIGS.items()}
FIGURES: Final = ("mean_return", "stdev_return", "p_down", "p_flat", "p_up", "volatility")


def forecaster(kind: str, **calibration: Any) -> Forecaster:
    return build(models.card(CONFIGS[kind], **calibration), WEIGHTS[kind])


def warmed(kind: str, count: int = CONTEXT, **calibration: float) -> Forecaster:
    model = forecaster(kind, **calibration)
    model.warm(NAME, BARS[:count])
    return model


def numbers(answers: Sequence[Forecast | None]) -> NDArray[np.float64]:
    """Return every number of *answers*, [bar, number]: NaN where there is none."""
    rows = []
    for answer in answers:
        if answer is None:
            continue
        looks = answer.explanation
        row = [x for name in FIGURES for x in getattr(answer, name)]
        if looks is not None:
            row += [
                getattr(looks, name) or 0.0
                for name in ("confidence_entropy", "recent_mass", "shift")
            ]
            row += [*np.frombuffer(looks.entropy, "<f4"), *weights_of(looks.buckets)]
        rows.append(row)
    return np.array(rows)


def assert_same(
    kind: str, forecasts: Sequence[Forecast | None], wanted: Sequence[Forecast | None]
) -> None:
    """Hold answers against each other: in every bit, or where products round within 1e-4."""
    if kind in WHOLE:
        assert list(forecasts) == list(wanted)
        return
    assert [forecast is None for forecast in forecasts] == [forecast is None for forecast in wanted]
    values, other = numbers(forecasts), numbers(wanted)
    scale = np.maximum(np.abs(other).max(0), 1e-6)
    assert (np.abs(values - other) / scale).max() <= 1e-4


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_scan_gives_what_steps_give_whatever_its_parts_are(kind: str) -> None:
    stepped = forecaster(kind)
    assert (stepped.causal, stepped.context, stepped.device) == (True, CONTEXT, "cpu")
    wanted = [stepped.step(bar) for bar in BARS]
    assert [forecast is None for forecast in wanted] == [
        at < CONTEXT - 1 for at in range(len(BARS))
    ]
    for cuts in ((0, len(BARS)), (0, 3, CONTEXT - 1, CONTEXT + 20, CONTEXT + 21, len(BARS))):
        scanned = forecaster(kind)
        forecasts = [forecast for a, b in pairwise(cuts) for forecast in scanned.scan(BARS[a:b])]
        assert_same(kind, forecasts, wanted)
    assert scanned.scan([]) == []
    assert scanned.predict_many([]) == []
    mixed = forecaster(kind)
    mixed.scan(BARS[: CONTEXT + 10])
    cut = slice(CONTEXT + 10, CONTEXT + 20)
    assert_same(kind, [mixed.step(bar) for bar in BARS[cut]], wanted[cut])


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_corrupted_future_moves_no_earlier_answer(kind: str) -> None:
    first = CONTEXT + 5
    spoiled = [msgspec.structs.replace(bar, close=bar.low) for bar in BARS[first:]]
    forecasts, other = forecaster(kind).scan(BARS), forecaster(kind).scan(BARS[:first] + spoiled)
    if kind == "stream":  # its chunks are padded
        assert forecasts[:first] == other[:first]
    assert_same(kind, forecasts[:first], other[:first])
    assert forecasts[first] != other[first]


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_warmed_with_its_context_equals_one_that_has_run_longer(kind: str) -> None:
    running, fresh = warmed(kind), forecaster(kind)
    fresh.scan(OTHERS)
    fresh.warm(NAME, BARS[:9])
    long = [running.step(bar) for bar in BARS[CONTEXT:]]
    fresh.warm(NAME, BARS[-CONTEXT - 1 : -1])
    assert_same(kind, [fresh.step(BARS[-1])], long[-1:])
    fresh.warm(NAME, [])
    assert fresh.step(BARS[0]) is None


@pytest.mark.parametrize("kind", CONFIGS)
def test_instruments_do_not_mix_and_a_group_is_answered_as_each(kind: str) -> None:
    alone, both = warmed(kind), warmed(kind)
    for model in (alone, both):
        model.warm(OTHER, OTHERS[:CONTEXT])
    for at in range(CONTEXT, CONTEXT + 3):
        pair = [OTHERS[at], BARS[at]]
        assert_same(kind, both.predict_many(pair), [alone.step(bar) for bar in pair])
    at = CONTEXT + 3
    with pytest.raises(InvariantBroken, match="does not follow"):
        both.predict_many([BARS[at], OTHERS[at - 1]])
    assert_same(kind, [both.step(BARS[at])], [alone.step(BARS[at])])  # nothing was taken in


@pytest.mark.parametrize("change", [{"open_time_ms": BARS[9].open_time_ms}, {"interval_ms": 7}])
@pytest.mark.parametrize("kind", ["informer", "stream"])
def test_bars_out_of_order_or_of_another_interval_are_refused(
    kind: str, change: dict[str, Any]
) -> None:
    model = warmed(kind, 10)
    wrong: Bar = msgspec.structs.replace(BARS[10], **change)
    for take in (model.step, lambda bar: model.scan([bar])):
        with pytest.raises(InvariantBroken, match="does not follow the one at"):
            take(wrong)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_temperature_flattens_the_odds(kind: str) -> None:
    forecast, other = (warmed(kind, temperature=by).step(BARS[CONTEXT]) for by in (1.0, 9.0))
    assert forecast is not None
    assert other is not None
    assert forecast.mean_return == other.mean_return
    for index in range(3):
        odds = np.array([forecast.p_down[index], forecast.p_flat[index], forecast.p_up[index]])
        assert odds.sum() == pytest.approx(1.0, abs=1e-6)
        wanted = odds ** (1 / 9) / (odds ** (1 / 9)).sum()
        flatter = [other.p_down[index], other.p_flat[index], other.p_up[index]]
        np.testing.assert_allclose(flatter, wanted, rtol=1e-5)
    assert min(*forecast.stdev_return, *forecast.volatility) > 0


@pytest.mark.parametrize("kind", ATTENDING)
def test_where_it_looked_adds_up_bar_by_bar(kind: str) -> None:
    model = warmed(kind, CONTEXT - 1)
    assert isinstance(model, Attending)
    with pytest.raises(InvariantBroken, match="no decision to explain yet"):
        model.explain(NAME)
    answers = [model.step(bar) for bar in BARS[CONTEXT - 1 : CONTEXT + 30]]
    for answer in answers:
        assert answer is not None
        assert answer.explanation is not None
        looks = answer.explanation
        assert None not in (looks.older_mass, looks.l1_error, looks.recent_mass)
        buckets, heads = weights_of(looks.buckets), np.frombuffer(looks.entropy, "<f4")
        assert buckets.sum() + (looks.older_mass or 0) == pytest.approx(1.0, abs=1e-5)
        assert looks.confidence_entropy == pytest.approx(float(heads.mean()), abs=1e-6)
        if kind != "stream":  # it follows rows that nothing was asked of
            assert (looks.shift is None) == (answer is answers[0])
        assert 0.0 <= (looks.shift or 0.0) < 0.5
    attribution = model.explain(NAME)
    assert attribution.open_time_ms == tuple(
        bar.open_time_ms for bar in BARS[: CONTEXT + 30][-WINDOW:]
    )
    weights, block = (
        np.array(attribution.weights),
        np.array(attribution.open_time_ms) // (64 * 60_000),
    )
    assert weights.min() >= 0.0
    summed = [weights[block == block[-1] - age].sum() for age in range(len(buckets))]
    np.testing.assert_allclose(summed, buckets, rtol=0, atol=2e-6)
    late = [
        msgspec.structs.replace(bar, open_time_ms=bar.open_time_ms + 500 * bar.interval_ms)
        for bar in BARS[CONTEXT + 30 :]
    ]
    last = present([model.step(bar) for bar in late][-1])
    assert (present(last.explanation).older_mass or 0.0) > 0.01  # what lies beyond the hole


def test_one_without_attention_says_what_it_gives_and_no_more() -> None:
    model = warmed("lstm")
    assert (model.measures, model.backend) == (MEASURES - set(EXPLAINED), "recurrence")
    answer = present(model.step(BARS[CONTEXT]))
    assert answer.explanation is None
