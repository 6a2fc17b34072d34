"""Where the units of a sweep or seeds run: the values of ``--on``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Final

from tracepaper.replay.sweep.executor import LocalProcesses, Spread
from tracepaper.replay.sweep.on_ray import OnRay
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.extras import require

LOCAL: Final = "local"
RAY: Final = "ray"
PLACES: Final = (LOCAL, RAY)
"""The values of ``--on``."""


def executor_on(on: str | None, jobs: int | None) -> Callable[..., Executor]:
    """Return a factory of executors at the place *on*; the factory takes ``limit_s``.

    The executor has at most *jobs* workers. Raises ``ConfigInvalid`` for an unknown place and for
    one whose package is not installed.
    """
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise ConfigInvalid(f"jobs is {shown(jobs)}; give how many processes, from 1 on.")
    if on not in {None, *PLACES}:
        raise ConfigInvalid(f"on is {shown(on)}; give one of {', '.join(PLACES)}.")
    if on != RAY:
        return partial(LocalProcesses, jobs)
    require("ray", "--on ray")
    return partial(OnRay, jobs)


def each_on(on: str | None, jobs: int | None) -> Spread | None:
    """Return how seeds are run on an executor; None for this process, the default."""
    if on is None and jobs is None:
        return None
    return Spread(executor_on(on, jobs), ("tracepaper.replay.learning.training",))
