"""Every key of a recipe declares its range and its text, and is checked against both."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import pytest
from msgspec import Meta

from tracepaper.replay.learning.boosting import BoostingOptions
from tracepaper.replay.learning.estimators.order_book import BookFitOptions
from tracepaper.replay.learning.fit import FitOptions
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.architecture import network_kinds
from tracepaper.strategies.networks.cross_asset import CrossAssetConfig
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.networks.keys import checked_section, keys_of
from tracepaper.strategies.networks.order_book import OrderBookConfig

CONFIGS = [
    *(type(kind.read({})) for kind in network_kinds().values()),
    CrossAssetConfig,
    OrderBookConfig,
]
OPTIONS = [FitOptions, BoostingOptions, BookFitOptions]


@dataclass(frozen=True, slots=True)
class Small:
    depth: Annotated[int, Meta(ge=1, le=3, description="Layers.")] = 2
    rate: Annotated[float, Meta(gt=0, lt=1, description="Rate.")] = 0.5
    sizes: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=9)], ...], Meta(max_length=2, description="Sizes.")
    ] = ()
    names: tuple[str, ...] = ()
    flag: Annotated[bool, Meta(extra_json_schema={"readOnly": True})] = False
    free: int = 7


@pytest.mark.parametrize("made_of", [*CONFIGS, *OPTIONS])
def test_every_key_has_a_text_and_its_own_default(made_of: type[Any]) -> None:
    keys = keys_of(made_of)
    assert list(keys) == [field.name for field in fields(made_of)]
    for field in fields(made_of):
        key = keys[field.name]
        assert key.text.endswith("."), key
        assert key.default == field.default
        assert isinstance(field.default, tuple) == key.is_list


@pytest.mark.parametrize("made_of", CONFIGS)
def test_every_number_of_a_network_has_both_ends_of_its_range(made_of: type[Any]) -> None:
    numbers = [key for key in keys_of(made_of).values() if key.type in {"whole number", "number"}]
    assert numbers
    for key in numbers:
        assert key.low is not None, key
        assert key.high is not None, key


def test_a_key_says_its_type_its_range_and_its_text() -> None:
    keys = keys_of(Small)
    assert keys["depth"][:2] == ("depth", "whole number")
    assert [keys[name].range for name in ("depth", "rate", "sizes", "free", "flag")] == [
        "1 to 3",
        "above 0 to below 1",
        "0 to 9",
        "",
        "",
    ]
    assert [name for name, key in keys.items() if key.is_list] == ["sizes", "names"]
    assert [name for name, key in keys.items() if key.derived] == ["flag"]
    assert keys["depth"].text == "Layers."


def test_an_open_range_is_said_in_words() -> None:
    keys = keys_of(FitOptions)
    assert keys["steps"].range == "at least 1"
    assert keys["learning_rate"].range == "above 0"
    assert keys_of(OrderBookConfig)["horizons"].range == "1 to 1,000,000"


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"depht": 2}, "architecture.depht is unknown, the nearest is depth"),
        ({"depth": True}, "architecture.depth is True: Expected `int`"),
        ({"rate": float("nan")}, "architecture.rate is nan: Expected `float` > 0"),
        ({"names": "a"}, "architecture.names is 'a': Expected `array`"),
    ],
)
def test_what_a_key_does_not_declare_is_refused(section: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        checked_section(Small, section)


def test_a_whole_number_for_a_number_is_that_number() -> None:
    document = checked_section(Small, {"sizes": [3], "free": -(2**70)})
    assert (document["sizes"], document["free"]) == ((3,), -(2**70))
    assert type(checked_section(FlashConfig, {"mlp_ratio": 4})["mlp_ratio"]) is float
