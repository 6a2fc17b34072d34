"""Other people's clients, each in an environment of its own; collected only by ``-m clients``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from programs import interpreter_with

HERE = Path(__file__).parent
CANDLES = HERE.parent / "data" / "candles" / "binance_um_BTCUSDT_1m_2025-05.csv.gz"
REQUIREMENTS = {
    "ccxt": ("ccxt==4.5.90",),
    "freqtrade": ("freqtrade==2026.9",),
    "nautilus": ("nautilus_trader==1.221.0",),
    "datasette": ("datasette==0.65.5",),
}
"""What was tried."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless its marker is asked for."""
    del collection_path
    return None if "clients" in config.option.markexpr else True


@pytest.fixture
def client_python() -> Callable[[str], Path]:
    """Return the interpreter of a client's own environment, made at its first use."""
    folder = Path(sys.prefix) / "clients"
    return lambda name: interpreter_with(REQUIREMENTS[name], folder / name)


@contextmanager
def exchange(category: str, calls: Path) -> Iterator[dict[str, Any]]:
    """Run ``tracepaper exchange`` on the wall clock; its announcement is the value.

    Each route and topic that is called is added to *calls*.
    """
    command = [sys.executable, str(HERE / "logged_exchange.py"), str(calls), "exchange", "--now"]
    command += ["--data", f"BTCUSDT={CANDLES}", "--category", category, "--until-eof"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()


@pytest.fixture
def play(client_python: Callable[[str], Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return what the program of a client says of the exchange: one JSON object, its last line.

    ``calls`` in it are the routes and topics that it called, as the exchange logged them.
    """

    def played(name: str, program: str, category: str, within_s: float) -> dict[str, Any]:
        python = client_python(name)
        calls = tmp_path / "calls.txt"
        with exchange(category, calls) as addresses:
            command = [str(python), str(HERE / "programs" / f"{program}.py")]
            with subprocess.Popen(
                [*command, addresses["rest_url"], addresses["stream_url"], category],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            ) as process:
                try:
                    output, errors = process.communicate(timeout=within_s)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)  # with what it started itself
                    raise
        assert process.returncode == 0, output[-4_000:] + errors[-4_000:]
        document: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        return document | {"calls": set(calls.read_text(encoding="utf-8").split())}

    return played
