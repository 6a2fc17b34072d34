"""The interface of a running daemon, found through its lock file, and the commands it received."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tracepaper.daemon.config.sections import HttpSection
from tracepaper.daemon.http.client import write_token
from tracepaper.daemon.http.metrics import registry_of
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.http.server import Caller, CommandRequest, HttpServer
from tracepaper.storage.database.lock import InstanceLock
from tracepaper.strategies.types.market import CommandKind, CommandOrigin


@dataclass
class OperatedDaemon:
    """The database of a running daemon, and the commands that it received."""

    database: Path
    lock: InstanceLock
    commands: list[tuple[CommandKind, str]] = field(default_factory=list)
    callers: list[tuple[CommandOrigin, Caller]] = field(default_factory=list)

    async def submit(self, request: CommandRequest, caller: Caller) -> int:
        self.commands.append((request.kind, request.note))
        self.callers.append((request.origin, caller))
        return 17


@asynccontextmanager
async def serving(database: Path, monitor: Monitor) -> AsyncIterator[OperatedDaemon]:
    """Serve what *monitor* says as the daemon of *database* would."""
    operated = OperatedDaemon(database, InstanceLock.acquire(database))
    async with HttpServer(
        HttpSection(port=0),
        tokens={"database": write_token(database)},
        status=monitor.status,
        submit=operated.submit,
        registry=registry_of(monitor),
    ) as server:
        operated.lock.publish(server.url)
        yield operated
    operated.lock.release()
