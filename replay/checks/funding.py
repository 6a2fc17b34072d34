"""The settlements that a run booked, held to a published history of its funding rates.

The rules are docs/money.md, M19 and M26.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tracepaper.replay.archive.funding import FundingRates
from tracepaper.storage.reader import Reader
from tracepaper.storage.run_views import RunViews
from tracepaper.strategies.errors import DataInvalid


@dataclass(frozen=True)
class FundingCheck:
    """What a run booked of one instrument beside what was published; times are UTC ms."""

    instrument: str
    published: int  # settlements of the history that fall into the run
    booked: int  # of those, how many the run booked at the published rate
    differing: tuple[tuple[int, int, int], ...]  # time, booked and published rate in 10⁻¹⁰
    missing: tuple[int, ...]  # published and not booked
    unpublished: tuple[int, ...]  # booked and not published, within the history's own time

    @property
    def holds(self) -> bool:
        """Whether exactly what was published is what was booked."""
        return not (self.differing or self.missing or self.unpublished)


def check_funding(reader: Reader, run_id: str, rates: FundingRates) -> FundingCheck:
    """Compare the settlements of *run_id* with the history *rates* of one of its instruments.

    A settlement that came twice is booked once. Raises ``DataInvalid`` where the run trades no
    such instrument, or the history does not reach into its time.
    """
    views = RunViews(reader.connection, run_id)
    run = reader.stored_run(run_id).run
    key = rates.instrument
    if key not in {item.id for item in run.instruments}:
        traded = ", ".join(item.id for item in run.instruments)
        raise DataInvalid(f"{rates.path} is of {key}, and run {run_id} trades {traded}.")
    bars = views.rows("v_bars", newest=1, instrument=key)
    from_ms = run.period_start_ms
    until_ms = bars[0]["open_time_ms"] + run.interval_ms if bars else from_ms
    known = {
        at: rate
        for at, rate in zip(rates.time_ms.tolist(), rates.rate.tolist(), strict=True)
        if from_ms < at <= until_ms
    }
    if not known:
        raise DataInvalid(
            f"{rates.path} has no settlement within the time of run {run_id}: give the history of "
            "that time."
        )
    booked: dict[int, int] = {}
    for row in views.rows("v_events", kind="funding", instrument=key):
        booked.setdefault(row["market_ms"], json.loads(row["content"])["rate"])
    shared = sorted(booked.keys() & known.keys())
    return FundingCheck(
        key,
        len(known),
        sum(booked[at] == known[at] for at in shared),
        tuple((at, booked[at], known[at]) for at in shared if booked[at] != known[at]),
        tuple(sorted(known.keys() - booked.keys())),
        tuple(at for at in sorted(booked.keys() - known.keys()) if min(known) < at < max(known)),
    )
