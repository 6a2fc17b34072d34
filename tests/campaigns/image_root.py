"""Executes a Dockerfile's instructions in roots that debootstrap makes, without Docker.

Each command runs in namespaces of its own for mounts and processes: what it mounts and what it
leaves running ends with it, also where it is killed, and nothing is mounted where a root is
removed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

STANDS_FOR: Final = "python:3.11-slim"
SUITE: Final = "bookworm"  # Debian 12, whose Python is 3.11
PACKAGES: Final = "ca-certificates,python3,python3-venv"
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CARRIED: Final = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt"),
)
"""Of this machine: how it reaches the network."""
_REACHES: Final = re.compile(r"(?i)(pip_(cert|index_url|default_timeout)|ssl_cert_file|\w+_proxy)")
_ENTER: Final = r"""
set -e
root=$1 mode=$2 folder=$3
shift 3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
if [ "$mode" = read-only ]; then
    mount -o remount,bind,ro "$root"
    mount -t tmpfs tmpfs "$root/tmp"
    mount -t tmpfs -o "mode=$(stat -c %a "$root/data"),$(stat -c uid=%u,gid=%g "$root/data")" \
        tmpfs "$root/data"
fi
exec chroot "$root" sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""
_ALONE: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child")


class BuildFailed(Exception):
    """The image could not be built: what was printed until then."""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction and its rest, with continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in lines.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def is_sent(patterns: Iterable[str], path: str) -> bool:
    """Say whether the context holds *path*, by a ``.dockerignore``: its last line wins."""
    sent = True
    for line in patterns:
        excepted, pattern = line.startswith("!"), re.escape(line.removeprefix("!").strip("/"))
        expression = pattern.replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if not line.startswith("#") and line and re.fullmatch(f"{expression}(/.*)?", path):
            sent = excepted
    return sent


@dataclass
class Stage:
    """A stage of a build: its root, and what the instructions so far have set."""

    root: Path
    folder: str = "/"
    user: str = "0:0"
    given: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})

    def filled(self, text: str) -> str:
        """Return *text* with its variables put in."""
        known = self.given | self.env
        return re.sub(r"\$\{?(\w+)\}?", lambda found: known.get(found[1], ""), text)

    def take(self, name: str, rest: str, given: Mapping[str, str]) -> None:
        """Take what an instruction sets; *given* are the arguments of the build."""
        match name:
            case "ARG":
                key, _, usual = rest.partition("=")
                if key in given or usual:
                    self.given[key] = given.get(key, usual)
            case "ENV":
                self.env |= dict(word.split("=", 1) for word in shlex.split(self.filled(rest)))
            case "WORKDIR":
                self.folder = rest
                (self.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                self.user = rest
            case "VOLUME" | "STOPSIGNAL" | "HEALTHCHECK" | "ENTRYPOINT" | "CMD":
                pass  # how it runs: the campaign reads it
            case _:
                raise BuildFailed(f"{name} is not known here")

    def enter(self, *words: str, program: str | None = None, mode: str = "build") -> str:
        """Run *words* in the root; return what was printed, or raise ``BuildFailed``."""
        uid, _, gid = self.user.partition(":")
        drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        drop += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        reaching = {name: one for name, one in os.environ.items() if _REACHES.fullmatch(name)}
        known = {"HOME": "/root"} | reaching | self.given | self.env
        if self.user != "0:0":
            known["HOME"] = self.folder
        command = [*_ALONE, "sh", "-c", _ENTER, "sh", str(self.root), mode, self.folder]
        command += [*([] if self.user == "0:0" else drop), "env", "-i"]
        done = subprocess.run(
            [*command, *(f"{name}={one}" for name, one in known.items()), *words],
            input=program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BuildFailed(f"{shlex.join(words)[:300]}: exit {done.returncode}\n{done.stdout}")
        return done.stdout


class Chroot:
    """Builds in roots below *folder*; the last stage is the image."""

    def __init__(self, folder: Path, context: Path) -> None:
        self.name = "a chroot by debootstrap"
        self.folder, self.context = folder, context
        self.image = Stage(folder / "base")
        making = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE]
        done = subprocess.run(
            [*_ALONE, *making, str(self.image.root)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BuildFailed(done.stdout + done.stderr)
        (self.image.root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        for path in CARRIED:
            if Path(path).exists():
                shutil.copy(path, self.image.root / path.lstrip("/"))

    def build(self, dockerfile: Path, given: Mapping[str, str]) -> str:
        """Execute every instruction of *dockerfile*; return what was printed."""
        remove(*(one for one in self.folder.iterdir() if one.name.startswith("stage")))
        patterns = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text().splitlines()
        stages: dict[str, Stage] = {}
        declared = Stage(self.folder / "base")
        stage, printed = declared, ""
        for name, rest in instructions(dockerfile.read_text(encoding="utf-8")):
            words = shlex.split(stage.filled(rest)) if name in {"FROM", "COPY"} else []
            match name:
                case "FROM":
                    if declared.filled(rest).split()[0] != STANDS_FOR:
                        raise BuildFailed(f"nothing stands for {declared.filled(rest)}")
                    stage = Stage(self.folder / f"stage{len(stages)}")
                    subprocess.run(["cp", "-a", declared.root, stage.root], check=True)
                    stages[words[-1]] = stage
                case "RUN":
                    printed += stage.enter("sh", "-c", rest)
                case "COPY":
                    self.copy(stage, stages, words, patterns)
                case _:
                    stage.take(name, rest, given)
        self.image = stage
        return printed

    def copy(
        self, stage: Stage, stages: dict[str, Stage], words: list[str], patterns: list[str]
    ) -> None:
        """Copy as the *words* of a COPY say, from the context or from another stage."""
        *sources, target = (word for word in words if not word.startswith("--from="))
        to = stage.root / os.path.join(stage.folder, target).lstrip("/")  # noqa: PTH118
        if words[0].startswith("--from="):
            source = stages[words[0].removeprefix("--from=")].root / sources[0].lstrip("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", "--link", source, to], check=True)
            return

        def left_out(folder: str, names: list[str]) -> list[str]:
            below = Path(folder).relative_to(self.context)
            return [one for one in names if not is_sent(patterns, (below / one).as_posix())]

        for source in (self.context / one for one in sources):
            if not is_sent(patterns, source.relative_to(self.context).as_posix()):
                raise BuildFailed(f"{source.name} is not in the context")
            if source.is_dir():
                shutil.copytree(source, to, ignore=left_out, dirs_exist_ok=True)
            else:
                into = to / source.name if target.endswith("/") else to
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, into)

    def run(self, *words: str, program: str) -> str:
        """Run *words* as the image's user on a read-only root, *program* on standard input."""
        return self.image.enter(*words, program=program, mode="read-only")


def remove(*roots: Path) -> None:
    """Remove roots, and nothing that would be mounted in them."""
    if roots:
        subprocess.run(["rm", "-rf", "--one-file-system", *roots], check=True)
