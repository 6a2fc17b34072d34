"""A daemon that trades on an exchange, as processes, for tests of its page in a browser."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from programs import BIN, Program, exchange_on, pointing_at
from report_cases import SAMPLE

from tracepaper.daemon.http.client import token_file

SPEED: Final = "60"  # a bar a second


@dataclass
class LiveDaemon:
    """A daemon and an exchange; the daemon keeps its port over restarts."""

    folder: Path
    url: str
    settings: dict[str, str]
    daemon: Program

    @property
    def database(self) -> Path:
        return self.folder / "run.db"

    @property
    def token(self) -> str:
        return token_file(self.database).read_text()

    def start(self) -> None:
        """Start the daemon again."""
        self.daemon = started(self.folder, self.settings)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True)) as db:
            return db.execute(query, values).fetchall()

    def wait_for(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Wait until *query* has a row."""
        self.daemon.wait_until(lambda: bool(self.rows(query, *values)))
        return self.rows(query, *values)

    def commands(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the operator's words of the record, oldest first, with their sequences."""
        query = "SELECT sequence, content FROM v_events WHERE kind = 'command' ORDER BY sequence"
        return [(sequence, json.loads(content)) for sequence, content in self.rows(query)]


def started(folder: Path, settings: dict[str, str]) -> Program:
    """Start a daemon, and wait until it has decided."""
    command = [str(BIN / "tracepaper"), "run", "-c", "live.toml", "--db", "run.db"]
    daemon = Program(command, folder, name="daemon", extra=settings)
    daemon.wait_until(lambda: '"event": "decision"' in daemon.err)
    return daemon


@contextmanager
def live_daemon(folder: Path, config: str, *data: str) -> Iterator[LiveDaemon]:
    """Run a daemon with *config* in *folder*, on an exchange with the arguments *data*."""
    (folder / "live.toml").write_text(config)
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    candles = data or ("--data", str(SAMPLE))
    with exchange_on(folder, *candles, "--speed", SPEED) as exchange:
        settings = pointing_at(exchange.out) | {"TRACEPAPER_HTTP__PORT": str(port)}
        served = LiveDaemon(folder, f"http://127.0.0.1:{port}", settings, started(folder, settings))
        try:
            yield served
        finally:
            served.daemon.kill()
