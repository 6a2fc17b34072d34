"""Fresh processes for a check: nothing of an earlier run, and no later bar, is in their memory.

One server is started by ``exec``, so that it holds nothing of ours, and forks a child for each job.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Concatenate, Final, ParamSpec, Self

import numpy as np

from tracepaper.daemon.building import code_version, libraries
from tracepaper.replay.archive.instruments import recorded_instruments
from tracepaper.strategies.errors import StrategyFailed, TracepaperError

P = ParamSpec("P")
Job = Callable[Concatenate[Connection, P], None]
"""A function of a module: it takes its end of the line first, and what it sends is the answer."""

_SERVE: Final = "from tracepaper.replay.fresh import serve; serve({}, {!r})"


class Overdue(Exception):
    """A child did not answer in time."""


class Fresh:
    """The server; ``with fresh.child(job, …) as line`` runs *job* in a new process of its own.

    *preload* are modules to import before any child is forked: slow ones that a job needs.
    ``patience_s`` returns how long an answer is waited for; without end where it is None.
    """

    def __init__(self, *preload: str) -> None:
        self._preload = preload
        self.patience_s: Callable[[], float] | None = None

    def __enter__(self) -> Self:
        """Start the server."""
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own words
                [sys.executable, "-c", _SERVE.format(theirs.fileno(), self._preload)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # so that children that hang end with it
            )
        return self

    def __exit__(self, *_error: object) -> None:
        """End the server and its children, also one that hangs."""
        self._line.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @contextmanager
    def child(self, job: Job[P], *given: P.args, **named: P.kwargs) -> Iterator[Line]:
        """Run ``job(line, *given, **named)`` in a new process; yield our end of its line."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._line, [b"."], [theirs.fileno()])
        with Connection(ours.detach()) as connection:
            connection.send((sys.path, job, given, named))
            yield Line(connection, self.patience_s)


class Line:
    """Our end: what a child sends, its errors raised here."""

    def __init__(
        self, connection: Connection, patience_s: Callable[[], float] | None = None
    ) -> None:
        self._connection = connection
        self._patience_s = patience_s

    def tell(self, value: object) -> None:
        """Send *value* to the child."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(value)

    def hear(self) -> Any:  # noqa: ANN401 - whatever the job sends
        """Return what the child sends next; raise its error, or ``StrategyFailed`` if it died.

        Raises ``Overdue`` where nothing comes within the server's patience.
        """
        if self._patience_s is not None and not self._connection.poll(self._patience_s()):
            raise Overdue
        try:
            value = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise StrategyFailed(
                "The strategy ended the process in which it was checked; let it raise instead."
            ) from error
        if isinstance(value, TracepaperError):
            raise value
        return value

    def ask(self, value: object) -> Any:  # noqa: ANN401 - whatever the job sends
        """Send *value* and return the answer."""
        self.tell(value)
        return self.hear()


def serve(descriptor: int, preload: tuple[str, ...]) -> None:
    """Fork a child for every socket that arrives, until the line is closed: the server's body."""
    for name in ("tracepaper.replay.lookahead_jobs", *preload):
        __import__(name)
    for kept in (code_version, libraries, recorded_instruments):
        kept()  # so that no child reads it again
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its line
    with socket.socket(fileno=descriptor) as line:
        while True:
            _, handed, _, _ = socket.recv_fds(line, 1, 1)
            if not handed:
                return
            if os.fork() == 0:
                line.close()
                _work(Connection(handed[0]))
                os._exit(0)
            os.close(handed[0])


def _work(connection: Connection) -> None:
    """Do one job; an error of ours is its answer."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    random.seed()  # no two children may draw alike
    np.random.seed()  # noqa: NPY002 - what users draw from
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        path, job, given, named = connection.recv()
        sys.path[:] = path
        try:
            job(connection, *given, **named)
        except TracepaperError as error:
            connection.send(error)
