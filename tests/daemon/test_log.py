"""Lines of ``Logger``."""

from __future__ import annotations

from structlog.testing import capture_logs

from tracepaper.daemon.log import Logger


def test_times_are_iso_and_a_time_that_is_none_stays() -> None:
    with capture_logs() as lines:
        Logger("feed").warning("gap", from_ms=1_748_538_720_000, until_ms=2**62, wait_s=3)
    assert lines == [
        {
            "log_level": "warning",
            "event": "gap",
            "from": "2025-05-29T17:12:00Z",
            "until_ms": 2**62,
            "wait_s": 3,
        }
    ]
