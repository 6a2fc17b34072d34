"""The simulated world: one seed is one history, a sound daemon breaks no law, a broken one does.

Histories run in a process of their own: a life is a forked child, and a test run has threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

CAMPAIGNS: Final = Path(__file__).parents[1] / "campaigns"


def played(program: str, *options: str, hash_seed: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program of the world and return what it printed."""
    return subprocess.run(
        [sys.executable, str(CAMPAIGNS / program), *options],
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_seed_is_one_history_tick_for_tick(tmp_path: Path) -> None:
    options = ("--seed", "700001", "--count", "2", "--bars", "20", "--trace")
    for number in (1, 2):
        folder = tmp_path / str(number)
        played("campaign_world.py", *options, "--folder", str(folder), hash_seed=number)
    traces = [sorted(tmp_path.glob(f"{number}/*/trace")) for number in (1, 2)]
    assert len(traces[0]) == 2
    for first, second in zip(*traces, strict=True):
        assert first.stat().st_size > 10_000
        assert first.read_bytes() == second.read_bytes()


def test_a_history_of_each_kind_breaks_no_law() -> None:
    done = played("campaign_world.py", "--each", "--seed", "1200", "--bars", "30")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow  # a fifth of what the world costs: run before a merge
def test_histories_that_found_a_fault_break_no_law() -> None:
    done = played("campaign_world.py", "--kept")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_planted_fault_breaks_its_law() -> None:
    done = played("campaign_plants.py")
    assert done.returncode == 0, done.stdout + done.stderr
