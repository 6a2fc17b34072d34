"""Attention at its bounds: the last key of a window, a budget that is met, an even share."""

from __future__ import annotations

import pytest
import torch
from attention_cases import case

from tracepaper.strategies.attention.heads import EVENT_BARS, EVENT_SHARE, event_focus
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.streaming import TailRing

TIME = 24


def test_no_row_has_an_entropy_below_zero() -> None:
    made = case(Mask(), time=64, layers=1, size=3.0, seed=1, dtype=torch.float32)
    entropy = Layer(made.queries[0], made.keys[0], None, made.sums[0], made.mask).entropy()
    assert float(entropy.min()) == 0.0


@pytest.mark.parametrize("to", [0, 6])
def test_rows_that_are_moved_onto_themselves_arrive_as_they_were(to: int) -> None:
    ring = TailRing(torch.arange(4_096.0)[None].clone(), -1)
    ring.move(0, 4_000, start=3, to=to)
    assert torch.equal(ring.rows[0, to : to + 4_000], torch.arange(3.0, 4_003.0))


@pytest.mark.parametrize(("more", "is_focused"), [(0.0, True), (-1e-4, False)])
def test_a_row_is_focused_from_the_least_share_on(more: float, is_focused: bool) -> None:
    row = torch.zeros(400)
    row[200 : 200 + EVENT_BARS] = (EVENT_SHARE + more) / EVENT_BARS
    assert bool(event_focus(row[None], 400).is_focused) is is_focused
