"""What warms a start: counted in requests, asked for in turn, the urgent first."""

from __future__ import annotations

import pytest

from tracepaper.daemon.feed import warming
from tracepaper.daemon.feed.warming import WarmUpQueue, warm_up
from tracepaper.strategies.api.timeframes import FrameRange

HOUR = 3_600_000
NAMES = [f"{number:03d}" for number in range(200)]


def lack(key: str, hours: int = 1_536) -> FrameRange:
    return FrameRange(key, HOUR, 0, hours * HOUR)


def test_two_hundred_symbols_of_hours_take_a_thirtieth_of_their_minutes() -> None:
    """64 days of minutes are 93 requests a symbol, and of hours two."""
    minutes = warm_up(NAMES, 64 * 1_440, [], candles_max=1_000, requests_per_s=5)
    assert (minutes.requests, minutes.minutes) == (200 * 93, 62.0)
    assert (minutes.first, minutes.before) == (1, 93)
    hours = warm_up(NAMES, 60, map(lack, NAMES), candles_max=1_000, requests_per_s=5)
    assert (hours.of_bars, hours.of_frames, hours.minutes) == (200, 400, 2.0)
    assert (hours.first, hours.before) == (16, 48)
    assert hours.sentence() == (
        "200 symbols: 200 requests for bars and 400 for higher timeframes, 2.0 minutes at 5 a "
        "second; the first 16 after 10 s, the others in turn"
    )


def test_where_all_decide_together_the_first_decision_waits_for_the_bars_of_all() -> None:
    together = warm_up(
        NAMES, 60, map(lack, NAMES), candles_max=1_000, requests_per_s=5, in_stages=False
    )
    assert (together.requests, together.first, together.before) == (600, 25, 250)


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
