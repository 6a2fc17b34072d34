"""The combinations of settings that no run supports, each with its error message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.sections import ExplanationSection
from tracepaper.daemon.config.values import STOCK
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
    PAID_IN_FULL = '`market.category = "spot"` or `market.asset = "stock"`'
    SHARES = '`market.asset = "stock"`'
    CRYPTO = '`market.asset = "crypto"`'
    MONTHS = '`market.interval = "M"`'
    BARS_ALONE = "`market.gather_ms = 0`"
    TERMS_OF_SHARES = "`market.fractional`, `execution.fee_per_share` or `execution.fee_minimum`"
    MARGIN = "`account.margin`"
    SIZED_TREND = "`trend` sized by volatility"
    SIZED_BY_VOLATILITY = '`sizing.mode = "volatility"`'
    SIZED_BY_STOP = '`sizing.mode = "risk"`'
    NO_STOP = "a built-in strategy without a stop in `[exits]`"
    WITHOUT_MODEL = "a strategy without a model"
    CUSTOM_CLASS = "`model.class`"
    COVARIATES = "`model.covariates`"
    COMPUTED_OTHERWISE = "`model.backend`, `model.device` or `[model.explanation]`"
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
PAID_IN_FULL + MARGIN
    [account] margin is for linear positions, and category "spot" and shares are paid in full; take
    it out, or set market.category to "linear".
CRYPTO + TERMS_OF_SHARES
    market.fractional, execution.fee_per_share and execution.fee_minimum are for shares; take them
    out, or set market.asset to "stock".
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
COMPUTED_OTHERWISE + READS_CLOSES
    A checkpoint that forecasts all symbols of a close together runs on the CPU with the default
    explanation; take model.backend, model.device and model.explanation out.
"""
"""Rows of traits and, indented, their error message; the first row that applies is reported."""


COMBINATIONS: Final = tuple(
    Combination(frozenset(Trait[name] for name in names.split(" + ")), " ".join(words.split()))
    for names, words in re.findall(r"^(\S.*)\n((?: .*\n)+)", TABLE, re.MULTILINE)
)


def traits_of(
    config: Config, card: Mapping[str, Any] | None = None, *, live: bool = False
) -> frozenset[Trait]:
    """Return the traits of a run of *config*, and of the checkpoint of *card* if one is given."""
    market, account, model, costs = config.market, config.account, config.model, config.execution
    chosen, mode = config.strategy, config.sizing.mode
    has = {
        Trait.LIVE: live,
        Trait.PAID_IN_FULL: market.category == Category.SPOT.value or market.asset == STOCK,
        Trait.SHARES: market.asset == STOCK,
        Trait.CRYPTO: market.asset != STOCK,
        Trait.MONTHS: market.interval_ms == MONTH_MS,
        Trait.BARS_ALONE: market.gather_ms == 0,
        Trait.TERMS_OF_SHARES: market.fractional
        or costs.fee_per_share is not None
        or bool(costs.fee_minimum),
        Trait.MARGIN: account.margin != "none",
        Trait.CUSTOM_CLASS: bool(model.custom_class),
        Trait.COVARIATES: model.covariates is not None,
        Trait.COMPUTED_OTHERWISE: model.backend != "auto"
        or model.device not in {"auto", "cpu"}
        or model.explanation != ExplanationSection(),
        Trait.SIZED_TREND: chosen.name == TREND and chosen.trend_sized_by != "constant",
        Trait.SIZED_BY_VOLATILITY: mode == "volatility",
        Trait.SIZED_BY_STOP: mode == "risk",
        Trait.NO_STOP: ":" not in chosen.name and not config.exits.has_stop,
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
