"""``bench sweep``: the CPU time of every process of a sweep is counted."""

from __future__ import annotations

from tracepaper.replay.bench.replay import measure_sweep


def test_a_sweep_is_measured_beside_its_runs() -> None:
    found = measure_sweep(600, jobs=2, fast=(2, 4), slow=(10, 20))
    assert (found["runs"], found["bars"]) == (4, 600)
    assert min(found["cpu_s_runs"], found["cpu_s_replays"]) > 0
    # Two processes at least began: what they used is in it, though they are none of its children.
    assert found["cpu_s_sweep"] > found["cpu_s_runs"]
    assert found["sweep_times_runs"] == found["cpu_s_sweep"] / found["cpu_s_runs"]
