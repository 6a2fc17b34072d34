"""Ends a process: exit code 0 after a signal, and no wait for threads that hang."""

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
    """Make SIGTERM and Ctrl-C exit with 0 until a daemon handles the signals itself.

    Nothing is open yet, so nothing needs to be closed.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: sys.exit(0))


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* in an event loop that stays open, because closing a loop waits for its threads.

    A thread may hang in the name resolver; and if the machine can start no more threads, closing
    the loop fails.
    """
    return asyncio.Runner().run(work)


def exit_without_waiting(code: int) -> None:
    """End the process at once with *code* if threads of user code, a model or a loop remain.

    Files and connections are closed by then. A thread cannot be cancelled, and shutting the
    interpreter down while a model runs may crash it.
    """
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if any(not thread.daemon for thread in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
