"""Modalities in one network: what a bar's state is made of, and what of it was looked at."""

from __future__ import annotations

import pytest
import torch
from models import moved
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.replay.learning.recipe import recipe_of
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rows import schema
from tracepaper.strategies.networks.architecture import network_kinds
from tracepaper.strategies.networks.trading import TradingConfig, TradingNetwork, by_names

torch.set_num_threads(1)
FEATURES = 6
SMALL = TradingConfig(
    features=FEATURES,
    dim=8,
    layers=3,
    heads=2,
    window=25,
    modalities=("volume", "price", "time"),
    columns=(1, 1, 0, 2, -1, 0),
    horizons=(2, 7),
)


def network(config: TradingConfig = SMALL) -> TradingNetwork:
    torch.manual_seed(4)
    return moved(TradingNetwork(config).double(), 0.4)


def rows(time: int, seed: int = 0) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(1, time, FEATURES, generator=drawn).double()


def dense_rollout(model: TradingNetwork, x: Tensor, positions: Tensor) -> Tensor:
    """Return [bar, modality] of the last bar by whole matrices, written without the product's."""
    fusion, places = model.fusion, model.config.groups
    states, shares = [], []
    for row in x[0]:
        encoded = []
        for encoder, place in zip(fusion.encoders, places.values(), strict=True):
            assert isinstance(encoder, nn.Sequential)
            first, last = encoder[0], encoder[2]
            encoded.append(last(functional.gelu(first(row[place]))))
        mixed, parts = [], []
        for head in range(model.config.heads):
            span = slice(4 * head, 4 * head + 4)
            scores = torch.stack(
                [
                    fusion.key(fusion.norm(each))[span] @ fusion.query[head] / 4**0.5
                    for each in encoded
                ]
            )
            own_shares = scores.exp() / scores.exp().sum()
            parts.append(own_shares)
            mixed.append(sum(s * each[span] for s, each in zip(own_shares, encoded, strict=True)))
        states.append(torch.cat(mixed))
        shares.append(torch.stack(parts).mean(0))
    traces = model.trace(x, positions).attending
    time, window = x.shape[1], (model.config.window - 1) // model.config.layers + 1
    age = torch.arange(time)[:, None] - torch.arange(time)
    product = torch.eye(time, dtype=torch.float64)
    for trace in traces:
        assert isinstance(trace, Layer)
        scores = trace.query @ trace.key.mT / trace.query.shape[-1] ** 0.5
        attended = scores.masked_fill((age < 0) | (age >= window), -torch.inf).softmax(-1)
        product = (0.5 * torch.eye(time) + 0.5 * attended[0].mean(0)) @ product
    return product[-1][:, None] * torch.stack(shares)


@torch.no_grad()
def test_what_was_looked_at_equals_the_dense_product_by_bar_and_modality() -> None:
    trading_network, x, positions = network(), rows(25), torch.arange(25) + 9
    wanted = dense_rollout(trading_network, x, positions)
    looks = trading_network.explain(x, positions)
    view = torch.tensor([part.share for part in looks.parts], dtype=torch.float64).view(25, 3)
    assert torch.allclose(view, wanted, atol=1e-12)
    assert float(view.sum()) == pytest.approx(1.0, abs=1e-12)
    assert torch.allclose(view.sum(1), looks.rollout.weights[0, 0], atol=1e-12)
    assert [part.start for part in looks.parts] == [bar for bar in range(25) for _ in range(3)]
    assert [part.modality for part in looks.parts[:3]] == ["volume", "price", "time"]
    assert torch.allclose(
        looks.outputs.mean, trading_network(x, positions).mean[:, -1:], atol=1e-12
    )
    shares = wanted / wanted.sum(1, keepdim=True)
    assert float(shares.std(0).min()) > 0.01  # the shares are not the same at every bar


@torch.no_grad()
def test_every_row_is_answered_as_its_window_alone_and_no_later_row_moves_it() -> None:
    trading_network, x = network(), rows(60)
    positions = torch.arange(60) + 100
    every = trading_network(x, positions)
    for row in (24, 40, 59):
        window = slice(row - SMALL.receptive_field + 1, row + 1)
        alone = trading_network(x[:, window], positions[window])
        assert torch.allclose(every.mean[:, row], alone.mean[:, -1], atol=1e-12)
    moved = x.clone()
    moved[:, 41:] += 3.0
    after = trading_network(moved, positions)
    assert torch.equal(after.mean[:, :41], every.mean[:, :41])
    assert not torch.allclose(after.mean[:, 41], every.mean[:, 41])


def test_a_row_depends_on_its_receptive_field_and_on_no_unused_column() -> None:
    trading_network, x = network(), rows(40).requires_grad_()
    trading_network(x, torch.arange(40)).log_variance[:, -1].sum().backward()
    assert x.grad is not None
    slopes = x.grad[0].abs()
    assert (slopes.sum(1) > 0).tolist() == [False] * 15 + [True] * 25
    assert (slopes.sum(0) > 0).tolist() == [True, True, True, True, False, True]


@torch.no_grad()
def test_a_modality_whose_key_is_asked_for_takes_the_share() -> None:
    trading_network, x, positions = network(), rows(25), torch.arange(25)
    # Volume encodes to the same whatever its columns, and the query asks for just that.
    signs = torch.tensor([1.0, -1.0] * 4).double()
    for at, encoder in enumerate(trading_network.fusion.encoders):
        assert isinstance(encoder, nn.Sequential)
        last = encoder[2]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        last.bias.copy_(signs if at == 0 else torch.zeros(8))
    trading_network.fusion.key.weight.copy_(torch.eye(8))
    trading_network.fusion.key.bias.zero_()
    trading_network.fusion.norm.weight.fill_(1.0)
    trading_network.fusion.norm.bias.zero_()
    trading_network.fusion.query.copy_(4.0 * signs.view(2, 4))
    by_name = dict.fromkeys(trading_network.fusion.names, 0.0)
    for part in trading_network.explain(x, positions).parts:
        by_name[part.modality] += part.share
    assert by_name["volume"] > 0.99
    assert sum(by_name.values()) == pytest.approx(1.0)


def test_features_are_parted_by_their_names() -> None:
    names, modalities = schema("v2-1m").names, ["time", "price", "volume"]
    document = by_names({}, names)
    assert document["modalities"] == modalities
    of = [modalities[at] for at in document["columns"]]
    assert of[names.index("hour_sin")] == "time"
    assert of[names.index("volume_z")] == of[names.index("flow_" + names_of(names, "flow_"))]
    assert of[names.index("sigma_level")] == "price"
    kind = network_kinds()["trading"]
    assert kind.read({"features": len(names), **document}).groups.keys() == set(modalities)


def names_of(names: tuple[str, ...], start: str) -> str:
    return next(name for name in names if name.startswith(start)).removeprefix(start)


def test_modalities_without_their_columns_are_a_recipe_and_no_network() -> None:
    section = {"modalities": ["price", "time"], "columns": [0, 1, -1], "features": 3}
    kind = network_kinds()["trading"]
    recipe = recipe_of({"model": {"kind": "trading"}, "architecture": section})
    assert recipe.architecture == kind.read({**section, "columns": [], "dropout": 0.1})
    with pytest.raises(ConfigInvalid, match="gives the modality time no feature"):
        kind.make(recipe.architecture)
    assert TradingNetwork(kind.read(section)).fusion.names == ("price", "time")


def test_one_modality_alone_leaves_the_others_out() -> None:
    names = ("return_1", "volume_z", "hour_sin", "bid_share")
    assert by_names({"modalities": ["volume"]}, names)["columns"] == [-1, 0, -1, -1]
    assert by_names({}, names)["modalities"] == ["price", "volume", "time"]
    with pytest.raises(ConfigInvalid, match="modality vectors; leave it out, give --covariates"):
        by_names({"modalities": ["price", "vectors"]}, names)
    with pytest.raises(
        ConfigInvalid, match="--covariates is given, and the modalities leave it out"
    ):
        by_names({"modalities": ["price"]}, (*names, "vector_mood"))
    with pytest.raises(ConfigInvalid, match="names 'prices', the nearest is price"):
        by_names({"modalities": ["prices"]}, names)
