"""``Universe``: has a run's symbols chosen by ``market.universe``, at its start and in its course.

The rules are docs/universe.md, V8 to V16.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.config.market import UniverseRule
from tracepaper.daemon.feed.client import MarketDataClient, TradedSymbol
from tracepaper.daemon.feed.universe import (
    change_of,
    choose,
    names_of,
    next_choice_ms,
    nothing_chosen,
)
from tracepaper.daemon.session.child import ScheduledJob
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import (
    Category,
    Event,
    Instrument,
    RunKind,
    UniverseChange,
)

log = structlog.get_logger("daemon")


def list_of(config: Config) -> tuple[str, ...] | None:
    """Return the symbols of the rule's list; None without one. Raises ``ConfigInvalid``."""
    rule = config.market.universe
    if rule is None or rule.file is None:
        return None
    return names_of(rule.file if config.folder is None else config.folder / rule.file)


def with_symbols(config: Config, symbols: Sequence[str]) -> Config:
    """Return *config* that trades *symbols*."""
    market = config.market.model_copy(update={"symbols": tuple(symbols)})
    return config.model_copy(update={"market": market})


def known_candidates(config: Config, kind: RunKind, database: Path) -> tuple[str, ...]:
    """Return the candidates of the newest run of *database* by the same rule; none without one.

    Only another rule, category or interval has them taken from the exchange anew.
    """
    with Reader.open(database) as reader:
        last = reader.newest(kind)
    if last is None:
        return ()
    market = restore(last.config).market
    ours = config.market.model_copy(update={"symbols": market.symbols})
    return market.symbols if market.model_dump() == ours.model_dump() else ()


async def new_candidates(config: Config, client: MarketDataClient, now_ms: int) -> tuple[str, ...]:
    """Return the symbols that a new run trades, by the rule of *config*.

    Raises ``ConfigInvalid`` where no symbol passes: there is nothing to trade.
    """
    rule = config.market.universe
    assert rule is not None
    listed = await client.listed(Category(config.market.category))
    traded = [candidate for candidate in listed if candidate.quote == rule.quote]
    change = choose(rule, traded, count=rule.candidates, now_ms=now_ms, names=list_of(config))
    if not change.chosen:
        raise ConfigInvalid(f"No run begins: {change.reason}.")
    return tuple(candidate.symbol for candidate in change.chosen)


class Universe(ScheduledJob):
    """Chooses at the rule's times of day which instruments may open positions.

    Each choice is asked of the exchange in the background, and is an event. *database* has those of
    a run that goes on, *resumed*; None is a new run, whose first choice is due at once.
    """

    def __init__(
        self,
        config: Config,
        rule: UniverseRule,
        instruments: Sequence[Instrument],
        client: MarketDataClient,
        submit: Callable[[Event], Awaitable[int]],
        clock: Clock,
        *,
        database: Path,
        resumed: str | None,
    ) -> None:
        super().__init__()
        self._config, self._rule = config, rule
        self._instruments, self._client = instruments, client
        self._submit, self._clock = submit, clock
        last: UniverseChange | None = None
        if resumed is not None:
            with Reader.open(database) as reader:
                last = reader.newest_of(resumed, UniverseChange)
        self.due_ms = 0 if last is None else next_choice_ms(rule, last.market_ms)

    def observe(self, step: Step) -> None:
        """Begin a choice once it is due; a stored one says when the next is."""
        if isinstance(step.event, UniverseChange):
            self.due_ms = next_choice_ms(self._rule, step.event.market_ms)
        super().observe(step)

    async def _do(self) -> None:
        await self._submit(await self.choose())

    async def choose(self) -> UniverseChange:
        """Ask the exchange, and choose now; nothing is chosen where the list cannot be used."""
        category = Category(self._config.market.category)
        try:
            names = list_of(self._config)
            listed: Sequence[TradedSymbol] = await self._client.listed(category)
        except ConfigInvalid as error:
            change = nothing_chosen(str(error), self._now_ms())
        else:
            change = change_of(
                self._rule, self._instruments, listed, now_ms=self._now_ms(), names=names
            )
        (log.info if change.chosen else log.warning)("universe", choice=change.reason)
        return change

    def _now_ms(self) -> int:
        """Return the time of a choice: not before it was due, though our clock may be behind."""
        return max(self._clock.market_ms(), self.due_ms)
