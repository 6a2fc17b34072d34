"""Candle files of the usual vendors: CSV, JSON, Parquet, Feather, zip, gzip."""

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
