"""Chooses the symbols of a new account by the rule ``market.universe``.

A choice depends on each symbol's last 24 hours. The rules are docs/universe.md, V8 to V13.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.market import UniverseRule
from tracepaper.daemon.config.values import symbol_name
from tracepaper.daemon.feed.client import MarketDataClient, TradedSymbol
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.carried_account import CarriedAccount
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import Category, RunKind
from tracepaper.strategies.units import DAY_MS

SYMBOL_LIKE: Final = re.compile(r"[A-Z0-9][A-Z0-9.-]*")
UNKNOWN_AGE: Final = -1

log = Logger("daemon")


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


def listed_symbols(config: Config) -> tuple[str, ...] | None:
    """Return the symbols of ``market.universe.file``; None without that key.

    Raises ``ConfigInvalid`` if the file cannot be used.
    """
    rule = config.market.universe
    if rule is None or rule.file is None:
        return None
    return read_symbol_list(rule.file if config.folder is None else config.folder / rule.file)


def choose(
    rule: UniverseRule,
    symbols: Iterable[TradedSymbol],
    *,
    now_ms: int,
    names: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Choose the best of the *symbols* that pass *rule*, by its measure, ties by name.

    *names* are the symbols of the rule's list, None without one. The result depends on the
    arguments alone. Raises ``ConfigInvalid`` if no symbol passes: there is nothing to trade.
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
    if not passing:
        raise ConfigInvalid(
            f"None of {len(symbols)} symbols passes market.universe; loosen its limits or its list."
        )
    passing.sort(key=lambda traded: (-getattr(traded, rule.by), traded.symbol))
    return tuple(traded.symbol for traded in passing[: rule.top])


def age_days(traded: TradedSymbol, now_ms: int) -> int:
    """Return the whole days since *traded* was listed; -1 if the date is unknown."""
    return (now_ms - traded.listed_ms) // DAY_MS if 0 < traded.listed_ms <= now_ms else UNKNOWN_AGE


def with_symbols(config: Config, symbols: Sequence[str]) -> Config:
    """Return *config* with *symbols* as ``market.symbols``, by name as in every configuration."""
    market = config.market.model_copy(update={"symbols": tuple(sorted(symbols))})
    return config.model_copy(update={"market": market})


def known_symbols(config: Config, kind: RunKind, database: Path) -> tuple[str, ...] | None:
    """Return the symbols of the newest run of *database*, if it used the same ``[market]``.

    An empty tuple means that the exchange has to be asked, None that the configuration itself names
    the symbols.
    """
    if config.market.universe is None:
        return None
    with Reader.open(database) as reader:
        last = reader.newest(kind)
        account = CarriedAccount.waiting(reader, kind)
    if last is not None:
        market = msgspec.json.decode(last.config)["market"]
    elif account is not None:
        market = account.market
    else:
        return ()
    return symbols_of(config, market)


def symbols_of(config: Config, market: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the symbols of *market*, a run's ``[market]``, if *config* has the same; else none."""
    configured = with_symbols(config, market["symbols"])
    is_same = msgspec.json.decode(configured.canonical_json())["market"] == market
    return configured.market.symbols if is_same else ()


async def new_symbols(config: Config, client: MarketDataClient, now_ms: int) -> tuple[str, ...]:
    """Return the symbols of the exchange that the rule of *config* chooses now."""
    rule = config.market.universe
    assert rule is not None
    names = listed_symbols(config)
    listed = await client.listed(Category(config.market.category))
    traded = [candidate for candidate in listed if candidate.quote == rule.quote]
    chosen = choose(rule, traded, now_ms=now_ms, names=names)
    log.info("universe", chosen=", ".join(chosen), of=len(traded), by=rule.by)
    return chosen
