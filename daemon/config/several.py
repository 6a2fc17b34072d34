"""The configuration of each of several strategies on one account.

The rules are docs/one_account.md, J1 to J7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.sections import SizingSection, StrategiesSection, StrategySection
from tracepaper.daemon.config.values import ExitsSection
from tracepaper.strategies.units import RATE_DECIMALS


def members_of(config: Config) -> dict[str, Config]:
    """Return the configuration of each strategy by name, as if it traded alone without limits."""
    return {name: _member(config, name) for name in config.strategies.named}


def account_of(config: Config) -> Config:
    """Return the account's configuration, without the sizes and exits of several strategies.

    With a single strategy it is *config*.
    """
    if not config.strategies.named:
        return config
    update = {
        "sizing": SizingSection(),
        "exits": ExitsSection(),
        "strategies": StrategiesSection(),
    }
    return config.model_copy(update=update)


def _member(config: Config, name: str) -> Config:
    strategy = config.strategies.named[name]
    keys = {key: getattr(strategy, key) for key in StrategySection.model_fields}
    update: dict[str, object] = {
        "strategy": StrategySection.model_construct(**keys),
        "strategies": StrategiesSection(),
        "risk": type(config.risk)(),
    }
    tables: Mapping[str, Mapping[str, Any]]
    tables = {"gate": strategy.gate, "sizing": strategy.sizing, "exits": strategy.exits}
    for table, overrides in tables.items():
        if overrides:
            section = getattr(config, table)
            shared = section.model_dump(include=section.model_fields_set)
            update[table] = type(section).model_validate({**shared, **overrides})
    return config.model_copy(update=update)


def with_members(config: Config, changed: Mapping[str, Config]) -> Config:
    """Return *config* with each strategy's keys of [strategy] taken from *changed*."""
    named = {
        name: strategy.model_copy(
            update={
                key: getattr(changed[name].strategy, key) for key in StrategySection.model_fields
            }
        )
        for name, strategy in config.strategies.named.items()
    }
    section = config.strategies.model_copy()
    section.__pydantic_extra__.update(named)
    return config.model_copy(update={"strategies": section})


def each_changed(config: Config, change: Callable[[Config], Config]) -> Config:
    """Return *config* with *change* applied to each of several strategies' [strategy]."""
    changed = {name: change(member) for name, member in members_of(config).items()}
    return with_members(config, changed) if changed else config


def strategy_name(config: Config) -> str:
    """Return the name of a run's strategy, or the names of several."""
    named = config.strategies.named
    return " + ".join(named) if named else config.strategy.name


def shares_of(config: Config) -> dict[str, int]:
    """Return the share of each strategy as an integer of 10⁻¹⁰."""
    return {
        name: int(strategy.share.scaleb(RATE_DECIMALS))
        for name, strategy in config.strategies.named.items()
    }
