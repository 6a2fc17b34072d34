"""``--set section.key=value``: one parser for every command that reads a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Cli
from exchange_client import candles, walk_rows

from tracepaper.daemon.config.loading import load, load_with_origins, restore, with_settings
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid


def test_a_setting_wins_over_file_and_environment_and_loses_to_an_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "paper.toml"
    file.write_text('[market]\ninterval = "5"\n[strategy]\nslow = 50\n', encoding="utf-8")
    monkeypatch.setenv("TRACEPAPER_MARKET__INTERVAL", "15")
    monkeypatch.setenv("TRACEPAPER_STRATEGY__FAST", "7")
    given = with_settings(file, ["market.interval=30", "strategy.name=persistence"])
    config, origins = load_with_origins(given, {"strategy": {"name": "sma_cross"}})
    assert (config.market.interval, config.strategy.name) == ("30", "sma_cross")
    assert (config.strategy.fast, config.strategy.slow) == (7, 50)
    assert origins["market", "interval"] == "--set"
    assert origins["strategy", "slow"] == str(file)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["market.intervall=5"], "[market] has no key 'intervall'; the nearest is 'interval'"),
        (["interval=5"], "--set interval=5 sets no key; write section.key=value"),
    ],
)
@pytest.mark.parametrize(
    "command",
    ["config show", "config check", "run", "replay x.csv", "sweep x.csv --space strategy.slow=1,2",
     "evaluate odd:Odd --data x.csv", "lookahead --data x.csv", "recursive --data x.csv"],
)  # fmt: skip
def test_a_setting_that_cannot_be_used_is_refused_alike_by_every_command(
    command: str, texts: list[str], sentence: str, cli: Cli
) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load(with_settings(None, texts))
    assert str(caught.value).startswith("--set")
    assert sentence in str(caught.value)
    assert (
        cli.err(*command.split(), *(word for text in texts for word in ("--set", text)), code=2)
        == f"{caught.value}\n"
    )


def test_a_replay_and_a_sweep_run_by_what_is_set(here: Path, cli: Cli) -> None:
    walk = candles(walk_rows(60))
    rows = zip(walk.open_time_ms, walk.open, walk.high, walk.low, walk.close, strict=True)
    lines = ["open_time,open,high,low,close,volume"]
    lines += [",".join(str(int(cell)) for cell in row) + ",1" for row in rows]
    Path("BTCUSDT.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = ["--set", "strategy.name=sma_cross", "--set", "strategy.fast=3"]
    words = ["BTCUSDT.csv", *settings, "--json"]
    assert cli("replay", *words, "--set", "strategy.slow=9", "--db", "run.db").code == 0
    with Reader.open(Path("run.db")) as reader:
        stored = reader.run(reader.find("last"))
    assert restore(stored.config).strategy.slow == 9
    sweep = ["sweep", *words, "--space", "strategy.slow=7,9", "--jobs", "1"]
    document = json.loads(cli.out(*sweep, "--objective", "return", "--state", "cells.db"))
    assert "TRACEPAPER_STRATEGY__NAME=sma_cross TRACEPAPER_STRATEGY__FAST=3 " in document["command"]
    # Only sma_cross, which is set, reads the key that is swept.
    low, high = (cell["value"] for cell in document["cells"])
    assert low != high
