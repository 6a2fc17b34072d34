"""Parity over many real bars: bar by bar twice, and bar by bar against one pass.

    python tests/campaigns/campaign_parity.py [CANDLES] [--bars 20000]

Runs the program as a user would and prints what ``tracepaper parity`` says; imports nothing of
ours. The first comparison must be identical, the second must have no decision that differs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "tracepaper.daemon.cli"]
SHARED = ROOT.parent / "shared" / "data" / "klines" / "bybit_linear_WIFUSDT_1m_2025.csv.gz"
BUNDLED = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"


def piece(candles: Path, bars: int, folder: Path) -> Path:
    """Write the first *bars* of *candles* into *folder* under the same name."""
    target = folder / candles.name
    with gzip.open(candles, "rt") as source, gzip.open(target, "wt") as written:
        for number, line in enumerate(source):
            if number > bars:
                break
            written.write(line)
    return target


def replayed(data: Path, database: Path, path: str) -> int:
    """Replay *data* the given way; return how many bars were decided."""
    command = [*PROGRAM, "replay", "--data", str(data), "--mode", path]
    done = subprocess.run(
        [*command, "--db", str(database), "--json"],
        env={**os.environ, "TRACEPAPER_STRATEGY__NAME": "attention"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(json.loads(done.stdout)["decisions"])


def compared(first: Path, second: Path) -> dict[str, int]:
    """Return the counts of ``tracepaper parity``."""
    done = subprocess.run(
        [*PROGRAM, "parity", f"{first}#last", f"{second}#last", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    counts = json.loads(done.stdout)
    names = ("compared", "identical", "within_tolerance", "differing", "equity_differing")
    return {name: int(counts[name]) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description="Parity over many real bars.")
    default = SHARED if SHARED.exists() else BUNDLED
    parser.add_argument("candles", nargs="?", type=Path, default=default)
    parser.add_argument("--bars", type=int, default=20_000)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="parity-") as place:
        folder = Path(place)
        data = piece(wanted.candles, wanted.bars, folder)
        bars = 0
        for name, path in (("first", "step"), ("again", "step"), ("pass", "scan")):
            bars = replayed(data, folder / f"{name}.db", path)
        twice = compared(folder / "first.db", folder / "again.db")
        ways = compared(folder / "first.db", folder / "pass.db")
    print(f"{bars:,} bars of {wanted.candles.name}")
    print(f"bar by bar twice: {twice['identical']:,} of {twice['compared']:,} identical")
    print(
        f"bar by bar and one pass: {ways['differing']:,} decisions differ; {ways['identical']:,} "
        f"identical, {ways['within_tolerance']:,} within 1e-4"
    )
    good = twice["identical"] == twice["compared"] == bars and not ways["differing"]
    print(f"{int(good)} passed, {int(not good)} failed")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
