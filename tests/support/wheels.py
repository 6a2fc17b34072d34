"""Builds the wheel and installs it far from the checkout, without a network."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from programs import ROOT, environment
from waiting import deadline_s

from tracepaper.daemon.version import commit_of

PARTS: Final = (
    "__init__.py",
    "__main__.py",
    "attention.py",
    "models.py",
    "py.typed",
    "daemon",
    "replay",
    "storage",
    "strategies",
)
BUILT_WITH: Final = (
    *("pyproject.toml", "setup.py", "MANIFEST.in", "constraints.txt"),
    *("README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md"),
)


def files_of_git(*places: str) -> list[str]:
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
    return {f"tracepaper/{name}" for name in files_of_git(*PARTS)}


def built(folder: Path, compiler: str | None = None) -> Path:
    """Build the wheel in *folder* with what is installed here, and with *compiler* if it is given.

    An earlier build left a module there that this version has no more.
    """
    left = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/tracepaper/gone.py"
    (folder / "source" / "build" / left).parent.mkdir(parents=True)
    (folder / "source" / "build" / left).touch()
    build(folder, "--wheel", extra={} if compiler is None else {"CC": compiler})
    (wheel,) = folder.glob("*.whl")
    return wheel


def build(folder: Path, *kinds: str, extra: Mapping[str, str], umask: int = 0o022) -> None:
    """Build distributions of *kinds*, or both, in *folder*; files of the source have its *umask*.

    They are built from a copy: this checkout holds more than a fresh clone. The copy is none, so
    its commit is named.
    """
    for name in files_of_git(*PARTS, *BUILT_WITH):
        copy = folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
        copy.chmod(0o666 & ~umask)
    build_of(
        folder / "source",
        folder,
        *kinds,
        extra={"SOURCE_COMMIT": commit_of(ROOT), **extra},
        umask=umask,
    )


def built_alone(folder: Path) -> Path:
    """Build the wheel of attention alone in *folder*."""
    laid_out = folder / "alone"
    subprocess.run([ROOT / "deploy" / "attention" / "sources.sh", laid_out], check=True)
    build_of(laid_out, folder, "--wheel", extra={"SOURCE_COMMIT": commit_of(ROOT)})
    (wheel,) = folder.glob("tracepaper_attention*.whl")
    return wheel


def build_of(
    source: Path, folder: Path, *kinds: str, extra: Mapping[str, str], umask: int = 0o022
) -> str:
    """Build distributions of *kinds*, or both, of *source* in *folder*; return what is said."""
    command = ["-m", "build", *kinds, "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(
        [sys.executable, *command],
        env={**environment(), **extra},
        check=True,
        capture_output=True,
        timeout=deadline_s(240),
        umask=umask,
        text=True,
    )
    return done.stdout + done.stderr


@dataclass(frozen=True)
class InstalledWheel:
    """A wheel, and an environment of its own that holds it."""

    wheel: Path
    python: Path
    folder: Path

    @property
    def extra(self) -> dict[str, str]:
        """What puts its programs first on the path."""
        return {"PATH": f"{self.python.parent}{os.pathsep}{environment()['PATH']}"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the installed program in a folder far from the checkout."""
        return subprocess.run(
            [str(self.python.with_name("tracepaper")), *arguments],
            cwd=self.folder,
            env={"PATH": os.defpath, "HOME": str(self.folder), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=deadline_s(240),
        )


def installed_with_all(folder: Path) -> InstalledWheel:
    """Build the wheel and install it beside every package that this environment has.

    The first of several processes does it; the others wait, and use what it made in *folder*.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if wheels := [*folder.glob("*.whl")]:
            return InstalledWheel(wheels[0], folder / "venv" / "bin" / "python", folder)
        installed = _installed(built(folder), folder)
        packages = _packages(installed)
        (packages / "others.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
        return installed


def installed_alone(wheel: Path, folder: Path, *names: str) -> InstalledWheel:
    """Install *wheel* beside what it, or each of *names*, requires, as without any extra."""
    installed = _installed(wheel, folder)
    packages = _packages(installed)
    for package in _required(*(names or ("tracepaper",)), are_too=bool(names)):
        for name in {file.parts[0] for file in package.files or () if file.parts[0] != ".."}:
            if not (packages / name).exists():
                (packages / name).symlink_to(Path(str(package.locate_file(name))))
    return installed


def _installed(wheel: Path, folder: Path) -> InstalledWheel:
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run(
        [sys.executable, *pip, "--ignore-installed", str(wheel)], check=True, capture_output=True
    )
    return InstalledWheel(wheel, python, folder)


def _packages(installed: InstalledWheel) -> Path:
    (folder,) = (installed.folder / "venv" / "lib").glob("python*/site-packages")
    return folder


def _required(*names: str, are_too: bool) -> list[metadata.Distribution]:
    """Return the installed distributions that *names* require, directly or not, without extras.

    With *are_too* they are among them.
    """
    by_key = {name: metadata.distribution(name) for name in names if are_too}
    waiting = [*names]
    while waiting:
        for text in metadata.distribution(waiting.pop()).requires or ():
            needed = Requirement(text)
            key = re.sub(r"[-_.]+", "-", needed.name).lower()
            if key not in by_key and (
                needed.marker is None or needed.marker.evaluate({"extra": ""})
            ):
                by_key[key] = metadata.distribution(needed.name)
                waiting.append(needed.name)
    return list(by_key.values())
