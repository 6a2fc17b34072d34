"""Tries the image from inside it: its Python reads this from standard input, as the image's user.

    python - ENTRYPOINT HEALTHCHECK < campaign_image_inside.py

Both arguments are lists in JSON. One JSON object on stdout says what was found; the standard
library alone is imported, so that what is missing in the image is found by its own commands.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

COMPILERS: Final = ("gcc", "cc", "g++", "c++", "clang", "tcc", "cpp", "as", "ld", "make")
SAMPLE: Final = "samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
SPEED: Final = 60
BARS: Final = 5
WITHIN_S: Final = 180.0
_APART: Final = {"proc", "sys", "dev", "data"}


def printed_by(*words: str) -> str:
    """Return what a command prints; raise where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-2_000:]}")
    return done.stdout.strip()


def may_write(path: Path) -> bool:
    """Say whether the permissions allow it, on a read-only root too; sticky folders are shared."""
    held = path.lstat()
    bit = 0o200 if held.st_uid == os.getuid() else 0o020 if held.st_gid == os.getgid() else 0o002
    return bool(held.st_mode & bit) and not path.is_symlink() and not held.st_mode & 0o1000


def writable(top: Path = Path("/")) -> list[str]:
    """List what the user may write below *top*, but in /data and in what the kernel mounts."""
    paths = []
    for folder, folders, files in os.walk(top):
        if Path(folder) == top:
            folders[:] = [folder for folder in folders if folder not in _APART]
        paths += [
            str(path)
            for path in (Path(folder, name) for name in folders + files)
            if may_write(path)
        ]
    return paths


def installed() -> dict[str, Any]:
    """Return who runs, what ``doctor`` says, and what the image holds."""
    doctor = json.loads(printed_by("tracepaper", "doctor", "--json"))["findings"]
    return {
        "user": os.getuid(),
        "folder": str(Path.cwd()),
        "version": printed_by("tracepaper", "--version"),
        "failed": [row["detail"] for row in doctor if row["verdict"] == "fail"],
        "attention": next(row["detail"] for row in doctor if row["check"] == "attention"),
        "cuda": printed_by("python", "-c", "import torch; print(torch.version.cuda)"),
        "compilers": [name for name in COMPILERS if shutil.which(name)],
        "writable": writable(),
        "megabytes": int(printed_by("du", "-sm", "/opt/tracepaper").split()[0]),
    }


def is_healthy(health: list[str]) -> bool:
    """Ask the health check of the image."""
    return subprocess.run(health, capture_output=True, check=False).returncode == 0


def decided() -> int:
    """Count the decisions in the record; no view before the database is made."""
    try:
        with sqlite3.connect("file:tracepaper.db?mode=ro", uri=True) as record:
            return int(record.execute("SELECT count(*) FROM v_decisions").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def lived(entry: list[str], health: list[str]) -> dict[str, Any]:
    """Run the image's own command on an exchange on loopback until it has decided; stop it."""
    printed_by("tracepaper", "data", "samples")
    serving = ["tracepaper", "exchange", "--data", SAMPLE, "--speed", str(SPEED)]
    with subprocess.Popen(serving, stdout=subprocess.PIPE, text=True) as exchange:
        assert exchange.stdout is not None
        served = json.loads(exchange.stdout.readline())
        Path("tracepaper.toml").write_text(
            f'[exchange]\nrest_url = "{served["rest_url"]}"\n'
            f'stream_url = "{served["stream_url"]}"\n'
            f'time_scale = {SPEED}\n[strategy]\nname = "attention"\n',
            encoding="utf-8",
        )
        document: dict[str, Any] = {"healthy before": is_healthy(health), "healthy": False}
        with Path("run.log").open("w", encoding="utf-8") as log:
            daemon = subprocess.Popen(entry, stdout=log, stderr=log)
        until_s = time.monotonic() + WITHIN_S
        while daemon.poll() is None and time.monotonic() < until_s and not document["healthy"]:
            document["healthy"] = is_healthy(health) and decided() >= BARS
        daemon.send_signal(signal.SIGTERM)
        document["ended with"] = daemon.wait(60)
        document["log"] = Path("run.log").read_text(encoding="utf-8")[-1_500:]
        exchange.terminate()
    document["verified"] = printed_by("tracepaper", "verify", "last", "--db", "tracepaper.db")
    return document


def main() -> None:
    """Print what was found."""
    entry, health = (json.loads(text) for text in sys.argv[1:])
    print(json.dumps(installed() | lived(entry, health)))


if __name__ == "__main__":
    main()
