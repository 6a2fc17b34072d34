"""Builds the engine of several strategies on one account: of each as if it traded alone, netted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.sections import SizingSection, StrategySection
from tracepaper.daemon.config.several import StrategiesSection, members_of, shares_of
from tracepaper.daemon.config.values import ExitsSection
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.several import SeveralEngine
from tracepaper.daemon.engine.strategy_members import Netted, StrategyMember
from tracepaper.daemon.session.models import refuse_limits
from tracepaper.strategies.api.strategy import Forecaster, PortfolioMember, Strategy
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import Instrument

Strategies = Mapping[str, Strategy]


def each_of(strategies: Strategies) -> list[Strategy]:
    """Return every strategy object of *strategies*, those that are netted too."""
    found: list[Strategy] = []
    for one in strategies.values():
        found += (
            [guarded.inner for guarded in one.inner.values()] if isinstance(one, Netted) else [one]
        )
    return found


def netted(
    config: Config,
    forecaster: Forecaster | None,
    make: Callable[[Config, Forecaster | None], Strategies],
    asks: Callable[[Config], bool],
) -> dict[str, Strategy]:
    """Return for each symbol the strategies of *config* as one, each made by *make*.

    Each that *asks* a model gets *forecaster*.

    Raises ``ConfigInvalid`` for what several strategies on one account do not take.
    """
    if config.market.asset == "stock":
        raise ConfigInvalid(
            "[strategies] share no account of shares, whose splits and dividends have no parts; "
            "trade them by [strategy]."
        )
    if config.market.universe is not None:
        raise ConfigInvalid(
            "[strategies] have no universe yet; take out [market.universe], or trade by [strategy]."
        )
    if config.model.retrain is not None:
        raise ConfigInvalid(
            "[model] retrain changes the model of one strategy, and [strategies] names several; "
            "take it out."
        )
    members = {StrategyMember(name): own for name, own in members_of(config).items()}
    made = {
        member: dict(make(own, forecaster if asks(own) else None))
        for member, own in members.items()
    }
    for member, strategies in made.items():
        for strategy in strategies.values():
            what = _not_taken(strategy)
            if what:
                raise ConfigInvalid(
                    f"[strategies.{member.name}] {what}, which several strategies on one account "
                    "do not take; trade it by [strategy]."
                )
    return {
        symbol: Netted({member: strategies[symbol] for member, strategies in made.items()})
        for symbol in config.market.symbols
    }


def _not_taken(strategy: Strategy) -> str:
    if isinstance(strategy, PortfolioMember):
        return "decides for all symbols of a close at once"
    return "reads order books" if strategy.books else ""


def build_several(
    config: Config,
    instruments: Sequence[Instrument],
    strategies: Strategies,
    forecaster: Forecaster | None,
    build: Callable[..., Engine],
    asks: Callable[[Config], bool],
) -> Engine:
    """Put the engine of several *strategies* together; *build* makes one of a configuration.

    Each that *asks* a model gets *forecaster*.

    The account has the limits of [risk], and no exits: those are each strategy's own.
    """
    engines = {}
    for name, own in members_of(config).items():
        of_member = {
            symbol: one.inner[name] for symbol, one in strategies.items() if isinstance(one, Netted)
        }
        engines[name] = build(
            own,
            instruments,
            strategies=of_member,
            forecaster=forecaster if asks(own) else None,
        )
    refuse_limits(config, forecaster)  # by the names of all
    alone = config.model_copy(
        update={
            "strategy": StrategySection.model_construct(name="persistence"),
            "strategies": StrategiesSection(),
            "sizing": SizingSection(),
            "exits": ExitsSection(),
        }
    )
    make = partial(
        SeveralEngine, engines=engines, shares=shares_of(config), reset=config.strategies.reset
    )
    return build(alone, instruments, strategies=strategies, make=make, forecaster=forecaster)
