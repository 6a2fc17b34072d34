"""Every part of the campaign, one after another, and the last commit that each passed on.

    python tests/campaigns/campaign_all.py [--only long]

A part that has passed on this very commit is not run again, so that an interrupted campaign goes
on. What passed is written to ``tests/campaigns/passed.toml``; with changes that are not committed
nothing is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PASSED: Final = ROOT / "tests" / "campaigns" / "passed.toml"
SEEDS: Final = ("tests/campaigns/disk.toml", "tests/campaigns/world.toml")
"""Files in which a part keeps the seed from which it goes on."""
_PYTHON: Final = (sys.executable,)
_ENGINE: Final = (*_PYTHON, "tests/campaigns/campaign_engine.py")
_PYTEST: Final = (*_PYTHON, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider")
LONG: Final[Mapping[str, str]] = {
    "daemon": "tests/daemon",
    "storage": "tests/storage",
    "strategies": "tests/strategies",
    "learning": "tests/replay/learning",
    "page": "tests/replay/page",
    "checks": "tests/replay/checks",
    "product": "tests/product",
    "repository": "tests/repository",
    "replay": "tests/replay",
}
"""Folders whose long tests are a part each: one that fails does not make the others run again."""


def _long(folder: str) -> tuple[str, ...]:
    """Return the command of the long tests in *folder* that no other part runs."""
    others = (*LONG.values(), "tests/first_hour")
    ignored = (f"--ignore={other}" for other in others if other.startswith(f"{folder}/"))
    return (*_PYTEST, "-m", "long", folder, *ignored)


PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "alarms": ("promtool", "test", "rules", "deploy/tracepaper.rules.test.yml"),
    "image": (*_PYTHON, "tests/campaigns/campaign_image.py"),
    **{f"long_{name}": _long(folder) for name, folder in LONG.items()},
    "long_others": _long("tests"),
    "first_hour": (*_PYTHON, "tests/campaigns/campaign_first_hour.py"),
    "pyright": (*_PYTHON, "-m", "pyright", "--pythonpath", sys.executable),
    "pythons": (*_PYTHON, "tests/campaigns/campaign_pythons.py"),
    "processors": (*_PYTHON, "tests/campaigns/campaign_processors.py"),
    "attention": (*_PYTHON, "tests/campaigns/campaign_attention.py"),
    **{part: (*_ENGINE, part) for part in ("accounts", "stretch", "laws")},
    **{part: (*_PYTHON, f"tests/campaigns/campaign_{part}.py") for part in ("world", "plants")},
    "changes": (*_PYTHON, "tests/campaigns/campaign_changes.py"),
    "disk": (*_PYTHON, "tests/campaigns/campaign_disk.py"),
    "soak": (*_PYTHON, "tests/campaigns/campaign_soak.py"),
    "soak_of_a_model": (
        *(*_PYTHON, "tests/campaigns/campaign_soak.py", "--days", "5", "--model", "default"),
    ),
}


def passed() -> dict[str, dict[str, str]]:
    """Return the commit, the date and the last line of each part that passed."""
    return tomllib.loads(PASSED.read_text(encoding="utf-8"))


def keep(part: str, commit: str, message: str) -> None:
    """Write down that *part* passed on *commit*, whose last line was *said*."""
    parts = passed()
    parts[part] = {"commit": commit, "date": f"{datetime.now(UTC):%Y-%m-%d}", "said": message}
    head = PASSED.read_text(encoding="utf-8").partition("\n")[0]
    tables = [
        "\n".join((f"[{name}]", *(f"{key} = {_quoted(text)}" for key, text in table.items()), ""))
        for name, table in sorted(parts.items())
    ]
    new = PASSED.with_suffix(".new")
    new.write_text("\n".join((head, *tables)), encoding="utf-8")
    new.replace(PASSED)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def git(*words: str) -> str:
    """Return what git says."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.rstrip()


def run(part: str) -> tuple[int, str]:
    """Run *part*, show what it says, and return its exit code and its last line."""
    # Two processes of one thread each share two cores; with two threads each they spin.
    environment = os.environ | {"PYTHONPATH": "tests:tests/support", "OMP_NUM_THREADS": "1"}
    last = ""
    with subprocess.Popen(
        PARTS[part], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode, last


def main() -> int:
    """Run what has not passed on this commit; return 1 where a part fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="the part, or the beginning of its name")
    wanted = parser.parse_args()
    commit = git("rev-parse", "--short=9", "HEAD")
    record = PASSED.relative_to(ROOT).as_posix()
    written = {record, *SEEDS}
    changed = [
        line for line in git("status", "--porcelain").splitlines() if line[3:] not in written
    ]
    records, failed = passed(), []
    for part in PARTS:
        if not part.startswith(wanted.only) or records.get(part, {}).get("commit") == commit:
            continue
        print(f"{part}:", flush=True)
        code, message = run(part)
        if code:
            failed.append(part)
        elif not changed:
            keep(part, commit, message)
    if changed:
        print("Nothing is written down, for there are changes that are not committed.")
    print(f"Failed: {', '.join(failed)}." if failed else f"Passed on {commit}; see {record}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
