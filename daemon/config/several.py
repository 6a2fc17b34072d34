"""The section [strategies]: several strategies on one account, each with a share of its equity.

The rules are docs/one_account.md, J1 to J7.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tracepaper.daemon.config.sections import (
    GateSection,
    SizingSection,
    StrategySection,
)
from tracepaper.daemon.config.values import (
    SHADOW_NAMES,
    Exact,
    ExitsSection,
    Section,
    json_object,
)
from tracepaper.strategies.units import RATE_DECIMALS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tracepaper.daemon.config.loading import Config

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,30}")
STRATEGIES_MOST: Final = 20

_OWN: Final[dict[str, type[Section]]] = {
    "gate": GateSection,
    "sizing": SizingSection,
    "exits": ExitsSection,
}
"""The sections whose keys each strategy may override."""

Overrides = Annotated[dict[str, Any], BeforeValidator(json_object)]


class StrategyShare(StrategySection):
    """One of several strategies: the keys of [strategy], and its share of the account."""

    share: Annotated[Exact, Field(gt=0, le=1)]
    """Share of the account's equity."""
    gate: Overrides = Field(default_factory=dict)
    """Keys of [gate] that are other ones for this strategy."""
    sizing: Overrides = Field(default_factory=dict)
    """Keys of [sizing] that are other ones for this strategy."""
    exits: Overrides = Field(default_factory=dict)
    """Keys of [exits] that are other ones for this strategy."""

    @model_validator(mode="after")
    def _has_known_keys(self) -> StrategyShare:
        for name, section in _OWN.items():
            try:
                section.model_validate(getattr(self, name))
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(map(str, first["loc"]))
                if first["type"] == "extra_forbidden":
                    raise ValueError(
                        f"its {name} has no key {key!r}; write a key of [{name}]"
                    ) from None
                why = first["msg"].removeprefix("Value error, ")
                raise ValueError(f"its {name} has {key}: {why}") from None
        return self


class StrategiesSection(Section):
    """Several strategies on one account, each a table [strategies.NAME], in place of [strategy]."""

    model_config = ConfigDict(extra="allow")
    # The type of extra keys; pydantic declares them as Any.
    __pydantic_extra__: dict[str, StrategyShare] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    reset: Literal["never", "day", "week", "month"] = "never"
    """When each strategy gets its share of the equity again: never, or at the first close of each
    day, week or month (UTC)."""

    @property
    def named(self) -> dict[str, StrategyShare]:
        """The strategies by name, sorted."""
        return dict(sorted((self.__pydantic_extra__ or {}).items()))

    @model_validator(mode="before")
    @classmethod
    def _tables(cls, value: object) -> object:
        """Parse each strategy given as JSON by an environment variable or ``--set``."""
        if not isinstance(value, dict):
            return value
        tables = {}
        for name, table in value.items():
            parsed = json_object(table) if name != "reset" else table
            if name != "reset":
                if not isinstance(parsed, dict):
                    raise ValueError(
                        f"[strategies] {name} is no key; write a strategy as [strategies.{name}]"
                    )
                if not _NAME.fullmatch(name) or name in SHADOW_NAMES:
                    raise ValueError(
                        f"[strategies.{ascii(name)[1:-1]:.40}] cannot have that name; use small "
                        "letters, digits and underscores, at most 31, and no name of a shadow "
                        "account"
                    )
                if "share" not in parsed:
                    others = ", ".join(sorted(value.keys() - {name, "reset"}))
                    raise ValueError(
                        f"[strategies.{name}] needs a share of the equity; write share, such as "
                        f'"0.5", or the name of a strategy that is there ({others or "none is"})'
                    )
            tables[name] = parsed
        return tables

    @model_validator(mode="after")
    def _shares(self) -> StrategiesSection:
        named = self.named
        total = sum((strategy.share for strategy in named.values()), Decimal(0))
        if total > 1:
            raise ValueError(
                f"the shares of [strategies] add up to {total}; let them be at most 1 together"
            )
        if len(named) == 1:
            (name,) = named
            raise ValueError(
                f"[strategies.{name}] is alone; write it as [strategy], or name a second one"
            )
        if len({strategy.shadows for strategy in named.values()}) > 1:
            raise ValueError(
                "the strategies of [strategies] have different `shadows`, which all of them share; "
                "give each the same"
            )
        if len(named) > STRATEGIES_MOST:
            raise ValueError(f"[strategies] names more than {STRATEGIES_MOST} strategies")
        if self.reset != "never" and not named:
            raise ValueError("[strategies] reset is of several strategies, and none is named")
        return self


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
