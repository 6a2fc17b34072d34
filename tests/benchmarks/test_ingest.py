"""The ingest figures are of real frames, which the wire reads; no test is timed."""

from __future__ import annotations

from ingest import BITCOIN, closing_frames

from tracepaper.daemon.bybit.wire import ClosedCandles, Wire
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import MINUTE_MS


def test_every_bundled_minute_is_a_frame_and_a_bar() -> None:
    frames = closing_frames()
    assert len(frames) == 12_000
    wire = Wire(category=Category.LINEAR, instruments=[BITCOIN], interval_ms=MINUTE_MS)
    for frame in frames[::100]:
        received = wire.receive(frame)
        assert isinstance(received, ClosedCandles)
        assert len(received.bars) == 1
