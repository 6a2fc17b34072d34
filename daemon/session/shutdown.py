"""Ends a process: exit code 0 at a signal, and no wait for what hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

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


def exit_without_waiting(code: int) -> None:
    """End the process at once with *code* where threads of a user, a model or a loop are left.

    Whatever was open is closed. A thread cannot be cancelled, and an interpreter that is taken
    down around the model may crash.
    """
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if any(not thread.daemon for thread in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
