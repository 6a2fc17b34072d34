"""Rollout through distilling: row-stochastic maps, held against plain loops and dense products."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dense_attention import dense_rows
from rounding import gamma
from torch import Tensor
from torch.nn import functional

from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import rollout
from tracepaper.strategies.attention.probsparse import (
    MapRead,
    SparseRead,
    attend_sparsely,
    convolution_taps,
    convolve,
    pooling_taps,
    sample_keys,
)
from tracepaper.strategies.attention.reads import Read
from tracepaper.strategies.errors import AttentionInvalid

torch.set_num_threads(1)


def dense(taps: MapRead) -> Tensor:
    """Write a map of time as a matrix [batch, row, time]."""
    batch, rows, _ = taps.shares.shape
    matrix = torch.zeros(batch, rows, taps.bars, dtype=torch.float64)
    for row in range(rows):
        for tap in range(3):
            at = taps.stride * row - 1 + tap
            if 0 <= at < taps.bars:
                matrix[:, row, at] += taps.shares[:, row, tap]
    return matrix


def made_taps(time: int, seed: int = 0) -> tuple[MapRead, MapRead]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, time, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 6, 3, generator=generator, dtype=torch.float64)
    mixed = torch.nn.functional.conv1d(x.transpose(1, 2), weight, padding=1)
    again, products = convolve(x, weight, torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(again, mixed.transpose(1, 2))
    _, chosen = torch.nn.functional.max_pool1d(mixed, 3, stride=2, padding=1, return_indices=True)
    return convolution_taps(products), pooling_taps(chosen, time)


@pytest.mark.parametrize("time", [1, 2, 3, 10, 11])
def test_both_maps_are_row_stochastic_and_pushed_exactly(time: int) -> None:
    for taps in made_taps(time):
        matrix = dense(taps)
        rows = matrix.shape[1]
        torch.testing.assert_close(matrix.sum(dim=-1), torch.ones(2, rows, dtype=torch.float64))
        weights = torch.rand(2, 4, rows, dtype=torch.float64)
        torch.testing.assert_close(taps.carry(weights), weights @ matrix)


def test_the_convolution_rests_on_the_length_of_what_each_bar_brings() -> None:
    x = torch.tensor([[[3.0], [0.0], [4.0]]])
    weight = torch.tensor([[[1.0, 2.0, 1.0]]])  # one channel in, one out
    shares = dense(convolution_taps(convolve(x, weight, torch.zeros(1))[1]))[0]
    assert shares[0].tolist() == [1.0, 0.0, 0.0]
    assert shares[1].tolist() == pytest.approx([3 / 7, 0.0, 4 / 7])
    assert shares[2].tolist() == [0.0, 0.0, 1.0]


def test_the_convolution_and_its_gradient_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 7, 4), (5, 4, 3), (5,))  # input, weight, bias
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    given = [tensor.clone().requires_grad_() for tensor in tensors]
    x, weight, bias = given
    several = convolve(x, weight, bias)[0]
    other = functional.conv1d(x.mT, weight, bias, padding=1).mT
    mixeds = [[mixed, *torch.autograd.grad(mixed.sin().sum(), given)] for mixed in (several, other)]
    for ours, theirs in zip(*mixeds, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_a_position_that_nothing_reaches_keeps_itself() -> None:
    _, products = convolve(torch.zeros(1, 3, 2), torch.ones(2, 2, 3), torch.zeros(2))
    shares = dense(convolution_taps(products))[0]
    assert torch.equal(shares, torch.eye(3, dtype=torch.float64))


def test_the_pooling_counts_the_channels_whose_maximum_a_bar_gave() -> None:
    values = torch.tensor([[[1.0, 5.0, 2.0, 0.0], [9.0, 5.0, 2.0, 7.0]]])  # [1, channel 2, time 4]
    _, chosen = torch.nn.functional.max_pool1d(values, 3, stride=2, padding=1, return_indices=True)
    assert dense(pooling_taps(chosen, 4))[0].tolist() == [[0.5, 0.5, 0, 0], [0, 0.5, 0, 0.5]]


def sparse(time: int, seed: int) -> SparseRead:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 2, 3, time, 4, generator=generator).double()
    samples = sample_keys(time, Mask.full(), factor=1, seed=seed)
    return attend_sparsely(query, key, value, Mask.full(), samples, factor=1)[1]


def test_the_rollout_through_distilling_is_the_product_of_the_matrices() -> None:
    convolution, pooling = made_taps(30)
    low, high = sparse(30, 1), sparse(15, 2)
    reads: list[Read] = [
        low, convolution, pooling, high
    ]  # fmt: skip
    bars = rollout(reads, [14, 3]).weights["tokens"]
    lower, upper = (
        0.5 * torch.eye(time) + 0.5 * dense_rows(rows).mean(dim=1)
        for rows, time in ((low, 30), (high, 15))
    )
    wanted = (upper @ dense(pooling) @ dense(convolution) @ lower)[:, [14, 3]]
    # Matrices, shares and rows are rounded once, each stage sums over 30 bars at most and 3 heads.
    rounding = gamma(4 * (30 + 3 + 4) + 30, torch.float32)
    torch.testing.assert_close(bars.double(), wanted, rtol=rounding, atol=0)


def test_maps_that_do_not_fit_are_refused() -> None:
    convolution, pooling = made_taps(30)
    with pytest.raises(AttentionInvalid, match="nothing to roll out"):
        rollout([], [0])
    with pytest.raises(AttentionInvalid, match=r"tokens above it"):
        rollout([pooling, convolution], [0])
    with pytest.raises(AttentionInvalid, match="Row 15 is out of range"):
        rollout([convolution, pooling], [15])


def test_taps_that_lose_mass_say_so() -> None:
    convolution, pooling = made_taps(30)
    leaking = replace(convolution, shares=convolution.shares * 0.9)
    error = rollout([leaking, pooling], [3]).l1_error
    assert error.flatten().tolist() == pytest.approx([0.1, 0.1])
