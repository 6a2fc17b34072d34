"""Random histories of accounts, which keep their laws at every step.

    make campaign ONLY=accounts

A history is one seed: an account, its strategies, and what the market does. Of each five one has a
universe, one is filled by order books, and one is of cross margin, where quotes jump by so much
that closes would ruin the account.
"""

from __future__ import annotations

import argparse
from collections import Counter

from histories import KINDS, History


def main() -> None:
    """Play as many histories as asked, and say what they reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=300)
    parser.add_argument("--from-seed", type=int, default=0)
    given = parser.parse_args()
    reached: Counter[str] = Counter()
    for seed in range(given.from_seed, given.from_seed + given.histories):
        try:
            history = History(seed, KINDS[seed % len(KINDS)])
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        reached += history.counted
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(reached.items()))
    print(f"{given.histories:,} histories: {counts}.")


if __name__ == "__main__":
    main()
