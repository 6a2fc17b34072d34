"""``doctor``: what is well, what is not, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from command_line import Cli
from fleet_cases import grown
from postgres_server import Cluster
from readme import DOCS, blocks
from storage_cases import plain_steps, write_run

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.diagnostics import ask_fleet
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.checkpoints import DEFAULT_CHECKPOINT
from tracepaper.storage.database.lock import InstanceLock
from tracepaper.storage.fleet.follow import ship_once
from tracepaper.storage.fleet.server import shown
from tracepaper.storage.fleet.ship import Shipper

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


def test_a_secret_that_a_shell_cannot_read_is_a_warning(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '[notify]\naddresses = ["env:NOTIFY_A"]\n[http]\ntokens = {anna = "env:ANNA"}\n'
    config = configured(tmp_path, text)
    db = tmp_path / "run.db"
    verdict, detail = findings(cli, "-c", config, "--db", db)["tokens"]
    assert verdict == "warn"
    assert detail.startswith("[http] tokens, anna: env:ANNA names an environment variable")
    monkeypatch.setenv("ANNA", "a" * 32)
    verdict, detail = findings(cli, "-c", config, "--db", db)["notify"]
    assert verdict == "warn"
    assert cli("config", "check", "-c", config).code == 2
    assert detail.startswith("[notify] addresses: env:NOTIFY_A names an environment variable")
    monkeypatch.setenv("NOTIFY_A", "json://127.0.0.1/hunter2")
    finding = findings(cli, "-c", config, "--db", db)["notify"]
    assert finding == ("ok", "env:NOTIFY_A; `tracepaper notify test` sends one message")


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


# ---------------------------------------------------------------- storage.ship_to


def verdict_of(url: str, path: Path) -> tuple[str, str]:
    """Let doctor try the shipping of *path* to *url*."""
    config = load(None, {"storage": {"ship_to": url}})
    (finding,) = ask_fleet(config, path)
    assert finding.check == "fleet"
    assert "\n" not in finding.detail
    return finding.verdict.value, finding.detail


def test_a_server_that_takes_what_is_shipped_passes(
    tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path, where = tmp_path / "run.db", shown(fleet_url)
    assert verdict_of(fleet_url, path) == (
        "ok",
        f"{where} takes what is shipped; nobody ships {path} now",
    )
    assert not path.exists()
    write_run(path, plain_steps(20))
    ship_once(path, fleet_url)
    before = path.read_bytes()
    assert verdict_of(fleet_url, path)[0] == "ok"
    assert path.read_bytes() == before


def test_who_ships_a_file_already_is_named(
    tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path = tmp_path / "run.db"
    write_run(path, plain_steps(20))
    elsewhere = Shipper(path, postgres.fresh())  # of the same server, which tells all locks
    elsewhere.open()
    assert verdict_of(fleet_url, path)[0] == "ok"
    elsewhere.close()
    other = Shipper(path, fleet_url)
    other.open()
    try:
        verdict, detail = verdict_of(fleet_url, path)
        assert verdict == "warn"
        assert (
            f", but tracepaper {socket.gethostname()}:{os.getpid()} already ships {path}" in detail
        )
        assert "stop it before you start a daemon, or" in detail
        lock = InstanceLock.acquire(path)  # a daemon runs: that is its shipper
        try:
            assert verdict_of(fleet_url, path)[0] == "ok"
        finally:
            lock.release()
    finally:
        other.close()


def test_a_role_that_cannot_ship_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: Cluster, fleet_url: str
) -> None:
    path = tmp_path / "run.db"
    url = fleet_url.replace("owner@", "shipping@")
    postgres.sql(
        fleet_url,
        "DROP ROLE IF EXISTS shipping",
        "CREATE ROLE shipping LOGIN PASSWORD 'secret-3141'",
    )
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    assert "give one by the variable PGPASSWORD" in verdict_of(url, path)[1]
    monkeypatch.setenv("PGPASSWORD", "wrong-2718")
    verdict, detail = verdict_of(url, path)
    assert verdict == "fail"
    assert "correct it in the variable PGPASSWORD" in detail
    assert "wrong-2718" not in detail
    monkeypatch.setenv("PGPASSWORD", "secret-3141")
    assert "may not read the schema's version" in verdict_of(url, path)[1]
    page = (DOCS / "fleet.md").read_text(encoding="utf-8")
    (script,) = (block.text for block in blocks(page) if block.language == "sql")
    grants = [
        line.replace("tracepaper_writer, tracepaper_reader", "shipping").replace(
            "tracepaper_writer", "shipping"
        )
        for line in script.split(";")
        if "GRANT" in line
    ]
    lacks = {
        1: "may not read the schema's version (permission denied for table schema_version)",
        2: "lacks DELETE, INSERT, UPDATE on tables of the fleet: grant it what docs",
        3: "lacks DELETE, UPDATE on",
        4: "lacks DELETE on",
    }
    try:
        for number, grant in enumerate(grants, 1):
            postgres.sql(fleet_url, grant)
            verdict, detail = verdict_of(url, path)
            if number in lacks:
                assert verdict == "fail"
                assert lacks[number] in detail
        assert (len(grants), verdict) == (5, "ok")
        postgres.sql(fleet_url, "REVOKE INSERT ON holes FROM shipping")
        assert "lacks INSERT on" in verdict_of(url, path)[1]
        name = fleet_url.rpartition("/")[2]
        postgres.sql(fleet_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        assert "takes no writes, as a standby does: name the primary" in verdict_of(url, path)[1]
    finally:
        reset = "ALTER DATABASE {} RESET default_transaction_read_only"
        postgres.sql(postgres.url("postgres"), reset.format(fleet_url.rpartition("/")[2]))
        postgres.sql(fleet_url, "DROP OWNED BY shipping", "DROP ROLE shipping")


def test_a_copy_that_went_on_is_found_before_it_trades(tmp_path: Path, fleet_url: str) -> None:
    path, copy = tmp_path / "run.db", tmp_path / "copy.db"
    write_run(path, plain_steps(20))
    shutil.copy(path, copy)
    grown(path, 40, seed=1, since=20)
    ship_once(path, fleet_url)
    verdict, detail = verdict_of(fleet_url, copy)
    assert verdict == "fail"
    assert "has another history than the fleet's under its id" in detail


def test_shipping_is_asked_for_online_and_its_extra_without_a_network(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, fleet_url: str
) -> None:
    config = configured(
        tmp_path,
        '[exchange]\nrest_url = "http://127.0.0.1:1"\nstream_url = "ws://127.0.0.1:1"\n'
        f'[storage]\nship_to = "{fleet_url}"\n',
    )
    given = ("-c", config, "--db", tmp_path / "run.db")
    document = findings(cli, "--online", *given)
    assert document["fleet"][0] == document["shipping"][0] == "ok"
    assert document["shipping"][1].endswith(f"to {shown(fleet_url)}; --online asks that server")
    monkeypatch.setattr("tracepaper.strategies.extras.find_spec", lambda _name: None)
    document = findings(cli, *given)
    assert "fleet" not in document
    verdict, detail = document["shipping"]
    assert verdict == "fail"
    assert detail.startswith("[storage] ship_to needs psycopg: install it with pip install 'tracep")
    assert ask_fleet(load(config), tmp_path / "run.db") == []
    assert ask_fleet(load(None), tmp_path / "run.db") == []
