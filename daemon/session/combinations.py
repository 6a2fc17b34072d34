"""The combinations of settings that no run supports, each with its error message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.sections import ExplanationSection
from tracepaper.daemon.config.values import MODEL_INPUTS, STOCK
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.book_features import reading_of
from tracepaper.strategies.builtin import TREND
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.other_symbol import other_of
from tracepaper.strategies.types.market import Category


class Trait(StrEnum):
    """A property of a run; the value is its text in the documentation."""

    LIVE = "a daemon"
    SPOT = '`market.category = "spot"`'
    SHARES = '`market.asset = "stock"`'
    CRYPTO = '`market.asset = "crypto"`'
    MONTHS = '`market.interval = "M"`'
    BARS_ALONE = "`market.gather_ms = 0`"
    FRACTIONAL = "`market.fractional`"
    FEE_PER_SHARE = "`execution.fee_per_share`"
    FEE_MINIMUM = "`execution.fee_minimum`"
    MARGIN = "`account.margin`"
    CROSS = "cross margin"
    HEDGE = '`account.position_mode = "hedge"`'
    SEVERAL = "`[strategies]`"
    SHADOWS = "`strategy.shadows`"
    SIZED_TREND = "`trend` sized by volatility"
    SIZED_BY_VOLATILITY = '`sizing.mode = "volatility"`'
    SIZED_BY_STOP = '`sizing.mode = "risk"`'
    NO_STOP = "a built-in strategy without a stop in `[exits]`"
    WITHOUT_MODEL = "a strategy without a model"
    TRADES_CLOSES = "a strategy that trades all symbols of a close by a model"
    CUSTOM_CLASS = "`model.class`"
    COVARIATES = "`model.covariates`"
    BACKEND = "`model.backend`"
    DEVICE = "`model.device`"
    EXPLANATION = "`[model.explanation]`"
    READS_BOOKS = "a checkpoint that reads order books"
    READS_OTHER = "a checkpoint that reads another symbol"
    READS_CLOSES = "a checkpoint that forecasts all symbols of a close together"


class Combination(NamedTuple):
    """Traits that no run may have together, and the error message with the remedy."""

    traits: frozenset[Trait]
    sentence: str


TABLE: Final = """
LIVE + MONTHS
    market.interval = "M" is only for replays, since a daemon would decide once a month; set another
    interval, or replay candles by `tracepaper replay --data FILE`.
LIVE + SHARES
    market.asset = "stock" has no exchange here; replay candle files by `tracepaper replay --data
    FILE`, or leave the key out.
SPOT + MARGIN
    [account] margin is for linear positions, and category "spot" is paid in full; take it out, or
    set market.category to "linear".
SHARES + MARGIN
    [account] margin is for linear positions, and shares are paid in full; take it out.
SPOT + HEDGE
    [account] position_mode = "hedge" is for linear positions, and category "spot" is paid in full;
    take it out, or set market.category to "linear".
SHARES + HEDGE
    [account] position_mode = "hedge" is for linear positions, and shares are paid in full; take it
    out.
CRYPTO + FRACTIONAL
    market.fractional is for shares; take it out, or set market.asset to "stock".
CRYPTO + FEE_PER_SHARE
    execution.fee_per_share is for shares; take it out, or set market.asset to "stock".
CRYPTO + FEE_MINIMUM
    execution.fee_minimum is for shares; take it out, or set market.asset to "stock".
SIZED_BY_STOP + NO_STOP
    sizing.mode 'risk' sizes by the stop of each signal, and a built-in strategy sets none; set
    [exits] stop_loss, choose another mode, or use your own class.
SIZED_TREND + SIZED_BY_VOLATILITY
    sizing.mode 'volatility' would size trend by volatility a second time; choose another mode, or
    set strategy.trend_sized_by to constant.
WITHOUT_MODEL + COVARIATES
    [model] covariates are for a model, and the strategy uses none here; take them out.
CUSTOM_CLASS + COVARIATES
    [model] covariates are for checkpoints; take them out, and name the file that your class reads
    in [model] files.
COVARIATES + READS_BOOKS
    The checkpoint was trained with order books, which [market] depth gives; take out [model]
    covariates.
BARS_ALONE + READS_OTHER
    The checkpoint reads another symbol's bar of the same close, and market.gather_ms = 0 decides
    each bar alone; set it above 0.
SHARES + READS_CLOSES
    A checkpoint that forecasts all symbols of a close together does not support shares; choose
    another strategy.
BACKEND + READS_CLOSES
    A checkpoint that forecasts all symbols of a close together runs on the CPU with the default
    explanation; take model.backend out.
DEVICE + READS_CLOSES
    A checkpoint that forecasts all symbols of a close together runs on the CPU with the default
    explanation; take model.device out.
EXPLANATION + READS_CLOSES
    A checkpoint that forecasts all symbols of a close together runs on the CPU with the default
    explanation; take model.explanation out.
"""
"""Rows of traits and, indented, their error message; the first row that applies is reported."""


COMBINATIONS: Final = tuple(
    Combination(frozenset(Trait[name] for name in names.split(" + ")), " ".join(words.split()))
    for names, words in re.findall(r"^(\S.*)\n((?: .*\n)+)", TABLE, re.MULTILINE)
)


def traits_of(
    config: Config, card: Mapping[str, Any] | None = None, *, live: bool = False
) -> frozenset[Trait]:
    """Return the traits of a run of *config*, and of the checkpoint of *card* if one is given.

    With several strategies the traits of a strategy are left out: each has its own configuration.
    """
    market, account, model, costs = config.market, config.account, config.model, config.execution
    has = {
        Trait.LIVE: live,
        Trait.SPOT: market.category == Category.SPOT.value,
        Trait.SHARES: market.asset == STOCK,
        Trait.CRYPTO: market.asset != STOCK,
        Trait.MONTHS: market.interval_ms == MONTH_MS,
        Trait.BARS_ALONE: market.gather_ms == 0,
        Trait.FRACTIONAL: market.fractional,
        Trait.FEE_PER_SHARE: costs.fee_per_share is not None,
        Trait.FEE_MINIMUM: bool(costs.fee_minimum),
        Trait.MARGIN: account.margin != "none",
        Trait.CROSS: account.margin == "cross",
        Trait.HEDGE: account.position_mode == "hedge",
        Trait.SEVERAL: bool(config.strategies.named),
        Trait.CUSTOM_CLASS: bool(model.custom_class),
        Trait.COVARIATES: model.covariates is not None,
        Trait.BACKEND: model.backend != "auto",
        Trait.DEVICE: model.device not in {"auto", "cpu"},
        Trait.EXPLANATION: model.explanation != ExplanationSection(),
    }
    if not config.strategies.named:
        chosen, mode = config.strategy, config.sizing.mode
        has |= {
            Trait.SHADOWS: bool(chosen.shadows),
            Trait.SIZED_TREND: chosen.name == TREND and chosen.trend_sized_by != "constant",
            Trait.SIZED_BY_VOLATILITY: mode == "volatility",
            Trait.SIZED_BY_STOP: mode == "risk",
            Trait.NO_STOP: ":" not in chosen.name and not config.exits.has_stop,
            Trait.TRADES_CLOSES: MODEL_INPUTS.get(chosen.name) is DataSource.CLOSES,
        }
    if card is not None:
        from tracepaper.strategies.forecasters.build import known_kind

        kind = known_kind(card)
        has |= {
            Trait.READS_BOOKS: reading_of(card) is not None,
            Trait.READS_OTHER: bool(other_of(card)),
            Trait.READS_CLOSES: kind is not None and kind.source is DataSource.CLOSES,
        }
    return frozenset(trait for trait, is_so in has.items() if is_so)


def reject_combination(traits: frozenset[Trait]) -> None:
    """Raise ``ConfigInvalid`` with the message of the first row whose traits are all present."""
    for row in COMBINATIONS:
        if row.traits <= traits:
            raise ConfigInvalid(row.sentence)
