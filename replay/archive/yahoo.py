"""Downloads daily candles of shares from Yahoo by yfinance, for personal use (docs/shares.md)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from tracepaper.replay.archive.download import FetchResult
from tracepaper.storage.covariates import write_whole
from tracepaper.strategies.errors import FeedLost
from tracepaper.strategies.units import DAY_MS

_COLUMNS = ["Open", "High", "Low", "Close", "Volume"]


def fetch_shares(
    folder: Path, symbols: Iterable[str], *, from_ms: int, until_ms: int
) -> list[FetchResult]:
    """Write the daily candles of each of *symbols* to a file, and return the results.

    Prices are adjusted for splits and dividends. A later dividend changes all of them, so a file is
    written anew. The UTC day of *until_ms* is left out. Raises ``FeedLost`` without an answer.
    """
    import yfinance

    first, end = (datetime.fromtimestamp(ms / 1000, UTC).date() for ms in (from_ms, until_ms))
    results = []
    for symbol in symbols:
        without = f"Yahoo gave no candles of {symbol} from {first} to {end}"
        try:
            days = yfinance.Ticker(symbol).history(start=first, end=end, interval="1d")
        except (yfinance.exceptions.YFException, OSError) as error:
            raise FeedLost(f"{without} ({error}); try later.") from error
        if days.empty:
            raise FeedLost(f"{without}; check the symbol, the times and the network.")
        dated = days[_COLUMNS].set_index(days.index.date).rename(columns=str.lower)
        path = folder / f"stock_{symbol}_1d.csv"
        write_whole([dated.to_csv(index_label="date", float_format="%.6f").encode()], path)
        results.append(FetchResult(f"stock:{symbol}", DAY_MS, str(path), len(days), ()))
    return results
