"""Rings equal a list's tail, whatever is written to them and in which portions."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.attention.streaming import TailRings, WrapRing

portions = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=40)


@given(kept=st.integers(0, 9), portions=portions)
def test_a_tail_ring_reads_like_the_end_of_a_list(
    kept: int, portions: list[tuple[int, int]]
) -> None:
    rings = TailRings(kept=kept, slack=7)
    ring = rings.ring((2, 3), dim=1)
    entries = [torch.zeros(2, 3)] * kept
    number = 0
    for counted, padding in portions:
        end = rings.settle(slice(0, 1), counted + padding)
        held = entries[len(entries) - kept :]
        if kept:
            assert torch.equal(ring.rows[0, :, end - kept : end], torch.stack(held, 1))
        for at in range(counted + padding):
            ring.rows[0, :, end + at] = float(number + at + 1)
        rings.advance(0, counted)
        entries += [torch.full((2, 3), float(number + at + 1)) for at in range(counted)]
        number += counted


def test_a_cleared_stream_starts_with_zeros_and_the_others_stay() -> None:
    rings = TailRings(kept=2, slack=2, streams=2)
    ring = rings.ring((1,), dim=0)
    ring.rows[:, 2:4] = 1.0
    for stream in range(2):
        rings.advance(stream, 2)
    rings.clear(0)
    assert rings.ends == [2, 4]
    assert ring.rows[0].eq(0.0).all()
    assert ring.rows[1, 2:].eq(1.0).all()


@given(capacity=st.integers(1, 9), counts=st.lists(st.integers(0, 25), max_size=12))
def test_a_wrap_ring_unrolls_to_the_end_of_a_list(capacity: int, counts: list[int]) -> None:
    ring = WrapRing(capacity=capacity, shape=(2,), dtype=torch.int64)
    entries: list[int] = []
    for count in counts:
        numbers = list(range(len(entries), len(entries) + count))
        ring.push(torch.tensor(numbers, dtype=torch.int64)[:, None].expand(count, 2))
        entries += numbers
        wanted = entries[-capacity:]
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


def test_streams_of_different_ends_are_brought_to_a_common_one() -> None:
    rings = TailRings(kept=3, slack=4, streams=1)
    ring = rings.ring((2,), dim=1)
    rings.extend(2)
    wanted = []
    for stream in range(3):
        for row in range(4 + stream):  # the last of them has wrapped around
            part = slice(stream, stream + 1)
            end = rings.settle(part, 1)
            ring.rows[stream, :, end] = 10.0 * stream + row
            rings.advance(stream, 1)
        wanted.append([10.0 * stream + row for row in range(1 + stream, 4 + stream)])
    assert len(set(rings.ends)) > 1
    end = rings.settle(slice(0, 3), 1)
    assert rings.ends == [end] * 3
    assert [ring.rows[stream, 0, end - 3 : end].tolist() for stream in range(3)] == wanted
