"""The image, built as ``deploy/Dockerfile`` says and tried as ``deploy/compose.yaml`` confines it.

    python tests/campaigns/campaign_image.py [--chroot]

Docker builds it where a daemon answers. Elsewhere root on Debian executes the same instructions in
a chroot (``image_root.py``): Debian 12 with its own Python stands for ``python:3.11-slim``. It is
built as it ships; without a compiler, and no index of PyTorch for processors; with a compiler that
fails. Where PyTorch's own index does not answer, a wheel for processors that pip finds on this
machine is served on loopback in its place. The last line says what was used. Minutes, and gigabytes
on the disk. Imports nothing of ours.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from image_root import BuildFailed, Chroot, instructions, remove

ROOT: Final = Path(__file__).resolve().parents[2]
DOCKERFILE: Final = ROOT / "deploy" / "Dockerfile"
TAG: Final = "tracepaper-campaign"
SILENT: Final = "http://127.0.0.1:9"  # no program serves it
USUAL: Final = "the package index's own build is installed."
BARE: Final = "The image has no compiled loops"
CONFINED: Final = (
    *("--rm", "-i", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges"),
)
VARIANTS: Final[Mapping[str, tuple[str, str]]] = {
    "as it ships": ("", ""),
    "no compiler, no index": ("gcc libc6-dev", "no-such-compiler"),
    "a compiler that fails": ("ARG TORCH=", "ENV CC=false\nARG TORCH="),
}
"""What of the Dockerfile becomes what."""


class Docker:
    """Builds and runs by the daemon that answers."""

    def __init__(self, version: str) -> None:
        self.name = f"docker build (Docker {version})"

    def build(self, dockerfile: Path, given: Mapping[str, str]) -> str:
        """Build the image anew; return what was printed."""
        command = ["docker", "build", "--no-cache", "--network", "host", "--progress", "plain"]
        for name, one in given.items():
            command += ["--build-arg", f"{name}={one}"]
        return _said([*command, "-f", str(dockerfile), "-t", TAG, str(ROOT)])

    def run(self, *words: str, program: str) -> str:
        """Run *words* confined, as the image's user, with *program* on standard input."""
        return _said(
            ["docker", "run", *CONFINED, "--entrypoint", words[0], TAG, *words[1:]], program
        )


def _said(command: list[str], program: str | None = None) -> str:
    done = subprocess.run(
        command, input=program, env=os.environ | {"DOCKER_BUILDKIT": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BuildFailed(done.stdout)
    return done.stdout


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def index(folder: Path) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the arguments that name an index for processors, and what it is."""
    own = re.findall(r"TORCH_INDEX:-(\S+)\}", (ROOT / "deploy" / "torch.sh").read_text())[0]
    pinned = re.findall(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
    download = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", f"torch=={pinned}+cpu"]
    try:
        urllib.request.urlopen(f"{own}/torch/", timeout=10).close()
    except OSError:
        command = [*download, "--dest", str(folder / "torch")]
        if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
            yield {"TORCH_INDEX": SILENT}, "no index for processors"
            return
        handler = functools.partial(_Quiet, directory=str(folder))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            yield {"TORCH_INDEX": address}, "an index for processors on loopback"
            server.shutdown()
    else:
        yield {}, "PyTorch's index for processors"


def faults(
    found: Mapping[str, Any], printed: str, *, is_compiled: bool, has_index: bool
) -> list[str]:
    """Name what of *found*, and of what the build *printed*, is not as it must be."""

    def lines(text: str) -> int:  # Docker shows each instruction before what it prints
        return len(
            re.findall(rf"^(?:#\d+ [\d.]+ )?[^#\n]*{re.escape(text)}", printed, re.MULTILINE)
        )

    must = {
        "it runs as 10001": found["user"] == 10001,
        "it runs in /data": found["folder"] == "/data",
        "doctor finds no fault": not found["failed"],
        "doctor names its loops": ("native_avx" in found["attention"]) is is_compiled,
        "one line says that it has no loops": lines(BARE) == (not is_compiled),
        "PyTorch is for processors": found["cuda"] == "None" or not has_index,
        "one line says that no index answered": lines(USUAL) == (not has_index),
        "it has no compiler": found["compilers"] == [],
        "its user may write in /data alone": found["writable"] == [],
        "it is healthy once it runs": not found["healthy before"] and found["healthy"],
        "it ends in order": found["ended with"] == 0,
        "its decisions follow from its record": "decisions follow from" in found["verified"],
    }
    return [name for name, holds in must.items() if not holds]


def commands(dockerfile: Path) -> tuple[str, str]:
    """Return in JSON what the image runs, and its health check."""
    last = dict(instructions(dockerfile.read_text(encoding="utf-8")))
    runs = json.loads(last["ENTRYPOINT"]) + json.loads(last["CMD"])
    return json.dumps(runs), last["HEALTHCHECK"].partition("CMD ")[2]


def builder(folder: Path, *, is_chroot: bool) -> Docker | Chroot:
    """Return Docker where a daemon answers, else a chroot, where this machine can have one."""
    asking = ["docker", "version", "--format", "{{.Server.Version}}"]
    if not is_chroot and shutil.which("docker"):
        asked = subprocess.run(asking, capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return Docker(asked.stdout.strip())
    if os.getuid() or not shutil.which("debootstrap"):
        sys.exit("No Docker daemon answers, and a chroot needs root and Debian's debootstrap.")
    return Chroot(folder, ROOT)


def main() -> int:
    """Build and try every variant; end with 1 where one is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chroot", action="store_true", help="ask no Docker daemon")
    parser.add_argument("--only", choices=VARIANTS, help="one of the variants")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    program = Path(__file__).with_name("campaign_image_inside.py").read_text(encoding="utf-8")
    folder, failed, told = Path(tempfile.mkdtemp(prefix="image-")), list[str](), ""
    names = [name for name in VARIANTS if wanted.only in {None, name}]
    try:
        image = builder(folder, is_chroot=wanted.chroot)
        with index(folder / "index") as (answering, which):
            for name in names:
                was, becomes = VARIANTS[name]
                text = DOCKERFILE.read_text(encoding="utf-8")
                assert was in text
                dockerfile = folder / "Dockerfile"
                dockerfile.write_text(text.replace(was, becomes) if was else text)
                shutil.copy(f"{DOCKERFILE}.dockerignore", folder)
                given = {"TORCH_INDEX": SILENT} if "no index" in name else answering
                printed = image.build(dockerfile, given)
                said = image.run("python", "-", *commands(dockerfile), program=program)
                found = json.loads(said.splitlines()[-1])
                wrong = faults(
                    found,
                    printed,
                    is_compiled=not becomes,
                    has_index=given.get("TORCH_INDEX") != SILENT,
                )
                print(
                    f"{name}: {found['version']}, {found['megabytes']:,} MB, {found['attention']}"
                )
                if wrong:
                    failed.append(name)
                    print(f"{name} is wrong: {'; '.join(wrong)}: {found}\n{printed[-3_000:]}")
                told = told or f"{found['megabytes']:,} MB with {which}, by {image.name}"
    except BuildFailed as error:
        print(str(error)[-3_000:])
        failed.append("a build or a run")
    finally:
        remove(folder)
    if failed:
        sys.exit(f"The image fails: {', '.join(failed)}.")
    print(f"{len(names)} of {len(VARIANTS)} images work, the first of {told}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
