"""Chooses which symbols of a run may open positions, by the rule ``market.universe``.

A choice depends on each symbol's last 24 hours. The rules are docs/universe.md, V8 to V16.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.config.market import UniverseRule
from tracepaper.daemon.config.values import plain, symbol_name
from tracepaper.daemon.feed.client import MarketDataClient, TradedSymbol
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.background import ScheduledJob
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
from tracepaper.strategies.units import DAY_MS, time_of_day_ms

SYMBOL_LIKE: Final = re.compile(r"[A-Z0-9][A-Z0-9.-]*")
UNKNOWN_AGE: Final = -1
_VOLATILITY_UNIT: Final = Decimal("0.000001")
"""A stored volatility is a multiple of this; a stored turnover is in whole units."""


log = Logger("daemon")


class Choice(NamedTuple):
    """The chosen symbols, best first, and one sentence that explains the choice."""

    chosen: tuple[TradedSymbol, ...]
    reason: str


def read_symbol_list(file: Path) -> tuple[str, ...]:
    """Return the symbols of *file*, which has one symbol a line and comments after #.

    Raises ``ConfigInvalid`` if the file cannot be read or has no symbol.
    """
    key = "market.universe.file"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{file} cannot be read ({error}); correct {key}.") from None
    entries = (line.partition("#")[0].strip() for line in text.splitlines())
    names = tuple(dict.fromkeys(symbol_name(entry) for entry in entries if entry))
    if not names:
        raise ConfigInvalid(f"{file} names no symbol; write one a line, or correct {key}.")
    if invalid := next((name for name in names if not SYMBOL_LIKE.fullmatch(name)), None):
        raise ConfigInvalid(f"{file} has {invalid[:40]!a}, which is no symbol; write one a line.")
    return names


def choose(
    rule: UniverseRule,
    symbols: Iterable[TradedSymbol],
    *,
    count: int,
    now_ms: int,
    names: Collection[str] | None = None,
) -> Choice:
    """Choose the best *count* of the *symbols* that pass *rule*.

    They are ranked by the rule's measure, ties by name. *names* are the symbols of the rule's list,
    None without one. The result depends on the arguments alone.
    """
    symbols = tuple(symbols)
    passing = [
        traded
        for traded in symbols
        if (names is None or traded.symbol in names)
        and traded.turnover >= rule.min_turnover
        and rule.min_volatility <= traded.volatility <= rule.max_volatility
        and (not rule.min_age_days or age_days(traded, now_ms) >= rule.min_age_days)
    ]
    passing.sort(key=lambda traded: (-getattr(traded, rule.by), traded.symbol))
    chosen = tuple(passing[:count])
    if not chosen:
        return Choice(
            (),
            f"none of {len(symbols)} symbols passes market.universe, so no position is opened "
            "until the next choice; loosen its limits or its list",
        )
    return Choice(
        chosen,
        f"{len(chosen)} of {len(symbols)} symbols may open positions, the first by {rule.by} of "
        f"the {len(passing)} that pass market.universe",
    )


def age_days(traded: TradedSymbol, now_ms: int) -> int:
    """Return the whole days since *traded* was listed; -1 if the date is unknown."""
    return (now_ms - traded.listed_ms) // DAY_MS if 0 < traded.listed_ms <= now_ms else UNKNOWN_AGE


def change_of(
    rule: UniverseRule,
    instruments: Sequence[Instrument],
    listed: Iterable[TradedSymbol],
    *,
    now_ms: int,
    names: Collection[str] | None = None,
) -> UniverseChange:
    """Return the event with the choice among a run's *instruments*.

    An instrument that is not *listed* is not chosen. The figures are rounded first, so that those
    in the event give the same choice again.
    """
    by_symbol = {
        traded.symbol: traded._replace(
            turnover=traded.turnover.quantize(Decimal(1)),
            volatility=traded.volatility.quantize(_VOLATILITY_UNIT),
        )
        for traded in listed
    }
    candidates = [by_symbol[item.symbol] for item in instruments if item.symbol in by_symbol]
    choice = choose(rule, candidates, count=rule.top, now_ms=now_ms, names=names)
    ids = {item.symbol: item.id for item in instruments}
    return UniverseChange(
        chosen=tuple(ids[traded.symbol] for traded in choice.chosen),
        reason=choice.reason,
        candidates=tuple(
            (
                ids[traded.symbol],
                plain(traded.turnover),
                plain(traded.volatility),
                age_days(traded, now_ms),
            )
            for traded in candidates
        ),
        market_ms=now_ms,
        seen_ms=now_ms,
    )


def next_choice_ms(rule: UniverseRule, after_ms: int) -> int:
    """Return the next of the rule's times of day after *after_ms*, in UTC milliseconds."""
    day_ms = after_ms // DAY_MS * DAY_MS
    times = [time_of_day_ms(text) for text in rule.at]
    return min(
        at_ms
        for day in (day_ms, day_ms + DAY_MS)
        for time_ms in times
        if (at_ms := day + time_ms) > after_ms
    )


def listed_symbols(config: Config) -> tuple[str, ...] | None:
    """Return the symbols of ``market.universe.file``; None without that key.

    Raises ``ConfigInvalid`` if the file cannot be used.
    """
    rule = config.market.universe
    if rule is None or rule.file is None:
        return None
    return read_symbol_list(rule.file if config.folder is None else config.folder / rule.file)


def with_symbols(config: Config, symbols: Sequence[str]) -> Config:
    """Return *config* with *symbols* as ``market.symbols``, by name as in every configuration."""
    market = config.market.model_copy(update={"symbols": tuple(sorted(symbols))})
    return config.model_copy(update={"market": market})


def known_candidates(config: Config, kind: RunKind, database: Path) -> tuple[str, ...] | None:
    """Return the symbols of the newest run of *database*, if it used the same ``[market]``.

    An empty tuple means that the exchange has to be asked for candidates, None that the
    configuration itself names the symbols.
    """
    if config.market.universe is None or not config.market.universe.candidates:
        return None
    with Reader.open(database) as reader:
        last = reader.newest(kind)
    if last is None:
        return ()
    market = restore(last.config).market
    configured = with_symbols(config, market.symbols).market
    return market.symbols if market.model_dump() == configured.model_dump() else ()


async def new_candidates(config: Config, client: MarketDataClient, now_ms: int) -> tuple[str, ...]:
    """Return the symbols that a new run trades, chosen by the rule of *config*.

    Raises ``ConfigInvalid`` if no symbol passes: there is nothing to trade.
    """
    rule = config.market.universe
    assert rule is not None
    listed = await client.listed(Category(config.market.category))
    traded = [candidate for candidate in listed if candidate.quote == rule.quote]
    names = listed_symbols(config)
    choice = choose(rule, traded, count=rule.candidates, now_ms=now_ms, names=names)
    if not choice.chosen:
        raise ConfigInvalid(f"No run begins: {choice.reason}.")
    return tuple(candidate.symbol for candidate in choice.chosen)


class Universe(ScheduledJob):
    """Chooses at the rule's times of day which instruments may open positions.

    Each choice asks the exchange in the background and becomes an event of the run. *resumed* is
    the id of a resumed run, whose last choice *database* holds; a new run (None) chooses at once.
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
        """Start a choice once it is due; a stored choice sets when the next one is due."""
        if isinstance(step.event, UniverseChange):
            self.due_ms = next_choice_ms(self._rule, step.event.market_ms)
        super().observe(step)

    async def _run_job(self) -> None:
        await self._submit(await self.choose())

    async def choose(self) -> UniverseChange:
        """Ask the exchange and choose now; choose nothing if the list cannot be used."""
        category = Category(self._config.market.category)
        try:
            names = listed_symbols(self._config)
            listed: Sequence[TradedSymbol] = await self._client.listed(category)
        except ConfigInvalid as error:
            now_ms = self._now_ms()
            change = UniverseChange((), str(error).rstrip("."), (), now_ms, now_ms)
        else:
            change = change_of(
                self._rule, self._instruments, listed, now_ms=self._now_ms(), names=names
            )
        (log.info if change.chosen else log.warning)("universe", choice=change.reason)
        return change

    def _now_ms(self) -> int:
        """Return the time of a choice: never before it was due, even if our clock is behind."""
        return max(self._clock.market_ms(), self.due_ms)
