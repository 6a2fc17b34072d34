"""How ``run`` and ``demo`` end: with exit code 0 at a signal, also before a daemon is there."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tracepaper.daemon.session.daemon import Daemon

_OF_LOOP: Final = "asyncio_"
"""How asyncio's own threads are called."""

T = TypeVar("T")


def exit_zero_on_signals() -> None:
    """Make SIGTERM and Ctrl-C end the process with 0 until a daemon takes over the signals.

    Nothing is open yet, so nothing has to be closed.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: sys.exit(0))


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* in an event loop that is left open: closing it waits for its threads.

    One of them may be asking for the address of a name, which takes as long as the resolver likes;
    and where the machine starts no more threads, not even the wait can begin.
    """
    return asyncio.Runner().run(work)


def exit_without_waiting(daemon: Daemon) -> None:
    """End the process at once where threads are left, of the model or of the event loop.

    The database is closed. A thread cannot be cancelled, and an interpreter that is taken down
    around the model may crash.
    """
    threads = (thread.name for thread in threading.enumerate())
    if daemon.is_predicting or any(name.startswith(_OF_LOOP) for name in threads):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
