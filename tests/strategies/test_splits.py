"""Splits that were not adjusted: each ratio is found, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracepaper.strategies.sessions import (
    MIN_SESSIONS,
    RATIOS,
    WATCHED_SESSIONS,
    SplitWatch,
    SuspectedSplit,
    named_splits,
)

Bar = tuple[int, int, int, int]  # day, open, close, volume


def splits_in(bars: list[Bar]) -> list[SuspectedSplit]:
    watch = SplitWatch()
    splits = (watch.add(day, day, (open_, close), volume) for day, open_, close, volume in bars)
    return [split for split in splits if split is not None]


def sessions(count: int, price: int, volume: int, *, first: int = 0) -> list[Bar]:
    return [(first + day, price, price, volume) for day in range(count)]


BOTH_WAYS = [*RATIOS, *((old, new) for new, old in RATIOS)]


@pytest.mark.parametrize(("new", "old"), BOTH_WAYS, ids=str)
@pytest.mark.parametrize("night", [0.975, 1.0, 1.025])
def test_each_ratio_is_found_after_any_usual_night(new: int, old: int, night: float) -> None:
    before = sessions(6, 60_000, 10_000)
    after = sessions(6, round(60_000 * old / new * night), 10_000 * new // old, first=6)
    assert splits_in(before + after) == [SuspectedSplit(6, new, old)]


@pytest.mark.parametrize("fall", [0.3, 0.2, 1 / 3, 0.5, 0.6])
def test_a_crash_is_none(fall: float) -> None:
    # Ten times as many shares change hands, at whatever is left of the price.
    before = sessions(6, 60_000, 10_000)
    after = sessions(1, round(60_000 * (1 - fall)), 100_000, first=6)
    assert splits_in(before + after) == []


def test_a_fall_by_three_tenths_is_none_at_any_volume() -> None:
    before = sessions(6, 60_000, 10_000)
    for volume in range(1_000, 100_000, 1_000):
        assert splits_in(before + sessions(1, 42_000, volume, first=6)) == []


def test_one_false_price_is_none() -> None:
    # IBM on 2002-12-23: an open at twice the price, a close where it was.
    before = sessions(6, 8_010, 10_000)
    after = sessions(3, 8_050, 10_000, first=7)
    assert splits_in([*before, (6, 15_958, 8_046, 9_000), *after]) == []
    # A false close, and the true open after it.
    assert splits_in([*before, (6, 8_020, 16_040, 6_000), *after]) == []
    # A split is there at the close as well, whatever the day made of it.
    split = (6, 16_100, 17_500, 5_000)
    assert splits_in([*before, split]) == [SuspectedSplit(6, 1, 2)]


def test_a_sentence_names_what_is_read_back() -> None:
    split = SuspectedSplit(1_402_320_600_000, 7, 1)
    text = split.sentence("AAPL")
    assert text.startswith("AAPL: the split of 7 for 1 suspected on 2014-06-09 is not adjusted;")
    splits = named_splits(["The strategy warms until 2014.", text])
    assert splits == {"AAPL": [SuspectedSplit(1_402_272_000_000, 7, 1)]}


def test_within_a_session_and_at_the_beginning_nothing_is_suspected() -> None:
    before = sessions(6, 60_000, 10_000)
    assert splits_in([*before, (5, 30_000, 30_000, 20_000)]) == []
    few = sessions(MIN_SESSIONS, 60_000, 10_000)
    assert splits_in(few + sessions(1, 30_000, 20_000, first=9)) == []
    enough = sessions(MIN_SESSIONS + 1, 60_000, 10_000)
    assert splits_in(enough + sessions(1, 30_000, 20_000, first=9)) == [SuspectedSplit(9, 2, 1)]


@settings(max_examples=60)
@given(st.data())
def test_what_it_says_depends_on_the_sessions_that_it_names(data: st.DataObject) -> None:
    bars: list[Bar] = []
    for day in range(data.draw(st.integers(WATCHED_SESSIONS, 14))):
        for _ in range(data.draw(st.integers(1, 3))):
            price = data.draw(st.sampled_from([30_000, 60_000, 61_000]))
            bars.append((day, price, price, data.draw(st.sampled_from([10_000, 20_000, 90_000]))))
    last = bars[-1][0]
    begin = data.draw(st.integers(0, 2))  # the oldest session may be cut
    late = [bar for bar in bars if bar[0] > last - WATCHED_SESSIONS]
    oldest = [bar for bar in late if bar[0] == late[0][0]]
    late = late[min(begin, len(oldest) - 1) :]
    assert [split for split in splits_in(late) if split.open_time_ms == last] == [
        split for split in splits_in(bars) if split.open_time_ms == last
    ]


def test_fewer_sessions_would_say_something_else() -> None:
    volumes = [10_000, 90_000, 90_000, 90_000, 10_000, 10_000]
    bars = [(day, 60_000, 60_000, volume) for day, volume in enumerate(volumes)]
    bars.append((6, 30_000, 30_000, 20_000))
    assert len(bars) == WATCHED_SESSIONS
    assert splits_in(bars) == []
    assert splits_in(bars[2:]) == [SuspectedSplit(6, 2, 1)]
