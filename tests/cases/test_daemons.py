"""Public reports about daemons, each beside the embedded exchange in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from programs import BIN, Program, environment, exchange_on, pointing_at, run
from public_cases import MINUTE

from tracepaper.replay.samples import DEMO_CANDLES

TRACEPAPER: Final = str(BIN / "tracepaper")
SPEED: Final = "60"
TRADER: Final = '[strategy]\nname = "sma_cross"\nfast = 5\nslow = 20\n'
RUN: Final = ("run", "-c", "trader.toml", "--db", "run.db")


def exchange(
    folder: Path, port: str = "0", name: str = "exchange"
) -> AbstractContextManager[Program]:
    """Serve the bundled minutes at sixty times the speed of the market."""
    served = ("--data", str(DEMO_CANDLES), "--hold", "--port", port, "--speed", SPEED)
    return exchange_on(folder, *served, name=name)


@contextmanager
def daemon(folder: Path, served: str, name: str = "daemon", **extra: str) -> Iterator[Program]:
    """Run a daemon at the exchange that printed *served*."""
    (folder / "trader.toml").write_text(TRADER)
    settings = {**pointing_at(served), **extra}
    program = Program([TRACEPAPER, *RUN], folder, name=name, extra=settings)
    try:
        yield program
    finally:
        program.kill()


def rows(folder: Path, question: str) -> list[Any]:
    """Return the answer of the daemon's database; nothing before it has views."""
    with suppress(sqlite3.Error):
        uri = f"{(folder / 'run.db').as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as db:
            return db.execute(question).fetchall()
    return []


def bars(folder: Path) -> int:
    counted = rows(folder, "SELECT count(*) FROM v_decisions")
    return int(counted[0][0]) if counted else 0


def market_ms(served: str) -> int:
    """Return the exchange's time."""
    url = json.loads(served.splitlines()[0])["rest_url"] + "/v5/market/time"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return int(json.load(answer)["time"])


def test_a_proxy_is_not_asked_for_this_machine(tmp_path: Path) -> None:
    """Case 54: CapsWriter-Offline#314."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY")
    proxies = dict.fromkeys(names, "http://127.0.0.1:9")
    with exchange(tmp_path) as served, daemon(tmp_path, served.out, **proxies) as program:
        program.wait_until(lambda: bars(tmp_path) >= 2)
        assert program.stop().code == 0


def test_process_one_of_a_container_tells_its_watchdog_and_ends(tmp_path: Path) -> None:
    """Case 60: conmon#288, hermes-agent#55018. An abstract socket, in a namespace of processes."""
    address = f"tracepaper-case-60-{os.getpid()}"
    with exchange(tmp_path) as served, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as watch:
        watch.bind(f"\0{address}")
        watch.setblocking(False)
        (tmp_path / "trader.toml").write_text(TRADER)
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
            pytest.skip("this user has no namespaces.")
        notified = {"NOTIFY_SOCKET": f"@{address}", "WATCHDOG_USEC": "4000000"}
        program = Program(
            [*unshare, TRACEPAPER, *RUN],
            tmp_path,
            name="daemon",
            extra={**pointing_at(served.out), **notified},
        )
        received: list[bytes] = []

        def is_watched() -> bool:
            with suppress(BlockingIOError):
                while True:
                    received.append(watch.recv(4096))
            return sum(b"WATCHDOG=1" in message for message in received) > 2

        try:
            program.wait_until(is_watched)
            assert any(b"READY=1" in message for message in received)
            children = Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children")
            os.kill(int(children.read_text().split()[0]), signal.SIGTERM)
            assert program.end(within_s=10).code == 0
        finally:
            program.kill()


def test_a_daemon_goes_on_without_its_log_and_alone(tmp_path: Path) -> None:
    """Case 150: go-systemd#233, containerd#580, systemd#6620, gekko#2042 and #1320."""
    reader, writer = os.pipe()
    with exchange(tmp_path) as served:
        (tmp_path / "trader.toml").write_text(TRADER)
        settings = pointing_at(served.out)
        process = subprocess.Popen(
            [TRACEPAPER, *RUN],
            cwd=tmp_path,
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=writer,
        )
        os.close(writer)
        try:
            served.wait_until(lambda: bars(tmp_path) > 3 or process.poll() is not None)
            os.close(reader)  # as journald that stops
            before = bars(tmp_path)
            served.wait_until(lambda: bars(tmp_path) > before + 10 or process.poll() is not None)
            assert process.poll() is None
            second = run(RUN, tmp_path, settings)
            assert (second.code, "in use" in second.err) == (2, True), second.err
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


def fault(served: str, **kind: object) -> None:
    """Arm a fault of the exchange that printed *served*."""
    request = urllib.request.Request(
        json.loads(served.splitlines()[0])["control_url"] + "/fault",
        json.dumps(kind).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=30).close()


CUTS: Final[tuple[dict[str, object], ...]] = (
    {"kind": "disconnect"},
    {"kind": "refuse", "count": 2},
    {"kind": "http_status", "status": 503, "count": 3},
    {"kind": "stall", "seconds": 1},
    {"kind": "disconnect"},
)


def test_after_every_cut_each_minute_is_decided_once(tmp_path: Path) -> None:
    """Public reports: pybit#13 and #344, python-bitget#24, bitfinex-api-node#112, btfxwss#29.

    And Binance.Net#1108, node-binance-api#76, Bitfinex.Net#25, sieblyio/binance#228.
    """
    with exchange(tmp_path) as served, daemon(tmp_path, served.out) as program:
        program.wait_until(lambda: bars(tmp_path) > 2)
        for cut in CUTS:
            fault(served.out, **cut)
            enough = bars(tmp_path) + 4
            program.wait_until(lambda enough=enough: bars(tmp_path) >= enough)  # type: ignore[misc]
        assert program.stop().code == 0
    opens = [at for (at,) in rows(tmp_path, "SELECT open_time_ms FROM v_decisions")]
    assert opens == list(range(opens[0], opens[0] + len(opens) * MINUTE, MINUTE))
    assert run(["verify", "last", "--db", "run.db"], tmp_path).code == 0


def test_a_log_that_is_emptied_goes_on_small_and_a_full_pipe_stops_no_bar(tmp_path: Path) -> None:
    """Public reports: elife-bot#341, zdaemon#8, runbot#283, tunneldigger#15, st2#1343.

    And rdiffweb#45, file-rotatelogs#19. Standard output is a pipe that is full from the start.
    """
    log, (reader, writer) = tmp_path / "daemon.log", os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    with exchange(tmp_path) as served, log.open("ab") as appended:
        (tmp_path / "trader.toml").write_text(TRADER)
        process = subprocess.Popen(
            [TRACEPAPER, *RUN],
            cwd=tmp_path,
            env=environment(pointing_at(served.out)),
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=appended,
        )
        try:
            served.wait_until(lambda: bars(tmp_path) > 3 or process.poll() is not None)
            assert log.stat().st_size > 0
            os.truncate(log, 0)
            enough = bars(tmp_path) + 10
            served.wait_until(lambda: bars(tmp_path) >= enough or process.poll() is not None)
            os.close(reader)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            os.close(writer)
    assert b"\0" not in log.read_bytes()
    assert log.stat().st_size > 0


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_ends_a_daemon_in_good_order(by: signal.Signals, tmp_path: Path) -> None:
    """Case 151: kalshi-ai-trading-bot#37, DEXBot#148, freqtrade#907."""
    with exchange(tmp_path) as served, daemon(tmp_path, served.out) as program:
        program.wait_until(lambda: bars(tmp_path) > 2)
        assert program.stop(by).code == 0
        assert rows(tmp_path, "SELECT count(*) FROM v_runs WHERE ended_ms IS NOT NULL") == [(1,)]


def test_a_machine_that_slept_fetches_its_bars_and_trades_none_of_them(tmp_path: Path) -> None:
    """Case 152: bybit-api#119, pybit#31, python-binance#948, freqtrade#13397."""
    with exchange(tmp_path) as served, daemon(tmp_path, served.out) as program:
        program.wait_until(lambda: bars(tmp_path) > 5)
        program.process.send_signal(signal.SIGSTOP)
        wakes_ms = market_ms(served.out) + 10 * MINUTE
        served.wait_until(lambda: market_ms(served.out) >= wakes_ms)
        before = bars(tmp_path)
        program.process.send_signal(signal.SIGCONT)
        program.wait_until(lambda: bars(tmp_path) > before + 25)
        assert program.stop().code == 0
    question = "SELECT open_time_ms FROM v_decisions ORDER BY sequence"
    times = [at for (at,) in rows(tmp_path, question)]
    assert times == list(range(times[0], times[-1] + MINUTE, MINUTE))
    assert rows(tmp_path, "SELECT count(*) FROM v_decisions WHERE refused_by = 'late'")[0][0] >= 5


def test_a_daemon_waits_for_an_exchange_that_comes_later(tmp_path: Path) -> None:
    """Case 154: pybit#56, generalbots#1264, strong-pm#368."""
    with exchange(tmp_path) as served, daemon(tmp_path, served.out) as program:
        program.wait_until(lambda: bars(tmp_path) > 3)
        assert program.stop().code == 0
        answer = served.out
    port = json.loads(answer.splitlines()[0])["rest_url"].rsplit(":", 1)[1]
    before = bars(tmp_path)
    status = ["status", "--db", "run.db"]
    with daemon(tmp_path, answer, name="waiting") as program:
        program.wait_until(lambda: "waits" in run(status, tmp_path).out + run(status, tmp_path).err)
        assert run(status, tmp_path).code == 1
        with exchange(tmp_path, port, name="later"):
            program.wait_until(lambda: bars(tmp_path) > before + 3)
            assert program.stop().code == 0
