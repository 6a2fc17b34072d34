"""Cuts the power in recorded histories of file operations, and opens what the disk then has.

    python tests/campaigns/campaign_disk.py [--images N] [--seed N [--image K]] [--only KIND]

Without ``--seed`` it goes on from the seed that stands in ``disk.toml`` beside it, and adds there
what it cut. A seed is one history, of one of the kinds of ``tests/world/disk_histories.py``. An
image that is refused, or lacks what was acknowledged, prints the command that repeats it.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

TESTS: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "support")]

from world.disk_histories import HAVE_VIEWS, HISTORIES, Played, played  # noqa: E402

STATE: Final = TESTS / "campaigns" / "disk.toml"
IMAGES: Final = 20_000
EACH: Final = 250
EACH_WITH_VIEWS: Final = 60
"""Images of a history; with views they take three times as long."""
LOGGED: Final = 5


class State(msgspec.Struct):
    """What was cut so far, and the seed to go on from."""

    next_seed: int = 1
    histories: int = 0
    images: dict[str, int] = {}
    """By kind of history."""

    def keep(self) -> None:
        """Write it down."""
        images = [f'"{kind}" = {count}' for kind, count in self.images.items()]
        lines = [f"next_seed = {self.next_seed}", f"histories = {self.histories}"]
        STATE.write_text("\n".join([*lines, "", "[images]", *images, ""]), encoding="utf-8")


def main() -> int:
    """Cut; return 1 if anything was lost or refused."""
    arguments = _parser().parse_args()
    logging.disable(logging.CRITICAL)  # what a library logs about a fault is no news here
    state = msgspec.convert(tomllib.loads(STATE.read_text()), State) if STATE.exists() else State()
    goes_on = arguments.seed is None and not arguments.only
    seed = state.next_seed if arguments.seed is None else arguments.seed
    kinds = [arguments.only] if arguments.only else [*HISTORIES]
    by_history, by_image = Counter[str](), Counter[str]()
    histories = Counter[str]()
    first, operations, violations, distinct = seed, 0, 0, 0
    begun_s = time.process_time()
    with tempfile.TemporaryDirectory(prefix="disk-", dir=_memory()) as base:
        while sum(by_history.values()) < arguments.images:
            kind = kinds[seed % len(kinds)]
            made = _played(kind, seed, Path(base) / "history", arguments.image)
            shutil.rmtree(Path(base) / "history", ignore_errors=True)
            histories[kind] += 1
            if made is not None:
                operations += len(made.recorded.history)
                by_history[kind] += len(made.verdicts)
                distinct += sum(verdict.is_first for verdict in made.verdicts)
                by_image.update(verdict.cut.kind for verdict in made.verdicts)
            violations += _report(kind, seed, made, arguments.only)
            seed += 1
            if arguments.image is not None or (made is None and violations > LOGGED):
                break
    spent_s = time.process_time() - begun_s
    for kind, images in by_history.items():
        print(f"{kind}: {histories[kind]} histories, {images:,} images")
    print(", ".join(f"{count:,} {kind}" for kind, count in by_image.items()))
    if goes_on and not violations:
        state.next_seed = seed
        state.histories += sum(histories.values())
        state.images = dict(Counter(state.images) + by_history)
        state.keep()
    total = sum(by_history.values())
    print(
        f"{total:,} images, {distinct:,} of them distinct, of {sum(histories.values())} histories "
        f"(seeds {first} to {seed - 1}, {operations:,} operations): {violations} violations; "
        f"{total / max(spent_s, 0.01):.0f} images a CPU second, {spent_s:.0f} CPU s"
    )
    return int(violations > 0)


def _played(kind: str, seed: int, folder: Path, only: int | None) -> Played | None:
    """Return the history with its images; None if it could not be made, which is printed."""
    images = EACH_WITH_VIEWS if kind in HAVE_VIEWS else EACH
    try:
        return played(kind, seed, folder, images, only=only)
    except Exception:  # noqa: BLE001 - each is a fault of the product
        traceback.print_exc()
        return None


def _report(kind: str, seed: int, made: Played | None, only: str) -> int:
    """Print what is wrong with a history, with the commands that repeat it; return how many."""
    problems = [] if made is None else made.problems
    option = f" --only '{only}'" if only else ""
    command = f"python tests/campaigns/campaign_disk.py --seed {seed}{option}"
    if made is None:
        print(f"{kind}, seed {seed}: could not be made\n  repeat: {command} --images 1")
    for cut, problem, _ in problems[:LOGGED]:
        print(f"{kind}, seed {seed}, cut at {cut.at} ({cut.kind}): {problem}")
        print(f"  repeat: {command} --image {cut.number}", flush=True)
    return len(problems) if made is not None else 1


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112 - a name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--image", type=int, help="only this image of the seed's history")
    parser.add_argument("--only", choices=["", *HISTORIES], default="", help="a kind of history")
    return parser


if __name__ == "__main__":
    sys.exit(main())
