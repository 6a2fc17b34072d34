"""What ships for a fleet: the template unit, Compose and Kubernetes, each read by its own tool."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml
from programs import ROOT, environment
from readme import blocks

from tracepaper.daemon.config.loading import load

DEPLOY: Final = ROOT / "deploy"
PROGRAM: Final = "/opt/tracepaper/bin/tracepaper"
SAME_BUT: Final = {
    "Description",
    "WorkingDirectory",
    "StateDirectory",
    "Environment",
    "ExecStart",
}
"""Keys in which the template unit and the single one may differ."""


def keys(text: str) -> list[str]:
    """Return the lines of a unit file that set something, but for those of ``SAME_BUT``."""
    lines = re.findall(r"^#?\w+=.*$|^\[\w+\]$", text, re.MULTILINE)
    return [line for line in lines if line.partition("=")[0] not in SAME_BUT]


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def test_the_template_unit_is_hardened_and_watched_as_the_single_one() -> None:
    single, template = text_of("tracepaper.service"), text_of("tracepaper@.service")
    assert keys(template) == keys(single)
    assert keys(template.replace("ProtectHome=yes\n", "")) != keys(single)


def test_an_instance_has_a_database_a_file_and_a_port_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = text_of("tracepaper@.service").replace("%i", "linear-00")
    for name, value in re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    config = load()
    assert config.storage.path == Path("/var/lib/tracepaper/linear-00/tracepaper.db")
    assert config.http.port == 0
    assert "StateDirectory=tracepaper/linear-00\n" in text
    assert f"ExecStart={PROGRAM} run --config /etc/tracepaper/linear-00.toml\n" in text


def verified(text: str, folder: Path) -> int:
    """Return what ``systemd-analyze`` says of the template unit *text*; 0 without it."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return 0
    path = folder / "tracepaper@linear-00.service"
    path.write_text(text.replace(PROGRAM, "/bin/true"), encoding="utf-8")
    words = [program, "verify", "--man=no", "--recursive-errors=no", str(path)]
    return subprocess.run(words, check=False, capture_output=True).returncode


@pytest.mark.parametrize(
    ("was", "becomes"), [("", ""), ("Restart=on-failure", "Restart=sometimes")]
)
def test_systemd_reads_the_template_unit(was: str, becomes: str, tmp_path: Path) -> None:
    text = text_of("tracepaper@.service")
    text = re.sub(r"^#(?=\w+=)", "", text, flags=re.MULTILINE)  # with all that is commented
    assert was in text
    is_changed = bool(was) and shutil.which("systemd-analyze") is not None
    assert (verified(text.replace(was, becomes), tmp_path) != 0) is is_changed


# ---------------------------------------------------------------- Compose


def services() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from yaml.safe_load(text_of("fleet.compose.yaml"))["services"].items()


def test_a_daemon_and_its_shipper_share_a_volume_and_nothing_is_published() -> None:
    by_name = dict(services())
    for name, service in by_name.items():
        assert "ports" not in service
        if name == "postgres":
            continue
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"]
        volume = f"{name.removeprefix('ship-')}:/data"
        assert volume in service["volumes"]
        ships = name.startswith("ship-")
        assert service["networks"] == (["database"] if ships else ["exchange"])
        assert ("secrets" in service) is ships
        if ships:
            assert service["command"][:3] == ["db", "ship", "--to"]
            assert "password" not in service["command"][3]
    whole = yaml.safe_load(text_of("fleet.compose.yaml"))
    assert whole["networks"]["database"]["internal"] is True
    mounted = [volume for of in by_name.values() for volume in of["volumes"]]
    assert {name.split(":")[0] for name in mounted if isinstance(name, str)} == set(
        whole["volumes"]
    )


# ---------------------------------------------------------------- Kubernetes

MANIFEST: Final = "fleet.kubernetes.yaml"


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def refused(text: str) -> list[str]:
    """Name the documents of a manifest that the schemas of Kubernetes refuse."""
    kinds = []
    for document in documents(text):
        try:
            kubernetes_validate.validate(document, "1.37", strict=True)
        except kubernetes_validate.ValidationError:
            kinds.append(document["kind"])
    return kinds


def test_the_schemas_of_kubernetes_take_the_manifest() -> None:
    text = text_of(MANIFEST)
    assert refused(text) == []
    assert refused(text.replace("livenessProbe:", "livenesProbe:")) == ["StatefulSet"]
    assert refused(text.replace("protocol: TCP, port: 443", "protocol: TCP, port: [443]")) == [
        "NetworkPolicy"
    ]


def test_a_pod_is_unprivileged_probed_and_alone_with_its_volume() -> None:
    by_kind = {document["kind"]: document for document in documents(text_of(MANIFEST))}
    assert set(by_kind) == {"Service", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy"}
    spec = by_kind["StatefulSet"]["spec"]
    # A pod alone would take as long at its share of the requests: in a row they would take a day.
    assert spec["podManagementPolicy"] == "Parallel"
    pod = spec["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for probe, path in (("startup", "/livez"), ("liveness", "/livez"), ("readiness", "/readyz")):
        command = container[f"{probe}Probe"]["exec"]["command"]
        assert f"http://127.0.0.1:{load().http.port}{path}" in command[-1]
        compile(command[-1], probe, "exec")
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["config"]["subPathExpr"] == "$(POD_NAME).toml"
    claimed = [claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]]
    assert set(mounts) == {*claimed, *(volume["name"] for volume in pod["volumes"])}
    policy = by_kind["NetworkPolicy"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == labels == spec["selector"]["matchLabels"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 443, 5432}
    (scraped,) = policy["ingress"]
    assert [port["port"] for port in scraped["ports"]] == [
        port["containerPort"] for port in container["ports"]
    ]


# ---------------------------------------------------------------- the symbols, divided


def test_every_symbol_is_in_one_file_that_is_a_configuration(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    (script,) = (block.text for block in blocks(page) if block.text.startswith("# divide.py"))
    (tmp_path / "divide.py").write_text(script, encoding="utf-8")
    listed = [("linear", f"L{number}USDT") for number in range(800)]
    listed += [("spot", f"S{number}USDT") for number in range(557)]
    (tmp_path / "symbols.txt").write_text("".join(f"{of} {name}\n" for of, name in listed))
    done = subprocess.run(
        ["python", "divide.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    configs = [load(path) for path in sorted((tmp_path / "fleet").glob("*.toml"))]
    assert len(configs) == 28
    pairs = [(of.market.category, symbol) for of in configs for symbol in of.market.symbols]
    assert sorted(pairs) == sorted(listed)
    assert sum(of.exchange.requests_per_s for of in configs) == pytest.approx(5, rel=0.01)
    metrics = [of.http.metrics for of in configs]
    assert len(set(metrics)) == 28
    # As the keys of Kubernetes' ConfigMap: the same, but for what scrapes from outside the pod.
    (renaming,) = (block.text for block in blocks(page) if block.text.startswith("mkdir -p deploy"))
    subprocess.run(["sh", "-ec", renaming], cwd=tmp_path, check=True, capture_output=True)
    keyed = [load(tmp_path / f"deploy/fleet/tracepaper-{number}.toml") for number in range(28)]
    assert {of.http.metrics for of in keyed} == {"0.0.0.0:9187"}
    assert [of.market for of in keyed] == [of.market for of in configs]
