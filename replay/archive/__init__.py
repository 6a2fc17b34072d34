"""Candle files: CSV, Parquet and Feather, zip, gzip, and data frames."""

from __future__ import annotations

from tracepaper.replay.archive.candles import Candles, merge_candles
from tracepaper.replay.archive.read import read_candles
from tracepaper.replay.archive.series import FundingRates, read_funding

__all__ = [
    "Candles",
    "FundingRates",
    "merge_candles",
    "read_candles",
    "read_funding",
]
