"""The flash network: causal in every form, finite in memory, fair gradients, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import models
import pytest
import torch
from torch import Tensor

from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.architecture import DOF_MIN, LOG_RANGE, Outputs
from tracepaper.strategies.networks.flash import (
    BlockOptions,
    FeedForward,
    FlashConfig,
    FlashNetwork,
    by_names,
)

FORMS = [
    {},
    {"encoding": "alibi"},
    {"encoding": "sinusoidal", "norm": "post"},
    {"encoding": "learned", "mlp": "gated"},
    {"encoding": "none", "clock": ("week",)},
    {"encoding": "mixture", "clock": ("sessions", "funding")},
    {"encoding": "context", "gated": True},
    {"volatility_gate": "sigma_level", "volatility_column": 5},
    {"allocation": True, "quantiles": (0.1, 0.5, 0.9), "heads": 4},
]


def rows(time: int, *, batch: int = 1, seed: int = 1) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, 78, generator=source)


def present(outputs: Outputs) -> list[Tensor]:
    return [x for x in outputs if x is not None]


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_depends_on_its_receptive_field_and_on_nothing_else(form: dict[str, Any]) -> None:
    config = replace(models.SMALL, window=8, **form)
    net = models.network(config)
    x = rows(60).requires_grad_()
    assert config.receptive_field == 3 * 7 + 1
    for output in present(net(x)):
        (gradient,) = torch.autograd.grad(output[0, 40].square().sum(), x, retain_graph=True)
        moved = gradient[0].abs().sum(-1).nonzero().squeeze(-1)
        assert int(moved.min()) == 40 - config.receptive_field + 1
        assert int(moved.max()) == 40


def test_outputs_stay_in_their_ranges_whatever_the_rows_are() -> None:
    config = replace(models.SMALL, allocation=True, quantiles=(0.1, 0.5, 0.9))
    outputs = models.network(config)(100.0 * rows(70, batch=2))
    assert outputs.log_scale.abs().max() <= LOG_RANGE
    assert outputs.log_variance.abs().max() <= LOG_RANGE
    assert outputs.dof.min() >= DOF_MIN
    assert outputs.allocation.abs().max() <= 1.0
    assert (outputs.quantiles.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("encoding", ["rope", "alibi", "none"])
def test_relative_encodings_do_not_care_where_in_time_they_stand(encoding: str) -> None:
    net = models.network(replace(models.SMALL, encoding=encoding))
    x = rows(120)
    start = torch.arange(120)
    for away in (0, 525_600, 29_000_000):
        torch.testing.assert_close(net(x, start + away).mean, net(x).mean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("encoding", ["sinusoidal", "learned"])
def test_absolute_encodings_repeat_with_the_window(encoding: str) -> None:
    net = models.network(replace(models.SMALL, encoding=encoding))
    x, start = rows(120), torch.arange(120)
    torch.testing.assert_close(net(x, start + 50 * 7_000).mean, net(x, start).mean)
    assert (net(x, start + 3).mean - net(x, start).mean).abs().max() > 1e-3


def test_a_volatility_gate_scales_the_scores_of_a_bar_as_a_key() -> None:
    gated: dict[str, Any] = {"volatility_gate": "sigma_level", "volatility_column": 5}
    plain, net = (FlashNetwork(replace(models.SMALL, **form)).eval() for form in ({}, gated))
    missing, extra = net.load_state_dict(plain.state_dict(), strict=False)
    assert not extra
    assert {name.rpartition(".")[0] for name in missing} == {
        f"blocks.{n}.key_gate" for n in range(3)
    }
    x = rows(90, batch=2)
    torch.testing.assert_close(net(x).mean, plain(x).mean)  # untrained, every factor is 1
    first = next(net.layers())
    assert first.key_gate is not None
    with torch.no_grad():
        first.key_gate.weight.copy_(torch.tensor([[0.7], [-0.4]]))  # of two heads
        first.key_gate.bias.fill_(0.1)
    before, after = (each.trace(x).attending[0] for each in (plain, net))
    assert isinstance(before, Layer)
    assert isinstance(after, Layer)
    assert before.value is not None
    assert after.value is not None
    slopes = torch.tensor([0.7, -0.4])[:, None]
    factors = 2.0 * torch.sigmoid(slopes * x[:, None, :, 5] + 0.1)  # [batch, head, bar]
    scores = before.query @ before.key.mT
    torch.testing.assert_close(after.query @ after.key.mT, scores * factors[:, :, None])
    torch.testing.assert_close(after.value, before.value)
    assert (net(x).mean - plain(x).mean).abs().max() > 1e-5


def test_a_gates_column_follows_from_the_features_name() -> None:
    names = ("log_return", "sigma_level", "volume")
    columns = by_names({"volatility_gate": "sigma_level"}, names)
    assert columns == {"volatility_column": 1}
    assert by_names({"volatility_gate": ""}, names) == {}
    with pytest.raises(ConfigInvalid, match="called 'sigma_lvl', the nearest is sigma_level"):
        by_names({"volatility_gate": "sigma_lvl"}, names)
    with pytest.raises(ConfigInvalid, match="volatility_column is missing for 'sigma_level'"):
        FlashNetwork(replace(models.SMALL, volatility_gate="sigma_level"))
    forms: list[dict[str, Any]] = [
        {"volatility_column": 2},
        {"volatility_gate": "x", "volatility_column": 78},
    ]
    for form in forms:
        with pytest.raises(ConfigInvalid, match="name the feature: volatility_gate"):
            replace(models.SMALL, **form)


def test_checkpointing_changes_memory_and_no_gradient() -> None:
    plain = models.network().train()
    thrifty = models.network(replace(models.SMALL, checkpointing=True)).train()
    x = rows(110)
    for net in (plain, thrifty):
        net(x).mean.square().sum().backward()
    for parameter, other in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        if parameter.grad is not None and other.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad)


def test_stochastic_depth_drops_branches_in_training_alone_and_keeps_their_mean() -> None:
    config = replace(models.SMALL, layers=1, stochastic_depth=0.5)
    net = models.network(config)
    x = rows(10).expand(400, -1, -1)
    with torch.no_grad():
        state, phases = net.enter(x, torch.arange(10))
        block = next(net.layers())
        attended = block.project(state, phases).value
        steady = block.finish(state, attended)
        assert torch.equal(steady, block.finish(state, attended))
        torch.manual_seed(5)
        block.train()
        varied = block.finish(state, attended)
    kinds = len({tuple(row.tolist()) for row in varied[:, 0].round(decimals=4)})
    assert kinds == 4  # either branch there, scaled, or not
    # The attention branch is dropped half of the time and doubled otherwise.
    untouched = (varied[:, 0] - state[:, 0]).abs().amax(-1) < 1e-6
    assert 60 <= int(untouched.sum()) <= 140


def test_a_fresh_network_knows_nothing() -> None:
    torch.manual_seed(3)
    outputs = FlashNetwork(models.SMALL)(rows(60))
    assert outputs.mean.abs().max() < 0.2
    assert outputs.log_scale.abs().max() < 0.2
    assert outputs.log_variance.abs().max() < 0.2


@pytest.mark.parametrize(
    ("encoding", "low", "high"), [("rope", 0.0, 0.0), ("none", 0.0, 0.0), ("alibi", 0.3, 0.5)]
)
def test_the_content_free_confidence_is_that_of_mask_and_encoding(
    encoding: str, low: float, high: float
) -> None:
    net = FlashNetwork(FlashConfig(encoding=encoding))
    assert low <= net.content_free() <= high


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_gate_begins_open_and_sharpens_or_softens_a_bars_attention(norm: str) -> None:
    config = replace(models.SMALL, mask="full", window=20, norm=norm)
    net, gated = FlashNetwork(config).eval(), FlashNetwork(replace(config, gated=True)).eval()
    gated.load_state_dict(net.state_dict(), strict=False)
    x, positions = 3 * rows(20), torch.arange(20)

    def confidence(lift: float) -> float:
        for block in gated.layers():
            assert block.gate is not None
            torch.nn.init.constant_(block.gate.bias, lift)
        with torch.inference_mode():
            return float(gated.explain(x, positions).confidence.mean())

    with torch.inference_mode():
        plain = float(net.explain(x, positions).confidence.mean())
    assert confidence(0.0) == pytest.approx(plain, abs=1e-7)
    assert confidence(-3.0) < 0.5 * plain < plain < confidence(2.0)


def test_a_row_alone_gets_the_gelu_and_the_gradient_that_it_gets_among_others() -> None:
    torch.manual_seed(0)
    layer = FeedForward(BlockOptions.of(FlashConfig(dim=16, heads=2)))
    several = torch.randn(1, 5, 16)
    wanted = layer(several)
    for at in range(5):
        row = several[:, at : at + 1]
        with torch.inference_mode():
            alone = layer(row)
        torch.testing.assert_close(alone, wanted[:, at : at + 1])
        slopes = [
            torch.autograd.grad(x.sum(), layer.rise.weight)[0]
            for x in (layer(row), layer(several)[:, at])
        ]
        torch.testing.assert_close(*slopes)
