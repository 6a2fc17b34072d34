from __future__ import annotations

import numpy as np
import pytest

from tracepaper.replay.archive.columns import CellInvalidError, epoch_ms, instant
from tracepaper.strategies.errors import ConfigInvalid

MS = 1_735_689_600_000  # 2025-01-01


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("1735689600", "times are in seconds, converted to milliseconds"),
        ("1735689600.000000000", "times are in seconds, converted to milliseconds"),
        ("1735689600000", None),
        ("1735689600000000000", "times are in nanoseconds, converted to milliseconds"),
        ("2025-01-01", "times are text without a zone, read as UTC"),
        ("2025-01-01 00:00:00.000000", "times are text without a zone, read as UTC"),
        ("2025-01-01T00:00:00Z", None),
        ("2025-01-01 00:00:00+00:00", None),
        ("2025-01-01 00:00:00 UTC", None),
        ("2025-01-01T03:00:00+03:00", None),
        ("2024-12-31T19:00:00.000-0500", None),
    ],
)
def test_every_usual_spelling_of_an_instant_is_read(text: str, note: str | None) -> None:
    times, notes = epoch_ms(np.array([text], dtype=np.bytes_))
    assert times.tolist() == [MS]
    assert notes == (() if note is None else (note,))


def test_a_file_that_changes_its_unit_half_way_is_read_row_by_row() -> None:
    times, notes = epoch_ms(np.array(["1735689540000", "1735689600000000"], dtype=np.bytes_))
    assert times.tolist() == [MS - 60_000, MS]
    assert notes == ("times are in milliseconds and microseconds, converted to milliseconds",)


@pytest.mark.parametrize("other", ["2025-01-01T01:00+01:00", "1.1.2025 00:00", "12:00 AM"])
def test_a_column_has_one_style_of_clock(other: str) -> None:
    with pytest.raises(CellInvalidError) as caught:
        epoch_ms(np.array(["2025-01-01 00:00", other], dtype=np.bytes_))
    assert caught.value.row == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("60000", "is 60000, which is before 1973 in every unit"),
        ("1735689600000500", "is not a whole millisecond"),
        ("2025-13-01 00:00:00", "is not a time of ISO 8601 but '2025-13-01 00:00:00'"),
        ("yesterday", "is not a time of ISO 8601 but 'yesterday'"),
        ("2025-01-01 00:00:00.0001", "is not a whole millisecond"),
        ("1735689600.5", "is not a whole millisecond"),
    ],
)
def test_a_time_that_cannot_be_believed_is_named(text: str, what: str) -> None:
    with pytest.raises(CellInvalidError) as caught:
        epoch_ms(np.array([text], dtype=np.bytes_))
    assert (caught.value.row, caught.value.what) == (0, what)


@pytest.mark.parametrize(
    "text",
    [
        *("2025-01-01+15:00", "2025-01-01+00:00:00", "2025-01-01+01:00", "2025-W01-1", "05:00:00"),
        *(
            "20250101",
            "2025010100",
            "202501010000",
            "20250101000000",
            "20250101 00:00",
            "2025.01.01",
        ),
        *(
            "01/02/2025",
            "1.2.2025",
            "2025-1-2",
            "2025-01-02 05:00 PM",
            "2025-01-02 05-AM",
            "Jan 01, 2025",
            "45292",
        ),
    ],
)
def test_what_may_mean_another_time_is_refused(text: str) -> None:
    with pytest.raises(CellInvalidError):
        epoch_ms(np.array([text], dtype=np.bytes_))


@pytest.mark.parametrize("text", ["2025-01-01", "2025-01-01T00:00Z", "1735689600", str(MS)])
def test_a_time_on_the_command_line_is_text_or_a_number(text: str) -> None:
    assert instant(text) == MS


def test_a_time_on_the_command_line_that_is_none_is_refused_with_the_form() -> None:
    with pytest.raises(
        ConfigInvalid,
        match=r"^The time 'soon' is not a time of ISO 8601: write it as 2025-01-31T12:00",
    ):
        instant("soon")
    with pytest.raises(ConfigInvalid, match="is empty"):
        instant("")
