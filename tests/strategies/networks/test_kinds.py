"""What holds of every kind of network: its card, its explanation, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import models
import pytest
import torch
from torch import Tensor

from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.attention.propagation import relevance, relevance_rules
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.networks.architecture import ExplainedOutputs, Network
from tracepaper.strategies.networks.cross_asset import CrossAssetConfig
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.keys import listed
from tracepaper.strategies.networks.order_book import OrderBookConfig

KINDS: Final = tuple(models.KINDS)
ATTENDING: Final = [kind for kind in KINDS if kind != "lstm"]
WHOLE: Final = ("informer", "decoder", "multiscale", "cross")
"""They take whole windows alone."""


def network(kind: str) -> Network:
    model = models.small(kind)
    return model if kind == "custom" else model.double()  # the class is tried in float32


def window(model: Network) -> tuple[Tensor, Tensor]:
    time = model.config.receptive_field
    drawn = torch.Generator().manual_seed(8)
    x = torch.randn(1, time, model.config.features, generator=drawn, dtype=torch.float64)
    return x.to(next(model.parameters()).dtype), torch.arange(5, 5 + time)


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_gives_the_architecture_back_and_every_weight_learns(kind: str) -> None:
    model = network(kind).train()
    assert type(model.config).read(listed(model.config)) == model.config
    x, positions = window(model)
    outputs = model(x, positions)
    sum(part.square().sum() for part in outputs if part is not None).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize("kind", ATTENDING)
@torch.no_grad()
def test_what_its_layers_carry_down_and_its_parts_are_the_rollout(kind: str) -> None:
    model = network(kind)
    x, positions = window(model)
    outputs, layers = model.explain(x, positions), model.attribution_by_layer(x, positions)
    forecast = model(x, positions).mean[:, -1:]
    torch.testing.assert_close(outputs.outputs.mean, forecast, rtol=0, atol=1e-6)
    wanted = outputs.rollout.weights[0]
    assert float(wanted.sum()) == pytest.approx(1.0, abs=1e-6)
    carried = torch.zeros(1, len(layers[-1].age), dtype=x.dtype)
    carried[0, -1] = 1.0
    for layer in reversed(layers):
        torch.testing.assert_close(layer.rows.double().sum(1), torch.ones(2).double())
        carried = layer.carry(carried)
    torch.testing.assert_close(carried.to(wanted), wanted, rtol=0, atol=1e-6)
    assert_parts(outputs)


@pytest.mark.parametrize("kind", [*ATTENDING, "gated"])
def test_relevances_of_the_rows_sum_to_the_forecast_where_nothing_is_biased(kind: str) -> None:
    model = network(kind) if kind != "gated" else gated()
    x, positions = window(model)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            # What stands there whatever the rows are: biases, places and the columns of clocks.
            if name.endswith(("bias", "place", "code")) or "clock" in name:
                tensor.zero_()
        if kind == "multiscale":
            dict(model.named_parameters())["embed.weight"][:, 2 * x.shape[2] :] = 0.0
    x.requires_grad_()
    forecast = model(x, positions).mean[0, -1, 0].detach()
    with relevance_rules(model):
        answer = model(x, positions).mean[0, -1, 0]
        relevances = relevance(answer, x)
    torch.testing.assert_close(answer.detach(), forecast)
    torch.testing.assert_close(relevances.sum(), forecast, rtol=1e-5, atol=0)
    assert float(relevances.abs().sum()) > float(forecast.abs())  # of either sign


def gated() -> Network:
    config = FlashConfig(features=5, dim=8, layers=2, heads=2, window=12, mlp="gated", gated=True)
    torch.manual_seed(4)
    return FlashNetwork(config).double().eval()


def assert_parts(outputs: ExplainedOutputs) -> None:
    """Check that the parts, each spread over its rows, are the weights."""
    weights = outputs.rollout.weights[0, 0]
    by_bar = torch.zeros_like(weights)
    for part in outputs.parts:
        by_bar[part.start : part.start + part.rows] += part.share / part.rows
    if outputs.parts:
        torch.testing.assert_close(by_bar, weights, rtol=0, atol=1e-6)


WAYS: Final = {
    "norm": Rollout(fusion="norm"),
    "gradient": Rollout(fusion="gradient"),
    "max": Rollout(fusion="max", discard_ratio=0.2),
    "flow": Rollout(fusion="flow"),
}


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("kind", ATTENDING)
def test_another_method_sums_to_one_or_is_refused(kind: str, method: str) -> None:
    model = network(kind)
    plain = {"linear": ("norm", "gradient", "max"), "custom": ("norm", "gradient")}
    if method in plain.get(kind, ()) or (
        method == "flow" and kind in {"informer", "decoder", "cross"}
    ):
        with pytest.raises(AttentionInvalid):
            model.explain(*window(model), WAYS[method])
        return
    usual, other = (model.explain(*window(model), rollout) for rollout in (Rollout(), WAYS[method]))
    assert float(other.rollout.weights.sum()) == pytest.approx(1.0, abs=1e-6)
    assert float((other.rollout.weights - usual.rollout.weights).abs().max()) > 1e-4
    assert_parts(other)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_window_of_another_length_is_refused(kind: str) -> None:
    model = network(kind)
    x, positions = window(model)
    with pytest.raises(AttentionInvalid, match=f"windows of {len(positions)} bars, not"):
        model(x[:, 1:], positions[1:])


BOOKS: Final = OrderBookConfig()
ASSETS: Final = CrossAssetConfig(symbols=("AUSDT", "BUSDT"))


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("flash", {"encoding": "rotary"}, "architecture.encoding is 'rotary'"),
        ("flash", {"mlp": "relu"}, "choose one of gelu, gated"),
        ("flash", {"norm": "rms"}, "choose one of pre, post"),
        ("flash", {"mask": "sparse"}, "choose one of window, causal, full"),
        ("flash", {"dim": 12, "heads": 4}, "equal, even share"),
        ("flash", {"horizons": ()}, "at least one number of bars"),
        ("flash", {"horizons": (16, 4)}, "horizons must list .* the shortest first"),
        ("flash", {"encoding": "alibi", "mask": "full"}, "alibi looks back only"),
        ("flash", {"volatility_column": 1}, "name the feature: volatility_gate"),
        ("flash", {"quantiles": (0.9, 0.1)}, "must ascend between 0 and 1"),
        ("linear", {"feature_map": "relu"}, "choose one of elu, random"),
        ("linear", {"mask": "window"}, "choose one of causal, full"),
        ("linear", {"encoding": "alibi"}, "adds to scores, which this attention lacks"),
        ("custom", {"encoding": "alibi"}, "adds to scores, which this attention lacks"),
        ("informer", {"heads": 3}, "a multiple of the heads"),
        ("decoder", {"start_token": 0}, "start_token is 0; give the decoder 1 to 41 bars"),
        ("decoder", {"start_token": 42}, "start_token is 42; give the decoder 1 to 41 bars"),
        ("decoder", {"decoder_layers": 0}, "start_token is 9 without a decoder"),
        ("multiscale", {"frames": (2, 4), "tokens": (3, 3)}, "must begin with 1"),
        ("multiscale", {"frames": (1, 4, 6), "tokens": (3, 3, 3)}, "a multiple of the one before"),
        ("multiscale", {"frames": (1, 4, 4), "tokens": (3, 3, 3)}, "a multiple of the one before"),
        ("multiscale", {"frames": (1, 4), "tokens": (3,)}, "as many numbers as frames"),
        ("multiscale", {"frames": (), "tokens": ()}, "must begin with 1"),
        ("multiscale", {"frames": (1, 8_192), "tokens": (3, 4_000)}, "at most 65,536"),
        ("multiscale", {"frames": (1,), "tokens": (9_000,)}, "more than 8,192"),
        ("cross", {"frame": 1}, "frame is 1; it must be at least 2"),
        ("cross", {"frame": 8_192, "tokens": 8}, "at most 65,536"),
        ("cross", {"clock": ("noon",)}, "names 'noon'"),
        ("cross", {"clock": ("week", "week")}, "names week twice"),
        ("cross", {"other_symbol": "ETHUSDT", "features": 3}, "must be even"),
        ("trading", {"columns": (0, 1)}, "an entry for each of 4 features"),
        ("trading", {"columns": (0, 0, 0, 0)}, "each of architecture.modalities a feature"),
        ("trading", {"modalities": ("price", "price")}, "names one twice"),
        ("trading", {"modalities": ("price", "news")}, "names 'news'"),
        ("trading", {"levels": ("touch", "", "", "")}, "levels must name a group"),
        ("trading", {"window": 2}, "give each layer two bars"),
        ("trading", {"regimes": 1}, "regimes is 1, which distinguishes nothing"),
        ("books", {"dim": 18}, "an equal, even share"),
        ("books", {"horizons": (3, 1)}, "horizons must ascend"),
        ("assets", {"symbols": ("AUSDT", "AUSDT")}, "different symbols"),
        ("assets", {"attention": "both"}, "choose one of factorised, joint"),
        ("assets", {"every": 7}, "every is 7; weights are held for one of"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused_in_one_sentence(
    kind: str, change: dict[str, Any], sentence: str
) -> None:
    given: Any = {"books": BOOKS, "assets": ASSETS}.get(kind) or network(kind).config
    with pytest.raises(ConfigInvalid, match=sentence):
        replace(given, **change)
