"""The universe of a run: which of its symbols may open positions, chosen by ``market.universe``.

A choice follows from each symbol's last 24 hours. The rules are docs/universe.md, V8 to V16.
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
from tracepaper.daemon.config.values import SYMBOLS_MAX, plain, symbol_name
from tracepaper.daemon.feed.client import MarketDataClient, TradedSymbol
from tracepaper.daemon.log import Logger
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
from tracepaper.strategies.units import DAY_MS, time_of_day_ms

SYMBOL_LIKE: Final = re.compile(r"[A-Z0-9][A-Z0-9.-]*")
UNKNOWN_AGE: Final = -1
LIST_MOST: Final = 1_000_000
"""Letters of a list of symbols that are read, remarks included."""
_SHARE: Final = Decimal("0.000001")
"""To so much a volatility is rounded; a turnover to whole units."""


log = Logger("daemon")


class Choice(NamedTuple):
    """The symbols of a choice, the best first, and the choice as one sentence."""

    chosen: tuple[TradedSymbol, ...]
    reason: str


def names_of(file: Path) -> tuple[str, ...]:
    """Return the symbols of a list, one a line; what follows a # is a remark.

    Raises ``ConfigInvalid`` where the list cannot be read, is empty, or names more than a run
    trades.
    """
    key = "market.universe.file"
    try:
        with file.open(encoding="utf-8-sig") as source:
            text = source.read(LIST_MOST + 1)
    except OSError as error:
        raise ConfigInvalid(f"{file} cannot be read ({error.strerror}); correct {key}.") from None
    except UnicodeDecodeError:
        raise ConfigInvalid(f"{file} is not UTF-8 text; correct {key}.") from None
    if len(text) > LIST_MOST:
        raise ConfigInvalid(
            f"{file} has more than {LIST_MOST:,} letters, and a run trades {SYMBOLS_MAX} symbols "
            "at most; shorten it."
        )
    named = (line.partition("#")[0].strip() for line in text.splitlines())
    names = tuple(dict.fromkeys(symbol_name(name) for name in named if name))
    if not names:
        raise ConfigInvalid(f"{file} names no symbol; write one a line, or correct {key}.")
    if odd := next((name for name in names if not SYMBOL_LIKE.fullmatch(name)), None):
        raise ConfigInvalid(f"{file} has {odd[:40]!a}, which is no symbol; write one a line.")
    if len(names) > SYMBOLS_MAX:
        raise ConfigInvalid(
            f"{file} names {len(names):,} symbols, and a run trades {SYMBOLS_MAX} at most; shorten "
            "it."
        )
    return names


def choose(
    rule: UniverseRule,
    symbols: Iterable[TradedSymbol],
    *,
    count: int,
    now_ms: int,
    names: Collection[str] | None = None,
) -> Choice:
    """Choose the first *count* of *symbols* that pass *rule*, by its measure; ties by symbol.

    *names* are those of its list. The choice follows from the arguments alone.
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
    """Return the whole days since *traded* was listed; -1 where that is not known."""
    return (now_ms - traded.listed_ms) // DAY_MS if 0 < traded.listed_ms <= now_ms else UNKNOWN_AGE


def change_of(
    rule: UniverseRule,
    instruments: Sequence[Instrument],
    listed: Iterable[TradedSymbol],
    *,
    now_ms: int,
    names: Collection[str] | None = None,
) -> UniverseChange:
    """Return the choice among a run's *instruments* as the event that hands it on.

    An instrument that is not *listed* is not chosen.
    """
    by_symbol = {traded.symbol: traded for traded in listed}
    candidates = [by_symbol[item.symbol] for item in instruments if item.symbol in by_symbol]
    choice = choose(rule, candidates, count=rule.top, now_ms=now_ms, names=names)
    ids = {item.symbol: item.id for item in instruments}
    return UniverseChange(
        chosen=tuple(ids[traded.symbol] for traded in choice.chosen),
        reason=choice.reason,
        candidates=tuple(
            (
                ids[traded.symbol],
                plain(traded.turnover.quantize(Decimal(1))),
                plain(traded.volatility.quantize(_SHARE)),
                age_days(traded, now_ms),
            )
            for traded in candidates
        ),
        market_ms=now_ms,
        seen_ms=now_ms,
    )


def next_choice_ms(rule: UniverseRule, after_ms: int) -> int:
    """Return the first of the rule's times of day after *after_ms*, UTC milliseconds."""
    day_ms = after_ms // DAY_MS * DAY_MS
    times = [time_of_day_ms(text) for text in rule.at]
    return min(
        at_ms
        for day in (day_ms, day_ms + DAY_MS)
        for time_ms in times
        if (at_ms := day + time_ms) > after_ms
    )


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


def known_candidates(config: Config, kind: RunKind, database: Path) -> tuple[str, ...] | None:
    """Return the candidates of the newest run of *database* by the same rule; none without one.

    Only another rule, category or interval has them taken from the exchange anew. None where the
    configuration itself names the symbols.
    """
    if config.market.universe is None or not config.market.universe.candidates:
        return None
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
            now_ms = self._now_ms()
            change = UniverseChange((), str(error).rstrip("."), (), now_ms, now_ms)
        else:
            change = change_of(
                self._rule, self._instruments, listed, now_ms=self._now_ms(), names=names
            )
        (log.info if change.chosen else log.warning)("universe", choice=change.reason)
        return change

    def _now_ms(self) -> int:
        """Return the time of a choice: not before it was due, though our clock may be behind."""
        return max(self._clock.market_ms(), self.due_ms)
