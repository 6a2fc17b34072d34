"""The ring equals the batch: outputs, entropies and rollouts against the materialised matrices."""

from __future__ import annotations

from dataclasses import replace

import builders
import dense_attention as reference
import models
import numpy as np
import pytest
import torch
from builders import present
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.storage.checkpoints import bundled, read_card
from tracepaper.strategies.attention.layer import Layer, value_norms
from tracepaper.strategies.attention.methods import PLAIN, Rollout
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid, InvariantBroken
from tracepaper.strategies.forecasters.build import RunOptions, build
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.stream import (
    CHUNK_BARS,
    Advance,
    StreamingNetwork,
    StreamState,
    stream_bytes,
)
from tracepaper.strategies.time_buckets import bucket_count, weights_of

START = 29_000_017  # a position in the middle of a block
HEADS = ((1.0, 0.0), (0.25, 0.75), (0.5, 0.5))
WAYS = {
    "residual": Rollout(residual_weight=0.2),
    "max": Rollout(fusion="max", residual_weight=0.3),
    "min": Rollout(fusion="min"),
    "heads": Rollout(head_weights=HEADS, start_layer=1),
    "upper layers": Rollout(fusion="max", start_layer=2),
    "norm": Rollout(fusion="norm"),
    "norm above": Rollout(fusion="norm", residual_weight=0.1, start_layer=1),
}


ENCODINGS = ["rope", "alibi", "sinusoidal", "learned", "none"]


def rows(time: int, *, seed: int = 1) -> Tensor:
    return torch.randn(time, 78, generator=torch.Generator().manual_seed(seed))


def feed(
    net: FlashNetwork,
    x: Tensor,
    positions: NDArray[np.int64],
    portions: list[int],
    state: StreamState | None = None,
    method: Rollout = PLAIN,
) -> tuple[Tensor, Tensor, NDArray[np.float32], StreamState]:
    """Take in all rows by the given portions, again and again; a portion of 0 is a single step."""
    stream = StreamingNetwork(net, method)
    state = StreamState(net, by_norm=method.fusion == "norm") if state is None else state
    steps: list[Advance] = []
    done = turn = 0
    while done < len(x):
        portion = portions[turn % len(portions)]
        part = slice(done, done + max(portion, 1))
        steps.append(
            stream.advance(state, x[None, part], positions[None, part], padded=portion > 0)
        )
        done += steps[-1].rollout.shape[1]
        turn += 1
    return (
        torch.cat([part.outputs.mean[0] for part in steps]),
        torch.cat([part.confidence[0] for part in steps]),
        np.concatenate([part.rollout[0] for part in steps]),
        state,
    )


def dense(
    net: FlashNetwork, x: Tensor, positions: NDArray[np.int64], method: Rollout = PLAIN
) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
    """Return outputs, confidences and bucketed rollout rows from whole float64 matrices."""
    with torch.no_grad():
        trace = net.trace(x[None], torch.from_numpy(positions))
    time, rho = len(x), method.residual_weight
    eye = rollout = torch.eye(time, dtype=torch.float64)
    visible = torch.arange(1, time + 1).clamp(max=net.config.window)
    confidences = []
    for depth, (layer, block) in enumerate(zip(trace.attending, net.layers(), strict=True)):
        assert isinstance(layer, Layer)
        matrix = reference.layer_matrix(layer)[0]  # [1, head, N, N]
        confidence = 1.0 - torch.special.entr(matrix[0]).sum(-1) / visible.double().log()
        confidence[:, 0] = 0.0
        confidences.append(confidence)
        if depth < method.start_layer:
            continue
        if method.fusion == "norm":
            value = present(layer.value)[..., : net.config.head_dim]
            lengths = value_norms(value, block.project_out.weight).double()
            fused = (matrix * lengths[:, :, None]).mean(1)[0]
            fused = fused / fused.sum(-1, keepdim=True)
        else:
            share = torch.tensor([0.5, 0.5] if method.head_weights is None else HEADS[depth])
            fused = reference.fuse(matrix, method.fusion, share.double())[0]
        mixed = rho * eye + (1.0 - rho) * fused
        rollout = (mixed / mixed.sum(-1, keepdim=True)) @ rollout
    buckets = bucket_count(net.config.receptive_field)
    back = np.minimum(positions[:, None] // 64 - positions // 64, buckets)
    columns = torch.zeros(time, buckets + 1, dtype=torch.float64)
    columns.scatter_add_(1, torch.from_numpy(back).clamp_min(0), rollout.detach())
    confidence = torch.stack(confidences).permute(2, 0, 1)
    return trace.outputs.mean[0], confidence.detach(), columns.numpy()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("portions", "window"),  # shorter and longer than a tile
    [([0], 50), ([CHUNK_BARS], 50), ([CHUNK_BARS], 190), ([0, 1, 37, 0, 200], 190)],
)
def test_ring_and_chunks_equal_the_matrices(
    encoding: str, portions: list[int], window: int
) -> None:
    net = models.network(replace(models.SMALL, encoding=encoding, window=window))
    x, positions = rows(700), np.arange(START, START + 700)
    mean, confidence, rollout, _ = feed(net, x, positions, portions)
    wanted, wanted_confidence, wanted_rollout = dense(net, x, positions)
    assert (mean - wanted).abs().max() <= 1e-4 * wanted.std()
    torch.testing.assert_close(confidence, wanted_confidence, rtol=0, atol=2e-5, check_dtype=False)
    np.testing.assert_allclose(rollout, wanted_rollout, rtol=0, atol=1e-6)


@pytest.mark.parametrize("portions", [[0], [CHUNK_BARS]])
def test_a_gated_network_and_its_clocks_stream_as_the_matrices_say(portions: list[int]) -> None:
    config = replace(
        models.SMALL, gated=True, clock=("sessions", "halving"), window=50,
        volatility_gate="sigma_level", volatility_column=5,
    )  # fmt: skip
    net = models.network(config)
    for block in net.layers():
        assert block.key_gate is not None
        torch.nn.init.normal_(
            present(block.gate).weight, generator=torch.Generator().manual_seed(5)
        )
    x, positions = rows(300), np.arange(START, START + 300)
    mean, confidence, rollout, _ = feed(net, x, positions, portions)
    wanted, wanted_confidence, wanted_rollout = dense(net, x, positions)
    assert (mean - wanted).abs().max() <= 1e-4 * wanted.std()
    torch.testing.assert_close(confidence, wanted_confidence, rtol=0, atol=2e-5, check_dtype=False)
    np.testing.assert_allclose(rollout, wanted_rollout, rtol=0, atol=1e-6)


BUNDLED = {
    name: replace(FlashConfig.read(read_card(bundled()[name])["architecture"]), window=50)
    for name in ("flash-1m", "flash-15m")
}
GATED = replace(
    models.SMALL, gated=True, mlp="gated", volatility_gate="sigma_level", volatility_column=5
)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "config", [*BUNDLED.values(), GATED, replace(models.SMALL, norm="post", encoding="alibi")]
)
def test_a_stream_computes_to_the_bit_what_its_modules_do(
    config: FlashConfig, threads: int
) -> None:
    net = models.network(config)
    x, positions = torch.randn(60, config.features), np.arange(START, START + 60)[None]
    stream, slow, before = StreamingNetwork(net), StreamingNetwork(net), torch.get_num_threads()
    slow.network = net
    states = StreamState(net), StreamState(net)
    torch.set_num_threads(threads)
    try:
        for part in (slice(0, 57), slice(57, 58), slice(58, 59)):
            given_ = x[None, part], positions[:, part]
            advanced, wanted = (
                each.advance(state, *given_, padded=part.start == 0)
                for each, state in zip((stream, slow), states, strict=True)
            )
            for tensor, of_modules in zip(advanced.outputs, wanted.outputs, strict=True):
                assert tensor is of_modules is None or torch.equal(
                    present(tensor), present(of_modules)
                )
            assert torch.equal(advanced.confidence, wanted.confidence)
            assert np.array_equal(advanced.rollout, wanted.rollout)
            with torch.no_grad():
                present(net.heads).project.weight.mul_(1.5)  # weights are shared
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    holes=st.lists(st.sampled_from([1, 1, 1, 1, 2, 70, 400, 20_000]), min_size=160, max_size=160),
    window=st.integers(1, 40),
)
def test_holes_in_time_leave_empty_buckets_and_older_mass(holes: list[int], window: int) -> None:
    net = models.network(replace(models.SMALL, window=window))
    positions = np.cumsum(np.array(holes, dtype=np.int64)) + START
    x = rows(len(positions))
    stepped = feed(net, x, positions, [0])
    chunked = feed(net, x, positions, [CHUNK_BARS])
    _, _, wanted = dense(net, x, positions)
    np.testing.assert_allclose(stepped[2], wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(chunked[2], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_stream_warmed_with_the_receptive_field_equals_the_endless_one(encoding: str) -> None:
    net = models.network(replace(models.SMALL, encoding=encoding))
    x, positions = rows(900), np.arange(START, START + 900)
    endless = feed(net, x, positions, [CHUNK_BARS])
    start = 900 - net.config.receptive_field
    warmed = feed(net, x[start:], positions[start:], [0])
    assert (endless[0][-1] - warmed[0][-1]).abs().max() <= 1e-4 * endless[0].std()
    np.testing.assert_allclose(endless[2][-1], warmed[2][-1], rtol=0, atol=1e-6)


def test_one_bar_less_than_the_receptive_field_is_not_enough() -> None:
    net = models.network(replace(models.SMALL, window=5))
    x, positions = rows(100), np.arange(START, START + 100)
    endless = feed(net, x, positions, [0])[0][-1]
    start = 100 - net.config.receptive_field + 1
    short = feed(net, x[start:], positions[start:], [0])[0][-1]
    assert (endless - short).abs().max() > 1e-5


@pytest.mark.parametrize("cut", [1, 2, 63, 64, 65, 300, CHUNK_BARS, CHUNK_BARS + 1, 650])
def test_a_cut_or_corrupted_future_changes_no_bit(cut: int) -> None:
    net = models.network()
    x, positions = rows(700), np.arange(START, START + 700)
    whole = feed(net, x, positions, [CHUNK_BARS])
    prefix = feed(net, x[:cut], positions[:cut], [CHUNK_BARS])
    corrupt = x.clone()
    corrupt[cut:] = -1e4
    other = feed(net, corrupt, positions, [CHUNK_BARS])
    for changed in (prefix, other):
        assert torch.equal(changed[0][:cut], whole[0][:cut])
        assert torch.equal(changed[1][:cut], whole[1][:cut])
        np.testing.assert_array_equal(changed[2][:cut], whole[2][:cut])


def test_a_cleared_state_starts_anew() -> None:
    net = models.network()
    x, positions = rows(250), np.arange(START, START + 250)
    first = feed(net, x, positions, [CHUNK_BARS])
    first[3].clear()
    second = feed(net, x, positions, [CHUNK_BARS], state=first[3])
    assert torch.equal(first[0], second[0])
    np.testing.assert_array_equal(first[2], second[2])


def test_a_row_that_loses_mass_stops_the_run() -> None:
    net = models.network()
    stream, state = StreamingNetwork(net), StreamState(net)
    x, positions = rows(2), np.arange(START, START + 2)
    stream.advance(state, x[None, :1], positions[None, :1])
    state.layers[1].rollout.rows.mul_(0.5)
    with pytest.raises(InvariantBroken, match="A row of the rollout sums to"):
        stream.advance(state, x[None, 1:], positions[None, 1:])


@pytest.mark.parametrize("broken", [(), (0,), (1,)])
def test_a_nan_passes_and_hides_no_row_that_loses_mass(broken: tuple[int, ...]) -> None:
    net = models.network()
    stream, state = StreamingNetwork(net), StreamState(net, 2)
    x, positions = rows(2), np.array([[START], [START]])
    first = stream.advance(state, x[:, None], positions, streams=(0, 1))
    assert np.isfinite(first.rollout).all()
    for number in range(2):
        state.layers[1].rollout.rows[number].mul_(0.5 if number in broken else np.nan)
    if not broken:
        passed = stream.advance(state, x[:, None], positions + 1, streams=(0, 1))
        assert np.isnan(passed.rollout).any()
        return
    with pytest.raises(InvariantBroken, match="A row of the rollout sums to"):
        stream.advance(state, x[:, None], positions + 1, streams=(0, 1))


def test_a_network_that_looks_ahead_cannot_stream() -> None:
    with pytest.raises(ConfigInvalid, match="Only a network with a causal window can stream"):
        StreamingNetwork(models.network(replace(models.SMALL, mask="full")))


def test_a_context_too_long_to_keep_is_said_so() -> None:
    net = models.network(replace(models.SMALL, window=40_000, layers=2, dim=2, heads=1))
    stream, state = StreamingNetwork(net), StreamState(net)
    stream.advance(state, rows(1)[None], np.array([[START]]))
    with pytest.raises(InvariantBroken, match="longer than the 65536 kept"):
        stream.history(state)


def held_bytes(state: StreamState) -> int:
    """Return what the rings of *state* hold in memory."""
    rings = [state.places, *(ring for layer in state.layers for ring in layer if ring)]
    rows = [ring.rows for ring in rings]
    history = [ring.rows for ring in (*state.history, *state.positions)]
    return sum(part.numel() * part.element_size() for part in (*rows, *history))


@pytest.mark.parametrize("window", [1, 50, 1_088, 5_000])
def test_the_memory_of_a_stream_is_known_before_it_is_allocated(window: int) -> None:
    config = replace(models.SMALL, window=window)
    held = held_bytes(StreamState(models.network(config)))
    single, two, three = (stream_bytes(config, instruments=count) for count in (1, 2, 3))
    assert three - two == two - single == held
    assert held_bytes(StreamState(models.network(config), streams=3)) == 3 * held
    assert single > held


@pytest.mark.parametrize("encoding", ["rope", "alibi"])
@pytest.mark.parametrize("portions", [[CHUNK_BARS], [0, 5, 70, 0, 200]])
def test_chunks_of_several_streams_equal_each_alone(encoding: str, portions: list[int]) -> None:
    """Of different ages, out of order, and with a stream between them that has no part in it."""
    net = models.network(replace(models.SMALL, encoding=encoding, window=190))
    ages, chosen = [300, 0, 40], (3, 0, 1)
    x = [rows(ages[i] + 600, seed=i) for i in range(3)]
    positions = [np.arange(START + 1000 * i, START + 1000 * i + len(x[i])) for i in range(3)]
    alone = [feed(net, x[i], positions[i], [CHUNK_BARS]) for i in range(3)]
    stream, state = StreamingNetwork(net), StreamState(net, streams=4)
    for i, place in enumerate(chosen):
        if ages[i]:
            part = slice(0, ages[i])
            stream.advance(
                state, x[i][None, part], positions[i][None, part], streams=[place], padded=True
            )
    done = turn = 0
    while done < 600:
        portion = portions[turn % len(portions)]
        part = slice(done, min(done + max(portion, 1), 600))
        advance = stream.advance(
            state,
            torch.stack([x[i][ages[i] :][part] for i in range(3)]),
            np.stack([positions[i][ages[i] :][part] for i in range(3)]),
            streams=chosen,
            padded=portion > 0,
        )
        for i in range(3):
            at = slice(ages[i] + part.start, ages[i] + part.stop)
            scale = alone[i][0].std()
            assert (advance.outputs.mean[i] - alone[i][0][at]).abs().max() <= 1e-4 * scale
            torch.testing.assert_close(advance.confidence[i], alone[i][1][at], rtol=0, atol=1e-5)
            np.testing.assert_allclose(advance.rollout[i], alone[i][2][at], rtol=0, atol=1e-6)
        done, turn = part.stop, turn + 1
    assert state.counts == [600, 640, 0, 900]


# ---------------------------------------------------------------- by another method

NAME = "linear:BTCUSDT"


@pytest.mark.parametrize("method", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("encoding", ["rope", "alibi"])
def test_every_bar_in_a_stream_equals_the_matrices(method: Rollout, encoding: str) -> None:
    net = models.network(replace(models.SMALL, encoding=encoding, window=30))
    x, positions = rows(260), np.arange(START, START + 260)
    _, _, rollouts, _ = feed(net, x, positions, [0, 1, 37, 0, 150], method=method)
    _, _, wanted = dense(net, x, positions, method)
    np.testing.assert_allclose(rollouts, wanted, rtol=0, atol=2e-6)


def test_streams_beside_each_other_are_explained_as_each_alone() -> None:
    net, method = models.network(replace(models.SMALL, window=30)), WAYS["norm"]
    positions = np.arange(START, START + 100)
    x = torch.stack([rows(100, seed=seed) for seed in range(3)])
    state = StreamState(net, 3, by_norm=True)
    stream = StreamingNetwork(net, method)
    for at in range(100):
        part = np.tile(positions[at : at + 1], (3, 1))
        last = stream.advance(state, x[:, at : at + 1], part, streams=range(3)).rollout
    alone = [feed(net, window, positions, [CHUNK_BARS], method=method)[2][-1] for window in x]
    np.testing.assert_allclose(last[:, 0], np.stack(alone), rtol=0, atol=1e-6)


def made_forecaster(method: Rollout) -> StreamingForecaster:
    forecaster = build(
        models.card(), models.network().state_dict(), RunOptions(method=method, backend="tiles")
    )
    assert isinstance(forecaster, StreamingForecaster)
    return forecaster


@pytest.mark.parametrize("named", ["max", "heads", "norm above"])
def test_the_attribution_of_a_decision_sums_to_what_is_stored(named: str) -> None:
    forecaster = made_forecaster(WAYS[named])
    bars = builders.bars(forecaster.context + 30, seed=5)
    forecaster.warm(NAME, bars[:-1])
    answer = present(forecaster.step(bars[-1]))
    assert answer.explanation is not None
    attribution = forecaster.explain(NAME)
    assert sum(attribution.weights) == pytest.approx(1.0, abs=1e-6)
    blocks = np.array(attribution.open_time_ms) // (60_000 * 64)
    sums = np.bincount(blocks[-1] - blocks, weights=attribution.weights)
    kept = weights_of(answer.explanation.buckets)[: len(sums)]
    np.testing.assert_allclose(sums, kept, rtol=0, atol=1e-6)
    usual = made_forecaster(Rollout())
    usual.warm(NAME, bars[:-1])
    other = present(usual.step(bars[-1]))
    assert other.mean_return == answer.mean_return  # explained otherwise, and no other forecast
    assert present(other.explanation).entropy == answer.explanation.entropy
    assert present(other.explanation).buckets != answer.explanation.buckets


@pytest.mark.parametrize(
    ("method", "error", "sentence"),
    [
        (
            Rollout(fusion="gradient"),
            ConfigInvalid,
            "cannot store the attention of every bar by gradient",
        ),
        (Rollout(fusion="flow"), ConfigInvalid, "ask `explain --method flow` for one decision"),
        (Rollout(discard_ratio=0.1), ConfigInvalid, "set discard to 0"),
        (Rollout(start_layer=3), AttentionInvalid, "choose 0 to 2"),
        (Rollout(head_weights=(1.0,)), AttentionInvalid, "Give 2 head weights"),
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
