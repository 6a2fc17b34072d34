"""docs/date_a_record.md as it stands there: an authority by `openssl ts`, and clones by git."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import pytest
import storage_cases as cases
from forging import rechain
from programs import environment
from readme import DOCS, Block, blocks, commands
from records import tamper
from waiting import deadline_s

PAGE: Final = blocks((DOCS / "date_a_record.md").read_text(encoding="utf-8"))
AUTHORITY: Final = "https://tsa.example/tsr"
READER: Final = "# The reader:\n"
PARTIES: Final = """
[req]
distinguished_name = name
prompt = no
[name]
CN = tsa.example
[root]
basicConstraints = critical, CA:true
[stamping]
extendedKeyUsage = critical, timeStamping
[tsa]
serial = serial
crypto_device = builtin
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
ess_cert_id_alg = sha256
"""


def of_section(title: str, language: str = "bash") -> list[Block]:
    """Return the blocks of a section of the page."""
    return [each for each in PAGE if (each.section, each.language) == (title, language)]


def parts(title: str) -> tuple[str, str]:
    """Return the six lines of a section, those of the record's owner and those of the reader."""
    (block,) = of_section(title)
    owner, _, reader = block.text.partition(READER)
    assert len(commands(block)) - 1 == 6  # and the line that names the reader
    return owner, reader


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run *script* in *folder* until a line fails."""
    names = [f"GIT_{who}_{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
    extra = {"GIT_CONFIG_GLOBAL": os.devnull, **dict.fromkeys(names, "a@b.example")}
    extra["TRACEPAPER_STORAGE__URL"] = f"sqlite:///{folder.parent / 'run.db'}"
    return subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=folder,
        env=environment(extra),
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline_s(60),
    )


def done(script: str, folder: Path) -> str:
    """Return what *script* prints, of which no line fails."""
    ended = shell(script, folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """Return the folder of the heads of a record, which lies beside it."""
    cases.write_run(tmp_path / "run.db", cases.plain_steps(30), group_steps=10)
    (tmp_path / "heads").mkdir()
    return tmp_path / "heads"


class Authority(BaseHTTPRequestHandler):
    """Answers a query for a time stamp by `openssl ts`."""

    folder: Path

    def do_POST(self) -> None:
        query = self.rfile.read(int(self.headers["Content-Length"]))
        (self.folder / "query").write_bytes(query)
        command = "openssl ts -reply -config parties -section tsa -queryfile query"
        signed = f"{command} -signer tsa.pem -inkey tsa.key -out answer"
        subprocess.run(signed.split(), cwd=self.folder, check=True, capture_output=True)
        self.send_response(200)
        self.end_headers()
        self.wfile.write((self.folder / "answer").read_bytes())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def certified(folder: Path) -> Path:
    """Make a root, and a certificate by it for time stamps, in *folder*; return the root's."""
    folder.mkdir()
    (folder / "parties").write_text(PARTIES)
    (folder / "serial").write_text("01\n")
    new = "openssl req -config parties -newkey rsa:2048 -nodes"
    sign = "openssl x509 -req -in tsa.csr -CA root.pem -CAkey root.key -CAcreateserial"
    done(
        f"{new} -x509 -extensions root -keyout root.key -out root.pem\n"
        f"{new} -keyout tsa.key -out tsa.csr\n"
        f"{sign} -extfile parties -extensions stamping -out tsa.pem",
        folder,
    )
    return folder / "root.pem"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the authority of *folder* while the block runs; yield its address."""
    handler = type("Served", (Authority,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_authority_dates_a_head_and_the_reader_refuses_whatever_it_did_not_date(
    heads: Path,
) -> None:
    root, another = (certified(heads.parent / name) for name in ("tsa", "another"))
    owner, reader = parts("By a time-stamp authority")
    with served(root.parent) as address:
        owner = owner.replace(AUTHORITY, address)
        done(owner, heads)
        (token,) = heads.glob("*.tsr")
        bare = owner[owner.index("openssl") :].replace(" -cert", "").replace("$head.tsr", "bare")
        done(f"head={token.stem}\n{bare}", heads)
    reader = f"head={token.stem}\n" + reader.replace("record.db", "../run.db")
    shutil.copy(root, heads / "root.pem")
    told = done(reader, heads)
    assert "Time stamp: " in told
    assert "the digest of the commit from step 20 to step 29, at market time" in told
    assert "certificate not found" in shell(reader.replace("$head.tsr", "bare"), heads).stderr
    shutil.copy(another, heads / "root.pem")
    assert "certificate verify error" in shell(reader, heads).stderr
    shutil.copy(root, heads / "root.pem")
    head = token.with_suffix("").read_text()
    token.with_suffix("").write_text(head.replace(" 29 ", " 28 "))
    assert "message imprint mismatch" in shell(reader, heads).stderr
    token.with_suffix("").write_text(head)
    tamper(heads.parent / "run.db", "UPDATE steps SET volume = volume + 1 WHERE sequence = 25")
    rechain(heads.parent / "run.db")
    refused = shell(reader, heads)
    assert (refused.returncode, "has the digest" in refused.stdout) == (1, True)


def test_a_clone_that_pulls_tells_when_it_had_each_head(heads: Path) -> None:
    base, (owner, reader) = heads.parent, parts("By a repository that others pull")
    heads.rmdir()
    done("git init -q --bare -b main served.git && git clone -q served.git heads", base)
    done(owner, heads)
    done("git clone -q served.git reader", base)
    cases.write_run(base / "run.db", cases.plain_steps(20), of=cases.run("next"))
    done(owner, heads)
    told = done(reader.replace("record.db", "../run.db"), base / "reader")
    (dated,) = (line for line in told.splitlines() if line.startswith("origin/main@{"))
    assert dated.partition("} ")[2].split()[:2] == ["next", "19"]
    assert "The chain of run next holds: 20 steps.\nThe head that was kept is" in told


def test_the_timer_is_one_that_systemd_accepts(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    service, timer = (block.text for block in of_section("Every hour", "ini"))
    units = {"tracepaper-head.service": service, "tracepaper-head.timer": timer}
    for unit, text in units.items():
        assert text.startswith(f"# /etc/systemd/system/{unit}\n")
        (tmp_path / unit).write_text(text)
    command = [program, "verify", *(str(tmp_path / unit) for unit in units)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    (tmp_path / "tracepaper-head.timer").write_text(timer.replace("hourly", "sometimes"))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
