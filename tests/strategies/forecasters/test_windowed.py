"""The windowed forecaster: one window, one answer, its explanation whole."""

from __future__ import annotations

import builders
import dense_attention as reference
import msgspec
import numpy as np
import pytest
import torch
from attention_cases import Case

from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.methods import PLAIN, Rollout
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.features import rows
from tracepaper.strategies.forecasters.attribution import Probe
from tracepaper.strategies.forecasters.outputs import TrainedModel
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork
from tracepaper.strategies.time_buckets import weights_of
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar

torch.set_num_threads(1)
NAME = "linear:BTCUSDT"
WINDOW = 150
SCHEMA = rows.schema("v2-1m")
CONTEXT = WINDOW + SCHEMA.lookback - 1
BARS = builders.bars(CONTEXT + 70, seed=5)
KINDS = ("informer", "full")


def network(kind: str) -> InformerNetwork | FlashNetwork:
    torch.manual_seed(2)
    if kind == "informer":
        return InformerNetwork(InformerConfig(dim=16, layers=2, heads=2, window=WINDOW))
    return FlashNetwork(FlashConfig(dim=16, layers=2, heads=2, window=WINDOW, mask="full"))


def forecaster(kind: str, method: Rollout = PLAIN) -> WindowedForecaster:
    model = TrainedModel(network(kind), SCHEMA, "m", "0" * 64, (1.0, 1.0, 1.0), 0.0, None)
    return WindowedForecaster(model, threads=1, backend="sdpa", method=method)


def answered(windowed_forecaster: WindowedForecaster, bars: list[Bar]) -> list[Forecast]:
    answers = [windowed_forecaster.step(bar) for bar in bars]
    return [answer for answer in answers if answer is not None]


def test_the_full_forms_row_equals_the_stored_matrices() -> None:
    flash_network = network("full").eval()
    assert isinstance(flash_network, FlashNetwork)
    x = torch.randn(1, WINDOW, 78, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(10**6, 10**6 + WINDOW)
    with torch.inference_mode():
        explained = flash_network.explain(x, positions)
        traces = [row for row in flash_network.trace(x, positions).reads if isinstance(row, Layer)]
    matrices = [
        reference.attention_matrix(trace.query.double(), trace.key.double(), flash_network.mask)
        for trace in traces
    ]
    wanted = reference.rollout(matrices, flash_network.mask)[:, [-1]]
    queries, keys = [trace.query for trace in traces], [trace.key for trace in traces]
    sums = [trace.logsumexp for trace in traces]
    Case(queries, keys, sums, matrices, flash_network.mask).hold(explained.rollout.weights, wanted)
    assert explained.confidence.shape == (2, 2)


WAYS = {
    "norm": Rollout(fusion="norm"),
    "gradient": Rollout(fusion="gradient", horizon=240),
    "discard": Rollout(fusion="max", discard_ratio=0.4),
}


@pytest.mark.parametrize("method", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_another_explanation_is_stored_beside_the_same_forecast(kind: str, method: Rollout) -> None:
    usual, other = forecaster(kind), forecaster(kind, method)
    for windowed_forecaster in (usual, other):
        windowed_forecaster.warm(NAME, BARS[:CONTEXT])
    bars = BARS[: CONTEXT + 2]
    forecast, two = (answered(model, bars[CONTEXT:])[-1] for model in (usual, other))
    assert forecast.explanation is not None
    assert two.explanation is not None
    assert forecast.explanation.buckets != two.explanation.buckets
    same = ("confidence_entropy", "entropy", "content_free")
    assert all(getattr(forecast.explanation, n) == getattr(two.explanation, n) for n in same)
    assert msgspec.structs.replace(two, explanation=forecast.explanation) == forecast
    attention = Probe(other, bars, horizon=5).attended(method).weights[0, 0].double().numpy()
    positions = np.array([bar.open_time_ms for bar in bars[-WINDOW:]]) // (60_000 * 64)
    sums = np.bincount(positions[-1] - positions, weights=attention)
    kept = weights_of(two.explanation.buckets)[: len(sums)]
    np.testing.assert_allclose(kept, sums, rtol=0, atol=1e-6)
    assert other.explain(NAME).weights == pytest.approx(attention.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "method", "sentence"),
    [
        ("informer", Rollout(fusion="flow"), "choose rollout"),
        ("full", Rollout(fusion="norm", start_layer=2), "choose 0 to 1"),
    ],
)
def test_a_way_that_cannot_be_is_refused_at_the_start(
    kind: str, method: Rollout, sentence: str
) -> None:
    with pytest.raises(AttentionInvalid, match=sentence):
        forecaster(kind, method)


def test_flow_is_stored_of_short_windows_alone() -> None:
    config = FlashConfig(dim=16, layers=2, heads=2, window=300, mask="causal")
    model = TrainedModel(FlashNetwork(config), SCHEMA, "m", "0" * 64, (1.0, 1.0, 1.0), 0.0, None)
    with pytest.raises(ConfigInvalid, match="windows of up to 256 bars, and this model's is 300"):
        WindowedForecaster(model, threads=1, backend="sdpa", method=Rollout(fusion="flow"))
