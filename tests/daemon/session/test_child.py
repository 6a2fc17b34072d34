"""A child process that is killed, hangs or stops amid a message gives one error and is restarted.

Its programs are scripts of these tests, which write the messages by hand.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import present
from fakes import JumpClock
from waiting import deadline_s, pass_time, until

from tracepaper.daemon.session.background import repeat
from tracepaper.daemon.session.child import (
    DAEMON_GONE,
    MESSAGE_BYTES,
    TAIL_BYTES,
    ChildFailed,
    ChildProcess,
    TimeLimits,
    environment_of,
    frame_of,
)

pytestmark = pytest.mark.sockets


class Answer(msgspec.Struct, frozen=True):
    """The answer of the programs here."""

    text: str


ECHO = """
import os, sys, time
def read(count):
    data = b""
    while len(data) < count and (piece := os.read(0, count - len(data))):
        data += piece
    return data
while head := read(4):
    data = read(int.from_bytes(head, "little"))
    exec(open(sys.argv[1]).read())
    os.write(1, head + data)
"""


LIMITS = TimeLimits(deadline_s(30), "a.key")


class PlantedEcho:
    """An echo program, with code of a test before its answer."""

    def __init__(self, folder: Path) -> None:
        self.program, self._code = folder / "echo.py", folder / "code.py"
        self.program.write_text(ECHO, encoding="utf-8")
        self.before("")

    def before(self, code: str) -> None:
        self._code.write_text(code, encoding="utf-8")

    def child(self, limits: TimeLimits = LIMITS, **options: Any) -> ChildProcess:
        command = sys.executable, "-S", str(self.program), str(self._code)
        return ChildProcess("echo", command, limits, **options)


@pytest.fixture
def planted(tmp_path: Path) -> PlantedEcho:
    return PlantedEcho(tmp_path)


async def reason(child: ChildProcess, message: object = Answer("x")) -> str:
    with pytest.raises(ChildFailed) as failed:
        await child.ask(Answer, message)
    return str(failed.value)


async def test_a_message_has_its_answer_by_one_process(planted: PlantedEcho) -> None:
    planted.before("data = data.replace(b'pid', str(os.getpid()).encode()[-3:].zfill(3))")
    async with planted.child() as child:
        pids = {(await child.ask(Answer, Answer("pid"))).text for _ in range(20)}
        planted.before(
            "data = b'\\x81\\xa4text\\xda\\xff\\xff' + b'x' * 65535; head = b'\\x08\\0\\1\\0'"
        )
        assert await child.ask(Answer, Answer("long")) == Answer("x" * 65_535)
    assert len(pids) == 1


KILLED = "the echo process was ended by SIGKILL; the machine may lack memory"
FAULTS = {
    "is killed before it answers": ("os.kill(os.getpid(), 9)", KILLED),
    "ends": ("sys.exit(0)", "the echo ended with 0: it said nothing"),
    "fails": ("sys.exit('A word.\\nThe last one.\\n')", "the echo ended with 1: The last one"),
    "says much": (
        f"os.write(2, b'x' * {TAIL_BYTES} * 40 + b'\\nend'); sys.exit(2)",
        "the echo ended with 2: end",
    ),
    "closes its output": ("os.close(1); time.sleep(60)", "the echo process closed its output"),
    "writes text": ("os.write(1, b'hello, world')", "the answer of the echo process is no result"),
    "answers another thing": ("data = b'\\xc0'; head = b'\\1\\0\\0\\0'", "the answer of the echo"),
    "announces too much": (
        f"head = ({MESSAGE_BYTES} + 1).to_bytes(4, 'little')",
        "the answer of the echo process is no result",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_what_breaks_off_is_one_sentence_and_begins_anew(
    planted: PlantedEcho, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, sentence = FAULTS[name]
    monkeypatch.setattr("tracepaper.daemon.session.child.END_S", 0.5)
    planted.before(code)
    async with planted.child() as child:
        assert (await reason(child)).startswith(sentence)
        planted.before("")
        assert await child.ask(Answer, Answer("again")) == Answer("again")


async def test_an_answer_that_takes_too_long_is_one_sentence_and_begins_anew(
    planted: PlantedEcho, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    planted.before(f"open({str(mark)!r}, 'w'); time.sleep(3_600)")
    async with planted.child(TimeLimits(3_600, "a.key, 3600")) as child:
        asking = asyncio.ensure_future(reason(child))
        await until(mark.exists, poll_s=0.01)
        pass_time(3_600)
        assert await asking == "it took longer than a.key, 3600"
        planted.before("")
        assert await child.ask(Answer, Answer("again")) == Answer("again")


async def test_a_kill_at_any_byte_of_an_answer_is_one_sentence(planted: PlantedEcho) -> None:
    size = len(frame_of(Answer("x")))
    async with planted.child() as child:
        for cut in range(size):
            planted.before(f"os.write(1, (head + data)[:{cut}]); os.kill(os.getpid(), 9)")
            assert await reason(child) == KILLED, cut
        planted.before("")
        assert await child.ask(Answer, Answer("x")) == Answer("x")


async def test_a_kill_between_two_messages_costs_neither(
    planted: PlantedEcho, tmp_path: Path
) -> None:
    planted.before(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))")
    async with planted.child() as child:
        for word in ("one", "two", "three"):
            assert await child.ask(Answer, Answer(word)) == Answer(word)
            pid = int((tmp_path / "pid").read_text())
            os.kill(pid, 9)
            await until(lambda pid=pid: state_of(pid) == "Z", poll_s=0.01)  # type: ignore[misc]


def state_of(pid: int) -> str:
    """Return the state of a process; empty without one."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    return ""


async def test_a_message_that_nobody_reads_is_a_fault(planted: PlantedEcho) -> None:
    planted.before("time.sleep(60)")
    async with planted.child() as child:
        assert await reason(child, Answer("x" * 900_000)) == (
            "the echo process does not read its input"
        )


async def test_a_program_that_is_missing_is_a_fault(tmp_path: Path) -> None:
    async with ChildProcess("echo", (str(tmp_path / "none"),), TimeLimits()) as child:
        assert (await reason(child)).startswith("the echo process could not begin ([Errno 2]")


async def test_the_opening_is_sent_to_each_new_process(
    planted: PlantedEcho, tmp_path: Path
) -> None:
    opened = tmp_path / "opened"
    planted.before(f"open({str(opened)!r}, 'ab').write(data)")
    planted.program.write_text(
        planted.program.read_text().replace(
            "os.write(1, head", "b'text' in data and os.write(1, head"
        )
    )
    async with planted.child(opening="hello") as child:
        await child.ask(Answer, Answer("x"))
        planted.before("os.kill(os.getpid(), 9) if b'text' in data else None\n")
        await reason(child)
        planted.before(f"open({str(opened)!r}, 'ab').write(data)")
        await child.ask(Answer, Answer("x"))
    assert opened.read_bytes().count(b"hello") == 2


async def test_its_end(planted: PlantedEcho, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with planted.program.open("a", encoding="utf-8") as program:
        program.write("time.sleep(60)\n")
    planted.before(f"open({str(pid)!r}, 'w').write(str(os.getpid()))")
    child = planted.child()
    await child.ask(Answer, Answer("x"))
    number = int(pid.read_text())
    await child.stop()
    await child.stop()  # a second call does nothing
    assert state_of(number) == ""
    gc.collect()  # an open process or pipe would warn, and warnings fail the tests


async def test_a_block_that_is_cancelled_ends_its_process(
    planted: PlantedEcho, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    planted.before(f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    asking = asyncio.ensure_future(planted.child().ask(Answer, Answer("x")))
    await until(lambda: pid.exists() and pid.read_text() != "", poll_s=0.01)
    asking.cancel()
    await asyncio.wait([asking])
    assert state_of(int(pid.read_text())) == ""


async def test_what_a_process_prints_is_no_message() -> None:
    code = (
        "from tracepaper.daemon.session.child import frame_of, reserve_stdout\n"
        "output = reserve_stdout()\n"
        "print('a word', flush=True)\n"
        "output.write(frame_of('an answer'))\n"
    )
    async with ChildProcess("echo", (sys.executable, "-c", code), LIMITS) as child:
        assert await child.ask(str) == "an answer"


def test_what_yields_ends_when_its_input_is_closed() -> None:
    code = (
        "import os, time\n"
        "from tracepaper.daemon.session.child import limit_this_process\n"
        "limit_this_process()\n"
        "print(os.nice(0), os.sched_getscheduler(0) == os.SCHED_IDLE, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment_of({}),
        text=True,
    ) as process:
        assert present(process.stdout).readline().split() == ["19", "True"]
        present(process.stdin).close()
        assert process.wait(timeout=deadline_s()) == DAEMON_GONE


# ---------------------------------------------------------------- pauses


async def test_a_fault_is_followed_by_a_pause_that_grows_until_work_goes_well() -> None:
    clock, calls = JumpClock(), 0
    failed: list[float] = []

    async def work() -> None:
        nonlocal calls
        calls += 1
        if calls == 14:
            raise asyncio.CancelledError
        if calls == 13:
            clock.advance(network_s=60.0)  # after so much work a failure counts as the first
        if calls != 3:
            raise RuntimeError("planted")

    with suppress(asyncio.CancelledError):
        await repeat(work, clock, lambda _error, pause_s: failed.append(pause_s))
    assert failed == [1, 2, 1, 2, 4, 8, 16, 32, 64, 128, 256, 1]
    assert clock.slept == failed
