"""Two thousand bars taken live over the websocket, against the replay of their record.

    python tests/campaigns/campaign_live.py [--bars 2000]

Once with ``sma_cross`` 3/7, once with the default model: every decision must agree, the
first must have at least 20 fills, and the run must follow from its record. Imports nothing of ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from campaign import CANDLES, configuration, exchange
from drawn import PROGRAM

FEWEST_FILLS = 20
STRATEGIES = {
    "sma_cross": 'name = "sma_cross"\nfast = 3\nslow = 7\nlong_only = false',
    "attention": 'name = "attention"',
}


def answer(*arguments: str) -> str:
    """Return what the program prints; raise where it fails."""
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def taken_live(folder: Path, strategy: str, bars: int, speed: float) -> Path:
    """Run a daemon over *bars* bars of the embedded exchange; return its database."""
    with exchange({"BTCUSDT": CANDLES}, speed=speed) as served:
        file = folder / f"{strategy}.toml"
        file.write_text(configuration(served, STRATEGIES[strategy]))
        database = folder / f"{strategy}.db"
        answer("run", "-c", str(file), "--db", str(database), "--bars", str(bars))
        return database


def main() -> int:
    parser = argparse.ArgumentParser(description="Live bars against the replay of their record.")
    parser.add_argument("--bars", type=int, default=2_000)
    parser.add_argument("--speed", type=float, default=1_500.0)
    wanted = parser.parse_args()
    good = 0
    for strategy in STRATEGIES:
        with tempfile.TemporaryDirectory(prefix="live-") as place:
            folder = Path(place)
            live = taken_live(folder, strategy, wanted.bars, wanted.speed)
            again = folder / "again.db"
            answer("replay", "--data", f"{live}#last", "--db", str(again), "--json")
            parity = json.loads(answer("parity", f"{live}#last", f"{again}#last", "--json"))
            verified = json.loads(answer("verify", "last", "--db", str(live), "--json"))
            trades = answer("audit", "sql", "SELECT count(*) AS n FROM v_fills", "--db", str(live))
        fills = int(trades.split()[-1])
        whole = parity["identical"] == parity["compared"] >= wanted.bars and verified["holds"]
        fine = whole and (strategy != "sma_cross" or fills >= FEWEST_FILLS)
        good += fine
        print(
            f"{strategy}: {parity['identical']:,} of {parity['compared']:,} decisions identical, "
            f"{fills} fills, the record {'holds' if verified['holds'] else 'does not hold'}",
            flush=True,
        )
    print(f"{good} passed, {len(STRATEGIES) - good} failed")
    return 0 if good == len(STRATEGIES) else 1


if __name__ == "__main__":
    sys.exit(main())
