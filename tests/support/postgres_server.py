"""A real PostgreSQL for tests: made once a session, run by an unprivileged user.

It listens on a free port of loopback and on a socket in its own folder. Role ``owner`` is trusted,
every other needs a password.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tracepaper.strategies.extras import is_installed

_HBA: Final = """\
local all owner trust
host all owner 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""
_USER: Final = "nobody"


def _programs() -> Path | None:
    program = shutil.which("initdb")
    if program is not None:
        return Path(program).parent
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: folder.parent.name
    )
    return folders[-1] if folders else None


class Cluster:
    """A server of its own; ``empty`` makes a database."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self.folder = programs, folder
        self._numbers = itertools.count(1)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._run("initdb", "-D", str(self.data), "-U", "owner", "--auth=trust", "-E", "UTF8",
                  "--locale=C.UTF-8", "--no-sync")  # fmt: skip
        (self.data / "pg_hba.conf").write_text(_HBA)
        settings = {
            "port": self.port,
            "listen_addresses": "'127.0.0.1'",
            "unix_socket_directories": f"'{folder}'",
            "fsync": "off",
            "shared_buffers": "'32MB'",
        }
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def _as_user(self, command: tuple[str, ...]) -> tuple[str, ...]:
        """Return *command* for an unprivileged user: PostgreSQL refuses root."""
        if os.getuid():
            return command
        return ("setpriv", f"--reuid={_USER}", "--regid=nogroup", "--clear-groups", *command)

    def _run(self, program: str, *options: str) -> None:
        command = self._as_user((str(self._programs / program), *options))
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False)
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")

    def start(self) -> None:
        log = self.folder / "log"
        self._run("pg_ctl", "-D", str(self.data), "-l", str(log), "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def url(self, database: str, user: str = "owner") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def sql(self, url: str, *statements: str) -> list[tuple[Any, ...]]:
        """Run *statements*; return the last one's rows."""
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def empty(self) -> str:
        """Make a database without tables; return its address."""
        name = f"database_{next(self._numbers)}"
        self.sql(self.url("postgres"), f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def a_cluster() -> Iterator[Cluster]:
    """Run a server in the block; raise ``RuntimeError`` in one line where none is installed."""
    programs = _programs()
    if programs is None:
        raise RuntimeError("PostgreSQL is not installed (apt-get install postgresql)")
    if not is_installed("psycopg"):
        raise RuntimeError("psycopg is not installed (make dev)")
    folder = Path(tempfile.mkdtemp(prefix="tracepaper-postgres-"))
    try:
        if not os.getuid():
            shutil.chown(folder, _USER)
        folder.chmod(0o711)
        cluster = Cluster(programs, folder)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """Start a server; tests that ask for it are skipped in one line where none is installed."""
    if _programs() is None or not is_installed("psycopg"):
        pytest.skip("PostgreSQL or psycopg is not installed: no export to it is tested")
    with a_cluster() as cluster:
        yield cluster


@pytest.fixture
def postgres_url(postgres: Cluster) -> Iterator[str]:
    """Make a database without tables; drop it afterwards."""
    url = postgres.empty()
    yield url
    name = url.rpartition("/")[2]
    postgres.sql(postgres.url("postgres"), f"DROP DATABASE {name} WITH (FORCE)")
