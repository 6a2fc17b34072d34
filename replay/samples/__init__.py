"""Bundled real candles; SOURCES.md says whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DEMO_CANDLES: Final = Path(__file__).with_name("binance_um_BTCUSDT_1m_2025-05-26.csv.gz")
"""12,000 one-minute candles of BTCUSDT (linear), 2025-05-26 to 2025-06-03, without holes."""
MONTH_CANDLES: Final = tuple(
    Path(__file__).with_name(f"binance_um_{symbol}_15m_2025-05.csv.gz")
    for symbol in ("BTCUSDT", "SOLUSDT")
)
"""2,879 candles of 15 minutes of each (linear), 2025-05-04 to 2025-06-03, without holes."""
DEMO_CONFIG: Final = Path(__file__).with_name("demo.toml")
"""The configuration of ``tracepaper demo``."""
