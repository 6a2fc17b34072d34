"""A stream that explains by another method than the usual: against whole float64 matrices."""

from __future__ import annotations

from dataclasses import replace

import builders
import models
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies.attention import reference
from tracepaper.strategies.attention.layer import Layer, value_norms
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.attention.time_buckets import bucket_count
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.forecasters.build import RunOptions, build
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.networks.flash import FlashNetwork
from tracepaper.strategies.networks.stream import (
    CHUNK_BARS,
    Advance,
    StreamingNetwork,
    StreamState,
    stream_bytes,
)

torch.set_num_threads(1)

START = 29_000_017  # a position in the middle of a block
HEADS = ((1.0, 0.0), (0.25, 0.75), (0.5, 0.5))
NAME = "linear:BTCUSDT"
WAYS = {
    "as usual": Rollout(),
    "residual": Rollout(residual_weight=0.2),
    "max": Rollout(fusion="max", residual_weight=0.3),
    "min": Rollout(fusion="min"),
    "heads": Rollout(head_weights=HEADS, start_layer=1),
    "upper layers": Rollout(fusion="max", start_layer=2),
    "norm": Rollout(fusion="norm"),
    "norm above": Rollout(fusion="norm", residual_weight=0.1, start_layer=1),
}


def rows(time: int, *, seed: int = 1) -> Tensor:
    return torch.randn(time, 78, generator=torch.Generator().manual_seed(seed))


def bucketed(net: FlashNetwork, x: Tensor, positions: NDArray[np.int64], method: Rollout) -> Tensor:
    """Return every bar's rollout in 64-bar blocks, of whole float64 matrices."""
    net = net.double()
    with torch.no_grad():
        traces = net.trace(x[None].double(), torch.from_numpy(positions)).attending
    time, rho = len(x), method.residual_weight
    eye = torch.eye(time, dtype=torch.float64)
    rollout = eye
    for depth, (layer, block) in enumerate(zip(traces, net.layers(), strict=True)):
        if depth < method.start_layer:
            continue
        assert isinstance(layer, Layer)
        assert layer.value is not None
        matrix = reference.layer_matrix(layer)[0]  # [1, head, N, N]
        if method.name == "norm":
            value = layer.value[..., : net.config.head_dim]
            fused = (matrix * value_norms(value, block.project_out.weight)[:, :, None]).mean(1)[0]
            fused = fused / fused.sum(-1, keepdim=True)
        else:
            given = method.head_weights
            share = torch.tensor([0.5, 0.5] if given is None else HEADS[depth]).double()
            fused = reference.fuse(matrix, method.fusion, share)[0]
        mixed = rho * eye + (1.0 - rho) * fused
        rollout = (mixed / mixed.sum(-1, keepdim=True)) @ rollout
    buckets = bucket_count(net.config.receptive_field)
    back = np.minimum(positions[:, None] // 64 - positions[None, :] // 64, buckets)
    columns = torch.zeros(time, buckets + 1, dtype=torch.float64)
    return columns.scatter_add_(1, torch.from_numpy(back).clamp_min(0), rollout.detach())


def feed(
    net: FlashNetwork,
    method: Rollout,
    x: Tensor,
    positions: NDArray[np.int64],
    portions: list[int],
) -> NDArray[np.float32]:
    """Take in all rows by the given portions, again and again; a portion of 0 is a single step."""
    stream = StreamingNetwork(net, method)
    state = StreamState(net, by_norm=method.name == "norm")
    told: list[Advance] = []
    done = turn = 0
    while done < len(x):
        portion = portions[turn % len(portions)]
        part = slice(done, done + max(portion, 1))
        told.append(stream.advance(state, x[None, part], positions[None, part], padded=portion > 0))
        done += told[-1].rollout.shape[1]
        turn += 1
    return np.concatenate([part.rollout[0] for part in told])


@pytest.mark.parametrize("method", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("encoding", ["rope", "alibi"])
def test_every_bar_in_a_stream_equals_the_matrices(method: Rollout, encoding: str) -> None:
    net = models.network(replace(models.SMALL, encoding=encoding, window=30))
    x, positions = rows(260), np.arange(START, START + 260)
    found = feed(net, method, x, positions, [0, 1, 37, 0, 150])
    wanted = bucketed(net, x, positions, method)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=2e-6)


def test_streams_beside_each_other_are_explained_as_each_alone() -> None:
    net, method = models.network(replace(models.SMALL, window=30)), WAYS["norm"]
    positions = np.arange(START, START + 100)
    x = torch.stack([rows(100, seed=seed) for seed in range(3)])
    state = StreamState(net, 3, by_norm=True)
    stream = StreamingNetwork(net, method)
    for at in range(100):
        part = np.tile(positions[at : at + 1], (3, 1))
        last = stream.advance(state, x[:, at : at + 1], part, streams=range(3)).rollout
    alone = [feed(net, method, one, positions, [CHUNK_BARS])[-1] for one in x]
    np.testing.assert_allclose(last[:, 0], np.stack(alone), rtol=0, atol=1e-6)


def made_forecaster(method: Rollout) -> StreamingForecaster:
    made = build(
        models.card(), models.network().state_dict(), RunOptions(method=method, backend="tiles")
    )
    assert isinstance(made, StreamingForecaster)
    return made


@pytest.mark.parametrize("named", ["max", "heads", "norm above"])
def test_the_attribution_of_a_decision_sums_to_what_is_stored(named: str) -> None:
    made = made_forecaster(WAYS[named])
    bars = builders.bars(made.context + 30, seed=5)
    made.warm(NAME, bars[:-1])
    answer = made.step(bars[-1])
    assert answer is not None
    assert answer.explanation is not None
    found = made.explain(NAME)
    assert sum(found.weights) == pytest.approx(1.0, abs=1e-6)
    blocks = np.array(found.open_time_ms) // (60_000 * 64)
    sums = np.bincount(blocks[-1] - blocks, weights=found.weights)
    kept = np.frombuffer(answer.explanation.buckets, "<f4")[: len(sums)]
    np.testing.assert_allclose(sums, kept, rtol=0, atol=1e-6)
    usual = made_forecaster(Rollout())
    usual.warm(NAME, bars[:-1])
    other = usual.step(bars[-1])
    assert other is not None
    assert other.explanation is not None
    assert other.mean_return == answer.mean_return  # explained otherwise, and no other forecast
    assert other.explanation.entropy == answer.explanation.entropy
    assert other.explanation.buckets != answer.explanation.buckets


@pytest.mark.parametrize(
    ("method", "error", "sentence"),
    [
        (
            Rollout(fusion="gradient"),
            ConfigInvalid,
            "cannot store where every bar looked by gradient",
        ),
        (Rollout(fusion="flow"), ConfigInvalid, "ask `explain --method flow` for one decision"),
        (
            Rollout(discard_ratio=0.1),
            ConfigInvalid,
            "set discard to 0",
        ),
        (
            Rollout(start_layer=3),
            AttentionInvalid,
            "choose 0 to 2",
        ),
        (
            Rollout(head_weights=(1.0,)),
            AttentionInvalid,
            "Give 2 head weights",
        ),
    ],
)
def test_what_no_stream_can_store_is_refused(
    method: Rollout, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        made_forecaster(method)


def test_the_norms_that_are_kept_are_counted() -> None:
    usual, more = stream_bytes(models.SMALL), stream_bytes(models.SMALL, by_norm=True)
    state = StreamState(models.network(), by_norm=True)
    norms = [layer.lengths for layer in state.layers]
    kept = sum(ring.rows.nbytes for ring in norms if ring is not None)
    kept += state.history[0].rows[..., -1].nelement() * 4
    assert more - usual == kept
