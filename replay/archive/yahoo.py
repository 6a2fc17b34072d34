"""Downloads candles of shares from Yahoo by yfinance, for personal use (docs/shares.md)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tracepaper.replay.archive.download import FetchResult
from tracepaper.storage.covariates import write_whole
from tracepaper.strategies.errors import FeedLost
from tracepaper.strategies.units import DAY_MS, HOUR_MS

INTERVALS: Final = {HOUR_MS: "1h", DAY_MS: "1d"}
"""The intervals that are downloaded, by the library's names; Yahoo keeps two years of hours."""
_COLUMNS = ["Open", "High", "Low", "Close", "Volume"]


def fetch_shares(
    folder: Path, symbols: Iterable[str], interval_ms: int, *, from_ms: int, until_ms: int
) -> list[FetchResult]:
    """Write the candles of each of *symbols* to a file, and return the results.

    Prices are adjusted for splits and dividends. A later dividend changes all of them, so a file is
    written anew. A candle that is not closed at *until_ms* is left out: of days, the UTC day.
    Raises ``FeedLost`` without an answer.
    """
    import yfinance  # pyright: ignore[reportMissingImports] - only users install it

    name, is_daily = INTERVALS[interval_ms], interval_ms == DAY_MS
    until = datetime.fromtimestamp(until_ms / 1000, UTC)
    first, last = datetime.fromtimestamp(from_ms / 1000, UTC).date(), until.date()
    end = last if is_daily else last + timedelta(days=1)  # the library leaves out the end
    results = []
    for symbol in symbols:
        without = f"Yahoo gave no candles of {symbol} from {first} to {last}"
        try:
            frame = yfinance.Ticker(symbol).history(start=first, end=end, interval=name)
        except (yfinance.exceptions.YFException, OSError) as error:
            raise FeedLost(f"{without} ({error}); try later.") from error
        index, label = frame.index, "date"
        if is_daily:
            frame.index = index.date
        else:
            frame = frame[index + timedelta(milliseconds=interval_ms) <= until]
            frame.index, label = frame.index.strftime("%Y-%m-%dT%H:%M:%S%z"), "open_time"
        if frame.empty:
            raise FeedLost(f"{without}; check the symbol, the times and the network.")
        path = folder / f"stock_{symbol}_{name}.csv"
        candles = frame[_COLUMNS].rename(columns=str.lower)
        write_whole([candles.to_csv(index_label=label, float_format="%.6f").encode()], path)
        results.append(FetchResult(f"stock:{symbol}", interval_ms, str(path), len(candles), ()))
    return results
