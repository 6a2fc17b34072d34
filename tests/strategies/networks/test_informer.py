"""The Informer network: shapes, its seed, its rollout, and what it refuses."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import rollout
from tracepaper.strategies.attention.probsparse import (
    SparseRead,
    sample_keys,
)
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork
from tracepaper.strategies.networks.informer_decoder import Kept

torch.set_num_threads(1)
SMALL = InformerConfig(features=5, dim=16, layers=3, heads=2, window=61, factor=2)


def network(config: InformerConfig = SMALL, seed: int = 0) -> InformerNetwork:
    torch.manual_seed(seed)
    return InformerNetwork(config).eval()


def window(config: InformerConfig = SMALL, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(batch, config.window, config.features, generator=generator)


def test_one_window_gives_one_forecast_a_horizon() -> None:
    outputs = network()(window())
    assert outputs.mean.shape == (2, 1, 3)
    assert outputs.direction_logits.shape == (2, 1, 3, 3)
    assert outputs.allocation is None


def test_time_is_halved_between_layers() -> None:
    assert SMALL.lengths == (61, 31, 16)
    times = [read.shape[3] for read in network().trace(window()).reads]
    assert times == [61, 61, 61, 31, 31, 31, 16]


def test_one_window_gives_one_answer_bit_for_bit() -> None:
    first, again = network()(window()), network()(window())
    assert torch.equal(first.mean, again.mean)


def test_another_sampling_seed_is_another_function() -> None:
    long = InformerConfig(**(asdict(SMALL) | {"window": 400, "factor": 1}))
    other = InformerConfig(**(asdict(long) | {"seed": 1}))
    assert not torch.equal(network(long)(window(long)).mean, network(other)(window(long)).mean)


def test_the_decided_row_attends_in_every_layer_and_head() -> None:
    for read in network().trace(window()).reads:
        if isinstance(read, SparseRead):
            assert bool((read.of.active == read.shape[2] - 1).any(dim=-1).all())


@pytest.mark.parametrize("distil", [True, False])
def test_the_last_layer_is_computed_of_the_decided_bar_alone(distil: bool) -> None:
    config = InformerConfig(**(asdict(SMALL) | {"distil": distil}))
    made = network(config).double()
    x = window(config).double()
    kept = Kept()
    state = made._enter(x, None)  # noqa: SLF001 - layer by layer
    for depth in range(config.layers - 1):
        state = made._layer(depth, state, kept)  # noqa: SLF001
    if distil:
        state = made.distillings[-1](state, kept)
    keys = sample_keys(config.lengths[-1], Mask.full(), factor=config.factor, seed=9)
    whole = made.blocks[-1](state, keys, kept)  # every row, ranked
    seen = made.trace(x)
    outputs, reads = seen.outputs, seen.reads
    wanted = made.heads(made.norm(whole[:, -1:]))
    torch.testing.assert_close(outputs.mean, wanted.mean, rtol=0, atol=1e-12)
    top = [config.lengths[-1] - 1]
    one, other = (rollout(each, top).weights["bars"] for each in (reads, kept.reads))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    ranked, alone = kept.reads[-1], reads[-1]
    torch.testing.assert_close(ranked.confidence(top), alone.confidence(top), rtol=0, atol=1e-12)


@pytest.mark.parametrize("distil", [True, False])
def test_the_rollout_of_a_forecast_covers_the_window(distil: bool) -> None:
    config = InformerConfig(**(asdict(SMALL) | {"distil": distil}))
    seen = network(config).trace(window(config))
    torch.testing.assert_close(seen.outputs.mean, network(config)(window(config)).mean)
    top = config.lengths[-1] - 1
    weights = rollout(seen.reads, [top]).weights["bars"]
    assert weights.shape == (2, 1, 61)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 1))
    assert float(weights.min()) >= 0.0


def test_every_weight_learns() -> None:
    made = network().train()
    outputs = made(window())
    loss = outputs.mean.sum() + outputs.log_scale.sum() + outputs.direction_logits[..., 0].sum()
    (loss + outputs.dof.sum() + outputs.log_variance.sum()).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_sampled_keys_are_not_weights() -> None:
    assert not any(name.startswith("keys") for name in network().state_dict())


def test_the_states_are_named_in_order() -> None:
    names = [name for name, _ in network().named_states(window())]
    assert names[:4] == ["embed", "blocks.0", "blocks.1", "blocks.2"]
    assert "heads.mean" in names


def test_a_window_of_another_length_is_refused() -> None:
    with pytest.raises(AttentionInvalid, match="windows of 61 bars, not 60"):
        network()(window()[:, 1:])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"window": 0}, "architecture.window must be a whole number from 1"),
        ({"heads": 3}, "a multiple of the heads"),
        ({"dropout": 1.0}, "below 1"),
        ({"dropout": 7.0}, "dropout must be a number from 0 to 1"),
        ({"horizons": []}, "horizons must list"),
        ({"sead": 3}, "architecture.sead is unknown"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused(
    change: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        InformerConfig.read(asdict(SMALL) | change)


def test_a_card_reads_back_as_the_same_architecture() -> None:
    section = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(SMALL).items()}
    assert InformerConfig.read(section) == SMALL
