"""Units of work on Ray: actors of a local Ray, or of the cluster that ``RAY_ADDRESS`` names.

The work is put into the object store once. The rules are docs/scale.md, R1 to R9.
"""

from __future__ import annotations

import importlib
import os
import pickle
import shutil
import socket
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from tracepaper.daemon.clock import SystemClock
from tracepaper.replay.sweep.executor import UnitWork, surroundings, taken_over, too_long
from tracepaper.strategies.errors import ConfigInvalid

U = TypeVar("U")
R = TypeVar("R")

TRIES: Final = 3
"""How often a unit, or the start of a worker, is tried."""
_QUIET: Final[dict[str, Any]] = {"log_to_driver": False, "logging_level": "ERROR"}
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class RayWorker:
    """The body of an actor: takes the work over once, then carries out unit after unit."""

    def begin(self, around: dict[str, Any], stored: list[Any]) -> str:
        """Take over what *stored* refers to; return why this worker cannot, else nothing."""
        ray: Any = importlib.import_module("ray")
        self._work, why = taken_over(around, lambda: ray.get(stored[0]))
        return why

    def make(self, unit: object) -> Any:  # noqa: ANN401 - whatever the work makes
        """Carry out *unit*."""
        return self._work(unit)


@dataclass
class _Actor(Generic[U]):
    """An actor, the answer that is waited for, and its unit (none at its start), tried before."""

    handle: Any
    answer: Any
    unit: U | None = None
    tries: int = 0
    began_s: float = 0.0


class OnRay(Generic[U, R]):
    """Actors of one processor each, as many as Ray has processors, at most *jobs*.

    Raises ``ConfigInvalid`` where Ray, or a worker, cannot be used.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self._jobs, self.slots, self._now_s = jobs, jobs or 1, SystemClock().network_s

    def open(self, work: UnitWork[U, R], limit_s: float | None) -> None:
        """Start Ray or join its cluster, and put the work into the object store."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is imported
        self._ray: Any = importlib.import_module("ray")
        self._work, self._limit_s = work, limit_s
        self._folder: Path | None = None
        self._actors: list[_Actor[U]] = []
        self._idle: list[Any] = []
        self._waiting, self._failed_starts = deque[tuple[U, int]](), 0
        self._is_ours, content = not self._ray.is_initialized(), pickle.dumps(work.packed())
        try:
            if self._is_ours:
                self._connect(os.environ.get("RAY_ADDRESS") or "local", len(content))
            # Ray says one thread where nothing does, and sums differ in their last bits.
            threads = os.environ.get(_THREADS[0], str(len(os.sched_getaffinity(0))))
            given = {"env_vars": {name: os.environ.get(name, threads) for name in _THREADS}}
            self._kind = self._ray.remote(num_cpus=1, max_restarts=0, runtime_env=given)(RayWorker)
            self._stored = (self._ray.put(surroundings()), [self._ray.put(content)])
            self._hand_out()
        except BaseException:
            self.close()
            raise

    def _connect(self, address: str, size: int) -> None:
        if address == "local":
            # Where Ray itself has its files: sockets may lie no deeper.
            self._folder = Path(tempfile.mkdtemp(prefix="tp-ray-", dir="/tmp"))
            store, cores = 2**28 + 2 * size, self._jobs or len(os.sched_getaffinity(0))
            options = {"include_dashboard": False, "_temp_dir": str(self._folder), **_QUIET}
            options["_system_config"] = {"worker_niceness": 0}  # as local processes; Ray says 15
            self._ray.init(address, num_cpus=cores, object_store_memory=store, **options)
            return
        at = f"RAY_ADDRESS {address}"
        if address.startswith("ray://"):
            raise ConfigInvalid(f"{at} is of a client; send the command by `ray job submit`.")
        if address != "auto" and not _answers(address):
            raise ConfigInvalid(f"No Ray is at {at}; start one there, or unset it for one here.")
        try:
            self._ray.init(address, **_QUIET)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigInvalid(f"{at} is refused: {error} (token: RAY_AUTH_MODE=token)") from None

    def submit(self, unit: U) -> None:
        """Hand *unit* to a worker, as soon as one is free."""
        self._waiting.append((unit, 0))
        self._hand_out()

    def _hand_out(self) -> None:
        """Give units to idle workers; start a worker for each unit beyond, up to ``slots``."""
        processors = int(self._ray.cluster_resources().get("CPU", 1))  # nodes come and go
        self.slots = max(1, min(processors, self._jobs or processors))
        while self._waiting and self._idle:
            handle, (unit, tries) = self._idle.pop(), self._waiting.popleft()
            answer = handle.make.remote(unit)
            self._actors.append(_Actor(handle, answer, unit, tries, self._now_s()))
        starting = sum(actor.unit is None for actor in self._actors)
        for _ in range(min(len(self._waiting) - starting, self.slots - len(self._actors))):
            handle = self._kind.remote()
            self._actors.append(_Actor(handle, handle.begin.remote(*self._stored)))

    def next(self) -> R:
        """Wait for the first worker that answers, fails for good or is over its limit."""
        while True:
            busy = [actor for actor in self._actors if actor.unit is not None]
            first = min(busy, key=lambda actor: actor.began_s, default=None)
            left_s = None
            if first is not None and self._limit_s is not None:
                left_s = max(0.0, first.began_s + self._limit_s - self._now_s())
            answers = {actor.answer: actor for actor in self._actors}
            ready, _ = self._ray.wait(list(answers), timeout=left_s)
            if ready:
                outcomes = self._taken(answers[ready[0]])
            else:
                assert first is not None
                assert first.unit is not None
                self._actors.remove(first)
                self._ray.kill(first.handle)
                outcomes = [self._work.failed(first.unit, too_long(self._limit_s or 0.0))]
            self._hand_out()
            if outcomes:
                return outcomes[0]

    def _taken(self, actor: _Actor[U]) -> list[R]:
        """Return the outcome that *actor* has, if its unit has come to one."""
        unit = actor.unit
        self._actors.remove(actor)
        try:
            answer = self._ray.get(actor.answer)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(actor.handle)
            if unit is None:
                self._failed_starts += 1
                if self._failed_starts >= TRIES:
                    raise ConfigInvalid(f"No worker of Ray begins: {_words(error)}") from None
            elif actor.tries + 1 < TRIES:
                self._waiting.append((unit, actor.tries + 1))
            else:
                return [self._work.failed(unit, f"Tried {TRIES} times on Ray: {_words(error)}")]
            return []
        self._idle.append(actor.handle)
        self._failed_starts = 0
        if unit is None and answer:
            raise ConfigInvalid(f"A worker of Ray is refused: {answer}")
        return [] if unit is None else [answer]

    def close(self) -> None:
        """End every worker, and a Ray that was started for them, with its files."""
        if self._ray.is_initialized():
            for handle in (*self._idle, *(actor.handle for actor in self._actors)):
                self._ray.kill(handle)
        if self._is_ours:
            self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _answers(address: str) -> bool:
    """Return whether a server of gRPC listens at *address*; Ray would try others for long."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 5) as line:
            line.sendall(_PREFACE)
            return "RAY_USE_TLS" in os.environ or line.recv(9)[3:4] == b"\4"  # its settings
    except (OSError, ValueError):
        return False


def _words(error: Exception) -> str:
    """Explain *error* of Ray in one sentence."""
    if type(error).__name__ == "OutOfMemoryError":
        return "it took more memory than its node gives; let it take less, or give nodes more."
    if (cause := getattr(error, "cause", None)) is not None:
        return f"it failed with {type(cause).__name__} ({cause})."
    return "its worker or node ended; let the class raise and not exit, or give it less memory."
