"""Attention at its bounds: the last key of a window, a budget that is met, an even share."""

from __future__ import annotations

import pytest
import torch
from attention_cases import case

from tracepaper.strategies.attention import reference
from tracepaper.strategies.attention.entropy import row_entropy
from tracepaper.strategies.attention.heads import EVENT_BARS, EVENT_SHARE, event_focus
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.rollout import rollout_rows, without_tail
from tracepaper.strategies.attention.streaming import TailRing
from tracepaper.strategies.attention.tiles import RowBlock, is_whole

TIME = 24


@pytest.mark.parametrize("start", [2, 3, 4])
def test_a_tile_of_a_window_is_whole_where_its_last_row_sees_its_first_key(start: int) -> None:
    block, mask = RowBlock(4, 8, 1, 8, None), Mask.window(4)
    shown = reference.visible(8, mask)[4:8, start:5].all()
    assert is_whole(block, mask, start, 5) is bool(shown)


def test_the_tail_is_dropped_up_to_its_budget() -> None:
    weights = torch.tensor([[0.25, 0.5, 0.25], [0.125, 0.125, 0.75]])
    kept = without_tail(weights, 0.25)
    assert kept.tolist() == [[0.0, 0.5, 0.25], [0.0, 0.0, 0.75]]


@pytest.mark.parametrize("residual", [0.2, 0.5])
@pytest.mark.parametrize("prune", [0.0, 0.3])
def test_each_of_the_layers_drops_an_even_share_of_the_tail(residual: float, prune: float) -> None:
    made = case(Mask.causal(), time=TIME, layers=3)
    found = rollout_rows(
        made.queries, made.keys, made.sums, [TIME - 1], made.mask,
        residual_weight=residual, prune=prune, backend="tiles",
    )  # fmt: skip
    weights = torch.eye(TIME, dtype=torch.float64)[-1:].expand(len(made.queries[0]), 1, TIME)
    for matrix in reversed(made.matrices):
        used = without_tail(weights, prune / 3) if prune else weights
        weights = residual * weights + (1.0 - residual) * used @ matrix.mean(dim=1)
    torch.testing.assert_close(found.weights, weights, rtol=0, atol=1e-12)


def test_no_row_has_an_entropy_below_zero() -> None:
    made = case(Mask.causal(), time=64, layers=1, size=3.0, seed=1, dtype=torch.float32)
    entropy = row_entropy(made.queries[0], made.keys[0], made.sums[0], made.mask)
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
