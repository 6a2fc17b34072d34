"""The wheel holds all that the program needs, and runs where nothing of the checkout is."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from programs import ROOT

pytestmark = pytest.mark.slow

PARTS: Final = ("__init__.py", "py.typed", "daemon", "replay", "storage", "strategies")
SHIPPED: Final = {
    *(".py", ".c", ".gz", ".toml", ".txt", ".typed", ".safetensors", ".md", ".css", ".js"),
}
"""Kinds of files that belong into the wheel; what is compiled or cached does not."""


def known(*places: str) -> list[str]:
    """Return the files that git tracks or would track, at *places* or everywhere."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *places],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def tracked() -> set[str]:
    """Return the files of the package by their path in the wheel."""
    return {f"tracepaper/{name}" for name in known(*PARTS)}


@dataclass(frozen=True)
class Installed:
    """A wheel, and an environment that holds it and sees this one's other packages."""

    wheel: Path
    python: Path
    folder: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the installed program in a folder far from the checkout."""
        return subprocess.run(
            [str(self.python.with_name("tracepaper")), *arguments],
            cwd=self.folder,
            env={"PATH": os.defpath, "HOME": str(self.folder), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )


def built(folder: Path, *objects: str) -> Path:
    """Build the wheel in *folder* with what is installed here, with *objects* beside the sources.

    It is built from a copy: a build folder of earlier days would hide what a fresh clone lacks.
    """
    for name in known(*PARTS, "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    for name in objects:
        (folder / "source/strategies/attention" / name).write_bytes(b"compiled")
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run(
        [sys.executable, *build, str(folder / "source")],
        check=True,
        capture_output=True,
        timeout=240,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the wheel and install it alone, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = built(folder)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    pip = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run(
        [sys.executable, *pip, "--ignore-installed", str(wheel)], check=True, capture_output=True
    )
    return Installed(wheel, python, folder)


def test_the_wheel_holds_every_file_of_the_packages(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {name for name in tracked() if Path(name).suffix in SHIPPED}
    assert wanted - held == set()
    assert {name for name in held if name.endswith(".py")} - tracked() == set()
    for needed in (
        "tracepaper/storage/migrations/versions/r0003_tables.py",
        "tracepaper/storage/models/flash-1m/weights.safetensors",
        "tracepaper/daemon/bybit/instruments_linear.json.gz",
        "tracepaper/py.typed",
    ):
        assert needed in held


def test_a_wheel_with_compiled_loops_is_one_of_this_platform(
    installed: Installed, tmp_path: Path
) -> None:
    assert installed.wheel.stem.endswith("-py3-none-any")
    wheel = built(tmp_path, "native_avx2.so")
    assert wheel.stem.split("-")[2:4] == ["py3", "none"]
    assert wheel.stem.split("-")[4] != "any"
    with zipfile.ZipFile(wheel) as archive:
        held = "tracepaper/strategies/attention/native_avx2.so"
        assert archive.read(held) == b"compiled"


def test_no_file_of_the_packages_is_of_a_kind_that_is_not_shipped() -> None:
    assert {name for name in tracked() if Path(name).suffix not in SHIPPED} == set()


def test_the_installed_program_is_the_wheels_and_not_the_checkouts(installed: Installed) -> None:
    where = "import tracepaper.daemon.cli as cli; print(cli.__file__)"
    done = subprocess.run(
        [str(installed.python), "-c", where],
        cwd=installed.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(installed.folder / "venv"))


def test_the_installed_program_helps_and_examines_itself(installed: Installed) -> None:
    helped = installed.run("--help")
    assert (helped.returncode, "replay" in helped.stdout) == (0, True)
    examined = installed.run("doctor", "--json")
    assert examined.returncode == 0, examined.stdout + examined.stderr
    findings = {item["check"]: item for item in json.loads(examined.stdout)["findings"]}
    assert findings["checkpoint"]["verdict"] == "ok"


def test_the_installed_program_replays_the_bundled_candles(installed: Installed) -> None:
    where = "from tracepaper.replay.samples import DEMO_CANDLES; print(DEMO_CANDLES)"
    found = subprocess.run(
        [str(installed.python), "-c", where],
        cwd=installed.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    options = ["--from", "2025-06-03T00:00", "--to", "2025-06-03T00:50", "--db", "run.db", "--json"]
    replayed = installed.run("replay", "--data", found.stdout.strip(), *options)
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["decisions"] == 50
    checked = installed.run("audit", "verify", "last", "--db", "run.db")
    assert (checked.returncode, "holds" in checked.stdout) == (0, True)
