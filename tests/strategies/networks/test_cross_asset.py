"""The network over several assets: exact explanations, causality, order, and what it refuses."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from builders import present
from dense_attention import attention_matrix
from models import moved
from torch import Tensor

from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.networks.cross_asset import (
    JOINT,
    CrossAssetConfig,
    CrossAssetNetwork,
    CrossAttribution,
    CrossOutputs,
    PortfolioCosts,
    correlation_loss,
    correlations_of,
    portfolio_loss,
    weights_of,
)
from tracepaper.strategies.networks.encodings import Phases
from tracepaper.strategies.networks.flash import Block

SYMBOLS = ("AUSDT", "BUSDT", "CUSDT", "DUSDT")
FEATURES, TIME = 5, 11


def network_of(
    *, attention: str = "factorised", window: int = 4, allocation: bool = False, factors: int = 0
) -> CrossAssetNetwork:
    torch.manual_seed(3)
    network = CrossAssetNetwork(
        CrossAssetConfig(
            symbols=SYMBOLS,
            features=FEATURES,
            dim=16,
            heads=2,
            window=window,
            horizons=(2, 6),
            every=6,
            attention=attention,
            allocation=allocation,
            factors=factors,
        )
    )
    return moved(network).double()


def rows(time: int = TIME, *, assets: int = len(SYMBOLS)) -> Tensor:
    return torch.randn(
        1, assets, time, FEATURES, generator=torch.Generator().manual_seed(5)
    ).double()


def outputs_of(
    network: CrossAssetNetwork, x: Tensor, symbols: tuple[str, ...] = SYMBOLS
) -> CrossOutputs:
    with torch.inference_mode():
        outputs: CrossOutputs = network(x, network.config.places(symbols), torch.arange(x.shape[2]))
        return outputs


def rollout_of(
    network: CrossAssetNetwork, x: Tensor, *, residual: float = 0.5, start: int = 0
) -> CrossAttribution:
    with torch.inference_mode():
        places = network.config.places(SYMBOLS)
        method = Rollout(residual_weight=residual, start_layer=start)
        return network.explain(x, places, torch.arange(x.shape[2]), method)


def dense(
    network: CrossAssetNetwork, x: Tensor, *, residual: float = 0.5, start: int = 0
) -> Tensor:
    """Return the rollout [asset, asset, time] of the last bar with every matrix stored."""
    assets, time = x.shape[1:3]
    count = assets * time
    at = torch.arange(time)
    phases = network.encoding.phases(at)
    state = network.embed(x[0]) + network.asset(network.config.places(SYMBOLS))[:, None]
    whole = torch.eye(count, dtype=torch.float64)
    blocks: list[tuple[Block, str]] = []
    joint = network.config.attention == JOINT
    depths = [depth for depth in range(len(network.over_time)) for _ in range(1 if joint else 2)]
    for depth, block in enumerate(network.over_time):
        assert isinstance(block, Block)
        blocks.append((block, "tokens" if joint else "time"))
        if not joint:
            across = network.over_assets[depth]
            assert isinstance(across, Block)
            blocks.append((across, "assets"))
    for block, over in blocks:
        matrix = torch.zeros(count, count, dtype=torch.float64)
        places = torch.arange(count).view(assets, time)
        match over:
            case "time":
                groups = [
                    (places[i], phases, Mask.window(network.config.window)) for i in range(assets)
                ]
            case "assets":
                groups = [(places[:, t], Phases(), Mask.full()) for t in range(time)]
            case _:
                assert phases.cosine is not None
                assert phases.sine is not None
                every = Phases(
                    torch.cat([phases.cosine] * assets), torch.cat([phases.sine] * assets), None
                )
                groups = [(places.flatten(), every, Mask.full())]
        flat = state.reshape(count, -1)
        after = torch.empty_like(flat)
        for group, turned, mask in groups:
            query, key, value = block.project(flat[group][None], turned)
            probabilities = attention_matrix(query, key, mask)
            after[group] = block.finish(flat[group][None], probabilities @ value)[0]
            matrix[group[:, None], group[None, :]] = probabilities.mean(dim=1)[0]
        depth, state = depths.pop(0), after.view(assets, time, -1)
        if depth >= start:
            kept = torch.eye(count, dtype=torch.float64)
            whole = (residual * kept + (1 - residual) * matrix) @ whole
    last = torch.arange(assets) * time + time - 1
    return whole[last].view(assets, assets, time)


@pytest.mark.parametrize(("residual", "start"), [(0.5, 0), (0.8, 0), (0.5, 1)])
@pytest.mark.parametrize(
    ("attention", "window"), [("factorised", 4), ("factorised", 16), (JOINT, TIME)]
)
def test_a_rollout_is_that_of_every_matrix_stored(
    attention: str, window: int, residual: float, start: int
) -> None:
    network, x = network_of(attention=attention, window=window), rows()
    with torch.inference_mode():
        expected = dense(network, x, residual=residual, start=start)
    cross_look = rollout_of(network, x, residual=residual, start=start)
    assert (cross_look.weights - expected).abs().max() < 1e-13
    assert (cross_look.weights.sum(dim=(1, 2)) - 1.0).abs().max() < 1e-13
    assert (cross_look.influence.sum(dim=1) - 1.0).abs().max() < 1e-13
    assert cross_look.influence.std() > 0.01  # it is not even, so the order of its axes shows


def test_one_decided_asset_is_explained_as_all_are() -> None:
    network, x = network_of(), rows()
    with torch.inference_mode():
        decided = network.explain(
            x, network.config.places(SYMBOLS), torch.arange(TIME), decided=[2]
        )
    every = rollout_of(network, x)
    assert torch.allclose(decided.weights[0], every.weights[2], atol=1e-7)
    assert torch.allclose(decided.heads[0], every.heads[2])


def leaks(network: CrossAssetNetwork, *, changed: int, asset: int) -> bool:
    """Return whether a bar of *asset* at *changed* moves any answer before it."""
    x = rows()
    before = outputs_of(network, x).each.mean
    x[:, asset, changed] += 10.0
    after = outputs_of(network, x).each.mean
    assert not torch.equal(before[:, :, changed], after[:, :, changed])
    return not torch.equal(before[:, :, :changed], after[:, :, :changed])


def test_no_bar_of_another_asset_is_seen_before_it_closed() -> None:
    assert not leaks(network_of(), changed=6, asset=1)


@pytest.mark.parametrize("attention", ["factorised", JOINT])
def test_the_order_of_the_assets_means_nothing(attention: str) -> None:
    network, x = network_of(attention=attention, window=TIME, allocation=True), rows()
    order = (2, 0, 3, 1)
    straight = outputs_of(network, x)
    turned = outputs_of(network, x[:, order], tuple(SYMBOLS[i] for i in order))
    for first, second in zip(straight.each, turned.each, strict=True):
        if first is not None:
            assert second is not None
            assert torch.allclose(first[:, order], second, atol=1e-12)
    assert torch.allclose(straight.relative[:, order], turned.relative, atol=1e-12)
    assert turned.allocation is not None
    assert torch.allclose(present(straight.allocation)[:, order], turned.allocation, atol=1e-12)


def test_two_assets_of_equal_bars_differ_by_their_embedding_alone() -> None:
    network, x = network_of(), rows(assets=2)
    x[:, 1] = x[:, 0]
    outputs = outputs_of(network, x, SYMBOLS[:2]).each.mean
    assert not torch.allclose(outputs[:, 0], outputs[:, 1])
    with torch.no_grad():
        network.asset.weight[1] = network.asset.weight[0]
    together = outputs_of(network, x, SYMBOLS[:2]).each.mean
    assert torch.allclose(together[:, 0], together[:, 1], atol=1e-12)


def test_a_window_alone_gives_the_answer_of_a_longer_stretch() -> None:
    """An answer depends on the receptive field's bars, and on no bar before them."""
    network, x = network_of(window=3), rows()
    field = network.config.receptive_field
    assert field == 5
    whole = outputs_of(network, x).each.mean[:, :, -1]
    with torch.inference_mode():
        positions = torch.arange(TIME - field, TIME)
        cut = network(x[:, :, -field:], network.config.places(SYMBOLS), positions).each.mean
    assert torch.allclose(whole, cut[:, :, -1], atol=1e-12)


def test_a_symbol_without_an_embedding_is_named() -> None:
    with pytest.raises(ConfigInvalid, match="and not DOGEUSDT; train it with its candles"):
        network_of().config.places(("AUSDT", "DOGEUSDT"))


def test_rows_that_do_not_fit_are_refused() -> None:
    network = network_of(attention=JOINT, window=TIME)
    with pytest.raises(AttentionInvalid, match="windows of 11 bars, not 9"):
        outputs_of(network, rows(9))
    with pytest.raises(AttentionInvalid, match="Rows of 4 assets and 11 bars came with 3 assets"):
        outputs_of(network, rows(), SYMBOLS[:3])


def test_weights_are_within_one_and_costs_hold_a_portfolio_still() -> None:
    generator = torch.Generator().manual_seed(1)
    allocation = torch.rand(2, 4, 6, generator=generator, dtype=torch.float64) * 2 - 1
    weights = weights_of(allocation)
    assert float(weights.abs().sum(dim=1).max()) <= 1.0 + 1e-12
    gains = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64) * 0.01
    # By hand: what each decision earns, less what it costs to get there from the one before.
    total = 0.0
    for batch in range(2):
        for before, at in pairwise(range(6)):
            moved = (weights[batch, :, at] - weights[batch, :, before]).abs().sum()
            net = (weights[batch, :, at] * gains[batch, :, at]).sum() - 0.001 * moved
            total += float(0.5 * 0.2 * (net / 0.01) ** 2 - net / 0.01)
    tensor = portfolio_loss(allocation, gains, PortfolioCosts(fee=0.001, unit=0.01, aversion=0.2))
    assert float(tensor) == pytest.approx(total / 10, rel=1e-12)
    dear = portfolio_loss(allocation, gains, PortfolioCosts(fee=0.01, unit=0.01, aversion=0.2))
    still = portfolio_loss(
        allocation[..., :1].expand(-1, -1, 6), gains, PortfolioCosts(0.01, 0.01, 0.2)
    )
    free = portfolio_loss(
        allocation[..., :1].expand(-1, -1, 6), gains, PortfolioCosts(0.0, 0.01, 0.2)
    )
    assert float(dear) > float(tensor)
    assert float(still) == pytest.approx(float(free), rel=1e-12)


@pytest.mark.parametrize("factors", [1, 3])
def test_what_is_said_of_correlations_is_a_correlation_matrix_whatever_the_weights(
    factors: int,
) -> None:
    network = network_of(factors=factors)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)
    loadings = present(outputs_of(network, 5.0 * rows()).loadings)
    assert loadings.shape == (1, 4, TIME, 2, factors)
    pairs = correlations_of(loadings)[0]  # [pair, time, horizon]
    whole = torch.eye(4, dtype=pairs.dtype).expand(TIME, 2, 4, 4).clone()
    for place, (asset, other) in enumerate(combinations(range(4), 2)):
        whole[..., asset, other] = whole[..., other, asset] = pairs[place]
    assert torch.linalg.eigvalsh(whole).min() > -1e-12
    assert pairs.abs().max() <= 1.0
    assert pairs.std() > 0.05  # else nothing is shown


def test_correlations_do_not_depend_on_the_order_of_the_symbols() -> None:
    network, x = network_of(factors=2), rows()
    first = present(outputs_of(network, x).loadings)
    turned = present(outputs_of(network, x.flip(1), SYMBOLS[::-1]).loadings)
    assert torch.allclose(first, turned.flip(1), atol=1e-12)


def test_an_unknown_correlation_has_no_error_and_a_known_one_its_square() -> None:
    loadings = torch.tensor([[0.6], [0.8], [-0.5]])[None, :, None, None]  # of one bar and horizon
    realised = torch.tensor([0.5, torch.nan, 0.1])[None, :, None, None]
    losses = correlation_loss(loadings, realised)[0, 0, 0]
    assert losses[0] == pytest.approx((0.6 * 0.8 - 0.5) ** 2, abs=1e-6)
    assert losses[1] == 0.0
    assert losses[2] == pytest.approx((0.8 * -0.5 - 0.1) ** 2, abs=1e-6)
