"""``ChildProcess``: a process beside the daemon, and the helpers on both of its sides.

A message, either way, is its length followed by msgpack. No decision waits for such a process, its
faults never end a run, and it always ends with the daemon. The rule is docs/operations.md, O22.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, BinaryIO, Final, NamedTuple, Self, TypeVar

import msgspec

END_S: Final = 2.0
"""Wall seconds to wait for the end of a killed process; an orderly stop has seven in total."""
MESSAGE_BYTES: Final = 512 << 20
"""Most bytes of a message. The length that any four letters would announce is more."""
TAIL_BYTES: Final = 4_096
POLL_S: Final = 0.01

LENGTH: Final = struct.Struct("<I")
A = TypeVar("A")


class ChildFailed(Exception):
    """A process did not start, ended, hung or wrote garbage; the message has no full stop."""


class TimeLimits(NamedTuple):
    """Limits of a process, in wall seconds."""

    answer_s: float | None = None
    """For everything within one ``exchange``."""
    key: str = ""
    """The configuration key that sets ``answer_s``, with its value, for error messages."""


class ChildProcess:
    """A process that runs *command*; it is started when needed, and again after it has ended.

    *name* stands for it in error messages. *opening* is the first message to each new process. The
    end of its standard error, a temporary file, tells why the process ended.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        limits: TimeLimits,
        *,
        opening: object = None,
    ) -> None:
        self._name, self._command, self._limits = name, tuple(command), limits
        self._opening = opening
        self._process: subprocess.Popen[bytes] | None = None
        self._resources = contextlib.ExitStack()  # of the process that runs

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.stop()

    # ------------------------------------------------------------ messages

    async def ask(self, kind: type[A], message: object = None) -> A:
        """Send *message*, unless it is None, and return the answer, decoded as *kind*.

        Raises ``ChildFailed``.
        """
        async with self.exchange():
            if message is not None:
                self.write(message)
            return await self.read(kind)

    @asynccontextmanager
    async def exchange(self) -> AsyncIterator[None]:
        """Start the process if necessary, enter the block, and stop the process if that fails.

        Raises ``ChildFailed``.
        """
        try:
            try:
                if self._process is None or self._process.poll() is not None:
                    await self.stop()
                    await self._spawn()
                    if self._opening is not None:
                        self.write(self._opening)
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
        """Send *message* within an ``exchange``; a pipe holds at most 64 KiB of it."""
        if (process := self._process) is None:  # it was stopped
            raise EOFError
        assert process.stdin is not None
        frame = frame_of(message)
        try:
            written = os.write(process.stdin.fileno(), frame)
        except BlockingIOError:
            written = 0
        except OSError:  # the process has closed its end
            raise EOFError from None
        if written < len(frame):
            raise ChildFailed(f"the {self._name} process does not read its input")

    async def read(self, kind: type[A]) -> A:
        """Return the next message within an ``exchange``, decoded as *kind*."""
        (size,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        with contextlib.suppress(msgspec.MsgspecError):
            if size <= MESSAGE_BYTES:
                return msgspec.msgpack.decode(await self._reader.readexactly(size), type=kind)
        raise ChildFailed(f"the answer of the {self._name} process is no result")

    # ------------------------------------------------------------ start and end

    async def _spawn(self) -> None:
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as it runs
            self._resources.callback(self._log.close)
            # Not asyncio's subprocess, for which Python 3.11 waits in a thread.
            self._process = process = subprocess.Popen(  # noqa: ASYNC220, S603 - our program
                self._command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment_of({}),
                start_new_session=True,
            )
        except (OSError, RuntimeError) as error:  # too little memory, descriptors or threads
            raise ChildFailed(f"the {self._name} process could not begin ({error})") from None
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(self._reader)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: protocol, process.stdout)
        self._resources.callback(transport.close)

    async def _cause(self) -> str:
        """Return why the process closed its output: its exit code and last line of errors."""
        if (process := self._process) is None:
            return f"the {self._name} process was stopped"
        await _wait_for_end(process)
        code = process.returncode
        if code is None:
            return f"the {self._name} process closed its output"
        if code < 0:
            name = signal.Signals(-code).name
            return f"the {self._name} process was ended by {name}; the machine may lack memory"
        log = self._log.fileno()
        tail = os.pread(log, TAIL_BYTES, max(os.fstat(log).st_size - TAIL_BYTES, 0))
        lines = tail.decode(errors="replace").split("\n")
        last = next(filter(None, map(str.strip, reversed(lines))), "it said nothing").rstrip(".")
        return f"the {self._name} ended with {code}: {last}"

    async def stop(self) -> None:
        """Close the input of the process, and kill it unless it has ended."""
        process, self._process = self._process, None
        resources, self._resources = self._resources, contextlib.ExitStack()
        if process is None:
            resources.close()
            return
        assert process.stdin is not None
        process.stdin.close()
        resources.close()
        if process.poll() is None:
            await _kill(process)


StartProcess = Callable[..., ChildProcess]
"""Makes a process beside the daemon: ``ChildProcess``, or what stands for one."""


async def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    """Return once *process* has ended, or after ``END_S``.

    It polls: waiting in a thread would fail where the machine can start no more threads.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_S):
            while process.poll() is None:  # noqa: ASYNC110 - no portable event exists
                await asyncio.sleep(POLL_S)


async def _kill(process: subprocess.Popen[bytes]) -> None:
    # On a busy machine a process of idle priority gets no processor time, not even to end.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(process.pid, os.SCHED_OTHER, os.sched_param(0))
    process.kill()
    await _wait_for_end(process)


def environment_of(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child: that of this process, its import path, and *extra*."""
    path = os.pathsep.join(folder for folder in sys.path if folder)
    return {**os.environ, "PYTHONPATH": path, **extra}


# ---------------------------------------------------------------- in the process

IDLE_NICE: Final = 19
"""The niceness of a process that takes only idle processor time."""
DAEMON_GONE: Final = 3
"""The exit code of a process whose daemon has ended."""
_OOM_FIRST: Final = "1000"
_CHUNK_BYTES: Final = 65_536
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_PR_SET_PDEATHSIG: Final = 1


def limit_this_process(*, nice: int = IDLE_NICE, reads_input: bool = False) -> None:
    """Lower the priority of this process, and end it when its standard input closes.

    Limits that the machine does not support are skipped. A process that *reads_input* has to end
    itself at the end of its input.
    """
    with contextlib.suppress(OSError):
        os.nice(nice - os.nice(0))
    if nice == IDLE_NICE:
        with contextlib.suppress(OSError, AttributeError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Among the processes that share the daemon's memory limit, the kernel kills this one first.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_FIRST, encoding="ascii")
    # If the kernel cannot end this process with the daemon, the end of its input does.
    end_with_parent(signal.SIGKILL)
    if not reads_input:
        on_input_end(lambda: os._exit(DAEMON_GONE))


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send this process signal *number* when its parent ends, on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


def on_input_end(act: Callable[[], object]) -> None:
    """Call *act* in a thread once standard input ends: the process that started us has ended.

    The thread discards all input. An input that is already closed counts as ended.
    """

    def read() -> None:
        with contextlib.suppress(OSError, RuntimeError):  # no input, or the loop of *act* is closed
            while sys.stdin is not None and os.read(_STDIN, _CHUNK_BYTES):
                pass
            act()

    threading.Thread(target=read, name="parent", daemon=True).start()


def reserve_stdout() -> BinaryIO:
    """Return standard output for messages; ``print`` writes to standard error from now on."""
    output = os.fdopen(os.dup(_STDOUT), "wb", buffering=0)
    os.dup2(_STDERR, _STDOUT)
    return output


def frame_of(message: object) -> bytes:
    """Return *message* as msgpack after its length, as ``ChildProcess`` reads it."""
    data = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(data)) + data


def messages_of(stream: IO[bytes]) -> Iterator[object]:
    """Yield the messages of *stream* until it ends."""
    while len(head := stream.read(LENGTH.size)) == LENGTH.size:
        yield msgspec.msgpack.decode(stream.read(*LENGTH.unpack(head)))
