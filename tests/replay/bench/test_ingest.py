"""The ingest figures are of real frames, read alike by every route; no test is timed."""

from __future__ import annotations

from figures import MEASURED_ON

from tracepaper.replay.bench.ingest import closing_frames, measure_ingest, plain_bars


def test_every_bundled_minute_is_a_frame_and_a_bar() -> None:
    frames = closing_frames()
    assert len(frames) == 12_000
    assert all(len(plain_bars(frame)) == 1 for frame in frames[::100])


def test_figures_are_rates_with_their_ratios_and_the_machine() -> None:
    figures = measure_ingest(700)
    rates = figures["frames_per_cpu_s"]
    assert set(rates) == {"tracepaper", "msgspec", "plain", "roll", "open"}
    assert all(rate > 0 for rate in rates.values())
    assert figures["ratio_plain"] == rates["tracepaper"] / rates["plain"]
    assert MEASURED_ON.fullmatch(figures["machine"])
