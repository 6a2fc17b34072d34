"""The wheel and the tests under each Python that is here, and with the lowest versions.

    python tests/campaigns/campaign_pythons.py [--only 3.12]

For each of ``PYTHONS`` the built wheel is installed into an empty environment, where it examines
itself and trades for a day, and attention alone into another, where its README's example runs; then
the tests run (``make test``). ``lowest`` does this with every
dependency and extra at the lowest version that pyproject.toml names, but PyTorch, whose old builds
for processors no usual index has. A Python that is not on the path is named and left out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PLACE: Final = ROOT / "build" / "pythons"
PYTHONS: Final = ("3.11", "3.12", "3.13")
LOWEST: Final = "lowest"
TOOLS: Final = ("all", "dev", "docs", "flash")
"""Extras that are no part of what a user installs, or need a GPU."""
NEWER: Final = ("safetensors",)
"""What ``dev`` needs newer, by transformers: only the wheel's demo meets its lowest version."""


def lowest() -> Iterator[str]:
    """Yield each requirement of users, pinned to the lowest version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(requirement for name in extras.keys() - {*TOOLS} for requirement in extras[name]),
    ]
    for requirement in sorted({*wanted}):
        name, version = re.split(r"(?:\[.*\])?>=", requirement)
        if name != "torch":
            yield f"{name}=={version}"


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run *command*; raise where it fails."""
    print("$", *command, flush=True)
    subprocess.run([str(word) for word in command], cwd=cwd, check=True)


def explain(python: Path | str, constraints: Path, library: Path) -> None:
    """Install the wheel *library* of attention beside torch and NumPy, and run its example."""
    place = PLACE / "attention-alone"
    shutil.rmtree(place, ignore_errors=True)
    run(python, "-m", "venv", place)
    run("deploy/torch.sh", place / "bin" / "python")
    run(place / "bin" / "pip", "install", "-q", "-c", constraints, library)
    readme = (ROOT / "deploy" / "attention" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    run(place / "bin" / "python", "-c", example, cwd=place)


def test(name: str, python: str, constraints: Path, wheel: Path) -> None:
    """Install the *wheel* alone and trade with it, then run the tests from the checkout."""
    pinned = constraints.read_text(encoding="utf-8").splitlines(keepends=True)
    of_dev = PLACE / f"{name}.txt"
    if name == LOWEST:
        pinned = [line for line in pinned if not line.startswith(NEWER)]
    of_dev.write_text("".join(pinned), encoding="utf-8")
    alone = PLACE / f"{name}-wheel"
    shutil.rmtree(alone, ignore_errors=True)
    run(python, "-m", "venv", alone)
    run("deploy/torch.sh", alone / "bin" / "python")
    run(alone / "bin" / "pip", "install", "-q", "-c", constraints, wheel)
    program = alone / "bin" / "tracepaper"
    run(program, "doctor", cwd=alone)
    run(program, "demo", "--days", "1", "--seconds", "20", "--no-incidents", cwd=alone)
    of_tests = [f"PYTHON={python}", f"VENV={PLACE / name}", f"CONSTRAINTS={of_dev}"]
    run("make", "test", *of_tests)


def main() -> int:
    """Test what is here; return 1 where something fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*PYTHONS, LOWEST])
    only = parser.parse_args().only
    PLACE.mkdir(parents=True, exist_ok=True)
    (PLACE / "pins.txt").write_text("\n".join(lowest()) + "\n", encoding="utf-8")
    run("deploy/attention/sources.sh", PLACE / "attention")
    for source in (ROOT, PLACE / "attention"):
        run(sys.executable, "-m", "build", "-q", "--wheel", "--outdir", PLACE, source)
    wheel, library = (
        max(PLACE.glob(f"{name}-*.whl"), key=lambda path: path.stat().st_mtime)
        for name in ("tracepaper", "tracepaper_attention")
    )
    jobs = [(name, f"python{name}", ROOT / "constraints.txt") for name in PYTHONS]
    jobs.append((LOWEST, f"python{PYTHONS[0]}", PLACE / "pins.txt"))
    failed = []
    for name, python, constraints in jobs:
        if only not in {None, name}:
            continue
        if shutil.which(python) is None:
            print(f"{name}: {python} is not on the path; it was not tested.")
            continue
        try:
            explain(python, constraints, library)
            test(name, python, constraints, wheel)
        except subprocess.CalledProcessError as error:
            failed.append(f"{name}: {error}")
    print(*failed, sep="\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
