"""A real PostgreSQL for the tests of a fleet: made once a session, run by an unprivileged user.

It listens on a free port of loopback and on a socket in its own folder. Role ``owner`` is trusted,
every other needs a password; the database ``tls_only`` takes no connection without TLS.
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

TEMPLATE: Final = "fleet_template"
_HBA: Final = """\
local all owner trust
hostssl tls_only all 127.0.0.1/32 trust
hostnossl tls_only all 127.0.0.1/32 reject
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
    """A server of its own: ``fresh`` makes a database with the fleet's tables."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self.folder = programs, folder
        self._numbers = itertools.count(1)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._run("initdb", "-D", str(self.data), "-U", "owner", "--auth=trust", "-E", "UTF8",
                  "--locale=C.UTF-8", "--no-sync")  # fmt: skip
        (self.data / "pg_hba.conf").write_text(_HBA)
        self._make_certificate()
        settings = {
            "port": self.port,
            "listen_addresses": "'127.0.0.1'",
            "unix_socket_directories": f"'{folder}'",
            "fsync": "off",
            "ssl": "on",
            "shared_buffers": "'32MB'",
        }
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def _make_certificate(self) -> None:
        key, certificate = self.data / "server.key", self.data / "server.crt"
        options = [
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
        ]
        command = ("openssl", *options, "-keyout", str(key), "-out", str(certificate))
        subprocess.run(self._as_user(command), check=True, capture_output=True, cwd=self.folder)
        key.chmod(0o600)

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

    def kill(self) -> None:
        """End the server without a shutdown, as a power cut would, and begin it again."""
        self.stop("immediate")

    def url(self, database: str, user: str = "owner", port: int | None = None) -> str:
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    def sql(self, url: str, *statements: str) -> list[tuple[Any, ...]]:
        """Run *statements* with the fleet's schema in the path; return the last one's rows."""
        import psycopg

        options = "-c search_path=tracepaper,public"
        with psycopg.connect(url, options=options, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def empty(self) -> str:
        """Make a database without tables; return its address."""
        return self._database("template0")

    def fresh(self) -> str:
        """Make a database with the fleet's tables; return its address."""
        from tracepaper.storage.fleet.tables import make_schema

        exists = f"SELECT 1 FROM pg_database WHERE datname = '{TEMPLATE}'"
        if not self.sql(self.url("postgres"), exists):
            self.sql(self.url("postgres"), f"CREATE DATABASE {TEMPLATE}")
            make_schema(self.url(TEMPLATE))
        return self._database(TEMPLATE)

    def _database(self, template: str) -> str:
        name = f"fleet_{next(self._numbers)}"
        self.sql(self.url("postgres"), f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)


@contextmanager
def a_cluster() -> Iterator[Cluster]:
    """Run a server in the block; raise ``RuntimeError`` in one line where none is installed."""
    programs = _programs()
    if programs is None:
        raise RuntimeError("PostgreSQL is not installed (apt-get install postgresql)")
    if not is_installed("psycopg"):
        raise RuntimeError("psycopg is not installed (pip install 'tracepaper[scale]')")
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
        pytest.skip("PostgreSQL or psycopg is not installed: no fleet is tested")
    with a_cluster() as cluster:
        yield cluster


@pytest.fixture
def fleet_url(postgres: Cluster) -> Iterator[str]:
    """Make a database with the fleet's tables, and nothing in them; drop it afterwards."""
    url = postgres.fresh()
    yield url
    name = url.rpartition("/")[2]
    postgres.sql(postgres.url("postgres"), f"DROP DATABASE {name} WITH (FORCE)")
