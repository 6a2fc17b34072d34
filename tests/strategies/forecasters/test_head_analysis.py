"""What heads do, read from any network that attends, against matrices that are stored whole."""

from __future__ import annotations

import builders
import models
import numpy as np
import pytest
import torch
from dense_attention import dense_rows
from torch import Tensor

from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.attention.probsparse import MapRead, SparseRead
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.forecasters.attribution import (
    DECISIONS,
    flow_down,
    head_activity,
    map_of,
    rollout_map,
)
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.networks.architecture import LayerAttribution
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork

torch.set_num_threads(1)
EDGES = (0, 16, 64)
WINDOWED = InformerConfig(features=5, dim=16, layers=3, heads=2, window=61, factor=2)


def window(bars: int, features: int) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(1, bars, features, generator=generator)


def dense(taps: MapRead) -> Tensor:
    """Return the whole matrix [position above, position below] of a map of time."""
    above = taps.shares.shape[1]
    matrix = torch.zeros(above, taps.bars + 2)
    for row in range(above):
        for tap in range(3):
            matrix[row, taps.stride * row + tap] += taps.shares[0, row, tap]
    return matrix[:, 1:-1]


def test_an_informer_s_heads_are_the_last_rows_of_its_matrices_carried_to_bars() -> None:
    network: InformerNetwork = models.informer(WINDOWED)
    x = window(WINDOWED.window, WINDOWED.features)
    looks = network.attribution_by_layer(x, torch.arange(WINDOWED.window))
    assert [len(look.age) for look in looks] == [61, 31, 16]
    to_bars = torch.eye(WINDOWED.window)
    for layer in range(3):
        attended, *maps = reversed(network.trace(x).reads[: 1 + 3 * layer])
        for read in reversed(maps[:2]):
            assert isinstance(read, MapRead)
            to_bars = dense(read) @ to_bars
        assert isinstance(attended, SparseRead)
        matrix = dense_rows(attended)[0]  # [head, position, position]
        assert looks[layer].rows == pytest.approx(matrix[:, -1] @ to_bars, abs=1e-6)
        mixed = 0.5 * torch.eye(len(looks[layer].age)) + 0.5 * matrix.mean(dim=0)
        for read in maps[:2]:
            assert isinstance(read, MapRead)
            mixed = mixed @ dense(read)
        every = torch.eye(len(looks[layer].age))
        assert looks[layer].carry(every) == pytest.approx(mixed, abs=1e-6)


def test_a_row_that_was_lazy_attends_evenly() -> None:
    network = models.informer(WINDOWED)
    read = network.trace(window(61, 5)).reads[0]
    assert isinstance(read, SparseRead)
    rows = [0, 30, 60]
    assert read.rows(rows) == pytest.approx(dense_rows(read)[:, :, rows], abs=1e-6)


def moved(matrix: list[list[float]]) -> LayerAttribution:
    """Return a layer that carries by *matrix* [position above, position below]."""
    carried = torch.tensor(matrix)
    age = torch.arange(len(matrix) - 1, -1, -1) * (64 // len(matrix))
    return LayerAttribution(torch.zeros(1, 64), age, lambda weights: weights @ carried)


def test_the_flow_goes_from_the_group_that_holds_to_the_group_that_is_given() -> None:
    """Two positions over 64 bars: the newest keeps a quarter and gives the older the rest."""
    above = moved([[1.0, 0.0], [0.75, 0.25]])
    old, young = [0.0] * 64, [0.0] * 64
    old[0], young[63], young[0] = 1.0, 0.5, 0.5
    flow, rollout = flow_down([moved([old, young]), above], EDGES)
    # The older of two positions is 32 bars old.
    assert flow[0].tolist() == [[0.25, 0.75], [0.0, 0.0]]
    assert flow[1].tolist() == [[0.125, 0.125], [0.0, 0.75]]
    assert rollout[[0, 63]].tolist() == [0.875, 0.125]


def test_heads_are_read_from_as_many_decisions_as_there_are_bars_for() -> None:
    forecaster = models.forecaster()
    bars = builders.bars(forecaster.context + DECISIONS + 5, seed=5)
    whole = head_activity(forecaster, bars, EDGES)
    assert whole.by_age.shape == (3, 2, DECISIONS, models.SMALL.window)
    few = head_activity(forecaster, bars[-forecaster.context - 1 :], EDGES)
    assert few.by_age == pytest.approx(whole.by_age[:, :, -2:], abs=1e-5)
    assert few.rollout == pytest.approx(whole.rollout, abs=1e-6)
    assert np.abs(np.diff(whole.by_age, axis=2)).max() > 1e-3
    with pytest.raises(DataInvalid, match=f"read from {forecaster.context + 1}; leave --heads out"):
        head_activity(forecaster, bars[: forecaster.context], EDGES)


def test_a_pooled_position_is_carried_by_the_taps_of_its_own_pass() -> None:
    """What a stage keeps is of one pass: the next must not change it."""
    network = models.informer(WINDOWED)
    first = window(61, 5)
    look = network.attribution_by_layer(first, torch.arange(61))[2]
    before = look.carry(torch.eye(16))
    network.attribution_by_layer(-first, torch.arange(61))
    assert torch.equal(look.carry(torch.eye(16)), before)


WAYS = (
    Rollout(),
    Rollout(fusion="norm", residual_weight=0.25),
    Rollout(fusion="max", start_layer=1),
    Rollout(head_weights=(0.75, 0.25)),
)


@pytest.mark.parametrize("method", WAYS, ids=str)
def test_the_flow_of_a_stream_ends_in_what_it_stores_by_whichever_method(method: Rollout) -> None:
    usual = models.forecaster()
    forecaster = StreamingForecaster(usual.model, mode="step", threads=1, method=method)
    bars = builders.bars(forecaster.context + 3, seed=5)
    forecaster.warm("linear:BTCUSDT", bars)
    _, rollout = flow_down(forecaster.attribution_by_layer("linear:BTCUSDT"), EDGES)
    values = np.array(forecaster.explain("linear:BTCUSDT").weights)
    assert rollout == pytest.approx(values, abs=1e-5)
    usual.warm("linear:BTCUSDT", bars)
    other = np.array(usual.explain("linear:BTCUSDT").weights)
    assert (np.abs(rollout - other).max() > 1e-3) == (method != Rollout())


def test_each_row_of_a_streams_map_is_the_rollout_of_that_bars_own_decision() -> None:
    forecaster = models.forecaster()
    bars = builders.bars(forecaster.context + 60, seed=5)
    window = models.SMALL.window
    forecaster.warm("linear:BTCUSDT", bars)
    rolled = map_of(forecaster, forecaster.attribution_by_layer("linear:BTCUSDT"))
    assert rolled.ages.tolist() == list(range(window - 1, -1, -1))
    assert rolled.weights.shape == (window, window)
    assert rolled.weights.sum(axis=1) + rolled.older == pytest.approx(np.ones(window))
    for age in (0, 1, 20, window - 1):
        earlier = models.forecaster()
        earlier.warm("linear:BTCUSDT", bars[: len(bars) - age])
        values = np.array(earlier.explain("linear:BTCUSDT").weights)
        row = rolled.weights[window - 1 - age]
        assert row[: window - age] == pytest.approx(values[age - window :], abs=1e-6)
        assert row[window - age :].tolist() == [0.0] * age


def test_a_long_map_is_sampled_evenly_and_positions_that_end_alike_count_once() -> None:
    layers = [
        LayerAttribution(torch.zeros(1, 2_000), torch.arange(1_999, -1, -1), lambda rows: rows)
    ]
    rolled = rollout_map(layers, 1_500)
    assert (len(rolled.ages), rolled.ages[0], rolled.ages[-1]) == (512, 1_499, 0)
    assert set(np.diff(rolled.ages)) == {-2, -3}
    assert rolled.weights.shape == (512, 1_500)
    assert rolled.weights[np.arange(512), 1_499 - rolled.ages].tolist() == [1.0] * 512
    twice = LayerAttribution(
        torch.zeros(1, 4), torch.tensor([2, 0, 0]), lambda rows: torch.eye(4)[:3][rows.argmax(1)]
    )
    assert rollout_map([twice], 4).ages.tolist() == [2, 0]
    assert rollout_map([twice], 4).weights.argmax(axis=1).tolist() == [0, 2]
