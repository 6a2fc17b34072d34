"""Which build of PyTorch an installation takes, by pip from indexes on loopback."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from programs import ROOT

PINNED: Final = next(
    line.strip().partition("==")[2]
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.startswith("torch==")
)
GPU: Final = "#!/bin/sh\necho 'GPU 0: of a test'\n"
BROKEN_DRIVER: Final = "#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n"


def wheel(folder: Path, version: str) -> None:
    """Write a wheel of *version* that is called torch into the index at *folder*."""
    project = folder / "torch"
    project.mkdir(parents=True)
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(project / f"torch-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr("torch.py", f"BUILD = {version!r}\n")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@dataclass(frozen=True)
class Indexes:
    """Two package indexes on loopback, and a folder that packages are installed in."""

    address: str
    folder: Path

    def installed(self, *choice: str, index: str = "cpu", nvidia_smi: str = "") -> tuple[str, str]:
        """Run the script; return the build that it took and what it printed."""
        programs, target = self.folder / "bin", self.folder / "target"
        programs.mkdir()
        if nvidia_smi:
            (programs / "nvidia-smi").write_text(nvidia_smi, encoding="utf-8")
            (programs / "nvidia-smi").chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        done = subprocess.run(
            [str(ROOT / "deploy" / "torch.sh"), sys.executable, *choice],
            cwd=ROOT,
            env={
                **kept,
                "PATH": f"{programs}{os.pathsep}{os.defpath}",
                "TORCH_INDEX": f"{self.address}/{index}",
                "PIP_INDEX_URL": f"{self.address}/default",
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_TARGET": str(target),
                "PIP_NO_CACHE_DIR": "1",
                "PIP_RETRIES": "0",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return "", done.stderr
        (build,) = target.glob("torch-*.dist-info")
        return build.name.removeprefix("torch-").removesuffix(".dist-info"), done.stdout


@pytest.fixture
def indexes(tmp_path: Path) -> Iterator[Indexes]:
    wheel(tmp_path / "served/cpu", f"{PINNED}+cpu")
    wheel(tmp_path / "served/default", PINNED)
    wheel(tmp_path / "served/older", "1.0.0+cpu")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Indexes(f"http://127.0.0.1:{server.server_port}", tmp_path)
        server.shutdown()


@pytest.mark.parametrize("choice", [(), ("auto",), ("cpu",)])
def test_without_a_gpu_the_build_for_processors_is_taken(
    indexes: Indexes, choice: tuple[str, ...]
) -> None:
    assert indexes.installed(*choice, nvidia_smi=BROKEN_DRIVER) == (f"{PINNED}+cpu", "")


@pytest.mark.parametrize(
    ("choice", "build"), [("auto", PINNED), ("cpu", f"{PINNED}+cpu"), ("default", PINNED)]
)
def test_where_a_gpu_is_the_build_that_is_asked_for_is_taken(
    indexes: Indexes, choice: str, build: str
) -> None:
    assert indexes.installed(choice, nvidia_smi=GPU) == (build, "")


@pytest.mark.parametrize("index", ["nothing", "older"])
def test_without_an_index_of_that_version_the_usual_build_is_taken_in_one_line(
    indexes: Indexes, index: str
) -> None:
    build, printed = indexes.installed(index=index)
    assert build == PINNED
    assert printed.count("\n") == 1
    assert "the package index's own build is installed" in printed


def test_another_word_is_refused(indexes: Indexes) -> None:
    assert indexes.installed("gpu") == ("", "TORCH is gpu; set it to auto, cpu or default.\n")
