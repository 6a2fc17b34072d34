"""A daemon and its exchange over TLS, as real processes: the simulated world has none."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Final

import pytest
from programs import BIN, ROOT, Program, pointing_at

from tracepaper.replay.samples import DEMO_CANDLES

TRACEPAPER: Final = str(BIN / "tracepaper")
TRADER: Final = '[strategy]\nname = "sma_cross"\nfast = 5\nslow = 20\n'
RUN: Final = ("run", "-c", "trader.toml", "--db", "run.db")
SERVED: Final = ("exchange", "--data", str(DEMO_CANDLES), "--hold", "--port", "0", "--speed", "60")
FRONT: Final = str(ROOT / "tests" / "support" / "tls_front.py")
CERTIFICATE: Final = (
    *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=exchange"),
    *("-addext", "subjectAltName=IP:127.0.0.1"),
)


def decisions(folder: Path) -> int:
    """Return how many bars were decided; a database that is being made has no views."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(folder / "run.db")) as database:
        return int(database.execute("SELECT count(*) FROM v_decisions").fetchone()[0])
    return 0


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Return a function that starts a program, which ends with the test."""
    with ExitStack() as ends:

        def start(name: str, *command: str, **extra: str) -> Program:
            program = Program(command, tmp_path, name=name, extra=extra)
            ends.callback(program.kill)
            return program

        yield start


def test_a_daemon_trades_over_tls_and_trusts_no_unknown_certificate(
    programs: Callable[..., Program], tmp_path: Path
) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    made = ("openssl", *CERTIFICATE, "-keyout", key, "-out", certificate)
    subprocess.run(made, check=True, capture_output=True)
    (tmp_path / "trader.toml").write_text(TRADER)
    exchange = programs("exchange", TRACEPAPER, *SERVED)
    exchange.wait_until(lambda: "\n" in exchange.out)
    plain = json.loads(exchange.out.splitlines()[0])["rest_url"].rpartition(":")[2]
    front = programs("front", sys.executable, FRONT, certificate, key, plain)
    front.wait_until(lambda: "\n" in front.out)
    settings = pointing_at(exchange.out)
    for name, scheme in (("REST", "https"), ("STREAM", "wss")):
        url = f"{scheme}://127.0.0.1:{front.out.strip()}"
        settings[f"TRACEPAPER_EXCHANGE__{name}_URL"] = url
    stranger = programs("stranger", TRACEPAPER, *RUN, **settings)
    stranger.wait_until(lambda: "certificate verify failed" in stranger.err)
    assert stranger.stop().code == 0
    assert not decisions(tmp_path)
    daemon = programs("daemon", TRACEPAPER, *RUN, **settings, SSL_CERT_FILE=certificate)
    daemon.wait_until(lambda: decisions(tmp_path) >= 2)
    assert daemon.stop().code == 0
