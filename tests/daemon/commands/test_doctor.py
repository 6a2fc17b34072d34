"""``doctor``: what is well, what is not, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import Cli

from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.checkpoints import DEFAULT_CHECKPOINT

CANDLES = Path(__file__).parents[2] / "data" / "candles" / "binance_um_BTCUSDT_1m_2025-05.csv.gz"
OFFLINE = [
    "python",
    "packages",
    "sqlite",
    "configuration",
    "database",
    "disk",
    "attention",
    "checkpoint",
]


def findings(cli: Cli, *arguments: str | Path) -> dict[str, tuple[str, str]]:
    """Return verdict and detail by check; the exit code must agree with them."""
    answer = cli("doctor", "--json", *arguments)
    rows = json.loads(answer.out)["findings"]
    assert answer.code == int(any(row["verdict"] == "fail" for row in rows))
    return {row["check"]: (row["verdict"], row["detail"]) for row in rows}


def configured(folder: Path, text: str) -> Path:
    path = folder / "paper.toml"
    path.write_text(text)
    return path


def test_a_sound_machine_passes_every_check(tmp_path: Path, cli: Cli) -> None:
    document = findings(cli, "--db", tmp_path / "run.db")
    assert list(document) == OFFLINE
    assert {name for name, (verdict, _) in document.items() if verdict == "fail"} == set()
    assert "torch 2" in document["packages"][1]
    assert "sdpa" in document["attention"][1]
    assert "SHA-256 equals its card" in document["checkpoint"][1]


def test_a_swapped_checkpoint_is_found(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(DEFAULT_CHECKPOINT, folder)
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    config = configured(tmp_path, f'[model]\ncheckpoint = "{folder}"')
    verdict, detail = findings(cli, "-c", config, "--db", tmp_path / "a.db")["checkpoint"]
    assert verdict == "fail"
    assert "restore the folder" in detail


def test_a_folder_that_is_missing_is_found(tmp_path: Path, cli: Cli) -> None:
    document = findings(cli, "--db", tmp_path / "absent" / "run.db")
    assert document["database"][0] == document["disk"][0] == "fail"


def test_the_process_that_uses_the_database_is_named(tmp_path: Path, cli: Cli) -> None:
    from tracepaper.storage.audit import SqlAuditLog

    path = tmp_path / "run.db"
    log = SqlAuditLog.open(path)
    # Nearly all of a new database is in its -wal.
    size = sum(file.stat().st_size for file in tmp_path.glob("run.db*")) / 2**20
    found = findings(cli, "--db", path)["database"]
    assert found == ("ok", f"{path}, {size:,.1f} MiB, in use by process {os.getpid()}")
    log.close()
    assert findings(cli, "--db", path)["database"][1].endswith("not in use")


@pytest.mark.parametrize(
    ("text", "verdict", "words"),
    [
        ('[model]\nbackend = "flash_attn"', "fail", "set it to auto or tiles"),
        ("[model]\nthreads = 256", "warn", "set [model] threads lower"),
    ],
)
def test_a_model_that_this_machine_cannot_run_is_found(
    tmp_path: Path, cli: Cli, text: str, verdict: str, words: str
) -> None:
    config = configured(tmp_path, text)
    attention = findings(cli, "-c", config, "--db", tmp_path / "a.db")["attention"]
    assert attention[0] == verdict
    assert words in attention[1]


@pytest.mark.sockets
async def test_online_asks_the_exchange_and_its_stream(tmp_path: Path, cli: Cli) -> None:
    settings = ExchangeSettings(data=(f"BTCUSDT={CANDLES}",), manual=True)
    async with EmbeddedExchange(settings) as exchange:
        config = configured(
            tmp_path,
            f'[exchange]\nrest_url = "{exchange.rest_url}"\nstream_url = "{exchange.stream_url}"',
        )
        document = await asyncio.to_thread(
            findings, cli, "--online", "-c", config, "--db", tmp_path / "a.db"
        )
    assert document["linear:BTCUSDT"] == ("ok", "status Trading")
    assert document["stream"][0] == "ok"
    assert document["exchange"][0] == "warn"  # its time is that of its candles
    assert "clock is" in document["exchange"][1]


def test_an_exchange_that_cannot_be_reached_fails(tmp_path: Path, cli: Cli) -> None:
    config = configured(
        tmp_path, '[exchange]\nrest_url = "http://127.0.0.1:1"\nstream_url = "ws://127.0.0.1:1"'
    )
    document = findings(cli, "--online", "-c", config, "--db", tmp_path / "a.db")
    assert document["exchange"][0] == document["stream"][0] == "fail"
