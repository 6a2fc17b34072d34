"""``ChildProcess``: the life cycle of a process beside the daemon, and what it needs.

Messages both ways are msgpack behind their length. No decision waits for such a process, no fault
of it ends a run, and it ends with the daemon, however that ends. The rules are docs/operations.md,
O14, O22 and O28, docs/orderbook.md, D29 to D31, and docs/fleet.md, F7.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import IO, BinaryIO, ClassVar, Final, NamedTuple, NoReturn, Self, TypeVar

import msgspec

from tracepaper.daemon.clock import Clock
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import Bar

PAUSE_S: Final = (1.0, 300.0)
"""The first and the longest pause after a fault; each further one doubles it."""
WELL_S: Final = 60.0
"""Seconds at work after which the next fault is a first one."""
START_S: Final = 30.0
"""Wall seconds that a process may take until it has read its opening message."""
END_S: Final = 2.0
"""Wall seconds to wait for the end of a killed process: an orderly stop has seven in all."""
MESSAGE_BYTES: Final = 1 << 20
"""Most bytes of a message: those of our processes have some hundreds."""
TAIL_BYTES: Final = 4_096
POLL_S: Final = 0.01

LENGTH: Final = struct.Struct("<I")
A = TypeVar("A")


class ChildFailed(Exception):
    """A process could not begin, ended, hung or wrote nonsense: one sentence without full stop."""


class TimeLimits(NamedTuple):
    """Wall seconds that a process has."""

    answer_s: float | None = None
    """For what is done within one ``exchange``."""
    key: str = ""
    """The key of the configuration that sets it, with its value."""
    end_s: float | None = 0.0
    """To end once its input is closed, before it is killed; None leaves it alone."""


class ChildProcess:
    """A process of *command* that is begun when it is first needed, and after each end.

    *name* says in sentences what it does. *opening* is sent to each new process, which answers it
    with any message when it is ready. *errors* takes its standard error in place of memory,
    *environment* is added to the daemon's, and no answer has more than *most_bytes*.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        limits: TimeLimits,
        *,
        opening: object = None,
        errors: int | BinaryIO = subprocess.PIPE,
        environment: Mapping[str, str] | None = None,
        most_bytes: int = MESSAGE_BYTES,
    ) -> None:
        self._most_bytes = most_bytes
        self._name, self._command, self._limits = name, tuple(command), limits
        self._opening, self._errors = opening, errors
        self._environment = {**os.environ, **(environment or {}), "PYTHONPATH": import_path()}
        self._process: subprocess.Popen[bytes] | None = None
        self._transports: list[asyncio.ReadTransport] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.stop()

    # ------------------------------------------------------------ messages

    async def ask(self, kind: type[A], message: object = None) -> A:
        """Send *message*, if there is one; return the answer, which is of *kind*.

        Raises ``ChildFailed``.
        """
        async with self.exchange():
            if message is not None:
                self.write(message)
            return await self.read(kind)

    async def follow(self, kind: type[A], take: Callable[[A], object]) -> NoReturn:
        """Call *take* with each message of the process until it ends; stop it however this ends.

        Raises ``ChildFailed`` with why it ended.
        """
        async with self.exchange():
            while True:
                take(await self.read(kind))
        raise AssertionError("an exchange hides no error")

    @asynccontextmanager
    async def exchange(self) -> AsyncIterator[None]:
        """Have a process at work in the block, and stop it where the block fails.

        Raises ``ChildFailed``.
        """
        try:
            try:
                if self._process is None or self._process.poll() is not None:
                    await self.stop()
                    await self._begin()
                async with asyncio.timeout(self._limits.answer_s):
                    yield
            except TimeoutError:
                raise ChildFailed(f"it took longer than {self._limits.key}") from None
            except EOFError:
                raise ChildFailed(await self._cause()) from None
        except BaseException:
            await self.stop()
            raise

    def write(self, message: object) -> None:
        """Send *message*, of what a pipe holds at most (64 KiB), within an ``exchange``."""
        if (process := self._process) is None:  # it was stopped
            raise EOFError
        assert process.stdin is not None
        frame, count = frame_of(message), 0
        try:
            count = os.write(process.stdin.fileno(), frame)
        except BlockingIOError:
            pass
        except OSError:  # it has closed the other end
            raise EOFError from None
        if count < len(frame):
            raise ChildFailed(f"the {self._name} process does not read its input")

    async def read(self, kind: type[A]) -> A:
        """Return the next message within an ``exchange``, which is of *kind*."""
        (size,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        with contextlib.suppress(msgspec.MsgspecError):
            if size <= self._most_bytes:
                return msgspec.msgpack.decode(await self._reader.readexactly(size), type=kind)
        raise ChildFailed(f"the answer of the {self._name} process is no result")

    # ------------------------------------------------------------ start and end

    async def _begin(self) -> None:
        try:
            # Not asyncio's: that kills its processes with the loop, and one may outlive us.
            self._process = process = subprocess.Popen(  # noqa: ASYNC220, S603 - our program
                self._command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=self._environment,
                start_new_session=True,
            )
        except (OSError, RuntimeError) as error:  # for want of memory, descriptors or threads
            raise ChildFailed(f"the {self._name} process could not begin ({error})") from None
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._reader, self._tail = asyncio.StreamReader(), _Tail()
        protocol = asyncio.StreamReaderProtocol(self._reader)
        for stream, listener in ((process.stdout, protocol), (process.stderr, self._tail)):
            if stream is not None:
                await self._listen(stream, listener)
        if self._opening is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_S):
                    self.write(self._opening)
                    await self.read(object)
                    return
            raise ChildFailed(f"the {self._name} process was not ready within {START_S:g} s")

    async def _listen(self, stream: IO[bytes], listener: asyncio.Protocol) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: listener, stream)
        self._transports.append(transport)

    async def _cause(self) -> str:
        """Say why the process closed its output, by exit code and the last line of its errors."""
        if (process := self._process) is None:
            return f"the {self._name} process was stopped"
        await _ended(process, END_S)
        code = process.returncode
        if code is None:
            return f"the {self._name} process closed its output"
        if code < 0:
            name = signal.Signals(-code).name
            return f"the {self._name} process was ended by {name}; the machine may lack memory"
        if process.stderr is not None:
            self._tail.read_rest(process.stderr)
        elif not isinstance(self._errors, int):
            self._errors.seek(max(self._errors.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
            self._tail.read_rest(self._errors)
        lines = self._tail.bytes.decode(errors="replace").split("\n")
        last = next(filter(None, map(str.strip, reversed(lines))), "it said nothing").rstrip(".")
        return f"the {self._name} ended with {code}: {last}"

    async def stop(self) -> None:
        """Close the input of the process, at which it ends; kill it where it has not in time."""
        process, self._process = self._process, None
        transports, self._transports = self._transports, []
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        within_s = self._limits.end_s
        try:
            if within_s is not None:
                await _ended(process, within_s)
        finally:
            for transport in transports:
                transport.close()
            if within_s is not None and process.poll() is None:
                await _kill(process)
            # One that goes on is no child to wait for.
            process.returncode = 0 if process.poll() is None else process.returncode


class _Tail(asyncio.Protocol):
    """Keeps the last bytes of a stream."""

    def __init__(self) -> None:
        self.bytes = b""

    def data_received(self, data: bytes) -> None:
        self.bytes = (self.bytes + data)[-TAIL_BYTES:]

    def read_rest(self, stream: IO[bytes]) -> None:
        """Take what an ended process has left in *stream*."""
        with contextlib.suppress(OSError, ValueError):  # it is empty, or was read to its end
            while data := os.read(stream.fileno(), TAIL_BYTES):
                self.data_received(data)


async def _ended(process: subprocess.Popen[bytes], within_s: float) -> None:
    """Wait for the end of *process*, but not longer; by no thread, as there may be none left."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while process.poll() is None:  # noqa: ASYNC110 - no event says so everywhere
                await asyncio.sleep(POLL_S)


async def _kill(process: subprocess.Popen[bytes]) -> None:
    # On a busy machine a process of idle priority gets no time even to die.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(process.pid, os.SCHED_OTHER, os.sched_param(0))
    process.kill()
    await _ended(process, END_S)


def import_path() -> str:
    """Return the import path of this process, as ``PYTHONPATH`` has it."""
    return os.pathsep.join(place for place in sys.path if place)


# ---------------------------------------------------------------- work in the background


async def keep(
    work: Callable[[], Awaitable[None]],
    clock: Clock,
    failed: Callable[[Exception, float], None],
) -> None:
    """Do *work* again and again; after a fault call *failed* with it and the pause that follows."""
    first_s, longest_s = PAUSE_S
    pause_s = first_s
    while True:
        begun_s = clock.network_s()
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - no fault beside a run ends it
            if clock.network_s() - begun_s >= WELL_S:
                pause_s = first_s
            failed(error, pause_s)
            await clock.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
        else:
            pause_s = first_s


@asynccontextmanager
async def working(
    work: Coroutine[None, None, None], name: str, failed: Callable[[], object]
) -> AsyncIterator[None]:
    """Do *work* in the background of the block; call *failed* where an error ends it.

    That error is raised at the end of the block, which *failed* may have cancelled.
    """

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            failed()

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


class Companion(ABC):
    """Work beside a run: it is shown each stored step, and done in the block of ``at_work``.

    ``key`` is its place in the daemon's status; empty where it has none.
    """

    key: ClassVar[str] = ""

    def status(self) -> Mapping[str, object]:
        """Return how it stands, as plain values."""
        return {}

    def observe(self, step: Step) -> None:  # noqa: B027 - most work is shown no step
        """Take in a stored *step*."""

    @abstractmethod
    async def _work(self) -> None: ...

    def at_work(self, failed: Callable[[], object]) -> AbstractAsyncContextManager[None]:
        """Work in the background of the block; call *failed* where an error ends that."""
        return working(self._work(), type(self).__name__, failed)


class ScheduledJob(Companion):
    """Does a job whenever it is due, one after the other: a bar reached ``due_ms``, market time."""

    due_ms: int

    def __init__(self) -> None:
        self._is_due = asyncio.Event()

    def observe(self, step: Step) -> None:
        """Begin the job once a bar is stored that closed when it was due, or later."""
        if isinstance(step.event, Bar) and step.accepted and step.event.market_ms >= self.due_ms:
            self._is_due.set()

    @abstractmethod
    async def _do(self) -> None: ...

    async def _work(self) -> None:
        while True:
            await self._is_due.wait()
            await self._do()
            self._is_due.clear()  # only now: bars that closed meanwhile found it due still


# ---------------------------------------------------------------- in the process

IDLE_NICE: Final = 19
"""The niceness at which the process takes only what the machine has left."""
ENDED: Final = 3
"""The exit code of a process whose daemon is gone."""
_OOM_FIRST: Final = "1000"
_MIB: Final = 1 << 20
_CHUNK_BYTES: Final = 65_536
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_PR_SET_PDEATHSIG: Final = 1


def stay_behind(
    *, nice: int = IDLE_NICE, memory_mb: int | None = None, reads_input: bool = False
) -> None:
    """Limit this process, and end it as soon as its standard input is closed.

    A limit that the machine does not allow is left out. A process that *reads_input* itself ends by
    itself where that does.
    """
    with contextlib.suppress(OSError):
        os.nice(nice - os.nice(0))
    if nice == IDLE_NICE and hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Among the processes that share the daemon's memory limit, this is to be killed first.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_FIRST, encoding="ascii")
    if memory_mb is not None:
        limit = memory_mb * _MIB
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    # The kernel kills it with the daemon; where it cannot, the end of the input does.
    end_with_parent(signal.SIGKILL)
    if not reads_input:
        at_end_of_input(lambda: os._exit(ENDED))


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Let the kernel send this process signal *number* once its parent is gone, if it can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


def at_end_of_input(act: Callable[[], object]) -> None:
    """Call *act*, in a thread of its own, once standard input ends: whoever started us is gone.

    What is written into it is read away. One that was closed before has ended already.
    """

    def read() -> None:
        with contextlib.suppress(OSError, RuntimeError):  # no input; no loop that could be told
            while sys.stdin is not None and os.read(_STDIN, _CHUNK_BYTES):
                pass
            act()

    threading.Thread(target=read, name="parent", daemon=True).start()


def take_output() -> BinaryIO:
    """Return standard output for messages; what is printed from here on is standard error's."""
    output = os.fdopen(os.dup(_STDOUT), "wb", buffering=0)
    os.dup2(_STDERR, _STDOUT)
    return output


def frame_of(message: object) -> bytes:
    """Return *message* behind its length, as ``ChildProcess`` reads it."""
    data = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(data)) + data


def messages_of(stream: IO[bytes]) -> Iterator[object]:
    """Yield the messages of *stream* until it ends."""
    while len(head := stream.read(LENGTH.size)) == LENGTH.size:
        yield msgspec.msgpack.decode(stream.read(*LENGTH.unpack(head)))
