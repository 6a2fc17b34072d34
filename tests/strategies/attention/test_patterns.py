"""Patterns of rollouts: each figure on rows whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.heads import (
    EVENT_BARS,
    EVENT_SHARE,
    content_free_confidence,
    divergence,
    event_focus,
    feature_attribution,
    locality,
    rows_by_age,
    stability,
)
from tracepaper.strategies.time_buckets import content_share, uniform_rollout


def test_rows_are_turned_from_time_to_age() -> None:
    weights = torch.tensor([[0.25, 0.75, 0.0, 0.0], [0.125, 0.25, 0.5, 0.125]])
    wanted = [[0.75, 0.25, 0.0, 0.0], [0.125, 0.5, 0.25, 0.125]]
    assert rows_by_age(weights, [1, 3]).tolist() == wanted


def test_uniform_attention_gives_the_known_recent_mass() -> None:
    row = torch.tensor(uniform_rollout(4, 1_088))
    assert len(row) == 4_349
    assert float(row.sum()) == pytest.approx(1.0, abs=1e-12)
    # The newest quarter in whole 64-bar cells holds 0.544.
    assert float(row[: round(len(row) / 4 / 64) * 64].sum()) == pytest.approx(0.544, abs=1e-3)


def test_locality_of_a_point_and_of_an_even_row() -> None:
    point = torch.zeros(10).index_fill(0, torch.tensor(3), 1.0)
    reading = locality(torch.stack([point, torch.full((10,), 0.1)]))
    assert reading.mean_age.tolist() == pytest.approx([3.0, 4.5])
    assert reading.half_life.tolist() == [3, 4]
    assert reading.effective_bars.tolist() == pytest.approx([1.0, 10.0])


def test_few_heavy_distant_bars_are_an_event_focus_and_an_even_row_is_not() -> None:
    even = torch.full((400,), 1 / 400)
    focused = even * 0.6
    focused[[150, 210, 390]] += 0.4 / 3
    focus = event_focus(torch.stack([even, focused]), 400)
    assert (focus >= EVENT_SHARE).tolist() == [False, True]
    assert focus.tolist() == pytest.approx([EVENT_BARS / 400, 0.4 + 0.6 * EVENT_BARS / 400])


def test_recent_spikes_are_no_event_focus() -> None:
    recent = torch.full((400,), 0.5 / 400)
    recent[3] += 0.5
    assert float(event_focus(recent[None], 400)) < EVENT_SHARE


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=12))
def test_divergence_is_the_square_of_scipys_distance(values: list[float]) -> None:
    first = torch.tensor(values, dtype=torch.float64)
    # The trend keeps the two apart: at equal rows scipy takes the root of a rounding error.
    second = first * torch.arange(1, len(values) + 1)
    first, second = first / first.sum(), second / second.sum()
    wanted = float(jensenshannon(first.numpy(), second.numpy(), base=2)) ** 2
    assert float(divergence(first, second)) == pytest.approx(wanted, abs=1e-12)


def test_equal_rows_are_stable_and_disjoint_rows_are_not() -> None:
    same = torch.tensor([[0.3, 0.7], [0.3, 0.7], [0.3, 0.7]])
    disjoint = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert stability(torch.stack([same, disjoint])).tolist() == pytest.approx([1.0, 0.0], abs=1e-3)


def test_content_free_confidence_is_zero_without_slopes_and_the_known_value_with_alibis() -> None:
    assert content_free_confidence(1_088) == 0.0
    assert content_free_confidence(1, [0.5]) == 0.0
    slopes = [2.0 ** (-2 * (head + 1)) for head in range(4)]
    assert content_free_confidence(1_088, slopes) == pytest.approx(0.36, abs=0.02)


def test_feature_attribution_finds_the_feature_that_moves_a_linear_forecast() -> None:
    inputs = torch.ones(5, 3)
    gradient = torch.tensor([[1.0, 0.0, -3.0]]).expand(5, 3)
    shares = feature_attribution(inputs, gradient, torch.full((5,), 0.2))
    assert shares.tolist() == pytest.approx([0.25, 0.0, 0.75])


def test_feature_attribution_counts_only_bars_that_the_rollout_reached() -> None:
    gradient = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    shares = feature_attribution(torch.ones(2, 2), gradient, torch.tensor([0.0, 1.0]))
    assert shares.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: rows_by_age(torch.ones(2, 3), [1]), "1 rows for 2 of weights"),
        (
            lambda: feature_attribution(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3)),
            r"rollout is \[3\]; give \[time 2\]",
        ),
    ],
)
def test_patterns_refuse_what_does_not_fit(call: object, sentence: str) -> None:
    assert callable(call)
    with pytest.raises(AttentionInvalid, match=sentence):
        call()


@pytest.mark.parametrize("position", [6_400, 6_463, 6_431])
def test_the_content_share_is_what_moved_from_the_row_of_uniform_attention(position: int) -> None:
    window, layers = 100, 2
    row = uniform_rollout(layers, window, 0.4)
    blocks = position // 64 - (position - np.arange(len(row))) // 64
    weights = np.bincount(blocks.clip(max=4), row, minlength=5).astype(np.float64)
    options: dict[str, Any] = {
        "bars": 64, "layers": layers, "window": window, "residual_weight": 0.4
    }  # fmt: skip
    assert content_share(weights, position, **options) == pytest.approx(0.0, abs=1e-12)
    weights += np.array([-0.1, 0.0, 0.07, 0.0, 0.03])
    assert content_share(weights, position, **options) == pytest.approx(0.1, abs=1e-12)
    older = np.array([weights[0], weights[1:].sum()])  # what a stored row does not name
    assert content_share(older, position, **options) == pytest.approx(0.1, abs=1e-12)
