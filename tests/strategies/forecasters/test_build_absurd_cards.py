"""A card with any absurd value builds or is refused in one sentence, and never hangs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

import models
import pytest
import torch

from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.forecasters.build import build
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork
from tracepaper.strategies.networks.linear import LinearConfig, LinearNetwork
from tracepaper.strategies.networks.timeframes import MultiscaleConfig, MultiscaleNetwork
from tracepaper.strategies.networks.trading import TradingConfig, TradingNetwork

ABSURD: Final[tuple[object, ...]] = (
    -1,
    0,
    3,
    10**12,
    10**40,
    0.5,
    1e300,
    float("nan"),
    float("inf"),
    True,
    "",
    "x" * 10_000,
    [],
    [float("nan")],
    [10**12, 10**12],
    ["a", 1],
    list(range(1, 500)),
    {},
    {"a": {"b": []}},
)
INFORMER: Final = InformerConfig(dim=8, layers=2, heads=2, window=40, factor=2)
OTHERS: Final[dict[str, Network]] = {
    "informer": InformerNetwork(INFORMER),
    "linear": LinearNetwork(LinearConfig(dim=8, layers=1, heads=2, window=16)),
    "multiscale": MultiscaleNetwork(
        MultiscaleConfig(dim=8, layers=1, heads=2, frames=(1, 4), tokens=(4, 4))
    ),
    "trading": TradingNetwork(TradingConfig(dim=8, layers=1, heads=2, window=16)),
}
QUANTILES: Final = [0.01 * place for place in range(1, 100)]


def cards() -> dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    whole: dict[str, Any] = {
        "temperature": {"5": 1.0, "30": 1.0, "240": 1.0},
        "slope": [0.5, 0.5, 0.5],
        "content_free": 0.0,
        "quantiles": {"confidence_entropy": QUANTILES, "shift": QUANTILES},
    }
    flash = models.card(**whole)
    by_kind = {"flash": (flash, models.network().state_dict())}
    for kind, network in OTHERS.items():
        of = asdict(network.config)
        architecture = {k: list(v) if isinstance(v, tuple) else v for k, v in of.items()}
        card = {**flash, "model": {"kind": kind}, "architecture": architecture}
        by_kind[kind] = (card, network.state_dict())
    return by_kind


def places(table: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the way to every key of *table*, tables included."""
    for key, value in table.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def changed(card: dict[str, Any], place: tuple[str, ...], value: object) -> dict[str, Any]:
    edited = copy.deepcopy(card)
    table = edited
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    return edited


@pytest.mark.long
@pytest.mark.parametrize("kind", ["flash", *OTHERS])
def test_every_key_of_a_card_takes_no_absurd_value_badly(kind: str) -> None:
    card, tensors = cards()[kind]
    build(card, tensors)
    refused = 0
    for place in places(card):
        for value in ABSURD:
            try:
                build(changed(card, place, value), tensors)
            except TracepaperError as error:
                refused += 1
                sentence = str(error)
                assert len(sentence) < 400, (place, sentence)
                assert "\n" not in sentence
    assert refused > 300


@pytest.mark.parametrize("kind", ["flash", "informer"])
@pytest.mark.parametrize(
    "change",
    [
        {"dim": 8_192, "layers": 256},
        {"layers": 256},
        {"window": 65_536, "layers": 200, "dim": 1_024},
    ],
)
def test_a_size_that_the_weights_do_not_have_allocates_nothing(
    kind: str, change: dict[str, int]
) -> None:
    card, tensors = cards()[kind]
    given = {**card, "architecture": {**card["architecture"], **change}}
    with pytest.raises(TracepaperError, match="weight"):
        build(given, tensors)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature", 0.0, "temperature must be above 0"),
        ("temperature", [1.0, float("nan"), 1.0], "finite number"),
        ("slope", "steep", "one number for each of the horizons"),
        ("content_free", "much", "content_free must be a finite number"),
        ("quantiles", {"shift": QUANTILES[::-1]}, "quantiles.shift must not fall"),
        ("quantiles", {"shift": [float("inf")]}, "quantiles.shift must be a finite number"),
        ("quantiles", 3, "quantiles is not a table"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(name: str, value: object, words: str) -> None:
    card, tensors = cards()["flash"]
    with pytest.raises(TracepaperError, match=words):
        build({**card, "calibration": {**card["calibration"], name: value}}, tensors)
