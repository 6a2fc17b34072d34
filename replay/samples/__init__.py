"""Bundled real candles; SOURCES.md says whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DEMO_CANDLES: Final = Path(__file__).with_name("binance_um_BTCUSDT_1m_2025-05-26.csv.gz")
"""12,000 one-minute candles of BTCUSDT (linear), 2025-05-26 to 2025-06-03, without holes."""
