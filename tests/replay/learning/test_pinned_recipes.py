"""The hash and the text of a recipe of every kind, which count openings and remake checkpoints.

They follow from text alone, so they are the same on every machine. A hash that moves is another
recipe: the openings that were counted of it are lost.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import pytest
from learning import FORMS

from tracepaper.replay.learning import recipe as recipes
from tracepaper.replay.learning.estimator import recipe_of
from tracepaper.replay.learning.estimators.order_book import SCHEMA, BookFitOptions
from tracepaper.replay.learning.recipe import Recipe
from tracepaper.storage.checkpoints import BUNDLED, load
from tracepaper.strategies.networks.order_book import OrderBookConfig
from tracepaper.strategies.order_book import COLUMNS

SEED = {"training": {"seed": 7, "threads": 1}}
"""What makes no other recipe."""
NETWORKS = {
    "flash": ("f00e8a86dbdf", "2a57fa5228e3"),
    "volatile": ("ac2706f43898", "084b4f8f79c0"),
    "classic": ("408353fb365b", "458d66fbd3ff"),
    "decoder": ("b345425bd1e2", "236d4dccf897"),
    "blocks": ("53d2654adc74", "c506bd8c5352"),
    "clocked": ("adbc0534740a", "a1e37c805ad0"),
    "informer": ("14db699c6460", "ca143d8719fc"),
    "generative": ("0feb3f3ec83b", "cf99d829b846"),
    "linear": ("a2d8054518ef", "863c697b8069"),
    "performer": ("29a29a9b1728", "5053f1d91aa8"),
    "multiscale": ("f719ffd8b140", "85b6317020df"),
    "cross": ("8de9baf3a7f1", "bf707b5e8bae"),
    "own": ("f05ad9d2af52", "dc529beb6cf4"),
    "trading": ("c82b775c3108", "7aa9c01e38bb"),
    "lstm": ("dce41556af4c", "0dfd75e9a588"),
}
"""Of each of ``learning.FORMS``: the hash of its recipe, and that of its text."""
OTHERS = {
    "crossasset": ("fda4f4fd23f2", "0b8f6b0ad2e6"),
    "portfolio": ("faa85f4fa332", "60114fb42eda"),
    "tree": ("be496de0e5be", "d99921f2da08"),
    "glm": ("0b0326a6221e", "92689731cf46"),
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def document(name: str) -> dict[str, Any]:
    """Return what a form chooses; of a kind without forms, nothing but the kind."""
    form = FORMS.get(name, {"kind": name})
    section = {key: value for key, value in form.items() if key != "kind"}
    return {"model": {"kind": form["kind"]}, "architecture": section}


def text_of(name: str) -> str:
    return recipe_of(document(name)).text()


@pytest.mark.parametrize("name", [*FORMS, *OTHERS])
def test_a_recipe_keeps_its_hash_and_its_text(name: str) -> None:
    of = document(name)
    found = (recipe_of(of).hash, digest(text_of(name)))
    assert found == {**NETWORKS, **OTHERS}[name]
    assert recipe_of({**of, **SEED}).hash == found[0]
    assert recipe_of({**of, "training": {"learning_rate": 0.125}}).hash != found[0]


def test_a_key_that_came_later_moves_no_recipe_without_it() -> None:
    of = document("trading")
    del of["architecture"]["runup"]
    found = recipe_of(of)
    assert (found.hash, digest(found.text())) == ("47e71c54f1e6", "ed29e042c05a")


def test_an_ensemble_keeps_its_hash_and_its_text() -> None:
    chosen = document("flash") | {"ensemble": {"kind": "tree", "schema_id": "tree-1m"}}
    both = recipe_of(chosen)
    assert digest(both.text()) == "18e11267b6c2"
    card = {
        "model": {"kind": "ensemble"},
        "parts": {"network": both.members[0].document(), "rows": document("tree")},
    }
    assert recipe_of(card).hash == "22ecb1fdc697"


def test_a_recipe_of_order_books_keeps_its_hash() -> None:
    card: dict[str, Any] = {
        "model": {"kind": "orderbook", "weights_sha256": ""},
        "architecture": asdict(OrderBookConfig(levels=5)),
        "features": {"schema_id": SCHEMA, "columns": list(COLUMNS), "lookback": 1},
        "training": asdict(BookFitOptions()),
    }
    assert recipe_of(card).hash == "014d9e7b7448"


def test_a_whole_number_for_a_number_is_the_same_recipe() -> None:
    def of(ratio: float, dropout: float) -> Recipe:
        return recipe_of({"architecture": {"mlp_ratio": ratio, "dropout": dropout}})

    assert of(4, 0) == of(4.0, 0.0)
    assert of(4, 0).text() == of(4.0, 0.0).text()
    assert of(4, 0).hash == of(4.0, 0.0).hash
    assert of(3, 0).hash != of(4, 0).hash


@pytest.mark.parametrize("section", ["architecture", "training"])
def test_a_newer_key_at_the_value_that_changes_nothing_keeps_the_hash(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = document("flash")
    key, value = {"architecture": ("norm", "pre"), "training": ("clip", 1.0)}[section]
    before = recipe_of(own).hash
    older = {name: dict(of) for name, of in recipe_of(own).document().items()}
    assert older[section].pop(key) == value
    for luck in ("seed", "threads", "device", "entropy_weight"):
        older["training"].pop(luck, None)
    older["model"] = {"kind": "flash"}
    newer = {"architecture": {}, "training": {"entropy_weight": 0.0}}
    monkeypatch.setattr(recipes, "_NEWER", {**newer, section: {**newer[section], key: value}})
    assert recipe_of(own).hash == digest(json.dumps(older, sort_keys=True))
    assert recipe_of(own).hash != before
    chosen = {"norm": "post", "clip": 2.0}[key]
    other = {**own, section: {**own.get(section, {}), key: chosen}}
    assert recipe_of(other).hash not in (recipe_of(own).hash, before)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("flash-1m", "2f11a8384145"),
        ("flash-15m", "c040d446c80c"),
        ("informer-1m", "29f227f859ee"),
        ("trading-15m", "c9ebbaf65834"),
    ],
)
def test_a_bundled_checkpoint_keeps_the_hash_of_its_recipe(name: str, known: str) -> None:
    assert recipe_of(load(BUNDLED / name).card).hash == known
