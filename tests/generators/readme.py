"""Runs README.md and docs/ as a newcomer would: `make readme` rewrites their answers.

``make readme PAGES="money orders"`` walks these pages alone.

The README comes first, then each page of ``docs/`` that has commands; all use one folder, and no
page needs more of another than the samples.
A ``sh`` block is run line by line in that folder, which is empty but for the files that earlier
blocks name in their first line (``# breakout.py``). A ``text`` block right after it
is its answer. A line that ends in ``# exit 1`` must fail so. ``tracepaper run`` and ``tracepaper
exchange`` go on until their section ends, and must then end in good order. ``make demo`` and
``make test`` are what the Makefile says, shortened.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Final

from programs import ROOT, Program, environment, pointing_at
from waiting import deadline_s

README: Final = ROOT / "README.md"
DOCS: Final = ROOT / "docs"
SAMPLE: Final = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
PORT: Final = "9440"
"""The port that the pages name; replaced by a free one."""
INSTALLED: Final = re.compile(r"/\S*/site-packages/tracepaper/")
"""Where a wheel holds what lies in a clone's own folder."""
COMMAND_WITHIN_S: Final = 900.0  # of a training, beside other work

SHORTENED: Final = (
    (re.compile(r"tracepaper demo$"), "tracepaper demo --days 1 --seconds 5"),
    (
        re.compile(r"-m pytest.*"),
        "-m pytest -q -p no:cacheprovider tests/strategies/gates/test_gates.py",
    ),
)
"""What makes a Makefile's recipe short enough for a test."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines and where they stand (0-based, first of them)."""

    language: str
    lines: tuple[str, ...]
    start: int
    section: str

    @property
    def text(self) -> str:
        """The block's content, with a newline at its end."""
        return "".join(f"{line}\n" for line in self.lines)


@dataclass(frozen=True)
class Outcome:
    """What a block of commands did: every line's exit code beside the wanted one, the output."""

    block: Block
    codes: tuple[tuple[str, int, int], ...]
    output: str
    answer: Block | None
    errors: str


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a Markdown *text* in order."""
    parsed: list[Block] = []
    section, opened, held = "", -1, ""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if opened < 0 and line.startswith("## "):
            section = line.removeprefix("## ")
        if line.startswith("```"):
            if opened < 0:
                opened, held = number + 1, line.removeprefix("```").strip()
            else:
                parsed.append(Block(held, tuple(lines[opened:number]), opened, section))
                opened = -1
    return parsed


def commands(block: Block) -> list[str]:
    """Return the commands of a ``sh`` block; a line that ends in a backslash goes on."""
    joined = block.text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


def pages() -> list[Path]:
    """Return every page in the order in which it is read: the README, then docs by name."""
    return [README, *sorted(DOCS.glob("*.md"))]


@dataclass
class Walk:
    """One reading of the pages in *folder*, with every command carried out."""

    folder: Path
    installed: Mapping[str, str] = field(default_factory=dict)  # what puts a program first
    port: str = field(default_factory=lambda: str(free_port()))
    programs: list[tuple[str, Program]] = field(default_factory=list)  # with their sections
    exchange: Program | None = None  # what `tracepaper run` is pointed at

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)

    def outcomes(self, text: str) -> Iterator[Outcome]:
        """Yield what each block of commands did, in order; ends every program it started."""
        parsed = blocks(text)
        shutil.rmtree(self.folder / ".state", ignore_errors=True)  # counts are those of the page
        try:
            for block, after in zip_longest(parsed, parsed[1:]):
                yield from self._stopped(block.section)
                if block.language == "sh":
                    answers = after is not None and after.language.startswith("text")
                    yield self._run(block, after if answers else None)
                elif name := file_name(block):
                    (self.folder / name).parent.mkdir(exist_ok=True)
                    (self.folder / name).write_text(self._local(block.text), encoding="utf-8")
            yield from self._stopped(None)
        finally:
            for program in [program for _, program in self.programs]:
                program.kill()
            self.programs.clear()
            if self.exchange is not None:
                self.exchange.kill()
                self.exchange = None

    def _run(self, block: Block, answer: Block | None) -> Outcome:
        codes: list[tuple[str, int, int]] = []
        output, errors = [], []
        for line in commands(block):
            command, _, wanted = line.partition("  # exit ")
            of_clone = command.startswith("make ")
            if of_clone:
                command = shortened(command.split()[1])
            if command.startswith(("tracepaper run", "tracepaper exchange")):
                self._serve(command, block.section)
                continue
            done = subprocess.run(
                ["bash", "-c", self._local(command)],
                cwd=ROOT if line.startswith("make test") else self.folder,
                env=environment(
                    None
                    if of_clone
                    else {"XDG_STATE_HOME": str(self.folder / ".state"), **self.installed}
                ),
                capture_output=True,
                text=True,
                check=False,
                timeout=deadline_s(COMMAND_WITHIN_S),
            )
            codes.append((line, done.returncode, int(wanted or 0)))
            output.append(done.stdout)
            errors.append(done.stderr)
        written = "".join(output).replace(self.port, PORT).replace(f"{ROOT}/", "")
        written = INSTALLED.sub("", written)
        return Outcome(block, tuple(codes), written, answer, "".join(errors))

    def _serve(self, command: str, section: str) -> None:
        """Start a program and wait until it is of use: it listens, or it decides and is warm."""
        if command.startswith("tracepaper exchange"):
            program = self._start(command, name="client-exchange")
            self.programs.append((section, program))
            program.wait_until(lambda: "\n" in program.out)
            return
        if self.exchange is None:
            serve = f"tracepaper exchange --data {SAMPLE} --speed 60"
            self.exchange = self._start(serve, name="exchange")
        exchange = self.exchange
        exchange.wait_until(lambda: "\n" in exchange.out)
        # Bybit has months of minutes; the windows of the trend are such that these days suffice.
        windows = {"TRACEPAPER_STRATEGY__TREND_WINDOWS": "6h,12h,1d,2d"}
        daemon = self._start(command, name="daemon", extra=pointing_at(exchange.out) | windows)
        self.programs.append((section, daemon))
        daemon.wait_until(lambda: '"event": "decision"' in daemon.err)
        daemon.wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        """Whether the daemon in the folder has all that its decisions look back on."""
        words = ["bash", "-c", "tracepaper status --ready"]
        extra = environment(self.installed)
        done = subprocess.run(words, cwd=self.folder, env=extra, capture_output=True, check=False)
        return done.returncode == 0

    def _start(self, command: str, *, name: str, extra: dict[str, str] | None = None) -> Program:
        words = shlex.split(self._local(command))
        return Program(words, self.folder, name=name, extra={**self.installed, **(extra or {})})

    def _stopped(self, section: str | None) -> Iterator[Outcome]:
        """Stop the programs of other sections than *section*; yield how each ended."""
        for started_in, program in list(self.programs):
            if started_in != section:
                self.programs.remove((started_in, program))
                ended = program.stop()
                name = f"{shlex.join(program.command)}, stopped"
                block = Block("sh", (), 0, started_in)
                yield Outcome(block, ((name, ended.code, 0),), "", None, ended.err[-2000:])

    def _local(self, text: str) -> str:
        return text.replace(PORT, self.port)


def file_name(block: Block) -> str | None:
    """Return the file that a block is to be saved as: its first line says so."""
    match = re.fullmatch(r"# ([\w./]+\.(?:py|sh|toml))", block.lines[0] if block.lines else "")
    return match.group(1) if match else None


def shortened(target: str) -> str:
    """Return what ``make`` *target* does once all is installed, shortened."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n\t", "")
    match = re.search(rf"^{target}:.*\n\t(.+)$", makefile, re.MULTILINE)
    if match is None:
        raise LookupError(f"The Makefile has no target {target}.")
    variables = dict(re.findall(r"^([A-Z]+) [:?]?= (.+)$", makefile, re.MULTILINE))
    command = match.group(1).replace("$(PYTEST)", variables["PYTEST"])
    command = command.lstrip("@").replace("$(BIN)/", "").replace("$$", "$")
    for pattern, shorter in SHORTENED:
        command = pattern.sub(shorter, command)
    return command


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------- rewriting


def rewritten(text: str, outcomes: list[Outcome]) -> str:
    """Return *text* with every answer as it was just found."""
    lines = text.splitlines()
    for outcome in reversed(outcomes):
        if (answer := outcome.answer) is not None:
            output = [line.rstrip() for line in outcome.output.strip("\n").splitlines()]
            lines[answer.start : answer.start + len(answer.lines)] = output
    return "\n".join(lines) + "\n"


WALKED: Final = ROOT / "tests" / "data" / "walked_pages.json"
"""SHA-256 of each page's blocks as last walked: the tests walk again what changed since."""
SAMPLES: Final = "## Samples\n\n```sh\ntracepaper data samples\n```\n"
"""All that a page needs of another."""


def hashed(text: str) -> str:
    """Return the SHA-256, in hexadecimal digits, of all that a walk of *text* depends on."""
    parsed = blocks(text)
    sections = list(dict.fromkeys(block.section for block in parsed))  # programs end with theirs
    parts = [(sections.index(each.section), each.language, each.lines) for each in parsed]
    return sha256(json.dumps(parts).encode()).hexdigest()


def changed() -> list[Path]:
    """Return the README and the pages that differ from those that were last walked."""
    document = json.loads(WALKED.read_text(encoding="utf-8"))
    return [
        page
        for page in pages()
        if page == README or document.get(page.stem) != hashed(page.read_text(encoding="utf-8"))
    ]


def main(names: list[str]) -> None:
    """Rewrite the answers of the named pages, or of all, from real runs.

    Says which command failed, if any.
    """
    hashes = json.loads(WALKED.read_text(encoding="utf-8")) if WALKED.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        walk = Walk(Path(folder))
        list(walk.outcomes(SAMPLES))
        for page in pages():
            if names and page.stem not in names:
                continue
            text = page.read_text(encoding="utf-8")
            outcomes = list(walk.outcomes(text))
            failed = [
                f"{page.name}: {line}: exit {code}, not {wanted}\n{outcome.errors}"
                for outcome in outcomes
                for line, code, wanted in outcome.codes
                if code != wanted
            ]
            if failed:
                sys.exit("\n".join(failed))
            page.write_text(rewritten(text, outcomes), encoding="utf-8")
            hashes[page.stem] = hashed(page.read_text(encoding="utf-8"))
            WALKED.write_text(f"{json.dumps(hashes, indent=1, sort_keys=True)}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
