"""A hundred daemons stopped while bars, quotes and books come faster than they can be taken in.

    python tests/campaigns/campaign_flood.py [--rounds 100]

Fifty symbols with books of fifty levels, or the default model on one symbol, at a market speed that
no machine keeps up with. SIGTERM comes at a random moment between the start and some seconds of the
flood: each must end with 0 and without "stop took too long", and its chain must hold. Imports
nothing of ours.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from campaign import CANDLES, MINUTE_MS, configuration
from drawn import PROGRAM

SPEED = "8000"
"""Far beyond what the daemon takes in. At 20,000 the exchange answers nothing within a second; on
two cores under a load of ten it leaves a subscription unanswered in one round of ten even here."""
START_MS = 1_748_736_000_000
BARS = 12_000
SYMBOLS = ["BTCUSDT", *(f"S{number:02}USDT" for number in range(1, 50))]
MODEL_EVERY = 4  # rounds of which one is the model's
FLOODED_S = 6.0
NOTHING_STORED = "has no run yet"  # a run is stored with its first steps
STOP_WITHIN_S = 7.0  # docs/operations.md, O3
FLOODS_WITHIN_S = 120.0
NOT_FLOODED_MOST = 0.2  # of the rounds
SLOW_S = 4.0
"""A stop that takes longer is shown with what the daemon said at its end."""
PATIENT = {  # as the exchange floods it answers late, and a flood that is left is none
    '"warning"': '"info"',
    "request_timeout_s = 1.0": "request_timeout_s = 10.0\nconnect_timeout_s = 30.0",
    "data_watchdog_s = 2.0": "data_watchdog_s = 30.0",
    "requests_per_s = 20.0": "requests_per_s = 100.0",
}
SMA = 'name = "sma_cross"\nfast = 3\nslow = 7\nlong_only = false'


class NotFlooded(Exception):
    """The exchange never came to send what the round waits for: nothing is shown by it."""


def candles(path: Path, rng: random.Random, bars: int = BARS) -> Path:
    """Write a random walk of *bars* minutes."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("timestamp", "open", "high", "low", "close", "volume"))
        last = 1_000_000
        for number in range(bars):
            first, last = last, last + rng.randint(-400, 400)
            high, low = max(first, last) + rng.randint(0, 99), min(first, last) - rng.randint(0, 99)
            prices = [f"{price / 10:.1f}" for price in (first, high, low, last)]
            rows.writerow((START_MS + number * MINUTE_MS, *prices, rng.randint(1, 9_999) / 1_000))
    return path


def stopped(folder: Path, data: Path, rng: random.Random, *, is_models: bool) -> tuple[float, int]:
    """Flood a daemon and stop it; return how long that took and how many steps it stored."""
    symbols = SYMBOLS[:1] if is_models else SYMBOLS
    command = [*PROGRAM, "exchange", "--speed", SPEED, "--hold"]
    command += [] if is_models else ["--start", "100"]
    for symbol in symbols:
        command += ["--data", f"{symbol}={CANDLES if is_models else data}"]
    exchange = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert exchange.stdout is not None
        served = json.loads(exchange.stdout.readline())
        config = configuration(served, 'name = "attention"' if is_models else SMA, symbols)
        if not is_models:
            config = config.replace("[exchange]", "depth = 50\n[exchange]")
        for usual, patient in PATIENT.items():
            config = config.replace(usual, patient)
        (folder / "flood.toml").write_text(config)
        database = str(folder / "flood.db")
        with (folder / "flood.err").open("w+") as errors:
            options = ("run", "-c", str(folder / "flood.toml"), "--db", database)
            daemon = subprocess.Popen([*PROGRAM, *options], stderr=errors)
            try:
                wanted = rng.choice(("run opened", "connected", "decision", "decision"))
                until_s = time.monotonic() + FLOODS_WITHIN_S
                while f'"{wanted}"' not in (folder / "flood.err").read_text():
                    if time.monotonic() > until_s:
                        raise NotFlooded((folder / "flood.err").read_text()[-500:])
                    assert daemon.poll() is None, (folder / "flood.err").read_text()[-500:]
                    time.sleep(0.05)
                time.sleep(rng.uniform(0, FLOODED_S))
                begun_s = time.monotonic()
                daemon.send_signal(signal.SIGTERM)
                code = daemon.wait(60)
                taken_s = time.monotonic() - begun_s
            finally:
                daemon.kill()
                daemon.wait()
    finally:
        exchange.kill()
        exchange.wait()
    said_text = (folder / "flood.err").read_text()
    assert code == 0, f"exit code {code}: {said_text[-500:]}"
    assert "stop took too long" not in said_text
    assert "Traceback" not in said_text, said_text[-2_000:]
    if taken_s > SLOW_S:
        print(f"slow: {taken_s:.1f} s: {said_text[-1_500:]}", flush=True)
    assert taken_s < STOP_WITHIN_S, f"{taken_s:.1f} s"
    question = [*PROGRAM, "audit", "verify", "last", "--db", database, "--json"]
    held = subprocess.run(question, capture_output=True, text=True, check=False)
    if wanted == "run opened" and NOTHING_STORED in held.stderr:
        return taken_s, 0
    assert held.returncode == 0, held.stdout + held.stderr
    return taken_s, int(json.loads(held.stdout)["steps"])


def main() -> int:
    parser = argparse.ArgumentParser(description="Daemons that are stopped amid a flood.")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    times_s: list[float] = []
    failed = others = number = 0
    while len(times_s) + failed < wanted.rounds and others <= NOT_FLOODED_MOST * wanted.rounds:
        rng = random.Random(wanted.seed * 1_000 + number)
        with tempfile.TemporaryDirectory(prefix="flood-") as place:
            folder = Path(place)
            data = candles(folder / "walk_1m.csv", rng)
            try:
                taken_s, steps = stopped(folder, data, rng, is_models=not number % MODEL_EVERY)
                times_s.append(taken_s)
                print(f"round {number}: {steps:,} steps, ended in {taken_s:.2f} s", flush=True)
            except NotFlooded as silence:
                others += 1
                print(f"round {number} was not flooded: {silence}", flush=True)
            except AssertionError as fault:
                failed += 1
                print(f"round {number}: {fault}", flush=True)
        number += 1
    slowest = f", the slowest stop {max(times_s):.2f} s" if times_s else ""
    print(f"{len(times_s)} passed, {failed} failed, {others} not flooded{slowest}")
    return 0 if len(times_s) == wanted.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
