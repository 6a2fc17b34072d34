"""A witness of other people's code cosigns our log, and ours cosigns a log of theirs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from programs import interpreter_with
from waiting import deadline_s
from witnessed import saved, witnessed

from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.witness.judge import COSIGNED, NoteKey, judge
from tracepaper.storage.witness.keys import key_text, make_key
from tracepaper.storage.witness.log import WitnessLog, tree_of

PROGRAMS = Path(__file__).parent / "programs"
REQUIREMENTS = ("aics-witness==0.1.0", "aics-tlog==0.2.1")
"""A witness and a log by the C2SP specifications, written for another product."""
ORIGIN = "log.example/other"

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def python() -> Path:
    """Return the interpreter of an environment with them."""
    for name in (sys.executable, "python3.13", "python3.12"):
        code = "import sys; sys.exit(sys.version_info < (3, 12))"
        if shutil.which(name) and not subprocess.run([name, "-c", code], check=False).returncode:
            break
    else:
        pytest.skip("aics-witness needs Python 3.12")
    return interpreter_with(REQUIREMENTS, Path(sys.prefix) / "clients" / "aics", name)


@contextmanager
def announced(*command: str | Path, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server of *command*; yield it and its address, once it has printed it."""
    with subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            yield (
                process,
                next(m[0] for m in (re.search(r"http://[\d.]+:\d+", x) for x in lines) if m),
            )
        finally:
            process.terminate()


def submit(url: str, log: WitnessLog, old: int) -> tuple[int, str]:
    """Send the newest checkpoint of *log* to the witness at *url*, and keep what it signs."""
    note = log.sign()
    request = urllib.request.Request(f"{url}/add-checkpoint", log.request(old, note).encode())
    try:
        with urllib.request.urlopen(request, timeout=deadline_s()) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    log.keep(note + text)
    return 200, text


def test_their_witness_cosigns_our_log_and_refuses_a_forged_history(
    python: Path, tmp_path: Path
) -> None:
    case = witnessed(tmp_path, bars=20)
    program = python.with_name("aics-witness")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [program, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    key = NoteKey.parse(run("init", "--name", "witness.example/other", "--listen", "127.0.0.1:0"))
    run("add-log", "--origin", case.log.name, "--vkey", key_text(case.log))
    with announced(program, "serve", cwd=tmp_path) as (_, url):
        log = case.extend()
        assert submit(url, log, 0)[0] == 200
        log.append([(1, 22, 22, b"n" * 32)])
        assert submit(url, log, 0) == (409, "22\n")
        assert submit(url, log, 22)[0] == 200
        log.tree = tree_of(bytes([number]) * 32 for number in range(30))
        assert submit(url, log, 23)[0] == 422
    with closing(open_reader(case.database)) as reader:
        proof = WitnessLog(case.database).prove(reader, 1, 9)
    (sentence,) = judge([saved(tmp_path, proof)], case.log, [key])
    assert "by the clock of witness.example/other; the next bar closes at" in sentence


def test_our_witness_cosigns_their_log(python: Path, tmp_path: Path) -> None:
    witness = make_key(tmp_path / "w1", "witness.example/ours", COSIGNED)
    command = [python, PROGRAMS / "with_aics_log.py"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as theirs:
        assert theirs.stdin is not None
        assert theirs.stdout is not None
        log = theirs.stdout.readline().strip()
        assert NoteKey.parse(log).name == ORIGIN
        ours: list[str | Path] = [
            Path(sys.prefix) / "bin" / "tracepaper",
            "witness",
            "serve",
            "--port",
            "8799",
        ]
        ours += ["--key", tmp_path / "w1", "--log", log]
        with announced(*ours, cwd=tmp_path) as (_, url):
            output, _ = theirs.communicate(f"{url} {key_text(witness)}\n", deadline_s(60))
    assert json.loads(output) == {"verified": 2}
