"""No secret enters a configuration, whatever key it is planted in, and no error shows one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from pydantic import ValidationError

from tracepaper.daemon.config.loading import PREFIX, SECTIONS, load, restore, with_settings
from tracepaper.daemon.config.notify import NotifySection
from tracepaper.daemon.config.secrets import CREDENTIALS, TOKENS, is_reference, read_secret, without
from tracepaper.strategies.errors import ConfigInvalid

SECRET = "AAFhunter2hunter2hunter2hunter2hunter2"
PLANTED: dict[str, str] = {
    "chat": f"tgram://123456789:{SECRET}/4711",
    "password": f"https://bob:{SECRET}@api.example.com/v5",
    "user": f"mailto://{SECRET}@example.com",
    "query": f"https://api.example.com/v5?api_key={SECRET}",
    "token": f"ghp_{SECRET}",
    "bot": f"123456789:{SECRET}",
    "hook": f"https://hooks.slack.com/services/T00/B00/{SECRET}",
}
ADDRESSES: dict[str, str] = {
    **PLANTED,
    "scheme": f"discord://{SECRET}",
    "no scheme": SECRET,
    "path": f"json://example.com/hooks/{SECRET}",
    "header": f"json://example.com/?+X-Key={SECRET}",
    "reference": f"env:ghp_{SECRET}",
    "no reference": f"env:{SECRET}/x",
}
"""What is refused in ``notify.addresses``: there all that is not known to be harmless is."""


def shapes(text: str) -> Iterator[Any]:
    """Yield *text* in every form in which a key may hold it."""
    yield text
    yield [text]
    yield {"url": text}
    yield {text: "x"}
    yield {"deep": [{"er": text}]}


FORMS = len(list(shapes("")))


def refusal(tables: Any, **given: Any) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        load(None, tables, **given)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


KEYS = [
    (name, key)
    for name, section in SECTIONS.items()
    for key in section.model_fields
    if (name, key) != TOKENS  # which no run stores
]


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_a_secret_in_any_key_is_refused_and_not_shown(section: str, key: str) -> None:
    first = KEYS.index((section, key)) % len(PLANTED)  # over all keys every text has every form
    texts = islice(cycle(PLANTED.values()), first, None)
    for at, text in zip(range(FORMS), texts, strict=False):
        value = list(shapes(text))[at]
        message = refusal({section: {key: value}})
        assert message.startswith(f"the command line: [{section}] {key} has "), value
        assert "and a run stores its configuration" in message


@pytest.mark.parametrize("name", ADDRESSES)
def test_an_address_must_be_harmless_or_a_reference(name: str) -> None:
    for value in shapes(ADDRESSES[name]):
        assert 'write "env:NAME" in its place' in refusal({"notify": {"addresses": value}})
    with pytest.raises(ValidationError) as caught:  # nor where the section is made directly
        NotifySection(addresses=(ADDRESSES[name],))
    assert SECRET not in str(caught.value)


def test_every_source_of_a_key_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PLANTED["chat"]
    file = tmp_path / "a.toml"
    file.write_text(f'[notify]\naddresses = ["{text}"]\n', encoding="utf-8")
    table = f'{{"password": "{SECRET}"}}'
    for given, origin in (
        (file, str(file)),
        (with_settings(None, [f"notify.addresses=env:A, {text}"]), "--set"),
        (with_settings(None, [f"strategy.options={table}"]), "--set"),
    ):
        with pytest.raises(ConfigInvalid) as caught:
            load(given)
        assert str(caught.value).startswith(f"{origin}: [")
        assert SECRET not in str(caught.value)
    with pytest.raises(ConfigInvalid) as caught:
        with_settings(None, [text])
    assert SECRET not in str(caught.value)
    for key, value in (("NOTIFY__ADDRESSES", text), ("MODEL__OPTIONS", table)):
        monkeypatch.setenv(PREFIX + key, value)
        assert refusal({}).startswith(f"{PREFIX}{key}: [")
        monkeypatch.delenv(PREFIX + key)


@pytest.mark.parametrize("name", ["password", "api_key", "my_secret", "bot-token", "apiKey"])
def test_an_option_that_is_called_a_secret_names_a_place(name: str) -> None:
    error = refusal({"strategy": {"options": {"broker": {name: SECRET}}}})
    assert 'write "env:NAME" and let your class read that environment variable' in error
    kept = load(None, {"strategy": {"name": "mine:Class", "options": {name: "env:MY_KEY"}}})
    assert kept.strategy.options == {name: "env:MY_KEY"}


def test_what_is_no_secret_is_taken() -> None:
    options = {
        "token": "WIF",
        "keys": 3,
        "key": "close",
        "secretary": "x",
        "at": "12:30",
        "n": None,
    }
    addresses = [
        "env:TRACEPAPER_NOTIFY_1",
        "credential:telegram",
        "json://localhost:8080/hook",
        "jsons://example.com/hooks/trading?method=PUT",
        "mailto://mail.example.com:25?from=bot@example.com&to=me@example.com",
        "syslog://",
    ]
    config = load(
        None,
        {
            "strategy": {"name": "mine:Class", "options": options},
            "exchange": {"rest_url": "https://api.bybit.nl", "stream_url": "wss://stream.bybit.nl"},
            "retrain": {"data": ["a@b/BTC.csv"], "folder": "/var/lib/x"},
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
    printed = cli("config", "show", "--set", f"notify.addresses={PLANTED['chat']}")
    assert printed.code == 2
    assert SECRET not in printed.out + printed.err


# ---------------------------------------------------------------- where it stands instead


def test_a_reference_is_read_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "telegram").write_text(f"\n {PLANTED['chat']}\n", encoding="utf-8")
    environment = {"A": f" {SECRET} ", CREDENTIALS: str(tmp_path)}
    assert read_secret("env:A", environment) == SECRET
    assert read_secret("credential:telegram", environment) == PLANTED["chat"]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("env:B", "env:B names an environment variable that is not set; set it."),
        ("env:EMPTY", "env:EMPTY names an environment variable that is not set; set it."),
        ("credential:none", "cannot be read (No such file or directory)"),
        ("credential:empty", "is empty; write the address into it."),
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
