"""The image, built as ``deploy/Dockerfile`` says and tried as ``deploy/compose.yaml`` confines it.

    python tests/campaigns/campaign_image.py

Docker builds it as it ships; without a compiler, and no index of PyTorch for processors; with a
compiler that fails. Minutes, and gigabytes on the disk. Imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

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


class BuildFailed(Exception):
    """An image that could not be built or run: what was printed until then."""


def build(dockerfile: Path, given: Mapping[str, str]) -> str:
    """Build the image anew; return what was printed."""
    command = ["docker", "build", "--no-cache", "--network", "host", "--progress", "plain"]
    for name, value in given.items():
        command += ["--build-arg", f"{name}={value}"]
    return _printed([*command, "-f", str(dockerfile), "-t", TAG, str(ROOT)])


def run(*words: str, program: str) -> str:
    """Run *words* confined, as the image's user, with *program* on standard input."""
    return _printed(
        ["docker", "run", *CONFINED, "--entrypoint", words[0], TAG, *words[1:]], program
    )


def _printed(command: list[str], program: str | None = None) -> str:
    done = subprocess.run(
        command, input=program, env=os.environ | {"DOCKER_BUILDKIT": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BuildFailed(done.stdout)
    return done.stdout


def faults(
    document: Mapping[str, Any], printed: str, *, is_compiled: bool, has_index: bool
) -> list[str]:
    """Name what of *found*, and of what the build *printed*, is not as it must be."""

    def lines(text: str) -> int:  # Docker shows each instruction before what it prints
        return len(
            re.findall(rf"^(?:#\d+ [\d.]+ )?[^#\n]*{re.escape(text)}", printed, re.MULTILINE)
        )

    must = {
        "it runs as 10001": document["user"] == 10001,
        "it runs in /data": document["folder"] == "/data",
        "doctor finds no fault": not document["failed"],
        "doctor names its loops": ("native_avx" in document["attention"]) is is_compiled,
        "one line says that it has no loops": lines(BARE) == (not is_compiled),
        "PyTorch is for processors": document["cuda"] == "None" or not has_index,
        "one line says that no index answered": lines(USUAL) == (not has_index),
        "it has no compiler": document["compilers"] == [],
        "its user may write in /data alone": document["writable"] == [],
        "it is healthy once it runs": not document["healthy before"] and document["healthy"],
        "it ends in order": document["ended with"] == 0,
        "its decisions follow from its record": "decisions follow from" in document["verified"],
    }
    return [name for name, holds in must.items() if not holds]


def commands(dockerfile: Path) -> tuple[str, str]:
    """Return in JSON what the image runs, and its health check."""
    text = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ")
    last = dict(re.findall(r"^(ENTRYPOINT|CMD|HEALTHCHECK) (.*)$", text, re.MULTILINE))
    runs = json.loads(last["ENTRYPOINT"]) + json.loads(last["CMD"])
    return json.dumps(runs), last["HEALTHCHECK"].partition("CMD ")[2]


def tried(name: str, folder: Path, program: str) -> tuple[str, list[str]]:
    """Build and try a variant in *folder*; return what it is, and what is wrong with it."""
    was, becomes = VARIANTS[name]
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert was in text
    dockerfile = folder / "Dockerfile"
    dockerfile.write_text(text.replace(was, becomes) if was else text)
    shutil.copy(f"{DOCKERFILE}.dockerignore", folder)
    has_index = "no index" not in name
    printed = build(dockerfile, {} if has_index else {"TORCH_INDEX": SILENT})
    output = run("python", "-", *commands(dockerfile), program=program)
    document = json.loads(output.splitlines()[-1])
    wrong = faults(document, printed, is_compiled=not becomes, has_index=has_index)
    if wrong:
        print(f"{name} is wrong: {'; '.join(wrong)}: {document}\n{printed[-3_000:]}")
    return f"{document['version']}, {document['megabytes']:,} MB, {document['attention']}", wrong


def main() -> int:
    """Build and try every variant; end with 1 where one is not as it must be."""
    program = Path(__file__).with_name("campaign_image_inside.py").read_text(encoding="utf-8")
    failed = list[str]()
    for name in VARIANTS:
        with tempfile.TemporaryDirectory(prefix="image-") as folder:
            try:
                what, wrong = tried(name, Path(folder), program)
            except (BuildFailed, FileNotFoundError) as error:
                what, wrong = str(error)[-3_000:], ["a build or a run"]
        print(f"{name}: {what}")
        failed += [name] if wrong else []
    if failed:
        sys.exit(f"The image fails: {', '.join(failed)}.")
    print(f"{len(VARIANTS)} images work.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
