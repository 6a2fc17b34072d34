"""``doctor``: what is well, what is not, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tracepaper.daemon.cli import invoke
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.checkpoints import DEFAULT_CHECKPOINT
from tracepaper.storage.database.lock import InstanceLock

CANDLES = Path(__file__).parents[2] / "data" / "candles" / "binance_um_BTCUSDT_1m_2025-05.csv.gz"
OFFLINE = [
    "python",
    "packages",
    "sqlite",
    "times",
    "configuration",
    "database",
    "disk",
    "campaign",
    "attention",
    "checkpoint",
]


def findings(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> dict[str, tuple[str, str]]:
    """Return verdict and detail by check; the exit code must agree with them."""
    code = invoke(["doctor", "--json", *map(str, arguments)])
    rows = json.loads(capsys.readouterr().out)["findings"]
    assert code == int(any(row["verdict"] == "fail" for row in rows))
    return {row["check"]: (row["verdict"], row["detail"]) for row in rows}


def test_an_address_that_a_shell_cannot_read_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path, '[notify]\naddresses = ["env:NOTIFY_A"]\n')
    db = tmp_path / "run.db"
    verdict, detail = findings(capsys, "-c", config, "--db", db)["notify"]
    assert verdict == "warn"
    assert detail.startswith("[notify] addresses: env:NOTIFY_A names an environment variable")
    monkeypatch.setenv("NOTIFY_A", "json://127.0.0.1/hunter2")
    found = findings(capsys, "-c", config, "--db", db)["notify"]
    assert found == ("ok", "env:NOTIFY_A; `tracepaper notify test` sends one message")


def configured(folder: Path, text: str) -> Path:
    path = folder / "paper.toml"
    path.write_text(text)
    return path


def test_a_sound_machine_passes_every_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = findings(capsys, "--db", tmp_path / "run.db")
    assert list(found) == OFFLINE
    assert {name for name, (verdict, _) in found.items() if verdict == "fail"} == set()
    assert "torch 2" in found["packages"][1]
    assert "sdpa" in found["attention"][1]
    assert "SHA-256 as its card names" in found["checkpoint"][1]


def test_people_read_one_line_a_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor", "--db", str(tmp_path / "run.db")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == OFFLINE


def test_a_swapped_checkpoint_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(DEFAULT_CHECKPOINT, folder)
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    config = configured(tmp_path, f'[model]\ncheckpoint = "{folder}"')
    verdict, detail = findings(capsys, "-c", config, "--db", tmp_path / "a.db")["checkpoint"]
    assert verdict == "fail"
    assert "restore the folder" in detail


def test_a_file_that_is_no_database_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.db"
    path.write_bytes(b"not a database at all" * 100)
    assert findings(capsys, "--db", path)["database"][0] == "fail"


def test_a_folder_that_is_missing_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = findings(capsys, "--db", tmp_path / "absent" / "run.db")
    assert found["database"][0] == found["disk"][0] == "fail"


def test_the_process_that_uses_the_database_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracepaper.storage.audit import SqlAuditLog

    path = tmp_path / "run.db"
    SqlAuditLog.open(path).close()
    assert findings(capsys, "--db", path)["database"][1].endswith("not in use")
    lock = InstanceLock.acquire(path)
    try:
        assert f"process {os.getpid()}" in findings(capsys, "--db", path)["database"][1]
    finally:
        lock.release()


@pytest.mark.parametrize(
    ("text", "verdict", "words"),
    [
        ('[model]\nbackend = "flash_attn"', "fail", "set it to auto or tiles"),
        ("[model]\nthreads = 256", "warn", "set [model] threads lower"),
    ],
)
def test_a_model_that_this_machine_cannot_run_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, verdict: str, words: str
) -> None:
    config = configured(tmp_path, text)
    found = findings(capsys, "-c", config, "--db", tmp_path / "a.db")["attention"]
    assert found[0] == verdict
    assert words in found[1]


def test_a_configuration_that_cannot_be_used_ends_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["doctor", "-c", str(configured(tmp_path, "[market]\nx = 1"))]) == 2
    assert "has no key 'x'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_zone_of_the_machine_changes_no_verdict(tmp_path: Path) -> None:
    code = (
        "from tracepaper.daemon.session.diagnostics import diagnose\n"
        "from tracepaper.daemon.config.loading import Config\n"
        "from pathlib import Path\n"
        "found = diagnose(Config(), Path('run.db'))\n"
        "print(next(one.verdict for one in found if one.check == 'times'))\n"
    )
    for zone in ("UTC", "Asia/Kathmandu", "America/St_Johns"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "TZ": zone},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "ok\n"


async def test_online_asks_the_exchange_and_its_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ExchangeSettings(data=(f"BTCUSDT={CANDLES}",), manual=True)
    async with EmbeddedExchange(settings) as exchange:
        config = configured(
            tmp_path,
            f'[exchange]\nrest_url = "{exchange.rest_url}"\nstream_url = "{exchange.stream_url}"',
        )
        found = await asyncio.to_thread(
            findings, capsys, "--online", "-c", config, "--db", tmp_path / "a.db"
        )
    assert found["linear:BTCUSDT"] == ("ok", "status Trading")
    assert found["stream"][0] == "ok"
    assert found["exchange"][0] == "warn"  # its time is that of its candles
    assert "clock is" in found["exchange"][1]


def test_an_exchange_that_cannot_be_reached_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(
        tmp_path,
        '[exchange]\nrest_url = "http://127.0.0.1:1"\nstream_url = "ws://127.0.0.1:1"',
    )
    found = findings(capsys, "--online", "-c", config, "--db", tmp_path / "a.db")
    assert found["exchange"][0] == found["stream"][0] == "fail"
