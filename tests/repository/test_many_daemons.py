"""Many daemons on one machine: the template unit, and the symbols divided among the daemons."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
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
    configs = [load(path) for path in sorted((tmp_path / "daemons").glob("*.toml"))]
    assert len(configs) == 28
    pairs = [(of.market.category, symbol) for of in configs for symbol in of.market.symbols]
    assert sorted(pairs) == sorted(listed)
    assert sum(of.exchange.requests_per_s for of in configs) == pytest.approx(5, rel=0.01)
    metrics = [of.http.metrics for of in configs]
    assert len(set(metrics)) == 28
