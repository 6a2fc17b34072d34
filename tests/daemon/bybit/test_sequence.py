"""Bars in order, each once; what a window lacks is said."""

from __future__ import annotations

import itertools

from builders import MINUTE, START_MS, bar, bars
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.daemon.bybit.feed_state import (
    REMEMBERED_BARS,
    BarSequence,
    MissingRanges,
    Place,
    bar_ranges,
)


def sequence() -> BarSequence:
    return BarSequence(interval_ms=MINUTE, next_open_ms=START_MS)


def test_the_expected_bar_comes_next_and_a_later_one_is_ahead() -> None:
    order = sequence()
    assert order.place(bar(index=0)) is Place.NEXT
    assert order.place(bar(index=1)) is Place.AHEAD
    order.accept(bar(index=0))
    assert order.place(bar(index=1)) is Place.NEXT


def test_a_repetition_is_told_from_a_revision_once_per_value() -> None:
    order = sequence()
    order.accept(bar(close=10_100))
    assert order.place(bar(close=10_100)) is Place.REPEATED
    revised = bar(close=10_200)
    assert order.place(revised) is Place.REVISED
    order.accept(revised)
    assert order.place(revised) is Place.REPEATED
    assert order.place(bar(close=10_100)) is Place.REPEATED
    assert order.next_open_ms == START_MS + MINUTE


def test_a_bar_before_everything_known_is_old() -> None:
    assert sequence().place(bar(index=-1)) is Place.OLD


def test_memory_of_values_is_bounded() -> None:
    order = sequence()
    for one in bars(REMEMBERED_BARS + 2):
        order.accept(one)
    assert order.place(bar(index=0)) is Place.OLD
    assert order.place(bars(REMEMBERED_BARS + 2)[2]) is Place.REPEATED


def test_giving_up_never_goes_back() -> None:
    order = sequence()
    order.skip(START_MS + 3 * MINUTE)
    order.skip(START_MS)
    assert order.next_open_ms == START_MS + 3 * MINUTE


@given(present=st.sets(st.integers(0, 30)), length=st.integers(31, 35))
def test_runs_cover_the_window_in_order_without_overlap(present: set[int], length: int) -> None:
    window = [bar(index=index) for index in sorted(present)]
    end_ms = START_MS + length * MINUTE
    found = bar_ranges(window, from_ms=START_MS, until_ms=end_ms, interval_ms=MINUTE)
    assert [one for run in found for one in run.bars] == window
    edges = [START_MS, *(run.until_ms for run in found)]
    assert [run.from_ms for run in found] == edges[:-1]
    assert edges[-1] == end_ms
    for one, other in itertools.pairwise(found):
        assert bool(one.bars) != bool(other.bars)


def test_a_stretch_is_certain_once_it_was_lacked_twice_far_enough_apart() -> None:
    missing = MissingRanges(30.0)
    missing.update([(1, 3), (5, 6)], from_ms=0, until_ms=9, now_s=100.0)
    assert missing.certain_until(1) == 1
    assert missing.due_s() == 130.0
    missing.update([(1, 3)], from_ms=0, until_ms=9, now_s=129.9)
    assert missing.certain_until(1) == 1
    missing.update([(1, 3), (5, 6)], from_ms=0, until_ms=9, now_s=130.0)
    assert missing.certain_until(1) == 3
    assert missing.certain_until(2) == 3
    assert missing.certain_until(5) == 5  # it came once in between
    assert missing.due_s() == 160.0


def test_a_stretch_is_certain_only_as_far_as_both_answers_lack_it() -> None:
    missing = MissingRanges(30.0)
    missing.update([(1, 5)], from_ms=0, until_ms=9, now_s=0.0)
    missing.update([(3, 7)], from_ms=0, until_ms=9, now_s=30.0)
    assert (missing.certain_until(1), missing.certain_until(3), missing.certain_until(5)) == (
        1,
        5,
        5,
    )
    missing.update([(3, 7)], from_ms=0, until_ms=9, now_s=60.0)
    assert missing.certain_until(3) == 7


def test_an_answer_about_another_time_changes_no_doubt() -> None:
    missing = MissingRanges(30.0)
    missing.update([(1, 9)], from_ms=0, until_ms=10, now_s=0.0)
    missing.update([], from_ms=4, until_ms=6, now_s=10.0)
    missing.update([(1, 4), (6, 9)], from_ms=0, until_ms=10, now_s=30.0)
    assert missing.certain_until(1) == 4
    assert missing.certain_until(6) == 9
    missing.forget(5)
    assert missing.certain_until(1) == 1
    assert missing.certain_until(6) == 9
