"""Parts of a split never share a bar, a label or an embargo."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import DAY_BARS, MINUTE_MS, START_MS, segment
from learning import split as split_at

from tracepaper.replay.learning.splits import Part, Split, by_shares, date_ms
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.units import iso

BARS = segment(4 * DAY_BARS)
DAY_MS = DAY_BARS * MINUTE_MS


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(600, 5_500), min_size=3, max_size=3, unique=True).map(sorted),
    embargo=st.integers(0, 100),
)
def test_no_label_crosses_into_another_part(cuts: list[int], embargo: int) -> None:
    first, second, third = (START_MS + cut * MINUTE_MS for cut in cuts)
    split = Split(first, second, third, embargo)
    horizons = (5, 30)
    values = np.zeros((len(BARS), len(horizons)), dtype=int)
    for part in Part:
        start, stop = split.span(part)
        mask = split.labelled(BARS, horizons, part)
        values += mask
        for column, horizon in enumerate(horizons):
            rows = np.flatnonzero(mask[:, column])
            if not len(rows):
                continue
            assert rows[0] >= BARS.first
            assert BARS.close_time_ms[rows[-1] + horizon] <= stop
            wait = 0 if part is Part.TRAIN else embargo * MINUTE_MS
            assert BARS.close_time_ms[rows[0]] >= start + wait
    assert values.max() <= 1


def test_every_bar_is_used_but_for_purge_embargo_lookback_and_end() -> None:
    split = split_at(1, 2, 3, embargo=7)
    used = sum(int(split.labelled(BARS, (5,), part).sum()) for part in Part)
    # A bar that closes exactly at a cut is the later part's: its label's span starts there.
    assert used == len(BARS) - BARS.first - 5 - 3 * (5 - 1 + 7)


def test_the_split_is_one_calendar_for_all_files() -> None:
    early, late = segment(2 * DAY_BARS), segment(2 * DAY_BARS, start=DAY_BARS, symbol="BBBUSDT")
    split = split_at(1.5, 1.8, 2.2)
    for bars in (early, late):
        rows = np.flatnonzero(split.labelled(bars, (5,), Part.VALIDATION)[:, 0])
        assert bars.close_time_ms[rows].min() >= split.train_until_ms
        assert bars.close_time_ms[rows].max() < split.validation_until_ms


def test_dates_out_of_order_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="in that order"):
        split_at(2, 1, 3)


def test_shares_cut_at_midnights() -> None:
    split = by_shares([BARS], embargo_bars=30, shares=(0.4, 0.3, 0.2))
    for end in (split.train_until_ms, split.validation_until_ms, split.calibration_until_ms):
        assert end % DAY_MS == 0


def test_too_few_days_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="too few days"):
        by_shares([segment(DAY_BARS)], embargo_bars=30, shares=(0.4, 0.3, 0.2))


def test_dates_are_read_as_utc_and_written_back() -> None:
    assert iso(date_ms("2024-06-01")) == "2024-06-01T00:00:00Z"
    assert date_ms("2024-06-01T00:00:00+02:00") == date_ms("2024-05-31T22:00:00Z")
    with pytest.raises(ConfigInvalid, match="no date"):
        date_ms("soon")


def test_a_second_holdout_before_the_untouched_time_is_refused() -> None:
    for second in (2, 3):
        with pytest.raises(ConfigInvalid, match="second_holdout must be after"):
            Split(1, 2, 3, 0, second_holdout_ms=second)
    assert Split(1, 2, 3, 0, second_holdout_ms=4).second_holdout_ms == 4
