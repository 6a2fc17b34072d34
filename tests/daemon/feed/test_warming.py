"""What warms a start: counted in requests, asked for in turn, the urgent first."""

from __future__ import annotations

import pytest

from tracepaper.daemon.feed import warming
from tracepaper.daemon.feed.warming import FrameQueue, warm_up
from tracepaper.strategies.api.timeframes import FrameRange

HOUR = 3_600_000


def lack(key: str, hours: int = 1_536) -> FrameRange:
    return FrameRange(key, HOUR, 0, hours * HOUR)


def test_two_hundred_symbols_of_hours_take_a_thirtieth_of_their_minutes() -> None:
    """64 days of minutes are 93 requests a symbol, and of hours two."""
    minutes = warm_up(200, 64 * 1_440, [], candles_max=1_000, requests_per_s=5)
    assert (minutes.requests, minutes.minutes) == (200 * 93, 62.0)
    hours = warm_up(
        200, 60, [lack(f"{at}") for at in range(200)], candles_max=1_000, requests_per_s=5
    )
    assert (hours.of_bars, hours.of_frames, hours.minutes) == (200, 400, 2.0)
    assert hours.sentence() == (
        "200 symbols: 200 requests for bars and 400 for higher timeframes, 2.0 minutes at 5 a "
        "second"
    )


def test_what_holds_something_comes_first_and_each_says_when(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(warming, "FRAMES_BEFORE_START", 2)
    ranges = {key: [lack(key)] for key in "ABCD"}
    queue = FrameQueue(ranges, urgent={"C"}, candles_max=1_000)
    assert queue.first == [lack("C")]  # two requests
    assert list(queue.later) == [lack("A"), lack("B"), lack("D")]
    assert [queue.requests_until(key) for key in "ABCD"] == [3, 5, None, 7]
    asked = queue.pop()
    assert [queue.requests_until(key) for key in "ABCD"] == [1, 3, None, 5]
    queue.answered(asked)
    assert [queue.requests_until(key) for key in "ABCD"] == [None, 3, None, 5]


def test_few_symbols_are_waited_for_and_none_lacks_anything() -> None:
    ranges = {key: [lack(key)] for key in "ABCDEFGHIJ"}
    queue = FrameQueue(ranges, urgent=(), candles_max=1_000)
    assert (len(queue.first), len(queue.later)) == (10, 0)
    assert queue.requests_until("J") is None
