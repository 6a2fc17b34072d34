"""The windowed forecaster: one window, one answer, its explanation whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import builders
import msgspec
import numpy as np
import pytest
import torch
from attention_cases import Case

from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.attention import reference
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid, InvariantBroken
from tracepaper.strategies.features import rows
from tracepaper.strategies.forecasters.attribution import Probe
from tracepaper.strategies.forecasters.outputs import TrainedModel
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.networks.attribution import STORED, AttributionMethod
from tracepaper.strategies.networks.cross_timeframe import CrossConfig, CrossNetwork
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar

torch.set_num_threads(1)
NAME = "linear:BTCUSDT"
WINDOW = 150
SCHEMA = rows.schema("v2-1m")
CONTEXT = WINDOW + SCHEMA.lookback - 1
BARS = builders.bars(CONTEXT + 70, seed=5)
KINDS = ("informer", "full")
EVERY_KIND = (*KINDS, "decoder", "cross")


def network(kind: str) -> InformerNetwork | FlashNetwork | CrossNetwork:
    torch.manual_seed(2)
    if kind in {"informer", "decoder"}:
        decoder = {"decoder_layers": 1, "start_token": 20} if kind == "decoder" else {}
        return InformerNetwork(
            InformerConfig(dim=16, layers=2, heads=2, window=WINDOW, **decoder)  # type: ignore[arg-type]
        )
    if kind == "cross":
        return CrossNetwork(CrossConfig(dim=16, heads=2, bars=20, frame=15, tokens=9))
    return FlashNetwork(FlashConfig(dim=16, layers=2, heads=2, window=WINDOW, mask="full"))


def forecaster(kind: str, way: AttributionMethod = STORED) -> WindowedForecaster:
    model = TrainedModel(network(kind), SCHEMA, "m", "0" * 64, (1.0, 1.0, 1.0), 0.0, None)
    return WindowedForecaster(model, threads=1, backend="sdpa", way=way)


def answered(made: WindowedForecaster, bars: list[Bar]) -> list[Forecast]:
    answers = [made.step(bar) for bar in bars]
    return [answer for answer in answers if answer is not None]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_scan_gives_what_steps_give_whatever_its_parts_are(kind: str) -> None:
    stepped: Forecaster = forecaster(kind)
    assert (stepped.causal, stepped.context) == (True, CONTEXT)
    wanted = [stepped.step(bar) for bar in BARS]
    for cuts in ((0, len(BARS)), (0, 3, CONTEXT - 1, CONTEXT + 20, CONTEXT + 21, len(BARS))):
        scanned = forecaster(kind)
        found = [one for a, b in pairwise(cuts) for one in scanned.scan(BARS[a:b])]
        assert found == wanted
    assert [one is None for one in wanted].count(True) == CONTEXT - 1
    assert scanned.scan([]) == []


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_steps_go_on_after_a_scan(kind: str) -> None:
    stepped, mixed = forecaster(kind), forecaster(kind)
    wanted = [stepped.step(bar) for bar in BARS]
    mixed.scan(BARS[: CONTEXT + 10])
    assert [mixed.step(bar) for bar in BARS[CONTEXT + 10 : CONTEXT + 30]] == wanted[
        CONTEXT + 10 : CONTEXT + 30
    ]
    assert mixed.scan(BARS[CONTEXT + 30 :]) == wanted[CONTEXT + 30 :]
    with pytest.raises(InvariantBroken, match="does not follow"):
        mixed.scan(BARS[-2:])


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_scan_cannot_see_what_comes_later(kind: str) -> None:
    one, other = forecaster(kind), forecaster(kind)
    spoiled = [msgspec.structs.replace(bar, close=bar.low) for bar in BARS[CONTEXT + 5 :]]
    known, told = one.scan(BARS), other.scan(BARS[: CONTEXT + 5] + spoiled)
    assert known[: CONTEXT + 5] == told[: CONTEXT + 5]
    assert known[CONTEXT + 5] != told[CONTEXT + 5]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_first_forecast_comes_with_the_last_bar_of_the_context(kind: str) -> None:
    made = forecaster(kind)
    made.warm(NAME, BARS[: CONTEXT - 2])
    assert made.step(BARS[CONTEXT - 2]) is None
    assert made.step(BARS[CONTEXT - 1]) is not None


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_forecaster_warmed_with_its_context_equals_one_that_has_run_longer(kind: str) -> None:
    running, warmed = forecaster(kind), forecaster(kind)
    running.warm(NAME, BARS[:CONTEXT])
    long = answered(running, BARS[CONTEXT:])
    warmed.warm(NAME, BARS[-CONTEXT - 1 : -1])
    assert warmed.step(BARS[-1]) == long[-1]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_corrupted_future_moves_no_earlier_answer(kind: str) -> None:
    first, second = forecaster(kind), forecaster(kind)
    for made in (first, second):
        made.warm(NAME, BARS[:CONTEXT])
    spoiled = [msgspec.structs.replace(bar, close=bar.low) for bar in BARS[CONTEXT + 5 :]]
    one = answered(first, BARS[CONTEXT:])
    other = answered(second, BARS[CONTEXT : CONTEXT + 5] + spoiled)
    assert one[:5] == other[:5]
    assert one[5] != other[5]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_explanation_accounts_for_all_of_the_attention(kind: str) -> None:
    made = forecaster(kind)
    made.warm(NAME, BARS[:CONTEXT])
    for answer in answered(made, BARS[CONTEXT:]):
        told = answer.explanation
        assert told is not None
        buckets = np.frombuffer(told.buckets, "<f4")
        assert len(buckets) == 4  # 150 bars touch at most four blocks
        assert told.older_mass == 0.0
        assert told.recent_mass is not None
        assert float(buckets.sum()) == pytest.approx(1.0, abs=1e-5)
        assert told.shift is not None
        assert 0.0 <= told.shift < 0.5
        assert 0.0 < told.recent_mass < 1.0
        heads = np.frombuffer(told.entropy, "<f4")
        assert told.confidence == pytest.approx(float(heads.mean()), abs=1e-6)
        assert min(answer.stdev_return) > 0.0


def test_the_full_forms_row_equals_the_stored_matrices() -> None:
    made = network("full").eval()
    assert isinstance(made, FlashNetwork)
    x = torch.randn(1, WINDOW, 78, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(10**6, 10**6 + WINDOW)
    with torch.inference_mode():
        seen = made.explain(x, positions)
        traces = [one for one in made.trace(x, positions).reads if isinstance(one, Layer)]
    matrices = [
        reference.attention_matrix(trace.query.double(), trace.key.double(), made.mask)
        for trace in traces
    ]
    wanted = reference.rollout(matrices, made.mask)[:, [-1]]
    queries, keys = [trace.query for trace in traces], [trace.key for trace in traces]
    sums = [trace.logsumexp for trace in traces]
    Case(queries, keys, sums, matrices, made.mask).hold(seen.rollout.weights, wanted)
    assert seen.confidence.shape == (2, 2)


def test_bars_beyond_a_hole_count_as_older() -> None:
    made = forecaster("full")
    late = [
        msgspec.structs.replace(bar, open_time_ms=bar.open_time_ms + 500 * bar.interval_ms)
        for bar in BARS[CONTEXT:]
    ]
    made.warm(NAME, BARS[:CONTEXT])
    answer = answered(made, late)[-1]
    assert answer.explanation is not None
    assert (answer.explanation.older_mass or 0.0) > 0.1


def test_full_resolution_follows_the_last_decision() -> None:
    made = forecaster("informer")
    with pytest.raises(InvariantBroken, match="no decision to explain"):
        made.explain(NAME)
    made.warm(NAME, BARS[:CONTEXT])
    row = made.explain(NAME)
    assert row.weights.shape == (1, 1, WINDOW)
    assert float(row.weights.sum()) == pytest.approx(1.0, abs=1e-5)


def test_a_bar_that_does_not_follow_is_refused() -> None:
    made = forecaster("informer")
    made.warm(NAME, BARS[:10])
    with pytest.raises(InvariantBroken, match="does not follow"):
        made.step(BARS[9])


def test_instruments_do_not_mix() -> None:
    alone, both = forecaster("informer"), forecaster("informer")
    other = builders.bars(CONTEXT + 70, seed=9, instrument_id="linear:ETHUSDT")
    alone.warm(NAME, BARS[:CONTEXT])
    both.warm(NAME, BARS[:CONTEXT])
    both.warm("linear:ETHUSDT", other[:CONTEXT])
    both.step(other[CONTEXT])
    assert both.step(BARS[CONTEXT]) == alone.step(BARS[CONTEXT])


def test_another_temperature_flattens_the_odds() -> None:
    made, cool = forecaster("informer"), forecaster("informer")
    cool.model = replace(cool.model, temperature=(100.0, 100.0, 100.0))
    for one in (made, cool):
        one.warm(NAME, BARS[:CONTEXT])
    sharp, flat = made.step(BARS[CONTEXT]), cool.step(BARS[CONTEXT])
    assert sharp is not None
    assert flat is not None
    assert flat.p_up == pytest.approx((1 / 3,) * 3, abs=1e-2)
    assert flat.mean_return == sharp.mean_return


WAYS = {
    "norm": AttributionMethod("norm"),
    "gradient": AttributionMethod("gradient", horizon=240),
    "discard": AttributionMethod("rollout", Rollout(fusion="max", discard_ratio=0.4)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_another_explanation_is_stored_beside_the_same_forecast(
    kind: str, way: AttributionMethod
) -> None:
    usual, other = forecaster(kind), forecaster(kind, way)
    for made in (usual, other):
        made.warm(NAME, BARS[:CONTEXT])
    bars = BARS[: CONTEXT + 2]
    one, two = (answered(made, bars[CONTEXT:])[-1] for made in (usual, other))
    assert one.explanation is not None
    assert two.explanation is not None
    assert one.explanation.buckets != two.explanation.buckets
    same = ("confidence", "entropy", "content_free")
    assert all(getattr(one.explanation, n) == getattr(two.explanation, n) for n in same)
    assert msgspec.structs.replace(two, explanation=one.explanation) == one
    seen = Probe(other, bars, horizon=5).looked(way).weights[0, 0].double().numpy()
    positions = np.array([bar.open_time_ms for bar in bars[-WINDOW:]]) // (60_000 * 64)
    sums = np.bincount(positions[-1] - positions, weights=seen)
    kept = np.frombuffer(two.explanation.buckets, "<f4")[: len(sums)]
    np.testing.assert_allclose(kept, sums, rtol=0, atol=1e-6)
    assert other.explain(NAME).weights[0, 0].tolist() == pytest.approx(seen.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "way", "sentence"),
    [
        ("informer", AttributionMethod("flow"), "choose rollout"),
        ("full", AttributionMethod("norm", Rollout(start_layer=2)), "choose 0 to 1"),
        ("full", AttributionMethod("lime"), "There is no method 'lime'"),
    ],
)
def test_a_way_that_cannot_be_is_refused_at_the_start(
    kind: str, way: AttributionMethod, sentence: str
) -> None:
    with pytest.raises(AttentionInvalid, match=sentence):
        forecaster(kind, way)


def test_flow_is_stored_of_short_windows_alone() -> None:
    config = FlashConfig(dim=16, layers=2, heads=2, window=300, mask="causal")
    model = TrainedModel(FlashNetwork(config), SCHEMA, "m", "0" * 64, (1.0, 1.0, 1.0), 0.0, None)
    with pytest.raises(ConfigInvalid, match="windows of up to 256 bars, and this model's is 300"):
        WindowedForecaster(model, threads=1, backend="sdpa", way=AttributionMethod("flow"))
