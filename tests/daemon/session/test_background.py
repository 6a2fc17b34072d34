"""Work beside a run begins when a stored bar says so."""

from __future__ import annotations

import asyncio

from builders import MINUTE, START_MS, bar
from storage_cases import undecided

from tracepaper.daemon.session.background import ScheduledJob


class Counts(ScheduledJob):
    """A job that counts how often it was run."""

    def __init__(self, due_ms: int) -> None:
        super().__init__()
        self.due_ms, self.runs = due_ms, 0

    async def _run_job(self) -> None:
        self.runs += 1


async def turns() -> None:
    """Run the loop longer than the job takes."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_bar_that_closes_when_a_job_is_due_begins_it_and_one_before_does_not() -> None:
    job = Counts(START_MS + 5 * MINUTE)
    closing = bar(open_time_ms=job.due_ms - MINUTE)
    async with job.in_background(lambda: None):
        for early in (
            undecided(1, bar(open_time_ms=job.due_ms - 2 * MINUTE)),
            undecided(2, closing, accepted=False),  # a revision
        ):
            job.observe(early)
            await turns()
            assert job.runs == 0
        job.observe(undecided(3, closing))
        await turns()
        assert job.runs == 1
