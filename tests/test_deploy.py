"""What ships for a machine: unit file, image, compose file and runbook agree with the program."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from tracepaper.daemon.cli import PANELS
from tracepaper.daemon.config import PREFIX, SECTIONS, load
from tracepaper.daemon.supervisor import STOP_WITHIN_S

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


class Unit(configparser.RawConfigParser):
    """A unit file: keys keep their case and may stand several times."""

    def __init__(self, text: str) -> None:
        super().__init__(strict=False, delimiters=("=",), interpolation=None)
        self.optionxform = str  # type: ignore[assignment,method-assign]
        self.read_string(text)
        self.rows = re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)

    def all(self, key: str) -> list[str]:
        return [value for name, value in self.rows if name == key]


@pytest.fixture(scope="module")
def unit() -> Unit:
    return Unit((DEPLOY / "tracepaper.service").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def compose() -> dict[str, dict[str, dict[str, object]]]:
    loaded: dict[str, dict[str, dict[str, object]]] = yaml.safe_load(
        (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    )
    return loaded


def variables(pairs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set *pairs* in the environment, as the service manager does."""
    for name, value in pairs.items():
        monkeypatch.setenv(name, value)


def test_the_unit_notifies_and_is_watched(unit: Unit) -> None:
    service = unit["Service"]
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert int(service["WatchdogSec"]) >= 120
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["KillSignal"] == "SIGTERM"
    assert float(service["TimeoutStopSec"]) > STOP_WITHIN_S + 2


def test_the_unit_calls_a_command_that_exists(unit: Unit) -> None:
    program, verb, *options = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "tracepaper"
    assert verb in PANELS["Trade on paper"]
    assert options[0] == "--config"
    assert Path(options[1]).is_absolute()


def test_the_units_environment_is_a_configuration_that_can_be_used(
    unit: Unit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables(dict(pair.split("=", 1) for pair in unit.all("Environment")), monkeypatch)
    monkeypatch.chdir(tmp_path)
    config = load()
    assert config.log.format == "json"
    assert config.storage.path.parent == Path("/var/lib") / unit["Service"]["StateDirectory"]
    assert str(config.storage.path.parent) == unit["Service"]["WorkingDirectory"]


def test_the_unit_is_hardened(unit: Unit) -> None:
    service = unit["Service"]
    for key in (
        "NoNewPrivileges",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectControlGroups",
        "RestrictNamespaces",
        "RestrictSUIDSGID",
        "LockPersonality",
    ):
        assert service[key] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert service["User"] != "root"
    assert "AF_UNIX" in service["RestrictAddressFamilies"].split()  # sd_notify needs it
    assert unit.all("SystemCallFilter") == ["@system-service", "~@privileged"]
    assert not unit.all("MemoryDenyWriteExecute")  # torch compiles kernels while it runs


def test_the_image_has_no_root_user_and_a_healthcheck(dockerfile: str) -> None:
    final = dockerfile.rsplit("\nFROM ", maxsplit=1)[-1]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK (.|\\\n)*CMD \[\"tracepaper\", \"status\"", final, re.MULTILINE)
    assert 'ENTRYPOINT ["tracepaper"]' in final
    assert final.startswith("python:${PYTHON}-slim")


def test_the_image_copies_every_room_and_nothing_that_is_missing(dockerfile: str) -> None:
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE)
        for name in line.split()[:-1]
    }
    assert {"daemon", "replay", "storage", "strategies", "constraints.txt"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    assert {line[1:] for line in ignored.splitlines() if line.startswith("!")} == copied


def test_the_images_environment_is_a_configuration_that_can_be_used(
    dockerfile: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables(dict(re.findall(rf"({PREFIX}\w+)=(\S+)", dockerfile)), monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert load().storage.path == Path("/data/tracepaper.db")


def test_the_container_is_read_only_and_unprivileged() -> None:
    document = compose()
    service = document["services"]["tracepaper"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "data:/data" in list(service["volumes"])  # type: ignore[call-overload]
    assert "data" in document["volumes"]
    assert "ports" not in service
    build = service["build"]
    assert isinstance(build, dict)
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert service["command"] == ["run"]


def test_the_containers_variables_are_keys_of_the_configuration() -> None:
    environment = compose()["services"]["tracepaper"]["environment"]
    assert isinstance(environment, dict)
    for name in environment:
        section, key = name.removeprefix(PREFIX).lower().split("__")
        assert key in SECTIONS[section].model_fields
        assert section != "market", "it would win over the user's file in silence"


def test_the_runbook_names_commands_and_files_that_exist() -> None:
    text = (DEPLOY / "RUNBOOK.md").read_text(encoding="utf-8")
    verbs = {name for names in PANELS.values() for name in names}
    called = set(re.findall(r"(?:\btp|bin/tracepaper|`tracepaper) ([a-z]+)\b", text))
    assert called <= verbs
    assert {"status", "command", "audit", "db", "doctor", "config", "verify"} <= called
    for name in re.findall(r"deploy/[\w.]+", text):
        assert (ROOT / name).exists()
    for section, key in re.findall(r"`\[(\w+)\] (\w+)`", text):
        assert key in SECTIONS[section].model_fields


def test_the_runbook_covers_the_bad_days() -> None:
    text = (DEPLOY / "RUNBOOK.md").read_text(encoding="utf-8").lower()
    for subject in (
        "## install",
        "## upgrade",
        "## back up",
        "## restore",
        "## halt",
        "disk is full",
        "ban_silence_s",
        "checkpoint is refused",
        "## move to another machine",
        "kept elsewhere",
    ):
        assert subject in text


def test_constraints_pin_every_direct_dependency() -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {
        plain(line.split("==")[0])
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    }
    for requirement in project["dependencies"]:
        assert plain(re.split(r"[^\w.-]", requirement)[0]) in pins
