"""Entropy and confidence against stored matrices."""

from __future__ import annotations

import math

import pytest
import torch
from attention_cases import case

from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import confidence
from tracepaper.strategies.attention.reads import row_confidence
from tracepaper.strategies.attention.streaming import TailRing

torch.set_num_threads(1)


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
