"""Histories written by steps and with stretches: every one ends with the same digest.

    make campaign ONLY=stretch

A history is one seed: a market, a configuration, and what comes between the bars.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from stretches import Compared


def main() -> None:
    """Write as many histories as asked, and say what they reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=300)
    parser.add_argument("--from-seed", type=int, default=0)
    given = parser.parse_args()
    reached: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.from_seed, given.from_seed + given.histories):
            try:
                reached += Compared(seed, Path(folder)).counted
            except Exception as error:
                error.add_note(f"seed {seed}")
                raise
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(reached.items()))
    print(f"No difference: {counts}.")


if __name__ == "__main__":
    main()
