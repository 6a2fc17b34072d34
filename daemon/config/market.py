"""The section [market]: what is traded, and the rule by which symbols are chosen."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from tracepaper.daemon.config.values import (
    _SHARE,
    _SYMBOL,
    STOCK,
    SYMBOLS_MAX,
    Exact,
    Section,
    interval_name,
    json_object,
    symbol_names,
)
from tracepaper.strategies.units import DAY_MS, INTERVALS, MONEY_MAX


class UniverseRule(Section):
    """The rule that chooses the symbols of a new account, in the place of market.symbols."""

    top: Annotated[int, Field(ge=1, le=SYMBOLS_MAX)]
    """Most symbols that are chosen, the first by the measure."""
    by: Literal["turnover", "volatility"] = "turnover"
    """The measure that ranks: 24 hours' turnover in quote currency, or their high - low over the
    last price."""
    quote: str = Field(default="USDT", pattern=r"^[A-Z0-9]{2,10}$")
    """Quote currency of the exchange's symbols from which is chosen."""
    file: Path | None = None
    """A list of symbols, one a line, that alone are chosen from."""
    min_turnover: Annotated[Exact, Field(ge=0, le=MONEY_MAX)] = Decimal(0)
    """Least turnover of 24 hours, in quote currency."""
    min_age_days: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Fewest days since the symbol was listed; one whose listing is not known has none."""
    min_volatility: Annotated[Exact, Field(ge=0, le=10)] = Decimal(0)
    """Least high - low of 24 hours, as a fraction of the last price."""
    max_volatility: Annotated[Exact, Field(ge=0, le=10)] = Decimal(10)
    """The most of it."""

    @model_validator(mode="after")
    def _sizes(self) -> UniverseRule:
        if self.min_volatility > self.max_volatility:
            raise ValueError("write a min_volatility that is not above max_volatility")
        return self


class MarketSection(Section):
    """What is traded."""

    asset: Literal["crypto", "stock"] = "crypto"
    """crypto: Bybit, live and in replay; stock: shares, from candle files only."""
    category: Literal["linear", "spot", "stock"] = "linear"
    """Bybit product category; stock if asset is stock."""
    fractional: bool = False
    """Whether shares can be held in thousandths; else only whole shares."""
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3,5}$")
    """Quote currency of shares; for crypto it is part of the symbol."""
    symbols: Annotated[
        tuple[str, ...],
        Field(min_length=1, max_length=SYMBOLS_MAX),
        BeforeValidator(symbol_names),
    ] = ("BTCUSDT",)
    """Symbols of that category, up to 200; BTC/USDT and btcusdt are read as BTCUSDT."""
    interval: Annotated[
        Literal["1", "3", "5", "15", "30", "60", "120", "240", "360", "720", "D", "W", "M"],
        BeforeValidator(interval_name),
    ] = "1"
    """Candle interval by Bybit's names; 5m, 1h, 1d and 1M are read as 5, 60, D and M. Months (M)
    are for replays."""
    gather_ms: Annotated[int, Field(ge=0, le=10_000)] = 250
    """How long to wait (ms) for the other symbols' bars of the same close, so that they are
    forecast and stored together; 0: do not wait."""
    universe: Annotated[UniverseRule | None, BeforeValidator(json_object)] = Field(
        default=None, examples=[{"top": 20, "by": "volatility"}]
    )
    """The rule by which a new account chooses its symbols: a table with top, and by, quote, file,
    min_turnover, min_age_days, min_volatility and max_volatility; if absent, they are symbols."""
    depth: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Levels per side of the order books that are stored and given to a strategy that reads them;
    0: none."""
    depth_every_ms: Annotated[int, Field(ge=10, le=DAY_MS // 24)] = 1_000
    """Milliseconds of market time between these books."""

    @property
    def closes_together(self) -> bool:
        """Whether the bars of one close are processed together."""
        return len(self.symbols) > 1 and self.gather_ms > 0

    @property
    def interval_ms(self) -> int:
        """The interval in milliseconds; for a month, the constant ``MONTH_MS`` stands for it."""
        return INTERVALS[self.interval]

    @field_validator("symbols")
    @classmethod
    def _symbols(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        form = _SHARE if info.data.get("asset") == STOCK else _SYMBOL
        for symbol in value:
            if not form.match(symbol):
                raise ValueError(f"write symbols in the exchange's capitals instead of {symbol!r}")
        return tuple(sorted(set(value)))  # whoever shares a purse is served in this order: M110

    @model_validator(mode="before")
    @classmethod
    def _asset_and_category(cls, table: object) -> object:
        """If only one of asset and category is stock, set the other one too."""
        if isinstance(table, dict):
            if table.get("asset") == STOCK and table.get("category") is None:
                return {**table, "category": STOCK}
            if table.get("category") == STOCK and table.get("asset") is None:
                return {**table, "asset": STOCK}
        return table

    @model_validator(mode="after")
    def _shares_alone(self) -> MarketSection:
        if (self.asset == STOCK) is not (self.category == STOCK):
            raise ValueError(
                f'asset = "{self.asset}" does not go with category = "{self.category}"; leave the '
                "category of shares out"
            )
        return self
