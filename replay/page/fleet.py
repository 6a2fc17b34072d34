"""The runs of a fleet, as ``tracepaper fleet`` lists them, and the files of opened runs.

The rules are docs/fleet.md, F20 to F22.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from tracepaper.daemon.clock import SystemClock
from tracepaper.replay.document.values import TitledParts
from tracepaper.replay.page.databases import Databases, FleetSource, HttpRefusal
from tracepaper.replay.page.lists import fleet_document
from tracepaper.storage.fleet.overview import overview
from tracepaper.storage.record.columns import TABLES
from tracepaper.strategies.errors import TracepaperError

KEPT: Final = 8
"""Most files of a fleet's runs; the oldest are removed."""
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class PulledRun(Struct, frozen=True):
    """A pulled run of a fleet, which ``/runs`` now lists."""

    run_id: str
    database_id: str
    steps: int


def list_fleet(databases: Databases) -> TitledParts:
    """Return the fleet's runs by its server; its last answer stays if it cannot be reached."""
    fleet, sentence = _source(databases), None
    try:
        fleet.runs = overview(fleet.url, needed_by="--fleet")
        fleet.as_of_ms = SystemClock().wall_ms()
    except TracepaperError as error:
        sentence = str(error)
    return fleet_document(fleet, sentence)


def pull_run(
    databases: Databases, database_id: str, run_id: str, report: Callable[[float, str], None]
) -> PulledRun:
    """Pull one run into a new file of the page's folder; it replaces an older file of the run.

    Raises ``HttpRefusal`` if the run cannot be pulled; then an older file stays.
    """
    from tracepaper.storage.fleet.pull import pull  # loads SQLAlchemy, which a file needs not

    fleet = _source(databases)
    name = run_id if NAME.fullmatch(run_id) else hashlib.sha256(run_id.encode()).hexdigest()[:16]
    _remove(fleet, every=lambda other: not list(other.glob("*.db")))  # canceled pulls
    place = Path(tempfile.mkdtemp(prefix="run-", dir=fleet.folder))
    target = place / f"{name}.db"
    done = 0

    def progress(table: str, rows: int) -> None:
        nonlocal done
        done += 1
        report(done / len(TABLES), f"pulling run {run_id}: {rows:,} rows of {table}")

    report(0.0, f"pulling run {run_id} from {fleet.server}")
    try:
        pulled = pull(
            *(fleet.url, target),
            run=run_id,
            database=database_id,
            needed_by="--fleet",
            progress=progress,
        )
    except TracepaperError as error:
        raise HttpRefusal(409, str(error).replace(f"{place}/", "")) from None
    _remove(fleet, every=lambda other: other != place and (other / target.name).exists())
    kept = {path.parent for path in databases.paths[:KEPT]}
    _remove(fleet, every=lambda other: other not in kept)
    return PulledRun(pulled.run_ids[0], pulled.database_id, pulled.rows["steps"])


def _source(databases: Databases) -> FleetSource:
    if databases.fleet is None:
        raise HttpRefusal(404, "This page shows no fleet; `tracepaper ui --fleet URL` shows one.")
    return databases.fleet


def _remove(fleet: FleetSource, *, every: Callable[[Path], bool]) -> None:
    for place in fleet.folder.iterdir():
        if every(place):
            shutil.rmtree(place, ignore_errors=True)
