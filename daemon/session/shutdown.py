"""Ends a process: in good order at a signal, and without a wait for threads that hang."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import FrameType

T = TypeVar("T")


def handle_signals(act: Callable[[int], object]) -> dict[signal.Signals, Any]:
    """Call *act* with the number of each signal that ends a process; return the former handlers.

    These are Ctrl-C, SIGTERM and SIGHUP, which a closed terminal sends. A SIGHUP that was ignored
    when the process started, as by ``nohup``, stays ignored.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        act(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return {number: signal.signal(number, handle) for number in numbers}


def _leave_closed_terminal() -> None:
    """Replace standard streams on a closed terminal by /dev/null, since each write would fail."""
    for descriptor in range(3):
        with suppress(OSError):
            is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
            if is_device and not os.isatty(descriptor):  # a closed terminal is no terminal
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)


@contextmanager
def signals_handled(act: Callable[[int], object]) -> Iterator[None]:
    """Call *act* as ``handle_signals`` does inside the block; then restore the handlers."""
    before = handle_signals(act)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def signals_call(act: Callable[[], object]) -> Iterator[None]:
    """Call *act* in the running event loop at each signal that ends a process, in the block."""
    import asyncio

    loop = asyncio.get_running_loop()
    with signals_handled(lambda _number: loop.call_soon_threadsafe(act)):
        yield


def exit_zero_on_signals() -> None:
    """Make a signal exit with 0 until a daemon handles the signals itself.

    Nothing is open yet, so nothing needs to be closed. An exception would not do: Python drops one
    that is raised while C code, such as a regular expression of an import, calls back.
    """
    handle_signals(lambda _number: os._exit(0))


def interrupt_on_signals() -> None:
    """Make every signal that ends a process interrupt it as Ctrl-C does."""

    def interrupt(number: int) -> None:
        # A terminal that closes sends SIGHUP twice; the second must not interrupt the clean-up.
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    handle_signals(interrupt)


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* in an event loop that stays open, because closing a loop waits for its threads.

    A thread may hang in the name resolver; and if the machine can start no more threads, closing
    the loop fails.
    """
    import asyncio  # a tenth of the CPU time of --help, which needs no loop

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
