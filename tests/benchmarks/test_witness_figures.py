"""The figures of witnesses are of a true proof; no test is timed."""

from __future__ import annotations

from pathlib import Path

from witness import measure_witness


def test_the_figures_are_of_a_proof_that_holds(tmp_path: Path) -> None:
    figures = measure_witness(tmp_path, 20)
    assert set(figures) == {"bar_us", "leaf_us", "note_us", "proof_bytes", "judge_s"}
    assert figures["proof_bytes"] < 2048
