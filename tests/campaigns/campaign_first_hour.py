"""The first hour of a newcomer: clones this commit, sets it up by make, and runs the five scripts.

    python tests/campaigns/campaign_first_hour.py

The clone, its environment and its home are in an empty temporary folder. Minutes, mostly the
packages; pip uses the index that this machine has configured.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
OURS: Final = ("MAKEFLAGS", "MAKEOVERRIDES", "PYTHONPATH", "VIRTUAL_ENV", "XDG_DATA_HOME")
"""Variables of this checkout, or of make, that a newcomer's shell does not have."""


def main() -> int:
    """Return the exit code of the first command that fails, or 0."""
    with tempfile.TemporaryDirectory(prefix="first-hour-") as folder:
        clone = Path(folder) / "tracepaper"
        home = Path(folder) / "home"
        home.mkdir()
        shell = {name: text for name, text in os.environ.items() if name not in OURS}
        shell |= {"HOME": str(home)}
        for command, cwd in (
            (("git", "clone", "-q", str(ROOT), str(clone)), folder),
            (("make", "dev"), clone),
            ((".venv/bin/python", "-m", "pytest", "-q", "tests/first_hour"), clone),
        ):
            print("$", *command, flush=True)
            code = subprocess.run(command, cwd=cwd, env=shell, check=False).returncode
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
