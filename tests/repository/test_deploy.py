"""What ships for a machine: unit file, image, compose file and runbook agree with the program."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from builders import START_MS, bar, decision, forecast, run, step
from fakes import ManualClock
from msgspec import to_builtins
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from waiting import deadline_s

from tracepaper.daemon.cli import PANELS
from tracepaper.daemon.config.loading import PREFIX, SECTIONS, load
from tracepaper.daemon.http.metrics import registry_of
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.session.supervisor import STOP_WITHIN_S
from tracepaper.strategies.gates.gate import gate_order
from tracepaper.strategies.types.decisions import Position
from tracepaper.strategies.types.market import ParityCheck, ParityOutcome

ROOT = Path(__file__).parents[2]
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
    # Time may heal exit code 1, however long that takes: a full disk, a reader of the database.
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert service["KillSignal"] == "SIGTERM"
    assert float(service["TimeoutStopSec"]) > STOP_WITHIN_S + 2


def test_the_unit_calls_a_command_that_exists(unit: Unit) -> None:
    program, verb, *options = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "tracepaper"
    assert verb in PANELS["Begin with"]
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


def test_the_image_copies_every_room_and_nothing_that_is_missing(dockerfile: str) -> None:
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE)
        for name in line.split()[:-1]
    }
    rooms = {
        "__init__.py",
        "__main__.py",
        "attention.py",
        "models.py",
        "daemon",
        "replay",
        "storage",
        "strategies",
    }
    assert rooms | {"constraints.txt"} <= copied
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
    published = service["ports"]
    assert isinstance(published, list)
    assert all(port.startswith("127.0.0.1:") for port in published)
    build = service["build"]
    assert isinstance(build, dict)
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert service["command"] == ["run"]
    assert service["restart"] == "unless-stopped"


def test_the_containers_variables_are_keys_of_the_configuration() -> None:
    environment = compose()["services"]["tracepaper"]["environment"]
    assert isinstance(environment, dict)
    for name in environment:
        section, key = name.removeprefix(PREFIX).lower().split("__")
        assert key in SECTIONS[section].model_fields
        assert section != "market", "it would win over the user's file in silence"


def test_the_pages_of_operation_name_commands_and_files_that_exist() -> None:
    names = ("alarms", "docker", "systemd", "troubleshooting", "upgrade")
    text = "".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in names)
    verbs = {name for names in PANELS.values() for name in names}
    called = set(re.findall(r"(?:\btp|bin/tracepaper|`tracepaper) ([a-z]+)\b", text))
    assert called <= verbs
    assert {"status", "command", "audit", "db", "doctor", "config", "verify"} <= called
    for name in set(re.findall(r"deploy/[\w.]+", text)) - {"deploy/tracepaper.toml"}:
        assert (ROOT / name).exists()
    for section, key in re.findall(r"`\[(\w+)\] (\w+)`", text):
        assert key in SECTIONS[section].model_fields


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


# ---------------------------------------------------------------- alarms and pictures

SELECTOR = re.compile(r"\b((?:tracepaper|process)_\w+)(\{[^}]*\})?")
SCRAPER = {"job", "instance"}
"""Labels that Prometheus adds."""


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Return the labels of every sample that a daemon exports."""
    clock = ManualClock(START_MS)
    monitor = Monitor(run=run(), clock=clock, counters={"disconnects": 1}, newest=FeedTimes())
    decided = decision(measures=(("operator", 0.0, 1.0, False),))
    monitor.companions = {
        "parity": lambda: {"since_ms": START_MS, "last": to_builtins(IDENTICAL)},
        "notices": lambda: {"sent": 1},
    }
    monitor.copied_s = lambda: START_MS / 1000
    monitor.observe(step(bar(), decided=decided, prediction=forecast(), position=Position()))
    families = text_string_to_metric_families(generate_latest(registry_of(monitor)).decode())
    return {sample.name: set(sample.labels) for each in families for sample in each.samples}


IDENTICAL = ParityCheck(ParityOutcome.IDENTICAL, "", 0, START_MS, 1, 1, 0)


class FeedTimes:
    """A feed that has heard everything."""

    def frame_s(self) -> float:
        return 0.0

    def warm_at(self, _instrument: str) -> None:
        return None

    def quote_ms(self, _instrument: str) -> int:
        return START_MS


def unknown(expression: str, exported: dict[str, set[str]]) -> list[str]:
    """Return the metrics and labels of *expression* that no daemon exports."""
    names = []
    for name, selector in SELECTOR.findall(expression):
        if name not in exported:
            names.append(name)
            continue
        labels = set(re.findall(r"(\w+)\s*[=!]", selector))
        names += [f"{name}.{label}" for label in sorted(labels - exported[name] - SCRAPER)]
    return names


def expressions() -> list[str]:
    """Return every expression of the rules and of the dashboard."""
    rules = yaml.safe_load((DEPLOY / "tracepaper.rules.yml").read_text(encoding="utf-8"))
    board = json.loads((DEPLOY / "tracepaper.dashboard.json").read_text(encoding="utf-8"))
    return [
        *(rule["expr"] for group in rules["groups"] for rule in group["rules"]),
        *(target["expr"] for panel in board["panels"] for target in panel["targets"]),
        *(str(row["query"]) for row in board["templating"]["list"] if row["type"] == "query"),
    ]


def test_alarms_and_pictures_ask_for_what_is_exported(exported: dict[str, set[str]]) -> None:
    queries = expressions()
    assert len(queries) > 40
    assert [name for query in queries for name in unknown(query, exported)] == []


def test_every_metric_of_ours_is_in_an_alarm_or_a_picture(exported: dict[str, set[str]]) -> None:
    names = {name for expression in expressions() for name, _ in SELECTOR.findall(expression)}
    spare = {"tracepaper_info", "tracepaper_last_bar_close_seconds"}
    ours = {name for name in exported if name.startswith("tracepaper_")} - spare
    parts = ("_bucket", "_sum", "_count")
    histograms = {name.removesuffix("_bucket") for name in names if name.endswith("_bucket")}
    covered = names | {name + part for name in histograms for part in parts}
    assert ours - covered == set()


def test_label_values_that_alarms_name_exist() -> None:
    text = " ".join(expressions())
    assert set(re.findall(r'gate="(\w+)"', text)) <= set(gate_order())
    assert set(re.findall(r'outcome="(\w+)"', text)) <= {outcome.value for outcome in ParityOutcome}
    source = (ROOT / "daemon" / "bybit" / "websocket.py").read_text(encoding="utf-8")
    for counter in re.findall(r'what="(\w+)"', text):
        assert f'"{counter}"' in source


def promtool(folder: Path) -> int:
    """Return what promtool says of the rules in *folder*; 0 where it is not installed."""
    program = shutil.which("promtool")
    if program is None:
        return 0
    command = [program, "test", "rules", str(folder / "tracepaper.rules.test.yml")]
    return subprocess.run(
        command, check=False, capture_output=True, timeout=deadline_s()
    ).returncode


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("", ""),
        ("> 3 * tracepaper_interval_seconds", "> 30 * tracepaper_interval_seconds"),
        ("for: 10m", "for: 20m"),
    ],
)
def test_the_alarms_are_silent_and_loud_as_their_own_tests_say(
    tmp_path: Path, was: str, becomes: str
) -> None:
    for name in ("tracepaper.rules.yml", "tracepaper.rules.test.yml"):
        text = (DEPLOY / name).read_text(encoding="utf-8")
        assert was in text or name.endswith("test.yml")
        (tmp_path / name).write_text(
            text.replace(was, becomes) if name.endswith("rules.yml") else text
        )
    is_changed = bool(was) and shutil.which("promtool") is not None
    assert (promtool(tmp_path) != 0) is is_changed
