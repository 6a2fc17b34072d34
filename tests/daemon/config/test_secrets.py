"""A configuration holds the place of a secret, and no error shows one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from pydantic import ValidationError

from tracepaper.daemon.config.loading import PREFIX, load, restore, with_settings
from tracepaper.daemon.config.notify import NotifySection
from tracepaper.daemon.config.secrets import CREDENTIALS, is_reference, read_secret, without
from tracepaper.strategies.errors import ConfigInvalid

SECRET = "AAFhunter2hunter2hunter2hunter2hunter2"
CHAT = f"tgram://123456789:{SECRET}/4711"
PLACE = "must be env:NAME, an environment variable, or credential:NAME, a file of"


def refusal(given: Any, overrides: Any = None) -> str:
    """Return the sentence that refuses a configuration, which shows no secret."""
    with pytest.raises(ConfigInvalid) as caught:
        load(given, overrides or {})
    message = str(caught.value)
    assert SECRET not in message
    assert f"cannot be used; an {'address' if 'addresses' in message else 'option'}" in message
    assert PLACE in message
    return message


@pytest.mark.parametrize(
    "address",
    [CHAT, SECRET, "json://localhost:8080/hook", f"env:{SECRET}/x", f"credential:../{SECRET}"],
)
def test_an_address_of_notices_is_a_reference(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f'[notify]\naddresses = ["env:A", "{address}"]\n', encoding="utf-8")
    assert refusal(file).startswith(f"{file}: [notify] addresses = … cannot be used")
    assert refusal(with_settings(None, [f"notify.addresses={address}"])).startswith("--set: ")
    assert refusal(None, {"notify": {"addresses": [address]}}).startswith("the command line: ")
    monkeypatch.setenv(PREFIX + "NOTIFY__ADDRESSES", address)
    assert refusal(None).startswith(f"{PREFIX}NOTIFY__ADDRESSES: ")
    with pytest.raises(ValidationError) as caught:  # nor where the section is made directly
        NotifySection(addresses=(address,))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("section", ["strategy", "model"])
@pytest.mark.parametrize(
    "name", ["password", "key", "api_key", "API_KEY", "my_secret", "bot-token", "apiKey", "key2"]
)
def test_an_option_that_is_called_a_secret_is_a_reference(
    section: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (SECRET, [SECRET], 4711):
        for options in ({name: value}, {"broker": [{name: value}]}):
            message = refusal(None, {section: {"options": options}})
            assert f"[{section}] options = … cannot be used; an option called {name!r}" in message
    monkeypatch.setenv(f"{PREFIX}{section}__OPTIONS".upper(), json.dumps({name: SECRET}))
    assert refusal(None).startswith(f"{PREFIX}{section}__OPTIONS: ".upper())


def test_what_is_not_called_a_secret_and_what_names_its_place_are_taken() -> None:
    options = {
        "api_key": "env:MY_KEY",
        "broker": {"password": "credential:broker", "token": None},
        "keys": 3,
        "tokens": ["a"],
        "monkey": "close",
        "secretary": "x",
        "password_file": "/etc/x",
    }
    addresses = ["env:TRACEPAPER_NOTIFY_1", "credential:telegram"]
    config = load(
        None,
        {
            "strategy": {"name": "mine:Class", "options": options},
            "notify": {"addresses": addresses, "templates": {"halt": "see https://wiki/halt"}},
        },
    )
    assert config.strategy.options == options
    assert config.notify.addresses == tuple(addresses)
    assert restore(config.canonical_json()) == config


def test_config_show_prints_places_alone(cli: Cli) -> None:
    assert 'addresses = ["env:A", "credential:b.c"]' in cli.out(
        "config", "show", "--set", "notify.addresses=env:A,credential:b.c"
    )
    printed = cli("config", "show", "--set", f"notify.addresses={CHAT}")
    assert printed.code == 2
    assert SECRET not in printed.out + printed.err


# ---------------------------------------------------------------- where it stands instead


def test_a_reference_is_read_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "telegram").write_text(f"\n {CHAT}\n", encoding="utf-8")
    environment = {"A": f" {SECRET} ", CREDENTIALS: str(tmp_path)}
    assert read_secret("env:A", environment) == SECRET
    assert read_secret("credential:telegram", environment) == CHAT


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("env:B", "env:B names an environment variable that is not set; set it."),
        ("env:EMPTY", "env:EMPTY names an environment variable that is not set; set it."),
        ("credential:none", "cannot be read (No such file or directory)"),
        ("credential:empty", "is empty; write the secret into it."),
        ("credential:bytes", "is not UTF-8 text"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, reference: str, words: str) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigInvalid) as caught:
        read_secret(reference, {"EMPTY": " ", CREDENTIALS: str(tmp_path)})
    assert words in str(caught.value)


def test_a_credential_needs_its_folder() -> None:
    with pytest.raises(ConfigInvalid, match="LoadCredential=telegram:PATH"):
        read_secret("credential:telegram", {})


@pytest.mark.parametrize(
    "text",
    ["credential:../passwd", "credential:/etc/passwd", "credential:.x", "env:", "env:A B", "env:1"],
)
def test_a_reference_is_a_name_and_no_path(text: str) -> None:
    assert not is_reference(text)


def test_no_part_of_an_address_is_left_in_an_error() -> None:
    address = f"https://bob:{SECRET}%2Fx@api.example.com/hook-secret?to=%40home"
    text = f"401 for {SECRET}/x at api.example.com, hook-secret, @home"
    left = without(text, address)
    assert SECRET not in left
    assert "example" not in left
    assert "home" not in left
