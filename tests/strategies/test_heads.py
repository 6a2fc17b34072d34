"""Heads made to behave in a known way are read as such."""

from __future__ import annotations

import pytest
import torch
from attention_cases import case
from torch import Tensor

from tracepaper.strategies.attention.heads import (
    HeadKind,
    head_rows,
    read_head,
    read_heads,
    specialisation,
)
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import AttentionInvalid

TIME = 400
VISIBLE = 200
ROWS = list(range(VISIBLE, TIME, 7))


def rows_of(kind: HeadKind) -> Tensor:
    """Attention rows [row, time] of a head that behaves as *kind* says, with some noise."""
    generator = torch.Generator().manual_seed(4)
    at = torch.tensor(ROWS)[:, None]
    age = at - torch.arange(TIME)
    noise = 0.05 * torch.rand(len(ROWS), TIME, generator=generator)
    match kind:
        case HeadKind.LOCAL:
            score = (-age / 3.0).exp()
        case HeadKind.PERIODIC:
            score = ((age % 24) == 0).double() + noise / 4
        case HeadKind.EVENT:
            events = torch.zeros(TIME).index_fill(0, torch.tensor([170, 183, 190]), 1.0)
            score = events.expand(len(ROWS), -1) + noise / 10
        case HeadKind.DIFFUSE:
            score = 1.0 + noise
    score = score.double().masked_fill((age < 0) | (age >= VISIBLE), 0.0)
    return score / score.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("kind", [HeadKind.LOCAL, HeadKind.PERIODIC, HeadKind.DIFFUSE])
def test_heads_are_read_as_what_they_are(kind: HeadKind) -> None:
    assert read_head(rows_of(kind), ROWS, VISIBLE).kind is kind


def test_a_head_that_follows_bars_is_event_driven_while_it_sees_them() -> None:
    seeing = [at for at, row in enumerate(ROWS) if row < 170 + VISIBLE]
    rows = [ROWS[at] for at in seeing]
    assert read_head(rows_of(HeadKind.EVENT)[seeing], rows, VISIBLE).kind is HeadKind.EVENT


def test_a_periods_length_is_found() -> None:
    reading = read_head(rows_of(HeadKind.PERIODIC), ROWS, VISIBLE)
    assert reading.period_bars == 24
    assert reading.period_correlation > 0.5


@pytest.mark.parametrize("mask", [Mask.full(), Mask.causal(), Mask.window(7)])
def test_head_rows_equal_the_stored_matrices(mask: Mask) -> None:
    made = case(mask, batch=2, layers=1)
    rows = head_rows(made.queries[0], made.keys[0], made.sums[0], [0, 5, 39], mask)
    torch.testing.assert_close(rows, made.matrices[0][:, :, [0, 5, 39]], rtol=0, atol=1e-13)


def test_heads_that_share_nothing_are_fully_specialised_and_equal_heads_are_not() -> None:
    apart = torch.eye(3)[None, :, None]  # [batch, head, row, time]
    assert specialisation(apart).tolist() == [[pytest.approx(1.0)]]
    assert specialisation(apart[:, :1].expand(1, 3, 1, 3)).tolist() == [[pytest.approx(0.0)]]
    assert specialisation(apart[:, :1]).tolist() == [[0.0]]


def test_every_head_of_every_layer_is_read() -> None:
    made = case(Mask.window(30), time=120, heads=3, layers=2, size=0.0)
    readings = read_heads(made.queries, made.keys, made.sums, range(60, 120, 5), made.mask)
    assert [[one.kind for one in layer] for layer in readings] == [[HeadKind.DIFFUSE] * 3] * 2
    with pytest.raises(AttentionInvalid, match="give later rows"):
        read_heads(made.queries, made.keys, made.sums, [5, 60], made.mask)


def test_one_row_tells_no_kind() -> None:
    with pytest.raises(AttentionInvalid, match="at least two rows"):
        read_head(torch.ones(1, 5), [4], 5)


def test_head_rows_of_a_wrong_logsumexp_are_refused() -> None:
    made = case(Mask.causal(), layers=1)
    with pytest.raises(AttentionInvalid, match="did not keep its attention mass"):
        head_rows(made.queries[0], made.keys[0], made.sums[0] + 0.1, [5], made.mask)
