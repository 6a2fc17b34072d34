"""``BybitClient``: Bybit's market data, REST and streams, as the feed's protocols ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from tracepaper.daemon.bybit.rest import RestClient
from tracepaper.daemon.bybit.websocket import CategoryStream, stream_url
from tracepaper.daemon.feed.client import MarketDataListener, StreamRequest
from tracepaper.strategies.types.market import Category, Instrument


class BybitClient(RestClient):
    """The ``MarketDataClient`` of Bybit; an async context manager, as ``RestClient`` is.

    Streams and REST share cooldown, counters and jitter.
    """

    async def last_price(self, instrument: Instrument) -> Decimal:
        """Return the price of the last trade; 0 where the exchange names none."""
        ticker = await self.tickers(instrument.category, instrument.symbol)
        return Decimal(ticker.last_price or 0)

    def stream_url(self, category: Category) -> str:
        """Return the address of the public stream of *category*."""
        return stream_url(self._exchange, category)

    def streams(
        self, request: StreamRequest, listener: MarketDataListener
    ) -> Sequence[CategoryStream]:
        """Return one connection for each category of the instruments, not yet open."""
        return [
            CategoryStream(
                category,
                request,
                listener,
                exchange=self._exchange,
                clock=self._clock,
                rng=self._rng,
                cooldown=self.cooldown,
                counters=self.counters,
            )
            for category in dict.fromkeys(item.category for item in request.instruments)
        ]
