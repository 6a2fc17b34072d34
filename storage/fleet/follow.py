"""Follows a file: ships its commits continuously, and retries after faults of the server.

docs/fleet.md, F4 and F7, has the rules.
"""

from __future__ import annotations

import socket
import sqlite3
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sqlalchemy import func

from tracepaper.storage.database.lock import identity
from tracepaper.storage.fleet.server import ShipProgress, transaction
from tracepaper.storage.fleet.ship import GROUP_STEPS, Shipper, ShipResult
from tracepaper.storage.fleet.tables import metadata, upsert
from tracepaper.strategies.errors import ServerLost

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POLL_S: Final = 0.1
"""Wall seconds between two checks whether the file has grown."""
HEARTBEAT_S: Final = 2.0
"""Wall seconds between two status rows on the server, even if nothing was shipped."""
PAUSE_S: Final = (0.5, 30.0)
"""The first and the longest pause after a fault; each further fault doubles the pause."""
_SEEN: Final = upsert(metadata.tables["shippers"]).values(seen_at=func.clock_timestamp())


class Follower:
    """Ships the file *path* to *url* until *stop* is set, and then once more.

    *seconds* is a monotonic clock; *daemon* returns the daemon's status as JSON.
    """

    def __init__(
        self,
        path: Path,
        url: str,
        *,
        stop: threading.Event,
        seconds: Callable[[], float],
        report: Callable[[ShipProgress], object] = lambda _progress: None,
        daemon: Callable[[], str] = str,
        group_steps: int = GROUP_STEPS,
        needed_by: str = "--to",
    ) -> None:
        self._path, self._url, self._stop = path, url, stop
        self._seconds, self._report, self._daemon = seconds, report, daemon
        self._shipper = Shipper(path, url, group_steps=group_steps, needed_by=needed_by)
        self._steps = self._errors = self._holes = 0
        self._error = ""
        self._behind_since: float | None = None
        self._version: object = None
        self._reported_at = float("-inf")

    def run(self) -> None:
        """Follow until the stop; raise ``DataInvalid`` if the file cannot be shipped."""
        pause_s, longest_s = PAUSE_S
        try:
            while True:
                is_last = self._stop.is_set()
                try:
                    self._poll()
                    pause_s = PAUSE_S[0]
                    self._error = ""
                except (ServerLost, sqlite3.OperationalError) as error:
                    self._shipper.close()
                    self._errors += 1
                    self._error = str(error)
                    self._report_progress()
                    if is_last:
                        return
                    self._stop.wait(pause_s)
                    pause_s = min(2 * pause_s, longest_s)
                    continue
                if is_last:
                    with suppress(ServerLost):
                        self._report_progress()
                    return
                self._stop.wait(POLL_S)
        finally:
            self._shipper.close()

    def _poll(self) -> None:
        """Ship new commits, and report the progress."""
        shipper = self._shipper
        file = identity(self._path)
        if not shipper.is_open:
            shipper.open()
            self._version = None
        version = (file, shipper.version())
        if version != self._version:
            if self._version is not None and file != self._version[0]:  # type: ignore[index]
                shipper.close()  # the file was replaced by another
                self._version = None
                return
            self._behind_since = self._behind_since or self._seconds()
            shipped = shipper.ship(self._count)
            self._holes += len(shipped.holes)
            self._version, self._behind_since = version, None
            if shipped.steps and self._reported_at + HEARTBEAT_S / 2 < self._seconds():
                self._report_progress()
        if self._reported_at + HEARTBEAT_S < self._seconds():
            self._report_progress()

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._reported_at + HEARTBEAT_S < self._seconds():
            self._report_progress()

    def _report_progress(self) -> None:
        """Report the progress to the caller, and to the server if it is connected."""
        self._reported_at = self._seconds()
        behind = self._shipper.behind()
        if behind and self._behind_since is None:
            self._behind_since = self._seconds()
        since = self._behind_since if behind else None
        lag_s = 0.0 if since is None else self._seconds() - since
        steps, holes = self._steps, self._holes
        self._report(ShipProgress(steps, behind, round(lag_s, 3), self._errors, self._error, holes))
        if self._shipper.is_open:
            seen = {
                "database_id": self._shipper.database_id,
                "host": socket.gethostname(),
                "file": str(self._path.resolve()),
                "lag_steps": behind,
                "lag_s": lag_s,
                "daemon": self._daemon(),
            }
            server = self._shipper.server
            with transaction(self._url, server, "hear of the shipper"):
                server.execute(_SEEN, seen)


def ship_once(path: Path, url: str, *, needed_by: str = "--to") -> ShipResult:
    """Ship all commits of the file *path*, once."""
    shipper = Shipper(path, url, needed_by=needed_by)
    shipper.open()
    try:
        return shipper.ship()
    finally:
        shipper.close()
