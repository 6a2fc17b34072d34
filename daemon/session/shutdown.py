"""How ``run`` and ``demo`` end: with exit code 0 at a signal, also before a daemon is there."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracepaper.daemon.session.daemon import Daemon


def exit_zero_on_signals() -> None:
    """Make SIGTERM and Ctrl-C end the process with 0 until a daemon takes over the signals.

    Nothing is open yet, so nothing has to be closed.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: sys.exit(0))


def exit_while_model_computes(daemon: Daemon) -> None:
    """End the process at once where the model still computes a prediction that is not awaited.

    The database is closed. A thread inside the model cannot be cancelled, and an interpreter
    that is taken down around it may crash.
    """
    if daemon.is_predicting:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
