"""What a process does that works behind the daemon: yield to it, and end with it.

The rule is docs/operations.md, O14.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import threading
from pathlib import Path
from typing import Final

from tracepaper.daemon.config.sections import RetrainSection

IDLE_NICE: Final = 19
"""The niceness at which the process takes only what the machine has left."""
ENDED: Final = 3
"""How the process ends whose daemon is gone."""
_OOM_FIRST: Final = "1000"
_MIB: Final = 1 << 20
_STDIN: Final = 0
_PR_SET_PDEATHSIG: Final = 1


def stay_behind(given: RetrainSection) -> None:
    """Lower this process as *given* says, and end it as soon as its standard input is closed.

    Where the machine does not allow a step it is left out: it is the daemon's process that the
    limits of its unit hold to.
    """
    _yield_processor(given.nice)
    # Of what shares the daemon's memory limit, this is to be killed first.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_FIRST, encoding="ascii")
    if given.memory_mb is not None:
        limit = given.memory_mb * _MIB
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    # The kernel kills it with the daemon at once; the input tells where there is no such signal.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _yield_processor(nice: int) -> None:
    with contextlib.suppress(OSError):
        os.nice(nice - os.nice(0))
    if nice == IDLE_NICE and hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _end_with_parent() -> None:
    """Wait for the end of standard input: whoever holds its other end has ended, however it did."""
    while os.read(_STDIN, 1):
        pass
    os._exit(ENDED)
