"""Runs the installed program as its users do: as a process, with its output in files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from waiting import deadline_s

from tracepaper.daemon.clock import SystemClock

ROOT: Final = Path(__file__).resolve().parents[2]
BIN: Final = Path(sys.executable).parent
PROGRAM_S: Final = 240.0
"""What a program is given to be ready and to end, where nothing else runs."""
POLL_S: Final = 0.1


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without our own settings, with our program first."""
    kept = {name: value for name, value in os.environ.items() if name[:11] != "TRACEPAPER_"}
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    plain = {"PATH": path, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    return {**kept, **plain, **(extra or {})}


def interpreter_with(
    requirements: Sequence[str], folder: Path, python_of: str = sys.executable
) -> Path:
    """Return the interpreter of the environment in *folder*, made where it lacks *requirements*.

    It is an environment of the interpreter *python_of*.
    """
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join(requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([python_of, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True)
        stamp.write_text(wanted)
    return python


def texts_of_program(name: str, folder: Path) -> dict[str, str]:
    """Run a program of tests/support, and return the texts that it writes into *folder*."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / name), str(folder)],
        env=environment({"COLUMNS": "200"}),
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline_s(300),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {file.stem: file.read_text(encoding="utf-8") for file in folder.glob("*.txt")}


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended and what it wrote."""

    code: int
    out: str
    err: str


def run(
    arguments: Sequence[str], folder: Path, extra: Mapping[str, str] | None = None
) -> ProgramResult:
    """Run ``tracepaper`` with *arguments* in *folder* until it ends."""
    done = subprocess.run(
        [str(BIN / "tracepaper"), *arguments],
        cwd=folder,
        env=environment(extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline_s(PROGRAM_S),
    )
    return ProgramResult(done.returncode, done.stdout, done.stderr)


class Program:
    """A program that goes on until it is told to stop; it is killed where a test forgets it.

    With *nohup* it starts with SIGHUP ignored, as under that command; *stdin* and *stdout* are
    descriptors, by default of no input and of a file.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        name: str,
        extra: Mapping[str, str] | None = None,
        nohup: bool = False,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
    ) -> None:
        self.command = tuple(command)
        self._out, self._err = (folder / f"{name}.{end}" for end in ("out", "err"))
        # A child takes over whether SIGHUP is ignored, and this process may be under nohup itself.
        ours = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                self.command,
                cwd=folder,
                env=environment({"PYTHONFAULTHANDLER": "1", **(extra or {})}),
                stdin=stdin,
                stdout=out if stdout is None else stdout,
                stderr=err,
            )
        signal.signal(signal.SIGHUP, ours)

    @property
    def out(self) -> str:
        """What it wrote to stdout so far."""
        return self._out.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        """What it wrote to stderr so far."""
        return self._err.read_text(encoding="utf-8")

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait for a condition; raise ``RuntimeError`` where it never comes."""
        clock = SystemClock()
        begun_s = clock.network_s()
        while not is_so():
            if clock.network_s() - begun_s > deadline_s(PROGRAM_S) or self._ended_within(POLL_S):
                raise RuntimeError(f"{self.command} is not ready: {self.err[-2000:]}")

    def _ended_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, by: signal.Signals = signal.SIGTERM, *, within_s: float = 30.0) -> ProgramResult:
        """Send *by* and return how the program ended; raise where it takes longer."""
        self.process.send_signal(by)
        return self.end(within_s=within_s)

    def end(self, *, within_s: float = PROGRAM_S) -> ProgramResult:
        """Wait for the end that comes by itself."""
        try:
            code = self.process.wait(deadline_s(within_s))
        except subprocess.TimeoutExpired as error:
            self.process.send_signal(signal.SIGABRT)  # faulthandler says where each thread is
            self._ended_within(deadline_s(POLL_S))
            error.add_note(self.err[-4000:])
            raise
        finally:
            self.kill()
        return ProgramResult(code, self.out, self.err)

    def kill(self) -> None:
        """End it at once; harmless where it has ended."""
        self.process.kill()
        self.process.wait()


@contextmanager
def exchange_on(folder: Path, *given: str, name: str = "exchange") -> Iterator[Program]:
    """Run ``tracepaper exchange`` with the arguments *given*; it has printed its addresses."""
    program = Program([str(BIN / "tracepaper"), "exchange", *given], folder, name=name)
    try:
        program.wait_until(lambda: "\n" in program.out)
        yield program
    finally:
        program.kill()


def pointing_at(served: str) -> dict[str, str]:
    """Return the settings that point a daemon at the exchange which printed *served*."""
    document = json.loads(served.splitlines()[0])
    return {
        "TRACEPAPER_EXCHANGE__REST_URL": document["rest_url"],
        "TRACEPAPER_EXCHANGE__STREAM_URL": document["stream_url"],
        "TRACEPAPER_EXCHANGE__TIME_SCALE": str(document["speed"]),
        "TRACEPAPER_EXCHANGE__REQUESTS_PER_S": "100",
        "TRACEPAPER_HTTP__PORT": "0",
    }
