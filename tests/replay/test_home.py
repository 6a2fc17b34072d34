"""A path may begin with the user's home where no shell puts it there: in Python, TOML, a unit."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Cli

import tracepaper
from tracepaper.storage.paths import at_home
from tracepaper.storage.sweeps import registry_path

T0 = 1_735_689_600_000
PARAMS = {"fast": 1, "slow": 3}


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "{}/a.db", "BTCUSDT={}/a.csv", "--db={}/a.db", "sqlite:///{}/a.db"),
        *("storage.url=sqlite:///{}/a.db", "{}/a#b=c"),
    ],
)
@pytest.mark.parametrize("home", ["~", "$HOME", "${HOME}"])
def test_a_home_is_found_where_a_path_begins(text: str, home: str) -> None:
    assert at_home(text.format(home)) == text.format(Path.home())


@pytest.mark.parametrize("text", ["a/~/b", "~other/a", "$HOMES/a", "a~", "/a=~/b", "x ~/a", ""])
def test_what_is_no_home_stays(text: str) -> None:
    assert at_home(text) == text


def test_files_lie_at_home_and_none_in_a_folder_called_tilde(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """Public reports: of freqtrade, jesse, hummingbot, datasette and litestream."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TRACEPAPER_TRIALS", "~/trials.db")
    rows = [f"{T0 + at * 60_000},{100 + at % 7},107,99,{100 + at % 7},5" for at in range(30)]
    head = "open_time,open,high,low,close,volume"
    (home / "prices.csv").write_text("\n".join([head, *rows]))
    (home / "c.toml").write_text('storage = { url = "sqlite:///~/toml.db" }\n')
    data = {"BTCUSDT": "~/prices.csv"}
    with tracepaper.backtest("sma_cross", data, params=PARAMS, db="~/a/b.db") as run:
        assert run.database == home / "a" / "b.db"
    assert tracepaper.open_run("~/a/b.db").run_id == run.run_id
    assert f"sqlite:///{home}/toml.db" in cli.out("config", "show", "~/c.toml")
    assert str(home) in cli.out("data", "check", "BTCUSDT=$HOME/prices.csv")
    assert registry_path() == home / "trials.db"
    assert not [*here.iterdir()]
