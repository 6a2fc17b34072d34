"""A strategy that is always in, and out again at its next look."""

from datetime import datetime
from typing import Any

from freqtrade.strategy import IStrategy


class Always(IStrategy):
    """Enters long on every candle."""

    INTERFACE_VERSION = 3
    timeframe = "1m"
    minimal_roi = {"0": 10.0}
    stoploss = -0.9
    startup_candle_count = 30
    order_types = {
        "entry": "market",
        "exit": "market",
        "stoploss": "market",
        "stoploss_on_exchange": False,
    }

    def populate_indicators(self, dataframe: Any, metadata: dict[str, Any]) -> Any:
        """Need none."""
        return dataframe

    def populate_entry_trend(self, dataframe: Any, metadata: dict[str, Any]) -> Any:
        """Enter."""
        dataframe["enter_long"] = 1
        return dataframe

    def populate_exit_trend(self, dataframe: Any, metadata: dict[str, Any]) -> Any:
        """Leave nothing to candles."""
        return dataframe

    def custom_exit(
        self, pair: str, trade: Any, current_time: datetime, *_: Any, **__: Any
    ) -> str | None:
        """Leave as soon as time has gone by."""
        return "done" if trade.open_date_utc < current_time else None
