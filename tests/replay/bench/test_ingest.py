"""The ingest figures are of real frames, read alike by every route; no test is timed."""

from __future__ import annotations

from tracepaper.replay.bench.ingest import closing_frames, plain_bars


def test_every_bundled_minute_is_a_frame_and_a_bar() -> None:
    frames = closing_frames()
    assert len(frames) == 12_000
    assert all(len(plain_bars(frame)) == 1 for frame in frames[::100])
