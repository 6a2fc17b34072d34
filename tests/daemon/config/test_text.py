"""The documented example: complete, true to the defaults, and what ``config init`` writes."""

from __future__ import annotations

import tomllib
from pathlib import Path

from command_line import Cli

from tracepaper.daemon.config.loading import SECTIONS, Config, example, load, render
from tracepaper.daemon.config.values import description


def test_the_example_is_the_default_configuration() -> None:
    assert Config.model_validate(tomllib.loads(example())) == Config()


def test_every_key_of_the_example_is_documented_and_every_key_is_there() -> None:
    lines = example().splitlines()
    for section, model in SECTIONS.items():
        start = lines.index(f"[{section}]")
        assert lines[start - 1].startswith("# ")
        end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("[")), None)
        table = lines[start + 1 : end]
        for key in model.model_fields:
            places = [i for i, line in enumerate(table) if line.lstrip("# ").startswith(f"{key} =")]
            assert len(places) == 1
            assert table[places[0] - 1].startswith("# ")
            assert len(description(model, key)) > 10


def test_the_suggested_values_of_absent_keys_can_be_used() -> None:
    absent = {
        (section, key)
        for section, model in SECTIONS.items()
        for key, field in model.model_fields.items()
        if field.default is None
    }
    keys = {key for _, key in absent}
    lines = [
        line.removeprefix("# ") if line[2:].split(" = ")[0] in keys else line
        for line in example().splitlines()
    ]
    config = Config.model_validate(tomllib.loads("\n".join(lines)))
    assert all(getattr(getattr(config, section), key) is not None for section, key in absent)


def test_a_rendered_configuration_reads_back(tmp_path: Path) -> None:
    config = load(
        None,
        {
            "strategy": {"name": "a.b:C", "options": {"quote": 'say "hi"', "deep": {"x": [1]}}},
            "risk": {"max_drawdown": "0.25"},
            "market": {"symbols": ["SOLUSDT", "BTCUSDT"]},
        },
    )
    path = tmp_path / "paper.toml"
    path.write_text(render(config), encoding="utf-8")
    assert load(path) == config


def test_init_writes_what_check_and_show_read(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "paper.toml"
    assert cli("config", "init", path).code == 0
    assert path.read_text(encoding="utf-8") == example()
    assert Config().sha256()[:12] in cli.out("config", "check", "-c", path)
    assert Config.model_validate(tomllib.loads(cli.out("config", "show", "-c", path))) == Config()


def test_a_short_configuration_has_the_defaults_in_some_fifteen_lines(
    tmp_path: Path, cli: Cli
) -> None:
    path = tmp_path / "paper.toml"
    assert cli("config", "init", path, "--short").code == 0
    text = path.read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line]) <= 16
    assert Config.model_validate(tomllib.loads(text)) == Config()


def test_init_replaces_nothing_unasked(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "paper.toml"
    path.write_text("mine")
    assert "add --force" in cli.err("config", "init", path, code=2)
    assert path.read_text() == "mine"
    assert cli("config", "init", path, "--force").code == 0
    assert cli("config", "init", tmp_path / "no" / "where.toml").code == 2
