"""One account at work: its portfolio and a broker for each instrument, filled and submitted to."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from tracepaper.daemon.broker import FILL_WITHIN_MS, Broker, BrokerState, Sent
from tracepaper.daemon.fills import Executor, Terms
from tracepaper.daemon.portfolio import Holding, Portfolio
from tracepaper.strategies.types import Bar, Fill, Instrument, Order, Quote


class LedgerState(Struct, frozen=True):
    """What an account carries from step to step."""

    cash: int
    holdings: dict[str, Holding]
    brokers: dict[str, BrokerState]


class Ledger:
    """The run's account, or the shadow account of a twin."""

    def __init__(
        self,
        instruments: Mapping[str, Instrument],
        terms: Terms,
        *,
        cash: int,
        latency_ms: int,
        fill_within_ms: int = FILL_WITHIN_MS,
    ) -> None:
        self.portfolio = Portfolio(cash, instruments)
        self.brokers = {
            key: Broker(item, terms, latency_ms=latency_ms, fill_within_ms=fill_within_ms)
            for key, item in instruments.items()
        }
        self._terms = terms
        self._executors = {key: Executor(item, terms) for key, item in instruments.items()}

    def change(self, instrument: Instrument) -> None:
        """Take the exchange's new filters for orders and prices from now on."""
        self.brokers[instrument.id].change(instrument)
        self._executors[instrument.id] = Executor(instrument, self._terms)

    def at_open(self, bar: Bar) -> tuple[Fill, Order] | None:
        """Fill the order that rests on *bar*'s instrument at its open, if there is one."""
        if (order := self.brokers[bar.instrument].order) is None:
            return None
        return self._book(self._executors[bar.instrument].at_open(order, bar))

    def at_quote(self, quote: Quote) -> tuple[Fill, Order] | None:
        """Fill the resting order at *quote* if it has waited out its latency."""
        order = self.brokers[quote.instrument].order
        if order is None or quote.market_ms < order.eligible_ms:
            return None
        fill = self._executors[quote.instrument].at_quote(order, quote)
        return None if fill is None else self._book(fill)

    def _book(self, fill: Fill) -> tuple[Fill, Order]:
        self.portfolio.apply(fill)
        return fill, self.brokers[fill.instrument].fill(fill)

    def submit(
        self,
        instrument: str,
        target: int,
        *,
        order_id: str,
        price: int,
        reason: str,
        at_ms: int,
        by_command: bool = False,
    ) -> Sent:
        """Ask the broker of *instrument* to reach *target* from what is held."""
        held = self.portfolio.holdings[instrument].quantity
        return self.brokers[instrument].submit(
            target,
            held,
            order_id=order_id,
            price=price,
            reason=reason,
            at_ms=at_ms,
            cash=self.portfolio.cash,
            by_command=by_command,
        )

    def state(self) -> LedgerState:
        """Return what must survive a restart."""
        brokers = {key: broker.state() for key, broker in self.brokers.items()}
        return LedgerState(self.portfolio.cash, self.portfolio.holdings, brokers)

    def restore(self, state: LedgerState) -> None:
        """Take over what survived a restart."""
        self.portfolio.restore(state.cash, state.holdings)
        for key, broker in state.brokers.items():
            self.brokers[key].restore(broker)
