"""Which settlements a file of funding rates lacks, at the interval that is in force around them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.archive.series import FundingRates, missing_settlements

HOUR = 3_600_000


def rates(times: list[int]) -> FundingRates:
    return FundingRates("builder", "WIFUSDT", np.array(times), np.zeros(len(times), dtype=np.int64))


def test_a_whole_file_lacks_nothing() -> None:
    times = [hour * HOUR for hour in range(4, 101, 4)]
    assert missing_settlements(rates(times), 0, 100 * HOUR) == []


@given(st.sampled_from([1, 2, 4, 8]), st.integers(12, 60), st.data())
def test_every_settlement_that_was_taken_out_is_found(
    hours: int, count: int, data: st.DataObject
) -> None:
    """One of each six may be missing, and any number at both ends."""
    whole = [place * hours * HOUR for place in range(1, count + 1)]
    groups = [whole[at : at + 6] for at in range(0, count, 6)]
    gone = {data.draw(st.sampled_from(group)) for group in groups if data.draw(st.booleans())}
    gone -= {whole[0], whole[-1]}
    late = data.draw(st.integers(0, 3)) * hours * HOUR
    kept = [time for time in whole if time not in gone]
    found = missing_settlements(rates(kept), whole[0] - hours * HOUR - late, whole[-1] + late)
    before = [whole[0] - late + place for place in range(0, late, hours * HOUR)]
    after = [whole[-1] + hours * HOUR + place for place in range(0, late, hours * HOUR)]
    assert [due for due, _ in found] == before + sorted(gone) + after


def test_a_changed_interval_is_no_hole() -> None:
    times = [hour * HOUR for hour in (*range(8, 81, 8), *range(84, 121, 4), *range(128, 201, 8))]
    assert missing_settlements(rates(times), 0, 200 * HOUR) == []
    times.remove(100 * HOUR)
    assert missing_settlements(rates(times), 0, 200 * HOUR) == [(100 * HOUR, 104 * HOUR)]


def test_settlements_a_few_milliseconds_late_are_those_that_were_due() -> None:
    times = [hour * HOUR + hour % 7 for hour in range(8, 101, 8)]
    assert missing_settlements(rates(times), 0, 100 * HOUR) == []


def test_of_a_single_settlement_no_interval_is_known() -> None:
    assert missing_settlements(rates([8 * HOUR]), 0, 100 * HOUR) == []
