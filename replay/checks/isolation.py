"""Fresh processes in which ``lookahead`` and ``recursive`` derive runs, and a sweep its trials.

Their memory holds nothing of an earlier run and no later bar: a server is started by ``exec``, so
it shares no memory with this process, and forks a child for each job. The server of
``multiprocessing`` exists once per process, has one hash seed, and runs the caller's script again
in each child.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Concatenate, ParamSpec, Self

import numpy as np

from tracepaper.daemon.bybit.instruments import recorded_instruments
from tracepaper.daemon.session.child import end_with_parent, environment_of
from tracepaper.daemon.session.run_row import code_version, libraries
from tracepaper.storage.database.writer import in_memory
from tracepaper.strategies.errors import StrategyFailed, TracepaperError

P = ParamSpec("P")
Job = Callable[Concatenate[Connection, P], None]
"""A function of a module: its first argument is the child's end of the connection."""


class Overdue(Exception):
    """A child did not answer in time, and was killed."""


class FreshProcesses:
    """The server; ``with fresh.child(job, …) as child`` runs *job* in a new process of its own.

    *preload* are slow modules that jobs need, imported before any child is forked. All children
    hash texts alike: by *hash_seed*, or by a random seed. The server and its children end with this
    process, however it ends.
    """

    def __init__(self, *preload: str, hash_seed: int | None = None) -> None:
        self.preload, self._hash_seed = preload, hash_seed

    def __enter__(self) -> Self:
        """Start the server."""
        seeded = {} if self._hash_seed is None else {"PYTHONHASHSEED": str(self._hash_seed)}
        self._requests, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - fixed command
                [sys.executable, "-m", "tracepaper.replay.checks.isolation", *self.preload],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment_of(seeded),
                start_new_session=True,
            )
        return self

    def __exit__(self, *_error: object) -> None:
        """End the server and its children, including hanging ones."""
        self._requests.close()
        os.killpg(self._process.pid, signal.SIGKILL)  # it is not waited for yet, so it exists
        self._process.wait()

    def child(self, job: Job[P], *given: P.args, **named: P.kwargs) -> Child:
        """Run ``job(connection, *given, **named)`` in a new process; return our end of it."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._requests, [b"."], [theirs.fileno()])
        child = Child(Connection(ours.detach()))
        child.send((sys.path, job, given, named))
        return child


class Child:
    """The parent's end of a connection to a child; raises the child's errors."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pid: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._connection.close()

    def send(self, value: object) -> None:
        """Send *value* to the child."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(value)

    def receive(self, within_s: float | None = None) -> Any:  # noqa: ANN401 - whatever the job sends
        """Receive the child's next answer; raise its error, or ``StrategyFailed`` if it died.

        Where nothing comes *within_s* seconds, kills the child and raises ``Overdue``.
        """
        try:
            self._pid = pid = self._pid or self._connection.recv()
            if within_s is not None and not self._connection.poll(within_s):
                os.kill(pid, signal.SIGKILL)
                raise Overdue
            value = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise StrategyFailed(
                "The strategy ended the process in which it was checked; let it raise instead."
            ) from error
        if isinstance(value, TracepaperError):
            raise value
        return value


def serve(preload: list[str]) -> None:
    """Fork a child for every socket that arrives, until the parent closes its end."""
    end_with_parent(signal.SIGKILL)
    __import__("tracepaper.replay.checks.decisions")
    for name in preload:
        with contextlib.suppress(ImportError):  # optional
            __import__(name)
    for kept in (code_version, libraries, recorded_instruments):
        kept()  # cached, so that no child reads it again
    in_memory().close()  # also caches the views of a record
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(0)) as requests:
        while True:
            _, handed, _, _ = socket.recv_fds(requests, 1, 1)
            if not handed:
                return
            if os.fork() == 0:
                requests.close()
                _work(Connection(handed[0]))
                os._exit(0)
            os.close(handed[0])


def _work(connection: Connection) -> None:
    """Do one job; send a ``TracepaperError`` as its answer."""
    end_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a class may read its input, but no request
    random.seed()  # no two children may draw the same numbers
    np.random.seed()  # noqa: NPY002 - what users draw from
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(os.getpid())
        path, job, given, named = connection.recv()
        sys.path[:] = path
        try:
            job(connection, *given, **named)
        except TracepaperError as error:
            connection.send(error)


if __name__ == "__main__":
    serve(sys.argv[1:])
