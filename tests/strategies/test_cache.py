"""Rings equal a list's tail, whatever is written to them and in which portions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.attention.cache import TailRing, WrapRing
from tracepaper.strategies.errors import AttentionInvalid

portions = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=40)


@given(kept=st.integers(0, 9), portions=portions)
def test_a_tail_ring_reads_like_the_end_of_a_list(
    kept: int, portions: list[tuple[int, int]]
) -> None:
    ring = TailRing(kept=kept, slack=7, shape=(2, 3), dim=1)
    known = [torch.zeros(2, 3)] * kept
    number = 0
    for counted, padding in portions:
        rows = torch.stack(
            [torch.full((2, 3), float(number + i + 1)) for i in range(counted + padding)]
            or [torch.empty(2, 3)]
        )[: counted + padding].transpose(0, 1)  # [2, rows, 3]
        ring.write(rows)
        seen = ring.view(-kept, counted + padding)
        held = known[len(known) - kept :]
        assert torch.equal(seen, torch.stack([*held, *rows.unbind(1)], 1) if seen.numel() else seen)
        ring.advance(counted)
        known += rows.unbind(1)[:counted]
        number += counted
        assert ring.view(-kept, 0).shape == (2, kept, 3)
        if kept:
            assert torch.equal(ring.view(-kept, 0), torch.stack(known[-kept:], 1))


def test_a_cleared_tail_ring_starts_with_zeros() -> None:
    ring = TailRing(kept=2, slack=2, shape=(1,), dim=0)
    ring.write(torch.ones(2, 1))
    ring.advance(2)
    ring.clear()
    assert torch.equal(ring.view(-2, 0), torch.zeros(2, 1))


@given(capacity=st.integers(1, 9), counts=st.lists(st.integers(0, 25), max_size=12))
def test_a_wrap_ring_unrolls_to_the_end_of_a_list(capacity: int, counts: list[int]) -> None:
    ring = WrapRing(capacity=capacity, shape=(2,), dtype=torch.int64)
    known: list[int] = []
    for count in counts:
        numbers = list(range(len(known), len(known) + count))
        ring.push(torch.tensor(numbers, dtype=torch.int64)[:, None].expand(count, 2))
        known += numbers
        wanted = known[-capacity:]
        assert ring.unrolled().tolist() == [[n, n] for n in wanted]
        assert len(ring) == len(wanted)
    ring.clear()
    assert len(ring) == 0
    assert ring.unrolled().shape == (0, 2)


def test_unrolled_rows_do_not_change_when_the_ring_goes_on() -> None:
    ring = WrapRing(capacity=2, shape=(), dtype=torch.float32)
    ring.push(torch.tensor([1.0, 2.0]))
    before = ring.unrolled()
    ring.push(torch.tensor([3.0]))
    assert before.tolist() == [1.0, 2.0]


def test_rings_that_hold_nothing_are_refused() -> None:
    with pytest.raises(AttentionInvalid, match="holds nothing; enlarge it"):
        TailRing(kept=3, slack=0, shape=(), dim=0)
    with pytest.raises(AttentionInvalid, match="holds nothing; enlarge it"):
        WrapRing(capacity=0, shape=(), dtype=torch.float32)


def test_stacked_rings_write_for_all_and_each_lives_on_alone() -> None:
    rings = [TailRing(kept=3, slack=2, shape=(2,), dim=1) for _ in range(3)]
    for number, ring in enumerate(rings):
        for row in range(4 + number):  # the last of them has wrapped around
            ring.write(torch.full((2, 1), 10.0 * number + row))
            ring.advance(1)
    before = [ring.view(-3, 0).clone() for ring in rings]
    whole = TailRing.stacked(rings)
    for ring, kept in zip(rings, before, strict=True):
        ring.move(rings[0].end)
        assert torch.equal(ring.view(-3, 0), kept)
    pair = whole.over(whole.everything()[1:])
    pair.follow(rings[1])
    pair.write(torch.full((2, 2, 1), 99.0))
    pair.advance(1)
    for ring in rings[1:]:
        ring.follow(pair)
        assert ring.view(-1, 0).eq(99.0).all()
    assert torch.equal(rings[0].view(-3, 0), before[0])
    assert torch.equal(pair.view(-3, -1), torch.stack([kept[:, 1:] for kept in before[1:]]))
