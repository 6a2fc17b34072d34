"""What warms a start: counted in requests, asked for in turn, the urgent first."""

from __future__ import annotations

import pytest

from tracepaper.daemon.feed import warming
from tracepaper.daemon.feed.warming import WarmUpQueue


def test_what_holds_something_comes_first_and_each_says_when(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(warming, "BEFORE_START", 3)
    queue = WarmUpQueue({"A": 2, "B": 2, "C": 2, "D": 1}, urgent={"C"})
    assert (queue.first, queue.later) == (["C"], ("A", "B", "D"))
    assert [queue.requests_until(key) for key in "ABCD"] == [2, 4, None, 5]
    queue.answered("A")
    assert [queue.requests_until(key) for key in "ABCD"] == [1, 3, None, 4]
    queue.answered("A")  # what was answered is not taken in yet
    assert queue.requests_until("A") == 1
    queue.done("A")
    assert [queue.requests_until(key) for key in "ABCD"] == [None, 2, None, 3]
    queue.done("D")  # before B, which is not answered
    assert (queue.later, queue.requests_until("B")) == (("B",), 2)


def test_few_symbols_are_waited_for_and_none_lacks_anything() -> None:
    queue = WarmUpQueue(dict.fromkeys("ABCDE", 10), urgent=())
    assert (queue.first, queue.later) == (list("ABCDE"), ())
    assert queue.requests_until("E") is None


def test_a_start_waits_for_one_symbol_at_least_and_for_all_that_hold_something() -> None:
    queue = WarmUpQueue(dict.fromkeys("ABC", 93), urgent="")
    assert (queue.first, queue.later) == (["A"], ("B", "C"))
    queue = WarmUpQueue(dict.fromkeys("ABC", 93), urgent="BC")
    assert (queue.first, queue.later) == (["B", "C"], ("A",))
