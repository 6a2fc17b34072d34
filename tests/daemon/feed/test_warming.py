"""A warm-up is divided by its number of requests, urgent instruments first."""

from __future__ import annotations

from tracepaper.daemon.feed.warming import BEFORE_START, divided


def test_few_symbols_are_waited_for_and_what_is_beyond_comes_in_turn() -> None:
    few = dict.fromkeys("ABCDE", BEFORE_START // 5)
    assert divided(few, ()) == (list("ABCDE"), {})
    assert divided({**few, "F": 1, "G": 2}, ()) == (list("ABCDE"), {"F": 1, "G": 2})


def test_a_start_waits_for_one_symbol_at_least_and_for_all_that_hold_something() -> None:
    many = dict.fromkeys("ABC", BEFORE_START + 1)
    assert divided(many, "") == (["A"], {"B": BEFORE_START + 1, "C": BEFORE_START + 1})
    assert divided(many, "BC") == (["B", "C"], {"A": BEFORE_START + 1})
