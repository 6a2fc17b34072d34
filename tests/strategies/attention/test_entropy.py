"""Entropy and confidence against stored matrices."""

from __future__ import annotations

import math

import dense_attention as reference
import pytest
import torch
from attention_cases import case

from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import confidence, trained_entropy
from tracepaper.strategies.attention.reads import row_confidence
from tracepaper.strategies.attention.streaming import TailRing
from tracepaper.strategies.errors import AttentionInvalid

torch.set_num_threads(1)


@pytest.mark.parametrize("mask", [Mask(), Mask.window(9), Mask.full()], ids=str)
def test_the_gradient_of_entropy_is_that_of_the_stored_matrix(mask: Mask) -> None:
    drawn = case(mask, time=37, layers=1)
    query, key = drawn.queries[0].requires_grad_(), drawn.keys[0].requires_grad_()
    tensor = trained_entropy(query, key, drawn.sums[0], mask)
    visible = reference.visible(37, mask)
    scores = (query @ key.transpose(-1, -2) / math.sqrt(8)).masked_fill(~visible, -1e9)
    shares = scores.softmax(dim=-1)
    wanted = torch.logsumexp(scores, dim=-1) - (shares * scores).sum(dim=-1)
    assert (tensor - wanted).abs().max() < 1e-12
    above = torch.linspace(-1.0, 1.0, tensor.numel(), dtype=torch.float64).view_as(tensor)
    pairs = zip(
        *(torch.autograd.grad(x, (query, key), above) for x in (tensor, wanted)), strict=True
    )
    for gradient, expected in pairs:
        assert (gradient - expected).abs().max() < 1e-12


def test_peaked_rows_have_full_confidence_at_huge_scores() -> None:
    drawn = case(Mask(), time=64, size=1_000.0, dtype=torch.float32)
    entropy = Layer(drawn.queries[0], drawn.keys[0], None, drawn.sums[0], drawn.mask).entropy()
    sure = row_confidence(entropy, torch.arange(1, 65))
    assert float(sure[..., 1:].min()) > 0.999


def test_uniform_attention_has_no_confidence_and_one_key_neither() -> None:
    drawn = case(Mask.window(8), size=0.0, time=20, layers=2)
    every = torch.stack(confidence(drawn.layers, list(range(20))), dim=1)
    assert every.shape == (1, 2, 2, 20)
    assert float(every.abs().max()) < 1e-12


def test_a_row_on_one_of_many_keys_is_fully_confident() -> None:
    sure = row_confidence(torch.tensor([0.0, math.log(7)]), torch.tensor([7, 7]))
    assert sure.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("rows", [None, [20]])
def test_a_row_that_lost_mass_is_refused(rows: list[int] | None) -> None:
    drawn = case(Mask())
    with pytest.raises(AttentionInvalid, match="did not keep its attention mass"):
        Layer(drawn.queries[0], drawn.keys[0], None, drawn.sums[0] * 1.4427, drawn.mask).entropy(
            rows
        )


# ---------------------------------------------------------------- bounds


def test_no_row_has_an_entropy_below_zero() -> None:
    drawn = case(Mask(), time=64, layers=1, size=3.0, seed=1, dtype=torch.float32)
    entropy = Layer(drawn.queries[0], drawn.keys[0], None, drawn.sums[0], drawn.mask).entropy()
    assert float(entropy.min()) == 0.0


@pytest.mark.parametrize("to", [0, 6])
def test_rows_that_are_moved_onto_themselves_arrive_as_they_were(to: int) -> None:
    ring = TailRing(torch.arange(4_096.0)[None].clone(), -1)
    ring.move(0, 4_000, start=3, to=to)
    assert torch.equal(ring.rows[0, to : to + 4_000], torch.arange(3.0, 4_003.0))
