"""The Informer network: shapes, its seed, its rollout, and what it refuses."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import rollout
from tracepaper.strategies.attention.probsparse import SparseRead, sample_keys
from tracepaper.strategies.networks.architecture import Trace
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork

torch.set_num_threads(1)
SMALL = InformerConfig(features=5, dim=16, layers=3, heads=2, window=61, factor=2)


def network(config: InformerConfig = SMALL, seed: int = 0) -> InformerNetwork:
    torch.manual_seed(seed)
    return InformerNetwork(config).eval()


def window(config: InformerConfig = SMALL, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(batch, config.window, config.features, generator=generator)


def test_time_is_halved_between_layers() -> None:
    assert SMALL.lengths == (61, 31, 16)
    times = [read.shape[3] for read in network().trace(window()).reads]
    assert times == [61, 61, 61, 31, 31, 31, 16]


@pytest.mark.parametrize(("bars", "factor"), [(49, 5), (50, 5), (61, 2), (128, 10), (128, 11)])
def test_what_hardly_saves_is_said(bars: int, factor: int) -> None:
    config = InformerConfig(**(asdict(SMALL) | {"window": bars, "factor": factor}))
    first = network(config).trace(window(config)).reads[0]
    assert isinstance(first, SparseRead)
    saves_little = first.active.shape[-1] / bars > 0.4
    assert [note.split()[0] for note in config.notes] == (
        [str(first.active.shape[-1])] if saves_little else []
    )


def test_another_sampling_seed_is_another_function() -> None:
    long = InformerConfig(**(asdict(SMALL) | {"window": 400, "factor": 1}))
    other = InformerConfig(**(asdict(long) | {"seed": 1}))
    assert not torch.equal(network(long)(window(long)).mean, network(other)(window(long)).mean)


def test_the_decided_row_attends_in_every_layer_and_head() -> None:
    for read in network().trace(window()).reads:
        if isinstance(read, SparseRead):
            assert bool((read.active == read.shape[2] - 1).any(dim=-1).all())


@pytest.mark.parametrize("distil", [True, False])
def test_the_last_layer_is_computed_of_the_decided_bar_alone(distil: bool) -> None:
    config = InformerConfig(**(asdict(SMALL) | {"distil": distil}))
    model = network(config).double()
    x = window(config).double()
    drawn = sample_keys(config.lengths[-1], Mask.full(), factor=config.factor, seed=9)
    kept = Trace()
    state = model.embed(x) + model.get_buffer("place")
    for depth, block in enumerate(model.blocks):
        if depth and distil:
            state = model.distillings[depth - 1](state, kept)
        is_last = depth == config.layers - 1
        state = block(state, drawn if is_last else model.get_buffer(f"keys_{depth}"), kept)
    whole = state  # every row, ranked
    trace = model.trace(x)
    outputs, reads = trace.outputs, trace.reads
    wanted = model.heads(model.norm(whole[:, -1:]))
    torch.testing.assert_close(outputs.mean, wanted.mean, rtol=0, atol=1e-12)
    top = [config.lengths[-1] - 1]
    bars, other = (rollout(each, top).weights["tokens"] for each in (reads, kept.reads))
    torch.testing.assert_close(bars, other, rtol=0, atol=1e-6)
    ranked, alone = kept.reads[-1], reads[-1]
    torch.testing.assert_close(ranked.confidence(top), alone.confidence(top), rtol=0, atol=1e-12)
