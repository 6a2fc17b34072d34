"""The executor on Ray: actors of a local Ray, or of the cluster at ``RAY_ADDRESS``.

The rules are docs/scale.md, R1 to R9.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pickle
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tracepaper.daemon.session.run_row import code_version, libraries
from tracepaper.replay.sweep.executor import UnitFailed, UnitWork, Workers, too_long
from tracepaper.strategies.errors import ConfigInvalid, TracepaperError

TRIES: Final = 3
"""Attempts for each unit, and for each start of a worker."""
THREADS_MOST: Final = 10_000
"""Most threads that wait for actors; the pool starts one per unit in progress."""
PATIENCE_S: Final = 1.0
"""Seconds between checks whether the cluster still has room for a starting actor."""
_QUIET: Final[dict[str, Any]] = {"log_to_driver": False, "logging_level": "ERROR"}
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def surroundings() -> dict[str, Any]:
    """Return the versions a worker must share, and the settings it copies from this process."""
    shared = re.compile("TRACEPAPER_(?!NOTIFY)")
    settings = {name: text for name, text in os.environ.items() if shared.match(name)}
    return {
        "equal": {
            "tracepaper": code_version(),
            "the libraries": libraries(),
            "torch": importlib.metadata.version("torch"),
        },
        "environment": settings,
        "folder": os.getcwd(),  # noqa: PTH109 - as text
        "path": list(sys.path),
    }


def load_work(driver: Mapping[str, Any], content: Callable[[], bytes]) -> tuple[Any, str]:
    """Return the work of *content*, loaded with the settings of *driver*, or None and why not."""
    local = surroundings()
    for name, wanted in driver["equal"].items():
        if (has := local["equal"][name]) != wanted:
            return None, f"{name} is {has} there and {wanted} here; install the same on every node."
    for name in local["environment"]:
        del os.environ[name]
    os.environ.update(driver["environment"])
    sys.path.extend(folder for folder in driver["path"] if folder not in sys.path)
    if Path(driver["folder"]).is_dir():
        os.chdir(driver["folder"])
    try:
        work: UnitWork = pickle.loads(content())  # noqa: S301 - sent by the driver
        work.check()
    except (ImportError, AttributeError, TracepaperError) as error:
        return None, str(error)
    return work, ""


class RayWorker:
    """The body of an actor: receives the work once, then runs one unit after another."""

    def begin(self, driver: dict[str, Any], stored: list[Any]) -> str:
        """Load the work that *stored* refers to; return why this worker cannot run it, or ""."""
        ray: Any = importlib.import_module("ray")
        self._work, problem = load_work(driver, lambda: ray.get(stored[0]))
        return problem

    def make(self, unit: object) -> Any:  # noqa: ANN401 - the type depends on the work
        """Return the result of *unit*, or its error."""
        return self._work.answer(unit)


class OnRay(Workers[Any]):
    """One actor per processor of Ray, at most *jobs*.

    A unit whose worker or node is lost is tried again, up to ``TRIES`` attempts.
    """

    def __init__(self, jobs: int | None = None, limit_s: float | None = None) -> None:
        self._jobs = jobs
        self._ray: Any = None
        self._actors: list[Any] = []
        super().__init__(jobs or THREADS_MOST, limit_s)

    def open(self, work: UnitWork) -> None:
        """Start Ray or join its cluster, and put the work into the object store."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is imported
        self._ray = importlib.import_module("ray")
        self._folder: Path | None = None
        self._is_ours, content = not self._ray.is_initialized(), pickle.dumps(work.packed())
        if self._is_ours:
            handler = signal.getsignal(signal.SIGTERM)
            self._connect(os.environ.get("RAY_ADDRESS") or "local", len(content))
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray's handler would abort the process
        # Ray's default is one thread; another number of threads changes the last bits of sums.
        threads = os.environ.get(_THREADS[0], str(len(os.sched_getaffinity(0))))
        env = {"env_vars": {name: os.environ.get(name, threads) for name in _THREADS}}
        self._actor_class = self._ray.remote(num_cpus=1, max_restarts=0, runtime_env=env)(RayWorker)
        self._stored = (self._ray.put(surroundings()), [self._ray.put(content)])

    def _connect(self, address: str, size: int) -> None:
        if address == "local":
            # Directly under /tmp, since the path of a Unix socket is limited to about 100 bytes.
            self._folder = Path(tempfile.mkdtemp(prefix="tp-ray-", dir="/tmp"))
            store, cores = 2**28 + 2 * size, self._jobs or len(os.sched_getaffinity(0))
            options = {"include_dashboard": False, "_temp_dir": str(self._folder), **_QUIET}
            options["_system_config"] = {"worker_niceness": 0}  # Ray's default is 15
            self._ray.init(address, num_cpus=cores, object_store_memory=store, **options)
            return
        at = f"RAY_ADDRESS {address}"
        if address.startswith("ray://"):
            raise ConfigInvalid(f"{at} is a client's address; run the command by `ray job submit`.")
        if address != "auto" and not _answers(address):
            raise ConfigInvalid(f"No Ray is at {at}; start one there, or unset it for one here.")
        try:
            self._ray.init(address, **_QUIET)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigInvalid(f"{at} is refused: {error} (token: RAY_AUTH_MODE=token)") from None

    @property
    def slots(self) -> int:
        """The number of actors that the cluster has room for now; nodes join and leave."""
        processors = int(self._ray.cluster_resources().get("CPU", 1))
        return max(1, min(processors, self._jobs or processors))

    def begin(self) -> Any:  # noqa: ANN401 - an actor of Ray
        """Start an actor, in up to ``TRIES`` attempts; without room, wait for an idle one."""
        why = ""
        for _ in range(TRIES):
            actor = self._actor_class.remote()
            self._actors.append(actor)
            if self.is_closed:  # close() may have missed this actor
                break
            started = actor.begin.remote(*self._stored)
            try:
                while not self._ray.wait([started], timeout=PATIENCE_S)[0]:
                    if len(self._actors) > self.slots and (idle := self.idle_worker()):
                        self._end(actor)
                        return idle
                problem = self._ray.get(started)
            except self._ray.exceptions.RayError as error:
                why = _explain(error)
                self._end(actor)
                continue
            if problem:
                raise ConfigInvalid(f"A Ray worker cannot run this work: {problem}")
            return actor
        raise ConfigInvalid(f"No Ray worker starts: {why}")

    def carry_out(self, unit: object) -> Any:  # noqa: ANN401 - the type depends on the work
        """Return an actor's result of *unit*; if the actor is lost, try another."""
        why = ""
        for _ in range(TRIES):
            try:
                return super().carry_out(unit)
            except self._ray.exceptions.RayError as error:
                why = _explain(error)
        raise UnitFailed(f"Tried {TRIES} times on Ray: {why}")

    def ask(self, worker: Any, unit: object) -> Any:  # noqa: ANN401 - the type depends on the work
        """Return the answer of an actor; raise Ray's error if the actor is lost."""
        answer = worker.make.remote(unit)
        try:
            if self._ray.wait([answer], timeout=self.limit_s)[0]:
                return self._ray.get(answer)
        except self._ray.exceptions.RayError:
            self._end(worker)
            raise
        self._end(worker)
        raise UnitFailed(too_long(self.limit_s or 0.0))

    def _end(self, actor: Any) -> None:  # noqa: ANN401 - an actor of Ray
        self._actors.remove(actor)
        self._ray.kill(actor)

    def close(self) -> None:
        """End every actor."""
        for actor in list(self._actors):
            self._ray.kill(actor)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:  # noqa: FBT001, FBT002 - as Executor has it
        """End every actor; stop Ray and delete its files if this executor started it."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        if self._ray is None:
            return
        if self._is_ours:
            self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _answers(address: str) -> bool:
    """Return whether a gRPC server listens at *address*; Ray itself would retry for a long time."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 5) as line:
            line.sendall(_PREFACE)
            return "RAY_USE_TLS" in os.environ or line.recv(9)[3:4] == b"\4"  # HTTP/2 SETTINGS
    except (OSError, ValueError):
        return False


def _explain(error: Exception) -> str:
    """Return one sentence that explains an error of Ray."""
    if type(error).__name__ == "OutOfMemoryError":
        return "it took more memory than its node gives; let it take less, or give nodes more."
    if (cause := getattr(error, "cause", None)) is not None:
        return f"it failed with {type(cause).__name__} ({cause})."
    return "its worker or node ended; let the class raise and not exit, or give it less memory."
