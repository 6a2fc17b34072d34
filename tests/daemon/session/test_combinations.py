"""Every pair of traits is rejected with its message, or the run can be built."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest
from generated import combinations_page
from pydantic import ValidationError

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.session.build import needs_forecaster
from tracepaper.daemon.session.combinations import (
    COMBINATIONS,
    Trait,
    reject_combination,
    traits_of,
)
from tracepaper.daemon.session.run_row import preflight_engine
from tracepaper.strategies.errors import ConfigInvalid

SETTINGS: Final[Mapping[Trait, dict[str, Any]]] = {
    Trait.LIVE: {},
    Trait.PAID_IN_FULL: {"market.category": "spot"},
    Trait.SHARES: {"market.asset": "stock"},
    Trait.CRYPTO: {"market.asset": "crypto"},
    Trait.MONTHS: {"market.interval": "M"},
    Trait.BARS_ALONE: {"market.gather_ms": 0},
    Trait.TERMS_OF_SHARES: {"market.fractional": True},
    Trait.MARGIN: {"account.margin": "isolated"},
    Trait.SIZED_TREND: {"strategy.name": "trend", "strategy.trend_sized_by": "ewma"},
    Trait.SIZED_BY_VOLATILITY: {"sizing.mode": "volatility", "sizing.volatility": "ewma"},
    Trait.SIZED_BY_STOP: {"sizing.mode": "risk"},
    Trait.NO_STOP: {"strategy.name": "sma_cross"},
    Trait.WITHOUT_MODEL: {"strategy.name": "sma_cross"},
    Trait.CUSTOM_CLASS: {"model.class": "mine:Mine"},
    Trait.COVARIATES: {"model.covariates": "news.csv"},
    Trait.COMPUTED_OTHERWISE: {"model.backend": "tiles"},
    Trait.READS_BOOKS: {},
    Trait.READS_OTHER: {},
    Trait.READS_CLOSES: {},
}
"""The keys that give a trait to a run without traits."""
OF_A_CARD = {Trait.READS_BOOKS, Trait.READS_OTHER, Trait.READS_CLOSES}
OF_A_MODEL = OF_A_CARD | {Trait.CUSTOM_CLASS, Trait.COVARIATES, Trait.COMPUTED_OTHERWISE}
OTHER_KEYS: Final = [
    (Trait.PAID_IN_FULL, "market", {"asset": "stock"}),
    (Trait.TERMS_OF_SHARES, "execution", {"fee_per_share": "0.005"}),
    (Trait.TERMS_OF_SHARES, "execution", {"fee_minimum": "1"}),
    (Trait.MARGIN, "account", {"margin": "cross"}),
    (Trait.COMPUTED_OTHERWISE, "model", {"device": "cuda"}),
    (Trait.COMPUTED_OTHERWISE, "model", {"explanation": {"method": "norm"}}),
]
"""Further keys that give a trait."""
PAIRS = list(combinations(Trait, 2))


def configured(*traits: Trait) -> Config | None:
    """Return a configuration with *traits*; None if they need two values of one key."""
    given: dict[str, dict[str, Any]] = {
        "strategy": {"name": "sma_cross"},
        "model": {"checkpoint": "none"},
        "market": {"symbols": ["AAA"]},
    }
    keys: dict[str, Any] = {}
    for trait in traits:
        for key, value in SETTINGS[trait].items():
            if keys.setdefault(key, value) != value:
                return None
    for key, value in keys.items():
        section, _, name = key.partition(".")
        given.setdefault(section, {})[name] = value
    try:
        return Config.model_validate(given)  # as `load` does, in a tenth of its time
    except ValidationError:  # one section rejects it by itself
        return None


@cache
def pairs() -> list[tuple[Trait, Trait, Config]]:
    configs = ((first, second, configured(first, second)) for first, second in PAIRS)
    return [(first, second, config) for first, second, config in configs if config is not None]


def test_each_trait_is_read_from_its_keys() -> None:
    for trait in set(Trait) - OF_A_CARD - {Trait.WITHOUT_MODEL, Trait.LIVE}:
        config = configured(trait)
        assert config is not None, trait
        assert trait in traits_of(config), trait
    for trait, section, keys in OTHER_KEYS:
        assert trait not in traits_of(Config())
        assert trait in traits_of(Config.model_validate({section: keys}))
    assert len(pairs()) > 0.8 * len(PAIRS)


def test_each_row_is_reached_and_says_what_to_do() -> None:
    for number, row in enumerate(COMBINATIONS):
        with pytest.raises(ConfigInvalid) as refused:
            reject_combination(row.traits)
        assert str(refused.value) == row.sentence
        assert not [other for other in COMBINATIONS[:number] if other.traits <= row.traits]
        assert row.sentence.endswith(".")
        for trait in row.traits:  # no fewer traits are rejected
            reject_combination(row.traits - {trait})


def test_a_pair_is_refused_by_its_row_or_is_built() -> None:
    """A pair that no row rejects and that needs no model is built, as daemon and as replay."""
    built = 0
    for first, second, config in pairs():
        pair = {first, second}
        for live in (True, False) if Trait.LIVE not in pair else (True,):
            traits = traits_of(config, live=live) | (pair & (OF_A_CARD | {Trait.WITHOUT_MODEL}))
            assert pair <= traits, pair
            if rows := [row for row in COMBINATIONS if row.traits <= traits]:
                with pytest.raises(ConfigInvalid) as refused:
                    reject_combination(traits)
                assert str(refused.value) == rows[0].sentence
            elif not pair & OF_A_MODEL:
                assert not needs_forecaster(config)
                if live:
                    preflight_engine(config, None)
                    built += 1
    assert built > 30


def test_the_table_of_the_documentation_is_of_these_rows() -> None:
    page = (Path(__file__).parents[3] / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == combinations_page()
