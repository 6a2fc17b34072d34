"""``bench audit``: a chain that is walked, beside the bare loop over the same rows."""

from __future__ import annotations

from tracepaper.replay.bench.replay import measure_audit


def test_the_walk_is_measured_beside_the_bare_loop_and_apart_from_pages_and_keys() -> None:
    told: list[str] = []
    figures = measure_audit(2_000, model=False, tell=told.append)
    assert told[0] == "replaying 2,000 bars with sma_cross"
    assert figures["plain_steps"] == 2_002  # with the start and the end
    assert 0.5 < figures["plain_times_bare"] < 20
    assert figures["plain_walk_us_a_step"] > 0
    assert figures["plain_integrity_check_us_a_step"] > 0
    assert figures["plain_foreign_keys_us_a_step"] > 0
    assert "model_times_bare" not in figures
